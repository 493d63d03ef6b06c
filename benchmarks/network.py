"""The worker services, each beside a bare client of the same transport that posts the same bytes."""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any, Final, TypeAlias

import wove
from wove import __version__, weave
from wove.protocol import codec, pickling
from wove.protocol.frames import PYTHON

from .children import environment
from .fresh import call
from .gaps import ELAPSED, SUBJECT, gap_probe
from .harness import Figure, Target, Values, benchmark, timed

SMALL: Final = 1_000
NAPS: Final = 64
MEBIBYTES: Final = 30
AT_ONCE: Final = 1_000
TRANSPORTS: Final = ("http", "grpc", "websocket")


@contextmanager
def running(*command: str) -> Iterator[str]:
    """A server in a process of its own: the first line that it prints, while it runs."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def service(transport: str) -> Iterator[str]:
    """A worker service with room for everything here: its address."""
    room = ("--concurrency", str(AT_ONCE), "--log-level", "warning")
    with running("-m", "wove", "worker", transport, "--bind", "127.0.0.1:0", *room) as line:
        yield line.rpartition(" ")[2]


def small(item: int) -> int:
    return item


def weave_small(items: Sequence[int]) -> Any:
    with weave(environment="service") as w:

        @w.do(items)
        def small(item: int) -> int:
            return item

    return w.result.small


def nap(item: int) -> int:
    import time

    time.sleep(0.5)
    return item


def weave_naps() -> Any:
    with weave(environment="service") as w:
        w.do(range(NAPS))(nap)
    return w.result.nap


def frame(args: dict[str, Any]) -> list[bytes]:
    """What one run posts."""
    function = pickling.dumps(small, label="small")
    return codec.encode(
        {
            "type": "run_task",
            "run_id": "0123456789abcdef0123456789abcdef",
            "task_id": "small",
            "callable_pickle": function,
            "callable_id": sha256(b"".join(function.chunks)).hexdigest(),
            "args_pickle": pickling.dumps(args, label="args"),
            "delivery": {"delivery_cancel_mode": "best_effort", "delivery_orphan_policy": "cancel"},
            "python": PYTHON,
            "wove": __version__,
        }
    )


class HttpClient:
    """`http.client`, a connection a thread."""

    def __init__(self, port: int, threads: int) -> None:
        self._port = port
        self._mine = threading.local()
        self._pool = ThreadPoolExecutor(threads)

    def post(self, body: bytes) -> int:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        return len(connection.getresponse().read())

    def __call__(self, body: bytes, count: int) -> list[int]:
        return list(self._pool.map(self.post, [body] * count))

    def close(self) -> None:
        self._pool.shutdown()


class GrpcClient:
    """`grpc.aio`, one channel, *bound* calls at a time."""

    def __init__(self, port: int, bound: int) -> None:
        import grpc

        self._bound = bound
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open(grpc, port))

    async def _open(self, grpc: Any, port: int) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._call = self._channel.unary_unary("/wove.network_executor.WorkerService/Send")

    async def _all(self, body: bytes, count: int) -> list[int]:
        room = asyncio.Semaphore(self._bound)

        async def one() -> int:
            async with room:
                return len(await self._call(body))

        return await asyncio.gather(*(one() for _ in range(count)))

    def __call__(self, body: bytes, count: int) -> list[int]:
        return self._loop.run_until_complete(self._all(body, count))

    def close(self) -> None:
        self._loop.run_until_complete(self._channel.close())
        self._loop.close()


class WebSocketClient:
    """`websockets`, one connection, *bound* messages at a time that wait for their reply."""

    def __init__(self, port: int, bound: int) -> None:
        self._bound = bound
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open(port))

    async def _open(self, port: int) -> None:
        from websockets.asyncio.client import connect

        self._connection = await connect(
            f"ws://127.0.0.1:{port}", compression=None, max_size=None, ping_interval=None
        )

    async def _all(self, body: bytes, count: int) -> list[int]:
        waiting: deque[asyncio.Future[int]] = deque()
        room = asyncio.Semaphore(self._bound)

        async def read() -> None:
            for _ in range(count):
                message = await self._connection.recv(decode=False)
                waiting.popleft().set_result(len(message))

        async def one() -> int:
            async with room:
                reply = asyncio.get_running_loop().create_future()
                waiting.append(reply)
                await self._connection.send(body, text=True)
                return await reply

        reader = asyncio.create_task(read())
        sizes = await asyncio.gather(*(one() for _ in range(count)))
        await reader
        return sizes

    def __call__(self, body: bytes, count: int) -> list[int]:
        return self._loop.run_until_complete(self._all(body, count))

    def close(self) -> None:
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()


Client: TypeAlias = HttpClient | GrpcClient | WebSocketClient


def clients(transport: str, port: int) -> dict[str, Client]:
    """The bare clients, each in the forms that may be the quickest."""
    if transport == "http":
        return {f"http.client, {threads} threads": HttpClient(port, threads) for threads in (4, 32)}
    if transport == "grpc":
        return {f"grpc.aio, {bound} at a time": GrpcClient(port, bound) for bound in (64, SMALL)}
    return {
        f"websockets, {bound} at a time": WebSocketClient(port, bound) for bound in (1, 64, SMALL)
    }


@benchmark("network-small")
def small_tasks() -> Iterator[Figure]:
    """Small tasks through a worker service, beside a bare client and an echo server."""
    body, items = b"".join(frame({"item": 7})), range(SMALL)
    answers = list(items)
    for transport in TRANSPORTS:
        with service(transport) as address, running("-m", "benchmarks.echoes", transport) as port:
            wove.config(environments={"service": environment(transport, address)})
            echoed = [len(body)] * SMALL
            probes = [timed("wove", lambda: weave_small(items), expect=answers)]
            bare = clients(transport, int(port))
            for label, client in bare.items():
                probes.append(timed(label, partial(client, body, SMALL), expect=echoed))
            yield Figure(f"{transport}: {SMALL:,} small tasks", "wove", probes, Target(1.5))
            for client in bare.values():
                client.close()


@benchmark("network-naps")
def naps() -> Iterator[Figure]:
    """Tasks that wait, all at once through a worker service."""
    for transport in TRANSPORTS:
        with service(transport) as address:
            wove.config(environments={"service": environment(transport, address)})
            yield Figure(
                f"{transport}: {NAPS} tasks of 0.5 s",
                "wove",
                [timed("wove", weave_naps, expect=list(range(NAPS)))],
                Target(0.8, "within"),
                rounds=7,
            )


@benchmark("network-large")
def large() -> Iterator[Figure]:
    """A large argument and result through a worker service, beside the same bytes as they are."""
    raw = (
        os.urandom(512 * 1024).hex().encode() * MEBIBYTES
    )  # text, or a WebSocket message would be invalid
    for transport in TRANSPORTS:
        with service(transport) as address, running("-m", "benchmarks.echoes", transport) as port:
            client, *others = clients(transport, int(port)).values()

            def through(address: str = address, transport: str = transport) -> Values:
                return {
                    "wove": call("benchmarks.children:echo_bytes", MEBIBYTES, transport, address)[
                        "elapsed"
                    ]
                }

            def bare(client: Client = client) -> Values:
                begin = perf_counter()
                assert client(raw, 1) == [len(raw)]
                return {"raw send and echo": perf_counter() - begin}

            yield Figure(
                f"{transport}: {MEBIBYTES} MiB there and back", "wove", [through, bare], rounds=7
            )
            for each in (client, *others):
                each.close()


@benchmark("network-gap")
def gaps() -> Iterator[Figure]:
    """The longest gap of the loop while 100 MiB go to a worker service and come back."""
    for transport in TRANSPORTS:
        with service(transport) as address:
            yield Figure(
                f"{transport}: 100 MiB there and back",
                SUBJECT,
                [gap_probe("echo_bytes", 100, transport, address)],
                Target(0.15, "over by"),
                aside=(ELAPSED,),
                rounds=7,
            )


@benchmark("network-flight")
def flight() -> Iterator[Figure]:
    """What runs in flight cost the sender."""
    for transport in TRANSPORTS[1:]:
        with service(transport) as address:

            def grown(address: str = address, transport: str = transport) -> Values:
                return {
                    "all together": call(
                        "benchmarks.children:in_flight", AT_ONCE, transport, address
                    )["grown"]
                }

            yield Figure(
                f"{transport}: {AT_ONCE:,} runs in flight",
                "all together",
                [grown],
                rounds=7,
                unit="MiB",
            )
