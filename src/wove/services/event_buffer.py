"""The events of one run at a worker service, between its queue and the reply to its client."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from wove.protocol.frames import TERMINAL
from wove.protocol.waiting import add_waiting

__all__ = ["PATIENCE_SECONDS", "ClientGone", "EventBuffer"]

PATIENCE_SECONDS: Final = 0.05
"""How long the end of a run is waited for before its events are streamed. Most runs end sooner, and streaming costs
packets."""


class ClientGone(Exception):
    """The client has closed the connection."""


class EventBuffer:
    """Collects the events of a run for the reply that carries them. For one loop.

    Attributes:
        over: Whether the run has ended.
        streams: Whether events are sent as they come. Otherwise heartbeats are dropped: they say nothing in a reply
            that comes at the end.
    """

    __slots__ = ("_events", "_for_end", "_gone", "_waiter", "over", "streams")

    def __init__(self) -> None:
        self.over = self.streams = False
        self._events: list[dict[str, Any]] = []
        self._for_end = True
        self._gone = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event of the run."""
        kind = event["type"]
        if kind == "heartbeat" and (
            not self.streams or (self._events and self._events[-1]["type"] == "heartbeat")
        ):
            return  # one is enough for a client that reads slowly

        add_waiting(self._events, event)
        if kind in TERMINAL:
            self.over = True
        if self.over or not self._for_end:
            self._wake()

    def take(self) -> list[dict[str, Any]]:
        """Return the events that have not been taken, and remove them."""
        events, self._events = self._events, []
        return events

    def leave(self) -> None:
        """Note that the client has gone."""
        self._gone = True
        self._wake()

    async def wait_for_end(self, seconds: float | None = None) -> None:
        """Wait until the run has ended, at most *seconds*.

        Raises:
            ClientGone: The client has gone.
        """
        if not self.over:
            self._for_end = True
            await self._wait(seconds)

    async def wait_for_event(self) -> None:
        """Wait until there is an event to take.

        Raises:
            ClientGone: The client has gone.
        """
        if not self._events:
            self._for_end = False
            await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._wake)

        try:
            if not self._gone:
                await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

        if self._gone and not self.over:
            raise ClientGone

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
