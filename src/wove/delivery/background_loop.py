"""Wove's background loop: one daemon thread, started on first use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from wove.concurrency import thread_pool
from wove.concurrency.mailbox import LoopMailbox
from wove.errors import DeliveryError

__all__ = ["BackgroundLoop"]

logger = logging.getLogger("wove")


_Addresses: TypeAlias = list[tuple[Any, ...]]


class _Loop(asyncio.SelectorEventLoop):
    """A loop that a forked child, where its thread does not exist, can drop without a warning.

    It looks up names in threads of Wove's own. asyncio would use its default executor. At its end, the interpreter
    waits for those threads, also while a name server does not answer.
    """

    dropped = False

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002  # the name is asyncio's
        proto: int = 0,
        flags: int = 0,
    ) -> _Addresses:
        look_up = thread_pool.names.call(socket.getaddrinfo, host, port, family, type, proto, flags)
        return list(await look_up)

    def __del__(self, *args: Any) -> None:
        if not self.dropped:
            super().__del__(*args)


class BackgroundLoop:
    """A loop in a daemon thread of its own.

    Attributes:
        mailbox: Posts calls to the loop, from any thread.
        loop: The loop, for code that runs on it.

    Raises:
        DeliveryError: The interpreter is ending.
    """

    def __init__(self) -> None:
        # Our own selector, because a forked child must close its copy without telling the loop: the loop
        # would remove the parent's descriptors from what the kernel sees as one shared set.
        self._selector = selectors.DefaultSelector()
        self.loop = _Loop(self._selector)
        # For asyncio's debug mode: starting a process takes longer than its usual 0.1 s, and is not worth a warning.
        self.loop.slow_callback_duration = 1.0
        self.mailbox = LoopMailbox(self.loop)
        # Not from a pool: it runs the loop until `stop`, which joins it.
        self._thread = threading.Thread(target=self._run, name="wove-background-loop", daemon=True)

        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise DeliveryError(
                "nothing can leave this process any more: the interpreter is ending, and starts no threads"
            ) from error

    def stop(self, farewell: Callable[[], Coroutine[Any, Any, None]], timeout: float) -> None:
        """Run *farewell* on the loop, then end the loop and its thread.

        Waits at most *timeout* seconds for that, and not at all when called on the loop itself.
        """
        self.mailbox.post(self._begin_stop, farewell)

        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                logger.warning(
                    "wove.shutdown(): the background loop did not end within %g s", timeout
                )

    def abandon(self) -> None:
        """Release everything in a forked child, where the thread does not exist."""
        self.loop.dropped = True
        self._selector.close()

        for name in (
            "_ssock",
            "_csock",
        ):  # the loop's own wake-up; CPython has called them so since 3.4
            sock = getattr(self.loop, name, None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.close()

        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio.gather does the same

    def _begin_stop(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self.loop.create_task(farewell())
        task.add_done_callback(lambda _: self.loop.stop())

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)

        try:
            loop.run_forever()
        finally:
            self.mailbox.close()
            try:
                loop.run_until_complete(_finish())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


async def _finish() -> None:
    """End what is still running on the loop, as `asyncio.run` does, but within bounds."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await loop.shutdown_asyncgens()
            await loop.shutdown_default_executor()
