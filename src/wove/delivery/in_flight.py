"""``delivery_max_in_flight``: how many runs of an environment are outside at once, over the whole process."""

from __future__ import annotations

import threading

from wove.concurrency import forks
from wove.concurrency.limiter import CapacityLimiter

__all__ = ["limiter_of"]

_limiters: dict[str, CapacityLimiter] = {}
_lock = threading.Lock()


def limiter_of(environment: str) -> CapacityLimiter:
    """Return the one limiter of the *environment* of that name in this process.

    Each run brings the limit of its own task. Runs without a limit are counted, for the others, and never wait.
    """
    found = _limiters.get(environment)
    if found is None:
        with _lock:
            found = _limiters.setdefault(environment, CapacityLimiter())

    return found


def reset_after_fork() -> None:
    """Forget all runs in flight in a forked child. Its copy of the lock may be held by a thread of the parent."""
    global _limiters, _lock
    _limiters, _lock = {}, threading.Lock()


forks.after_in_child(forks.Phase.CACHES, reset_after_fork)
