"""The result backend of a Celery app, for what Celery itself says of jobs that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from wove.integrations.base import JobStatus

if TYPE_CHECKING:
    from wove.integrations.celery.adapter import Submission

__all__ = ["Results"]

CHUNK: Final = 500
"""Number of results that are asked for at a time."""

LOST: Final = frozenset({"FAILURE", "REVOKED", "REJECTED"})
"""Of celery.states: the job is over, and not as it should be. (RETRY is not over.)"""


class Results:
    """Reads the states of jobs, many at once.

    Args:
        backend: A result backend that keeps results by key: Redis, Memcached, and the like.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    @classmethod
    def of(cls, app: Any) -> Results | None:
        """Of *app*, if its result backend can be asked about many jobs at once."""
        from celery.backends.base import BaseKeyValueStoreBackend

        backend = app.backend
        return cls(backend) if isinstance(backend, BaseKeyValueStoreBackend) else None

    def fates(self, submissions: Mapping[str, Submission], task: str) -> dict[str, JobStatus]:
        """Return the ends of the jobs that are over, by run id."""
        backend = self._backend
        fates: dict[str, JobStatus] = {}
        runs = list(submissions)
        for begin in range(0, len(runs), CHUNK):
            chunk = runs[begin : begin + CHUNK]
            keys = [backend.get_key_for_task(submissions[run_id].task_id) for run_id in chunk]
            found: Any = backend.mget(keys)
            # Memcached gives a dict of those that there are.
            values: list[Any] = (
                [found.get(key) for key in keys] if hasattr(found, "get") else list(found)
            )
            for run_id, value in zip(chunk, values, strict=True):
                if value is not None and (fate := _fate(backend.decode(value), task)) is not None:
                    fates[run_id] = fate

        return fates


def _fate(meta: object, task: str) -> JobStatus | None:
    # Not as Celery decodes it, which makes exceptions of what it finds: a word is enough.
    fields: Mapping[str, Any] = cast("Mapping[str, Any]", meta) if isinstance(meta, Mapping) else {}
    status = fields.get("status")
    if status == "SUCCESS":
        return JobStatus("finished", "Celery says SUCCESS")
    if status not in LOST:
        return None
    kind, message = _exception(fields.get("result"))
    said = f"{kind}: {message}" if message else kind
    if kind == "NotRegistered":
        said = f"its worker does not know the task {task!r}: {remedy(task)}"
    return JobStatus("lost", f"Celery says {status}: {said}" if said else f"Celery says {status}")


def remedy(task: str) -> str:
    """Return the remedy for workers that do not know *task*."""
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
