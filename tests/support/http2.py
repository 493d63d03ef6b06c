"""As much of HTTP/2 (RFC 9113) as it takes to answer gRPC calls in whatever way no library would.

>>> with Peer(lambda line: Calls(line).serve(answer)) as peer:
...     target = f"127.0.0.1:{peer.port}"
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.support.peers import GoneError, Line, events

__all__ = ["GRPC", "Calls", "Fault", "fields", "frame", "message"]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (section 4.1)."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def fields(*pairs: tuple[str, str]) -> bytes:
    """A block of header fields: literals of new names, not indexed and not compressed (RFC 7541, 6.2.2)."""
    block = b""
    for pair in pairs:
        block += b"\x00"
        for text in pair:
            assert len(text) < 127
            block += bytes([len(text)]) + text.encode()
    return block


GRPC = ((":status", "200"), ("content-type", "application/grpc"))


def message(body: bytes, announced: int | None = None) -> bytes:
    """A message of gRPC: its length (another one, if *announced*), and itself (grpc, doc/PROTOCOL-HTTP2.md)."""
    return b"\x00" + (len(body) if announced is None else announced).to_bytes(4, "big") + body


Fault = Callable[["Calls", int], object]
"""What is done to a call; it is given the stream."""


class Calls:
    """The calls of one connection."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._buffer = b""

    def headers(self, stream: int, *pairs: tuple[str, str], end: bool = False) -> None:
        self.send(HEADERS, END_HEADERS | (END if end else 0), stream, fields(*pairs))

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        self.send(DATA, END if end else 0, stream, payload)

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.line.send(frame(kind, flags, stream, payload))

    def answer(self, stream: int, command: dict[str, Any]) -> None:
        """As a good service."""
        self.headers(stream, *GRPC)
        self.data(stream, message(json.dumps({"events": events(command)}).encode()))
        self.headers(stream, ("grpc-status", "0"), end=True)

    def serve(self, fault: Fault, times: int = 1_000_000) -> None:
        """Do *fault* to the task ``bad``, *times* times, and answer every other, until the client has gone."""
        self._read(len(PREFACE))
        self.send(SETTINGS, 0, 0)
        bodies: dict[int, bytes] = {}
        while True:
            head = self._read(9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            payload = self._read(size)
            if kind == SETTINGS and not flags & ACK:
                self.send(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                self.send(PING, ACK, 0, payload)
            elif kind == DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
                if flags & END:
                    command = json.loads(bodies.pop(stream)[5:] or b"{}")
                    if command.get("task_id") == "bad" and times:
                        times -= 1
                        fault(self, stream)
                    elif command.get("type") == "run_task":
                        self.answer(stream, command)
                    else:
                        self.headers(stream, *GRPC, ("grpc-status", "12"), end=True)

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                piece = self.line.raw.recv(1 << 16)
            except OSError:
                raise GoneError from None
            if not piece:
                raise GoneError
            self._buffer += piece
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found
