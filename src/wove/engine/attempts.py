"""Makes one call of a task, attempt after attempt: where it runs, how long it may take, when it is retried."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, cast

from wove.concurrency.backoff import Backoff
from wove.engine.binding import Bound, portable
from wove.engine.importing import refuse_while_importing
from wove.engine.threads import ThreadCall, discard, is_awaitable
from wove.engine.tracebacks import ABSENT, annotate, raisable
from wove.errors import TaskTimeoutError
from wove.graph.signature import ITEM, Kind, Signature
from wove.observe.events import emit
from wove.observe.reports import REPORTER
from wove.result import RunRecord, Trip, worded

if TYPE_CHECKING:
    from contextvars import Context

    from wove.delivery import Call, DeliveryClient, Request
    from wove.engine.caching import CachedTask
    from wove.engine.scheduler import WeaveRun
    from wove.observe.tracing import RunTracer, TaskTracer
    from wove.settings.resolution import TaskSettings

__all__ = ["CHILD_CALLS", "Attempts", "Caller", "ChildCalls", "Pacer", "retry_delay"]

CANCEL_GRACE_SECONDS = 5.0
"""How long a coroutine whose time is up may take to end before it is left behind."""

RETRY = Backoff(1.0, 60.0, least=0.0)
"""The delays of ``retry_delay="exponential"``, in seconds. With full jitter, so that tasks which failed together are
not retried together."""


class Pacer:
    """Spreads launches evenly: *per_minute* of them, never two at once.

    The first one is due at once. Time that passes unused is not made up for.
    """

    __slots__ = ("_interval", "_next", "_queue")

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._next = 0.0
        self._queue = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until the next launch is due."""
        async with self._queue:
            delay = self._next - perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            # A launch that is a little late does not slow down the rest. After one that is very late,
            # because the loop was busy, the next one still waits for most of the interval.
            self._next = max(self._next, perf_counter() - 0.1 * self._interval) + self._interval


def retry_delay(setting: float | str | Callable[[int], float], failed: int) -> float:
    """Return the seconds to wait after attempt *failed* (from 1)."""
    if callable(setting):
        return max(0.0, float(setting(failed)))
    if isinstance(setting, str):
        return RETRY.delay(failed)
    return setting


class ChildCalls:
    """The work that one call has started: merges, and weaves of its own. It ends with the call.

    A thread cannot be stopped, but the work that it waits for can be cancelled.
    """

    __slots__ = ("_cancels", "_ended", "_lock")

    def __init__(self) -> None:
        self._cancels: set[Callable[[], object]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def add(self, cancel: Callable[[], object]) -> None:
        """Have *cancel* called when the call ends, from any thread; at once if it has ended."""
        with self._lock:
            if not self._ended:
                self._cancels.add(cancel)
                return
        cancel()

    def discard(self, cancel: Callable[[], object]) -> None:
        """Remove *cancel*: the work that it would cancel has ended."""
        self._cancels.discard(cancel)

    def end(self) -> None:
        """Cancel all of it: the call has ended, or was given up."""
        with self._lock:
            self._ended = True
            cancels, self._cancels = self._cancels, set()
        for cancel in cancels:
            cancel()


CHILD_CALLS: ContextVar[ChildCalls | None] = ContextVar("wove_child_calls", default=None)
"""The child calls of the call around the current code, where that call may end before the weave does."""


def is_plain(settings: TaskSettings) -> bool:
    """Return whether a call is only the call: in this process, once, without a limit."""
    return (
        settings.timeout is None
        and not settings.retries
        and settings.limit_per_minute is None
        and settings.is_local
    )


class Attempts:
    """The outcomes of one caller's attempts; they outlive the run.

    Attributes:
        records: The records of the attempts outside this process.
        retried: How many attempts were followed by another one, by item (``None`` where not mapped).
        kept: Whether the records of attempts that succeed are kept, too.
        failed: The record of the last attempt outside this process, by item, until its error is annotated.
    """

    __slots__ = ("failed", "kept", "records", "retried")

    def __init__(self) -> None:
        self.kept = True
        self.records: list[RunRecord] = []
        self.retried: dict[int | None, int] = {}
        self.failed: dict[int | None, RunRecord] = {}

    def origin(self, item: int | None = None) -> str:
        """Return the end of the note of a failed call, after its task and item."""
        record = self.failed.pop(item, None)
        if record is None:
            retried = self.retried.get(item, 0)
            return f", attempt {retried + 1}" if retried else ""

        host = f", host {record.host}" if record.host else ""
        run = f", run {record.run_id}" if record.run_id else ""
        return f", environment {record.environment!r}{host}, attempt {record.attempt}{run}"


class Caller:
    """Makes the calls of one task, or of all items of one map.

    Attributes:
        plain: Whether a call is only the call: in this process, once, without a limit.
        pacer: Spreads the launches of a map, or ``None``.
        context: The context variables of every call.
        attempts: The outcomes of the attempts.
        cache: The kept results of the items of a map; ``None`` where none are kept.
        tracer: Traces the task; ``None`` where nothing does.
    """

    __slots__ = (
        "attempts", "cache", "call", "context", "fn", "kind",
        "make_request", "name", "pacer", "plain", "run", "settings", "signature", "tracer"
    )  # fmt: skip

    def __init__(
        self,
        run: WeaveRun,
        name: str,
        fn: Callable[..., Any],
        kind: Kind,
        signature: Signature,
        settings: TaskSettings,
        context: Context | None = None,
        tracer: TaskTracer | None = None,
    ) -> None:
        self.run = run
        self.tracer = tracer
        self.context = run.context if context is None else context
        self.name = name
        self.fn = fn
        self.kind = kind
        self.signature = signature
        self.settings = settings
        self.pacer = None if settings.limit_per_minute is None else Pacer(settings.limit_per_minute)
        self.plain = is_plain(settings)
        self.call: Call | None = None
        self.make_request: type[Request]
        self.attempts = Attempts()
        self.cache: CachedTask | None = None

    def annotate(self, error: BaseException, item: int, value: Any = ABSENT) -> None:
        """Add a note to *error* that says which *item* raised it, with its *value*."""
        annotate(error, self.name, item, value, self.attempts.origin(item))

    async def __call__(self, bound: Bound, item: int | None = None) -> Any:
        """Make the call, and return its value; raises the exception of its last attempt."""
        settings = self.settings
        attempt = 1

        while True:
            try:
                if self.tracer is not None and settings.retries and settings.is_local:
                    return await self._traced(self.tracer, bound, attempt, item)
                return await self._attempt(bound, attempt, item)
            except settings.retry_on as error:
                if attempt > settings.retries or self.run.stopped:
                    raise
                delay = retry_delay(settings.retry_delay, attempt)
                emit("retry", task=self.name, item=item, attempt=attempt, error=error, delay=delay)
                self.attempts.retried[item] = attempt
                self.attempts.failed.pop(item, None)
            attempt += 1
            if delay:
                await asyncio.sleep(delay)
            if self.pacer is not None:
                await self.pacer.turn()

    async def _traced(
        self, tracer: TaskTracer, bound: Bound, attempt: int, item: int | None
    ) -> Any:
        trace = tracer.begin_run(item, attempt, is_remote=False)
        try:
            value = await self._attempt(bound, attempt, item)
        except BaseException as error:
            trace.end({}, error)
            raise

        trace.end({}, None)
        return value

    def _attempt(self, bound: Bound, attempt: int, item: int | None) -> Awaitable[Any]:
        limit = self.settings.timeout
        if not self.settings.is_local:
            return self._elsewhere(cast("Mapping[str, Any]", bound), attempt, item, limit)

        bound = cast("Callable[[], Any]", bound)
        if self.kind is Kind.ASYNC:
            return self._within(bound(), attempt, item, limit)
        if self.kind is Kind.ASYNC_GENERATOR:
            return self._within(_collect(bound), attempt, item, limit)
        if self.kind is Kind.GENERATOR:
            bound = partial(_as_list, bound)
        return self._in_thread(bound, attempt, item, limit)

    async def _in_thread(
        self, bound: Callable[[], Any], attempt: int, item: int | None, limit: float | None
    ) -> Any:
        run = self.run
        # A pair instead of a raised exception, because a future cannot carry every one (StopIteration).
        outcome: asyncio.Future[tuple[bool, Any]] = run.loop.create_future()
        child_calls, context = ChildCalls(), self.context.copy()
        context.run(CHILD_CALLS.set, child_calls)
        call = ThreadCall(
            bound,
            slots=run.slots,
            inbox=run.inbox,
            context=context,
            ended=partial(_settle, outcome),
        )
        timer: asyncio.TimerHandle | None = None
        began = perf_counter()
        started = None if limit is None else call.wait_started()
        call.start()

        try:
            if started is not None and limit is not None:
                await started  # the time in the queue for a thread is not the task's
                began = perf_counter()
                timer = run.loop.call_later(
                    limit, self._expire, call, outcome, attempt, item, limit
                )
            succeeded, value = await outcome
        except asyncio.CancelledError:
            call.abandon()
            if not outcome.cancel() and not outcome.cancelled():
                discard(outcome.result()[1])
            raise
        finally:
            child_calls.end()
            if timer is not None:
                timer.cancel()

        if not succeeded:
            raise raisable(value, self.name)
        if is_awaitable(value):
            left = None if limit is None else max(0.0, limit - (perf_counter() - began))
            return await self._within(value, attempt, item, limit, left)

        return value

    def _expire(
        self,
        call: ThreadCall,
        outcome: asyncio.Future[tuple[bool, Any]],
        attempt: int,
        item: int | None,
        limit: float,
    ) -> None:
        call.abandon()
        _settle(outcome, False, TaskTimeoutError.of(self.name, attempt, limit, item))

    async def _within(
        self,
        value: Awaitable[Any],
        attempt: int,
        item: int | None,
        limit: float | None,
        left: float | None = None,
    ) -> Any:
        if limit is None:
            return await value
        # A task of its own, because one that does not end when it is cancelled must be left behind.
        task = asyncio.Task(_outcome(value), loop=self.run.loop, name=self.name)
        task.add_done_callback(
            lambda _: discard(value)
        )  # it may be cancelled before its first step
        if await self._finished(task, limit if left is None else left):
            return _value(task)
        error = TaskTimeoutError.of(self.name, attempt, limit, item)
        await self._end(task)
        if task.done() and not task.cancelled():
            succeeded, last = task.result()
            if not succeeded and not isinstance(last, asyncio.CancelledError):
                error.__cause__ = last

        raise error

    async def _finished(self, task: asyncio.Task[tuple[bool, Any]], seconds: float) -> bool:
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            await self._end(task)
            raise
        return task.done()

    async def _end(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_GRACE_SECONDS)
        if not task.done():
            self.run.left_behind(self.name, task)

    async def _elsewhere(
        self, arguments: Mapping[str, Any], attempt: int, item: int | None, limit: float | None
    ) -> Any:
        record = RunRecord(
            self.name, item, attempt, self.settings.environment.name, started=time(), trip=Trip()
        )
        if self.attempts.kept:
            self.attempts.records.append(record)
        trace: RunTracer | None = None
        failure: BaseException | None = None
        if self.tracer is not None:
            trace = self.tracer.begin_run(item, attempt, is_remote=True)

        try:
            delivery = await self.run.delivery(self.settings.environment)
            request = self._request(arguments, record, limit)
            if trace is not None:
                request.traceparent = trace.traceparent
            if limit is None:
                return await delivery.run(request)
            return await self._in_time(delivery, request, limit)
        except BaseException as error:
            record.error = worded(error)
            self.attempts.failed[item] = record
            failure = error
            if not self.attempts.kept:
                self.attempts.records.append(record)
            raise
        finally:
            record.ended = time()
            if trace is not None:
                trace.end(_facts(record), failure)
            failure = None  # it would be part of a reference cycle

    def _request(
        self, arguments: Mapping[str, Any], record: RunRecord, limit: float | None
    ) -> Request:
        if self.call is None:
            refuse_while_importing(self.fn, arguments.values(), self.name)
            # Here, because a local weave does without.
            from wove.delivery import Call, Request, check_resources
            from wove.protocol.carried import carried_values, carrying

            if self.settings.resources is not None:
                check_resources(self.settings.environment, self.settings.resources, self.name)
            self.make_request = Request
            variadic = ITEM in arguments
            fn = portable(self.fn, self.kind, self.signature, variadic=variadic)
            if values := carried_values(self.context):
                is_async = self.kind in (Kind.ASYNC, Kind.ASYNC_GENERATOR)
                fn = carrying(fn, values, is_async=is_async)
            self.call = Call(fn, self.name)

        return self.make_request(
            call=self.call,
            args=dict(arguments),
            settings=self.settings,
            item=record.item,
            attempt=record.attempt,
            timeout=limit,
            record=record,
            find_reporter=self.context.get(REPORTER),
        )

    async def _in_time(self, delivery: DeliveryClient, request: Request, limit: float) -> Any:
        expired: asyncio.Future[None] = self.run.loop.create_future()
        clock = request.working = _WorkClock(expired, limit)
        task = asyncio.Task(_outcome(delivery.run(request)), loop=self.run.loop, name=self.name)

        try:
            ends: set[asyncio.Future[Any]] = {task, expired}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            error = await self._cancel(task)
            if error is not None:  # the orphan policy made it an error
                raise error from None
            raise
        finally:
            clock.stop()

        if task.done():
            return self._result(task, request, limit)
        request.expired = True
        raise TaskTimeoutError.of(
            self.name, request.attempt, limit, request.item
        ) from await self._cancel(task)

    def _result(self, task: asyncio.Task[tuple[bool, Any]], request: Request, limit: float) -> Any:
        """Return or raise the outcome of a run; the timeout of its worker as one of this process."""
        succeeded, value = task.result()
        if succeeded:
            return value
        if type(value) is TaskTimeoutError and (value.task, value.attempt) == (self.name, None):
            raise TaskTimeoutError.of(self.name, request.attempt, limit, request.item) from value
        raise value

    async def _cancel(self, task: asyncio.Task[tuple[bool, Any]]) -> BaseException | None:
        """Cancel a run elsewhere, wait for its end, which delivery bounds, and return its error."""
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled():  # before its first step
            return None
        succeeded, value = task.result()
        return None if succeeded or isinstance(value, asyncio.CancelledError) else value


def _facts(record: RunRecord) -> dict[str, Any]:
    """Return what a trace notes of a remote run that has ended."""
    facts: dict[str, Any] = {
        "run_id": record.run_id,
        "host": record.host,
        "pid": record.pid,
        "bytes_out": record.bytes_out,
        "bytes_in": record.bytes_in,
        "losses": record.losses,
    }
    trip = record.trip
    if trip is not None and trip.handed_over is not None:
        began = trip.start_seen
        if trip.end_seen is not None and trip.worker_spent is not None:
            # Without the worker's clock: the way back of the result is counted as well.
            began = trip.end_seen - sum(trip.worker_spent)
        if began is not None:
            facts["queue_seconds"] = max(0.0, began - trip.handed_over)

    return facts


class _WorkClock:
    """Measures how long a worker works on a run, and completes *expired* after *limit* seconds."""

    __slots__ = ("_expired", "_limit", "_timer")

    def __init__(self, expired: asyncio.Future[None], limit: float) -> None:
        self._expired = expired
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, working: bool) -> None:
        """Start from zero, or stop: the run waits for another worker."""
        self.stop()
        if working and not self._expired.done():
            loop = self._expired.get_loop()
            self._timer = loop.call_later(self._limit, _complete, self._expired)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _settle(outcome: asyncio.Future[tuple[bool, Any]], succeeded: bool, value: Any) -> None:
    if outcome.done():
        discard(value)
    else:
        outcome.set_result((succeeded, value))


async def in_own_task(
    value: Awaitable[Any], loop: asyncio.AbstractEventLoop, context: Context
) -> Any:
    """Await *value* inside a task of its own, in *context*."""
    task = asyncio.Task(_outcome(value), loop=loop, context=context)
    await task
    return _value(task)


async def _outcome(value: Awaitable[Any]) -> tuple[bool, Any]:
    # A pair instead of a raised exception: SystemExit and KeyboardInterrupt would leave the whole loop.
    try:
        return True, await value
    except BaseException as error:
        return False, error


def _value(task: asyncio.Task[tuple[bool, Any]]) -> Any:
    succeeded, value = task.result()
    if not succeeded:
        raise value
    return value


async def _collect(bound: Callable[[], Any]) -> list[Any]:
    return [item async for item in bound()]


def _as_list(bound: Callable[[], Any]) -> list[Any]:
    return list(bound())
