"""One started executor, with the runs that go through it."""

from __future__ import annotations

import asyncio
import enum
import logging
import weakref
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from wove.delivery.run import GONE, Ending, Outcome, RemoteRun
from wove.delivery.runs import RunTable
from wove.errors import DeliveryError, DeliveryTimeoutError, WorkerLostError
from wove.executors.base import EnvironmentExecutor
from wove.executors.registry import executor_class

if TYPE_CHECKING:
    from wove.concurrency.mailbox import LoopMailbox
    from wove.settings.model import Environment

__all__ = ["ExecutorSession", "Limits", "bounded"]

logger = logging.getLogger("wove")

MAX_GARBAGE: Final = 100
"""Number of answers of `recv` in a row that are not events after which the executor counts as broken."""

LAST_SEND_SECONDS: Final = 2.0
"""How long commands that are still on their way out (cancels) keep an executor from being stopped."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the calls of an executor may take, in seconds; ``None``: no limit.

    Each is a key of ``executor_config``, for every executor.
    """

    start_timeout: float | None = 60.0
    send_timeout: float | None = 60.0
    stop_timeout: float | None = 10.0
    cancel_ack_timeout: float | None = 30.0

    @classmethod
    def of(cls, config: Mapping[str, Any], environment: str) -> Limits:
        """Return the limits that an ``executor_config`` sets.

        Raises:
            TypeError: One is not a number.
            ValueError: One is not greater than 0.
        """
        given: dict[str, float | None] = {}

        for name in cls.__slots__:
            if name not in config:
                continue
            value = config[name]
            if value is not None:
                label = f"environment {environment!r}: executor_config {name!r} must be a number of seconds"
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise TypeError(f"{label} or None, not {value!r}")
                if not value > 0:
                    raise ValueError(f"{label} greater than 0, not {value!r}")
            given[name] = value

        return cls(**given)


class _Phase(enum.Enum):
    """Where a session is.

    ======== ======== ===========================================================
    from     to       when
    ======== ======== ===========================================================
    NEW      STARTING the first run comes
    STARTING READY    the executor has started
    STARTING NEW      the executor did not start; the waiting runs fail
    READY    NEW      the executor is lost; its runs fail or are submitted again
    any      CLOSED   `ExecutorSession.begin_close` is called
    ======== ======== ===========================================================
    """

    NEW = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    CLOSED = enum.auto()


class ExecutorSession:
    """Starts an executor when the first run comes, reads its events, and stops it.

    All methods but `submit` are called on the loop of *home*.

    Args:
        environment: The environment whose executor is started.
        home: Posts to the loop on which the executor is used.
        background: Whether that is Wove's own loop; otherwise code of the user runs on it.
        run_config: The ``run_config`` of `EnvironmentExecutor.start`.
        caller_loop: The loop of the user on which the first weave that needs this runs; see
            `EnvironmentExecutor.needs_caller_loop`.
        after: A session of the same executor that is being closed; this session starts after it.
        on_empty: Called when the last run has ended.
    """

    def __init__(
        self,
        environment: Environment,
        home: LoopMailbox,
        *,
        background: bool,
        run_config: Mapping[str, Any],
        caller_loop: asyncio.AbstractEventLoop | None = None,
        after: ExecutorSession | None = None,
        on_empty: Callable[[ExecutorSession], object] | None = None,
    ) -> None:
        kind = executor_class(environment.executor, environment.name)
        self.environment = environment
        self.run_config = run_config
        self._caller_loop = None if caller_loop is None else weakref.ref(caller_loop)
        self.home = home
        self.limits = Limits.of(environment.executor_config, environment.name)
        self.leases = 0
        self.retired = False
        self.closed: asyncio.Future[None] | None = None
        self.table = RunTable(
            environment.name,
            home,
            self,
            wire=kind.wire,
            shares=kind.shares_arguments(environment.executor_config),
            says_started=kind.says_started,
            inline=background,
            external_workers=kind.external_workers,
            acknowledge_seconds=self.limits.cancel_ack_timeout,
        )
        self._kind = kind
        self._after = after
        self._on_empty = on_empty
        self._phase = _Phase.NEW
        self._executor: EnvironmentExecutor | None = None
        self._queue: list[RemoteRun] = []
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starter: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ runs

    def submit(self, run: RemoteRun, *, here: bool) -> bool:
        """Take *run*, and return whether this session still takes runs.

        Args:
            run: A run that has not been submitted to any session.
            here: Whether this is called on the loop of the session. Otherwise any thread may call it.
        """
        if not here:
            if self._kind.wire:
                run.request.call.start()  # meanwhile, the other loop wakes up
            return self.home.post(self._submit, run)

        if self._phase is _Phase.CLOSED:
            return False
        self._submit(run)
        return True

    def _submit(self, run: RemoteRun) -> None:
        if self._phase is _Phase.CLOSED:
            for waiter in run.waiters:
                waiter.settle(GONE)
            return
        self.table.add(run)
        self.resubmit(run)

    def resubmit(self, run: RemoteRun) -> None:
        if self._phase is _Phase.READY:
            self.table.admit(run)
        elif self._phase is _Phase.CLOSED:
            self.table.fail(run, GONE)
        else:
            self._queue.append(run)
            if self._phase is _Phase.NEW:
                self._phase = _Phase.STARTING
                self._starter = self._spawn(self._start())

    @property
    def ready(self) -> bool:
        return self._phase is _Phase.READY

    async def why_waiting(self, run_ids: Collection[str]) -> str:
        """Return what the executor knows about why no worker has begun these runs; ``""``: nothing."""
        return "" if self._executor is None else await self._executor.why_waiting(run_ids)

    def emptied(self) -> None:
        if self._on_empty is not None:
            self._on_empty(self)

    # ------------------------------------------------------------------ start

    async def _start(self) -> None:
        name = self.environment.name

        try:
            if self._after is not None and self._after.closed is not None:
                await asyncio.wait({self._after.closed}, timeout=self.limits.start_timeout)
            if self._stopping is not None:
                await asyncio.wait({self._stopping})
            self._after = self._stopping = None
            executor = self._make()
            begin = executor.start(
                environment_name=name,
                environment_config=self.environment.executor_config,
                run_config=self._start_config(),
            )
            if not await bounded(begin, self.limits.start_timeout):
                raise DeliveryTimeoutError(
                    f"environment {name!r} did not start within {self.limits.start_timeout:g} s "
                    f"(executor_config 'start_timeout')"
                )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            logger.debug("environment %r did not start: %s: %s", name, type(error).__name__, error)
            self._phase = _Phase.NEW
            queue, self._queue = self._queue, []
            for run in queue:
                self.table.fail(run, Outcome(Ending.ERROR, error))
            return

        logger.debug("environment %r started", name)
        self._executor = executor
        self._phase = _Phase.READY
        self._reader = self._spawn(self._read(executor))
        queue, self._queue = self._queue, []
        for run in queue:
            self.table.admit(run)

    def _start_config(self) -> Mapping[str, Any]:
        if self._caller_loop is None or not self._kind.needs_caller_loop:
            return self.run_config
        return {**self.run_config, "caller_loop": self._caller_loop()}

    def _make(self) -> EnvironmentExecutor:
        executor = self.environment.executor
        return executor if isinstance(executor, EnvironmentExecutor) else self._kind()

    # ------------------------------------------------------------------ frames

    def transmit(
        self, frame: dict[str, Any], sent: Callable[[BaseException | None], object]
    ) -> None:
        executor = self._executor
        if executor is None:
            sent(WorkerLostError(f"environment {self.environment.name!r} has stopped"))
            return

        run_id = frame["run_id"]
        earlier = self._sending.get(run_id)
        if earlier is not None:  # a cancel must not overtake its run
            earlier.add_done_callback(lambda _: self.transmit(frame, sent))
            return

        try:
            if executor.send_nowait(frame):
                sent(None)
                return
        except BaseException as error:
            sent(self._noted(error))
            return

        # A task and a timer instead of `asyncio.timeout`, because this happens for each run.
        sending = self._spawn(_send(executor, frame))
        self._sending[run_id] = sending
        seconds = self.limits.send_timeout
        if seconds is not None:
            seconds += executor.submit_patience_seconds
        timer = (
            None
            if seconds is None
            else self.home.loop.call_later(seconds, self._overdue, run_id, sending, sent, seconds)
        )
        sending.add_done_callback(partial(self._sent, run_id, timer, sent))

    def _overdue(
        self,
        run_id: str,
        sending: asyncio.Task[None],
        sent: Callable[[BaseException | None], object],
        seconds: float,
    ) -> None:
        if self._sending.get(run_id) is not sending:
            return
        del self._sending[run_id]
        sending.cancel()
        sent(
            DeliveryTimeoutError(
                f"environment {self.environment.name!r}: run {run_id} could not be handed over "
                f"within {seconds:g} s (executor_config 'send_timeout')"
            )
        )

    def _sent(
        self,
        run_id: str,
        timer: asyncio.TimerHandle | None,
        sent: Callable[[BaseException | None], object],
        sending: asyncio.Task[None],
    ) -> None:
        error: BaseException | None
        if sending.cancelled():
            error = DeliveryError("an executor was cancelled by itself")
        else:
            error = sending.exception()

        if self._sending.get(run_id) is not sending:  # it took too long, which was reported
            return
        del self._sending[run_id]
        if timer is not None:
            timer.cancel()
        if not (sending.cancelled() and self._phase is _Phase.CLOSED):
            sent(None if error is None else self._noted(error))

    def _noted(self, error: BaseException) -> BaseException:
        error.add_note(f"raised by send() of the executor of environment {self.environment.name!r}")
        return error

    async def _read(self, executor: EnvironmentExecutor) -> None:
        garbage = 0

        try:
            while True:
                got = cast("object", await executor.recv())
                events = cast("list[object]", got) if isinstance(got, list) else [got]
                useful = 0
                for event in events:
                    useful += self.table.receive(event)
                if useful:
                    garbage = 0
                    continue
                garbage += 1
                if garbage >= MAX_GARBAGE:
                    raise DeliveryError(
                        f"recv() returned {garbage} times in a row something that is not an event"
                    )
                await asyncio.sleep(
                    0
                )  # a recv() that never waits must not keep the loop for itself
        except asyncio.CancelledError as error:
            if self._reader is not asyncio.current_task() or self._phase is _Phase.CLOSED:
                raise
            self._break(executor, error)
        except BaseException as error:
            self._break(executor, error)

    def _break(self, executor: EnvironmentExecutor, error: BaseException) -> None:
        """Lose all runs: nothing can be received any more. The next run starts the executor again."""
        if self._executor is not executor:
            return
        name = self.environment.name
        logger.warning(
            "environment %r: its executor is lost: %s: %s", name, type(error).__name__, error
        )
        self._phase = _Phase.NEW
        self._executor = self._reader = None
        self._stopping = self._spawn(self._stop(executor))
        lost = WorkerLostError(
            f"environment {name!r}: its executor stopped receiving: {type(error).__name__}: {error}"
        )
        lost.__cause__ = error
        self.table.lose(lost)

    # ------------------------------------------------------------------ end

    def begin_close(self, outcome: Outcome, seconds: float | None = None) -> asyncio.Future[None]:
        """End all runs with *outcome* and stop the executor.

        Args:
            outcome: The outcome of the runs that have not ended.
            seconds: How long to wait for the executor, if that is less than ``stop_timeout``.

        Returns:
            A future that is done when the executor has stopped.
        """
        if self.closed is None:
            self._phase = _Phase.CLOSED
            self.table.close(outcome)
            self._queue.clear()
            self.closed = asyncio.ensure_future(self._close(seconds))

        return self.closed

    async def _close(self, seconds: float | None) -> None:
        limit = self.limits.stop_timeout
        if seconds is not None:
            limit = seconds if limit is None else min(limit, seconds)
        if self._starter is not None and not self._starter.done():
            self._starter.cancel()
            await asyncio.wait({self._starter}, timeout=1.0)

        if self._sending:
            wait = LAST_SEND_SECONDS if limit is None else min(LAST_SEND_SECONDS, limit)
            await asyncio.wait(set(self._sending.values()), timeout=wait)

        executor, self._executor = self._executor, None
        if executor is not None:
            await self._stop(executor, limit)
        if self._stopping is not None:
            await asyncio.wait({self._stopping}, timeout=limit)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1.0)
        logger.debug("environment %r stopped", self.environment.name)

    async def _stop(self, executor: EnvironmentExecutor, limit: float | None = None) -> None:
        limit = self.limits.stop_timeout if limit is None else limit

        try:
            if not await bounded(executor.stop(), limit):
                logger.warning(
                    "environment %r did not stop within %g s", self.environment.name, limit
                )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            logger.warning(
                "environment %r: stop() failed: %s: %s",
                self.environment.name,
                type(error).__name__,
                error,
            )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.home.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _send(executor: EnvironmentExecutor, frame: dict[str, Any]) -> None:
    await executor.send(frame)


async def bounded(coroutine: Coroutine[Any, Any, object], seconds: float | None) -> bool:
    """Await *coroutine* for at most *seconds*, even if it suppresses its cancellation.

    Returns:
        Whether it ended in time.

    Raises:
        DeliveryError: The coroutine cancelled itself.
        BaseException: Any exception of the coroutine.
    """
    task = asyncio.ensure_future(coroutine)

    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(_ignored)
        raise

    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        task.add_done_callback(_ignored)
        return False

    if task.cancelled():
        raise DeliveryError("an executor was cancelled by itself")
    task.result()
    return True


def _ignored(task: asyncio.Future[object]) -> None:
    if not task.cancelled():
        task.exception()
