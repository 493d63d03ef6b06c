"""How often the worker of a run sends a heartbeat: the one place where that is decided.

Heartbeats have two uses. A weave that sets ``delivery_heartbeat_seconds`` takes a worker for dead that is silent that
long. And the response to a heartbeat is how a backend's worker learns that its run was cancelled: it sends heartbeats
even where its weave expects none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["BATCH_SECONDS", "MAX_SECONDS", "QUEUE_SECONDS", "spacing"]

PER_TIMEOUT: Final = 3
"""Heartbeats within ``delivery_heartbeat_seconds``. One may be lost, and another one late."""

MIN_SECONDS: Final = 0.01
"""Minimum time between two heartbeats, whatever is asked for."""

QUEUE_SECONDS: Final = 1.0
"""Maximum time between two heartbeats of a queue's worker, so that it hears of a cancel soon."""

BATCH_SECONDS: Final = 10.0
"""The same for backends that end the process of a cancelled job themselves, and have thousands of them."""

MAX_SECONDS: Final = 5.0
"""The same where a payload does not say it."""


def spacing(delivery: Mapping[str, Any] | None, maximum: float | None = None) -> float | None:
    """Return the time between two heartbeats of a run, in seconds; ``None``: it sends none.

    Args:
        delivery: The ``delivery`` field of the run's ``run_task`` frame.
        maximum: Maximum time between two heartbeats; ``None``: heartbeats are sent only if *delivery* asks for them.

    Example:
        >>> spacing({"delivery_heartbeat_seconds": 15.0})
        5.0
        >>> spacing({"delivery_heartbeat_seconds": 15.0}, maximum=1.0)
        1.0
    """
    timeout: object = None if delivery is None else delivery.get("delivery_heartbeat_seconds")
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0:
        wanted = timeout / PER_TIMEOUT
        return max(MIN_SECONDS, wanted if maximum is None else min(wanted, maximum))
    return maximum if maximum is None else max(MIN_SECONDS, maximum)
