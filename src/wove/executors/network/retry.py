"""When a run is sent again that its service has not begun, and when a run is resumed whose connection was lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wove.concurrency.backoff import Backoff
from wove.errors import WorkerLostError
from wove.executors.network.hints import says_refused
from wove.executors.network.pending import PendingRequest

__all__ = ["BUSY_SECONDS", "BusyRetry", "Resumption"]

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


_RESUME_BACKOFF: Final = Backoff(0.1, 1.0)
"""The delay between two attempts to resume a run."""


class Resumption:
    """Decides whether a run survives the loss of its connection.

    The connection may be lost while client and service both live: a cable, a router, a firewall. Then the run
    continues, and the service keeps it and its end for a client that asks for it by its id. A refused connection, and a
    service that does not know the run, mean that its process has ended.

    Attributes:
        offered: Whether the service has said that it keeps runs.
    """

    def __init__(self) -> None:
        self.offered = False

    def begin(self, request: PendingRequest, error: WorkerLostError, now: float) -> bool:
        """Return whether *request*, lost with *error* at *now* (the loop's time), is to be resumed once more."""
        delivery: Mapping[str, Any] = request.frame.get("delivery") or {}
        seconds = delivery.get("delivery_reconnect_seconds") or 0.0
        if not self.offered or not request.left or request.is_cancel or request.cancelling:
            return False

        if request.loss is None:
            if not seconds:
                return False
            request.loss, request.lost_at = error, now
            request.frame = {
                "type": "resume_task",
                "run_id": request.run_id,
                "task_id": request.task,
                "delivery": delivery,
            }
            return True

        return now - request.lost_at < seconds and not says_refused(str(error))

    @staticmethod
    def next_delay(request: PendingRequest) -> float:
        """Count another attempt to resume *request*, and return the seconds until then."""
        request.offers += 1
        return _RESUME_BACKOFF.delay(request.offers)
