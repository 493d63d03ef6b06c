"""The states of ARQ's jobs, as its keys in Redis show them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

from wove.integrations.base import JobStatus
from wove.integrations.common.error_text import exception_text, safe_unpickle
from wove.integrations.common.silent_jobs import SILENCE_SECONDS, SilentJobs

__all__ = ["ABORT", "JOB", "RESULT", "RUNNING", "TRIES", "Command", "JobProbe"]

# The keys of ARQ's jobs, the same from 0.25 to 0.28: arq/constants.py, and `ArqRedis.enqueue_job` in
# arq/connections.py.
JOB: Final = "arq:job:"
RUNNING: Final = "arq:in-progress:"
RESULT: Final = "arq:result:"
TRIES: Final = "arq:retry:"
ABORT: Final = "arq:abort"
HEALTH: Final = ":health-check"
"""The end of the key that a queue's workers renew (arq/worker.py, `Worker.record_health`)."""

MAX_QUERY_JOBS: Final = 5000
"""Maximum number of jobs in one ZMSCORE."""

MAX_READ_JOBS: Final = 200
"""Maximum number of jobs whose ends are read after one query. The remaining ones are read after the next."""

Command: TypeAlias = "tuple[str | bytes | int, ...]"


class JobProbe:
    """Finds out which of ARQ's jobs are over.

    Args:
        queue: The key of the queue.
        execute: Sends commands in one round trip, and returns their replies. An error reply is raised.
        has_started: As `BackendAdapter`.
        error: The error of Redis for a command that it does not know.
        deserialize: The pool's own deserializer of results; ``None``: they are pickles.
        trusts_redis: Whether *deserialize* may be called with results that anyone can have stored.
    """

    def __init__(
        self,
        queue: str,
        execute: Callable[[Sequence[Command]], Awaitable[Sequence[Any]]],
        has_started: Callable[[str], bool],
        *,
        error: type[Exception],
        deserialize: Callable[[bytes], Any] | None,
        trusts_redis: bool,
    ) -> None:
        self._queue = queue
        self._execute = execute
        self._has_started = has_started
        self._error = error
        self._deserialize = deserialize
        self._trusts_redis = trusts_redis
        self._silent = SilentJobs()
        self._has_zmscore = True

    async def ended(self, submissions: Mapping[str, str]) -> dict[str, JobStatus]:
        """Return the status of each job that is over; see `StatusProbe`."""
        runs = {name: run_id for run_id, name in submissions.items()}
        queued: list[str] = []
        left: list[str] = []

        for names in _portions(list(runs), MAX_QUERY_JOBS):
            # A job is in the queue from its submission to its end: arq/worker.py, Worker.finish_job.
            for name, score in zip(names, await self._scores(names), strict=True):
                (left if score is None else queued).append(name)

        statuses = await self._of_left(left[:MAX_READ_JOBS])
        statuses.update(
            await self._of_silent([name for name in queued if not self._has_started(runs[name])])
        )
        return {runs[name]: status for name, status in statuses.items()}

    async def why_waiting(self) -> str:
        """Return why jobs of the queue wait."""
        health, length = await self._execute(
            [("GET", self._queue + HEALTH), ("ZCARD", self._queue)]
        )
        if health is None:
            return (
                f"no ARQ worker takes jobs from queue {self._queue!r}, whose health check is missing (start one with: "
                "arq MODULE.WorkerSettings)"
            )
        text = health.decode("utf-8", "replace") if isinstance(health, bytes) else str(health)
        return f"queue {self._queue!r} of ARQ has {length} jobs, and its worker says: {text}"

    async def _of_left(self, names: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of jobs that have left the queue."""
        commands: list[Command] = []
        for name in names:
            commands += [("EXISTS", RUNNING + name), ("GET", RESULT + name), ("EXISTS", JOB + name)]
        replies = iter(await self._execute(commands) if commands else ())
        statuses: dict[str, JobStatus] = {}

        for name in names:
            running, result, stored = next(replies), next(replies), next(replies)
            if not running:
                statuses[name] = self._status(name, result, stored)

        return statuses

    async def _of_silent(self, names: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of jobs that a worker has taken, and whose start was not reported in time."""
        taken: list[str] = []
        for some in _portions(names, MAX_QUERY_JOBS):
            [found] = await self._execute([("MGET", *(RUNNING + name for name in some))])
            taken += [name for name, mark in zip(some, found, strict=True) if mark is not None]

        reason = (
            f"a worker has taken it, and has not reported within {SILENCE_SECONDS:g} s that it began: it was killed in "
            "that moment, or it cannot reach the callback address"
        )
        return {name: JobStatus("missing", reason) for name in self._silent.overdue(taken, names)}

    async def _scores(self, names: Sequence[str]) -> Sequence[Any]:
        if self._has_zmscore:
            try:
                [scores] = await self._execute([("ZMSCORE", self._queue, *names)])
            except Exception as error:
                if not isinstance(error.__cause__, self._error):
                    raise
                self._has_zmscore = False  # Redis before 6.2
            else:
                return cast("list[Any]", scores)

        return await self._execute([("ZSCORE", self._queue, name) for name in names])

    def _status(self, name: str, result: bytes | None, stored: object) -> JobStatus:
        job = f"ARQ's job {name!r}"
        if result is None and stored:
            return JobStatus("missing", f"{job} was taken out of the queue {self._queue!r}")
        if result is None:
            return JobStatus(
                "missing", f"{job} is gone from Redis: it was deleted, or ended and left no result"
            )

        try:
            ended = self._read(result)
            if ended["s"]:
                return JobStatus("finished", f"{job} is complete")
            return JobStatus("lost", f"{job} failed: {exception_text(ended['r'])}")
        except (LookupError, TypeError, ValueError) as error:
            return JobStatus("finished", f"{job} has left a result that cannot be read: {error}")

    def _read(self, result: bytes) -> Any:
        """Read a result of arq.jobs.serialize_result."""
        if self._deserialize is None:
            return safe_unpickle(result)
        if not self._trusts_redis:
            raise ValueError(
                "with 'security', the pool's own job_deserializer is given nothing that is not signed"
            )

        try:
            return self._deserialize(result)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _portions(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
