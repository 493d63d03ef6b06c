"""The body of a request, and its place in a room."""

from __future__ import annotations

from collections.abc import Callable

from wove.callback.byte_limiter import ByteLimiter, Reservation
from wove.net.chunk_buffer import ChunkBuffer

__all__ = ["Body"]


class Body:
    """What has come of a body. It may be there whole; else it has a place in a `ByteLimiter`, reserved before it comes.

    Attributes:
        room: Where it has its place, or waits for one.
    """

    __slots__ = ("_bytes", "_held", "_turn", "room")

    def __init__(self) -> None:
        self.room: ByteLimiter | None = None
        self._bytes = ChunkBuffer()
        self._held = 0  # there
        self._turn: Reservation | None = None

    def reserve(self, room: ByteLimiter, size: int, ready: Callable[[], object]) -> bool:
        """Whether there is a place for *size* bytes at once. Otherwise *ready* is called when there is."""
        self.room = room
        if room.take(size):
            self._held = size
            return True

        def come() -> None:
            self._turn = None
            self._held = size
            ready()

        self._turn = room.wait(size, come)
        return False

    def add(self, piece: bytes) -> None:
        """Append *piece*."""
        self._bytes.add(piece)

    def take(self) -> list[bytes]:
        """All of it, in chunks. Its place is still needed, until nothing more is done with them."""
        return self._bytes.take()

    def release(self) -> None:
        """Its place, or its turn, is for others."""
        room, held, turn = self.room, self._held, self._turn
        self.room, self._held, self._turn = None, 0, None
        if room is not None and turn is not None:
            room.withdraw(turn)
        elif room is not None and held:
            room.give_back(held)

    def drop(self) -> None:
        """Forget it."""
        self._bytes = ChunkBuffer()
        self.release()
