"""The body of a request, and the memory that is reserved for it."""

from __future__ import annotations

from collections.abc import Callable

from wove.concurrency.limiter import CapacityLimiter, Reservation
from wove.net.chunk_buffer import ChunkBuffer

__all__ = ["Body"]


class Body:
    """The part of a body that has arrived.

    Unless the whole body has arrived with its head, its bytes are reserved before they are read.

    Attributes:
        limiter: Limits the bytes of bodies. This body holds a part of it, or waits for one; ``None``: neither.
    """

    __slots__ = ("_bytes", "_held", "_reservation", "limiter")

    def __init__(self) -> None:
        self.limiter: CapacityLimiter | None = None
        self._bytes = ChunkBuffer()
        self._held = 0  # bytes of the limiter
        self._reservation: Reservation | None = None  # while it waits

    def reserve(self, limiter: CapacityLimiter, size: int, ready: Callable[[], object]) -> bool:
        """Return whether *size* bytes are reserved at once. Otherwise *ready* is called when they are."""
        self.limiter = limiter

        def granted() -> None:
            self._reservation = None
            self._held = size
            ready()

        self._reservation = limiter.acquire(granted, amount=size)
        if self._reservation is None:
            self._held = size
        return self._reservation is None

    def add(self, piece: bytes) -> None:
        """Append *piece*."""
        self._bytes.add(piece)

    def take(self) -> list[bytes]:
        """Remove and return all bytes, in chunks. They stay reserved until `release` is called."""
        return self._bytes.take()

    def release(self) -> None:
        """Release what is reserved, or stop waiting for it."""
        limiter, held, reservation = self.limiter, self._held, self._reservation
        self.limiter, self._held, self._reservation = None, 0, None
        if limiter is not None and reservation is not None:
            limiter.withdraw(reservation)
        elif limiter is not None and held:
            limiter.release(held)

    def drop(self) -> None:
        """Drop all bytes, and release what is reserved."""
        self._bytes = ChunkBuffer()
        self.release()
