"""One timer for the earliest of several limits."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Deadline"]


class Deadline:
    """Calls *expired* on *loop* when the time that *due* returns has come.

    The limits live where they change; *due* returns the earliest of them. It is asked again when the timer fires. So
    a limit that moves to later, as with each sign of life, costs no new timer.

    Args:
        loop: Everything here is called on this loop.
        due: Returns a time of `time.monotonic`; ``None`` while there is no limit.
        expired: Called without arguments, once for each call of `update` at most.
    """

    __slots__ = ("_due", "_expired", "_loop", "_timer", "_when")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        due: Callable[[], float | None],
        expired: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._due = due
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0  # of the timer

    def update(self) -> None:
        """Start or move the timer. To be called when a limit has been set, or has become earlier."""
        due = self._due()
        # A timer that is too early, or not needed any more, is left alone: it asks again when it fires.
        if due is not None and (self._timer is None or due < self._when):
            self.cancel()
            self._start(due)

    def cancel(self) -> None:
        """Stop the timer. `update` starts it again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, due: float) -> None:
        self._when = due
        self._timer = self._loop.call_later(max(0.0, due - monotonic()), self._check)

    def _check(self) -> None:
        self._timer = None
        due = self._due()
        if due is None:
            return
        # Not compared with the clock: a loop may call a timer early, by the resolution of its clock.
        if due > self._when:
            self._start(due)
        else:
            self._expired()
