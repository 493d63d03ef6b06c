from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.services.hosts import get, hosted, post, run_task

from wove.security import NetworkExecutorSecurity
from wove.services import byte_budget, http as service, http_protocol
from wove.services.binding import Bind
from wove.services.http import WorkerApp, worker_app
from wove.services.http_server import serve
from wove.services.options import service_options

LINES = {"Accept": "application/json, application/x-ndjson"}
SIGNED = {"type": "signed", "secret": "s" * 40}


class Bomb:
    """Whoever unpickles it has lost."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.002)
    return path


def ended(app: WorkerApp) -> None:
    """Wait until nothing runs any more."""
    deadline = time.monotonic() + 30
    while app.queue.status()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_short_run_is_answered_in_one_piece(http: str, no_leaks: None) -> None:
    with hosted(worker_app(security="none"), http=http) as port:
        for headers, types in (({}, ["task_started", "task_result"]), (LINES, ["task_result"])):
            reply = post(port, run_task(lambda x: x + 1, args={"x": 1}), headers)
            assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
            assert int(reply.headers["content-length"]) == len(reply.body)
            assert reply.types == types and reply.value == 2
            assert any(event.get("pid") == os.getpid() for event in reply.events)


def test_a_long_run_is_streamed_to_those_who_can_read_it(tmp_path: Path) -> None:
    with hosted(worker_app(security="none")) as port:
        body = run_task(
            wait_for,
            args={"path": str(tmp_path / "gate")},
            delivery={"delivery_heartbeat_seconds": 0.1},
        )
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        ) as connection:
            connection.request("POST", "/", body, LINES)
            response = connection.getresponse()
            assert response.headers["content-type"] == "application/x-ndjson"
            assert b'"task_started"' in response.readline()
            assert b'"heartbeat"' in response.readline()
            (tmp_path / "gate").touch()
            *_, last = response.read().splitlines()
            assert b'"task_result"' in last
        reply = post(port, run_task(slow))
        assert reply.headers["content-type"] == "application/json" and reply.value == "slow"


def slow() -> str:
    time.sleep(0.2)
    return "slow"


def test_large_bodies_both_ways() -> None:
    with hosted(worker_app(security=SIGNED)) as port:
        data = bytes(range(256)) * 40_000
        body = run_task(lambda data: data[::-1], args={"data": data})
        reply = post(port, body, sign(body))
        assert reply.value == data[::-1]


def sign(body: bytes, path: str = "/wove/tasks", security: Any = SIGNED) -> dict[str, str]:
    return NetworkExecutorSecurity.from_config(security).headers_for(
        transport="http", target=path, body=body
    )


# --- who may ----------------------------------------------------------------------------------------------


def test_nothing_is_looked_at_before_it_is_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hosted(worker_app(security=SIGNED)) as port:
        good = run_task(Bomb(tmp_path / "exploded"))
        changed = good.replace(b"r1", b"r2")
        other = sign(good, security={"type": "signed", "secret": "t" * 40})
        for body, headers in [
            (good, {}),
            (good, other),
            (changed, sign(good)),
            (b"{", sign(good)),
            (good, {**sign(good), "X-Wove-Timestamp": "0"}),
            (good, {**sign(good), "X-Wove-Signature": "v1=" + "0" * 64}),
            (good, sign(good, "/elsewhere")),
        ]:
            reply = post(port, body, headers)
            assert (reply.status, reply.error) == (401, "not authorized")
            assert reply.headers["www-authenticate"] == "Wove"
        assert not (tmp_path / "exploded").exists()
        headers = sign(good)
        assert post(port, good, headers).status == 200
        assert (tmp_path / "exploded").exists()
        assert post(port, good, headers).status == 401, "a replay"
    assert "127.0.0.1:" in caplog.text and "was refused" in caplog.text


@pytest.mark.parametrize(
    "path", ["/", "/wove/tasks?x=1&y=%20", "/a%20b/%E2%82%AC%2Fc", "/wove/tasks?"]
)
def test_a_signature_covers_the_path_as_it_was_sent(path: str) -> None:
    with hosted(worker_app(security=SIGNED)) as port:
        body = run_task(lambda: 1)
        assert post(port, body, sign(body, path.removesuffix("?")), path).status == 200
        assert post(port, body, sign(body, path + "x"), path).status == 401


def test_bearer() -> None:
    security = {"type": "bearer", "token": "t" * 40}
    with hosted(worker_app(security=security)) as port:
        body = run_task(lambda: 1)
        assert post(port, body, {"Authorization": f"Bearer {'t' * 40}"}).status == 200
        refused = post(port, body, {"Authorization": "Bearer wrong"})
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_signed_replies_are_whole_and_verify() -> None:
    security = {**SIGNED, "sign_replies": True}
    client = NetworkExecutorSecurity.from_config(security)
    with hosted(worker_app(security=security)) as port:
        for function in (slow, lambda: b"x" * 1_000_000):
            body = run_task(function)
            headers = client.headers_for(transport="http", target="/wove/tasks", body=body)
            reply = post(port, body, {**headers, **LINES})
            signature = reply.headers["X-Wove-Reply-Signature"]
            client.verify_reply(
                transport="http",
                target="/wove/tasks",
                headers=headers,
                body=reply.body,
                signature=signature,
            )
            assert reply.types[-1] == "task_result"
            with pytest.raises(PermissionError):
                client.verify_reply(
                    transport="http",
                    target="/wove/tasks",
                    headers=headers,
                    body=reply.body + b" ",
                    signature=signature,
                )


def test_web_pages_are_refused_where_there_is_no_security(tmp_path: Path) -> None:
    with hosted(worker_app(security="none")) as port:
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert post(port, run_task(Bomb(tmp_path / "exploded")), headers).status == 403
    assert not (tmp_path / "exploded").exists()


# --- what is no good --------------------------------------------------------------------------------------


def test_what_is_no_command_is_answered_400() -> None:
    with hosted(worker_app(security="none")) as port:
        for body in (
            b"",
            b"{",
            b"[]",
            b"{}",
            b'{"type":"run_task"}',
            b'{"type":"shutdown","run_id":"r"}',
            b"\xff" * 100,
        ):
            reply = post(port, body)
            assert reply.status == 400 and reply.error
        assert post(port, run_task(lambda: 1)).value == 1


def test_other_methods_and_paths() -> None:
    with hosted(worker_app(security=SIGNED)) as port:
        assert get(port, "/healthz").body == b'{"status":"ok"}'
        assert get(port, "/some/where/readyz").status == 200
        assert get(port, "/healthz", "HEAD").body == b""
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            reply = get(port, "/wove/tasks", method)
            assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert get(port, "/wove/tasks").body == b"commands come as POST\n"


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_body_that_is_too_large_is_not_read(http: str) -> None:
    with hosted(worker_app(security="none", max_message_bytes=100_000), http=http) as port:
        reply = post(port, b"x" * 3_000_000)
        assert reply.status == 413 and "100000" in reply.error
        with socket.create_connection(("127.0.0.1", port), 30) as announced:
            announced.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            assert announced.recv(1000).startswith(b"HTTP/1.1 413")
        with socket.create_connection(("127.0.0.1", port), 30) as chunked:
            chunked.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):
                for _ in range(20):
                    chunked.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
            assert chunked.recv(1000).startswith(b"HTTP/1.1 413")
        assert post(port, run_task(lambda: 1)).value == 1


def test_no_byte_of_a_strangers_body_is_held() -> None:
    """Neither does it count: clients with the secret are served meanwhile."""
    app = worker_app(security=SIGNED, max_message_bytes=1_000_000)
    body = run_task(lambda data: len(data), args={"data": b"x" * 600_000})
    with hosted(app) as port, contextlib.ExitStack() as stack:
        forged = {**sign(body), "X-Wove-Signature": "v1=" + "0" * 64}
        undigested = {
            name: value for name, value in sign(body).items() if name != "X-Wove-Body-Digest"
        }
        for headers in (forged, undigested) * 2:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            one.sendall(
                f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n{head}\r\n".encode()
            )
            assert one.recv(1000).startswith(b"HTTP/1.1 401")
        assert post(port, body, sign(body)).value == 600_000


def test_bodies_that_stall_wait_for_nobody_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of clients with the secret: together they hold a bounded amount, and the oldest gets done."""
    monkeypatch.setattr(service, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(byte_budget, "ROOM_SECONDS", 30.0)
    app = worker_app(security=SIGNED, max_message_bytes=1_000_000)
    body = run_task(lambda data: len(data), args={"data": b"x" * 600_000})
    with hosted(app) as port, contextlib.ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            head = "".join(f"{name}: {value}\r\n" for name, value in sign(body).items())
            one.sendall(
                f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode()
                + body[:500_000]
            )
        assert post(port, body, sign(body)).value == 600_000


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BODY_SECONDS", 0.2)
    with (
        hosted(worker_app(security="none")) as port,
        socket.create_connection(("127.0.0.1", port), 30) as slow_one,
    ):
        slow_one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        assert slow_one.recv(1000).startswith(b"HTTP/1.1 408")


@contextlib.contextmanager
def served(**options: Any) -> Iterator[int]:
    """The program itself, in a thread; the value is its port."""
    ready: queue.Queue[str] = queue.Queue()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        await serve(
            service_options(**options), Bind("127.0.0.1", 0), None, started=ready.put, stop=stop
        )

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        yield int(ready.get(timeout=30).rpartition(":")[2])
    finally:
        ends[0]()
        thread.join(30)
        assert not thread.is_alive()


def test_a_request_that_never_gets_complete_is_given_up(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(http_protocol, "LOOK_SECONDS", 0.03)
    with served(security="none") as port:
        for before, start in [
            (b"", b""),
            (b"", b"POST / HT"),
            (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"POST"),
        ]:
            with socket.create_connection(("127.0.0.1", port), 30) as never:
                never.sendall(before)
                assert not before or never.recv(1000)
                never.sendall(start)
                while never.recv(1000):
                    pass
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        ) as patient:
            patient.request("POST", "/", run_task(slow))
            assert patient.getresponse().read()
            assert patient.sock is not None
            time.sleep(0.5)  # idle between two requests is something else
            patient.request("GET", "/healthz")
            assert patient.getresponse().status == 200


def test_nobody_wants_a_heap_of_heartbeats() -> None:
    with hosted(worker_app(security="none")) as port:
        reply = post(port, run_task(slow, delivery={"delivery_heartbeat_seconds": 0.03}))
        assert reply.types == ["task_started", "task_result"]


def test_busy_is_503_with_the_event(tmp_path: Path) -> None:
    app = worker_app(security="none", concurrency=1, backlog=0)
    with hosted(app) as port, socket.create_connection(("127.0.0.1", port), 30) as first:
        body = run_task(wait_for, "first", args={"path": str(tmp_path / "gate")})
        first.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        deadline = time.monotonic() + 30
        while not app.queue.status()["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        reply = post(port, run_task(lambda: 1, "second"))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        (event,) = reply.events
        assert (event["run_id"], event["error"]["kind"]) == ("second", "WorkerBusyError")
        assert get(port, "/readyz").status == 503 and get(port, "/healthz").status == 200
        (tmp_path / "gate").touch()
        assert first.recv(100_000).startswith(b"HTTP/1.1 200 ")
        ended(app)
        assert get(port, "/readyz").status == 200


# --- clients that leave -----------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, LINES])
def test_a_client_that_leaves_ends_its_run(headers: dict[str, str], tmp_path: Path) -> None:
    app = worker_app(security="none")
    with hosted(app) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(
            "POST", "/", run_task(wait_for, args={"path": str(tmp_path / "never")}), headers
        )
        deadline = time.monotonic() + 30
        while not app.queue.status()["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        connection.close()
        ended(app)


def test_a_cancel_comes_on_another_connection(tmp_path: Path) -> None:
    app = worker_app(security="none")
    with (
        hosted(app) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection,
    ):
        connection.request("POST", "/", run_task(wait_for, args={"path": str(tmp_path / "never")}))
        reply = post(port, b'{"type":"cancel_task","run_id":"r1"}')
        assert (reply.status, reply.body) == (200, b'{"events":[]}')
        assert b'"task_cancelled"' in connection.getresponse().read()


def test_an_error_of_its_own_is_a_500(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = worker_app(security="none")
    monkeypatch.setattr(app.queue, "enqueue", lambda *_, **__: 1 // 0)
    caplog.set_level(logging.INFO)
    with hosted(app) as port:
        assert post(port, run_task(lambda: 1)).status == 500
    assert "ZeroDivisionError" in caplog.text


def test_a_web_socket_is_turned_away() -> None:
    with hosted(worker_app(security="none"), ws="websockets-sansio") as port:
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 403")
