"""The states of RQ's jobs: read from Redis for many jobs at once, without their payloads, and without unpickling."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from wove.integrations.base import JobStatus

__all__ = ["WAITING", "JobInspector", "Row", "read_row", "words_of"]

K = TypeVar("K")
V = TypeVar("V")

FIELDS: Final = ("status", "worker_name", "started_at", "origin", "wove")
"""Fields of a job's hash (rq/job.py, `to_dict`); ``wove`` is ours."""

WAITING: Final = frozenset(
    {"created", "queued", "deferred", "scheduled", "rate_limited", "ready_to_enqueue"}
)
"""States of a job that no worker has begun (rq/job.py, `JobStatus`)."""

AT_ONCE: Final = 1000
"""How many jobs are asked about in one round trip."""

MAX_LIST: Final = 10_000
"""A queue of so many is fetched whole to see which jobs are still in it; of a longer one..."""

LOOKED_UP: Final = 16
"""...so many of the oldest jobs are looked up, since each costs Redis a walk through the list."""

SILENT_SECONDS: Final = 10.0
"""How long a worker may be away from its command channel: RQ comes back to it 2 s after a lost connection
(rq/worker/base.py, `_pubsub_exception_handler`). And how long a job may be neither in the queue nor begun: between the
two, a worker only forks."""

MAX_WORDS: Final = 500
"""The most characters of an error that are quoted."""

NO_REASON: Final = "RQ has kept no reason"

ABANDONED: Final = "AbandonedJobError"
"""In the words of a job whose worker gave no heartbeat (rq/registry.py, `StartedJobRegistry.cleanup`)."""

NOT_FOUND: Final = "Invalid attribute name"
"""RQ's message when it cannot import a job's function (rq/utils.py, `import_attribute`)."""


class Row(NamedTuple):
    """A job, as far as it matters here.

    Attributes:
        status: One of `rq.job.JobStatus`, as text; empty: unknown.
        worker: The name of the worker that began it.
        started_at: When, as RQ writes it.
        origin: Its queue's name.
        mark: Whose it is: ``owner/run_id``, where its id is made of an idempotency key.
    """

    status: str
    worker: str
    started_at: str
    origin: str
    mark: str

    @property
    def owner(self) -> str:
        """The adapter that enqueued it."""
        return self.mark.partition("/")[0]


class _Worker(NamedTuple):
    """A worker: when it was born and when it died, as RQ writes it, and whether it listens (``None``: unknown)."""

    birth: str
    death: str
    listens: bool | None

    def gone(self, row: Row) -> str | None:
        """Why it cannot be at work on *row*; ``None``: as far as Redis knows, it is."""
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
    """The job under *key*; ``None``: there is none."""
    return _row(connection.hmget(key, FIELDS))


class JobInspector:
    """Looks at jobs, and remembers which of them looked lost.

    Args:
        queue: The `rq.Queue`.
        worker_key: Gives the key of a worker of that name.
        channel: Its command channel.
        result_key: The key of the results of a job of that id.
    """

    def __init__(
        self,
        queue: Any,
        *,
        worker_key: Callable[[str], str],
        channel: Callable[[str], str],
        result_key: Callable[[str], str],
    ) -> None:
        self._redis = queue.connection
        self._queue = queue
        self._worker_key = worker_key
        self._channel = channel
        self._result_key = result_key
        self._suspects: dict[str, float] = {}

    def at(self, jobs: Mapping[str, tuple[str, str | None]]) -> dict[str, JobStatus]:
        """Return the ends of *jobs*, given as keys in Redis and marks, by run id."""
        fates: dict[str, JobStatus] = {}
        failed: dict[str, Row] = {}
        started: dict[str, Row] = {}
        queued: dict[str, str] = {}

        for run_id, row in self._rows(jobs):
            key, mark = jobs[run_id]
            if row is None:
                fates[run_id] = JobStatus(
                    "missing", "its job is no longer in Redis: removed, expired, or Redis lost it"
                )
            elif mark is not None and row.mark != mark:
                fates[run_id] = JobStatus(
                    "lost", "its job was replaced by another run's with the same idempotency key"
                )
            elif row.status == "finished":
                fates[run_id] = JobStatus("finished", "RQ: finished")
            elif row.status in ("stopped", "canceled"):
                fates[run_id] = JobStatus(
                    "lost", f"its job was {row.status}{_on(row)}, from outside the weave"
                )
            elif row.status == "failed":
                failed[run_id] = row
            elif row.status == "started":
                started[run_id] = row
            elif row.status == "queued" and row.origin == self._queue.name:
                queued[run_id] = _id_in(key)

        workers = self._look_up(
            {row.worker for row in (*started.values(), *failed.values()) if row.worker}
        )
        fates.update(self._failures(failed, jobs, workers))
        suspects = self._unattended(started, workers)
        suspects.update(self._untraceable(queued))
        fates.update(self._lasting(suspects))
        return fates

    def is_gone(self, row: Row) -> bool:
        """Whether the worker of a job that was begun is gone."""
        return self._look_up({row.worker})[row.worker].gone(row) is not None

    def _rows(self, jobs: Mapping[str, tuple[str, str | None]]) -> Iterator[tuple[str, Row | None]]:
        for part in _parts(jobs, AT_ONCE):
            with self._redis.pipeline(transaction=False) as pipe:
                for key, _ in part.values():
                    pipe.hmget(key, FIELDS)
                yield from zip(part, map(_row, pipe.execute()), strict=True)

    def _look_up(self, names: Iterable[str]) -> dict[str, _Worker]:
        wanted = sorted(names)
        if not wanted:
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for name in wanted:
                pipe.hmget(self._worker_key(name), ("birth", "death"))
            # A worker, and the work-horse it forked, hold the connection to this channel open as long as either lives.
            pipe.pubsub_numsub(*map(self._channel, wanted))
            *rows, listeners = pipe.execute(raise_on_error=False)

        counts = (
            [None] * len(wanted)
            if isinstance(listeners, Exception)
            else [count for _, count in listeners]
        )
        workers: dict[str, _Worker] = {}

        for name, row, count in zip(wanted, rows, counts, strict=True):
            if isinstance(row, Exception):
                raise row
            workers[name] = _Worker(
                _text(row[0]), _text(row[1]), None if count is None else count > 0
            )

        return workers

    def _failures(
        self,
        failed: Mapping[str, Row],
        jobs: Mapping[str, tuple[str, str | None]],
        workers: Mapping[str, _Worker],
    ) -> Iterator[tuple[str, JobStatus]]:
        for part in _parts(failed, AT_ONCE):
            with self._redis.pipeline(transaction=False) as pipe:
                for run_id in part:
                    pipe.xrevrange(self._result_key(_id_in(jobs[run_id][0])), count=1)
                results = pipe.execute(raise_on_error=False)
            for (run_id, row), result in zip(part.items(), results, strict=True):
                words = words_of(_told(result))
                alive = row.worker in workers and workers[row.worker].gone(row) is None
                if ABANDONED in words and alive:  # a SimpleWorker gives no heartbeat while it works
                    continue
                yield run_id, JobStatus("lost", f"its job failed{_on(row)}: {words}")

    def _unattended(
        self, started: Mapping[str, Row], workers: Mapping[str, _Worker]
    ) -> dict[str, tuple[str, bool]]:
        """Jobs that were begun by workers that are gone: why, and whether that is certain."""
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
        """Jobs that are neither in the queue nor begun: a worker that took one, and ended before it began it."""
        if not queued:
            return {}
        key = self._queue.key
        if self._redis.llen(key) <= MAX_LIST:
            there = set(map(_text, self._redis.lrange(key, 0, -1)))
            missing = [run_id for run_id, job_id in queued.items() if job_id not in there]
        else:
            oldest = dict(islice(queued.items(), LOOKED_UP))
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


def words_of(told: str) -> str:
    """The end of what RQ has written down about a failure: the exception, without its traceback."""
    lines = told.rstrip().splitlines()
    at = next((at for at in range(len(lines), 0, -1) if lines[at - 1].startswith((" ", "\t"))), 0)
    words = " ".join(lines[at:] or lines[-1:]).strip()[:MAX_WORDS]
    if NOT_FOUND in words:
        words += (
            " (the worker cannot import wove.integrations.worker: is Wove installed where it runs?)"
        )

    return words or NO_REASON


def _told(result: Any) -> str:
    """The text of a job's latest failure (rq/results.py, `Result.serialize`)."""
    try:
        return zlib.decompress(base64.b64decode(result[0][1][b"exc_string"])).decode(
            "utf-8", "replace"
        )
    except (LookupError, TypeError, ValueError, zlib.error):
        return ""


def _on(row: Row) -> str:
    return f" on worker {row.worker}" if row.worker else ""


def _id_in(key: str) -> str:
    return key.rpartition(":")[2]  # no id has a colon


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _parts(items: Mapping[K, V], size: int) -> Iterator[dict[K, V]]:
    rest = iter(items.items())
    while part := dict(islice(rest, size)):
        yield part
