"""The WebSocket worker service, in a server of this process, and its clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

import cloudpickle
import pytest

from wove.protocol import websocket as sockets
from wove.protocol.streams import split_signature
from wove.security import NetworkExecutorSecurity
from wove.services.websocket import WorkerSocket

pytestmark = [
    pytest.mark.backend("websocket"),
    pytest.mark.usefixtures("no_leaks"),
]

SIGNED = {"type": "signed", "secret": "a secret of both sides"}
PATIENCE = 20.0


def text(value: Any) -> str:
    return base64.b64encode(cloudpickle.dumps(value)).decode()


def command(
    run_id: str, function: Callable[..., Any], /, *, known: str | None = None, **arguments: Any
) -> dict[str, Any]:
    ids = {} if known is None else {"callable_id": known}
    frame = {"type": "run_task", "run_id": run_id, "task_id": "task", "delivery": {}, **ids}
    return {**frame, "callable_pickle": text(function), "args_pickle": text(arguments)}


class Client:
    """A bare client."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self.messages = 0

    async def send(self, value: Any) -> None:
        await self.connection.send(value if isinstance(value, (str, bytes)) else json.dumps(value))

    async def until(self, kind: str, run_id: str) -> dict[str, Any]:
        """The event of that type and run, waiting for it."""
        while True:
            for event in self.events:
                if (event["type"], event["run_id"]) == (kind, run_id):
                    return event
            found = json.loads(await asyncio.wait_for(self.connection.recv(), PATIENCE))
            self.messages += 1
            self.events.extend(found if isinstance(found, list) else found.get("events", [found]))

    async def result(self, run_id: str) -> Any:
        event = await self.until("task_result", run_id)
        return cloudpickle.loads(base64.b64decode(event["result_pickle"]))

    async def closed(self) -> tuple[int | None, str | None]:
        """How the service closes the connection."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.wait_for(self.connection.recv(), PATIENCE)
        return self.connection.close_code, self.connection.close_reason


class Service:
    """A `WorkerSocket` in a server."""

    def __init__(self, worker: WorkerSocket, port: int) -> None:
        self.worker, self.port = worker, port

    @contextlib.asynccontextmanager
    async def client(
        self, *, ours: bool = False, headers: Any = None, target: str = "/wove"
    ) -> AsyncIterator[Client]:
        from websockets.asyncio.client import connect

        offered: Any = sockets.OFFERED if ours else None
        url = f"ws://127.0.0.1:{self.port}{target}"
        async with connect(
            url,
            subprotocols=offered,
            additional_headers=headers,
            max_size=None,
            proxy=None,
            compression=None,
        ) as connection:
            assert connection.subprotocol == (sockets.OURS if ours else None)
            yield Client(connection)


def served(
    test: Callable[[Service], Coroutine[Any, Any, None]], *, settings: bool = True, **options: Any
) -> None:
    async def main() -> None:
        from websockets.asyncio.server import serve

        async with WorkerSocket(**{"security": "none", **options}) as worker:
            chosen = worker.settings if settings else {}
            async with serve(worker.handler, "127.0.0.1", 0, **chosen) as server:
                await asyncio.wait_for(
                    test(Service(worker, next(iter(server.sockets)).getsockname()[1])), PATIENCE
                )

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


# ------------------------------------------------------------------ runs


def test_runs_sync_and_async_tasks_and_reports_errors() -> None:
    async def test(service: Service) -> None:
        async def double(n: int) -> int:
            return 2 * n

        def fail() -> None:
            raise LookupError("nothing there")

        async with service.client() as client:
            await client.send(command("one", double, n=21))
            await client.send(command("two", fail))
            assert await client.result("one") == 42
            assert (await client.until("task_error", "two"))["error"]["message"] == "nothing there"
            assert {"task_started"} <= {event["type"] for event in client.events}

    served(test)


def test_takes_lists_of_commands_and_functions_that_came_before() -> None:
    async def test(service: Service) -> None:
        async with service.client(ours=True) as client:
            batch = [command(f"r{n}", lambda n: -n, known="f", n=n) for n in range(100)]
            for frame in batch[1:]:
                del frame["callable_pickle"]
            await client.send(batch)
            assert [await client.result(f"r{n}") for n in range(100)] == [-n for n in range(100)]
            assert client.messages < 200  # they come together, too
            late = command("late", abs, known="g", n=1)
            del late["callable_pickle"]
            await client.send([late])
            assert "callable" in (await client.until("task_error", "late"))["error"]["message"]
        async with service.client(
            ours=True
        ) as another:  # what one connection has sent, another has not
            await another.send(batch[1])
            await another.until("task_error", "r1")

    served(test)


def test_large_values_go_in_pieces_both_ways() -> None:
    async def test(service: Service) -> None:
        async with service.client() as client:
            whole = json.dumps(command("big", lambda value: value, value=bytes(5_000_000))).encode()
            await client.connection.send(
                (whole[n : n + 700_000] for n in range(0, len(whole), 700_000)), text=True
            )
            assert await client.result("big") == bytes(5_000_000)

    served(test)


def test_cancels() -> None:
    async def test(service: Service) -> None:
        async def wait() -> None:
            await asyncio.sleep(3600)

        async with service.client() as client:
            await client.send(command("one", wait))
            await client.until("task_started", "one")
            await client.send({"type": "cancel_task", "run_id": "one", "task_id": "task"})
            await client.until("task_cancelled", "one")

    served(test)


def test_a_client_that_goes_takes_its_runs_along() -> None:
    async def test(service: Service) -> None:
        async def wait() -> None:
            await asyncio.sleep(3600)

        async with service.client() as client:
            for n in range(5):
                await client.send(command(f"r{n}", wait))
                await client.until("task_started", f"r{n}")
            assert service.worker.queue.status()["running"] == 5
            client.connection.transport.abort()
            await until(lambda: service.worker.queue.status()["running"] == 0)

    served(test)


def test_a_client_that_does_not_read_is_let_go() -> None:
    """It could not fill the service's memory."""

    async def test(service: Service) -> None:
        async with service.client() as client:
            client.connection.transport.pause_reading()
            for n in range(60):
                await client.send(command(f"r{n}", lambda: bytes(500_000)))
            await until(lambda: not service.worker._serving)
            client.connection.transport.abort()

    served(test, max_message_bytes=2_000_000)


# ------------------------------------------------------------------ nonsense


def test_connections_share_the_bytes_of_messages_that_arrive() -> None:
    """Whether they come in fragments or in one frame; each gets its turn, and its answer."""
    limit, clients = 2_000_000, 8
    blob = bytes(1_300_000)
    held: dict[int, int] = {}
    peak = 0

    async def main() -> None:
        from websockets.asyncio.server import serve

        async with WorkerSocket(security="none", max_message_bytes=limit) as worker:
            settings = worker.settings
            limited: Any = settings["create_connection"]

            class Measured(limited):  # type: ignore[misc]
                def data_received(self, data: bytes) -> None:
                    nonlocal peak
                    held[id(self)] = held.get(id(self), 0) + len(data)
                    peak = max(peak, sum(held.values()))
                    super().data_received(data)

                def consumed(self, size: int) -> None:
                    held[id(self)] = 0
                    super().consumed(size)

            async with serve(
                worker.handler, "127.0.0.1", 0, **{**settings, "create_connection": Measured}
            ) as server:
                service = Service(worker, next(iter(server.sockets)).getsockname()[1])
                enough = asyncio.Event()

                async def send(number: int) -> None:
                    whole = json.dumps(command(f"r{number}", lambda blob: len(blob), blob=blob))
                    half = len(whole) // 2

                    async def fragments() -> AsyncIterator[str]:
                        yield whole[:half]
                        await enough.wait()
                        yield whole[half:]

                    async with service.client() as client:
                        if number % 2:
                            await client.connection.send(fragments())
                        else:
                            await client.connection.send(whole)
                        assert await client.result(f"r{number}") == len(blob)

                async with asyncio.TaskGroup() as group:
                    for number in range(clients):
                        group.create_task(send(number))
                    await until(lambda: sum(held.values()) > limit)
                    enough.set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    # The budget, the oldest message, and one read of each connection. Without the budget: seven times the limit.
    assert limit < peak < 4 * limit


@pytest.mark.parametrize(
    "message",
    [
        "",
        "garbage",
        b"\xff\x00",
        "[[[[",
        "42",
        "[1]",
        '{"type": "run_task"}',
        '{"type": "run_task", "run_id": "a b"}',
        "{}",
    ],
)
def test_nonsense_closes_the_connection_with_a_reason(message: str | bytes) -> None:
    async def test(service: Service) -> None:
        async with service.client() as client:
            await client.send(message)
            code, reason = await client.closed()
            assert code == 1007
            assert reason
        async with service.client() as client:
            await client.send(command("fine", lambda: 1))
            assert await client.result("fine") == 1

    served(test)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "shutdown", "run_id": "r"},
        {"type": "run_task", "run_id": "r"},
        {"type": "run_task", "run_id": "r", "callable_pickle": "!", "args_pickle": "a"},
        {"type": "run_task", "run_id": "r", "callable_pickle": 7},
    ],
)
def test_a_command_that_cannot_be_read_ends_its_run_alone(frame: dict[str, Any]) -> None:
    async def test(service: Service) -> None:
        async with service.client() as client:
            await client.send(frame)
            error = (await client.until("task_error", "r"))["error"]
            assert error["source"] == "transport"
            await client.send(command("fine", lambda: 1))
            assert await client.result("fine") == 1

    served(test)


def test_a_message_beyond_the_limit_closes_the_connection() -> None:
    async def test(service: Service) -> None:
        async with service.client() as client:
            await client.send(" " * 20_000)
            assert (await client.closed())[0] == 1009

    served(test, max_message_bytes=10_000)


# ------------------------------------------------------------------ who may


@pytest.mark.parametrize("settings", [True, False], ids=["in the handshake", "in the handler"])
def test_only_authentic_handshakes(settings: bool) -> None:
    security = NetworkExecutorSecurity.from_config(SIGNED)

    async def test(service: Service) -> None:
        headers = security.headers_for(transport="websocket", target="/wove?tenant=1")
        async with service.client(headers=headers, target="/wove?tenant=1") as client:
            await client.send(command("one", lambda: 1))
            assert await client.result("one") == 1
        for bad in (headers, {}, {**headers, "X-Wove-Signature": "v1=" + "0" * 64}):
            await refused(service, bad, settings, target="/wove?tenant=1")

    served(test, settings=settings, security=SIGNED)


async def refused(
    service: Service, headers: Any, in_handshake: bool, target: str = "/wove"
) -> None:
    from websockets.exceptions import InvalidStatus

    if in_handshake:
        with pytest.raises(InvalidStatus, match="401"):
            async with service.client(headers=headers, target=target):
                pass
    else:
        async with service.client(headers=headers, target=target) as client:
            with contextlib.suppress(Exception):
                await client.send(command("never", lambda: 1))
            assert await client.closed() == (1008, "not authorized")


@pytest.mark.parametrize("settings", [True, False])
def test_web_pages_may_not_without_security(settings: bool) -> None:
    async def test(service: Service) -> None:
        await refused(service, {"Origin": "https://evil.example"}, settings)

    served(test, settings=settings)


def test_replies_are_signed_and_counted() -> None:
    config = {**SIGNED, "sign_replies": True}
    security = NetworkExecutorSecurity.from_config(config)

    async def test(service: Service) -> None:
        headers = security.headers_for(transport="websocket", target="/wove")
        async with service.client(headers=headers) as client:
            ended, number = 0, 0
            for n in range(3):
                await client.send(command(f"r{n}", lambda: bytes(200_000)))
            while ended < 3:
                signature, rest = split_signature([await client.connection.recv(decode=False)])
                named = {
                    "transport": "websocket",
                    "target": "/wove",
                    "headers": headers,
                    "signature": signature,
                }
                security.verify_reply(**named, body=rest, sequence=number)
                with pytest.raises(PermissionError):
                    security.verify_reply(**named, body=rest, sequence=number + 1)
                number += 1
                ended += b"".join(rest).count(b"task_result")

    served(test, security=config)


# ------------------------------------------------------------------ health, and the end


async def get(port: int, path: str) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert b"application/json" in head
    return int(head.split()[1]), json.loads(body)


def test_health_needs_no_credentials() -> None:
    async def test(service: Service) -> None:
        assert await get(service.port, "/healthz") == (200, {"status": "ok"})
        status, told = await get(service.port, "/any/where/readyz?verbose")
        assert (status, told["status"]) == (200, "ready")

    served(test, security=SIGNED)


def test_drains() -> None:
    """What runs may end; then the connections close with the code that says that nothing else was begun."""
    going = threading.Event()

    async def test(service: Service) -> None:
        from websockets.exceptions import InvalidStatus

        async with service.client() as busy, service.client() as idle:
            await busy.send(command("one", Waiter("drains")))
            Waiter.events["drains"] = going
            await busy.until("task_started", "one")
            draining = asyncio.create_task(service.worker.drain())
            assert (await idle.closed())[0] == sockets.RESTARTING
            assert (await get(service.port, "/readyz"))[0] == 503
            with pytest.raises(InvalidStatus, match="503"):
                async with service.client():
                    pass
            await busy.send(command("two", lambda: 2))
            assert (await busy.until("task_error", "two"))["error"]["kind"] == "WorkerBusyError"
            going.set()
            assert await busy.result("one") == "went on"
            assert (await busy.closed())[0] == sockets.RESTARTING
            await draining

    served(test)


class Waiter:
    """A task that waits for an event of the test."""

    events: ClassVar[dict[str, threading.Event]] = {}

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> str:
        while self.name not in self.events:
            pass
        assert self.events[self.name].wait(PATIENCE)
        return "went on"
