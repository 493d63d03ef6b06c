"""How many bytes of requests a service holds while they arrive, and who waits when there are more."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["ROOM_SECONDS", "ByteBudget", "Share"]

ROOM_SECONDS: Final = 20.0
"""How long a request may wait for room; then its sender is told that the service is busy."""


class ByteBudget:
    """Bytes that requests share while they arrive. For one loop.

    The oldest request always gets room, so that one gets done whatever the others hold. Together they hold at most
    *limit* bytes beside that one.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._shares: dict[Share, None] = {}  # the oldest first

    def open(self) -> Share:
        """Return the share of a request that begins to arrive. It must be closed."""
        share = Share(self)
        self._shares[share] = None
        return share

    def admits(self, share: Share, size: int) -> bool:
        """Return whether *share* may hold *size* more bytes now."""
        return self._held + size <= self._limit or share is next(iter(self._shares))

    def add(self, share: Share, size: int) -> None:
        """Note that *share* holds *size* more bytes."""
        share.held += size
        self._held += size

    def release(self, share: Share) -> None:
        """Take back what *share* holds, and let others have it. May be called twice."""
        if share not in self._shares:
            return
        del self._shares[share]
        self._held -= share.held

        for other in self._shares:
            if other.waiter is not None and not other.waiter.done():
                if not self.admits(other, other.wanted):
                    return
                self.add(other, other.wanted)
                other.waiter.set_result(None)


class Share:
    """The bytes that one request holds. Made by `ByteBudget.open`.

    Attributes:
        held: In bytes.
        wanted: The bytes that it waits for.
        waiter: Done when they are there.
    """

    __slots__ = ("_budget", "held", "waiter", "wanted")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0
        self.wanted = 0
        self.waiter: asyncio.Future[None] | None = None

    async def acquire(self, size: int) -> bool:
        """Return whether *size* more bytes may be held. Waits for room, at most `ROOM_SECONDS`."""
        budget = self._budget
        if budget.admits(self, size):
            budget.add(self, size)
            return True

        self.wanted = size
        self.waiter = asyncio.get_running_loop().create_future()

        try:
            await asyncio.wait({self.waiter}, timeout=ROOM_SECONDS)
            return self.waiter.done()
        finally:
            self.waiter = None

    def close(self) -> None:
        """Give everything back. May be called twice."""
        self._budget.release(self)
