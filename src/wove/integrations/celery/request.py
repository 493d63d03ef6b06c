"""The record that a Celery worker's main process keeps of Wove's tasks, and tells when it is asked.

Imported by workers that have a task from `wove.integrations.celery.register`, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from celery.worker import control, request, state

from wove.concurrency.bounded import BoundedDict
from wove.integrations.celery.worker import COMMAND

__all__ = ["Request", "where"]

MAX_FAILURES: Final = 1000
"""Maximum number of failed tasks that are remembered: the adapter asks within seconds."""

_failures: Final = BoundedDict[str, str](MAX_FAILURES)

_Request: Any = request.Request
_state: Any = state
_command: Any = cast("Any", control).inspect_command


class Request(_Request):  # type: ignore[misc]  # of a package without types
    """Remembers why tasks have failed: without a result backend, Celery itself only logs it."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """The task raised, or its process died."""
        error = exc_info.exception
        _note(self.id, getattr(error, "exc", error))  # billiard.einfo.ExceptionWithTraceback
        super_: Any = super()
        return super_.on_failure(exc_info, *args, **options)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """The task has had its time: a soft limit raises in the task, the other one kills its process."""
        if not soft:
            _note(self.id, f"it was killed at its hard time limit of {timeout} s")
        super_: Any = super()
        return super_.on_timeout(soft, timeout)


def _note(task_id: str, error: object) -> None:
    _failures[task_id] = (
        f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    )


def where(_: Any, ids: Sequence[str] = (), **__: Any) -> dict[str, tuple[str, str]]:
    """State and trouble of those of *ids* that this worker knows.

    ``"reserved"``: it has the message, and has not begun. ``"active"``: it has begun. ``"failed"``: it was the last to
    have it. The second text is empty as long as all is well.
    """
    found: dict[str, tuple[str, str]] = {}

    for task_id in ids:
        known = _state.requests.get(task_id)
        if known is not None and known in _state.active_requests:
            found[task_id] = ("active", "")
        elif known is not None and (
            known in _state.reserved_requests or known in _state.scheduled_requests
        ):
            found[task_id] = ("reserved", "")
        elif task_id in _failures:
            found[task_id] = ("failed", _failures[task_id])

    return found


_command(name=COMMAND)(where)
