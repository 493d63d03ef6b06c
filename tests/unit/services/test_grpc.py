"""The gRPC worker service: in a `grpc.aio` server of the test's own, called by `grpc.aio` itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.unit.services.front import command

from wove.protocol import codec
from wove.protocol.frames import says_busy
from wove.protocol.names import GRPC_METHOD
from wove.protocol.pickling import loads
from wove.security import NetworkExecutorSecurity
from wove.services import byte_budget
from wove.services.binding import Bind
from wove.services.grpc import HEALTH, WorkerHandler, serve, worker_handler
from wove.services.options import service_options

grpc = pytest.importorskip("grpc")
aio = pytest.importorskip("grpc.aio")

pytestmark = [pytest.mark.backend("grpc")]

SECRET = {"type": "signed", "secret": "only for these tests"}
SIGNING_REPLIES = {**SECRET, "sign_replies": True}
OPEN = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Client:
    """A channel to a service, and its security."""

    def __init__(self, channel: Any, handler: WorkerHandler, security: Any) -> None:
        self.channel, self.queue = channel, handler.queue
        self.security = NetworkExecutorSecurity.from_config(security)

    def call(self, body: bytes, *, metadata: Any = None, method: str = GRPC_METHOD) -> Any:
        if metadata is None:
            metadata = self.security.metadata_for(transport="grpc", target=GRPC_METHOD, body=body)
        return self.channel.unary_unary(method)(body, metadata=metadata, timeout=30)

    async def run(self, function: Any, **more: Any) -> list[dict[str, Any]]:
        return codec.decode(await self.call(text(function, **more)))

    async def status(self, body: bytes, **options: Any) -> tuple[str, str]:
        try:
            await self.call(body, **options)
        except aio.AioRpcError as error:
            return error.code().name, error.details()
        raise AssertionError("it was answered")

    async def health(self, name: str = "") -> str:
        return str(
            (
                await self.call(
                    bytes([10, len(name)]) + name.encode() if name else b"", method=HEALTH
                )
            ).hex()
        )


def text(function: Any, **more: Any) -> bytes:
    return b"".join(codec.encode(command(function, **more)))


@contextlib.asynccontextmanager
async def service(
    security: Any = "none", *, theirs: Any = None, **options: Any
) -> AsyncIterator[Client]:
    handler = worker_handler(security=security, **options)
    server = aio.server(options=OPEN)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", options=OPEN) as channel:
        yield Client(channel, handler, theirs or security)
    await server.stop(5)
    await handler.queue.aclose()


def with_service(
    check: Callable[[Client], Awaitable[None]],
    security: Any = "none",
    *,
    theirs: Any = None,
    **options: Any,
) -> None:
    async def main() -> None:
        async with service(security, theirs=theirs, **options) as client:
            await check(client)

    asyncio.run(main())


def test_a_run_and_its_events() -> None:
    async def check(client: Client) -> None:
        (ended,) = await client.run(lambda a: a * 2, args={"a": 21}, run_id="one")
        assert ended["run_id"] == "one"
        assert ended["host"] and ended["pid"]
        assert (ended["type"], loads(ended["result_pickle"], label="r")) == ("task_result", 42)

    with_service(check, SECRET)


def test_a_large_run() -> None:
    async def check(client: Client) -> None:
        blob = bytes(range(256)) * 40_000
        events = await client.run(lambda blob: blob[::-1], args={"blob": blob})
        assert loads(events[-1]["result_pickle"], label="r") == blob[::-1]

    with_service(check, SIGNING_REPLIES)


@pytest.mark.parametrize("blob", [b"", bytes(1_000_000)], ids=["small", "large"])
def test_a_signed_reply(blob: bytes) -> None:
    async def check(client: Client) -> None:
        body = text(lambda: blob)
        headers = client.security.metadata_for(transport="grpc", target=GRPC_METHOD, body=body)
        call = client.call(body, metadata=headers)
        reply, trailing = await call, await call.trailing_metadata()
        signature = trailing["x-wove-reply-signature"]
        label: dict[str, Any] = {"transport": "grpc", "target": GRPC_METHOD, "headers": headers}
        client.security.verify_reply(body=reply, signature=signature, **label)
        with pytest.raises(PermissionError):
            client.security.verify_reply(body=reply + b" ", signature=signature, **label)

    with_service(check, SIGNING_REPLIES)


@pytest.mark.parametrize("size", [0, 1_000_000], ids=["small", "large"])
def test_strangers_are_refused_and_told_nothing(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(client: Client) -> None:
        body = text(lambda blob: 1, args={"blob": bytes(size)})
        good = client.security.metadata_for(transport="grpc", target=GRPC_METHOD, body=body)
        refused = ("UNAUTHENTICATED", "not authorized")
        assert await client.status(body, metadata=[]) == refused
        assert await client.status(body + b" ", metadata=good) == refused
        old = [pair for pair in good if pair[0] != "x-wove-body-digest"]
        assert await client.status(body + b" ", metadata=old) == refused
        forged = [*old, ("x-wove-body-digest", "0" * 64)]
        assert await client.status(body, metadata=forged) == refused
        good = client.security.metadata_for(transport="grpc", target=GRPC_METHOD, body=body)
        assert await client.status(body, metadata=[*good, good[0]]) == refused
        assert await client.status(body, metadata=[("x-wove-key", "other"), *good[1:]]) == refused
        await client.call(body, metadata=good)
        assert await client.status(body, metadata=good) == refused  # a second time

    with caplog.at_level(logging.WARNING, "wove.service"):
        with_service(check, SECRET)
    told = caplog.text
    for reason in (
        "is missing",
        "the signature is not",
        "more than once",
        "'other' is not known",
        "been here before",
    ):
        assert reason in told, reason
    assert "127.0.0.1:" in told


def test_the_body_of_a_stranger_is_not_read() -> None:
    """A message that is larger than what fits on the way is never asked for."""

    async def check(client: Client) -> None:
        assert await client.status(bytes(50_000_000), metadata=[]) == (
            "UNAUTHENTICATED",
            "not authorized",
        )

    with_service(check, SECRET)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"type": "run_task"}', "run_id"),
        (b'{"type": "shutdown", "run_id": "a"}', "'shutdown' is not a command"),
        (b'{"type": "run_task", "run_id": "a"}', "callable_pickle"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": "' + b"x" * 300_000, "not JSON"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_command(body: bytes, message: str) -> None:
    async def check(client: Client) -> None:
        code, details = await client.status(body)
        assert code == "INVALID_ARGUMENT" and message in details
        assert len(details) < 1100
        await client.run(int)  # and it goes on

    with_service(check)


def test_no_room_for_one_more_large_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_budget, "ROOM_SECONDS", 0.1)

    async def check(client: Client) -> None:
        budget = client.queue.arriving
        oldest = budget.open()
        assert await oldest.acquire(client.queue.options.max_message_bytes - 1000)
        (event,) = await client.run(lambda blob: len(blob), args={"blob": bytes(300_000)})
        assert says_busy(event) and "run_id" not in event
        oldest.close()
        (event,) = await client.run(lambda blob: len(blob), args={"blob": bytes(300_000)})
        assert loads(event["result_pickle"], label="r") == 300_000

    with_service(check, SECRET)


def test_too_large_a_command() -> None:
    async def check(client: Client) -> None:
        code, details = await client.status(bytes(2000))
        assert code == "RESOURCE_EXHAUSTED"
        assert "2000 bytes" in details and "1000" in details

    with_service(check, max_message_bytes=1000)


def test_no_room_is_an_event() -> None:
    async def check(client: Client) -> None:
        holding = asyncio.create_task(client.run(_hold, run_id="held"))
        await _until(lambda: client.queue.status()["running"] == 1)
        events = await client.run(int)
        assert (
            events[-1]["error"]["kind"] == "WorkerBusyError"
            and events[-1]["error"]["retryable"] is True
        )
        assert await client.health() == "0802" and await client.health("liveness") == "0801"
        await client.call(
            json.dumps({"type": "cancel_task", "run_id": "held", "task_id": "pdf"}).encode()
        )
        assert (await holding)[-1]["type"] == "task_cancelled"
        assert await client.health() == "0801"

    with_service(check, concurrency=1, backlog=0)


async def _hold() -> None:
    await asyncio.sleep(3600)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_client_that_goes_takes_its_run_with_it() -> None:
    async def check(client: Client) -> None:
        call = client.call(text(_hold))
        await _until(lambda: client.queue.status()["running"] == 1)
        call.cancel()
        await _until(lambda: client.queue.status()["running"] == 0)

    with_service(check)


def test_a_keyed_run_outlives_its_client_and_is_remembered() -> None:
    async def check(client: Client) -> None:
        async def slow() -> str:
            await asyncio.sleep(0.5)
            return "once"

        call = client.call(text(slow, key="k", run_id="first"))
        await _until(lambda: client.queue.status()["running"] == 1)
        call.cancel()
        events = await client.run(slow, key="k", run_id="second")
        assert [event["run_id"] for event in events] == ["second"] * len(events)
        assert loads(events[-1]["result_pickle"], label="r") == "once"
        again = await client.run(slow, key="k", run_id="third")
        assert [event["type"] for event in again] == ["task_result"]

    with_service(check)


def test_other_methods_are_for_others() -> None:
    async def check(client: Client) -> None:
        code, _ = await client.status(b"", method="/wove.network_executor.Liveness/Nudge")
        assert code == "UNIMPLEMENTED"
        code, _ = await client.status(b"\x0a\x05short", method=HEALTH)
        assert code == "NOT_FOUND"
        code, _ = await client.status(b"\xff\xff", method=HEALTH)
        assert code == "NOT_FOUND"

    with_service(check, SECRET)


def test_heartbeats_are_not_sent_along() -> None:
    async def check(client: Client) -> None:
        async def slow() -> None:
            await asyncio.sleep(0.5)

        events = await client.run(slow, delivery={"delivery_heartbeat_seconds": 0.1})
        assert [event["type"] for event in events] == ["task_result"]

    with_service(check)


def test_serve_says_where_drains_and_ends() -> None:
    async def main() -> None:
        stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
        options = service_options(security="none")
        serving = asyncio.create_task(
            serve(options, Bind("127.0.0.1", 0), None, started=told.set_result, stop=stop)
        )
        address = await told
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await serve(options, Bind.parse(address), None, started=print, stop=stop)
        async with aio.insecure_channel(address) as channel:

            async def slow() -> str:
                await asyncio.sleep(0.5)
                return "to the end"

            last = asyncio.ensure_future(_awaited(channel.unary_unary(GRPC_METHOD)(text(slow))))
            await asyncio.sleep(0.2)
            stop.set()
            await asyncio.sleep(0.1)
            late = codec.decode(await channel.unary_unary(GRPC_METHOD)(text(int)))
            assert late[-1]["error"]["kind"] == "WorkerBusyError"
            events = codec.decode(await last)
            assert loads(events[-1]["result_pickle"], label="r") == "to the end"
        await asyncio.wait_for(serving, 20)

    asyncio.run(main())


async def _awaited(call: Any) -> bytes:
    reply: bytes = await call
    return reply


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match="needs security"):
        worker_handler()
    with pytest.raises(TypeError, match="no option 'concurency'"):
        worker_handler(security="none", concurency=3)  # type: ignore[call-arg]
