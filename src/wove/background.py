"""Weaves that run while the program goes on: in a thread, or in a detached process."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import inspect
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO

from wove.engine.loops import run_blocking
from wove.engine.scheduler import CURRENT
from wove.engine.threads import start_thread
from wove.errors import WeaveStateError
from wove.graph.options import suggest

if TYPE_CHECKING:
    from wove.engine.completions import ResultStream
    from wove.engine.execution import Execution
    from wove.result import WoveResult

__all__ = ["Background", "Detached", "Threaded", "report", "report_awaiting"]

_log = logging.getLogger("wove")


OnDone = Callable[["WoveResult"], Any]


class Background(abc.ABC):
    """A weave in the background, as seen by the program that started it."""

    @abc.abstractmethod
    def launch(self) -> None:
        """Start the weave."""

    async def launch_awaiting(self) -> None:
        """Start the weave without blocking the loop."""
        self.launch()

    def done(self) -> bool:
        """Return whether the weave has ended."""
        return self.wait(0)

    @abc.abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Wait at most *timeout* seconds for the end of the weave, and return whether it has ended."""

    @abc.abstractmethod
    def result(self) -> WoveResult | None:
        """Return its result, or ``None`` while it runs."""


class Threaded(Background):
    """A weave in a thread of its own, not a daemon: a script that ends meanwhile still finishes the weave."""

    def __init__(self, execution: Execution, on_done: OnDone | None) -> None:
        self._execution = execution
        execution.log_completions()
        self._on_done = on_done
        self._result: WoveResult | None = None
        # Not `Thread.join`, which takes a thread for ended when Ctrl-C interrupts it (until 3.13).
        self._ended = threading.Event()
        # Not from a pool: the threads there are daemons.
        self._thread = threading.Thread(target=self._work, name="wove-background")

    def launch(self) -> None:
        _hold_exit()
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:  # the system has no more threads, or the interpreter is ending
            _running.discard(self)
            raise

    def _work(self) -> None:
        try:
            self._result = self._execution.context.copy().run(self._in_context)
        finally:
            _running.discard(self)
            self._ended.set()

    def _in_context(self) -> WoveResult:
        # It belongs to no other weave any more: the weave that starts it may end first.
        CURRENT.set(None)
        return _run(self._execution, self._on_done)

    def stream(self, name: str, *, ordered: bool) -> ResultStream:
        """Return the results of the map *name* as they come.

        Raises:
            ValueError: There is no map of that name, or it has ``keep=False``.
        """
        from wove.engine.completions import ResultStream  # here, because most weaves do without

        logs = self._execution.logs
        if name not in logs:
            raise ValueError(
                f"w.stream: {name!r} is not a mapped task of this weave whose results are kept."
                f"{suggest(name, logs)} There are: {', '.join(logs) or 'none'}"
            )
        return ResultStream(logs[name], ordered=ordered)

    def wait(self, timeout: float | None) -> bool:
        if (
            self._thread is threading.current_thread()
        ):  # called in on_done, which is a part of the weave
            return False
        return self._ended.wait(timeout)

    def result(self) -> WoveResult | None:
        return self._result


_running: set[Threaded] = set()
"""The weaves that run in threads."""

_holds_exit = False


def _hold_exit() -> None:
    """Have the interpreter wait for weaves in the background before it begins to shut down.

    It waits for their threads anyway, but by then `concurrent.futures` takes no more work, which
    `asyncio.to_thread` and every name lookup of a coroutine need.
    """
    global _holds_exit
    if _holds_exit:
        return
    import_module(
        "concurrent.futures.thread"
    )  # functions that are registered last are called first
    register: Callable[[Callable[[], None]], None] | None = getattr(
        threading, "_register_atexit", None
    )
    if register is not None:
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down already
            register(_wait_for_all)

    _holds_exit = True


def _wait_for_all() -> None:
    while _running:
        _running.pop().wait(None)


def _run(execution: Execution, on_done: OnDone | None) -> WoveResult:
    """Run *execution* to its end, and report the outcome to *on_done* or to the log: no caller is there to catch it."""
    try:
        if execution.plan.error is not None:
            raise execution.plan.error
        if (check := execution.preflight()) is not None:
            check()
        run_blocking(execution.make_run)
        result = execution.result()
        assert result is not None
    except BaseException as error:  # the plan is wrong, or an environment does not exist
        result = execution.failed(error)

    for log in execution.logs.values():
        log.close(result)
    if on_done is not None:
        try:
            report(on_done, result)
        except BaseException:  # a SystemExit has nothing to end here
            _log.exception("on_done failed")
    elif result.exception is not None:
        _log.error(
            "a weave in the background failed: %r", result.exception, exc_info=result.exception
        )

    return result


def report(on_done: Callable[[WoveResult], Any], result: WoveResult) -> None:
    """Call *on_done* and await its result, where no loop may be used. Log what it raises."""
    try:
        outcome = on_done(result)
        if inspect.isawaitable(outcome):
            _run_to_its_end(outcome)
    except Exception:
        _log.exception("on_done failed")


async def report_awaiting(on_done: Callable[[WoveResult], Any], result: WoveResult) -> None:
    """Call *on_done* as `report` does, from a coroutine."""
    try:
        outcome = on_done(result)
        if inspect.isawaitable(outcome):
            await outcome
    except Exception:
        _log.exception("on_done failed")


def _run_to_its_end(awaitable: Any) -> None:
    async def main() -> None:
        await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main())
        return

    ended = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # raised below, in the thread of the block
            failed.append(error)
        finally:
            ended.set()

    start_thread(work)
    ended.wait()
    if failed:
        raise failed[0]


# ---------------------------------------------------------------------- detached processes

_BOOT = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from wove.background import run_detached; run_detached(sys.stdin.buffer)"
)


class _Process(subprocess.Popen[bytes]):
    """A process that is meant to outlive this one: no warning where this one ends first."""

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        return


class Detached(Background):
    """A weave in a process of its own, in a session of its own.

    `launch` raises `SerializationError` where a task or value cannot be pickled, and
    `MissingDispatchFeatureError` where cloudpickle is not installed.
    """

    def __init__(self, execution: Execution, on_done: OnDone | None) -> None:
        self._weave = (execution, on_done)
        self._launched: Future[None] = Future()
        self._ended = threading.Event()

    def launch(self) -> None:
        start_thread(self._work)
        self._launched.result()

    async def launch_awaiting(self) -> None:
        start_thread(self._work)  # in a thread: a large value takes long to pickle
        await asyncio.wrap_future(self._launched)

    def _work(self) -> None:
        try:
            process = self._start()
        except BaseException as error:  # raised in the thread of the block
            self._ended.set()
            self._launched.set_exception(error)
            return

        self._launched.set_result(None)
        process.wait()
        self._ended.set()

    def _start(self) -> _Process:
        from wove.executors.stdio.process import interpreter_flags
        from wove.protocol.pickling import dumps

        pickled = dumps(self._weave, label="a weave with fork=True")
        del self._weave
        command = [sys.executable, *interpreter_flags(), "-c", _BOOT]
        process = _Process(command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(pickle.dumps([os.path.abspath(entry) for entry in sys.path]))
            for chunk in pickled.chunks:
                stdin.write(chunk)

        return process

    def wait(self, timeout: float | None) -> bool:
        return self._ended.wait(timeout)

    def result(self) -> WoveResult | None:
        raise WeaveStateError(
            "the results of a weave with fork=True stay in its own process: hand them on with on_done"
        )


def run_detached(stream: BinaryIO) -> None:
    """Read a weave from *stream* and run it to its end. Called in the detached process."""
    from wove.protocol.pickling import loads
    from wove.settings import install

    logging.basicConfig()
    execution, on_done = loads(stream.read(), label="a weave with fork=True")
    install(execution.configuration)
    _run(execution, on_done)
