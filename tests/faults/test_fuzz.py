"""Whatever a worker service is sent, it stays up, stays small, and unpickles nothing before it has verified it.

The real services, in processes of their own, over real sockets. WOVE_TEST_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pickle
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support import malformed
from tests.support.services import Plan, Service, running
from tests.support.volume import volume

import wove
from wove import weave

REQUESTS = volume(102_000, 10_200)
"""For all three transports together."""

SEED = int(os.environ.get("WOVE_TEST_FUZZ_SEED", "0")) or int(time.time())

SECRET = "not to be guessed"
TARGET = {
    "http": "/wove/tasks",
    "grpc": "/wove.network_executor.WorkerService/Send",
    "websocket": "/wove/tasks",
}

AT_ONCE = 12
"""Connections, or calls, at a time."""

PATIENCE = 30.0
"""Seconds after which an answer is taken to be missing."""

MAX_BYTES = 1 << 20
GROWTH = 256 << 20
"""So many bytes more than before a service may hold in the end."""


def resident(pid: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Fuzz:
    """One service, what it is sent, and what came of it.

    Attributes:
        sent: How many requests of each kind.
        answers: What came back, by kind and status.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.transport = service.plan.transport
        self.target = TARGET[self.transport]
        self.rng = Random(f"{SEED} {self.transport}")
        self.marker = folder / "unpickled"
        self.sent: Counter[str] = Counter()
        self.answers: Counter[tuple[str, object]] = Counter()
        self._nonce = 0
        self._evil = malformed.marker(str(self.marker))
        # For what is signed: if a frame turns out to be right after all, this is what runs.
        self._function = malformed.b64(pickle.dumps(len))
        self._arguments = malformed.b64(pickle.dumps({"obj": [1]}))

    def signed(self, content: bytes) -> list[tuple[str, str]]:
        self._nonce += 1
        nonce = f"{self.rng.getrandbits(64):x}-{self._nonce}"
        return list(
            malformed.signature(SECRET, self.transport, self.target, content, nonce=nonce).items()
        )

    def unverified(self) -> tuple[list[tuple[str, str]], bytes]:
        """A frame that would be right, but not from whoever signed it; loading it would leave the marker."""
        content = json.dumps(malformed.frame(self.rng, self._evil, self._evil)).encode()
        if self.rng.random() < 0.1:
            content = malformed.body(self.rng, json.loads(content))
        signed = b"" if self.transport == "websocket" else content
        return malformed.bad_signature(
            self.rng, SECRET, self.transport, self.target, signed
        ), content

    def verified(self) -> tuple[list[tuple[str, str]], bytes]:
        """Nonsense from whoever knows the secret."""
        content = malformed.body(
            self.rng, malformed.frame(self.rng, self._function, self._arguments)
        )
        return self.signed(content), content

    def good(self) -> bytes:
        """A frame that leaves the marker, as it should: to see that the marker shows anything at all."""
        return json.dumps(malformed.frame(self.rng, self._evil, self._arguments)).encode()

    async def many(self, kind: str, count: int, once: Callable[[], Awaitable[object]]) -> None:
        """*once*, *count* times, several at a time. It returns what to count as the answer."""
        left = iter(range(count))

        async def lane() -> None:
            for _ in left:
                async with asyncio.timeout(PATIENCE):
                    self.answers[kind, await once()] += 1
                self.sent[kind] += 1

        async with asyncio.TaskGroup() as lanes:
            for _ in range(AT_ONCE):
                lanes.create_task(lane())

    async def raw(self, content: bytes) -> str:
        """Send bytes over a connection of their own, and read whatever comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        try:
            writer.write(content)
            with contextlib.suppress(OSError):
                await writer.drain()
                writer.write_eof()
            answer = b""
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5.0):
                    while piece := await reader.read(65536):
                        answer += piece
            return answer[:15].decode("latin-1")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


# ------------------------------------------------------------------------------------------------------ http


class Http:
    """A connection that is kept, as long as the service keeps it."""

    def __init__(self, fuzz: Fuzz) -> None:
        self.fuzz = fuzz
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, headers: list[tuple[str, str]], content: bytes) -> tuple[int, bytes]:
        lines = [f"POST {self.fuzz.target} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1") + content
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.fuzz.service.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None, head
        body = await reader.readexactly(int(length[1]))
        if re.search(rb"(?i)connection: close", head):
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head[9:12]), body

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


async def fuzz_http(fuzz: Fuzz, count: int) -> None:
    client = Http(fuzz)

    async def unverified() -> int:
        status, body = await client.post(*fuzz.unverified())
        assert status in (400, 401, 431), (status, body)  # 400, 431: not even HTTP
        return status

    async def verified() -> int:
        status, body = await client.post(*fuzz.verified())
        assert status in (200, 400, 413), (status, body)
        if status == 200:
            assert isinstance(json.loads(body)["events"], list)
        return status

    replayed = fuzz.good()
    headers = fuzz.signed(replayed)

    async def replay() -> int:
        status, _ = await client.post(headers, replayed)
        return status

    assert (await client.post(headers, replayed))[0] == 200
    assert fuzz.marker.exists()
    fuzz.marker.unlink()
    await fuzz.many("replayed", count // 20, replay)
    assert fuzz.answers["replayed", 401] == fuzz.sent["replayed"]
    await fuzz.many("not verified", count // 20 * 8, unverified)
    await fuzz.many("verified nonsense", count // 20 * 8, verified)
    client.close()
    await fuzz.many("broken HTTP", count // 20 * 3, lambda: fuzz.raw(malformed.raw_http(fuzz.rng)))


# ------------------------------------------------------------------------------------------------- websocket


class Socket:
    """A WebSocket connection made by hand: it must be able to say what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, fuzz: Fuzz, headers: list[tuple[str, str]]) -> tuple[int, Socket]:
        key = base64.b64encode(fuzz.rng.randbytes(16)).decode()
        lines = [
            f"GET {fuzz.target} HTTP/1.1",
            "Host: x",
            "Upgrade: websocket",
            "Connection: Upgrade",
        ]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        lines += [f"{name}: {value}" for name, value in headers]
        reader, writer = await asyncio.open_connection("127.0.0.1", fuzz.service.port)
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (
            OSError,
            asyncio.IncompleteReadError,
        ):  # headers that are not HTTP, or too large for it
            head = b"HTTP/1.1 000 "
        return int(head[9:12]), cls(reader, writer)

    def send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, 0x80 | size])
        elif size < 65536:
            head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
        self.writer.write(head + bytes(4) + payload)  # masked with zeros

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of a frame; opcode 8 also when the connection has ended."""
        try:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            return first & 0x0F, await self.reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError):
            return 8, b""

    async def until_pong(self) -> str:
        """Ping, and wait for the answer, or for the end."""
        self.send(9, b"?")
        while True:
            opcode, payload = await self.receive()
            if opcode == 8:
                return f"closed {int.from_bytes(payload[:2], 'big')}"
            if opcode == 10:
                return "open"

    def close(self) -> None:
        self.writer.close()


async def fuzz_websocket(fuzz: Fuzz, count: int) -> None:
    async def handshake() -> int:
        headers, _ = fuzz.unverified()
        status, socket = await Socket.connect(fuzz, headers)
        socket.close()
        assert status in (0, 400, 401, 431), status
        return status

    async def accepted() -> Socket:
        status, socket = await Socket.connect(fuzz, fuzz.signed(b""))
        assert status == 101
        return socket

    sockets: list[Socket] = []

    async def message() -> str:
        socket = sockets.pop() if sockets else await accepted()
        socket.send(fuzz.rng.choice([1, 2]), fuzz.verified()[1])
        state = await socket.until_pong()
        if state == "open":
            sockets.append(socket)
        else:
            assert state != "closed 1011", "an error of the service"
            socket.close()
        return state

    async def frames() -> str:
        socket = await accepted()
        socket.writer.write(malformed.raw_websocket(fuzz.rng))
        socket.writer.write_eof()
        opcode, payload = 0, b""
        while opcode != 8:
            opcode, payload = await socket.receive()
        socket.close()
        return f"closed {int.from_bytes(payload[:2], 'big')}"

    headers = fuzz.signed(b"")

    async def replay() -> int:
        status, socket = await Socket.connect(fuzz, headers)
        socket.close()
        return status

    _, first = await Socket.connect(fuzz, headers)
    first.send(1, fuzz.good())
    while not fuzz.marker.exists():
        await first.receive()
    fuzz.marker.unlink()
    first.close()
    await fuzz.many("replayed", count // 20, replay)
    assert fuzz.answers["replayed", 401] == fuzz.sent["replayed"]
    await fuzz.many("not verified", count // 20 * 5, handshake)
    await fuzz.many("verified nonsense", count // 20 * 10, message)
    for socket in sockets:
        socket.close()
    await fuzz.many("broken frames", count // 20 * 2, frames)
    await fuzz.many("broken HTTP", count // 20 * 2, lambda: fuzz.raw(malformed.raw_http(fuzz.rng)))


# ------------------------------------------------------------------------------------------------------ grpc


async def fuzz_grpc(fuzz: Fuzz, count: int) -> None:
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{fuzz.service.port}") as channel:
        call = channel.unary_unary(fuzz.target)

        async def send(headers: list[tuple[str, str]], content: bytes) -> str:
            # The library itself sends no others.
            metadata = [(name.lower(), value) for name, value in headers if value.isprintable()]
            try:
                await call(content, metadata=metadata, timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        async def unverified() -> str:
            code = await send(*fuzz.unverified())
            # Metadata may also be more than gRPC takes.
            assert code in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED"), code
            return code

        async def verified() -> str:
            code = await send(*fuzz.verified())
            assert code in ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), code
            return code

        replayed = fuzz.good()
        headers = fuzz.signed(replayed)
        assert await send(headers, replayed) == "OK"
        assert fuzz.marker.exists()
        fuzz.marker.unlink()
        await fuzz.many("replayed", count // 20, lambda: send(headers, replayed))
        assert fuzz.answers["replayed", "UNAUTHENTICATED"] == fuzz.sent["replayed"]
        await fuzz.many("not verified", count // 20 * 8, unverified)
        await fuzz.many("verified nonsense", count // 20 * 8, verified)
    await fuzz.many(
        "broken HTTP/2", count // 20 * 3, lambda: fuzz.raw(malformed.raw_http2(fuzz.rng))
    )


# ------------------------------------------------------------------------------------------------------- all


FUZZERS = {"http": fuzz_http, "grpc": fuzz_grpc, "websocket": fuzz_websocket}

LINE = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR) (wove|uvicorn)\.|wove worker "
)
"""How each line of the log begins: nothing that was sent may begin one of its own."""


@pytest.fixture
def service(transport: Any, tmp_path: Path) -> Iterator[Service]:
    plan = Plan(
        transport,
        SECRET,
        concurrency=8,
        options=("--max-message-bytes", str(MAX_BYTES), "--drain-timeout", "1"),
    )
    with running(plan, tmp_path / "service") as found:
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "transport", [pytest.param(name, marks=pytest.mark.backend(name)) for name in FUZZERS]
)
def test_malformed_requests(transport: Any, service: Service, tmp_path: Path) -> None:
    wove.config(environments={"far": {"executor": transport, "executor_config": service.config()}})

    def runs() -> int:
        with weave() as w:
            w.do(range(20), environment="far")(lambda item: (item, os.getpid()))
        assert [item for item, _ in w.result.final] == list(range(20))
        return int(w.result.final[0][1])

    pid = service.pid
    assert runs() == pid
    fuzz = Fuzz(service, tmp_path)
    asyncio.run(
        FUZZERS[transport](fuzz, 400)
    )  # a little of everything, so that all that is made once has been made
    before, files = resident(pid), descriptors(pid)
    began = time.monotonic()
    asyncio.run(FUZZERS[transport](fuzz, REQUESTS // 3))
    seconds = time.monotonic() - began

    print(
        f"{transport}, seed {SEED}: {sum(fuzz.sent.values())} requests in {seconds:.1f} s: {dict(fuzz.sent)}"
    )
    print(
        "  ",
        {f"{kind}: {answer}": number for (kind, answer), number in fuzz.answers.most_common(14)},
    )
    assert service.status()["ended"] == []
    assert service.pid == pid
    assert not fuzz.marker.exists(), f"seed {SEED}: something was unpickled before it was verified"
    assert runs() == pid  # it still answers, and is the same
    assert transport == "grpc" or service.healthy()
    deadline = time.monotonic() + 20
    while descriptors(pid) > files + 8:
        assert time.monotonic() < deadline, f"{descriptors(pid)} descriptors, and {files} before"
        time.sleep(0.1)
    grown = resident(pid) - before
    print(f"   {grown / 2**20:.0f} MiB more than before")
    assert grown < GROWTH
    log = service.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    odd = [line for line in log.splitlines() if not LINE.match(line)]
    assert not odd, odd[:10]
