"""How often something is done: a few times at once, then evenly."""

from __future__ import annotations

import time

__all__ = ["RateLimiter"]


class RateLimiter:
    """Spaces calls so that no minute has many more of them than ``60 / interval``.

    A token bucket that holds *burst* tokens and gets another one every *interval* seconds. For one thread.

    Args:
        burst: The number of calls that may be made at once after a pause.
        interval: Seconds from one call to the next when there is no pause.

    Example:
        >>> limiter = RateLimiter(2, 5.0)
        >>> [limiter.reserve(now=0.0) for _ in range(4)]
        [0.0, 0.0, 5.0, 10.0]
    """

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, burst: int, interval: float) -> None:
        self._burst = burst
        self._interval = interval
        self._full_at = 0.0

    def reserve(self, now: float | None = None) -> float:
        """Reserve the next call, and return the seconds to wait before it may be made.

        Args:
            now: Seconds of the monotonic clock; ``None``: what it says.
        """
        now = time.monotonic() if now is None else now
        self._full_at = max(self._full_at, now) + self._interval
        return max(0.0, self._full_at - now - self._burst * self._interval)
