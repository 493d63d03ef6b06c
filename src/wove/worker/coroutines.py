"""One event loop, in a thread of its own, for all coroutine tasks of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from wove.concurrency.mailbox import post_to

__all__ = ["CoroutineLoop"]

_log = logging.getLogger("wove.worker")


class CoroutineLoop:
    """A running event loop. All methods may be called from any thread.

    Args:
        name: Name of its thread.
    """

    def __init__(self, *, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = False
        # Not from a pool: it runs the loop until `close`, which joins it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(
        self,
        make: Callable[[], Awaitable[Any]],
        context: contextvars.Context,
        done: Callable[[bool, Any], None],
    ) -> Callable[[], None]:
        """Await what *make* returns.

        Args:
            make: Called on the loop.
            context: For the call and everything after it.
            done: Called once, on the loop: with ``True`` and the value, or ``False`` and the exception. It
                must neither raise nor block.

        Returns:
            A function that cancels it, to be called from any thread, at any time.
        """
        coroutine = _Coroutine(self._loop, make, context, done)
        self._loop.call_soon_threadsafe(coroutine.start)
        return coroutine.cancel

    def close(self, timeout: float) -> None:
        """Cancel all coroutines and end the thread. Wait at most *timeout* seconds for that."""
        self._closing = True
        post_to(self._loop, self._loop.stop)
        self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        while not self._closing:
            try:
                self._loop.run_forever()
            except BaseException:
                # SystemExit in a task that the user's coroutine started: asyncio lets it out of the loop.
                # It must not end the other coroutines.
                _log.exception("an exception went through the worker's event loop")

        remaining = asyncio.all_tasks(self._loop)
        for task in remaining:
            task.cancel()
        with contextlib.suppress(BaseException):
            self._loop.run_until_complete(asyncio.gather(*remaining, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())

        self._loop.close()


class _Coroutine:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], Awaitable[Any]],
        context: contextvars.Context,
        done: Callable[[bool, Any], None],
    ) -> None:
        self._loop = loop
        self._make = make
        self._context = context
        self._done: Callable[[bool, Any], None] | None = done
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def start(self) -> None:
        if self._cancelled:
            self._report(False, asyncio.CancelledError())
            return
        self._task = self._loop.create_task(self._run(), context=self._context)
        # A task that is cancelled before its first step never gets into `_run`.
        self._task.add_done_callback(lambda _: self._report(False, asyncio.CancelledError()))

    def cancel(self) -> None:
        post_to(self._loop, self._cancel)

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        # Nothing may leave here: asyncio would take a SystemExit for the end of the whole loop.
        try:
            value = await self._make()
        except BaseException as error:
            self._report(False, error)
        else:
            self._report(True, value)

    def _report(self, ok: bool, value: Any) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(ok, value)
