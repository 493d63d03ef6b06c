"""Calls from any thread into one loop, many for one wake-up."""

from __future__ import annotations

from _thread import RLock
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["LoopMailbox", "post_to"]

MAX_AT_A_TIME: Final = 100
"""Maximum number of calls in one turn of the loop: what they have written goes out after it."""


def post_to(loop: asyncio.AbstractEventLoop, fn: Callable[..., object], *args: Any) -> bool:
    """Have ``fn(*args)`` called on *loop*, from any thread. For single calls; a `LoopMailbox` takes many.

    Returns:
        Whether the call has been scheduled. False means that the loop is closed, so that nothing waits there any more.
    """
    try:
        loop.call_soon_threadsafe(fn, *args)
    except RuntimeError:
        return False

    return True


class LoopMailbox:
    """Makes calls on *loop*, in the order in which they were posted.

    Posting is thread-safe, acquires no lock, and wakes the loop once, however many calls wait. The calls have an empty
    context: tasks that they start may live long, and would keep the values of the poster's context alive.

    Attributes:
        loop: Where the calls are made.
    """

    __slots__ = ("_calls", "_closed", "_closing", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Each call is a list [fn, args], emptied when it is made, so that its poster can see whether it was made.
        self._calls: deque[list[Any]] = deque()
        self._woken = False
        self._closed = False
        self._closing = RLock()  # a call made while closing may post again

    def post(self, fn: Callable[..., object], *args: Any) -> bool:
        """Have ``fn(*args)`` called on the loop. Exceptions go to the loop's exception handler.

        Returns:
            Whether the call will be made. False means that the mailbox or its loop is closed.
        """
        call = [fn, args]
        self._calls.append(call)
        if self._closed:
            return self._was_made(call)
        return self._woken or self._wake_once() or self._was_made(call)

    def post_from(
        self, loop: asyncio.AbstractEventLoop, fn: Callable[..., object], *args: Any
    ) -> None:
        """Do as `post`, for code that runs on another *loop*: the wake-up waits for the end of that loop's turn.

        The calls that are posted in one turn then cost one wake-up together, and the two threads do not contend
        for the interpreter after each of them.
        """
        self._calls.append([fn, args])
        if not self._woken:
            self._woken = True
            loop.call_soon(self._wake)

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._drain, context=Context())
        except RuntimeError:  # the loop is closed: nothing waits there any more
            self._closed = True

    def _wake_once(self) -> bool:
        """Wake the loop, which was not woken yet; return whether that was possible."""
        self._woken = True
        self._wake()
        return not self._closed

    def close(self) -> None:
        """Make the calls that wait, and refuse new ones. To be called on the loop's own thread."""
        with self._closing:
            self._closed = True
            self._make(len(self._calls))

    def _was_made(self, call: list[Any]) -> bool:
        # The post and the last drain may have overlapped; after the lock is free, that drain is over.
        with self._closing:
            return not call

    def _drain(self) -> None:
        # First the flag, then the calls: a call posted in between only wakes the loop once more.
        self._woken = False
        if self._closed:  # the posters of the remaining calls were told so
            return
        self._make(min(len(self._calls), MAX_AT_A_TIME))
        if self._calls:
            self._woken = True
            self.loop.call_soon(self._drain, context=Context())

    def _make(self, count: int) -> None:
        calls = self._calls

        while count and calls:  # one of the calls may close this mailbox, which empties it
            count -= 1
            call = calls.popleft()
            fn, args = call
            call.clear()
            try:
                fn(*args)
            except Exception as error:  # one call must not cost the others their turn
                self.loop.call_exception_handler(
                    {"message": f"wove: {fn!r} failed", "exception": error}
                )
