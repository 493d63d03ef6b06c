"""Interrupts a sync call from another thread.

Python can raise an exception in another thread, but it arrives when that thread next runs bytecode: possibly
after the call has returned, in whatever the thread does then. So a call gets one interrupt at most, and its
thread does not leave :meth:`Interruptible.run` before it has arrived or been taken back.

It is a request. A call that waits in C code notices when it comes back to Python, code that catches
``BaseException`` may go on, and Python drops an exception that happens to arrive in a weakref callback, in
``__del__`` or in one of ``gc.callbacks``. A second attempt could not be kept from arriving too late; what must
stop for certain is stopped with its process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Interruptible", "TaskInterrupted"]


class TaskInterrupted(BaseException):
    """Raised inside a sync task that was cancelled, or whose time is up. Let it pass."""


class Interruptible:
    """One call, in the thread that makes this object."""

    __slots__ = ("_claim", "_sent", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        # Who pops the item first decides whether the call was interrupted or has finished: list.pop is atomic.
        self._claim = [None]
        self._sent = False

    def run(self, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Return ``(True, value)`` or ``(False, exception)``, whatever *call* raises.

        The exception is a :class:`TaskInterrupted` if the interrupt ended the call. If it came too late, the
        outcome is that of the call.
        """
        outcome: tuple[bool, Any] | None = None

        try:
            try:
                outcome = (True, call())
            except BaseException as error:
                outcome = (False, error)
            self._settle()
        except (
            TaskInterrupted
        ) as late:  # it arrived here and not in the call; there is no second one
            if outcome is None:
                outcome = (False, late)

        return outcome

    def interrupt(self) -> bool:
        """Raise :class:`TaskInterrupted` in the call, from another thread. Return False if the call had ended."""
        raise_in_thread = _raise_in_thread()
        if raise_in_thread is None:
            return False
        try:
            self._claim.pop()
        except IndexError:
            return False

        try:
            raise_in_thread(self._thread, TaskInterrupted)
        finally:
            self._sent = True

        return True

    def _settle(self) -> None:
        """Make sure that no interrupt arrives in this thread later. The interrupt itself may end this method."""
        try:
            self._claim.pop()
        except IndexError:
            pass
        else:
            return  # no interrupt was sent, and none will be

        try:
            while not self._sent:  # the sender is about to send it
                time.sleep(0)
            raise_in_thread = _raise_in_thread()
            if raise_in_thread is not None:
                raise_in_thread(self._thread, None)  # withdraws it if it has not arrived yet
        except TaskInterrupted:
            pass


def _raise_in_thread() -> Callable[[int, type[BaseException] | None], None] | None:
    """Return a function that sets the exception that a thread raises next; ``None`` withdraws it."""
    try:
        import ctypes
    except ImportError:  # a Python without it: calls run to their end
        return None

    def raise_in_thread(thread: int, kind: type[BaseException] | None) -> None:
        exception = None if kind is None else ctypes.py_object(kind)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)

    return raise_in_thread
