"""The traces of Taskiq's tasks: results, and messages that are still in the queue or not.

Its workers log and drop the messages of tasks that they do not know, and a worker that is killed takes along those
that it has fetched. With Redis, both can be seen from the queue: a message that is in it no more, of a task that
nobody reports to have begun.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from wove.concurrency import forks
from wove.integrations.base import JobStatus
from wove.integrations.common import error_text as words
from wove.integrations.common.client_loops import leave_behind
from wove.integrations.common.silent_jobs import SILENCE_SECONDS, SilentJobs
from wove.integrations.taskiq.client import Sent

__all__ = ["LostJobDetector"]

ASKED_AT_ONCE: Final = 50
"""Tasks about which a result store without bulk queries is asked at a time."""

READ_AT_ONCE: Final = 200
RESULT_BYTES: Final = 1024 * 1024
"""A result that is larger is not read: ours are all empty, and errors are not as large as that."""

_TASK_ID: Final = re.compile(rb"wove-[A-Za-z0-9_-]+")


class LostJobDetector:
    """Looks for the traces of tasks.

    Args:
        broker: Theirs.
        task_name: What they are called.
        trusts_results: Whether stored results may be read by what the user has chosen for that, which may be pickle.

    Attributes:
        any: Whether there is anything to look at.
    """

    def __init__(self, broker: Any, task_name: str, *, trusts_results: bool) -> None:
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
        self._unheard = SilentJobs()
        self._behind: dict[str, bytes] = {}
        leave_behind(self._pool)
        leave_behind(getattr(self._results, "redis_pool", None))
        self.any = self._results is not None or self._is_list or self._is_stream

    async def look(
        self, submissions: Mapping[str, Sent], begun: Callable[[str], bool]
    ) -> dict[str, JobStatus]:
        """Return the ends of *submissions* that are known. Called on the broker's loop."""
        fates: dict[str, JobStatus] = {}
        runs = {sent.task_id: run_id for run_id, sent in submissions.items()}
        if self._results is not None:
            for task_id, fate in (await self._look_at_results(list(runs))).items():
                fates[runs[task_id]] = fate

        waiting = {sent.task_id: sent for run_id, sent in submissions.items() if not begun(run_id)}

        if self._is_list or self._is_stream:
            taken = await (
                self._taken_from_list(waiting)
                if self._is_list
                else self._taken_from_stream(waiting)
            )
            # Workers take what they can begin at once: taskiq/receiver/receiver.py, sem_prefetch.
            for task_id in self._unheard.look(taken, waiting):
                fates.setdefault(runs[task_id], JobStatus("missing", self._unheard_text()))

        return fates

    # ------------------------------------------------------------------ the queue

    def _unheard_text(self) -> str:
        return (
            f"a worker has taken it from the queue, and has not reported within {SILENCE_SECONDS:g} s that it began. "
            f"Either that worker knows no task {self._task_name!r} (Taskiq drops the message: call "
            "wove.integrations.taskiq.register(broker) in the worker's module), or it was killed in that moment, or it "
            "cannot reach the callback address"
        )

    async def _taken_from_list(self, waiting: Mapping[str, Sent]) -> set[str]:
        """Workers take the oldest message, which is the last of the list: all that are older are taken."""
        redis = self._redis()
        oldest: list[bytes] = await redis.lrange(self._queue(), -1, -1)
        if not oldest:
            return set(waiting)
        found = _TASK_ID.search(oldest[0])
        first = waiting.get(found.group().decode()) if found is not None else None
        if first is None:  # another application's, or of a run that nobody waits for
            return set()
        return {task_id for task_id, sent in waiting.items() if sent.ended < first.began}

    async def _taken_from_stream(self, waiting: Mapping[str, Sent]) -> set[str]:
        """Return the messages that are older than the last delivered one and than the oldest that a worker holds.

        Taskiq's workers look for the messages of those that have died only after they were handed a new one
        (RedisStreamBroker.listen in taskiq_redis/redis_broker.py), which there may never be.
        """
        queue, group, redis = self._queue(), self._broker.consumer_group_name, self._redis()

        async with redis.pipeline(transaction=False) as pipe:
            pipe.xinfo_stream(queue)
            pipe.xinfo_groups(queue)
            pipe.xinfo_consumers(queue, group)
            stream, groups, consumers = await pipe.execute()

        # An entry's id is not known, but that it was there when the stream's last one was this.
        last: bytes = stream["last-generated-id"]
        self._behind = {task_id: self._behind.get(task_id, last) for task_id in waiting}
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
            for task_id, seen in self._behind.items()
            if _entry(seen) <= _entry(delivered) and all(_entry(seen) < held for held in oldest)
        }

    def _queue(self) -> str:
        task = self._broker.find_task(self._task_name)
        labels: Mapping[str, Any] = {} if task is None else task.labels
        return str(labels.get("queue_name") or self._broker.queue_name)

    # ------------------------------------------------------------------ the results

    async def _look_at_results(self, task_ids: list[str]) -> dict[str, JobStatus]:
        pool: Any = getattr(self._results, "redis_pool", None)
        if pool is not None and callable(getattr(self._results, "_task_name", None)):
            return await self._look_at_redis(pool, task_ids)
        # In turns, because each costs a query.
        start = self._asked % max(1, len(task_ids))
        some = [*task_ids[start:], *task_ids[:start]][:ASKED_AT_ONCE]
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
            return _fate(task_id, bool(result.is_err), result.error)
        except Exception as error:
            return JobStatus("finished", _unread(task_id, f"{type(error).__name__}: {error}"))

    async def _look_at_redis(self, pool: Any, task_ids: list[str]) -> dict[str, JobStatus]:
        """One query for all, of RedisAsyncResultBackend in taskiq_redis/redis_backend.py."""
        redis = _client(pool)
        name = self._results._task_name
        async with redis.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.strlen(name(task_id))
            sizes: list[int] = await pipe.execute()

        there = [task_id for task_id, size in zip(task_ids, sizes, strict=True) if size][
            :READ_AT_ONCE
        ]
        if not there:
            return {}
        async with redis.pipeline(transaction=False) as pipe:
            for task_id in there:
                pipe.getrange(name(task_id), 0, RESULT_BYTES)
            found: list[bytes] = await pipe.execute()

        return {
            task_id: self._read(task_id, data) for task_id, data in zip(there, found, strict=True)
        }

    def _read(self, task_id: str, data: bytes) -> JobStatus:
        try:
            if type(self._results.serializer).__name__ == "PickleSerializer":
                result = words.inert(data)
            elif self._trusts_results or type(self._results.serializer).__module__.startswith(
                "taskiq."
            ):
                result = self._results.serializer.loadb(data)
            else:
                raise ValueError("'security' is set, and the serializer is not one of Taskiq's")
            return _fate(task_id, bool(result["is_err"]), result.get("error"))
        except Exception as error:
            return JobStatus("finished", _unread(task_id, f"{type(error).__name__}: {error}"))

    def _redis(self) -> Any:
        return _client(self._pool)


def _client(pool: Any) -> Any:
    # As the broker does; imported already, by what made the pool.
    with forks.importing:
        from redis.asyncio import Redis
    return Redis(connection_pool=pool)


def _entry(entry_id: bytes | str) -> tuple[int, int]:
    """The id of a stream's entry, for comparison."""
    milliseconds, _, number = (
        entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ).partition("-")
    return int(milliseconds), int(number or 0)


def _fate(task_id: str, is_error: bool, error: object) -> JobStatus:
    if is_error:
        return JobStatus("lost", f"Taskiq's task {task_id!r} failed: {words.of_exception(error)}")
    return JobStatus("finished", f"Taskiq's task {task_id!r} has a result")


def _unread(task_id: str, why: str) -> str:
    return f"Taskiq's task {task_id!r} has a result, which is not read: {why}"
