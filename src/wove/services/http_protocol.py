"""The HTTP connections of ``wove worker http``: uvicorn's, with limits of what a stranger may cost.

Importing this module needs uvicorn and httptools.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wove.net.connections import Connections
from wove.net.keepalive import UNREAD_SECONDS
from wove.services.asgi import RECOGNIZED

__all__ = ["limited_protocol"]

HEAD_SECONDS: Final = 10.0
"""How long the head of a request may take, and how long a new connection may be silent."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""Maximum size of a request's head, and of everything else that is not a body. uvicorn has no limit."""

MAX_PIPELINED: Final = 8
"""Requests that may wait on a connection for the reply to one before them. Wove's own clients send none."""

LOOK_SECONDS: Final = 2.5
"""How often it is looked at whether a limit has passed."""

MIN_BYTES_PER_SECOND: Final = 1024
"""How fast a client must read its reply, on average over `UNREAD_SECONDS`."""


def limited_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Return a protocol for uvicorn whose connections count among *connections*."""

    class LimitedProtocol(HttpToolsProtocol):
        _head_since: float | None  # None: no head is being waited for
        _unframed = 0  # bytes since the last piece of a body, or the last complete head
        _unread: tuple[float, int] | None = None  # since when, and how many bytes, a reply waits
        _look: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_since = self.loop.time()
            self._look = self.loop.call_later(LOOK_SECONDS, self._check_limits)
            connections.arrived(self, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.left(self)
            if self._look is not None:
                self._look.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._head_since is None and not self._is_serving():
                self._head_since = self.loop.time()
            self._unframed += len(data)
            super().data_received(data)
            if self._unframed > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"a head has at most {MAX_HEAD_BYTES} bytes here")
            elif len(self.pipeline) > MAX_PIPELINED:
                self.transport.abort()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            scope: Any = self.scope
            scope[RECOGNIZED] = self._recognized

        def on_headers_complete(self) -> None:
            self._head_since = None
            self._unframed = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._unframed = 0
            super().on_body(body)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = (self.loop.time(), self.transport.get_write_buffer_size())

        def resume_writing(self) -> None:
            self._unread = None
            super().resume_writing()

        def _is_serving(self) -> bool:
            cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
            return cycle is not None and not cycle.response_complete

        def _recognized(self) -> None:
            connections.recognized(self)

        def _check_limits(self) -> None:
            if self.transport.is_closing() and self._unread is None:
                return
            now = self.loop.time()
            if self._head_since is not None and now - self._head_since >= HEAD_SECONDS:
                self.transport.close()
                return

            if self._unread is not None:
                since, size = self._unread
                left = self.transport.get_write_buffer_size()
                if now - since >= UNREAD_SECONDS:
                    if size - left < MIN_BYTES_PER_SECOND * UNREAD_SECONDS:
                        self.transport.abort()
                        return
                    self._unread = (now, left)

            self._look = self.loop.call_later(LOOK_SECONDS, self._check_limits)

    return LimitedProtocol
