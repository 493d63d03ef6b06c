"""What no gRPC library would send to `executor="grpc"`: on the wire, frame by frame.

`test_grpc_peers` has services that misbehave by the means of a library.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.http2 import GOAWAY, GRPC, RST_STREAM, SETTINGS, Calls, Fault, frame, message
from tests.support.peers import GoneError, Line, Peer

import wove
from wove import DeliveryTimeoutError, EnvironmentExecutionError, WorkerLostError, weave

pytestmark = [pytest.mark.backend("grpc")]

MOST = 1_000_000


@pytest.fixture(autouse=True)
def _sessions_end() -> Iterator[None]:
    yield
    wove.shutdown()


def configure(peer: Peer, **config: object) -> None:
    executor_config = {"target": f"127.0.0.1:{peer.port}", "max_message_bytes": MOST, **config}
    wove.config(environments={"peer": {"executor": "grpc", "executor_config": executor_config}})


def bad() -> str:
    return "fine"


def bad_after_all(good: list[int]) -> str:
    return "fine"


bad_after_all.__name__ = "bad"


def gigabyte(calls: Calls, stream: int) -> None:
    calls.headers(stream, *GRPC)
    calls.data(stream, message(b"{", announced=1 << 30))


def half_a_reply(calls: Calls, stream: int) -> None:
    calls.headers(stream, *GRPC)
    calls.data(stream, message(b'{"events', announced=100))
    raise GoneError


def status(code: str, *more: tuple[str, str]) -> Fault:
    """An answer of something that speaks HTTP/2 and not gRPC."""

    def fault(calls: Calls, stream: int) -> None:
        calls.headers(stream, (":status", code), ("content-type", "text/html"), *more)
        calls.data(stream, b"<h1>Over there</h1>", end=True)

    return fault


def no_message(calls: Calls, stream: int) -> None:
    calls.headers(stream, *GRPC)
    calls.headers(stream, ("grpc-status", "0"), end=True)


def compressed(calls: Calls, stream: int) -> None:
    calls.headers(stream, *GRPC, ("grpc-encoding", "gzip"))
    calls.data(stream, b"\x01" + message(b"no gzip at all")[1:])
    calls.headers(stream, ("grpc-status", "0"), end=True)


def stream_reset(calls: Calls, stream: int) -> None:
    calls.send(RST_STREAM, 0, stream, (2).to_bytes(4, "big"))  # INTERNAL_ERROR


def breaks_the_protocol(calls: Calls, stream: int) -> None:
    calls.send(SETTINGS, 0, 0, b"odd")


def goes_away(calls: Calls, stream: int) -> None:
    """It says that it has not even looked at the call (RFC 9113, 6.8)."""
    calls.send(GOAWAY, 0, 0, bytes(8) + b"new version")
    raise GoneError


# What is done, how the run ends, what its error says.
Kinds = type[Exception] | tuple[type[Exception], ...]
FAULTS: dict[str, tuple[Fault, Kinds, list[str]]] = {
    "a gigabyte announced": (
        gigabyte,
        EnvironmentExecutionError,
        ["RESOURCE_EXHAUSTED", "1073741824", str(MOST), "'max_message_bytes'"],
    ),
    "half a reply": (half_a_reply, WorkerLostError, ["UNAVAILABLE"]),
    # gRPC gives the status of HTTP, or says that the stream was removed, whichever it comes to first.
    "a redirect": (
        status("307", ("location", "http://127.0.0.1:9/x")),
        (EnvironmentExecutionError, WorkerLostError),
        ["its service"],
    ),
    "404 of a web server": (
        status("404"),
        (EnvironmentExecutionError, WorkerLostError),
        ["its service"],
    ),
    "503 of a proxy": (status("503"), WorkerLostError, ["its service was lost"]),
    "a page": (status("200"), WorkerLostError, ["its service was lost", "Stream removed"]),
    "no message": (no_message, EnvironmentExecutionError, ["its service answered"]),
    "no gzip": (compressed, EnvironmentExecutionError, ["its service answered"]),
    "a reset of the stream": (stream_reset, EnvironmentExecutionError, ["INTERNAL", "RST_STREAM"]),
    # gRPC says UNKNOWN or UNAVAILABLE, as it happens.
    "a frame that is none": (
        breaks_the_protocol,
        (EnvironmentExecutionError, WorkerLostError),
        ["Stream removed", "settings frames must be"],
    ),
    "goes away": (goes_away, WorkerLostError, ["UNAVAILABLE"]),
}

TAKES_ALL = {"half a reply", "a frame that is none", "goes away"}
"""Of these faults the connection dies, and with it what else is on it."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_run_with_words(name: str) -> None:
    fault, kind, says = FAULTS[name]
    with Peer(lambda line: Calls(line).serve(fault)) as peer:
        configure(peer)
        with weave(error_mode="continue") as w:

            @w.do([1, 2, 3], environment="peer")
            def good(item: int) -> int:
                return -item

            # Beside the others, if they are to be untouched; else after them.
            w.do(environment="peer")(bad_after_all if name in TAKES_ALL else bad)

        assert w.result.good == [-1, -2, -3]
        error = w.result.exception
        assert isinstance(error, kind), repr(error)
        assert [part for part in says if part not in str(error)] == [], str(error)
        assert "task 'bad'" in str(error) and "environment 'peer'" in str(error)
        wove.shutdown()


@pytest.mark.parametrize("name", FAULTS)
def test_the_next_attempt_succeeds(name: str) -> None:
    fault, _, _ = FAULTS[name]
    left = [fault]

    def once(calls: Calls, stream: int) -> None:
        left.pop()(calls, stream)

    with Peer(lambda line: Calls(line).serve(once, len(left))) as peer:
        configure(peer)
        with weave() as w:
            w.do(environment="peer", retries=1)(bad)
        assert w.result.bad == "fine"
        assert not left
        assert peer.connections == (2 if name in TAKES_ALL else 1)
        wove.shutdown()


def test_after_a_loss_the_next_attempt_waits_for_a_fresh_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC counts a connection as ready for a moment after it has ended a call for good: nothing goes out over it."""
    monkeypatch.setattr("wove.executors.grpc.channel.SUSPECT_SECONDS", 3600.0)
    left: list[Fault] = [half_a_reply, goes_away]

    def twice(calls: Calls, stream: int) -> None:
        left.pop()(calls, stream)

    with Peer(lambda line: Calls(line).serve(twice, len(left))) as peer:
        configure(peer)
        with weave() as w:
            w.do(environment="peer", retries=2)(bad)
        assert w.result.bad == "fine"
        assert peer.connections == 3
        wove.shutdown()


# ------------------------------------------------------------------ those that take their time


def trickle_in_messages(calls: Calls, stream: int) -> None:
    """A byte of the reply in a frame, now and then: others get through in between."""
    calls.headers(stream, *GRPC)

    def work() -> None:
        with contextlib.suppress(GoneError):
            for byte in message(b'{"events": [' + b" " * 1000):
                calls.data(stream, bytes([byte]))
                time.sleep(0.1)

    threading.Thread(target=work, daemon=True).start()


def two_messages(calls: Calls, stream: int) -> None:
    """As of a method that streams its events without having said so in its initial metadata."""
    calls.headers(stream, *GRPC)
    calls.data(stream, message(b'{"events": []}') * 2)
    calls.headers(stream, ("grpc-status", "0"), end=True)


def test_a_stream_without_the_end_of_its_run_is_not_an_answer() -> None:
    with Peer(lambda line: Calls(line).serve(two_messages)) as peer:
        configure(peer)
        with pytest.raises(EnvironmentExecutionError, match="no task_result, task_error or"):
            with weave() as w:
                w.do(environment="peer")(bad)
        wove.shutdown()


def test_a_reply_of_which_grpc_shows_nothing_ends_with_the_timeout() -> None:
    with Peer(lambda line: Calls(line).serve(trickle_in_messages)) as peer:
        configure(peer, timeout=1.0)
        with weave(error_mode="continue") as w:

            @w.do([1, 2, 3], environment="peer")
            def good(item: int) -> int:
                return -item

            w.do(environment="peer")(bad)

        assert w.result.good == [-1, -2, -3]
        error = w.result.exception
        assert isinstance(error, DeliveryTimeoutError)
        assert "did not answer within 1 s (executor_config 'timeout')" in str(error)
        wove.shutdown()


def test_a_service_that_trickles_its_first_frame_is_no_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wove.executors.grpc.executor.CONNECT_SECONDS", 1.0)

    def trickle(line: Line) -> None:
        for byte in frame(SETTINGS, 0, 0, bytes([0, 3, 0, 0, 0, 100]) * 100):
            line.send(bytes([byte]))
            time.sleep(0.1)

    with Peer(trickle) as peer:
        configure(peer)
        with pytest.raises(
            WorkerLostError, match=r"its service cannot be reached: UNAVAILABLE: \w+"
        ):
            with weave() as w:
                w.do(environment="peer")(bad)
        wove.shutdown()
