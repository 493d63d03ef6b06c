"""One run of a plan: each task starts the moment its own inputs are there.

A plain sync task goes straight to a thread, everything else to a worker of the `_TaskPool`. One
thread at a time touches the state here: the loop's, or before the loop is needed, the thread that
reports the end of a call. The `RunMailbox` ensures that.
"""

from __future__ import annotations

import asyncio
import logging
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
from wove.engine.binding import call_here, call_now, item_call, names_elsewhere
from wove.engine.coroutine_pool import SLICE_SECONDS, CoroutinePool
from wove.engine.environments import EnvironmentPreparer
from wove.engine.loops import is_ours
from wove.engine.mapping import map_items
from wove.engine.streams import GeneratorStream, Stream, UnusedSourceError
from wove.engine.tasks import CANCELLED, DONE, FAILED, PENDING, RUNNING, Task
from wove.engine.threads import (
    RunMailbox,
    ThreadCall,
    ThreadLimiter,
    discard,
    is_awaitable,
    thread_number,
)
from wove.engine.tracebacks import annotate, raisable
from wove.graph.plan import DATA
from wove.observe.events import emit, listening
from wove.observe.reports import REPORTER
from wove.observe.tracing import tracer_of_weave

if TYPE_CHECKING:
    from wove.delivery import DeliveryClient
    from wove.engine.completions import CompletionLog
    from wove.graph.plan import Plan
    from wove.observe.tracing import TaskTracer
    from wove.settings.model import Environment
    from wove.settings.resolution import Resolver

__all__ = ["CURRENT", "OnOutcome", "WeaveRun", "current_run", "stopped"]

_log = logging.getLogger("wove")

CURRENT: ContextVar[ReferenceType[WeaveRun] | None] = ContextVar("wove_run", default=None)
"""The run whose task the current code is part of. A weak reference: contexts live on in timers and the like."""

OnOutcome: TypeAlias = Callable[[bool, Any], object]
"""Called with an outcome: ``(succeeded, value or exception)``."""

STOP_GRACE_SECONDS = 60.0
"""How long cancelled coroutines may take to clean up before the weave ends without them. Longer than
delivery waits, by default, for a cancel to be acknowledged."""

_relations = threading.Lock()
"""Guards the children of runs, and their callers in other threads; weaves are nested in several threads."""


def reset_after_fork() -> None:
    """Detach a forked child from the run of the task that forked: its loop does not run there."""
    global _relations
    _relations = threading.Lock()
    CURRENT.set(None)


forks.after_in_child(forks.Phase.LOCKS, reset_after_fork)


class _TaskPool(CoroutinePool):
    """The coroutines of a run's tasks."""

    __slots__ = ("ready", "run")

    def __init__(self, run: WeaveRun) -> None:
        super().__init__(run.loop, run.context, "wove", float("inf"), run.check_ended)
        self.run = run
        self.ready: deque[Task] = deque()

    def available(self) -> int:
        return len(self.ready)

    async def work(self) -> None:
        run, ready, worker = self.run, self.ready, self.current()
        current = _CurrentTask()
        REPORTER.set(current)
        values = list(copy_context().values())
        since = perf_counter()

        try:
            while ready and not self.stopped:
                task = ready.popleft()
                if ready and self._spawning is None:
                    self.spawn_soon()

                run.begin(task)
                current.task = task
                try:
                    if task.tracer is not None:
                        value = await run.perform_traced(task, task.tracer)
                    elif task.plain_async:
                        value = await call_now(task.node, run.values)
                    else:
                        value = await run.perform(task)
                except GeneratorExit as error:
                    # The task raised it, or this coroutine is being closed: in both cases it must end.
                    run.failed(task, error)
                    return
                except BaseException as error:  # SystemExit and the like are outcomes too
                    run.failed(task, error)
                else:
                    self.deferred = True
                    run.done(task, value)
                    self.deferred = False

                if not ready or self.is_spoiled(worker, values):
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
            self.worker_ended(worker)


class _CurrentTask:
    """The task that a worker runs now."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None

    def __call__(self) -> Task | None:
        return self.task


class WeaveRun:
    """One run of one weave, on one loop.

    Args:
        plan: The tasks.
        values: The initial values by name.
        resolver: The settings of the weave and its tasks.
        loop: Where it runs. Methods are called there, unless they say otherwise.
        context: The caller's context variables; tasks get copies.
        finished: Called once, when everything has ended.

    Attributes:
        tasks: The state of each task, in order of definition.
        values: The initial values, and the results so far.
        remaining: How many tasks have neither a value nor an error.
        stopped: Whether no further task is started.
        closed: Whether everything has ended.
        error: The first failure.
        cancelled_by: The exception that cancelled the run from outside.
        default_settings: The settings of an unmapped task without options, and whether its call is plain.
        failures: Every failure, as ``(task, position of the item or None, exception)``.
        store: Where results of tasks with ``cache=True`` are kept, as `weave` was given it.
        keeps_going: Whether tasks that do not depend on a failed one still run.
        merges: The attempts of each merge.
        logs: The logs of the maps that other threads may follow, by name.
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
        if self._child_calls is not None:
            # The calls in this weave are not children of the call around it.
            context.run(CHILD_CALLS.set, None)

        self.inbox = RunMailbox(loop)
        self._max_workers = settings.max_workers
        self.store = settings.store
        self._slots: ThreadLimiter | None = None
        self.values: dict[str, Any] = {**values, DATA: dict(values)}
        default_settings = resolver.task({}, False)
        self.default_settings = default_settings, is_plain(default_settings)
        self.tasks = [Task(node, self) for node in plan.nodes]
        self.pool = _TaskPool(self)
        self.remaining = len(self.tasks)
        self.stopped = False
        self.closed = False
        self.error: BaseException | None = None
        self.cancelled_by: BaseException | None = None
        self.failures: list[tuple[str, int | None, BaseException]] = []
        self.merges: list[Attempts] = []
        self._coroutines: set[asyncio.Task[Any]] = set()  # of callers outside the loop
        self._callers: set[OnOutcome] = set()  # those that wait for one of them
        self._calls: dict[Task, ThreadCall] = {}
        self._children: set[WeaveRun] = set()
        self._delivery: DeliveryClient | None = None
        self._environments: EnvironmentPreparer | None = None
        self.logs: Mapping[str, CompletionLog] = {}
        self._releases = False  # whether there is a task with keep=False
        self._closing: asyncio.Task[None] | None = None
        self._grace_timer: asyncio.TimerHandle | None = None
        self._finished = finished
        self._has_listeners = listening()
        self.tracer = tracer_of_weave([task.name for task in self.tasks], context)

    @property
    def slots(self) -> ThreadLimiter:
        """The limiter of the threads that this weave may use."""
        if self._slots is None:
            self._slots = ThreadLimiter(self._max_workers)
        return self._slots

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Start every task that needs no other one."""
        if self.parent is not None:
            self.parent.add_child(self)
            if self._child_calls is not None:
                self._child_calls.add(self.cancel_with_parent)

        for task in self.tasks:
            if task.node.streams and task.node.source is not None:
                task.read(self.tasks[task.node.source], self._max_workers)
        if self.logs:
            self._attach_logs()
        for task in self.tasks:
            if task.stream is not None or not task.settings.keep:
                self._set_up_output(task)

        self.pool.deferred = True
        later: list[Task] = []
        for task in self.tasks:
            if not task.waiting:
                self._launch(task)
            elif not (task.plain_sync or task.plain_async or task.settings.is_local):
                later.append(task)

        self.pool.deferred = False
        if later:
            from wove.engine.early_pickling import (
                check_callables,  # here: a local weave does without
            )

            check_callables(self, later)
        self.pool.spawn()
        if not self.remaining:
            self.check_ended()

    def _attach_logs(self) -> None:
        for task in self.tasks:
            log = self.logs.get(task.name)
            if log is not None:
                task.stream = task.stream or Stream()
                task.stream.add_log(log)
                log.attach(task, task.stream)

    def _set_up_output(self, task: Task) -> None:
        """Decide how long the results of *task* are kept, and whether its maps pace it."""
        dependents = [self.tasks[i] for i in task.node.dependents]
        readers = [dependent for dependent in dependents if dependent.reads(task)]
        needs_all = len(readers) < len(dependents)
        stream = task.stream
        if isinstance(stream, GeneratorStream):
            stream.pulls_all = needs_all
        if task.settings.keep:
            return

        self._releases = True
        task.kept = needs_all
        if stream is not None:
            stream.bounded = not needs_all
        if isinstance(stream, GeneratorStream):
            stream.kept = needs_all

        for reader in readers:
            if reader.reader is not None and self._needs_end_of(reader, task):
                reader.reader.room = float("inf")

    def _needs_end_of(self, reader: Task, source: Task) -> bool:
        """Return whether another input of *reader* needs *source* to have ended."""
        stack = [i for i in reader.node.needs if i != source.node.index]
        seen = set(stack)

        while stack:
            for i in self.tasks[stack.pop()].node.needs:
                if i == source.node.index:
                    return True
                if i not in seen:
                    seen.add(i)
                    stack.append(i)

        return False

    def start_without_loop(self) -> bool:
        """`start`, and go on without the loop while only threads work.

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
            or bool(self.pool.tasks)
            or bool(self._coroutines)
            or self._closing is not None
        )

    def cancel(self, error: BaseException) -> None:
        """End the run because of *error*, which the block then raises."""
        if self.closed:
            return
        self.cancelled_by = error
        self._stop()

    def interrupt(self, error: BaseException) -> bool:
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

    def add_child(self, child: WeaveRun) -> None:
        """Have *child*, a weave inside one of the tasks, cancelled when this run is stopped."""
        with _relations:
            self._children.add(child)
            stopped = self.stopped
        if stopped:
            child.cancel_with_parent()

    def cancel_with_parent(self) -> None:
        """`cancel`, from any thread, because the weave or the call around this run has ended."""
        self.cancel_from_anywhere(asyncio.CancelledError("the weave around this one was stopped"))

    def check_ended(self) -> None:
        """Close the run if everything in it has ended; called whenever a part of it has."""
        if self.closed or self.pool.tasks or not (self.stopped or not self.remaining):
            return
        if self._coroutines:
            self._stop()  # merges of threads that no task waits for; they end with the weave
            return

        if self._delivery is not None and self._closing is None:
            self._closing = asyncio.Task(self._delivery.aclose(), loop=self.loop)
            self._closing.add_done_callback(lambda _: self._close())
        elif self._closing is None:
            self._close()

    def _close(self) -> None:
        if self.closed:
            return
        with _relations:
            self.closed = True
            callers, self._callers = self._callers, set()

        for on_outcome in callers:
            on_outcome(False, stopped())
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        for task in self.tasks:
            if task.status in (PENDING, RUNNING):
                task.end(CANCELLED)
                task.end_trace(self.cancelled_by)
            if not (task.plain_sync or task.plain_async):
                task.close()

        if self.parent is not None:
            with _relations:
                self.parent._children.discard(self)
            if self._child_calls is not None:
                self._child_calls.discard(self.cancel_with_parent)

        if self.tracer is not None:
            self.tracer.end(self.error or self.cancelled_by)
        self.inbox.close()
        finished = self._finished
        # Only the garbage collector frees a reference cycle, and weaves can be many.
        self.parent = self._child_calls = None
        del self.pool, self.context, self._finished
        finished()

    def _stop(self) -> None:
        if self.stopped:
            return
        with _relations:
            self.stopped = True
            children = list(self._children)

        for child in children:
            child.cancel_with_parent()

        for waiting in self.pool.ready:
            discard(waiting.awaitable)
        for call in self._calls.values():
            call.abandon()
        self._calls.clear()
        for task in self._coroutines:
            task.cancel()
        self.pool.stop()
        if self.pool.tasks or self._coroutines:
            self._grace_timer = self.loop.call_later(STOP_GRACE_SECONDS, self._give_up)
        self.check_ended()

    def _give_up(self) -> None:
        if self.closed:
            return
        names = ", ".join(repr(task.name) for task in self.tasks if task.status is RUNNING)
        _log.error(
            "a weave ends without its task(s) %s: cancelled %g s ago and still running",
            names,
            STOP_GRACE_SECONDS,
        )
        self.pool.tasks.clear()
        self._coroutines.clear()
        self.check_ended()

    # ------------------------------------------------------------------ tasks

    def _launch(self, task: Task) -> None:
        if self.stopped or task.status is not PENDING:
            return
        if not task.plain_sync:
            self.pool.ready.append(task)
            self.pool.spawn()
            return

        self.begin(task)
        context = self.context.copy()
        if task.tracer is not None:
            context.run(task.tracer.attach)
        call = ThreadCall(
            partial(_timed, task, call_here(task.node, self.values)),
            slots=self.slots,
            inbox=self.inbox,
            context=context,
            ended=partial(self._call_ended, task),
        )
        self._calls[task] = call
        try:
            call.start()
        except RuntimeError as error:  # the system has no more threads
            self.inbox.post(self._call_ended, task, False, error)

    def begin(self, task: Task) -> None:
        """Record that *task* runs from now on."""
        task.begin()
        if self.tracer is not None and task.tracer is None:
            task.tracer = self.tracer.begin_task(
                task.name, task.settings.environment.name, mapped=task.node.declaration.mapped
            )

    async def perform_traced(self, task: Task, tracer: TaskTracer) -> Any:
        """Perform *task* with its span as the current one."""
        token = tracer.attach()
        try:
            if task.plain_async:
                return await call_now(task.node, self.values)
            return await self.perform(task)
        finally:
            tracer.detach(token)

    def _call_ended(self, task: Task, succeeded: bool, value: Any) -> None:
        if self._calls.pop(task, None) is None:  # abandoned while its outcome was on its way
            discard(value)
            return

        if not succeeded:
            self.failed(task, value)
        elif is_awaitable(value):
            task.awaitable = value
            self.pool.ready.append(task)
            self.pool.spawn()
            return
        else:
            self.done(task, value)

        self.check_ended()

    async def perform(self, task: Task) -> Any:
        """Run *task*, whatever its kind is, to its end, and return its value."""
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
            return await task.run_stream(call(), self)
        return await caller(call)

    async def _perform_map(self, task: Task) -> list[Any]:
        node, caller = task.node, task.caller(self)
        source: Any = node.declaration.source
        if isinstance(source, str):
            source = self.values[source] if task.reader is None else task.reader

        call = item_call(node, self.values, local=caller.settings.is_local)
        return await map_items(
            self,
            caller,
            source,
            call,
            on_started=task.set_items,
            outlet=task.stream,
            kept=task.kept,
        )

    def done(self, task: Task, value: Any) -> None:
        """Record the *value* of *task*, and start the tasks that now have all inputs."""
        task.status = DONE
        task.ended = perf_counter()
        task.value = self.values[task.name] = value
        self.remaining -= 1
        if task.stream is not None:
            task.stream.end(value)
        if self._has_listeners:
            emit("task_done", task=task.name, seconds=task.seconds())
        if task.tracer is not None:
            task.end_trace(None)
        tasks = self.tasks

        for i in task.node.dependents:
            dependent = tasks[i]
            if dependent.reads(task):
                continue
            dependent.waiting -= 1
            if not dependent.waiting:
                self._launch(dependent)

        if self._releases:
            self._release(task)
            self._release_inputs(task)

    def _task_failed(self, task: Task) -> None:
        """Count *task* out, which has no value and will have none."""
        self.remaining -= 1
        if self._releases:
            self._release_inputs(task)

    def _release_inputs(self, task: Task) -> None:
        for i in task.node.needs:
            self._release(self.tasks[i])

    def _release(self, task: Task) -> None:
        """Release the value of *task* if it has ``keep=False``, and no task needs it any more."""
        if task.settings.keep or task.status is not DONE:
            return
        for i in task.node.dependents:
            dependent = self.tasks[i]
            if dependent.status in (PENDING, RUNNING) and not dependent.reads(task):
                return

        task.value = None
        self.values.pop(task.name, None)
        if task.items is not None:
            task.items.results = []

    def failed(self, task: Task, error: BaseException) -> None:
        """Record that *task* ended with *error*, or was cancelled because the run was stopped."""
        input_error = task.error
        cancelled = self.stopped and isinstance(error, asyncio.CancelledError)
        if input_error is not None and (cancelled or error is input_error):
            task.end(FAILED)
            task.end_trace(error)
            self._task_failed(task)
            return

        if cancelled:
            task.end(CANCELLED)
            task.end_trace(error)
            return
        if isinstance(error, UnusedSourceError):
            task.end(CANCELLED)
            task.end_trace(None)
            self._task_failed(task)
            return
        if task.reader is not None and error is task.reader.error:
            self._source_failed(task, error)
            return

        error = raisable(error, task.name)
        position = annotate(error, task.name, origin=task.origin())
        task.end(FAILED)
        task.error = error
        task.end_trace(error)
        self._task_failed(task)
        self.failures.append((task.name, position, error))
        if task.stream is not None:
            task.stream.end(error=error)
        if self._has_listeners:
            emit("task_failed", task=task.name, error=error)
        self._fail_dependents(task, error)
        if self.error is None:
            self.error = error
        if not self.keeps_going:
            self._stop()

    def _source_failed(self, task: Task, error: BaseException) -> None:
        """Record that *task*, which has run the items that came, failed with the *error* of its source."""
        task.end(FAILED)
        task.error = error
        task.end_trace(error)
        self._task_failed(task)
        if task.stream is not None:
            task.stream.end(error=error)
        self._fail_dependents(task, error)

    def cannot_travel(self, task: Task, error: BaseException) -> None:
        """Fail *task*, which still waits for its inputs, because its callable cannot be pickled."""
        if task.status is PENDING and not self.stopped:
            self.failed(task, error)
            self.check_ended()

    def _fail_dependents(self, task: Task, error: BaseException) -> None:
        stack = [task]

        while stack:
            failed = stack.pop()
            for i in failed.node.dependents:
                dependent = self.tasks[i]
                if self.keeps_going and dependent.reads(failed):
                    continue  # it runs the items that came, and then gets the error from its source

                if dependent.status is PENDING:
                    if dependent.node.streams and dependent in self.pool.ready:
                        self.pool.ready.remove(dependent)
                    dependent.status = FAILED
                    dependent.error = error
                    self._task_failed(dependent)
                    stack.append(dependent)
                    if dependent.stream is not None:
                        dependent.stream.end(error=error)
                    if dependent.reader is not None:
                        dependent.reader.discard()
                elif dependent.status is RUNNING:  # it receives the items of a task that failed
                    dependent.error = error
                    stack.append(dependent)

    # ------------------------------------------------------------------ for calls, maps and merges

    async def delivery(self, environment: Environment) -> DeliveryClient:
        """Return this run's delivery client, when everything that *environment* needs is imported.

        Raises:
            ValueError: The environment has an unknown executor.
        """
        if self._environments is None:
            self._environments = EnvironmentPreparer(self.inbox)
        await self._environments.prepare(environment)
        if self._delivery is None:
            from wove.delivery import DeliveryClient

            self._delivery = DeliveryClient(self.loop, shared=not is_ours(self.loop))

        return self._delivery

    def run_coroutine(
        self, call: Callable[[], Coroutine[Any, Any, Any]], context: Context, on_outcome: OnOutcome
    ) -> bool:
        """Run a coroutine for a caller outside of the loop; may be called in any thread.

        Args:
            call: Returns the coroutine, which is cancelled when the run is stopped.
            context: Its context variables.
            on_outcome: Called on the loop with the outcome, once, whatever happens.

        Returns:
            Whether it will be run. Otherwise the run has ended, and *on_outcome* is never called.
        """
        with _relations:
            if self.closed:
                return False
            self._callers.add(on_outcome)

        self.inbox.post(self._run_coroutine, call, context, on_outcome)
        return True

    def _run_coroutine(
        self, call: Callable[[], Coroutine[Any, Any, Any]], context: Context, on_outcome: OnOutcome
    ) -> None:
        if self.closed:
            return
        task = asyncio.Task(_outcome(call), loop=self.loop, context=context)
        self._coroutines.add(task)
        task.add_done_callback(partial(self._coroutine_ended, on_outcome))
        child_calls = context.get(CHILD_CALLS)
        if child_calls is not None:
            cancel = partial(self.inbox.post, task.cancel)
            child_calls.add(cancel)
            task.add_done_callback(lambda _: child_calls.discard(cancel))

        if self.stopped:
            task.cancel()

    def _coroutine_ended(self, on_outcome: OnOutcome, task: asyncio.Task[tuple[bool, Any]]) -> None:
        self._coroutines.discard(task)
        outcome = (False, stopped()) if task.cancelled() else task.result()
        with _relations:
            if on_outcome not in self._callers:
                return
            self._callers.discard(on_outcome)

        on_outcome(*outcome)
        self.check_ended()

    def also_failed(self, name: str, errors: list[tuple[int | None, BaseException]]) -> None:
        """Record the failures of a map beside its first one."""
        self.failures.extend((name, position, error) for position, error in errors)

    def left_behind(self, name: str, task: asyncio.Task[Any]) -> None:
        """Log that *task*, a coroutine of the task *name*, was cancelled and did not end."""
        _log.error(
            "task %r does not end though it was cancelled; the weave goes on without it", name
        )
        task.add_done_callback(_retrieve_exception)


def current_run() -> WeaveRun | None:
    """Return the run whose task the current code is part of."""
    reference = CURRENT.get()
    return None if reference is None else reference()


def _timed(task: Task, call: Callable[[], Any]) -> Any:
    # The task begins when a thread begins it, not while it waits for one.
    task.thread = thread_number()
    REPORTER.set(ref(task))
    task.started = perf_counter()
    return call()


def stopped() -> asyncio.CancelledError:
    """Return the exception for callers who wait for a weave that has stopped."""
    return asyncio.CancelledError("the weave was stopped")


async def _outcome(call: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, Any]:
    # A pair instead of a raised exception: asyncio lets SystemExit and the like out of the whole loop.
    try:
        return True, await call()
    except BaseException as error:
        return False, error


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
