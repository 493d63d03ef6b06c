"""An ASGI application behind a real socket, and requests for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from wove.protocol import codec
from wove.protocol.frames import PYTHON
from wove.protocol.pickling import dumps, loads


@contextmanager
def hosted(app: Any, *, lifespan: str = "auto", **options: Any) -> Iterator[int]:
    """Serve *app* in a thread; the value is its port."""
    config = uvicorn.Config(
        app, log_config=None, lifespan=lifespan, timeout_graceful_shutdown=5, **options
    )  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def run_task(function: Any, run_id: str = "r1", /, **more: Any) -> bytes:
    """The body of a request, as anybody's client would make it."""
    frame = {
        "type": "run_task",
        "run_id": run_id,
        "task_id": "task",
        "callable_pickle": dumps(function, label="f"),
        "args_pickle": dumps(more.pop("args", {}), label="a"),
        "delivery": more.pop("delivery", {}),
        "python": PYTHON,
        **more,
    }
    return b"".join(codec.encode(frame))


class Reply:
    """A reply, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def events(self) -> list[dict[str, Any]]:
        if self.headers["content-type"] == "application/x-ndjson":
            return [frame for line in self.body.splitlines() for frame in codec.decode(line)]
        return codec.decode(self.body)

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def value(self) -> Any:
        return loads(self.events[-1]["result_pickle"], label="the result")

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


def post(
    port: int, body: bytes, headers: Mapping[str, str] | None = None, path: str = "/wove/tasks"
) -> Reply:
    """One request on a connection of its own."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ) as connection:
        connection.request("POST", path, body, dict(headers or {}))
        return Reply(connection.getresponse())


def get(port: int, path: str, method: str = "GET") -> Reply:
    """One request without a body."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ) as connection:
        connection.request(method, path)
        return Reply(connection.getresponse())
