"""Whatever is posted to the callback receiver, it stays up and small, and nothing is unpickled that nobody waits for.

The receiver is in a process of its own, and whoever waits there unpickles what he is handed. WOVE_TEST_FUZZ_SEED
repeats a run.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from tests.support import malformed
from tests.support.receiving import eventually
from tests.support.volume import volume

REQUESTS = volume(102_000, 10_200)
SEED = int(os.environ.get("WOVE_TEST_FUZZ_SEED", "0")) or int(time.time())

SECRET = "not to be guessed"
OPEN, SIGNED = "/wove/events/open", "/wove/events/signed"
AWAITED = "awaited-run"

MAX_BYTES = 32 << 20
SLACK_BYTES = 24 << 20
"""What the receiver may need beside a body and what was in it: an interpreter's heap does not shrink at once."""

IN_A_ROW = 25
"""Requests that are sent without waiting for the answers in between."""

PATIENCE = 30.0

SERVER = """
import contextlib, logging, sys
from tests.support.receiving import RecordingSubscriber, receiving
from wove.callback.receiver import RunStatus
from wove.protocol.pickling import Pickled, loads

logging.basicConfig(level=logging.INFO)

class Believing(RecordingSubscriber):
    def status(self, run_id, worker):
        return RunStatus.AWAITED if run_id == "awaited-run" else RunStatus.UNKNOWN

    def receive(self, event, worker):
        for name, value in event.items():
            if isinstance(value, Pickled):
                with contextlib.suppress(Exception):
                    loads(value, label=name).close()

with receiving() as receiving_loop:
    route = receiving_loop.open(Believing(), token="open", most=%(most)d)
    receiving_loop.open(Believing(), token="signed", most=%(most)d, security={"type": "signed", "secret": %(secret)r})
    print(route.port, flush=True)
    sys.stdin.read()
print("closed", flush=True)
"""


class Answer(NamedTuple):
    status: int
    last: bool


class Target:
    """The receiver's process."""

    def __init__(self, folder: Path) -> None:
        self.log_file = folder / "log"
        source = SERVER % {"most": MAX_BYTES, "secret": SECRET}
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", source],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def memory(self, name: str) -> int:
        """``VmRSS`` or, the most that it ever was, ``VmHWM``; in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def forget_most(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> str:
        said, _ = self.process.communicate(timeout=PATIENCE)
        return said


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    found = Target(folder)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.communicate()


class Client:
    """Connections that are kept for as long as the receiver keeps them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._sock: socket.socket | None = None
        self._buffer = b""

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock, self._buffer = None, b""

    def all(self, requests: list[bytes]) -> list[int]:
        """The statuses of the answers to *requests*; one that ends the connection is followed by another connection."""
        found: list[int] = []
        while len(found) < len(requests):
            if self._sock is None:
                self._sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for answer in self._exchange(self._sock, requests[len(found) :]):
                found.append(answer.status)
                if answer.last:
                    self.close()
        return found

    def _exchange(self, sock: socket.socket, requests: list[bytes]) -> Iterator[Answer]:
        try:
            sock.sendall(b"".join(requests))
        except ConnectionError:
            pass  # it has answered and closed, and the answers are there
        for _ in requests:
            answer = self._answer(sock)
            yield answer
            if answer.last:
                return

    def _answer(self, sock: socket.socket) -> Answer:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more(sock)
        head = self._buffer[:end].lower()
        _, _, length = head.partition(b"content-length: ")
        size = end + 4 + int(length.partition(b"\r")[0] or b"0")
        while len(self._buffer) < size:
            self._more(sock)
        self._buffer = self._buffer[size:]
        return Answer(int(head[9:12]), b"connection: close" in head)

    def _more(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        assert data, "it closed without an answer"
        self._buffer += data

    def raw(self, content: bytes) -> int | None:
        """What is answered to bytes on a connection of their own, after which nothing comes."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
            answer = b""
            try:
                sock.sendall(content)
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(65536):
                    answer += data
            except ConnectionError:
                pass
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer
        return int(answer[9:12]) if answer else None


class Fuzz:
    """Requests, by kind, and which answers are right."""

    def __init__(self, folder: Path) -> None:
        self.rng = Random(f"{SEED} receiver")
        self.marker = folder / "unpickled"
        self._bomb = malformed.marker(str(self.marker))
        self._harmless = malformed.b64(pickle.dumps([1]))
        self._nonce = 0
        replayed = self.event(AWAITED, self._harmless)
        self.replayed_request = self.request(SIGNED, replayed, self.signed(replayed))

    def event(self, run_id: str, pickled: str) -> bytes:
        return json.dumps(
            {"type": "task_result", "run_id": run_id, "task_id": "t", "result_pickle": pickled}
        ).encode()

    def bomb(self, run_id: str) -> bytes:
        return self.event(run_id, self._bomb)

    def request(
        self, path: str, body: bytes, headers: list[tuple[str, str]] | None = None
    ) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers or []]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def signed(self, body: bytes, path: str = SIGNED) -> list[tuple[str, str]]:
        self._nonce += 1
        nonce = f"{self.rng.getrandbits(64):x}-{self._nonce}"
        return list(malformed.signature(SECRET, "http", path, body, nonce=nonce).items())

    def _nonsense(self, pickled: str) -> bytes:
        """An event of a run that nobody waits for, in which something is wrong besides."""
        right: dict[str, Any] = malformed.frame(self.rng, pickled, pickled)
        right |= {
            "type": self.rng.choice(["task_result", "task_error", "heartbeat", "log"]),
            "result_pickle": pickled,
        }
        return malformed.body(self.rng, right)

    # Each is a request that nothing may come of.

    def forged(self) -> bytes:
        body = self.bomb(AWAITED) if self.rng.random() < 0.8 else self._nonsense(self._bomb)
        return self.request(
            SIGNED, body, malformed.bad_signature(self.rng, SECRET, "http", SIGNED, body)
        )

    def unknown(self) -> bytes:
        if self.rng.random() < 0.3:
            return self.request(OPEN, self.bomb(f"unknown-{self.rng.getrandbits(40):x}"))
        return self.request(OPEN, self._nonsense(self._bomb))

    def nonsense(self) -> bytes:
        body = self._nonsense(self._harmless)
        return self.request(SIGNED, body, self.signed(body))

    def misled(self) -> bytes:
        path = self.rng.choice(
            [
                "/",
                "/wove/events/",
                "/wove/events/opem",
                SIGNED + "x",
                "/wove/tasks",
                "/" + "a" * 5000,
            ]
        )
        body = self.bomb(AWAITED)
        return self.request(path, body, self.signed(body, path))

    def replayed(self) -> bytes:
        return self.replayed_request

    def oversized(self) -> bytes:
        """The head of a body that is too large, or the start of one that never ends."""
        head = f"POST {OPEN} HTTP/1.1\r\nHost: x\r\n".encode()
        if self.rng.random() < 0.7:
            return (
                head
                + b"Content-Length: %d\r\n\r\n" % self.rng.choice([MAX_BYTES + 1, 10**12, 10**17])
                + bytes(20_000)
            )
        chunk = self.rng.choice([MAX_BYTES + 1, 1 << 40, (1 << 59) + 1])
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % chunk + bytes(20_000)

    def broken(self) -> bytes:
        raw = malformed.raw_http(self.rng)
        return raw.replace(b"/wove/tasks", self.rng.choice([OPEN, SIGNED, "/wove/tasks"]).encode())


ANSWERS: dict[str, set[int | None]] = {
    "forged": {400, 401, 403, 431},  # 400, 431: headers that are not even HTTP
    "unknown": {204, 400, 410},  # 204: no event at all, in the right form
    "nonsense": {204, 400, 410},
    "misled": {404},
    "replayed": {403},
    "oversized": {413},
    "broken": {None, 400, 401, 404, 405, 408, 410, 413, 431, 501, 505},
}
SHARES = {
    "forged": 6,
    "unknown": 5,
    "nonsense": 5,
    "misled": 1,
    "replayed": 1,
    "oversized": 1,
    "broken": 1,
}


def run(fuzz: Fuzz, port: int, count: int) -> Counter[tuple[str, int | None]]:
    found: Counter[tuple[str, int | None]] = Counter()
    client = Client(port)
    for kind, share in SHARES.items():
        make: Callable[[], bytes] = getattr(fuzz, kind)
        left = count * share // sum(SHARES.values())
        while left > 0:
            if kind in ("oversized", "broken"):
                statuses: list[int | None] = [client.raw(make())]
            else:
                statuses = [*client.all([make() for _ in range(min(left, IN_A_ROW))])]
            left -= len(statuses)
            for status in statuses:
                assert status in ANSWERS[kind], (SEED, kind, status)
                found[kind, status] += 1
    client.close()
    return found


@pytest.mark.timeout(240)
def test_malformed_oversized_and_forged_posts(tmp_path: Path) -> None:
    with target(tmp_path) as receiver:
        fuzz = Fuzz(tmp_path)
        client = Client(receiver.port)
        # That the mark shows what it is to show, and that a right event gets through:
        for path in (OPEN, SIGNED):
            body = fuzz.bomb(AWAITED)
            assert client.all([fuzz.request(path, body, fuzz.signed(body))]) == [204]
            assert fuzz.marker.exists()
            fuzz.marker.unlink()
        assert client.all([fuzz.replayed_request]) == [204]
        client.close()  # it would not be kept for as long as what comes now takes
        run(fuzz, receiver.port, 1000)
        before, files = receiver.memory("VmRSS"), receiver.descriptors()
        receiver.forget_most()
        began = time.monotonic()
        found = run(fuzz, receiver.port, REQUESTS)
        seconds = time.monotonic() - began
        grown = receiver.memory("VmHWM") - before
        print(
            f"seed {SEED}: {sum(found.values())} requests in {seconds:.1f} s, {grown / 2**20:.1f} MiB more at most"
        )
        print("  ", {f"{kind}: {status}": number for (kind, status), number in found.most_common()})
        assert sum(found.values()) >= REQUESTS * 0.99
        assert not fuzz.marker.exists(), f"seed {SEED}: something was unpickled"
        assert grown < SLACK_BYTES
        assert client.all([fuzz.request(OPEN, fuzz.event(AWAITED, "Ti4="))]) == [204]
        client.close()
        eventually(lambda: receiver.descriptors() <= files)
        assert receiver.close() == "closed\n"
        log = receiver.log_file.read_text()
        assert "Traceback" not in log and "ERROR" not in log, log[-3000:]
        assert SECRET not in log and "/events/" not in log


def test_large_bodies_together_take_the_memory_of_one(tmp_path: Path) -> None:
    """Each of them may come; but not all at once, and each is small again before the next one begins."""
    with target(tmp_path) as receiver:
        fuzz = Fuzz(tmp_path)
        size = 20 << 20
        body = fuzz.event("unknown", "A" * (size - 100))
        nonsense = (
            b"[" + b"[]," * (size // 3) + b"[]]"
        )  # parsed, it would take twenty times as much
        before = receiver.memory("VmRSS")
        statuses: list[int] = []

        def post(content: bytes) -> None:
            client = Client(receiver.port)
            statuses.extend(client.all([fuzz.request(OPEN, content)]))
            client.close()

        threads = [
            threading.Thread(target=post, args=(content,)) for content in [body, nonsense] * 6
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = receiver.memory("VmHWM") - before
        print(f"{len(threads)} bodies of {size >> 20} MiB: {grown / 2**20:.1f} MiB more at most")
        assert sorted(statuses) == [400] * 6 + [410] * 6
        # A body, and what is made of it: its base64 becomes three quarters of it; other text is copied, and decoded.
        assert grown < 3 * MAX_BYTES + SLACK_BYTES
