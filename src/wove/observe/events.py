"""One call for everything that happens, whoever listens.

Every step of a weave reports through `emit`. The debug log of the logger ``wove`` hangs on it, and
whatever else wants to see what happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["emit", "listen", "listening"]

_log = logging.getLogger("wove")
_sinks: list[Callable[[str, dict[str, Any]], object]] = []


def listen(sink: Callable[[str, dict[str, Any]], object]) -> Callable[[], None]:
    """Have *sink* called with every event's name and fields; returns the call that ends this.

    A sink is called on whatever thread the event happens on, and must not block. What it raises is
    logged and goes no further.
    """
    _sinks.append(sink)

    def stop() -> None:
        if sink in _sinks:
            _sinks.remove(sink)

    return stop


def listening() -> bool:
    """Whether anybody wants to hear; a caller on a hot path asks first."""
    return bool(_sinks) or _log.isEnabledFor(logging.DEBUG)


def emit(event: str, **fields: Any) -> None:
    """Tell everybody who listens that *event* has happened."""
    for sink in tuple(_sinks):
        try:
            sink(event, fields)
        except Exception:
            _log.exception("a listener failed on the event %r", event)

    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(
            "%s %s", event, " ".join(f"{name}={value!r:.200}" for name, value in fields.items())
        )
