"""When a run that its service has not begun is sent again."""

from __future__ import annotations

from typing import Final

from wove.concurrency.backoff import Backoff
from wove.executors.network.pending import PendingRequest

__all__ = ["BUSY_SECONDS", "BusyRetry"]

BUSY_SECONDS: Final = 300.0
"""Default of ``busy_timeout``: how long a run is offered to a service that has no room."""

_BACKOFF: Final = Backoff(0.05, 2.0)
"""The delay between two offers of a run to a busy service."""


class BusyRetry:
    """Decides whether and when a run that a busy service declined is offered again.

    Args:
        seconds: How long a run is offered, from the first time it was declined; ``None`` for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def permits(self, request: PendingRequest, now: float) -> bool:
        """Return whether *request*, declined at *now* (the loop's time), may be offered again."""
        if request.busy_since is None:
            request.busy_since = now
        elif self._seconds is not None and now - request.busy_since > self._seconds:
            return False
        return not request.cancelling

    @staticmethod
    def next_delay(request: PendingRequest) -> float:
        """Count another offer of *request*, and return the seconds until then."""
        request.offers += 1
        return _BACKOFF.delay(request.offers)
