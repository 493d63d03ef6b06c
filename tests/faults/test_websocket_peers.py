"""Services that misbehave towards `executor="websocket"`, one way each, over real sockets.

Each ends its run soon, with an error that says what came; a run over another connection is untouched; and a second
attempt succeeds, over a fresh connection, once the service has come to its senses.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.peers import GoneError, Line, Peer, events
from tests.support.sockets import PING, PONG, TEXT, Socket, accepted, frame, serve_sockets, ws

import wove
from wove import (
    DeliveryError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    SerializationError,
    WorkerLostError,
    weave,
)
from wove.executors.websocket import connection as websocket_connection

pytestmark = [
    pytest.mark.backend("websocket"),
    pytest.mark.usefixtures("no_leaks"),
]

MOST = 1_000_000
"""`max_message_bytes` of these tests."""

Fault = Callable[[Line], object]


def environment(url: str, **config: Any) -> dict[str, Any]:
    executor_config = {"url": ws(url), "max_message_bytes": MOST, "open_timeout": 1.0, **config}
    return {"executor": "websocket", "executor_config": executor_config}


def check(fault: Fault, kind: type[Exception], says: str, **config: Any) -> None:
    """What becomes of runs when *fault* is what the first two connections get."""

    def behave(line: Line) -> None:
        if line.number < 2:
            fault(line)
        else:
            serve_sockets(line)

    with Peer(behave) as peer, Peer(serve_sockets) as good:
        wove.config(
            environments={"bad": environment(peer.url, **config), "good": environment(good.url)}
        )
        with weave(error_mode="continue") as w:

            @w.do(environment="bad")
            def one() -> int:
                return 1

            @w.do([1, 2, 3], environment="good")
            def beside(item: int) -> int:
                return -item

        assert w.result.beside == [-1, -2, -3]
        error = w.result.exception
        assert type(error) is kind, repr(error)
        assert re.search(says, str(error)), str(error)
        with weave() as again:

            @again.do(environment="bad", retries=1)
            def two() -> int:
                return 2

        assert again.result.two == 2
        assert peer.connections == 3
        wove.shutdown()


# ------------------------------------------------------------------ before there is a connection


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    wove.config(environments={"bad": environment(f"http://127.0.0.1:{port}/")})
    with pytest.raises(
        WorkerLostError,
        match=rf"environment 'bad'.*ws://127.0.0.1:{port}/.*(Connect call failed|refused)",
    ):
        with weave() as w:

            @w.do(environment="bad")
            def one() -> int:
                return 1


def test_resets_at_once() -> None:
    # Or even before asyncio has noticed that there is a connection.
    check(
        Line.reset,
        WorkerLostError,
        "closed the connection before the handshake was done|no connection to it: .*104",
    )


def test_closes_at_once() -> None:
    check(lambda line: None, WorkerLostError, "closed the connection before the handshake was done")


def test_answers_nothing() -> None:
    check(
        Line.until_gone,
        DeliveryTimeoutError,
        "handshake did not come within 1 s .*'open_timeout'",
        open_timeout=1.0,
    )


def test_trickles_the_handshake() -> None:
    def trickle(line: Line) -> None:
        for byte in accepted(line.request()):
            line.send(bytes([byte]))
            time.sleep(0.1)

    check(trickle, DeliveryTimeoutError, r"not complete after \d+ bytes within 1 s")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("401 Unauthorized", "status 401 Unauthorized: 'go away'.*'security'"),
        ("403 Forbidden", "status 403 Forbidden: 'go away'.*'security'"),
        ("404 Not Found", "status 404 Not Found: 'go away'.*path"),
        ("500 Internal Server Error", "status 500 .*: 'go away'"),
        ("200 OK", "status 200 OK: 'go away'"),
    ],
)
def test_answers_with_a_page(status: str, says: str) -> None:
    def refuse(line: Line) -> None:
        line.request()
        line.send(f"HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\ngo away".encode())
        line.until_gone()

    check(refuse, EnvironmentExecutionError, says)


def test_overloaded_at_the_handshake() -> None:
    """A service that was never there is not waited for; its 503 is an error that may be tried again."""

    def refuse(line: Line) -> None:
        line.request()
        line.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
        line.until_gone()

    check(refuse, EnvironmentExecutionError, "status 503 Service Unavailable: 'busy'")


def test_repeats_what_it_was_sent() -> None:
    """No credential gets into the error, also none in the query of the url."""

    def echo(line: Line) -> None:
        request = line.request()
        said = f"authorization: {request.headers['authorization']}\n{request.headers['x-api-key']}".encode()
        line.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

    with Peer(echo) as peer:
        config = {
            "security": {"type": "bearer", "token": "t0ken-of-this-test"},
            "headers": {"X-Api-Key": "key-of-this"},
        }
        wove.config(environments={"bad": environment(f"{peer.url}?key=of-the-url", **config)})
        with pytest.raises(
            EnvironmentExecutionError, match=r"403 Forbidden: 'authorization: Bearer \*\*\*"
        ) as caught:
            with weave() as w:

                @w.do(environment="bad")
                def one() -> None: ...

        assert not re.search("t0ken-of|key-of-|of-the-url", str(caught.value))
        wove.shutdown()


def test_redirects() -> None:
    """To another origin, which must not get so much as a connection."""
    with Peer(serve_sockets) as elsewhere:

        def redirect(line: Line) -> None:
            line.request()
            where = ws(elsewhere.url)
            line.send(
                f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            line.until_gone()

        security = {"type": "bearer", "token": "for-the-first-origin-alone"}
        headers = {"X-Api-Key": "as secret as that"}
        says = rf"302 Found.*{elsewhere.port}.*not followed"
        check(redirect, EnvironmentExecutionError, says, security=security, headers=headers)
        assert elsewhere.connections == 0
        assert elsewhere.requests == []


def test_speaks_something_else() -> None:
    def speak(line: Line) -> None:
        line.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        line.until_gone()

    check(speak, EnvironmentExecutionError, "not a WebSocket server: .*not HTTP")


def test_accepts_with_a_wrong_key() -> None:
    def accept(line: Line) -> None:
        line.send(re.sub(rb"Accept: .", b"Accept: !", accepted(line.request())))
        line.until_gone()

    check(
        accept, EnvironmentExecutionError, "not that of a WebSocket server: .*Sec-WebSocket-Accept"
    )


def test_closes_right_after_the_handshake() -> None:
    def close(line: Line) -> None:
        line.send(accepted(line.request()) + frame(b"\x03\xf3nothing for you", 8))
        line.until_gone()

    check(close, WorkerLostError, "code 1011 .*nothing for you")


# ------------------------------------------------------------------ in the middle of a run


def after(act: Callable[[Socket, dict[str, Any]], object]) -> Fault:
    """*act* on the first command, and then wait for the client's leaving."""

    def fault(line: Line) -> None:
        connection = Socket(line)
        act(connection, connection.command())
        connection.until_gone()

    return fault


def sending(*messages: Any) -> Fault:
    def act(connection: Socket, _: dict[str, Any]) -> None:
        for message in messages:
            connection.send(message)

    return after(act)


def test_resets() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.line.reset()
        raise GoneError

    check(after(act), WorkerLostError, "connection was lost")


def test_drops_the_connection_while_the_task_runs() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.send(events(command)[0])
        raise GoneError

    check(after(act), WorkerLostError, "without a closing handshake")


@pytest.mark.parametrize(
    ("code", "reason", "says"),
    [
        (1000, "", "code 1000"),
        (1001, "going home", "code 1001 .*going home"),
        (1009, "at most 1 MiB", "code 1009 .*at most 1 MiB.*too large for it"),
        (1011, "oh no", "code 1011 .*oh no.*error in the service"),
        (1012, "new version", "code 1012 .*new version.*restarted"),
        (1013, "later", "code 1013 .*later.*overloaded"),
        (4001, "own rules", "code 4001 .*own rules"),
    ],
)
def test_tells_of_the_start_and_closes(code: int, reason: str, says: str) -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.send(events(command)[0])
        connection.close(code, reason)

    check(after(act), WorkerLostError, says)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"<html>Bad gateway</html>", "not JSON .*Bad gateway"),
        (b'{"type": "task_res', "not JSON .*task_res"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
        (b"42", "a frame is a JSON object, and this is a number: '42'"),
        ([1, 2], "a frame is a JSON object, and this is a number"),
        ({"hello": "world"}, "an event without a run_id: hello='world'"),
        ({"type": "task_result", "run_id": ["x"]}, "an event without a run_id"),
        (
            {"type": "task_result", "run_id": "somebody-elses", "result_pickle": ""},
            "of run 'somebody-elses'",
        ),
    ],
)
def test_sends_what_is_no_event(message: Any, says: str) -> None:
    check(sending(message), EnvironmentExecutionError, says)


def check_one(
    act: Callable[[Socket, dict[str, Any]], object], kind: type[Exception], says: str
) -> None:
    """As `check`, for what concerns one run alone: the others on the same connection are untouched."""

    def behave(line: Line) -> None:
        connection = Socket(line)
        bad = 0
        for command in connection.commands():
            if command["task_id"] == "one" and bad < 2:
                bad += 1
                act(connection, command)
            elif command["type"] == "run_task":
                connection.send(events(command))

    with Peer(behave) as peer:
        wove.config(environments={"bad": environment(peer.url)})
        with weave(error_mode="continue") as w:

            @w.do(environment="bad")
            def one() -> int:
                return 1

            @w.do([1, 2, 3], environment="bad")
            def beside(item: int) -> int:
                return -item

        assert w.result.beside == [-1, -2, -3]
        error = w.result.exception
        assert type(error) is kind, repr(error)
        assert re.search(says, str(error)), str(error)
        with weave() as again:

            @again.do(environment="bad", retries=1)
            def one() -> int:
                return 2

        assert again.result.one == 2
        assert peer.connections == 1
        wove.shutdown()


def test_sends_an_event_of_unknown_type() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.send({"type": "task_pending", "run_id": command["run_id"]})

    check_one(act, EnvironmentExecutionError, "'task_pending' is not a type of event")


def test_sends_a_pickle_that_does_not_load() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        garbage = base64.b64encode(b"\x80\x05garbage").decode()
        connection.send(
            {"type": "task_result", "run_id": command["run_id"], "result_pickle": garbage}
        )

    check_one(act, SerializationError, "the result of task 'one'")


def test_sends_what_is_not_base64() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.send({"type": "task_result", "run_id": command["run_id"], "result_pickle": "a"})

    check_one(act, EnvironmentExecutionError, "result_pickle is not base64")


def test_sends_a_message_beyond_the_limit() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.line.send(frame(b" " * 700_000, fin=False))
        connection.line.send(frame(b" " * 700_000, 0))

    check(
        after(act),
        WorkerLostError,
        "(?s)700000 bytes.*1000000 bytes.*code 1009.*'max_message_bytes'",
    )


def test_announces_a_gigabyte() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.line.send(frame(b"{", announced=1 << 30))

    check(after(act), WorkerLostError, "1073741824 bytes.*code 1009.*'max_message_bytes'")


def test_breaks_the_protocol() -> None:
    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.line.send(b"\xf1\x00")

    check(after(act), WorkerLostError, "what it sent ended the connection: .*code 1002")


def test_does_not_close_when_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never reads again after garbage: the client does not wait for it."""
    monkeypatch.setattr(websocket_connection, "CLOSE_SECONDS", 0.1)

    def fault(line: Line) -> None:
        connection = Socket(line)
        connection.command()
        connection.send(b"garbage")
        while line.raw.recv(1 << 16):
            pass

    check(fault, EnvironmentExecutionError, "garbage")


@pytest.mark.parametrize("pongs", [True, False])
def test_gives_no_sign_of_life(monkeypatch: pytest.MonkeyPatch, pongs: bool) -> None:
    monkeypatch.setattr(websocket_connection, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket_connection, "LOOK_SECONDS", 0.05)

    def behave(line: Line) -> None:
        connection = Socket(line)
        connection.pongs = pongs
        command = connection.command()
        if not pongs:
            connection.until_gone()
        time.sleep(0.15)
        connection.line.send(frame(b"", PONG))  # one that nobody asked for is a sign of life, too
        while b"wove" not in connection._buffer:
            connection._buffer += line.raw.recv(100)[6:]
            connection.line.send(frame(b"wove", PONG))
            connection._buffer = b"wove"
        for event in events(command):
            connection.send(event)
        connection._buffer = b""
        connection.until_gone()

    if not pongs:
        check(behave, WorkerLostError, "no sign of life for 0.2 s after a ping")
        return
    with Peer(behave) as peer:
        wove.config(environments={"slow": environment(peer.url)})
        with weave() as w:

            @w.do(environment="slow")
            def one() -> int:
                return 1

        assert w.result.one == 1
        wove.shutdown()


def test_trickles_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_connection, "TRICKLE_SECONDS", 0.5)
    monkeypatch.setattr(websocket_connection, "LOOK_SECONDS", 0.05)

    def act(connection: Socket, command: dict[str, Any]) -> None:
        connection.line.send(frame(b"", TEXT, announced=5000))
        while True:
            connection.line.send(b" ")
            time.sleep(0.02)

    check(after(act), WorkerLostError, r"trickles: \d+ bytes of a message")


@pytest.mark.parametrize("who", ["client", "service"])
def test_signs_of_life_do_not_make_a_long_task_a_trickle(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Whoever asks for them: a pong, or a ping, is not a message that has begun."""
    monkeypatch.setattr(websocket_connection, "TRICKLE_SECONDS", 0.2)
    monkeypatch.setattr(websocket_connection, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(websocket_connection, "PING_SECONDS", 0.3 if who == "client" else 20.0)

    def behave(line: Line) -> None:
        connection = Socket(line)
        command = connection.command()
        line.raw.settimeout(0.05)
        began = time.monotonic()
        if who == "service":
            connection.line.send(frame(b"", PING))
        while time.monotonic() - began < 1.5:
            with contextlib.suppress(TimeoutError):
                if not line.raw.recv(100):
                    return
                if who == "client":
                    connection.line.send(frame(b"wove", PONG))
        line.raw.settimeout(None)
        for event in events(command):
            connection.send(event)
        connection.until_gone()

    with Peer(behave) as peer:
        wove.config(environments={"slow": environment(peer.url)})
        with weave() as w:

            @w.do(environment="slow")
            def one() -> int:
                return 1

        assert w.result.one == 1
        assert peer.connections == 1
        wove.shutdown()


# ------------------------------------------------------------------ signed replies


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"", "not signed"),
        (b"v1=" + b"0" * 64 + b"\n", "signature of the reply is not right"),
        (b"v1=", "not signed"),
    ],
)
def test_does_not_sign_its_replies(head: bytes, says: str) -> None:
    """What is not authentic is not looked into: not even the name of a run in it counts."""

    def bad(line: Line) -> None:
        connection = Socket(line)
        run_id = connection.command()["run_id"]
        evil = base64.b64encode(b"cos\nabort\n(tR.").decode()
        connection.send(
            head
            + b'{"type":"task_result","run_id":"%s","result_pickle":"%s"}'
            % (run_id.encode(), evil.encode())
        )
        connection.until_gone()

    security = {"type": "signed", "secret": "a secret that both sides know", "sign_replies": True}
    with Peer(bad) as peer:
        wove.config(environments={"bad": environment(peer.url, security=security)})
        with pytest.raises(DeliveryError, match=says):
            with weave() as w:

                @w.do(environment="bad")
                def one() -> int:
                    return 1

        wove.shutdown()
