"""The connections of a WebSocket worker service: their number and the bytes that they hold are bounded.

The websockets package bounds each message, and not all of them together: it keeps a frame until it is complete, and
gives a message to the application frame by frame.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import Event

from wove.net.connections import Connections
from wove.services.byte_budget import ByteBudget, Share

__all__ = ["LimitedConnection", "limited_connection"]

logger = logging.getLogger("wove.service")

FREE_BYTES: Final = 64 * 1024
"""Number of bytes that each connection may hold beside the budget, so that small messages cost no accounting."""

TRY_AGAIN: Final = 1013
"""Close code "try again later" of IANA's registry for RFC 6455."""


class LimitedConnection(ServerConnection):
    """A connection that stops reading while the service holds too many bytes of incomplete messages.

    `limited_connection` makes the subclass for one service.
    """

    budget: ByteBudget
    connections: Connections

    _partial = 0  # bytes of a frame that is not complete
    _frames = 0  # bytes of frames whose message is not consumed
    _share: Share | None = None
    _waiting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.arrived(self, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.left(self)
        if self._waiting is not None:
            self._waiting.cancel()
        if self._share is not None:
            self._share.close()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._partial += len(data)
        super().data_received(data)
        self._account()

    def process_event(self, event: Event) -> None:
        self._partial = 0
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._frames += len(event.data)
        super().process_event(event)

    def consumed(self, size: int) -> None:
        """Note that the application has let go of a message of *size* bytes."""
        self._frames -= size
        if self._share is not None and self._waiting is None:
            # A new share, so that the next message queues behind those of other connections.
            self._share.close()
            self._share = None
            self._account()

    def _account(self) -> None:
        held = self._partial + self._frames
        if held <= FREE_BYTES and self._share is None:
            return

        share = self._share = self._share or self.budget.open()
        more = held - share.held
        if more <= 0:
            return
        if self._waiting is None and self.budget.admits(share, more):
            self.budget.add(share, more)
            return

        self.transport.pause_reading()
        if self._waiting is None:
            self._waiting = self.loop.create_task(self._wait(share, more))

    async def _wait(self, share: Share, size: int) -> None:
        """Read on when *share* may hold *size* more bytes."""
        admitted = await share.acquire(size)
        self._waiting = None

        if not admitted:
            logger.warning("a connection is closed: the service has no room for its message")
            await self.close(TRY_AGAIN, "this worker service has no room for more requests")
        elif not self.recv_messages.paused:  # the package resumes reading otherwise
            self.transport.resume_reading()


def limited_connection(budget: ByteBudget, connections: Connections) -> type[LimitedConnection]:
    """Return the class of the connections of one service.

    Args:
        budget: The bytes of incomplete messages that all connections may hold together.
        connections: Counts the connections.
    """
    return type(
        "LimitedConnection",
        (LimitedConnection,),
        {"budget": budget, "connections": connections},
    )
