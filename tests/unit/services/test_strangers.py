"""What strangers may cost an HTTP worker service, and what a forked child of a task lets go of."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.services.hosts import get, hosted, post, run_task

from wove.net.connections import Connections
from wove.services import http_protocol
from wove.services.http import worker_app
from wove.services.http_protocol import limited_protocol

LOGGER = logging.getLogger("wove.service")


@contextlib.contextmanager
def service(limit: int = 100) -> Iterator[int]:
    app: Any = worker_app(security="none")
    with hosted(app, http=limited_protocol(Connections(limit, logger=LOGGER))) as port:
        yield port


def closed(connection: socket.socket) -> bytes:
    """What the service says until it closes."""
    connection.settimeout(30)
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            said += data
    return said


def test_a_head_has_a_limit() -> None:
    with service() as port, socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
        line = b"A: " + b"b" * 60_000 + b"\r\n"
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                stranger.sendall(line)
        assert get(port, "/healthz").status == 200


def test_a_body_is_no_head() -> None:
    with service() as port:
        reply = post(port, run_task(len, args={"obj": b"x" * 500_000}))
        assert reply.status == 200


def test_trailers_have_the_same_limit() -> None:
    with service() as port, socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        )
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                stranger.sendall(b"A: " + b"b" * 60_000 + b"\r\n")


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost"])
def test_who_sends_no_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "LOOK_SECONDS", 0.05)
    with service() as port, socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(said)
        assert closed(stranger) == b""


def test_who_does_not_read_the_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 0.4)
    monkeypatch.setattr(http_protocol, "LOOK_SECONDS", 0.05)

    def much() -> bytes:
        return bytes(20_000_000)

    gone = threading.Event()

    class Watched(Connections):
        def left(self, connection: object) -> None:
            super().left(connection)
            gone.set()

    app: Any = worker_app(security="none")
    with (
        hosted(app, http=limited_protocol(Watched(9, logger=LOGGER))) as port,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        body = run_task(much)
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        client.settimeout(30)
        assert client.recv(10).startswith(b"HTTP/1.1")
        assert gone.wait(30), "it is not read, and still kept"


def test_a_reader_that_is_slow_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 0.4)
    monkeypatch.setattr(http_protocol, "LOOK_SECONDS", 0.05)

    def much() -> bytes:
        return bytes(10_000_000)

    with service() as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect(("127.0.0.1", port))
        client.settimeout(30)
        body = run_task(much)
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        came = 0
        while data := client.recv(400_000):
            came += len(data)
            time.sleep(0.01)
        assert came > 13_000_000


def test_the_oldest_stranger_goes_when_there_are_too_many() -> None:
    app: Any = worker_app(security="none")
    limit = Connections(3, logger=LOGGER)
    with hosted(app, http=limited_protocol(limit)) as port, contextlib.ExitStack() as stack:
        known = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        body = run_task(lambda: 1)
        known.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        known.settimeout(30)
        assert known.recv(10).startswith(b"HTTP/1.1 2")
        strangers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)
        ]
        assert closed(strangers[0]) == b""
        known.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert known.recv(10_000)


def test_the_log_says_it_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(2, logger=LOGGER)
    gone: list[int] = []
    for number in range(5):
        connections.arrived(number, lambda number=number: gone.append(number))
    assert gone == [0, 1, 2]
    [record] = caplog.records
    assert "more than 2 connections" in record.getMessage()
    connections.left(3)
    connections.recognized(4)
    connections.arrived(5, lambda: gone.append(5))
    connections.arrived(6, lambda: gone.append(6))
    assert gone == [0, 1, 2, 5], "who is known stays"


FORKS = """
import asyncio, os, signal, socket, sys
from wove.services.forked import handles_signals, owns_port

async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = listener.accept()
    got = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, got.append, 1)
    with owns_port(port), handles_signals(signal.SIGTERM):
        child = os.fork()
        if not child:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.set_wakeup_fd(-1) == -1
            for sock in (listener, accepted):
                try:
                    sock.getsockname()
                except OSError:
                    continue
                os._exit(1)
            client.getpeername()  # its own connections are the task's
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(2)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM, status
    await asyncio.sleep(0.1)
    assert not got, "the parent was signalled"
    print("done")

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_shares_neither_sockets_nor_signals() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
