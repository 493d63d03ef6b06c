"""The body of a request, and the room that it takes."""

from __future__ import annotations

from collections.abc import Callable

from wove.concurrency.limiter import CapacityLimiter, Reservation
from wove.net.chunk_buffer import ChunkBuffer

__all__ = ["Body"]


class Body:
    """The received part of a body. Unless all of it is there already, its bytes are reserved before they come.

    Attributes:
        room: Limits the bytes of bodies; this one has its share of it, or waits for that.
    """

    __slots__ = ("_bytes", "_held", "_turn", "room")

    def __init__(self) -> None:
        self.room: CapacityLimiter | None = None
        self._bytes = ChunkBuffer()
        self._held = 0  # bytes of *room*
        self._turn: Reservation | None = None

    def reserve(self, room: CapacityLimiter, size: int, ready: Callable[[], object]) -> bool:
        """Return whether *size* bytes are reserved at once. Otherwise *ready* is called when they are."""
        self.room = room

        def granted() -> None:
            self._turn = None
            self._held = size
            ready()

        self._turn = room.acquire(granted, amount=size)
        if self._turn is None:
            self._held = size
        return self._turn is None

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
            room.release(held)

    def drop(self) -> None:
        """Forget it."""
        self._bytes = ChunkBuffer()
        self.release()
