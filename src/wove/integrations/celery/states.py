"""The states of Celery's tasks, as the result backend of the app has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from wove.integrations.base import JobStatus

if TYPE_CHECKING:
    from wove.integrations.celery.adapter import Submission

__all__ = ["ResultStates", "remedy"]

CHUNK: Final = 500
"""Number of results that are asked for at a time."""

LOST: Final = frozenset({"FAILURE", "REVOKED", "REJECTED"})
"""States of celery.states in which a task has ended without success. (A task in RETRY has not ended.)"""


class ResultStates:
    """Reads the states of many tasks at once.

    Args:
        backend: A result backend that keeps results by key, such as Redis or Memcached.
        task: The name of the Celery task.
    """

    def __init__(self, backend: Any, task: str) -> None:
        self._backend = backend
        self._task = task

    @classmethod
    def of(cls, app: Any, task: str) -> ResultStates | None:
        """Return the states of *task* of *app*; ``None`` if its result backend cannot read many of them at once."""
        from celery.backends.base import BaseKeyValueStoreBackend

        backend = app.backend
        return cls(backend, task) if isinstance(backend, BaseKeyValueStoreBackend) else None

    def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each task that is over; see `StatusProbe`."""
        backend = self._backend
        statuses: dict[str, JobStatus] = {}
        runs = list(submissions)

        for begin in range(0, len(runs), CHUNK):
            chunk = runs[begin : begin + CHUNK]
            keys = [backend.get_key_for_task(submissions[run_id].task_id) for run_id in chunk]
            found: Any = backend.mget(keys)
            # Memcached returns a dict of the existing ones.
            values: list[Any] = (
                [found.get(key) for key in keys] if hasattr(found, "get") else list(found)
            )
            for run_id, value in zip(chunk, values, strict=True):
                if value is None:
                    continue
                if (status := _status(backend.decode(value), self._task)) is not None:
                    statuses[run_id] = status

        return statuses


def _status(meta: object, task: str) -> JobStatus | None:
    # Celery's own decoder would create exceptions of classes that the store names; their text is enough.
    fields: Mapping[str, Any] = cast("Mapping[str, Any]", meta) if isinstance(meta, Mapping) else {}
    state = fields.get("status")
    if state == "SUCCESS":
        return JobStatus("finished", "Celery says SUCCESS")
    if state not in LOST:
        return None

    kind, message = _exception(fields.get("result"))
    said = f"{kind}: {message}" if message else kind
    if kind == "NotRegistered":
        said = f"its worker does not know the task {task!r}: {remedy(task)}"
    return JobStatus("lost", f"Celery says {state}: {said}" if said else f"Celery says {state}")


def remedy(task: str) -> str:
    """Return what to do about workers that do not know *task*."""
    return (
        f"register it in the module that `celery -A` names, with wove.integrations.celery.register(app, name={task!r})"
        f", or name another one as 'task_name' in executor_config"
    )


def _exception(result: object) -> tuple[str, str]:
    if isinstance(result, BaseException):
        return type(result).__name__, str(result)
    if not isinstance(result, Mapping):
        return "", "" if result is None else str(result)
    fields = cast("Mapping[str, Any]", result)
    said = fields.get("exc_message")
    if isinstance(said, (list, tuple)):
        said = " ".join(map(str, cast("list[object]", said)))
    return str(fields.get("exc_type") or ""), "" if said is None else str(said)
