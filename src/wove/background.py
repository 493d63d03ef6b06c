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
from typing import TYPE_CHECKING, Any, BinaryIO

from wove.engine.loops import run_blocking
from wove.engine.threads import start_thread
from wove.errors import WeaveStateError

if TYPE_CHECKING:
    from wove.engine.execution import Execution
    from wove.result import WoveResult

__all__ = ["Background", "Detached", "Threaded", "report", "report_awaiting"]

_log = logging.getLogger("wove")


OnDone = Callable[["WoveResult"], Any]


class Background(abc.ABC):
    """A weave that runs in the background, as the program that started it sees it."""

    def done(self) -> bool:
        """Whether it has ended."""
        return self.wait(0)

    @abc.abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Wait for at most *timeout* seconds; whether it has ended."""

    @abc.abstractmethod
    def result(self) -> WoveResult | None:
        """Its result, or ``None`` while it runs."""

    async def launched(self) -> None:  # noqa: B027 - a thread is launched at once
        """Return when it does not need this process any more."""


class Threaded(Background):
    """A weave in a thread of its own. Not a daemon: a script that ends meanwhile still finishes it."""

    def __init__(self, execution: Execution, on_done: OnDone | None) -> None:
        self._execution = execution
        self._on_done = on_done
        self._result: WoveResult | None = None
        self._thread = threading.Thread(target=self._work, name="wove-background")
        self._thread.start()

    def _work(self) -> None:
        self._result = self._execution.context.copy().run(_run, self._execution, self._on_done)

    def wait(self, timeout: float | None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def result(self) -> WoveResult | None:
        return self._result


def _run(execution: Execution, on_done: OnDone | None) -> WoveResult:
    """Run *execution* to its end, and tell *on_done* or the log: there is nobody to raise to."""
    try:
        if execution.plan.error is not None:
            raise execution.plan.error
        run_blocking(execution.make_run)
        result = execution.result()
        assert result is not None
    except BaseException as error:  # a plan that is wrong, or an environment that does not exist
        result = execution.failed(error)
    if on_done is not None:
        report(on_done, result)
    elif result.exception is not None:
        _log.error("a weave in the background failed: %r", result.exception, exc_info=result.exception)
    return result


def report(on_done: Callable[[WoveResult], Any], result: WoveResult) -> None:
    """Call *on_done* and see it through, where no loop may be used; what it raises is logged."""
    try:
        outcome = on_done(result)
        if inspect.isawaitable(outcome):
            _run_to_its_end(outcome)
    except Exception:
        _log.exception("on_done failed")


async def report_awaiting(on_done: Callable[[WoveResult], Any], result: WoveResult) -> None:
    """`report`, in a coroutine."""
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
    """A process that is meant to outlive us: no warning when we end first."""

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        return


class Detached(Background):
    """A weave in a process of its own, in a session of its own.

    Raises:
        SerializationError: A task or value cannot be pickled.
        MissingDispatchFeatureError: cloudpickle is not installed.
    """

    def __init__(self, execution: Execution, on_done: OnDone | None) -> None:
        from wove.protocol.pickling import dumps

        self._weave = dumps((execution, on_done), what="a weave with fork=True")
        self._ended = threading.Event()
        self._launched = threading.Event()
        self._error: BaseException | None = None
        start_thread(self._watch)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._launched.wait()
            self._raise()

    def _watch(self) -> None:
        try:
            process = self._start()
        except BaseException as error:  # raised in the thread of the block
            self._error = error
        else:
            self._launched.set()
            process.wait()
        self._launched.set()
        self._ended.set()

    def _start(self) -> _Process:
        process = _Process(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _BOOT], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(pickle.dumps([os.path.abspath(entry) for entry in sys.path]))
            for chunk in self._weave.chunks:
                stdin.write(chunk)
        return process

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def launched(self) -> None:
        loop = asyncio.get_running_loop()
        launched: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not launched.done():
                launched.set_result(None)

        def watch() -> None:
            self._launched.wait()
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(tell)

        start_thread(watch)
        await launched
        self._raise()

    def wait(self, timeout: float | None) -> bool:
        return self._ended.wait(timeout)

    def result(self) -> WoveResult | None:
        raise WeaveStateError(
            "the results of a weave with fork=True stay in its own process: hand them on with on_done"
        )


def run_detached(stream: BinaryIO) -> None:
    """In the detached process: read a weave from *stream*, and run it to its end."""
    from wove.protocol.pickling import loads
    from wove.settings import install

    logging.basicConfig()
    execution, on_done = loads(stream.read(), what="a weave with fork=True")
    install(execution.configuration)
    _run(execution, on_done)
