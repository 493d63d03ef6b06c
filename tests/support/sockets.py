"""The service's side of a WebSocket, by hand, over a `tests.support.peers.Line`: also what no library would send."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from tests.support.peers import GoneError, Line, Request, events

__all__ = ["Socket", "accepted", "frame", "serve_sockets", "ws"]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def ws(url: str) -> str:
    """The URL of a `Peer`, for WebSockets."""
    return url.replace("http", "ws", 1)


def accepted(request: Request, subprotocol: str | None = None) -> bytes:
    """The answer to a handshake that makes it a WebSocket."""
    key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{chosen}\r\n"
    ).encode()


def frame(
    payload: bytes, opcode: int = TEXT, *, fin: bool = True, announced: int | None = None
) -> bytes:
    """One frame, unmasked; *announced* is the length that it claims."""
    size = len(payload) if announced is None else announced
    first = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        return first + bytes([size]) + payload
    if size < 1 << 16:
        return first + b"\x7e" + struct.pack("!H", size) + payload
    return first + b"\x7f" + struct.pack("!Q", size) + payload


class Socket:
    """A connection, after its handshake.

    Attributes:
        handshake: Its request.
        pongs: Whether pings are answered.
        closed: The close code that came.
    """

    def __init__(self, line: Line, subprotocol: str | None = None) -> None:
        self.line = line
        self.handshake = line.request()
        self.pongs = True
        self.closed: int | None = None
        self._buffer = b""
        line.send(accepted(self.handshake, subprotocol))

    def send(self, value: Any) -> None:
        """Send a message: bytes as they are, anything else as JSON."""
        self.line.send(frame(value if isinstance(value, bytes) else json.dumps(value).encode()))

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye, and wait for the client to."""
        self.line.send(frame(struct.pack("!H", code) + reason.encode(), CLOSE))
        self.until_gone()

    def command(self) -> dict[str, Any]:
        """The next command; the client must have sent it in a message of its own."""
        found = json.loads(self.message())
        assert isinstance(found, dict), "several commands in one message"
        return found

    def commands(self) -> Iterator[dict[str, Any]]:
        """All commands."""
        while True:
            found = json.loads(self.message())
            yield from found if isinstance(found, list) else [found]

    def message(self) -> bytes:
        """The next message; control frames are dealt with."""
        parts: list[bytes] = []
        while True:
            first, payload = self._frame()
            opcode = first & 15
            if opcode == CLOSE:
                self.closed = struct.unpack("!H", payload[:2])[0] if payload else 1005
                self.line.send(frame(payload, CLOSE))
                raise GoneError
            if opcode == PING and self.pongs:
                self.line.send(frame(payload, PONG))
            elif opcode in (0, TEXT, BINARY):
                parts.append(payload)
                if first & 0x80:
                    return b"".join(parts)

    def until_gone(self) -> None:
        while True:
            self.message()

    def _frame(self) -> tuple[int, bytes]:
        first, size = self._read(2)
        assert size & 0x80, "a client masks what it sends (RFC 6455, section 5.3)"
        size &= 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._read(8))
        mask = self._read(4)
        payload = self._read(size)
        whole = int.from_bytes(payload, "big") ^ int.from_bytes(
            (mask * (size // 4 + 1))[:size], "big"
        )
        return first, whole.to_bytes(size, "big")

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = self.line.raw.recv(1 << 16)
            except OSError:
                raise GoneError from None
            if not data:
                raise GoneError
            self._buffer += data
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


def serve_sockets(line: Line) -> None:
    """Be a good service for as long as the connection lasts: one that knows the plain form alone."""
    socket = Socket(line)
    while True:
        command = socket.command()
        if command["type"] == "run_task":
            for event in events(command):
                socket.send(event)
