"""ARQ: the adapter, and the function for its workers.

In the module with the worker's settings::

    from wove.integrations.arq import worker_function

    class WorkerSettings:
        functions = [worker_function()]
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

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
from wove.integrations.arq.states import ABORT, JOB, RESULT, RUNNING, TRIES, Command, JobProbe
from wove.integrations.arq.worker import FUNCTION_NAME
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.client_loops import ClientCalls, leave_behind, loop_of_redis
from wove.integrations.common.submitted_keys import SubmittedKeys
from wove.integrations.naming import idempotency_key, job_id
from wove.security import NetworkExecutorSecurity
from wove.settings.config_readers import number, text

if TYPE_CHECKING:
    from wove.executors.base import Frame

__all__ = ["ARQAdapter"]

MAX_NATIVE_CALLS: Final = 16
"""Maximum number of pending calls of a pool's own ``enqueue_job``: each needs a connection."""

MAX_CLAIM_ATTEMPTS: Final = 8
"""Maximum number of attempts to enqueue a job while workers or other processes change the job with its id."""

_keyed: Final = SubmittedKeys()


class ARQAdapter(BackendAdapter):
    """Hands payloads to ARQ's workers, through Redis.

    Commands that are sent at the same time share round trips: a map of a thousand items needs a few. See the page
    "ARQ".
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
        self._slots = asyncio.Semaphore(MAX_NATIVE_CALLS)
        self._batcher: Batcher[Sequence[Command], Sequence[Any]] = Batcher(self._carry)
        self._calls = ClientCalls(
            self._pool_loop,
            label=f"{self.label}: its pool",
            seconds=self._seconds,
            explain=self._explain,
        )
        self._pool = self._given if self._given is not None else await self._connect()
        self._is_redis = isinstance(self._pool, self._arq.ArqRedis)
        leave_behind(getattr(self._pool, "connection_pool", None))
        # A pool whose class overrides `enqueue_job` is used through that method.
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
        self._probe: JobProbe | None = None
        if self._is_redis:
            self._probe = JobProbe(
                self._queue,
                self._execute,
                self.has_started,
                error=self._arq.ResponseError,
                deserialize=self._pool.job_deserializer,
                trusts_redis=self._trusts_redis,
            )

    async def close(self) -> None:
        await self._calls.close()
        await self._batcher.close()
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
            self._checked(
                await self._batcher.put(commands, size=len(cast("bytes", commands[0][3])))
            )
            return name

        async with self._slots:
            taken: str = await self._calls.call(
                partial(self._claim, name, frame["run_id"], payload)
            )
        _keyed.note(name, self.is_awaited, frame["run_id"])
        return taken

    async def _submit_natively(
        self, payload: PayloadDict, name: str, keyed: bool, frame: Frame
    ) -> str:
        taken = name
        async with self._slots:
            if keyed and self._is_redis:
                taken = await self._calls.call(partial(self._claim, name, frame["run_id"], None))
            job = await self._calls.call(lambda: self._enqueue(taken, payload))

        if job is None:
            raise self._occupied(taken, "is there already, or a result of it is", "another process")
        if keyed:
            _keyed.note(name, self.is_awaited, frame["run_id"])
        return taken

    def _enqueue(self, name: str, payload: PayloadDict) -> Any:
        queue = {} if self._queue_name is None else {"_queue_name": self._queue_name}
        return self._pool.enqueue_job(
            self._function, payload, _job_id=name, **queue, **self._options, **self._extra
        )

    def _put(self, name: str, payload: PayloadDict) -> list[Command]:
        """Return the commands with which `ArqRedis.enqueue_job` stores a job."""
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
        """Remove what is left of an earlier job with the id *name*, and store the new one if there is a *payload*.

        Runs on the pool's loop.

        Returns:
            The id of the new job.

        Raises:
            DeliveryError: The earlier job belongs to another process or environment, which waits for it.
        """
        whose = _keyed.who_waits(name, self.is_awaited)

        for _ in range(MAX_CLAIM_ATTEMPTS):
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
                # The worker of a lost or cancelled run may still be alive; ending its job would then end the new one.
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
        """Return the replies to each item's commands, from one round trip."""
        commands = [command for item in batch for command in item]
        replies = iter(await self._calls.call(partial(self._transact, commands)))
        return [[next(replies) for _ in item] for item in batch]

    async def _execute(self, commands: Sequence[Command]) -> Sequence[Any]:
        return self._checked(await self._calls.call(partial(self._transact, commands)))

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
        # In one transaction: a worker that takes the job before it runs the job, and one that takes it afterwards finds
        # nothing to run. (A running job is both in the queue and in progress.)
        commands: list[Command] = [
            ("EXISTS", RUNNING + submission),
            ("ZREM", self._queue, submission),
            ("DEL", JOB + submission),
        ]

        try:
            running, queued, stored = self._checked(await self._batcher.put(commands))
        except DeliveryError:
            if self._calls.closed:
                return False  # no caller waits for the answer any more
            raise

        if running:
            # As arq.jobs.Job.abort does; workers with allow_abort_jobs = True obey it.
            self._checked(
                await self._batcher.put([("ZADD", ABORT, self._arq.timestamp_ms(), submission)])
            )

        return not running and bool(queued or stored)

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, str]) -> dict[str, JobStatus]:
        return {} if self._probe is None else await self._probe.ended(submissions)

    async def waiting(self, submissions: Mapping[str, str]) -> str:
        return "" if self._probe is None else await self._probe.why_waiting()
