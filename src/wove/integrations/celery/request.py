"""The record that the main process of a Celery worker keeps of Wove's tasks, and the command that reads it.

Only workers with a task from `wove.integrations.celery.register` import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from celery.worker import control, request, state

from wove.concurrency.bounded import BoundedDict
from wove.integrations.celery.worker import COMMAND

__all__ = ["Request", "where"]

MAX_FAILURES: Final = 1000
"""Maximum number of failed tasks that are remembered. The adapter asks within seconds."""

_failures: Final = BoundedDict[str, str](MAX_FAILURES)

_Request: Any = request.Request
_state: Any = state
_command: Any = cast("Any", control).inspect_command


class Request(_Request):  # type: ignore[misc]  # of a package without types
    """Remembers why tasks have failed, which Celery only logs if there is no result backend."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Called when the task has raised, or its process has died."""
        super_: Any = super()

        try:
            # First what Celery does: the result backend, which the adapter asks first, has more of the reason.
            return super_.on_failure(exc_info, *args, **options)
        finally:
            error = exc_info.exception
            _note(self.id, getattr(error, "exc", error))  # billiard.einfo.ExceptionWithTraceback

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """Called when the task has reached a time limit: a soft one raises in the task, a hard one kills its
        process."""
        if not soft:
            _note(self.id, f"it was killed at its hard time limit of {timeout} s")
        super_: Any = super()
        return super_.on_timeout(soft, timeout)


def _note(task_id: str, error: object) -> None:
    _failures[task_id] = (
        f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    )


def where(_: Any, ids: Sequence[str] = (), **__: Any) -> dict[str, tuple[str, str]]:
    """Return state and error of those of *ids* that this worker knows.

    The states: ``"reserved"``: this worker has the message and has not started the task. ``"active"``: it has started
    the task. ``"failed"``: the task failed here. The error is empty in the other two states.
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
