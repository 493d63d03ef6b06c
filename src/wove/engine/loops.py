"""Chooses the loop of a weave: the running one, one that is kept for the thread, or one on a helper thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import warnings
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Protocol, Self

from wove.concurrency import forks
from wove.engine.threads import start_thread
from wove.errors import WeaveStateError, WoveWarning

__all__ = ["Runnable", "is_ours", "refuse_green_threads", "run_awaiting", "run_blocking"]


class Runnable(Protocol):
    """The part of a weave's run that this module uses."""

    context: Context

    def start(self) -> None: ...

    def start_without_loop(self) -> bool: ...

    def cancel(self, error: BaseException) -> None: ...

    def interrupt(self, error: BaseException) -> bool: ...

    def cancel_from_anywhere(self, error: BaseException) -> None: ...


Make = Callable[[AbstractEventLoop, Callable[[], object]], Runnable]
"""Makes the runnable, given its loop and what it calls when it has ended."""

BLOCKS_LOOP = (
    "a plain `with weave()` inside a running event loop blocks that loop until its tasks have ended: "
    "write `async with weave()`, or run the block in a thread (asyncio.to_thread)"
)

GREEN_THREADS = (
    "has replaced the threads of this process by green ones, and a weave needs real ones, because two "
    "event loops cannot run in one thread. Run this in a process with another kind of worker (threads "
    "or prefork), or leave the threads as they are"
)

CLEAN_UP_SECONDS = 5.0
"""How long tasks that user code left on the loop may take to end after they were cancelled."""

IDLE_THREADS_SECONDS = 0.2
"""How long a block waits for threads of `asyncio.to_thread`: idle ones end at once, others cannot be stopped."""


# The functions of `signal` make an enum of every number and handler. In a small weave, that would
# cost more than everything else that Ctrl-C needs.
_signals: Any = sys.modules.get("_signal", signal)


class _Kept(threading.local):
    """The loop of each thread, kept for its next weave, because making one costs more than a small weave."""

    def __init__(self) -> None:
        self.loop: AbstractEventLoop | None = None
        self.closer: _Closer | None = None


class _Closer:
    """Closes a loop when the thread that it was kept for ends, or when the interpreter does."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop: AbstractEventLoop | None = loop
        self.pid = os.getpid()

    def __del__(self) -> None:
        loop = self.loop
        if loop is not None and os.getpid() == self.pid and not loop.is_running():
            loop.close()


_kept = _Kept()
_inherited: list[Any] = []


def reset_after_fork() -> None:
    """Drop the loop in a forked child: its selector is shared with the parent, so it may not be used or closed."""
    _inherited.append((_kept.loop, _kept.closer))
    _kept.loop = _kept.closer = None


forks.after_in_child(forks.Phase.LOOPS, reset_after_fork)


def is_ours(loop: AbstractEventLoop) -> bool:
    """Return whether *loop*, which runs in this thread, is one of a sync weave, without code of the user's own."""
    return loop is _kept.loop


def run_blocking(make: Make) -> None:
    """Run what *make* makes until it has ended; the calling thread blocks.

    Inside a running loop it is run on a helper thread, and outside of notebooks a `WoveWarning` says
    that the loop stands still. Ctrl-C in the main thread cancels it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Not inside this clause: the error would become the context of the tasks' errors.
        run = _run_beside_asgiref if _is_thread_of_asgiref() else _run_here
    else:
        if not _is_notebook():
            warnings.warn(BLOCKS_LOOP, WoveWarning, stacklevel=3)
        run = _run_on_helper

    run(make)


def refuse_green_threads() -> None:
    """Refuse to run where threads are greenlets: all loops of the process would have to run in one thread.

    Raises:
        WeaveStateError: `gevent` or `eventlet` has replaced the threads.
    """
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        raise WeaveStateError(f"gevent {GREEN_THREADS} (monkey.patch_all(thread=False))")
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise WeaveStateError(f"eventlet {GREEN_THREADS} (eventlet.monkey_patch(thread=False))")


def _is_notebook() -> bool:
    """Return whether code runs cell by cell here, where nothing but the cell waits for the loop."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return True
    marimo: Any = sys.modules.get("marimo")
    return marimo is not None and bool(marimo.running_in_notebook())


def _is_thread_of_asgiref() -> bool:
    """Return whether `asgiref.sync.sync_to_async` runs the calling thread, as it does sync views of Django."""
    module: Any = sys.modules.get("asgiref.sync")
    if module is None:
        return False
    return getattr(module.SyncToAsync.threadlocal, "main_event_loop", None) is not None


def _run_beside_asgiref(make: Make) -> None:
    """Run on a loop of asgiref's, while the calling thread serves what the tasks send back to it.

    Inside such a thread, `sync_to_async` and the async ORM of Django want this very thread: a loop
    that blocks it would wait for ever.
    """
    module: Any = sys.modules["asgiref.sync"]
    executors = module.AsyncToSync.executors

    async def run() -> None:
        serving = executors.current

        def make_served(loop: AbstractEventLoop, finished: Callable[[], object]) -> Runnable:
            runnable = make(loop, finished)
            runnable.context.run(setattr, executors, "current", serving)
            return runnable

        await run_awaiting(make_served)

    module.AsyncToSync(run, force_new_loop=True)()


def _run_here(make: Make) -> None:
    loop = _kept.loop
    if loop is None or loop.is_closed():
        # The first loop of a process is made with a lock of asyncio held, which a forked child could not release.
        with forks.importing:
            loop = asyncio.new_event_loop()
        _kept.loop = loop
        _kept.closer = _Closer(loop)

    runnable = make(loop, partial(_stop, loop))

    try:
        with _Interrupts(runnable):
            if runnable.start_without_loop():
                return  # and nothing of the user's has seen the loop
            loop.run_forever()
    except BaseException as error:  # a second Ctrl-C, or what a signal handler of the user's raises
        _kept.loop = None  # should this happen again
        if not runnable.interrupt(error):
            loop.run_forever()
        _kept.loop = loop
        _tidy(loop)
        raise

    _tidy(loop)


def _tidy(loop: AbstractEventLoop) -> None:
    if not _clean(loop):
        _kept.loop = _kept.closer = None


def _stop(loop: AbstractEventLoop) -> None:
    if loop.is_running():  # otherwise the next run would stop at once
        loop.stop()


class _Interrupts:
    """Handles Ctrl-C while a weave blocks the main thread: the first one cancels the weave, the next one raises.

    As in `asyncio.Runner`, the first one never interrupts the loop in the middle of its own work.
    """

    __slots__ = ("pressed", "previous", "runnable")

    def __init__(self, runnable: Runnable) -> None:
        self.runnable = runnable
        self.pressed = False
        self.previous: Any = None

    def __enter__(self) -> None:
        if (
            threading.current_thread() is threading.main_thread()
            and _signals.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            with contextlib.suppress(ValueError):  # an embedded interpreter without signals
                self.previous = _signals.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, *exc_info: object) -> None:
        if self.previous is not None:
            _signals.signal(signal.SIGINT, self.previous)

    def _interrupt(self, signum: int, frame: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        self.runnable.cancel_from_anywhere(KeyboardInterrupt())


class _Deferred:
    """Handles Ctrl-C while a weave blocks the main thread inside a running loop.

    `asyncio.run` answers it by cancelling its task, which could act on that only after the block.
    What comes before `wait` is kept until then: by that time it can be seen to.
    """

    __slots__ = ("cancels", "pending", "previous", "task", "waiting")

    def __init__(self) -> None:
        self.task = asyncio.current_task()
        self.cancels = 0 if self.task is None else self.task.cancelling()
        self.pending: BaseException | None = None
        self.previous: Any = None
        self.waiting = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self.previous = handler
                try:
                    signal.signal(signal.SIGINT, self._interrupt)
                except ValueError:  # an embedded interpreter without signals
                    self.previous = None

        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def wait(self, ended: threading.Event) -> None:
        self.waiting = True
        if self.pending is not None:
            raise self.pending
        ended.wait()

    def _interrupt(self, signum: int, frame: object) -> None:
        try:
            self.previous(signum, frame)
            if self.task is not None and self.task.cancelling() > self.cancels:
                raise asyncio.CancelledError
        except BaseException as error:
            if self.waiting:
                raise
            self.pending = error


def _run_on_helper(make: Make) -> None:
    ended = threading.Event()
    made: list[Runnable] = []
    failed: list[BaseException] = []
    interrupted: list[BaseException] = []

    def remember(loop: AbstractEventLoop, finished: Callable[[], object]) -> Runnable:
        runnable = make(loop, finished)
        made.append(runnable)
        for error in interrupted:  # before there was anything to cancel
            runnable.cancel_from_anywhere(error)
        return runnable

    def work() -> None:
        try:
            _run_here(remember)
        except BaseException as error:  # raised below, in the thread of the block
            failed.append(error)
        finally:
            ended.set()

    with _Deferred() as interrupts:
        start_thread(work)
        try:
            interrupts.wait(ended)
        except BaseException as error:  # Ctrl-C
            interrupted.append(error)
            for runnable in made:
                runnable.cancel_from_anywhere(error)
            ended.wait()
            raise

    if failed:
        raise failed[0]


def _untouched(loop: Any) -> bool:
    """Return whether *loop* is one of asyncio's own, in the state in which it was made."""
    try:
        return (
            not loop._asyncgens
            and loop._default_executor is None
            and loop.get_task_factory() is None
            and loop.get_exception_handler() is None
            and not loop._signal_handlers
            and len(loop._selector.get_map()) == 1  # what wakes it
            and all(timer.cancelled() for timer in loop._scheduled)
        )
    except AttributeError:
        return False


def _clean(loop: AbstractEventLoop) -> bool:
    """End the tasks that user code left on *loop*, and return whether the loop can be used again."""
    if getattr(loop, "_ready", None):  # callbacks that are due; the next weave is not to run them
        loop.call_soon(loop.stop)
        loop.run_forever()

    left = asyncio.all_tasks(loop)
    if not left and _untouched(loop):
        return True
    # As at the end of asyncio.run: nothing of one weave may go on in the next.
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=CLEAN_UP_SECONDS))
        for task in left:
            if task.done() and not task.cancelled() and task.exception() is not None:
                loop.call_exception_handler(
                    {
                        "message": "unhandled exception at the end of a weave",
                        "exception": task.exception(),
                        "task": task,
                    }
                )

    loop.run_until_complete(loop.shutdown_asyncgens())

    if getattr(loop, "_default_executor", True) is None:
        loop.close()
    else:
        if _kept.closer is not None:
            _kept.closer.loop = None
        closed = threading.Event()
        start_thread(partial(_close_with_threads, loop, closed))
        closed.wait(IDLE_THREADS_SECONDS)

    return False


def _close_with_threads(loop: AbstractEventLoop, closed: threading.Event) -> None:
    """Close *loop*, on which nothing is left, as soon as the threads that its tasks have used have ended."""
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    closed.set()


async def run_awaiting(make: Make) -> None:
    """Run what *make* makes on the running loop until it has ended, also when the caller is cancelled."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    over = False

    def finished() -> None:
        nonlocal over
        over = True
        if not ended.done():
            ended.set_result(None)

    runnable = make(loop, finished)
    runnable.start()

    try:
        await ended
    except (
        GeneratorExit
    ) as error:  # the loop was closed under it, and nothing can be awaited any more
        runnable.cancel(error)
        raise
    except asyncio.CancelledError as error:
        runnable.cancel(error)
        while not over:
            ended = loop.create_future()
            with contextlib.suppress(
                asyncio.CancelledError
            ):  # it was cancelled already, and is ending
                await ended
        raise
