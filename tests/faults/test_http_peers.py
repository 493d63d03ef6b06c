"""Services that misbehave towards `executor="http"`, one way each, over real sockets.

Each ends its run soon, with an error that says what came; a run beside it, in the same environment, is untouched; and
where the service has come to its senses, a second attempt succeeds, over a fresh connection.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.support.certificates import Certificates
from tests.support.peers import GoneError, Line, Peer, Request, answer, events, serve

import wove
from wove import (
    DeliveryError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    WorkerLostError,
    weave,
)
from wove.executors.http import connection as http_connection
from wove.protocol import names
from wove.security import NetworkExecutorSecurity

pytestmark = [
    pytest.mark.backend("http"),
    pytest.mark.usefixtures("no_leaks"),
]

Fault = Callable[[Line, Request], object]

MOST = 1_000_000
"""`max_message_bytes` of these tests."""


def configure(url: str, **config: Any) -> None:
    executor_config = {"url": url, "max_message_bytes": MOST, **config}
    wove.config(environments={"peer": {"executor": "http", "executor_config": executor_config}})


class Faulty:
    """Does *fault* to the task ``bad``, *times* times; runs every other, after ``bad`` has had it."""

    def __init__(self, fault: Fault, times: int = 1_000_000) -> None:
        self.fault, self.left = fault, times
        self.begun = threading.Event()

    def __call__(self, line: Line) -> None:
        while True:
            request = line.request()
            if request.frame["type"] == "cancel_task":
                line.send(answer(b"", "204 No Content"))
            elif request.frame["task_id"] == "bad" and self.left:
                self.left -= 1
                self.begun.set()
                self.fault(line, request)
            else:
                assert self.begun.wait(30)
                line.send(answer(events(request.frame)))


def ending(peer: Peer) -> BaseException:
    """How the task ``bad`` ends, while one beside it succeeds."""
    configure(peer.url)
    with weave(error_mode="continue") as w:

        @w.do(environment="peer")
        def bad() -> int:
            return 1

        @w.do([1, 2, 3], environment="peer")
        def good(item: int) -> int:
            return -item

    assert w.result.good == [-1, -2, -3]
    error = w.result.exception
    assert error is not None
    return error


# ------------------------------------------------------------------ the faults


def reset(line: Line, _: Request) -> None:
    line.reset()
    raise GoneError


def close(line: Line, _: Request) -> None:
    raise GoneError


def sending(data: bytes, *, then: Callable[[Line], object] = Line.until_gone) -> Fault:
    def fault(line: Line, _: Request) -> None:
        line.send(data)
        then(line)

    return fault


def gone(_: Line) -> None:
    raise GoneError


def foreign(line: Line, request: Request) -> None:
    line.send(answer(events(request.frame, run_id="somebody-elses")))


def only_started(line: Line, request: Request) -> None:
    line.send(answer(events(request.frame)[:1]))


def unknown_event(line: Line, request: Request) -> None:
    line.send(answer([{"type": "task_pending", "run_id": request.frame["run_id"]}]))


def bad_pickle(line: Line, request: Request) -> None:
    found = events(request.frame)
    found[1]["result_pickle"] = base64.b64encode(b"\x80\x05garbage").decode()
    line.send(answer(found))


def bad_base64(line: Line, request: Request) -> None:
    found = events(request.frame)
    found[1]["result_pickle"] = "no base64 at all!"
    line.send(answer(found))


def half_a_stream(line: Line, request: Request) -> None:
    started = json.dumps(events(request.frame)[0]).encode() + b"\n"
    line.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n" % (len(started), started)
    )
    raise GoneError


CHUNKS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
GIGABYTE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"
)


def endless_chunks(line: Line) -> None:
    while True:
        line.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


Expected = tuple[Fault, type[BaseException], list[str]]

FAULTS: dict[str, Expected] = {
    "reset": (
        reset,
        WorkerLostError,
        ["lost the connection (ConnectionResetError", "without an answer"],
    ),
    "dropped mid-task": (close, WorkerLostError, ["closed the connection without an answer"]),
    "dropped in the head": (
        sending(b"HTTP/1.1 200 O", then=gone),
        WorkerLostError,
        ["in the head of its answer: 'HTTP/1.1 200 O'"],
    ),
    "dropped in the body": (
        sending(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"events', then=gone),
        WorkerLostError,
        ["after 8 of 100 bytes of the body of its answer 200 OK"],
    ),
    "dropped in a chunk": (
        sending(CHUNKS + b'100\r\n{"events', then=gone),
        WorkerLostError,
        ["after 8 bytes of the body of its answer 200 OK"],
    ),
    "dropped in a stream": (
        half_a_stream,
        WorkerLostError,
        ["bytes of the body of its answer 200 OK"],
    ),
    "redirect": (
        sending(
            answer(
                b"over there",
                "307 Temporary Redirect",
                "text/plain",
                Location="http://127.0.0.1:9/x",
            )
        ),
        EnvironmentExecutionError,
        [
            "307 Temporary Redirect",
            "'over there'",
            "Redirects to 'http://127.0.0.1:9/x' are not followed",
        ],
    ),
    "400 with a text": (
        sending(answer(b"what is this?", "400 Bad Request", "text/plain")),
        EnvironmentExecutionError,
        ["400 Bad Request", "'what is this?'"],
    ),
    "403 with a text": (
        sending(answer(b"no signature", "403 Forbidden", "text/plain")),
        EnvironmentExecutionError,
        ["403 Forbidden", "'no signature'", "'security'"],
    ),
    "404 with a page": (
        sending(answer(b"<h1>Not here</h1>", "404 Not Found", "text/html")),
        EnvironmentExecutionError,
        ["404 Not Found", "<h1>Not here</h1>", "Is the path in the url right?"],
    ),
    "500 with events": (
        lambda line, request: line.send(answer(events(request.frame), "500 Internal Server Error")),
        EnvironmentExecutionError,
        ["500 Internal Server Error", '{"events"'],
    ),
    "500 that breaks off": (
        sending(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\nthe disk is", then=gone),
        EnvironmentExecutionError,
        ["500 Oh", "'the disk is'"],
    ),
    "502 of a proxy": (
        sending(
            b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n<html>nginx</html>", then=gone
        ),
        EnvironmentExecutionError,
        ["502 Bad Gateway", "<html>nginx</html>"],
    ),
    "503 of a proxy": (
        sending(answer(b"upstream is down", "503 Service Unavailable", "text/plain")),
        EnvironmentExecutionError,
        ["503 Service Unavailable", "'upstream is down'"],
    ),
    "500 and a gigabyte": (
        sending(
            b"HTTP/1.1 500 Oh\r\nContent-Length: 1073741824\r\n\r\n" + b"a long story " * 10_000
        ),
        EnvironmentExecutionError,
        ["500 Oh", "'a long story a long"],
    ),
    "invalid JSON": (
        sending(answer(b'{"events": [')),
        EnvironmentExecutionError,
        ["200 OK", "not JSON", '{"events": ['],
    ),
    "a page": (
        sending(answer(b"<h1>Welcome to nginx!</h1>", kind="text/html")),
        EnvironmentExecutionError,
        ["200 OK", "not JSON", "Welcome to nginx!"],
    ),
    "JSON that is not an event": (
        sending(answer(b'"done"')),
        EnvironmentExecutionError,
        ["200 OK", "not an event", "done"],
    ),
    "an object that is not an event": (
        sending(answer(b'{"ok": true}')),
        EnvironmentExecutionError,
        ["200 OK", "without a run_id", "ok=True"],
    ),
    "an unknown event": (
        unknown_event,
        EnvironmentExecutionError,
        ["200 OK", "'task_pending' is not a type of event"],
    ),
    "an event of another run": (
        foreign,
        EnvironmentExecutionError,
        ["another run, 'somebody-elses'"],
    ),
    "only task_started": (
        only_started,
        EnvironmentExecutionError,
        ["200 OK", "without telling how the run ended"],
    ),
    "nothing": (
        sending(answer(b"", "204 No Content")),
        EnvironmentExecutionError,
        ["204 No Content", "with nothing"],
    ),
    "an empty body": (sending(answer(b"")), EnvironmentExecutionError, ["200 OK", "with nothing"]),
    "a pickle that does not load": (bad_pickle, Exception, ["the result of task 'bad'"]),
    "a pickle that is not base64": (
        bad_base64,
        EnvironmentExecutionError,
        ["result_pickle is not base64"],
    ),
    "compressed": (
        sending(answer(b"\x1f\x8b", Content_Encoding="gzip")),
        EnvironmentExecutionError,
        ["200 OK", "in the encoding 'gzip', unasked"],
    ),
    "a gigabyte announced": (
        sending(GIGABYTE),
        EnvironmentExecutionError,
        ["1073741824 bytes", "'max_message_bytes'"],
    ),
    "a gigabyte in a chunk": (
        sending(CHUNKS + b"40000000\r\n"),
        EnvironmentExecutionError,
        ["1073741824 bytes", "'max_message_bytes'"],
    ),
    "chunks without end": (
        sending(CHUNKS, then=endless_chunks),
        EnvironmentExecutionError,
        ["200 OK", "more than 1000000 (executor_config 'max_message_bytes')"],
    ),
    "another protocol": (
        sending(b"220 mail.example ESMTP\r\n"),
        EnvironmentExecutionError,
        ["not an HTTP/1.1 answer", "'220 mail.example ESMTP'"],
    ),
    "two lengths": (
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\n{}"),
        EnvironmentExecutionError,
        ["Content-Length '2, 20'"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_run_with_words_and_no_other(name: str) -> None:
    fault, kind, says = FAULTS[name]
    with Peer(Faulty(fault)) as peer:
        error = ending(peer)
        wove.shutdown()
    assert isinstance(error, kind)
    assert [part for part in says if part not in str(error)] == [], str(error)
    assert "bad" in str(error)


@pytest.mark.parametrize("name", FAULTS)
def test_the_next_attempt_succeeds_on_a_fresh_connection(name: str) -> None:
    fault, _, _ = FAULTS[name]
    behave = Faulty(fault, 1)
    with Peer(behave) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(environment="peer", retries=1)
            def bad() -> str:
                return "second time lucky"

        assert w.result.bad == "second time lucky"
        # A result that does not unpickle says nothing against the connection over which it came.
        assert peer.connections == (1 if name == "a pickle that does not load" else 2)
        wove.shutdown()


# ------------------------------------------------------------------ those that take their time


def test_a_service_that_answers_nothing_ends_with_the_timeout() -> None:
    with Peer(Faulty(lambda line, _: line.until_gone())) as peer:
        configure(peer.url, timeout=0.3)
        with pytest.raises(
            DeliveryTimeoutError,
            match=r"no whole answer within 0\.3 s \(executor_config 'timeout'\)",
        ):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        wove.shutdown()


def trickle(data: bytes, pause: float) -> Fault:
    def fault(line: Line, _: Request) -> None:
        for byte in data:
            line.send(bytes([byte]))
            time.sleep(pause)
        line.until_gone()

    return fault


LINES = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"", "in the head of its answer: 'HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n",
            "of 400 bytes of the body of its answer 200 OK",
        ),
        (CHUNKS + b"1000\r\n", "bytes of the body of its answer 200 OK"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "bytes of the body of its answer 200 OK"),
        (LINES + b"1000\r\n", "bytes of the body of its answer 200 OK"),
    ],
    ids=["head", "length", "chunk", "until close", "line"],
)
def test_a_service_that_trickles_is_given_up_without_any_timeout(
    start: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "UNIT_SECONDS", 0.5)

    def fault(line: Line, request: Request) -> None:
        line.send(start)
        trickle(
            b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 300 if not start else b'{"a": "' + b"b" * 300, 0.1
        )(line, request)

    with Peer(Faulty(fault)) as peer:
        error = ending(peer)
        wove.shutdown()
    assert isinstance(error, WorkerLostError)
    assert "came too slowly" in str(error) and says in str(error)


def test_the_trickle_is_noticed_as_it_is_configured() -> None:
    """The real constant: one byte a second is given up after ten seconds."""
    with Peer(Faulty(trickle(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 300, 1.0))) as peer:
        began = time.monotonic()
        assert "came too slowly" in str(ending(peer))
        assert time.monotonic() - began < 30
        wove.shutdown()


def test_a_task_that_takes_long_is_no_trickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither silence before the answer, nor interim answers, nor silence between the lines of a stream."""
    monkeypatch.setattr(http_connection, "UNIT_SECONDS", 0.3)

    def slowly(line: Line) -> None:
        while True:
            request = line.request()
            found = [json.dumps(event).encode() + b"\n" for event in events(request.frame)]
            time.sleep(0.6)
            line.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            time.sleep(0.6)
            line.send(LINES)
            for text in [*[b"\n"] * 3, *found]:
                time.sleep(0.6)
                line.send(b"%x\r\n%b\r\n" % (len(text), text))
            line.send(b"0\r\n\r\n")

    with Peer(slowly) as peer:
        configure(peer.url)
        for _ in range(2):
            with weave() as w:

                @w.do(environment="peer")
                def patient() -> int:
                    return 7

            assert w.result.patient == 7
        assert peer.connections == 1
        wove.shutdown()


# ------------------------------------------------------------------ before there is a connection


def test_a_refused_connection_ends_the_run_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    configure(f"http://127.0.0.1:{port}/")
    began = time.monotonic()
    with pytest.raises(
        WorkerLostError, match="no connection to http://127.0.0.1:.*ConnectionRefusedError"
    ):
        with weave() as w:

            @w.do(range(300), environment="peer")
            def bad(item: int) -> None: ...

    assert time.monotonic() - began < 5
    wove.shutdown()


def test_a_name_that_does_not_exist_ends_the_run_at_once() -> None:
    configure("http://nobody-is-called.invalid/", insecure=True)
    with pytest.raises(
        WorkerLostError, match=r"no connection to http://nobody-is-called\.invalid:80: gaierror"
    ):
        with weave() as w:

            @w.do(environment="peer")
            def bad() -> None: ...

    wove.shutdown()


def test_a_service_that_never_accepts_ends_with_connect_timeout() -> None:
    """Its queue is full: the kernel answers no more."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # one more than the queue holds, on every kernel
            raw = stack.enter_context(socket.socket())
            raw.setblocking(False)
            raw.connect_ex(listener.getsockname())
        configure(f"http://127.0.0.1:{listener.getsockname()[1]}/", connect_timeout=0.5)
        with pytest.raises(
            WorkerLostError, match=r"none within 0\.5 s \(executor_config 'connect_timeout'\)"
        ):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        wove.shutdown()


def test_a_service_that_greets_first_is_quoted() -> None:
    with Peer(lambda line: (line.send(b"SSH-2.0-OpenSSH_9.6\r\n"), line.until_gone())) as peer:
        configure(peer.url)
        with pytest.raises(
            (WorkerLostError, EnvironmentExecutionError), match=r"SSH-2\.0-OpenSSH_9\.6"
        ):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        wove.shutdown()


@pytest.mark.parametrize("answered", [False, True])
def test_a_service_that_is_restarted_is_waited_for(answered: bool) -> None:
    """Once there was a connection, a refused one is tried again for `reconnect_timeout`."""
    with Peer(serve) as peer:
        configure(peer.url, reconnect_timeout=20.0 if answered else 0.4)
        with weave() as w:

            @w.do(environment="peer")
            def first() -> int:
                return 1

        port = peer.port
    again: list[Peer] = []

    def restart() -> None:
        time.sleep(0.7)
        peer = Peer(serve)
        peer._listener.close()
        peer._listener = socket.create_server(("127.0.0.1", port))
        again.append(peer.__enter__())

    restarting = threading.Thread(target=restart)
    if answered:
        restarting.start()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [known.__exit__() for known in again])
        if not answered:
            stack.enter_context(
                pytest.raises(WorkerLostError, match="no connection to .*ConnectionRefusedError")
            )
        with weave() as w:

            @w.do([1, 2, 3], environment="peer")
            def second(item: int) -> int:
                return item + 1

        assert w.result.second == [2, 3, 4]
        restarting.join()
        wove.shutdown()
    wove.shutdown()


# ------------------------------------------------------------------ connections that are reused


def test_a_connection_that_its_service_closed_while_idle_costs_no_run() -> None:
    closed = threading.Semaphore(0)

    def once(line: Line) -> None:
        request = line.request()
        line.send(answer(events(request.frame)))
        line.raw.shutdown(socket.SHUT_RDWR)
        closed.release()

    with Peer(once) as peer:
        configure(peer.url)
        for number in range(30):
            with weave() as w:

                @w.do(environment="peer")
                def short(number: int = number) -> int:
                    return number

            assert w.result.short == number
            assert closed.acquire(timeout=30)
        assert peer.connections == 30
        wove.shutdown()


def test_a_reused_connection_that_dies_under_a_request_says_that_it_was_one() -> None:
    def twice(line: Line) -> None:
        request = line.request()
        line.send(answer(events(request.frame)))
        line.request()

    with Peer(twice) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(environment="peer")
            def first() -> int:
                return 1

        with pytest.raises(
            WorkerLostError,
            match=r"without an answer\. The connection had been used before.*unasked",
        ):
            with weave() as w:

                @w.do(environment="peer")
                def second() -> int:
                    return 2

        assert len(peer.requests) == 2  # not sent again
        wove.shutdown()


def test_more_than_an_answer_is_not_the_answer_to_the_next_request() -> None:
    """What is left over would be taken for it, if the connection were used again."""

    def twofold(line: Line) -> None:
        request = line.request()
        line.send(answer(events(request.frame)) + answer(events(request.frame)))
        line.until_gone()

    with Peer(twofold) as peer:
        configure(peer.url)
        for number in range(5):
            with weave() as w:

                @w.do(environment="peer")
                def single(number: int = number) -> int:
                    return number

            assert w.result.single == number
        assert peer.connections == 5
        wove.shutdown()


# ------------------------------------------------------------------ answers that come early


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    return context


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("linger", [False, True], ids=["closes", "lingers"])
def test_an_answer_before_the_request_is_written_is_the_answer(
    linger: bool, encrypted: bool, certificates: Certificates
) -> None:
    """413: the service reads nothing of the body, answers, and closes; what follows on the wire is a reset."""

    def refuse(line: Line) -> None:
        line.head()
        line.send(
            answer(b"too much for me", "413 Content Too Large", "text/plain", Connection="close")
        )
        if linger:
            line.until_gone()

    with Peer(refuse, tls=server_context(certificates) if encrypted else None) as peer:
        configure(
            peer.url, max_message_bytes=100_000_000, root_certificates=str(certificates.authority)
        )
        for _ in range(10):
            with pytest.raises(
                EnvironmentExecutionError, match=r"413 Content Too Large: 'too much for me'"
            ):
                with weave(block=bytes(20_000_000)) as w:

                    @w.do(environment="peer")
                    def bad(block: bytes) -> None: ...

        wove.shutdown()


# ------------------------------------------------------------------ over TLS


@pytest.mark.parametrize("orderly", [False, True])
def test_an_answer_that_ends_with_its_connection_is_whole_if_tls_says_so(
    orderly: bool, certificates: Certificates
) -> None:
    def old(line: Line) -> None:
        request = line.request()
        body = json.dumps(events(request.frame)[1]).encode()
        line.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
        if orderly:
            with contextlib.suppress(OSError):
                line.raw.unwrap()  # type: ignore[attr-defined]

    with Peer(old, tls=server_context(certificates)) as peer:
        configure(peer.url, root_certificates=str(certificates.authority))
        expected = (
            contextlib.nullcontext()
            if orderly
            else pytest.raises(WorkerLostError, match="close_notify")
        )
        with expected:
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> int:
                    return 5

            assert w.result.bad == 5
        wove.shutdown()


@pytest.mark.parametrize(
    "name", ["reset", "dropped mid-task", "dropped in the body", "a gigabyte announced", "a page"]
)
def test_a_fault_over_tls(name: str, certificates: Certificates) -> None:
    fault, kind, says = FAULTS[name]
    with Peer(Faulty(fault, 1), tls=server_context(certificates)) as peer:
        configure(peer.url, root_certificates=str(certificates.authority))
        with weave(error_mode="continue") as w:

            @w.do(environment="peer")
            def bad() -> int:
                return 1

        error = w.result.exception
        assert isinstance(error, kind)
        # How a connection ended has other words: TLS says when it was not in good order.
        assert [
            part for part in says if "connection" not in part and part not in str(error)
        ] == [], str(error)
        with weave() as w:

            @w.do(environment="peer")
            def again() -> int:
                return 2

        assert w.result.again == 2
        wove.shutdown()


def test_bytes_that_are_not_authentic_end_the_run(certificates: Certificates) -> None:
    def forge(line: Line) -> None:
        line.request()
        plain = socket.socket(fileno=os.dup(line.raw.fileno()))
        with plain:
            plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody has encrypted
            line.until_gone()

    with Peer(forge, tls=server_context(certificates)) as peer:
        configure(peer.url, root_certificates=str(certificates.authority))
        with pytest.raises(WorkerLostError, match="SSLError"):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        wove.shutdown()


# ------------------------------------------------------------------ credentials


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
@pytest.mark.parametrize(
    "security",
    [{"type": "bearer", "token": "the-token"}, {"type": "signed", "secret": "s" * 32}],
    ids=["bearer", "signed"],
)
def test_a_redirect_carries_no_credential_and_no_task_anywhere(
    status: str, security: dict[str, str]
) -> None:
    with Peer(serve) as other:
        with Peer(Faulty(sending(answer(b"", status, Location=other.url)))) as peer:
            configure(peer.url, security=security)
            with pytest.raises(
                EnvironmentExecutionError, match=rf"{status}.*{other.url}.*not followed"
            ):
                with weave() as w:

                    @w.do(environment="peer")
                    def bad() -> None: ...

            wove.shutdown()
        assert (other.connections, other.requests) == (0, [])


# ------------------------------------------------------------------ signed answers


class Tripwire:
    """Whoever unpickles it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    "kind",
    [
        "unsigned",
        "by another",
        "of another request",
        "a stream",
        "a stream in another order",
        "an error",
        "signed",
        "a signed stream",
    ],
)
def test_an_answer_that_is_not_signed_is_not_unpickled(kind: str, tmp_path: Path) -> None:
    """With ``sign_replies``, whoever is on the way can end a run, and do nothing else."""
    config = {"type": "signed", "secret": "of both", "sign_replies": True}
    ours = NetworkExecutorSecurity.from_config(config)
    another = NetworkExecutorSecurity.from_config({**config, "secret": "of another"})
    marker = tmp_path / "unpickled"
    first: list[dict[str, str]] = []

    def answering(line: Line) -> None:
        while True:
            request = line.request()
            first.append(
                {name: held for name, held in request.headers.items() if name.startswith("x-wove")}
            )
            found = events(request.frame)
            if kind not in ("signed", "a signed stream"):
                found[1]["result_pickle"] = base64.b64encode(
                    cloudpickle.dumps(Tripwire(str(marker)))
                ).decode()
            body = json.dumps({"events": found}).encode()
            signer = another if kind == "by another" else ours
            headers = (
                {**first[-1], "x-wove-nonce": "0" * 32}
                if kind == "of another request"
                else first[-1]
            )
            signature = signer.reply_signature(
                transport="http", target="/tasks", headers=headers, body=body
            )
            fields = {} if kind == "unsigned" else {"X_Wove_Reply_Signature": str(signature)}
            if kind == "a stream":
                body = b"".join(json.dumps(event).encode() + b"\n" for event in found)
                line.send(answer(body, kind=names.LINES_TYPE, **fields))
            elif kind in ("a signed stream", "a stream in another order"):
                lines = b""
                for number, event in enumerate(found):
                    text = json.dumps(event).encode()
                    count = number if kind == "a signed stream" else 1 - number
                    each = ours.reply_signature(
                        transport="http",
                        target="/tasks",
                        headers=headers,
                        body=text,
                        sequence=count,
                    )
                    lines += f"{each}\n".encode() + text + b"\n"
                line.send(answer(lines, kind=names.SIGNED_LINES_TYPE))
            elif kind == "an error":
                line.send(answer(body, "500 Oh", **fields))
            else:
                line.send(answer(body, **fields))

    with Peer(answering) as peer:
        configure(peer.url, security=config)
        if kind in ("signed", "a signed stream"):
            expected: Any = contextlib.nullcontext()
        elif kind == "an error":
            expected = pytest.raises(EnvironmentExecutionError, match="500 Oh")
        else:
            expected = pytest.raises(DeliveryError, match="200 OK, and that is not authentic")
        with expected:
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> int:
                    return 6

            assert w.result.bad == 6
        assert peer.requests[0].headers["accept"] == f"{names.JSON_TYPE}, {names.SIGNED_LINES_TYPE}"
        wove.shutdown()
    assert not marker.exists()


@pytest.mark.parametrize("length", [0, 60, 130])
def test_a_service_that_repeats_what_it_was_sent_puts_no_credential_into_the_error(
    length: int,
) -> None:
    """As the error pages of web frameworks do while they are being developed."""

    def echo(line: Line) -> None:
        request = line.request()
        names = ("authorization", "x-api-key")
        said = "." * length + ", ".join(f"{name}: {request.headers[name]!r}" for name in names)
        line.send(answer(said, "403 Forbidden", "text/plain"))

    with Peer(echo) as peer:
        token, key = "t0ken-of-this-test-" + "t" * 60, "key-of-this-test"
        configure(peer.url, security={"type": "bearer", "token": token}, headers={"X-Api-Key": key})
        with pytest.raises(
            EnvironmentExecutionError, match=r"403 Forbidden: .\.*authorization: 'Bearer \*\*\*"
        ) as caught:
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        assert token[:12] not in str(caught.value) and key[:8] not in str(caught.value)
        wove.shutdown()


# ------------------------------------------------------------------ services that have no room


def busy(line: Line, request: Request) -> None:
    error = {
        "kind": "WorkerBusyError",
        "message": "64 runs are enough",
        "retryable": True,
        "source": "executor",
    }
    event = {"type": "task_error", "run_id": request.frame["run_id"], "error": error}
    line.send(answer([event], "503 Service Unavailable", Retry_After="1"))


def busy_unread(line: Line, request: Request) -> None:
    """Before it has looked into the request, so that it cannot say which run it was."""
    error = {
        "kind": "WorkerBusyError",
        "message": "too many requests",
        "retryable": True,
        "source": "executor",
    }
    line.send(
        answer([{"type": "task_error", "error": error}], "503 Service Unavailable", Retry_After="1")
    )


@pytest.mark.parametrize("how", [busy, busy_unread])
def test_a_busy_service_is_offered_the_run_again_over_the_same_connection(how: Fault) -> None:
    behave = Faulty(how, 3)
    with Peer(behave) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(environment="peer")
            def bad() -> str:
                return "there was room in the end"

        assert w.result.bad == "there was room in the end"
        assert (len(peer.requests), peer.connections) == (4, 1)
        wove.shutdown()


def test_a_service_that_stays_busy_ends_the_run_in_its_own_words() -> None:
    with Peer(Faulty(busy)) as peer:
        configure(peer.url, busy_timeout=0.3)
        with pytest.raises(EnvironmentExecutionError, match="64 runs are enough"):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> None: ...

        wove.shutdown()


def test_a_service_that_says_busy_twice_is_sent_the_run_once_more() -> None:
    def behave(line: Line) -> None:
        while True:
            request = line.request()
            if len(peer.requests) > 1:
                line.send(answer(events(request.frame)))
                continue
            error = {
                "kind": "WorkerBusyError",
                "message": "too many",
                "retryable": True,
                "source": "executor",
            }
            said = (
                json.dumps(
                    {"type": "task_error", "run_id": request.frame["run_id"], "error": error}
                )
                + "\n"
            )
            text = (said * 2).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
            line.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))

    with Peer(behave) as peer:
        configure(peer.url)
        for count in (2, 3):
            with weave() as w:

                @w.do(environment="peer")
                def bad() -> int:
                    import time

                    return time.sleep(0.3) or 1  # by then it would have been sent again

            assert w.result.bad == 1
            assert len(peer.requests) == count
        wove.shutdown()


def test_a_run_that_was_cancelled_is_not_offered_again() -> None:
    """Whatever the time that it may still take to answer."""
    cancelled = threading.Event()

    def behave(line: Line) -> None:
        while True:
            request = line.request()
            if request.frame["type"] == "cancel_task":
                line.send(answer(b"", "204 No Content"))
                cancelled.set()
            elif request.frame["task_id"] == "bad":
                assert cancelled.wait(30)
                busy(line, request)
            else:
                line.send(answer(events(request.frame)))

    with Peer(behave) as peer:
        configure(peer.url, cancel_ack_timeout=None)
        with weave(error_mode="return") as w:

            @w.do(environment="peer", timeout=0.2)
            def bad() -> None: ...

        assert isinstance(w.result.bad, TimeoutError)
        assert cancelled.wait(30)
        with weave() as again:

            @again.do(environment="peer")
            def other() -> int:
                import time

                return time.sleep(0.5) or 1

        assert again.result.other == 1
        assert [request.frame["task_id"] for request in peer.requests] == ["bad", "bad", "other"]
        wove.shutdown()


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    wove.shutdown()
