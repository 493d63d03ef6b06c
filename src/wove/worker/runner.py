"""Runs tasks on the worker's side, whatever transport brought their frames."""

from __future__ import annotations

import contextvars
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from wove.concurrency.django_connections import close_connections
from wove.errors import SerializationError, TaskTimeoutError, WorkerSetupError
from wove.observe.reports import REPORTER
from wove.protocol.callables import CallableCache
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, TERMINAL, FrameError, check_python
from wove.protocol.limits import SHARED_KEPT
from wove.protocol.pickling import Pickled, dumps, loads
from wove.worker.heartbeats import HeartbeatTimer, LoadMeter
from wove.worker.interrupts import Interruptible, TaskInterrupted
from wove.worker.log_capture import CAPTURE, LineBudget, capture
from wove.worker.reports import RunReports
from wove.worker.run_marks import BEGUN, RETURNED, UNPICKLING, RunMarks
from wove.worker.runs import ExecutingRun, SharedCallable, SharedValues
from wove.worker.setup import set_up
from wove.worker.threads import TaskThreadPool
from wove.worker.tracing import attach_parent

if TYPE_CHECKING:
    from wove.worker.coroutines import CoroutineLoop

__all__ = ["Runner"]

_log = logging.getLogger("wove.worker")

HOST: Final = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class Runner:
    """Runs the tasks of ``run_task`` frames, all at once, and reports their events through *emit*.

    Every run ends with exactly one of ``task_result``, ``task_error`` and ``task_cancelled``, when the task
    itself has ended. A sync task gets a thread, a coroutine task a place on one event loop, both with a fresh
    context. Arguments and results are pickled and unpickled in the threads, never on the loop.

    Args:
        emit: Receives every event, as a dict whose pickles are :class:`~wove.protocol.pickling.Pickled`. Called
            from any thread, also from the event loop's; must neither raise nor block.
        max_threads: Maximum number of threads for sync tasks; ``None``: as many as block.
        name: Name of the threads, before a number.
        report_load: Also emit a ``heartbeat`` with ``blocked: true``, and ``running``, the number of tasks
            that run, within about 5 ms of all of them waiting and not computing; again when another task has
            started since, and every second. The heartbeat carries the ``run_id`` of one of them. A sender that
            keeps CPU-bound tasks from competing for one interpreter lock may then send more.
        marks: Memory in which the states of runs are noted, for the parent of this process.

    Example::

        runner = Runner(send)
        runner.submit({"type": "run_task", "run_id": "r1", "task_id": "pdf", "callable_pickle": ...,
                       "args_pickle": ...})
    """

    def __init__(
        self,
        emit: Callable[[dict[str, Any]], None],
        *,
        max_threads: int | None = None,
        name: str = "wove-worker",
        report_load: bool = False,
        marks: RunMarks | None = None,
    ) -> None:
        self._emit_event = emit
        self._marks = marks
        self._name = name
        self._lock = threading.Lock()
        self._runs: dict[str, ExecutingRun] = {}
        self._empty = threading.Condition(self._lock)
        self._running = self._started = self._ending = 0
        self._closed = False
        self._callables: CallableCache[SharedCallable] = CallableCache()
        self._shared_values: CallableCache[SharedValues] = CallableCache(SHARED_KEPT)
        self._threads = TaskThreadPool(max_threads, name)
        self._loop: CoroutineLoop | None = None
        meter = LoadMeter(self._count, self._report_blocked) if report_load else None
        self._timer: HeartbeatTimer[ExecutingRun] = HeartbeatTimer(
            beat=self._beat, expire=self._expire, meter=meter, name=f"{name}-timer"
        )
        self._report_timer: HeartbeatTimer[RunReports] = HeartbeatTimer(
            beat=RunReports.flush, expire=RunReports.flush, meter=None, name=f"{name}-reports"
        )
        self._line_budget = LineBudget()
        self._captures = False
        self._reports_load = report_load
        self._pid = os.getpid()

    # --- what a transport calls -----------------------------------------------------------------------------

    def submit(
        self,
        frame: Mapping[str, Any],
        function: SharedCallable | None = None,
        *,
        heartbeat_seconds: float | None = None,
    ) -> None:
        """Run a ``run_task`` frame. Returns at once; frames of one connection come from one thread, in order.

        A second frame with the ``run_id`` of a run in progress is ignored.

        Args:
            frame: The frame.
            function: Its callable, from `shared`; ``None``: the callable is in this frame, or was in an earlier one
                of this connection.
            heartbeat_seconds: The time between two heartbeats; ``None``: as the frame says.

        Raises:
            FrameError: The frame names no run, so nobody could be told.
        """
        run_id = frame.get("run_id")
        if not isinstance(run_id, str) or not run_id:
            raise FrameError("a run_task without a run_id")
        run = ExecutingRun(run_id, frame, heartbeat_seconds)

        with self._lock:
            if run_id in self._runs:
                _log.debug("run %s came twice; it runs once", run_id)
                return
            self._runs[run_id] = run
            closed = self._closed

        try:
            if closed:
                raise RuntimeError("the worker is shutting down, and takes no more tasks")
            run.callable = function or self._callable_of(frame, run)
            run.shared = self._shared_of(frame, run)
            self._threads.submit(partial(self._perform, run))
        except FrameError as error:
            self._fail(run, error, source="transport")
        except Exception as error:
            self._fail(run, error, source="executor", retryable=True)

    def shared(self, callable_id: str, pickled: Pickled | None = None) -> SharedCallable | None:
        """Return the callable with an id, and keep it for later frames, which may come from several connections.

        Args:
            callable_id: The SHA-256 (hex) of its pickle.
            pickled: Its pickle; ``None``: return the callable only if it is kept.

        Returns:
            The callable; ``None``: it is not kept.
        """
        with self._lock:
            kept = self._callables.get(callable_id)
            if pickled is not None:
                kept = kept or SharedCallable(pickled)
                self._callables.put(callable_id, kept, pickled.size)
            return kept

    def cancel(self, frame: Mapping[str, Any]) -> None:
        """Stop the run of a ``cancel_task`` frame: at once while it is queued, otherwise as far as Python can.

        A coroutine is cancelled. In a sync task a :class:`~wove.worker.interrupts.TaskInterrupted` is raised
        when it next runs bytecode. A run that ends by itself before keeps its result; an unknown one is
        ignored.
        """
        run = self._runs.get(str(frame.get("run_id")))
        if run is None:
            _log.debug("nothing to cancel: run %s is not here (any more)", frame.get("run_id"))
        else:
            self._stop(run, "cancel")

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse further runs, and wait until all have ended, for at most *timeout* seconds (``None``: for ever).

        Returns:
            Whether all have ended.
        """
        with self._lock:
            self._closed = True
            return self._empty.wait_for(self._is_empty, timeout)

    def _is_empty(self) -> bool:
        return not self._runs and not self._ending

    def close(self, timeout: float) -> bool:
        """Stop all runs, and wait at most *timeout* seconds for them to end.

        Returns:
            Whether all have ended. Those that have not continue in daemon threads.
        """
        with self._lock:
            self._closed = True
            runs = list(self._runs.values())

        for run in runs:
            self._stop(run, "cancel")
        deadline = time.monotonic() + timeout
        ended = self.drain(timeout)
        self._threads.close(0.0, for_good=True)
        self._timer.close()
        self._report_timer.close()
        with self._lock:
            captures, self._captures = self._captures, False
        if captures:
            capture.release()
        if self._loop is not None:
            self._loop.close(max(0.0, deadline - time.monotonic()))
        return ended

    # --- one run, from its thread ---------------------------------------------------------------------------

    def _perform(self, run: ExecutingRun) -> None:
        with self._lock:
            if run.ended or run.stopping:  # while it was queued
                return
            run.begun = True
            self._running += 1
            self._started += 1

        self._mark(run, UNPICKLING)
        run.began = time.time()
        run.ticks.append(time.perf_counter())

        try:
            self._emit({"type": "task_started", **run.names, "host": HOST, "pid": self._pid})
            if run.seconds is not None:
                self._timer.expire_at(run, time.monotonic() + run.seconds)
            if self._reports_load:
                self._timer.started()
            if run.heartbeat_seconds is not None:
                self._timer.beat_every(run, run.heartbeat_seconds)
            self._call(run)
        except BaseException as error:
            # Not the task's own exception, which is handled elsewhere. Whatever it is, the run must end.
            self._fail(run, error, source="executor")

    def _mark(self, run: ExecutingRun, state: int) -> None:
        if self._marks is not None:
            self._marks.mark(run.slot, state)

    def _call(self, run: ExecutingRun) -> None:
        try:
            check_python(run.frame, label=f"task {run.task!r}")
        except SerializationError as error:
            self._fail(run, error, source="config")
            return

        try:
            set_up(run.setup)
        except WorkerSetupError as error:
            self._fail(run, error, source="config")
            return

        try:
            function, is_async = run.load_callable()
            arguments = run.load_arguments()
        except SerializationError as error:
            missing = isinstance(error.__cause__, ImportError)
            self._fail(run, error, source="config" if missing else "executor")
            return

        call = partial(function, **arguments)
        del arguments
        run.ticks.append(time.perf_counter())
        context = contextvars.Context()
        context.run(REPORTER.set, partial(self._reports_of, run))
        if run.traceparent:
            context.run(attach_parent, run.traceparent)
        if run.log_level is not None:
            self._capture_logs(run.log_level)
            context.run(CAPTURE.set, self._reports_of(run))

        if run.stopping:
            self._stopped(run, None)
        elif is_async:
            self._await(run, call, context)
        else:
            self._call_here(run, call, context)

    def _reports_of(self, run: ExecutingRun) -> RunReports | None:
        """Return what sends the reports of *run*; ``None`` once it has ended."""
        with self._lock:
            if run.ended:
                return None
            if run.reports is None:
                run.reports = RunReports(
                    run.names, HOST, self._emit, self._report_timer.expire_at, self._line_budget
                )
            return run.reports

    def _capture_logs(self, level: int) -> None:
        """Have the log records and the output of captured runs sent home, until this runner is closed."""
        with self._lock:
            first, self._captures = not self._captures, True
        if first:
            capture.acquire(level)
        else:
            capture.lower(level)

    def _call_here(
        self, run: ExecutingRun, call: Callable[[], Any], context: contextvars.Context
    ) -> None:
        section = Interruptible()

        def interruptible() -> Any:
            # First publish the section, then check: `_stop` does it in the opposite order.
            run.section = section
            if run.stopping:
                raise TaskInterrupted
            self._mark(run, BEGUN)
            return context.run(call)

        ok, value = section.run(interruptible)
        close_connections()
        if ok and inspect.isawaitable(value):
            # A plain function around a coroutine function.
            self._await(
                run,
                lambda: value,
                context,
                unused=value.close if inspect.iscoroutine(value) else None,
            )
        else:
            self._conclude(run, ok, value)

    def _await(
        self,
        run: ExecutingRun,
        make: Callable[[], Awaitable[Any]],
        context: contextvars.Context,
        unused: Callable[[], object] | None = None,
    ) -> None:
        """Await the result of *make* on the loop. *unused* closes a coroutine that may never be started."""

        def make_marked() -> Awaitable[Any]:
            self._mark(run, BEGUN)
            return make()

        def done(ok: bool, value: Any) -> None:
            if unused is not None:
                unused()
            # In a thread, because pickling may take long.
            try:
                self._threads.submit(partial(self._conclude_safely, run, ok, value))
            except Exception as error:
                self._fail(run, error, source="executor")

        run.cancel_coroutine = self._coroutine_loop().start(make_marked, context, done)
        if run.stopping:
            run.cancel_coroutine()

    def _coroutine_loop(self) -> CoroutineLoop:
        with self._lock:
            if self._loop is None:
                from wove.worker.coroutines import (
                    CoroutineLoop,
                )  # asyncio: only for those who need it

                self._loop = CoroutineLoop(name=f"{self._name}-loop")
            return self._loop

    def _conclude_safely(self, run: ExecutingRun, ok: bool, value: Any) -> None:
        try:
            self._conclude(run, ok, value)
        except BaseException as error:
            self._fail(run, error, source="executor")

    def _conclude(self, run: ExecutingRun, ok: bool, value: Any) -> None:
        self._mark(run, RETURNED)
        run.ticks.append(time.perf_counter())

        if ok:
            label = f"the result of task {run.task!r}"
            try:
                pickled = dumps(value, label=label)
                if not pickled.plain:
                    # Better an error here, with a name, than a result that its weave cannot unpickle.
                    loads(pickled, label=label)
            except Exception as error:
                self._fail(run, error, source="task", retryable=False)
            else:
                self._end(run, {"type": "task_result", **run.names, "result_pickle": pickled})
        elif run.stopping and _comes_of_stopping(value):
            self._stopped(run, value)
        else:
            self._fail(run, value, source="task")

    # --- stopping -------------------------------------------------------------------------------------------

    def _stop(self, run: ExecutingRun, why: str) -> None:
        with self._lock:
            if run.ended or run.stopping:
                return
            run.stopping = why
            queued = not run.begun

        if queued:
            self._stopped(run, None)
            return

        if run.section is not None:
            run.section.interrupt()
        if run.cancel_coroutine is not None:
            run.cancel_coroutine()

    def _stopped(self, run: ExecutingRun, interruption: BaseException | None) -> None:
        """End a run that was told to stop, and has stopped."""
        if run.stopping == "cancel":
            self._end(run, {"type": "task_cancelled", **run.names})
            return

        seconds = run.seconds or 0.0
        error = TaskTimeoutError(
            f"task {run.task!r} timed out: its worker stopped it after {seconds:g} s"
        )
        error.task, error.limit = run.task, run.seconds
        if interruption is not None:  # its traceback shows where the task was
            error.__traceback__ = interruption.__traceback__
        self._fail(run, error, source="task", retryable=True)

    # --- called by the timer --------------------------------------------------------------------------------

    def _expire(self, run: ExecutingRun) -> None:
        self._stop(run, "deadline")

    def _beat(self, run: ExecutingRun) -> None:
        if not run.ended:
            self._emit({"type": "heartbeat", **run.names})

    def _count(self) -> tuple[int, int]:
        return self._running, self._started

    def _report_blocked(self, running: int) -> None:
        with self._lock:
            run = next((run for run in self._runs.values() if run.begun and not run.ended), None)
        if run is not None:
            self._emit({"type": "heartbeat", **run.names, "blocked": True, "running": running})

    # --- endings --------------------------------------------------------------------------------------------

    def _fail(
        self, run: ExecutingRun, error: BaseException, *, source: str, retryable: bool | None = None
    ) -> None:
        fields = from_exception(error, task=run.task, source=source, retryable=retryable)
        self._end(run, {"type": "task_error", **run.names, **fields, "python": PYTHON})

    def _end(self, run: ExecutingRun, event: dict[str, Any]) -> None:
        """End a run with its terminal event. The first one of a run is the only one."""
        with self._lock:
            if run.ended:
                return
            run.ended = True
            # Before the end is reported: the sender may then send a run of the same id.
            del self._runs[run.run_id]
            self._ending += 1
            if run.begun:
                self._running -= 1

        if run.heartbeat_seconds is not None or run.seconds is not None:
            self._timer.drop(run)
        if run.reports is not None:
            run.reports.close()
            self._report_timer.drop(run.reports)
        timing = run.timing(time.perf_counter())
        if timing is not None:
            event["timing"] = timing
        self._emit(event)
        with self._lock:
            self._ending -= 1
            if self._closed and self._is_empty():
                self._empty.notify_all()

    def _emit(self, event: dict[str, Any]) -> None:
        try:
            self._emit_event(event)
        except Exception as error:
            _log.exception("cannot send %s of run %s", event["type"], event["run_id"])
            if event["type"] in TERMINAL:
                self._emit_substitute(event, error)

    def _emit_substitute(self, event: dict[str, Any], error: Exception) -> None:
        """Report the end of the run of *event* in fewer bytes, because *event* could not be sent."""
        size = sum(part.size for part in event.values() if isinstance(part, Pickled))
        report: dict[str, Any] = {
            "kind": type(error).__name__,
            "message": f"its worker could not send the end of it ({event['type']}, {size} bytes): {error}",
            "retryable": False,
            "source": "executor",
        }
        names: dict[str, Any] = {name: event[name] for name in ("run_id", "task_id")}
        try:
            self._emit_event({"type": "task_error", **names, "error": report, "python": PYTHON})
        except Exception:
            _log.exception("cannot send that run %s has ended", event["run_id"])

    def _shared_of(self, frame: Mapping[str, Any], run: ExecutingRun) -> SharedValues | None:
        shared_id = frame.get("shared_id")
        if not isinstance(shared_id, str):
            return None
        pickled = frame.get("shared_pickle")

        with self._lock:
            kept = self._shared_values.get(shared_id)
            if isinstance(pickled, Pickled):
                kept = kept or SharedValues(pickled)
                self._shared_values.put(shared_id, kept, pickled.size)

        if kept is None:
            raise FrameError(
                f"the frame of task {run.task!r} comes without its shared arguments", run.run_id
            )

        return kept

    def _callable_of(self, frame: Mapping[str, Any], run: ExecutingRun) -> SharedCallable:
        pickled, callable_id = frame.get("callable_pickle"), frame.get("callable_id")
        if not isinstance(pickled, Pickled):
            known = self._callables.get(callable_id) if isinstance(callable_id, str) else None
            if known is None:
                raise FrameError(
                    f"the frame of task {run.task!r} comes without its callable", run.run_id
                )
            return known

        if not isinstance(callable_id, str):
            return SharedCallable(pickled)
        return self.shared(callable_id, pickled) or SharedCallable(pickled)


def _comes_of_stopping(error: BaseException) -> bool:
    """Return whether *error* is the exception that stops a task, or was raised because of it."""
    asyncio: Any = sys.modules.get(
        "asyncio.exceptions"
    )  # a worker without coroutines does not load it
    stops = (TaskInterrupted, asyncio.CancelledError) if asyncio else TaskInterrupted
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if isinstance(link, stops):
            return True
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            pending += (link.__cause__, link.__context__)

    return False
