"""Finds ended and lost tasks of Taskiq: by their results, and by the messages that are still in the queue.

Taskiq's workers log and drop messages of tasks that they do not know, and the messages that a killed worker has fetched
are lost. With Redis, both can be seen in the queue: the message is no longer there, and no worker has reported that the
task started.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from wove.concurrency import forks
from wove.integrations.base import JobStatus
from wove.integrations.common.client_loops import leave_behind
from wove.integrations.common.error_text import exception_text, safe_unpickle
from wove.integrations.common.silent_jobs import SILENCE_SECONDS, SilentJobs
from wove.integrations.taskiq.client import Submission

__all__ = ["LostJobDetector"]

MAX_QUERY_TASKS: Final = 50
"""Maximum number of queries at a time to a result store without bulk queries."""

MAX_READ_RESULTS: Final = 200
"""Maximum number of results that are read after one query. The remaining ones are read after the next."""

MAX_RESULT_BYTES: Final = 1024 * 1024
"""How much of a result is read. Results of Wove's task are empty, and errors are smaller than this."""

_TASK_ID: Final = re.compile(rb"wove-[A-Za-z0-9_-]+")


class LostJobDetector:
    """Finds out which tasks are over. Its methods are called on the broker's loop.

    Args:
        broker: The broker of the tasks.
        task_name: The name of the tasks.
        has_started: As `BackendAdapter`.
        trusts_results: Whether the user's own deserializer, which may be pickle, is used for stored results.

    Attributes:
        usable: Whether this broker or its result backend can be asked at all.
    """

    def __init__(
        self,
        broker: Any,
        task_name: str,
        has_started: Callable[[str], bool],
        *,
        trusts_results: bool,
    ) -> None:
        self._has_started = has_started
        self._broker = broker
        self._task_name = task_name
        self._trusts_results = trusts_results
        self._results: Any = getattr(broker, "result_backend", None)
        if type(self._results).__name__ in ("NoneType", "DummyResultBackend"):
            self._results = None
        kinds = {kind.__name__ for kind in type(broker).__mro__}
        self._pool: Any = getattr(broker, "connection_pool", None)
        self._is_list = self._pool is not None and "ListQueueBroker" in kinds
        self._is_stream = self._pool is not None and "RedisStreamBroker" in kinds
        self._asked = 0
        self._silent = SilentJobs()
        self._latest_id: dict[str, bytes] = {}
        leave_behind(self._pool)
        leave_behind(getattr(self._results, "redis_pool", None))
        self.usable = self._results is not None or self._is_list or self._is_stream

    async def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each task that is over; see `StatusProbe`."""
        statuses: dict[str, JobStatus] = {}
        runs = {each.task_id: run_id for run_id, each in submissions.items()}
        if self._results is not None:
            for task_id, status in (await self._with_results(list(runs))).items():
                statuses[runs[task_id]] = status

        waiting = {
            each.task_id: each
            for run_id, each in submissions.items()
            if not self._has_started(run_id)
        }

        if self._is_list or self._is_stream:
            taken = await (
                self._taken_from_list(waiting)
                if self._is_list
                else self._taken_from_stream(waiting)
            )
            # Workers take only messages that they can start at once: taskiq/receiver/receiver.py, sem_prefetch.
            for task_id in self._silent.overdue(taken, waiting):
                statuses.setdefault(runs[task_id], JobStatus("missing", self._silence_text()))

        return statuses

    async def why_waiting(self) -> str:
        """Return why tasks wait: the number of messages and consumers, with Redis."""
        queue, redis = self._queue(), self._redis() if self._pool is not None else None
        if redis is not None and self._is_list:
            length: int = await redis.llen(queue)
            return (
                f"queue {queue!r} of Taskiq's broker has {length} messages that no worker has taken"
            )
        if redis is None or not self._is_stream:
            return ""
        consumers = await redis.xinfo_consumers(queue, self._broker.consumer_group_name)
        if not consumers:
            return f"no Taskiq worker has ever taken from queue {queue!r}"
        idle = min(each["idle"] for each in consumers) / 1000
        return f"the workers of queue {queue!r} have taken nothing for {idle:.0f} s"

    # ------------------------------------------------------------------ the queue

    def _silence_text(self) -> str:
        return (
            f"a worker has taken it from the queue, and has not reported within {SILENCE_SECONDS:g} s that it began. "
            f"Either that worker knows no task {self._task_name!r} (Taskiq drops the message: call "
            "wove.integrations.taskiq.register(broker) in the worker's module), or it was killed in that moment, or it "
            "cannot reach the callback address"
        )

    async def _taken_from_list(self, waiting: Mapping[str, Submission]) -> set[str]:
        """Return the tasks whose messages are older than the last one in the list, which workers take next."""
        redis = self._redis()
        oldest: list[bytes] = await redis.lrange(self._queue(), -1, -1)
        if not oldest:
            return set(waiting)
        found = _TASK_ID.search(oldest[0])
        oldest_sent = waiting.get(found.group().decode()) if found is not None else None
        if oldest_sent is None:  # of another application, or of a run that is no longer awaited
            return set()
        return {task_id for task_id, sent in waiting.items() if sent.ended < oldest_sent.began}

    async def _taken_from_stream(self, waiting: Mapping[str, Submission]) -> set[str]:
        """Return the tasks whose messages are older than the last delivered one and than all that workers hold.

        Taskiq's workers claim the messages of dead workers only when a new message arrives
        (RedisStreamBroker.listen in taskiq_redis/redis_broker.py), which may be never.
        """
        queue, group, redis = self._queue(), self._broker.consumer_group_name, self._redis()

        async with redis.pipeline(transaction=False) as pipe:
            pipe.xinfo_stream(queue)
            pipe.xinfo_groups(queue)
            pipe.xinfo_consumers(queue, group)
            stream, groups, consumers = await pipe.execute()

        # The id of an entry is not known, but it is at most the last id of the stream at the first probe.
        last: bytes = stream["last-generated-id"]
        self._latest_id = {task_id: self._latest_id.get(task_id, last) for task_id in waiting}
        delivered = next(
            (each["last-delivered-id"] for each in groups if each["name"] == group.encode()), b"0-0"
        )

        async with redis.pipeline(transaction=False) as pipe:
            for each in consumers:
                if each["pending"] and each["idle"] < self._broker.idle_timeout:
                    pipe.xpending_range(queue, group, "-", "+", 1, consumername=each["name"])
            oldest = [_entry(held[0]["message_id"]) for held in await pipe.execute() if held]

        return {
            task_id
            for task_id, seen in self._latest_id.items()
            if _entry(seen) <= _entry(delivered) and all(_entry(seen) < held for held in oldest)
        }

    def _queue(self) -> str:
        task = self._broker.find_task(self._task_name)
        labels: Mapping[str, Any] = {} if task is None else task.labels
        return str(labels.get("queue_name") or self._broker.queue_name)

    # ------------------------------------------------------------------ the results

    async def _with_results(self, task_ids: list[str]) -> dict[str, JobStatus]:
        pool: Any = getattr(self._results, "redis_pool", None)
        if pool is not None and callable(getattr(self._results, "_task_name", None)):
            return await self._with_redis_results(pool, task_ids)
        # A part of them each time, because each costs a query.
        start = self._asked % max(1, len(task_ids))
        some = [*task_ids[start:], *task_ids[:start]][:MAX_QUERY_TASKS]
        self._asked += len(some)
        ready = await asyncio.gather(*(self._results.is_result_ready(task_id) for task_id in some))
        return {
            task_id: await self._result(task_id)
            for task_id, is_there in zip(some, ready, strict=True)
            if is_there
        }

    async def _result(self, task_id: str) -> JobStatus:
        if not self._trusts_results:
            return JobStatus(
                "finished", _unread(task_id, "'security' is set, and nobody has signed it")
            )

        try:
            result = await self._results.get_result(task_id)
            return _status(task_id, bool(result.is_err), result.error)
        except Exception as error:
            return JobStatus("finished", _unread(task_id, f"{type(error).__name__}: {error}"))

    async def _with_redis_results(self, pool: Any, task_ids: list[str]) -> dict[str, JobStatus]:
        """Read many results in one query, as RedisAsyncResultBackend (taskiq_redis/redis_backend.py) stores them."""
        redis = _client(pool)
        name = self._results._task_name
        async with redis.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.strlen(name(task_id))
            sizes: list[int] = await pipe.execute()

        there = [task_id for task_id, size in zip(task_ids, sizes, strict=True) if size][
            :MAX_READ_RESULTS
        ]
        if not there:
            return {}
        async with redis.pipeline(transaction=False) as pipe:
            for task_id in there:
                pipe.getrange(name(task_id), 0, MAX_RESULT_BYTES)
            found: list[bytes] = await pipe.execute()

        return {
            task_id: self._read(task_id, data) for task_id, data in zip(there, found, strict=True)
        }

    def _read(self, task_id: str, data: bytes) -> JobStatus:
        try:
            if type(self._results.serializer).__name__ == "PickleSerializer":
                result = safe_unpickle(data)
            elif self._trusts_results or type(self._results.serializer).__module__.startswith(
                "taskiq."
            ):
                result = self._results.serializer.loadb(data)
            else:
                raise ValueError("'security' is set, and the serializer is not one of Taskiq's")
            return _status(task_id, bool(result["is_err"]), result.get("error"))
        except Exception as error:
            return JobStatus("finished", _unread(task_id, f"{type(error).__name__}: {error}"))

    def _redis(self) -> Any:
        return _client(self._pool)


def _client(pool: Any) -> Any:
    # As the broker makes it. The module is already imported, since the pool exists.
    with forks.importing:
        from redis.asyncio import Redis
    return Redis(connection_pool=pool)


def _entry(entry_id: bytes | str) -> tuple[int, int]:
    """Return the id of a stream's entry as numbers that can be compared."""
    milliseconds, _, number = (
        entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ).partition("-")
    return int(milliseconds), int(number or 0)


def _status(task_id: str, is_error: bool, error: object) -> JobStatus:
    if is_error:
        return JobStatus("lost", f"Taskiq's task {task_id!r} failed: {exception_text(error)}")
    return JobStatus("finished", f"Taskiq's task {task_id!r} has a result")


def _unread(task_id: str, why: str) -> str:
    return f"Taskiq's task {task_id!r} has a result, which is not read: {why}"
