"""HTTP services that behave badly, on real sockets: each connection is given to a function, in a thread of its own.

>>> with Peer(lambda line: line.send(b"HTTP/1.1 500 Oh\\r\\nContent-Length: 0\\r\\n\\r\\n")) as peer:
...     wove.config(environments={"w": {"executor": "http", "executor_config": {"url": peer.url}}})
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["GoneError", "Line", "Peer", "answer", "events", "serve"]


class GoneError(Exception):
    """The client has closed the connection, or the test is over."""


class Line:
    """One connection, as the peer's function has it.

    Attributes:
        number: From 0, of all the peer's connections.
        raw: The socket.
    """

    def __init__(self, peer: Peer, number: int, raw: socket.socket) -> None:
        self.peer, self.number, self.raw = peer, number, raw
        self._buffer = b""

    def request(self) -> Request:
        """Read a whole request; also kept in the peer's list."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._buffer = self._buffer[:end].decode("latin-1"), self._buffer[end + 4 :]
        first, *lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        size = int(headers.get("content-length", 0))
        while len(self._buffer) < size:
            self._more()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        request = Request(first, headers, body)
        self.peer.requests.append(request)
        return request

    def head(self) -> None:
        """Read some of a request, at least the start of its body if it has one."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()

    def send(self, data: bytes) -> None:
        try:
            self.raw.sendall(data)
        except OSError:
            raise GoneError from None

    def reset(self) -> None:
        """Close with a RST, as a killed process with unread data does."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.close()

    def until_gone(self) -> None:
        """Wait until the client closes."""
        while True:
            self._more()
            self._buffer = b""

    def _more(self) -> None:
        try:
            data = self.raw.recv(1 << 16)
        except OSError:
            raise GoneError from None
        if not data:
            raise GoneError
        self._buffer += data


class Request:
    """What came."""

    def __init__(self, first: str, headers: Mapping[str, str], body: bytes) -> None:
        self.first, self.headers, self.body = first, headers, body

    @property
    def frame(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Peer:
    """Listens on a port of its own, and gives each connection to *behave*, which may raise `GoneError`."""

    def __init__(
        self,
        behave: Callable[[Line], object],
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server((host, 0), backlog=256)
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._over = False
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}/tasks"

    def __enter__(self) -> Peer:
        self._begin(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for raw in self._lines:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _begin(self, work: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._lines.append(raw)
            line = Line(self, self.connections, raw)
            self.connections += 1
            self._begin(self._serve, line)

    def _serve(self, line: Line) -> None:
        try:
            if self._tls is not None:
                line.raw = self._tls.wrap_socket(line.raw, server_side=True)
                self._lines.append(line.raw)
            self.behave(line)
        except (GoneError, OSError):
            pass
        finally:
            with contextlib.suppress(OSError):
                line.raw.close()


def events(frame: Mapping[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """What a good service says of the run in *frame*, having run it."""
    import cloudpickle

    def load(name: str) -> Any:
        return cloudpickle.loads(base64.b64decode(frame[name]))

    names = {"run_id": frame["run_id"], "task_id": frame["task_id"], **changes}
    result = base64.b64encode(
        cloudpickle.dumps(load("callable_pickle")(**load("args_pickle")))
    ).decode()
    return [
        {"type": "task_started", **names},
        {"type": "task_result", **names, "result_pickle": result},
    ]


def answer(
    body: bytes | str | list[dict[str, Any]],
    status: str = "200 OK",
    kind: str = "application/json",
    **fields: str,
) -> bytes:
    """A whole response."""
    raw = (
        body
        if isinstance(body, bytes)
        else (body if isinstance(body, str) else json.dumps({"events": body})).encode()
    )
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + raw


def serve(line: Line) -> None:
    """Be a good service for as long as the connection lasts."""
    while True:
        request = line.request()
        line.send(answer(events(request.frame) if request.frame["type"] == "run_task" else []))
