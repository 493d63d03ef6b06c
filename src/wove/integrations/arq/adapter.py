"""ARQ: the adapter, and the function for its workers.

In the module with the worker's settings::

    from wove.integrations.arq import worker_function

    class WorkerSettings:
        functions = [worker_function()]
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, cast

from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryError, install_command
from wove.graph.rules import shown
from wove.integrations.arq.options import (
    check_dsn,
    library,
    read_options,
    read_settings,
    shown_address,
)
from wove.integrations.arq.worker import FUNCTION_NAME
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common import error_text as words
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.client_loops import ClientCalls, leave_behind, loop_of_redis
from wove.integrations.common.silent_jobs import SILENCE_SECONDS, SilentJobs
from wove.integrations.common.submitted_keys import SubmittedKeys
from wove.integrations.naming import idempotency_key, job_id
from wove.security import NetworkExecutorSecurity
from wove.settings.config_readers import number, text

if TYPE_CHECKING:
    from wove.executors.base import Frame

__all__ = ["ARQAdapter"]

# How ARQ lays out its jobs, the same from 0.25 to 0.28: arq/constants.py, and `ArqRedis.enqueue_job` in
# arq/connections.py.
JOB: Final = "arq:job:"
RUNNING: Final = "arq:in-progress:"
RESULT: Final = "arq:result:"
TRIES: Final = "arq:retry:"
ABORT: Final = "arq:abort"

ASKED_AT_ONCE: Final = 5000
"""Jobs in one ZMSCORE."""

READ_AT_ONCE: Final = 200
"""Jobs whose ends are read after one query. The others' turn comes with the next."""

NATIVE_AT_ONCE: Final = 16
"""Calls of a pool's own ``enqueue_job``: each needs a connection for itself."""

CLAIMS: Final = 8
"""Tries to enqueue a job of an id while workers and other processes do something with it."""

_keyed: Final = SubmittedKeys()

Command: TypeAlias = "tuple[str | bytes | int, ...]"


class ARQAdapter(BackendAdapter):
    """Hands payloads to ARQ's workers, through Redis.

    What goes to Redis at the same time shares round trips: a map of a thousand items takes a few. See the page "ARQ".
    """

    name: ClassVar[str] = "arq"
    required_modules: ClassVar[tuple[str, ...]] = ("arq",)
    install_hint: ClassVar[str] = install_command("arq")
    keys: ClassVar[tuple[str, ...] | None] = (
        "pool",
        "redis_settings",
        "function_name",
        "queue_name",
        "enqueue_options",
    )
    inline_bytes: ClassVar[int] = 64 * 1024
    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 5.0)

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("pool")
        self._settings = config.get("redis_settings")
        if self._given is not None and self._settings is not None:
            raise ValueError(
                f"{label}: executor_config has both 'pool' and 'redis_settings'; give one of them"
            )

        if self._given is not None and not callable(getattr(self._given, "enqueue_job", None)):
            raise TypeError(
                f"{label}: executor_config 'pool' must be what arq.create_pool() gives, not {shown(self._given)}. "
                "How to connect goes under 'redis_settings'"
            )

        if isinstance(self._settings, str):
            check_dsn(self._settings, label)
        self._function = text(config, "function_name", FUNCTION_NAME, label=label)
        self._queue_name = text(config, "queue_name", label=label)
        self._options, self._extra = read_options(config, label=label)
        self._seconds = number(config, "send_timeout", 60.0, label=label, none=True)
        security = NetworkExecutorSecurity.from_config(config.get("security"), label=label)
        self._trusts_redis = not security.authenticates

    # ------------------------------------------------------------------ start and end

    async def start(self) -> None:
        self._arq = await run_in_thread(library)
        self._turns = asyncio.Semaphore(NATIVE_AT_ONCE)
        self._trips: Batcher[Sequence[Command], Sequence[Any]] = Batcher(self._carry)
        self._calls = ClientCalls(
            self._pool_loop,
            label=f"{self.label}: its pool",
            seconds=self._seconds,
            explain=self._explain,
        )
        self._unheard = SilentJobs()
        self._scores_one_by_one = False
        self._pool = self._given if self._given is not None else await self._connect()
        self._is_redis = isinstance(self._pool, self._arq.ArqRedis)
        leave_behind(getattr(self._pool, "connection_pool", None))
        # One whose `enqueue_job` does something more is to be used through it.
        native: object = self._arq.ArqRedis.enqueue_job
        self._is_plain = (
            self._is_redis
            and getattr(cast("object", type(self._pool)), "enqueue_job", None) is native
        )
        self._queue = (
            self._queue_name
            or getattr(self._pool, "default_queue_name", None)
            or self._arq.default_queue_name
        )

    async def close(self) -> None:
        await self._calls.close()
        await self._trips.close()
        if self._given is None:
            try:
                await self._pool.aclose(close_connection_pool=True)
            except AttributeError:  # redis before 5.0.1
                await self._pool.close(close_connection_pool=True)

    async def _connect(self) -> Any:
        settings = read_settings(self._settings, self._arq.RedisSettings, self.label)
        try:
            return await self._arq.create_pool(settings)
        except (OSError, TimeoutError, self._arq.RedisError) as error:
            raise self._unreachable(error, shown_address(settings)) from error

    def _pool_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop of the user's pool; ``None``: Wove's own loop."""
        if self._given is None:
            return None
        return loop_of_redis(getattr(self._pool, "connection_pool", None))

    def _explain(self, error: BaseException) -> DeliveryError | None:
        known = (OSError, TimeoutError, self._arq.RedisError)
        return self._unreachable(error, "") if isinstance(error, known) else None

    def _unreachable(self, error: BaseException, where: str) -> DeliveryError:
        said = str(error) or type(error).__name__
        if isinstance(error, TimeoutError) and not where:
            said = f"no answer within {self._seconds:g} s" if self._seconds is not None else said
        return DeliveryError(
            f"{self.label}: Redis{where and f' at {where}'} could not be used: {said}. Is it running, and is "
            f"executor_config '{'redis_settings' if self._given is None else 'pool'}' right?"
        )

    # ------------------------------------------------------------------ submit

    async def submit(self, payload: PayloadDict, frame: Frame) -> str:
        name = job_id(frame)
        keyed = idempotency_key(frame) is not None
        if not self._is_plain:
            return await self._submit_natively(payload, name, keyed, frame)
        if not keyed:
            commands = self._put(name, payload)
            self._checked(await self._trips.put(commands, size=len(cast("bytes", commands[0][3]))))
            return name

        async with self._turns:
            taken: str = await self._calls.call(
                partial(self._claim, name, frame["run_id"], payload)
            )
        _keyed.note(name, self.wanted, frame["run_id"])
        return taken

    async def _submit_natively(
        self, payload: PayloadDict, name: str, keyed: bool, frame: Frame
    ) -> str:
        taken = name
        async with self._turns:
            if keyed and self._is_redis:
                taken = await self._calls.call(partial(self._claim, name, frame["run_id"], None))
            job = await self._calls.call(lambda: self._enqueue(taken, payload))

        if job is None:
            raise self._occupied(taken, "is there already, or a result of it is", "another process")
        if keyed:
            _keyed.note(name, self.wanted, frame["run_id"])
        return taken

    def _enqueue(self, name: str, payload: PayloadDict) -> Any:
        queue = {} if self._queue_name is None else {"_queue_name": self._queue_name}
        return self._pool.enqueue_job(
            self._function, payload, _job_id=name, **queue, **self._options, **self._extra
        )

    def _put(self, name: str, payload: PayloadDict) -> list[Command]:
        """The commands with which `ArqRedis.enqueue_job` stores a job."""
        now = self._arq.timestamp_ms()
        defer_by, expires = (
            self._arq.to_ms(self._options.get(each)) for each in ("_defer_by", "_expires")
        )
        until = self._options.get("_defer_until")
        score = self._arq.to_unix_ms(until) if until is not None else now + (defer_by or 0)
        expires = expires or score - now + self._pool.expires_extra_ms
        data = self._arq.serialize_job(
            self._function, (payload,), self._extra, None, now, serializer=self._pool.job_serializer
        )
        return [("PSETEX", JOB + name, int(expires), data), ("ZADD", self._queue, int(score), name)]

    async def _claim(self, name: str, run_id: str, payload: PayloadDict | None) -> str:
        """Make room for the one job of id *name*, and store it there if there is a *payload*. On the pool's loop.

        Returns:
            The job's id.
        """
        whose = _keyed.who_waits(name, self.wanted)

        for _ in range(CLAIMS):
            async with self._pool.pipeline(transaction=True) as pipe:
                await pipe.watch(JOB + name, RUNNING + name)
                running = await pipe.exists(RUNNING + name)
                waiting = (
                    await pipe.exists(JOB + name)
                    and await pipe.zscore(self._queue, name) is not None
                )
                if (running or waiting) and whose is not None:
                    raise self._occupied(
                        name, "runs already" if running else "waits in the queue already", whose
                    )
                # The worker of a lost or cancelled run may be alive after all, and would end the new job with its own.
                taken = f"{name}-{run_id}" if running else name
                pipe.multi()
                pipe.delete(JOB + name, RUNNING + name, RESULT + name, TRIES + name)
                pipe.zrem(self._queue, name)
                pipe.zrem(ABORT, name)
                for command in () if payload is None else self._put(taken, payload):
                    pipe.execute_command(*command)
                try:
                    await pipe.execute()
                except self._arq.WatchError:
                    continue
                return taken

        raise self._occupied(name, "changes all the time", "another process")

    def _occupied(self, name: str, state: str, whose: str) -> DeliveryError:
        return DeliveryError(
            f"{self.label}: ARQ's job {name!r} {state}. It has the same idempotency key and was submitted by {whose}, "
            "where its result goes: wait for it there, or use another key (delivery_idempotency_key)"
        )

    async def _carry(self, batch: Sequence[Sequence[Command]]) -> list[Sequence[Any]]:
        """Each item's replies, from one round trip."""
        commands = [command for item in batch for command in item]
        replies = iter(await self._calls.call(partial(self._transact, commands)))
        return [[next(replies) for _ in item] for item in batch]

    async def _transact(self, commands: Sequence[Command]) -> list[Any]:
        async with self._pool.pipeline(transaction=True) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return cast("list[Any]", await pipe.execute(raise_on_error=False))

    def _checked(self, replies: Sequence[Any]) -> Sequence[Any]:
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._unreachable(reply, "") from reply
        return replies

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: str, frame: Frame) -> bool:
        if not self._is_redis:
            return False
        # In one transaction: a worker that takes the job before finds it, and one that does so after finds nothing
        # to run. (It is in the queue and in progress both while it runs.)
        commands: list[Command] = [
            ("EXISTS", RUNNING + submission),
            ("ZREM", self._queue, submission),
            ("DEL", JOB + submission),
        ]

        try:
            running, queued, stored = self._checked(await self._trips.put(commands))
        except DeliveryError:
            if self._calls.closed:
                return False  # no caller waits for the answer any more
            raise

        if running:
            # As arq.jobs.Job.abort; heard by workers with allow_abort_jobs = True.
            self._checked(
                await self._trips.put([("ZADD", ABORT, self._arq.timestamp_ms(), submission)])
            )

        return not running and bool(queued or stored)

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, str]) -> dict[str, JobStatus]:
        if not self._is_redis:
            return {}
        runs = {name: run_id for run_id, name in submissions.items()}
        queued: list[str] = []
        left: list[str] = []

        for names in _portions(list(runs), ASKED_AT_ONCE):
            # A job is in the queue from its submission to its end: arq/worker.py, Worker.finish_job.
            for name, score in zip(
                names, await self._calls.call(partial(self._scores, names)), strict=True
            ):
                (left if score is None else queued).append(name)

        fates = await self._look_at_ends(left[:READ_AT_ONCE])
        fates.update(
            await self._look_at_silent([name for name in queued if not self.begun(runs[name])])
        )
        return {runs[name]: fate for name, fate in fates.items()}

    async def _look_at_ends(self, names: Sequence[str]) -> dict[str, JobStatus]:
        commands: list[Command] = []
        for name in names:
            commands += [("EXISTS", RUNNING + name), ("GET", RESULT + name), ("EXISTS", JOB + name)]
        replies = iter(await self._ask(commands))
        fates: dict[str, JobStatus] = {}
        for name in names:
            running, result, stored = next(replies), next(replies), next(replies)
            if not running:
                fates[name] = self._fate(name, result, stored)

        return fates

    async def _look_at_silent(self, names: Sequence[str]) -> dict[str, JobStatus]:
        """Return the jobs that are in progress and have not reported."""
        taken: list[str] = []
        for some in _portions(names, ASKED_AT_ONCE):
            [found] = await self._ask([("MGET", *(RUNNING + name for name in some))])
            taken += [name for name, mark in zip(some, found, strict=True) if mark is not None]

        reason = (
            f"a worker has taken it, and has not reported within {SILENCE_SECONDS:g} s that it began: it was killed in "
            "that moment, or it cannot reach the callback address"
        )
        return {name: JobStatus("missing", reason) for name in self._unheard.look(taken, names)}

    async def _ask(self, commands: Sequence[Command]) -> Sequence[Any]:
        return (
            self._checked(await self._calls.call(partial(self._transact, commands)))
            if commands
            else ()
        )

    async def _scores(self, names: Sequence[str]) -> list[Any]:
        if not self._scores_one_by_one:
            try:
                return cast(
                    "list[Any]", await self._pool.execute_command("ZMSCORE", self._queue, *names)
                )
            except self._arq.ResponseError:  # Redis before 6.2 has none
                self._scores_one_by_one = True

        return await self._transact([("ZSCORE", self._queue, name) for name in names])

    def _fate(self, name: str, result: bytes | None, stored: object) -> JobStatus:
        job = f"ARQ's job {name!r}"
        if result is None and stored:
            return JobStatus("missing", f"{job} was taken out of the queue {self._queue!r}")
        if result is None:
            return JobStatus(
                "missing", f"{job} is gone from Redis: it was deleted, or ended and left no result"
            )

        try:
            ended = self._read_result(result)
            if ended["s"]:
                return JobStatus("finished", f"{job} is complete")
            return JobStatus("lost", f"{job} failed: {words.of_exception(ended['r'])}")
        except (LookupError, TypeError, ValueError) as error:
            return JobStatus("finished", f"{job} has left a result that cannot be read: {error}")

    def _read_result(self, result: bytes) -> Any:
        """Read what arq.jobs.serialize_result has stored."""
        deserialize = self._pool.job_deserializer
        if deserialize is None:
            return words.inert(result)
        if not self._trusts_redis:
            raise ValueError(
                "with 'security', the pool's own job_deserializer is given nothing that is not signed"
            )

        try:
            return deserialize(result)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _portions(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
