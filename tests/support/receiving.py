"""The callback receiver on a loop in another thread, as Wove runs it, and a client that says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pytest

from wove.callback.receiver import ConnectionEnd, Route, RunStatus, open_route, read_address
from wove.delivery.background_loop import BackgroundLoop
from wove.security import NetworkExecutorSecurity

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which something is taken to be missing."""

SIGNED = {"type": "signed", "secret": "only for tests"}


def eventually(condition: Callable[[], T]) -> T:
    """Wait until *condition* is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


class RecordingSubscriber:
    """Records events. Runs whose ids begin with ``r`` are awaited, unless `statuses` says something else.

    Attributes:
        events: The received events.
        lost: The runs and the worker of each connection that has ended.
        ends: How those connections ended.
        claims: The claims that can be fetched, by id.
    """

    def __init__(self, **statuses: RunStatus) -> None:
        self.statuses = statuses
        self.events: list[dict[str, Any]] = []
        self.lost: list[tuple[list[str], str]] = []
        self.ends: list[ConnectionEnd] = []
        self.claims: dict[str, Sequence[bytes | memoryview]] = {}

    def status(self, run_id: str, worker: str) -> RunStatus:
        return self.statuses.get(
            run_id, RunStatus.AWAITED if run_id.startswith("r") else RunStatus.UNKNOWN
        )

    def receive(self, event: dict[str, Any], worker: str) -> None:
        self.events.append(event)

    def on_connection_lost(self, run_ids: Sequence[str], worker: str, end: ConnectionEnd) -> None:
        self.lost.append((sorted(run_ids), worker))
        self.ends.append(end)

    def claim(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        return self.claims.get(claim_id)

    @property
    def taken(self) -> list[tuple[str, str]]:
        return [(event["type"], event["run_id"]) for event in self.events]


class Receiving:
    """Routes, opened on a loop in another thread, and closed in the end."""

    def __init__(self) -> None:
        self.background = BackgroundLoop()
        self.routes: list[Route] = []

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.background.loop).result(PATIENCE)

    def open(
        self,
        subscriber: RecordingSubscriber,
        *,
        security: object = None,
        most: int = 1 << 29,
        **config: object,
    ) -> Route:
        label = "environment 'reports'"
        route = self.call(
            open_route(
                read_address(
                    {f"callback_{name}": value for name, value in config.items()}, label=label
                ),
                subscriber,
                security=NetworkExecutorSecurity.from_config(security),  # type: ignore[arg-type]
                max_message_bytes=most,
                label=label,
            )
        )
        self.routes.append(route)
        return route

    def close(self) -> None:
        for route in self.routes:
            self.call(route.close())

        async def farewell() -> None:
            pass

        self.background.stop(farewell, PATIENCE)


@contextlib.contextmanager
def receiving() -> Iterator[Receiving]:
    found = Receiving()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def receiving_loop() -> Iterator[Receiving]:
    with receiving() as found:
        yield found


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Wire:
    """A connection to a route, byte by byte if need be."""

    def __init__(self, route: Route, host: str = "127.0.0.1") -> None:
        self.path = urlsplit(route.url).path
        self.sock = socket.create_connection((host, route.port), PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(
        self, method: str, path: str, fields: Mapping[str, str], version: str = "1.1"
    ) -> bytes:
        lines = [
            f"{method} {path} HTTP/{version}",
            "Host: x",
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def request(
        self,
        method: str = "POST",
        body: bytes = b"",
        path: str | None = None,
        version: str = "1.1",
        **fields: str,
    ) -> Answer:
        given = {name.replace("_", "-"): value for name, value in fields.items()}
        if body or method == "POST":
            given = {"Content-Length": str(len(body)), **given}
        self.send(self.head(method, path or self.path, given, version) + body)
        return self.answer(bodiless=method == "HEAD")

    def post(self, events: object, **fields: str) -> Answer:
        return self.request(body=json.dumps(events).encode(), **fields)

    def signed(
        self, events: object, security: object = SIGNED, body: bytes = b"", **fields: str
    ) -> Answer:
        body = body or json.dumps(events).encode()
        made = NetworkExecutorSecurity.from_config(security).headers_for(  # type: ignore[arg-type]
            transport="http", target=self.path, body=body
        )
        return self.request(body=body, **{**made, **fields})

    def _until(self, count: Callable[[bytes], int]) -> bytes:
        while (size := count(self.buffer)) < 0:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def answer(self, *, bodiless: bool = False) -> Answer:
        head = self._until(lambda data: end + 4 if (end := data.find(b"\r\n\r\n")) >= 0 else -1)
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        size = 0 if bodiless else int(fields.get("content-length", "0"))
        body = bytearray(self.buffer[:size])
        self.buffer = self.buffer[size:]
        while len(body) < size:
            data = self.sock.recv(min(1 << 20, size - len(body)))
            assert data, "cut off"
            body += data
        return Answer(int(first.split(" ")[1]), fields, bytes(body))

    def ended(self) -> bool:
        """Whether the other side ends the connection, and says nothing more before."""
        try:
            return self.buffer + self.sock.recv(1 << 16) == b""
        except ConnectionError:
            return True


def started(run_id: str) -> dict[str, Any]:
    return {"type": "task_started", "run_id": run_id, "task_id": "t"}


def beat(run_id: str) -> dict[str, Any]:
    return {"type": "heartbeat", "run_id": run_id, "task_id": "t"}


def result(run_id: str, pickle: str = "Ti4=") -> dict[str, Any]:
    return {"type": "task_result", "run_id": run_id, "task_id": "t", "result_pickle": pickle}
