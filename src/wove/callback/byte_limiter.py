"""How many bytes of bodies may be on their way in at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["ByteLimiter", "Reservation"]


class Reservation:
    """A place in the queue for room.

    Attributes:
        size: Bytes.
    """

    __slots__ = ("ready", "size")

    def __init__(self, size: int, ready: Callable[[], object]) -> None:
        self.size = size
        self.ready: Callable[[], object] | None = ready


class ByteLimiter:
    """Bytes that are reserved before they come; who finds no room waits, first come, first served. For one loop.

    Attributes:
        limit: In bytes. What is larger than that gets in alone.
        held: Those that are reserved now.
    """

    __slots__ = ("_queue", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._queue: deque[Reservation] = deque()

    def resize(self, limit: int) -> None:
        """From now on the limit is another one."""
        self.limit = limit
        self._advance()

    def take(self, size: int) -> bool:
        """Whether there is room for *size* bytes at once, and nobody waits. If so, they are to be given back."""
        if self._queue or not self._fits(size):
            return False
        self.held += size
        return True

    def wait(self, size: int, ready: Callable[[], object]) -> Reservation:
        """Have *ready* called once *size* bytes are reserved."""
        turn = Reservation(size, ready)
        self._queue.append(turn)
        return turn

    def withdraw(self, turn: Reservation) -> None:
        """Wait no more. *turn* must not have come yet."""
        turn.ready = None
        self._advance()

    def give_back(self, size: int) -> None:
        """*size* bytes are free again."""
        self.held -= size
        self._advance()

    def _fits(self, size: int) -> bool:
        return self.held + size <= self.limit or not self.held

    def _advance(self) -> None:
        while self._queue:
            turn = self._queue[0]
            if turn.ready is not None:
                if not self._fits(turn.size):
                    return
                self.held += turn.size
            self._queue.popleft()
            if turn.ready is not None:
                turn.ready()
