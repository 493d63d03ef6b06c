"""What a worker reports to, without Wove's receiver: it answers as told, or misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.certificates import Pair
from wove.protocol import codec, payload
from wove.protocol.frames import PYTHON, TERMINAL
from wove.protocol.payload import Claim
from wove.protocol.pickling import Pickled, dumps
from wove.protocol.signing import digest
from wove.security import NetworkExecutorSecurity, SecurityConfig

TOKEN = "a-token"


@dataclass
class Request:
    """One that came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float = field(default_factory=time.monotonic)

    @property
    def events(self) -> list[dict[str, Any]]:
        return codec.decode(self.body) if self.method == "POST" else []

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@dataclass
class Answer:
    """What to say, or to do."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait: float = 0.0
    """Seconds before."""
    then: str = ""
    """``close`` or ``reset`` the connection afterwards."""
    instead: str = ""
    """``close``, ``reset`` or ``hang`` and say nothing."""
    minor: int = 1

    def encode(self) -> bytes:
        lines = [f"HTTP/1.{self.minor} {self.status} x"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status != 204:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


TAKEN = Answer()


class Peer:
    """Listens on a port of this machine. `answer` may be replaced at any time."""

    def __init__(self, host: str = "127.0.0.1", tls: Pair | None = None) -> None:
        self.requests: list[Request] = []
        self.claims: dict[str, bytes] = {}
        self.claims_wait = threading.Event()
        self.claims_wait.set()
        self.answer: Callable[[Request], Answer] = lambda request: TAKEN
        self.host = host
        self.tls: ssl.SSLContext | None = None
        if tls is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(tls.certificate, tls.key)
        self.port = 0
        self.connections: dict[int, socket.socket] = {}
        self.opened = 0
        self.answering = 0
        self.refuse_body: Answer | None = None
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self.start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}/wove/events/{TOKEN}"

    def start(self) -> None:
        """Listen: the second time on the port of the first."""
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(100)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._thread(self._accept, listener)

    def stop(self) -> None:
        """Be gone, with all connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for connection in list(self.connections.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    # --- what came ------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for request in list(self.requests) for event in request.events]

    def of(self, run_id: str) -> list[str]:
        """The types of the events of a run, in order."""
        return [event["type"] for event in self.events if event["run_id"] == run_id]

    def end(self, run_id: str) -> dict[str, Any]:
        """The terminal event of a run, once it is there. Others that came must be the same."""
        self.until(lambda: TERMINAL & set(self.of(run_id)))
        ends = [
            event
            for event in self.events
            if event["run_id"] == run_id and event["type"] in TERMINAL
        ]
        assert {event["type"] for event in ends} == {ends[0]["type"]}
        return ends[0]

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        """Wait for it."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [(r.connection, r.types) for r in self.requests]
            with self._changed:
                self._changed.wait(0.02)

    # --- threads --------------------------------------------------------------------------------------------

    def _thread(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name="peer")
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if listener is not self._listener:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.opened += 1
            self.connections[self.opened] = connection
            self._thread(self._serve, connection, self.opened)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self.tls is not None:
                connection = self.connections[number] = self.tls.wrap_socket(
                    connection, server_side=True
                )
            with connection, connection.makefile("rb") as stream:
                while self._one(connection, stream, number):
                    pass
        except OSError:
            pass
        finally:
            with self._changed:
                del self.connections[number]
                self._changed.notify_all()

    def _one(self, connection: socket.socket, stream: Any, number: int) -> bool:
        first = stream.readline().decode()
        if not first:
            return False
        method, target, _ = first.split()
        headers: dict[str, str] = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        size = int(headers.get("content-length", 0))
        if self.refuse_body is not None and size > 4000:
            connection.sendall(self.refuse_body.encode())
            return False
        body = stream.read(size)
        if len(body) < size:
            return False
        request = Request(method, target, headers, body, number)
        with self._changed:
            self.requests.append(request)
            self.answering += 1
            self._changed.notify_all()
        try:
            return self._do(
                connection, self._claim(target) if method == "GET" else self.answer(request)
            )
        finally:
            with self._changed:
                self.answering -= 1

    def _claim(self, target: str) -> Answer:
        self.claims_wait.wait(10)
        found = self.claims.get(target.rpartition("/")[2])
        return Answer(410) if found is None else Answer(200, body=found)

    def _do(self, connection: socket.socket, answer: Answer) -> bool:
        time.sleep(answer.wait)
        if answer.instead == "hang":
            with contextlib.suppress(OSError):
                connection.recv(1)
            return False
        if not answer.instead:
            connection.sendall(answer.encode())
        how = answer.instead or answer.then
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not how


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A `Peer`. The sender that talks to it is ended, too."""
    peer = Peer()
    try:
        yield peer
    finally:
        from wove.callback import sender

        peer.close()
        sender.close(10)


# --- payloads ---------------------------------------------------------------------------------------------

_numbers = iter(range(1, 1_000_000))


def make_payload(
    peer: Peer,
    function: Any,
    /,
    *,
    run_id: str | None = None,
    delivery: Mapping[str, Any] | None = None,
    claim: Sequence[str] = (),
    security: SecurityConfig = None,
    fields: Mapping[str, Any] | None = None,
    retry_seconds: float | None = 20,
    **args: Any,
) -> dict[str, Any]:
    """A payload that calls *function* with *args* and reports to *peer*.

    Args:
        claim: The pickles that are to be fetched.
        security: Signs it.
        fields: Of the frame.
    """
    frame: dict[str, Any] = {
        "type": "run_task",
        "run_id": run_id or f"run-{next(_numbers)}",
        "task_id": "pdf",
        "callable_pickle": dumps(function, label="the callable"),
        "args_pickle": dumps(args, label="the arguments"),
        "delivery": dict(delivery or {}),
        "python": PYTHON,
        **(fields or {}),
    }
    claims: dict[str, Claim] = {}
    for name in claim:
        pickled: Pickled = frame[name]
        sha256 = digest(pickled.chunks)
        peer.claims[f"id-{sha256}"] = b"".join(pickled.chunks)
        claims[name] = Claim(f"id-{sha256}", sha256, pickled.size)
    built = payload.build(
        frame,
        adapter="test",
        callback_url=peer.url,
        claims=claims,
        sent_at=time.time(),
        retry_seconds=retry_seconds,
    )
    if security is not None:
        sign(built, security)
    result: dict[str, Any] = json.loads(json.dumps(built))
    return result


def sign(built: dict[str, Any], security: SecurityConfig) -> None:
    """Sign a payload anew."""
    signer = NetworkExecutorSecurity.from_config(security)
    built.pop(payload.SIGNATURE, None)
    signature = signer.payload_signature(
        adapter=built["adapter"], run_id=built["run_id"], body=payload.digest(built)
    )
    built[payload.SIGNATURE] = signature
