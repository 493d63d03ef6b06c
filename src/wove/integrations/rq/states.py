"""The states of RQ's jobs, read from Redis for many jobs at once, without their payloads and without unpickling."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from wove.integrations.base import JobStatus

if TYPE_CHECKING:
    from wove.integrations.rq.adapter import Submission

__all__ = ["WAITING", "JobInspector", "Row", "failure_text", "read_row"]

K = TypeVar("K")
V = TypeVar("V")

FIELDS: Final = ("status", "worker_name", "started_at", "origin", "wove")
"""Fields of a job's hash (rq/job.py, `to_dict`); ``wove`` is ours."""

WAITING: Final = frozenset(
    {"created", "queued", "deferred", "scheduled", "rate_limited", "ready_to_enqueue"}
)
"""States of a job that no worker has started (rq/job.py, `JobStatus`)."""

MAX_QUERY_JOBS: Final = 1000
"""Maximum number of jobs in one round trip."""

MAX_LIST: Final = 10_000
"""Maximum length of a queue that is fetched whole to see which jobs are still in it."""

MAX_LOOKUPS: Final = 16
"""Number of the oldest jobs that are looked up in a longer queue. Each costs Redis a walk through the list."""

SILENT_SECONDS: Final = 10.0
"""How long a worker may have no subscription to its command channel, to which RQ returns 2 s after a lost connection
(rq/worker/base.py, `_pubsub_exception_handler`). Also how long a job may be neither in the queue nor started; in
between, a worker only forks."""

MAX_CHARACTERS: Final = 500
"""Maximum number of characters of an error that are quoted."""

NO_REASON: Final = "RQ has kept no reason"

ABANDONED: Final = "AbandonedJobError"
"""Part of the error of a job whose worker sent no heartbeat (rq/registry.py, `StartedJobRegistry.cleanup`)."""

NOT_FOUND: Final = "Invalid attribute name"
"""RQ's message when it cannot import a job's function (rq/utils.py, `import_attribute`)."""


class Row(NamedTuple):
    """The fields of a job that matter here.

    Attributes:
        status: One of `rq.job.JobStatus`, as text; empty: unknown.
        worker: The name of the worker that started it.
        started_at: When it was started, as RQ writes it.
        origin: The name of its queue.
        mark: ``owner/run_id``, if its id is made of an idempotency key.
    """

    status: str
    worker: str
    started_at: str
    origin: str
    mark: str

    @property
    def owner(self) -> str:
        """The id of the adapter that enqueued it."""
        return self.mark.partition("/")[0]


class _Worker(NamedTuple):
    """A worker.

    Attributes:
        birth: When it was started, as RQ writes it.
        death: When it was shut down; empty: it was not.
        listens: Whether it is subscribed to its command channel; ``None``: unknown.
    """

    birth: str
    death: str
    listens: bool | None

    def gone(self, row: Row) -> str | None:
        """Return why it cannot be running the job *row*; ``None`` if, as far as Redis knows, it does."""
        if self.death:
            return f"worker {row.worker} shut down at {self.death}"
        if self.birth and row.started_at and self.birth > row.started_at:
            return f"worker {row.worker} was started anew at {self.birth}"
        if self.listens is False:
            return f"worker {row.worker} has no connection to Redis any more"
        if self.listens is None and not self.birth:
            return f"worker {row.worker} gave no heartbeat for too long"
        return None


def read_row(connection: Any, key: str) -> Row | None:
    """Return the job under *key*; ``None``: there is none."""
    return _row(connection.hmget(key, FIELDS))


class JobInspector:
    """Finds out which jobs are over, and remembers since when others look lost.

    Args:
        queue: The `rq.Queue`.
        job_key: Returns the key of a job, by its id.
        worker_key: Returns the key of a worker, by its name.
        channel: Returns the command channel of a worker, by its name.
        result_key: Returns the key of a job's results, by its id.
    """

    def __init__(
        self,
        queue: Any,
        *,
        job_key: Callable[[str], str],
        worker_key: Callable[[str], str],
        channel: Callable[[str], str],
        result_key: Callable[[str], str],
    ) -> None:
        self._redis = queue.connection
        self._queue = queue
        self._job_key = job_key
        self._worker_key = worker_key
        self._channel = channel
        self._result_key = result_key
        self._suspects: dict[str, float] = {}

    def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each job that is over; see `StatusProbe`."""
        statuses: dict[str, JobStatus] = {}
        failed: dict[str, Row] = {}
        started: dict[str, Row] = {}
        queued: dict[str, str] = {}

        for run_id, row in self._rows(submissions):
            job_id, mark = submissions[run_id]
            if row is None:
                statuses[run_id] = JobStatus(
                    "missing", "its job is no longer in Redis: removed, expired, or Redis lost it"
                )
            elif mark is not None and row.mark != mark:
                statuses[run_id] = JobStatus(
                    "lost", "its job was replaced by another run's with the same idempotency key"
                )
            elif row.status == "finished":
                statuses[run_id] = JobStatus("finished", "RQ: finished")
            elif row.status in ("stopped", "canceled"):
                statuses[run_id] = JobStatus(
                    "lost", f"its job was {row.status}{_on(row)}, from outside the weave"
                )
            elif row.status == "failed":
                failed[run_id] = row
            elif row.status == "started":
                started[run_id] = row
            elif row.status == "queued" and row.origin == self._queue.name:
                queued[run_id] = job_id

        workers = self._look_up(
            {row.worker for row in (*started.values(), *failed.values()) if row.worker}
        )
        statuses.update(self._failures(failed, submissions, workers))
        suspects = self._unattended(started, workers)
        suspects.update(self._untraceable(queued))
        statuses.update(self._lasting(suspects))
        return statuses

    def is_gone(self, row: Row) -> bool:
        """Return whether the worker of a started job is gone."""
        return self._look_up({row.worker})[row.worker].gone(row) is not None

    def _rows(self, submissions: Mapping[str, Submission]) -> Iterator[tuple[str, Row | None]]:
        for part in _parts(submissions, MAX_QUERY_JOBS):
            with self._redis.pipeline(transaction=False) as pipe:
                for each in part.values():
                    pipe.hmget(self._job_key(each.job_id), FIELDS)
                yield from zip(part, map(_row, pipe.execute()), strict=True)

    def _look_up(self, names: Iterable[str]) -> dict[str, _Worker]:
        asked = sorted(names)
        if not asked:
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for name in asked:
                pipe.hmget(self._worker_key(name), ("birth", "death"))
            # The subscription lasts as long as the worker or the work-horse that it forked.
            pipe.pubsub_numsub(*map(self._channel, asked))
            *rows, listeners = pipe.execute(raise_on_error=False)

        counts = (
            [None] * len(asked)
            if isinstance(listeners, Exception)
            else [count for _, count in listeners]
        )
        workers: dict[str, _Worker] = {}

        for name, row, count in zip(asked, rows, counts, strict=True):
            if isinstance(row, Exception):
                raise row
            workers[name] = _Worker(
                _text(row[0]), _text(row[1]), None if count is None else count > 0
            )

        return workers

    def _failures(
        self,
        failed: Mapping[str, Row],
        submissions: Mapping[str, Submission],
        workers: Mapping[str, _Worker],
    ) -> Iterator[tuple[str, JobStatus]]:
        for part in _parts(failed, MAX_QUERY_JOBS):
            with self._redis.pipeline(transaction=False) as pipe:
                for run_id in part:
                    pipe.xrevrange(self._result_key(submissions[run_id].job_id), count=1)
                results = pipe.execute(raise_on_error=False)
            for (run_id, row), result in zip(part.items(), results, strict=True):
                text = failure_text(_recorded(result))
                alive = row.worker in workers and workers[row.worker].gone(row) is None
                if ABANDONED in text and alive:  # a SimpleWorker sends no heartbeat during a job
                    continue
                yield run_id, JobStatus("lost", f"its job failed{_on(row)}: {text}")

    def _unattended(
        self, started: Mapping[str, Row], workers: Mapping[str, _Worker]
    ) -> dict[str, tuple[str, bool]]:
        """Return the jobs whose workers are gone, with the reason and whether that is certain."""
        found: dict[str, tuple[str, bool]] = {}

        for run_id, row in started.items():
            worker = workers.get(row.worker)
            if worker is not None and (why := worker.gone(row)) is not None:
                found[run_id] = (
                    f"its {why}, and its job is still marked as started",
                    worker.listens is not False,
                )

        return found

    def _untraceable(self, queued: Mapping[str, str]) -> dict[str, tuple[str, bool]]:
        """Return the jobs that are neither in the queue nor started: their workers ended between the two."""
        if not queued:
            return {}
        key = self._queue.key
        if self._redis.llen(key) <= MAX_LIST:
            there = set(map(_text, self._redis.lrange(key, 0, -1)))
            missing = [run_id for run_id, job_id in queued.items() if job_id not in there]
        else:
            oldest = dict(islice(queued.items(), MAX_LOOKUPS))
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in oldest.values():
                    pipe.lpos(key, job_id)
                missing = [
                    each
                    for each, at in zip(oldest, pipe.execute(raise_on_error=False), strict=True)
                    if at is None
                ]

        why = "a worker took its job from the queue, and ended before it began it"
        return dict.fromkeys(missing, (why, False))

    def _lasting(self, suspects: Mapping[str, tuple[str, bool]]) -> dict[str, JobStatus]:
        now = time.monotonic()
        self._suspects = {run_id: self._suspects.get(run_id, now) for run_id in suspects}
        return {
            run_id: JobStatus("lost", why)
            for run_id, (why, certain) in suspects.items()
            if certain or now - self._suspects[run_id] >= SILENT_SECONDS
        }


def _row(values: list[Any]) -> Row | None:
    return Row(*map(_text, values)) if any(values) else None


def failure_text(recorded: str) -> str:
    """Return the exception at the end of a failure that RQ has recorded, without its traceback."""
    lines = recorded.rstrip().splitlines()
    at = next((at for at in range(len(lines), 0, -1) if lines[at - 1].startswith((" ", "\t"))), 0)
    text = " ".join(lines[at:] or lines[-1:]).strip()[:MAX_CHARACTERS]
    if NOT_FOUND in text:
        text += (
            " (the worker cannot import wove.integrations.worker: is Wove installed where it runs?)"
        )

    return text or NO_REASON


def _recorded(result: Any) -> str:
    """Return the text of a job's latest failure (rq/results.py, `Result.serialize`)."""
    try:
        return zlib.decompress(base64.b64decode(result[0][1][b"exc_string"])).decode(
            "utf-8", "replace"
        )
    except (LookupError, TypeError, ValueError, zlib.error):
        return ""


def _on(row: Row) -> str:
    return f" on worker {row.worker}" if row.worker else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _parts(items: Mapping[K, V], size: int) -> Iterator[dict[K, V]]:
    rest = iter(items.items())
    while part := dict(islice(rest, size)):
        yield part
