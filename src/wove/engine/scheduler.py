"""One run of a plan: each task starts the moment its own inputs are there.

A plain sync task goes straight to a thread, everything else into a lane. All of the state here is
touched by one thread at a time: the loop's, or before the loop is needed, by whichever thread has
something to report. The `RunMailbox` sees to that.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import ReferenceType, ref

from wove.concurrency import forks
from wove.engine.attempts import CHILD_CALLS, Attempts, is_plain
from wove.engine.binding import call_here, call_here_per_item, call_now, names_elsewhere, with_item
from wove.engine.coroutine_pool import SLICE_SECONDS, CoroutinePool
from wove.engine.loops import is_ours
from wove.engine.mapping import map_items
from wove.engine.sources import Stream
from wove.engine.tasks import CANCELLED, DONE, FAILED, PENDING, RUNNING, Task
from wove.engine.threads import (
    RunMailbox,
    ThreadCall,
    ThreadLimiter,
    discard,
    is_awaitable,
    start_thread,
    thread_number,
)
from wove.engine.tracebacks import annotate, raisable
from wove.graph.plan import DATA
from wove.graph.signature import Kind
from wove.observe.events import emit, listening
from wove.observe.reports import REPORTER

if TYPE_CHECKING:
    from wove.delivery import DeliveryClient
    from wove.graph.plan import Plan
    from wove.settings.model import Environment
    from wove.settings.resolution import Resolver

__all__ = ["CURRENT", "Settle", "WeaveRun", "current_run", "stopped"]

_log = logging.getLogger("wove")

CURRENT: ContextVar[ReferenceType[WeaveRun] | None] = ContextVar("wove_run", default=None)
"""The run whose task the current code is part of. A weak reference: contexts live on in timers and the like."""

Settle: TypeAlias = Callable[[bool, Any], object]
"""Takes the outcome of something: ``(succeeded, value or exception)``."""

STOP_GRACE_SECONDS = 60.0
"""How long cancelled coroutines may take to clean up before the weave ends without them. Longer than
delivery waits, by default, for a cancel to be acknowledged."""


_families = threading.Lock()
"""Guards who is inside whom and who waits for what; weaves are nested in several threads."""


def reset_after_fork() -> None:
    """In a forked child nobody serves the run of the task that forked."""
    global _families
    _families = threading.Lock()
    CURRENT.set(None)


forks.after_in_child(forks.Phase.LOCKS, reset_after_fork)


class _TaskLanes(CoroutinePool):
    """Lanes for the tasks of a run."""

    __slots__ = ("ready", "run")

    def __init__(self, run: WeaveRun) -> None:
        super().__init__(run.loop, run.context, "wove", float("inf"), run.settled)
        self.run = run
        self.ready: deque[Task] = deque()

    def available(self) -> int:
        return len(self.ready)

    async def lane(self) -> None:
        run, ready, lane = self.run, self.ready, self.current()
        current = _CurrentTask()
        REPORTER.set(current)
        values = list(copy_context().values())
        since = perf_counter()

        try:
            while ready and not self.stopped:
                task = ready.popleft()
                if ready and self._look is None:
                    self.more()
                task.begin()
                current.task = task
                try:
                    if task.plain_async:
                        value = await call_now(task.node, run.values)
                    else:
                        value = await run.perform(task)
                except GeneratorExit as error:
                    # Either the task's own, or this lane is being closed: in both cases it must end here.
                    run.failed(task, error)
                    return
                except BaseException as error:  # SystemExit and the like are outcomes too
                    run.failed(task, error)
                else:
                    self.inside = True
                    run.done(task, value)
                    self.inside = False
                if not ready:
                    return
                if self.spoiled(lane, values):
                    return
                if task.ended - since > SLICE_SECONDS:
                    await asyncio.sleep(0)
                    since = perf_counter()
        except asyncio.CancelledError:
            return  # between two tasks
        except BaseException as error:  # not a task's: those are caught above
            run.cancel(error)
        finally:
            current.task = None
            self.left(lane)


class _CurrentTask:
    """The task that a lane is at."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None

    def __call__(self) -> Task | None:
        return self.task


class WeaveRun:
    """One run of one weave, on one loop.

    Args:
        plan: What to run.
        values: The initial values by name.
        resolver: The settings of the weave and its tasks.
        loop: Where it runs; every method but `cancel_from_anywhere` is called there.
        context: The caller's context variables; tasks get copies.
        finished: Called once, when everything has ended.

    Attributes:
        tasks: The state of each task, in order of definition.
        values: The initial values, and the results so far.
        stopped: Whether nothing more is started.
        error: The first failure.
        cancelled_by: What cancelled the run from outside.
        usual: The settings of an unmapped task without options, and whether it is nothing but a call.
        failures: Every failure, as ``(task, position of the item or None, exception)``.
        store: Where results of tasks with ``cache=True`` are kept, as `weave` was given it.
        keeps_going: Whether what does not depend on a failed task still runs.
    """

    def __init__(
        self,
        plan: Plan,
        values: Mapping[str, Any],
        resolver: Resolver,
        *,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        finished: Callable[[], object],
    ) -> None:
        settings = resolver.weave()
        self.loop = loop
        self.resolver = resolver
        self.keeps_going = settings.error_mode == "continue"
        self.parent = current_run()
        self.context = context
        context.run(CURRENT.set, ref(self))
        self._child_calls = context.get(CHILD_CALLS)
        if (
            self._child_calls is not None
        ):  # those of the call around this weave, not of the calls in it
            context.run(CHILD_CALLS.set, None)

        self.inbox = RunMailbox(loop)
        self._max_workers = settings.max_workers
        self.store = settings.store
        self._slots: ThreadLimiter | None = None
        self.values: dict[str, Any] = {**values, DATA: dict(values)}
        usual = resolver.task({}, False)
        self.usual = usual, is_plain(usual)
        self.tasks = [Task(node, self) for node in plan.nodes]
        self.lanes = _TaskLanes(self)
        self.left = len(self.tasks)
        self.stopped = False
        self.closed = False
        self.error: BaseException | None = None
        self.cancelled_by: BaseException | None = None
        self.failures: list[tuple[str, int | None, BaseException]] = []
        self.merges: list[Attempts] = []
        self._attended: set[asyncio.Task[Any]] = set()
        self._waiting: set[Settle] = set()
        self._calls: dict[Task, ThreadCall] = {}
        self._children: set[WeaveRun] = set()
        self._scope: DeliveryClient | None = None
        self._prepared: dict[str, asyncio.Future[BaseException | None]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._finished = finished
        self._listened = listening()

    @property
    def slots(self) -> ThreadLimiter:
        """The threads this weave may use."""
        if self._slots is None:
            self._slots = ThreadLimiter(self._max_workers)
        return self._slots

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Start every task that waits for nothing."""
        if self.parent is not None:
            self.parent.adopt(self)
            if self._child_calls is not None:
                self._child_calls.add(self.leave_off)

        for task in self.tasks:
            if task.node.streams and task.node.source is not None:
                source = self.tasks[task.node.source]
                source.stream = source.stream or Stream()
                task.waiting -= 1

        self.lanes.inside = True
        for task in self.tasks:
            if not task.waiting:
                self._launch(task)

        self.lanes.inside = False
        self.lanes.feed()
        if not self.left:
            self.settled()

    def start_without_loop(self) -> bool:
        """`start`, and go on without the loop while nothing but threads is at work.

        Returns:
            Whether everything has ended. If not, the loop must be run.
        """
        self.inbox.hold(self._needs_loop)
        self.start()
        self.inbox.serve()
        return self.closed

    def _needs_loop(self) -> bool:
        return (
            self.closed
            or bool(self.lanes.tasks)
            or bool(self._attended)
            or self._closing is not None
        )

    def cancel(self, error: BaseException) -> None:
        """End the run because of *error*, which the block then raises."""
        if self.closed:
            return
        self.cancelled_by = error
        self._stop()

    def break_off(self, error: BaseException) -> bool:
        """`cancel`, because *error* was raised into the loop or into the wait for it.

        Returns:
            Whether everything has ended. If not, the loop must be run.
        """
        self.inbox.let_go()
        self.cancel(error)
        return self.closed

    def cancel_from_anywhere(self, error: BaseException) -> None:
        """`cancel`, from any thread."""
        self.inbox.post(self.cancel, error)

    def adopt(self, child: WeaveRun) -> None:
        """Take *child*, a weave inside one of the tasks, along when this run is stopped."""
        with _families:
            self._children.add(child)
            stopped = self.stopped
        if stopped:
            child.leave_off()

    def leave_off(self) -> None:
        """From any thread: end the run, because what it is a part of has ended."""
        self.cancel_from_anywhere(asyncio.CancelledError("the weave around this one was stopped"))

    def settled(self) -> None:
        """Something has ended: see whether everything has."""
        if self.closed or self.lanes.tasks or not (self.stopped or not self.left):
            return
        if self._attended:
            self._stop()  # merges of threads that no task waits for; they end with the weave
            return

        if self._scope is not None and self._closing is None:
            self._closing = asyncio.Task(self._scope.aclose(), loop=self.loop)
            self._closing.add_done_callback(lambda _: self._close())
        elif self._closing is None:
            self._close()

    def _close(self) -> None:
        if self.closed:
            return
        with _families:
            self.closed = True
            waiting, self._waiting = self._waiting, set()

        for settle in waiting:
            settle(False, stopped())
        if self._patience is not None:
            self._patience.cancel()
        for task in self.tasks:
            if task.status in (PENDING, RUNNING):
                task.end(CANCELLED)
            if not (task.plain_sync or task.plain_async):
                task.close()

        if self.parent is not None:
            with _families:
                self.parent._children.discard(self)
            if self._child_calls is not None:
                self._child_calls.discard(self.leave_off)

        self.inbox.close()
        finished = self._finished
        # Only the garbage collector frees a reference cycle, and weaves can be many.
        self.parent = self._child_calls = None
        del self.lanes, self.context, self._finished
        finished()

    def _stop(self) -> None:
        if self.stopped:
            return
        with _families:
            self.stopped = True
            children = list(self._children)

        for child in children:
            child.cancel_from_anywhere(
                asyncio.CancelledError("the weave around this one was stopped")
            )

        for waiting in self.lanes.ready:
            discard(waiting.awaitable)
        for call in self._calls.values():
            call.abandon()
        self._calls.clear()
        for task in self._attended:
            task.cancel()
        self.lanes.stop()
        if self.lanes.tasks or self._attended:
            self._patience = self.loop.call_later(STOP_GRACE_SECONDS, self._give_up)
        self.settled()

    def _give_up(self) -> None:
        if self.closed:
            return
        names = ", ".join(repr(task.name) for task in self.tasks if task.status is RUNNING)
        _log.error(
            "a weave ends without its task(s) %s: cancelled %g s ago and still running",
            names,
            STOP_GRACE_SECONDS,
        )
        self.lanes.tasks.clear()
        self._attended.clear()
        self.settled()

    # ------------------------------------------------------------------ tasks

    def _launch(self, task: Task) -> None:
        if self.stopped or task.status is not PENDING:
            return
        if not task.plain_sync:
            lanes = self.lanes
            lanes.ready.append(task)
            if not lanes.inside:
                lanes.feed()
            return

        task.begin()
        call = ThreadCall(
            partial(_timed, task, call_here(task.node, self.values)),
            slots=self.slots,
            inbox=self.inbox,
            context=self.context.copy(),
            ended=partial(self._call_ended, task),
        )
        self._calls[task] = call
        try:
            call.start()
        except RuntimeError as error:  # no thread to be had
            self.inbox.post(self._call_ended, task, False, error)

    def _call_ended(self, task: Task, succeeded: bool, value: Any) -> None:
        if self._calls.pop(task, None) is None:  # abandoned when its report was on its way
            discard(value)
            return

        if not succeeded:
            self.failed(task, value)
        elif is_awaitable(value):
            task.awaitable = value
            self.lanes.ready.append(task)
            self.lanes.feed()
            return
        else:
            self.done(task, value)

        self.settled()

    async def perform(self, task: Task) -> Any:
        """Run *task* to its end, whatever kind it is; returns its value."""
        if not task.settings.cache:
            return await self._perform(task)
        return await self._perform_cached(task)

    async def _perform_cached(self, task: Task) -> Any:
        from wove.engine.caching import cached_task  # here, because most weaves do without

        node, mapped = task.node, task.node.declaration.mapped
        cache = cached_task(
            self.store,
            task.name,
            node.declaration.fn,
            task.settings,
            names_elsewhere(node, self.values),
            node.item if mapped else None,
        )
        if not mapped:
            return await cache.run(partial(self._perform, task))

        async with cache:
            task.caller(self).cache = cache
            return await self._perform(task)

    async def _perform(self, task: Task) -> Any:
        caller, node = task.caller(self), task.node
        if task.awaitable is not None:
            awaitable, task.awaitable = task.awaitable, None
            return await awaitable

        if node.declaration.mapped:
            return await self._perform_map(task)
        if not caller.settings.is_local:
            return await caller(names_elsewhere(node, self.values))
        call = call_here(node, self.values)
        if task.stream is not None and caller.plain:
            return await task.stream_from(call, self)
        return await caller(call)

    async def _perform_map(self, task: Task) -> list[Any]:
        node, caller = task.node, task.caller(self)
        source: Any = node.declaration.source
        if isinstance(source, str):
            streams = node.streams and node.source is not None
            source = self.tasks[node.source].stream if streams else self.values[source]  # type: ignore[index]

        invoke: Callable[[Any], Any]

        if not caller.settings.is_local:
            invoke = partial(with_item, names_elsewhere(node, self.values), node.item or "")
        else:
            invoke = call_here_per_item(node, self.values)
            if not caller.plain or caller.kind not in (Kind.SYNC, Kind.ASYNC):
                invoke = partial(partial, invoke)

        return await map_items(self, caller, source, invoke, begun=task.set_items)

    def done(self, task: Task, value: Any) -> None:
        """*task* has its value."""
        task.status = DONE
        task.ended = perf_counter()
        task.value = self.values[task.name] = value
        self.left -= 1
        if task.stream is not None:
            task.stream.close(value)
        if self._listened:
            emit("task_done", task=task.name, seconds=task.seconds())
        tasks = self.tasks

        for i in task.node.dependents:
            dependent = tasks[i]
            if (
                task.stream is not None
                and dependent.node.streams
                and dependent.node.source == task.node.index
            ):
                continue
            dependent.waiting -= 1
            if not dependent.waiting:
                self._launch(dependent)

    def failed(self, task: Task, error: BaseException) -> None:
        """*task* ended with *error*, or was cancelled because the run was stopped."""
        source_error = task.error
        cancelled = self.stopped and isinstance(error, asyncio.CancelledError)
        if source_error is not None and (cancelled or error is source_error):
            task.end(FAILED)
            self.left -= 1
            return

        if cancelled:
            task.end(CANCELLED)
            return

        error = raisable(error, task.name)
        position = annotate(error, task.name, origin=task.origin())
        task.end(FAILED)
        task.error = error
        self.left -= 1
        self.failures.append((task.name, position, error))
        if task.stream is not None:
            task.stream.close(None, error)
        if self._listened:
            emit("task_failed", task=task.name, error=error)
        self._fail_dependents(task, error)
        if self.error is None:
            self.error = error
        if not self.keeps_going:
            self._stop()

    def _fail_dependents(self, task: Task, error: BaseException) -> None:
        stack = [task.node]
        while stack:
            for i in stack.pop().dependents:
                dependent = self.tasks[i]
                if dependent.status is PENDING:
                    if dependent.node.streams and dependent in self.lanes.ready:
                        self.lanes.ready.remove(dependent)
                    dependent.status = FAILED
                    dependent.error = error
                    self.left -= 1
                    stack.append(dependent.node)
                elif dependent.status is RUNNING:  # it takes items from the generator that failed
                    dependent.error = error
                    stack.append(dependent.node)

    # ------------------------------------------------------------------ for those that call, map and merge

    async def scope(self, environment: Environment) -> DeliveryClient:
        """This run's way out of the process, when all that *environment* needs is imported.

        Raises:
            ValueError: It has an unknown executor.
        """
        prepared = self._prepared.get(environment.name)
        if prepared is None:
            prepared = self._prepared[environment.name] = self.loop.create_future()
            if _is_prepared(environment):
                prepared.set_result(None)
            else:
                # In a thread: a first import takes too long for a loop that others live on too.
                start_thread(
                    partial(_prepare, environment, partial(self.inbox.post, _settle, prepared))
                )

        error = prepared.result() if prepared.done() else await asyncio.shield(prepared)
        if error is not None:
            raise error
        if self._scope is None:
            from wove.delivery import DeliveryClient

            self._scope = DeliveryClient(self.loop, shared=not is_ours(self.loop))

        return self._scope

    def attend(
        self, call: Callable[[], Coroutine[Any, Any, Any]], context: Context, settle: Settle
    ) -> bool:
        """Run a coroutine for somebody outside of the loop; may be called from any thread.

        Args:
            call: Gives the coroutine, which is cancelled when the run is stopped.
            context: Its context variables.
            settle: Called on the loop with the outcome, once, whatever happens.

        Returns:
            Whether it will be run. Otherwise the run is over, and *settle* is never called.
        """
        with _families:
            if self.closed:
                return False
            self._waiting.add(settle)

        self.inbox.post(self._attend, call, context, settle)
        return True

    def _attend(
        self, call: Callable[[], Coroutine[Any, Any, Any]], context: Context, settle: Settle
    ) -> None:
        if self.closed:
            return
        task = asyncio.Task(_outcome(call), loop=self.loop, context=context)
        self._attended.add(task)
        task.add_done_callback(partial(self._attended_ended, settle))
        child_calls = context.get(CHILD_CALLS)
        if child_calls is not None:
            end = partial(self.inbox.post, task.cancel)
            child_calls.add(end)
            task.add_done_callback(lambda _: child_calls.discard(end))

        if self.stopped:
            task.cancel()

    def _attended_ended(self, settle: Settle, task: asyncio.Task[tuple[bool, Any]]) -> None:
        self._attended.discard(task)
        outcome = (False, stopped()) if task.cancelled() else task.result()
        with _families:
            if settle not in self._waiting:
                return
            self._waiting.discard(settle)

        settle(*outcome)
        self.settled()

    def also_failed(self, name: str, errors: list[tuple[int | None, BaseException]]) -> None:
        """Keep the failures of a map beside its first one."""
        self.failures.extend((name, position, error) for position, error in errors)

    def left_behind(self, name: str, task: asyncio.Task[Any]) -> None:
        """A coroutine was cancelled and did not end."""
        _log.error(
            "task %r does not end though it was cancelled; the weave goes on without it", name
        )
        task.add_done_callback(_take_outcome)


def current_run() -> WeaveRun | None:
    """The run whose task the current code is part of."""
    reference = CURRENT.get()
    return None if reference is None else reference()


def _timed(task: Task, call: Callable[[], Any]) -> Any:
    # The task begins when a thread begins it, not while it waits for one.
    task.thread = thread_number()
    REPORTER.set(ref(task))
    task.started = perf_counter()
    return call()


def _is_prepared(environment: Environment) -> bool:
    delivery: Any = sys.modules.get("wove.delivery")  # which a weave that stays here does not need
    ready = getattr(delivery, "is_prepared", None)
    return ready is not None and bool(ready(environment))


def _prepare(environment: Environment, tell: Callable[[BaseException | None], object]) -> None:
    try:
        with forks.importing:
            from wove.delivery import prepare

        prepare(environment)
    except BaseException as error:  # raised by whoever wants to go there
        tell(error)
    else:
        tell(None)


def _settle(future: asyncio.Future[BaseException | None], error: BaseException | None) -> None:
    if not future.done():
        future.set_result(error)


def stopped() -> asyncio.CancelledError:
    """Return the exception for callers who wait for a weave that has stopped."""
    return asyncio.CancelledError("the weave was stopped")


async def _outcome(call: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, Any]:
    # A pair instead of a raised exception: asyncio lets SystemExit and the like out of the whole loop.
    try:
        return True, await call()
    except BaseException as error:
        return False, error


def _take_outcome(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
