"""Services that misbehave towards `executor="grpc"`, one way each, in processes of their own or on raw sockets.

Each ends its run soon, with an error that says what came; a run beside it, over the same channel, is untouched; and
where the service has come to its senses, a second attempt succeeds.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from wove import (
    DeliveryError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    WorkerLostError,
    weave,
)
from wove.executors.grpc import channel as grpc_channel

pytestmark = [pytest.mark.backend("grpc")]

PEER = Path(__file__).parents[1] / "support" / "grpc_peer.py"
MOST = 1_000_000
"""`max_message_bytes` of these tests."""

SIGNED = {"type": "signed", "secret": "that of the peer", "sign_replies": True}
"""The `SECURITY` of the peer."""

SOON = 20.0
"""Seconds after which something hangs."""


class Peer:
    """`tests/support/grpc_peer.py`, running."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, str(PEER), str(port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Peer]:
    with Peer() as running:
        yield running


@pytest.fixture(autouse=True)
def _sessions_end(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    wove.shutdown()
    # What gRPC still has for the loop that has just ended goes now, and not while the loop of another test runs, which
    # would log it.
    gc.collect()
    assert [
        record.message for record in caplog.get_records("call") if record.name == "asyncio"
    ] == []


def configure(target: str, **config: Any) -> None:
    executor_config = {"target": target, "max_message_bytes": MOST, **config}
    wove.config(environments={"peer": {"executor": "grpc", "executor_config": executor_config}})


def named(task: str) -> Callable[[], str]:
    def function() -> str:
        return "fine"

    function.__name__ = function.__qualname__ = task
    return function


def ending(task: str, **options: Any) -> BaseException:
    """How *task* ends, while one beside it succeeds."""
    with weave(error_mode="continue") as w:
        w.do(environment="peer", **options)(named(task))

        @w.do([1, 2, 3], environment="peer")
        def good(item: int) -> int:
            return -item

    assert w.result.good == [-1, -2, -3]
    error = w.result.exception
    assert error is not None
    return error


STATUSES = [
    "unknown", "invalid_argument", "not_found", "already_exists", "permission_denied", "unauthenticated", "internal",
    "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "data_loss",
    "deadline_exceeded",
]  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_comes_with_its_name_and_details(lasting: Peer, status: str) -> None:
    name = f"bad_{status}" if status != "unknown" else "bad_raises"
    configure(lasting.target)
    error = ending(name)
    assert isinstance(error, EnvironmentExecutionError)
    said = f"so says the service: {status}" if status != "unknown" else "the disk is full"
    assert f"its service answered {status.upper()}: " in str(error) and said in str(error)
    assert error.payload["source"] == "transport"


@pytest.mark.parametrize("status", ["unavailable", "cancelled"])
def test_a_service_that_gives_a_run_up_has_lost_it(lasting: Peer, status: str) -> None:
    configure(lasting.target)
    error = ending(f"bad_{status}")
    assert isinstance(error, WorkerLostError)
    assert f"{status.upper()}: so says the service: {status}" in str(error)


BODIES: dict[str, tuple[type[BaseException], list[str]]] = {
    "invalid_json": (EnvironmentExecutionError, ["answered OK", "not JSON", '{"events": [']),
    "page": (EnvironmentExecutionError, ["not JSON", "Welcome!"]),
    "no_event": (EnvironmentExecutionError, ["not an event", "done"]),
    "object": (EnvironmentExecutionError, ["without a run_id", "ok=True"]),
    "unknown": (EnvironmentExecutionError, ["'task_pending' is not a type of event"]),
    "foreign": (EnvironmentExecutionError, ["another run, 'somebody-elses'"]),
    "only_started": (EnvironmentExecutionError, ["without telling how the run ended"]),
    "no_events": (EnvironmentExecutionError, ["answered OK with nothing"]),
    "empty": (EnvironmentExecutionError, ["answered OK with nothing"]),
    "pickle": (Exception, ["the result of task 'bad_pickle'"]),
    "base64": (EnvironmentExecutionError, ["result_pickle is not base64"]),
    "too_large": (
        EnvironmentExecutionError,
        ["RESOURCE_EXHAUSTED", "3000000", "1000000", "'max_message_bytes'"],
    ),
    "long_details": (EnvironmentExecutionError, ["INTERNAL: a long story a long", "..."]),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_reply_that_is_none(lasting: Peer, name: str) -> None:
    configure(lasting.target)
    error = ending(f"bad_{name}")
    kind, parts = BODIES[name]
    assert isinstance(error, kind)
    for part in parts:
        assert part in str(error)
    assert len(str(error)) < 1500


@pytest.mark.parametrize(
    "name", ["invalid_json", "empty", "only_started", "unavailable", "internal", "raises"]
)
def test_retries_then_work(name: str) -> None:
    with Peer() as peer:
        configure(peer.target)
        with weave() as w:
            w.do(environment="peer", retries=1)(named(f"once_{name}"))
        assert w.result.final == "fine"


@pytest.mark.parametrize("how", ["not_at_all", "by_another", "for_another", "and_changed"])
def test_a_reply_that_is_not_authentic_is_not_unpickled(lasting: Peer, how: str) -> None:
    """Loading it would end this process."""
    configure(lasting.target, security=SIGNED)
    with pytest.raises(DeliveryError, match="answered OK, and that is not authentic: ") as caught:
        with weave() as w:
            w.do(environment="peer")(named(f"bad_signed_{how}"))
    assert isinstance(caught.value.__cause__, PermissionError)
    with weave() as w:
        w.do(environment="peer")(named("bad_signed_rightly"))
    assert w.result.final == "fine"


def test_killed_in_the_middle_of_a_task() -> None:
    with Peer() as peer:
        configure(peer.target, reconnect_timeout=0.2)
        with pytest.raises(WorkerLostError, match="lost before it had answered: UNAVAILABLE: "):
            with weave() as w:
                w.do(environment="peer")(named("bad_killed"))
        # And nobody listens there any more: said soon, though there was a connection before.
        with pytest.raises(
            WorkerLostError, match=r"cannot be reached: UNAVAILABLE: .*refused.*reconnect_timeout"
        ):
            with weave() as w:
                w.do(environment="peer")(named("never"))


def test_killed_and_started_again() -> None:
    with Peer() as first:
        configure(first.target, reconnect_timeout=60.0)
        with weave() as w:
            w.do(environment="peer")(named("before"))
        first.process.kill()
        first.process.wait()
        again: list[Peer] = []
        starting = threading.Timer(0.5, lambda: again.append(Peer(first.port)))
        starting.start()
        try:
            # Nothing is there when this run starts; it waits for the service, and is sent once.
            with weave() as w:
                w.do(environment="peer")(named("after"))
            assert w.result.final == "fine"
        finally:
            starting.join()
            for peer in again:
                peer.__exit__()


def test_a_method_that_it_has_not(lasting: Peer) -> None:
    configure(lasting.target, method="/other.Service/Send")
    with pytest.raises(
        EnvironmentExecutionError, match="UNIMPLEMENTED: .*Is executor_config 'method' the one"
    ):
        with weave() as w:
            w.do(environment="peer")(named("never"))


def test_the_timeout_of_a_call(lasting: Peer) -> None:
    configure(lasting.target, timeout=0.5)
    error = ending("bad_silent")
    assert isinstance(error, DeliveryTimeoutError)
    assert "did not answer within 0.5 s (executor_config 'timeout')" in str(error)


# ------------------------------------------------------------------ no gRPC at all


@contextlib.contextmanager
def raw_peer(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something that listens, and gives each connection to *behave*."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            with contextlib.suppress(OSError):
                behave(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        for connection in held:
            connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def speak_http(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\nwhat?")


def greet(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize(
    "behave", [reset, speak_http, greet, socket.socket.close], ids=lambda fn: fn.__name__
)
def test_no_grpc_service(behave: Callable[[socket.socket], object]) -> None:
    with raw_peer(behave) as target:
        configure(target)
        began = time.monotonic()
        with pytest.raises(
            WorkerLostError, match=r"its service cannot be reached: UNAVAILABLE: \w+"
        ):
            with weave() as w:
                w.do(environment="peer")(named("never"))
        assert time.monotonic() - began < SOON


def test_accepts_and_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.executors.grpc.executor.CONNECT_SECONDS", 1.0)
    with raw_peer(lambda connection: None) as target:
        configure(target)
        began = time.monotonic()
        with pytest.raises(
            WorkerLostError, match=r"its service cannot be reached: UNAVAILABLE: \w+"
        ):
            with weave() as w:
                w.do(environment="peer")(named("never"))
        assert time.monotonic() - began < SOON


def test_refused_at_once_and_then_there() -> None:
    with Peer() as peer:
        port = peer.port
    configure(f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(WorkerLostError, match="Connection refused"):
        with weave() as w:
            w.do(environment="peer")(named("never"))
    assert time.monotonic() - began < SOON
    with Peer(port):
        with weave() as w:
            w.do(environment="peer")(named("fine"))
        assert w.result.final == "fine"


def test_no_such_name() -> None:
    configure("no-such-host.invalid:1", insecure=True)
    with pytest.raises(
        WorkerLostError, match=r"cannot be reached: UNAVAILABLE: .*no-such-host\.invalid"
    ):
        with weave() as w:
            w.do(environment="peer")(named("never"))


def test_a_busy_loop_is_no_dead_service(lasting: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of this test runs tasks on its event loop, as many will: it answers nothing meanwhile."""
    monkeypatch.setattr(grpc_channel, "NUDGE_SECONDS", 0.1)
    configure(lasting.target)
    with weave() as w:

        @w.do(environment="peer")
        def slow() -> str:
            import time

            time.sleep(1.5)
            return "done"

    assert w.result.final == "done"


def test_runs_behind_the_bound_are_no_runs_without_a_connection(lasting: Peer) -> None:
    """They wait longer than `reconnect_timeout`, for their turn and for nothing else."""
    configure(lasting.target, max_concurrent_calls=2, reconnect_timeout=0.1)
    with weave() as w:

        @w.do(range(8), environment="peer")
        def nap(item: int) -> int:
            import time

            time.sleep(0.1)
            return item

    assert w.result.nap == list(range(8))


def test_gives_up_only_those_that_wait_too_long() -> None:
    """The service dies; of two runs that then wait for it, one has waited long enough before the other has."""
    with Peer() as peer:
        configure(peer.target, reconnect_timeout=1.0)
        with weave() as w:
            w.do(environment="peer")(named("before"))
        peer.process.kill()
        peer.process.wait()
        with weave(error_mode="continue") as w:
            # What is sent before the end of the connection has been noticed is lost with it, and waits on its next try.
            w.do(environment="peer", retries=1)(named("first"))

            @w.do
            def later() -> None:
                time.sleep(0.6)

            @w.do(environment="peer")
            def second(later: None) -> None: ...

        for name in ("first", "second"):
            assert isinstance(w.result[name], WorkerLostError)
            assert "for 1 s: reconnect_timeout" in str(w.result[name])
