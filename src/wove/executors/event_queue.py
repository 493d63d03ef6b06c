"""Events on their way to the one who awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from wove.executors.base import Frame

__all__ = ["EventQueue"]


class EventQueue:
    """Events for an executor's `recv`: all that there are, as soon as there is one. For one loop."""

    __slots__ = ("_events", "_reader")

    def __init__(self) -> None:
        self._events: list[Frame] = []
        self._reader: asyncio.Future[None] | None = None

    def put(self, events: Sequence[Frame]) -> None:
        """Add *events*, in their order."""
        self._events.extend(events)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> list[Frame]:
        """All events since the last call; waits until there is one."""
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        events, self._events = self._events, []
        return events
