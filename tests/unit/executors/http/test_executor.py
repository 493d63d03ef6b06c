"""The http executor: its configuration, its connections, and which request goes over which."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.support.peers import Line, Peer, answer, events, serve

import wove
from wove import EnvironmentExecutionError, HttpEnvironmentExecutor, WorkerLostError, weave
from wove.delivery.background_loop import BackgroundLoop
from wove.executors.http import connection as http_connection
from wove.executors.http.executor import HttpsEnvironmentExecutor
from wove.executors.http.pool import Call, Origin, Pool
from wove.net.chunk_buffer import ChunkBuffer

pytestmark = [pytest.mark.backend("stdio")]

SECRET = {"type": "signed", "secret": "a secret of both sides"}


def configure(url: str, executor: str = "http", **config: Any) -> None:
    wove.config(
        environments={"peer": {"executor": executor, "executor_config": {"url": url, **config}}}
    )


@pytest.fixture(autouse=True)
def _sessions_end() -> Iterator[None]:
    yield
    wove.shutdown()


def one(value: Any = None) -> Any:
    """The result of one run in the environment."""
    with weave(value=value) as w:

        @w.do(environment="peer")
        def only(value: Any) -> Any:
            return value

    return w.result.only


# ------------------------------------------------------------------ configuration


def started(executor: HttpEnvironmentExecutor, **config: Any) -> HttpEnvironmentExecutor:
    async def start() -> None:
        await executor.start(environment_name="reports", environment_config=config, run_config={})
        await executor.stop()

    asyncio.run(start())
    return executor


@pytest.mark.parametrize(
    ("config", "kind", "says"),
    [
        ({}, ValueError, "executor_config 'url' is missing"),
        ({"url": 7}, TypeError, "'url' must be a URL"),
        ({"url": "ftp://localhost/"}, ValueError, "must begin with http:// or https://"),
        ({"url": "http://user:word@localhost/"}, ValueError, "user name or password"),
        ({"url": "http://localhost/a b"}, ValueError, "percent-encode"),
        ({"url": "http://workers.internal/"}, ValueError, "no TLS and no security"),
        ({"url": "https://workers.internal/"}, ValueError, "no security"),
        ({"url": "http://workers.internal/", "security": SECRET}, ValueError, "an https:// url"),
        (
            {"url": "http://localhost/", "headers": {"Host": "x"}},
            ValueError,
            "header 'Host' is set by Wove itself",
        ),
        (
            {"url": "http://localhost/", "headers": {"X-Wove-Key": "x"}},
            ValueError,
            "set by Wove itself",
        ),
        ({"url": "http://localhost/", "headers": {"X-A": "b\r\nC: d"}}, ValueError, "line breaks"),
        ({"url": "http://localhost/", "headers": "X-A: b"}, TypeError, "a dict of texts"),
        ({"url": "http://localhost/", "timeout": 0}, ValueError, "'timeout'"),
        ({"url": "http://localhost/", "timeout": "5"}, TypeError, "'timeout'"),
        ({"url": "http://localhost/", "max_connections": 0}, ValueError, "'max_connections'"),
        ({"url": "http://localhost/", "max_connections": True}, TypeError, "'max_connections'"),
        ({"url": "http://localhost/", "connect_timeout": -1}, ValueError, "'connect_timeout'"),
        ({"url": "http://localhost/", "reconnect_timeout": "x"}, TypeError, "'reconnect_timeout'"),
        ({"url": "http://localhost/", "max_conections": 5}, ValueError, "max_connections"),
        (
            {"url": "https://localhost/", "root_certificates": "/no/such.pem"},
            ValueError,
            "'root_certificates'",
        ),
    ],
)
def test_a_wrong_configuration_names_the_key(
    config: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as caught:
        started(HttpEnvironmentExecutor(), **config)
    assert "environment 'reports'" in str(caught.value)
    assert says in str(caught.value)


def test_https_insists_on_https() -> None:
    with pytest.raises(ValueError, match="must begin with https://"):
        started(HttpsEnvironmentExecutor(), url="http://localhost/")
    started(HttpsEnvironmentExecutor(), url="https://localhost/")


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://localhost:8000"},
        {"url": "http://127.0.0.1/"},
        {"url": "http://[::1]:8000/"},
        {"url": "https://workers.internal/", "security": SECRET},
        {"url": "http://workers.internal/", "insecure": True},
        {
            "url": "http://localhost/",
            "timeout": None,
            "connect_timeout": None,
            "reconnect_timeout": None,
        },
    ],
)
def test_a_right_configuration_connects_to_nothing_yet(config: dict[str, Any]) -> None:
    started(HttpEnvironmentExecutor(), **config)


def test_what_a_request_carries() -> None:
    with Peer(serve) as peer:
        configure(
            peer.url + "?tenant=a%20b",
            security=SECRET,
            headers={"X-Project": "reports", "User-Agent": "mine"},
        )
        assert one(5) == 5
        (request,) = peer.requests
    assert request.first == "POST /tasks?tenant=a%20b HTTP/1.1"
    headers = request.headers
    assert headers["host"] == f"127.0.0.1:{peer.port}"
    assert headers["content-type"] == "application/json"
    assert headers["accept"] == "application/json, application/x-ndjson"
    assert (headers["x-project"], headers["user-agent"]) == ("reports", "mine")
    assert headers["x-wove-signature"].startswith("v1=")
    assert request.frame["type"] == "run_task" and request.frame["task_id"] == "only"


def test_a_bearer_token_is_sent_as_such() -> None:
    with Peer(serve) as peer:
        configure(peer.url, security={"type": "bearer", "token": "the-token"})
        assert one() is None
        assert peer.requests[0].headers["authorization"] == "Bearer the-token"


# ------------------------------------------------------------------ connections


def test_runs_one_after_the_other_share_a_connection(no_leaks: None) -> None:
    with Peer(serve) as peer:
        configure(peer.url)
        for number in range(20):
            assert one(number) == number
        assert peer.connections == 1
        wove.shutdown()


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_requests_at_once_than_connections(most: int, no_leaks: None) -> None:
    now, peak, lock = 0, 0, threading.Lock()
    all_busy = threading.Barrier(most)

    def counting(line: Line) -> None:
        nonlocal now, peak
        while True:
            request = line.request()
            with lock:
                now += 1
                peak = max(peak, now)
            all_busy.wait(30)
            with lock:
                now -= 1
            line.send(answer(events(request.frame)))

    with Peer(counting) as peer:
        configure(peer.url, max_connections=most)
        with weave() as w:

            @w.do(range(30), environment="peer")
            def same(item: int) -> int:
                return item

        assert w.result.same == list(range(30))
        assert (peak, peer.connections) == (most, most)
        wove.shutdown()


def test_a_run_that_waits_for_a_connection_is_cancelled_without_a_word_to_the_service(
    no_leaks: None,
) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow(line: Line) -> None:
        while True:
            request = line.request()
            asked.set()
            assert release.wait(30)
            line.send(answer(events(request.frame)))

    async def main(peer: Peer) -> None:
        async def holds() -> Any:
            async with weave() as w:

                @w.do(environment="peer")
                def first() -> int:
                    return 1

            return w.result.first

        holder = asyncio.create_task(holds())
        await asyncio.get_running_loop().run_in_executor(None, asked.wait)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                async with weave() as w:

                    @w.do(environment="peer")
                    def second() -> int:
                        return 2

        release.set()
        assert await holder == 1

    with Peer(slow) as peer:
        configure(peer.url, max_connections=1)
        asyncio.run(main(peer))
        assert [request.frame["task_id"] for request in peer.requests] == ["first"]
        wove.shutdown()


def test_an_idle_connection_is_closed_in_time(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr(http_connection, "IDLE_SECONDS", 0.2)
    closed = threading.Event()

    def watch(line: Line) -> None:
        try:
            serve(line)
        finally:
            closed.set()

    with Peer(watch) as peer:
        configure(peer.url)
        assert one(1) == 1
        assert closed.wait(30)  # by us: nobody else does
        assert one(2) == 2
        assert peer.connections == 2
        wove.shutdown()


@pytest.mark.parametrize(
    ("promised", "kept"),
    [
        (None, 4.0),
        ("timeout=30, max=5", 29.0),
        ("timeout=2", 1.0),
        ("TIMEOUT = 1", 0.5),
        ("timeout=9999", 60.0),
        ("x", 4.0),
    ],
)
def test_how_long_a_connection_is_kept(promised: str | None, kept: float) -> None:
    assert http_connection._idle_seconds(promised) == kept


def test_a_server_that_closes_after_each_answer(no_leaks: None) -> None:
    def old(line: Line) -> None:
        request = line.request()
        body = json.dumps(events(request.frame)[1]).encode()
        line.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)

    with Peer(old) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(range(20), environment="peer", workers=4)
            def same(item: int) -> int:
                return item

        assert w.result.same == list(range(20))
        assert peer.connections == 20
        wove.shutdown()


# ------------------------------------------------------------------ streams


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunks(text: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_a_stream_of_events_in_chunks_of_any_size_and_its_connection_is_kept(
    size: int, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr(http_connection, "REST_SECONDS", 30.0)
    answered = threading.Semaphore(0)

    def streaming(line: Line) -> None:
        while True:
            request = line.request()
            lines = [
                {"type": "heartbeat", "run_id": request.frame["run_id"]},
                *events(request.frame),
            ]
            text = b"\r\n".join(json.dumps(event).encode() for event in lines) + b"\n\n"
            line.send(HEAD)
            for piece in chunks(text, size):
                line.send(piece)
            assert answered.acquire(timeout=30)  # the end of the stream comes after its last event
            line.send(b"0\r\n\r\n")

    with Peer(streaming) as peer:
        configure(peer.url)
        for number in range(3):
            assert one(number) == number
            answered.release()
        if size > 1:
            assert len(one(bytes(1_000_000))) == 1_000_000
            answered.release()
        assert peer.connections == 1
        wove.shutdown()


def test_a_stream_that_goes_on_after_the_end_of_its_run_is_cut_off(no_leaks: None) -> None:
    gone = threading.Event()

    def babbling(line: Line) -> None:
        request = line.request()
        line.send(
            HEAD
            + b"".join(
                chunks(b"".join(json.dumps(e).encode() + b"\n" for e in events(request.frame)), 99)
            )
        )
        try:
            while True:
                line.send(b"1\r\n\n\r\n")
                time.sleep(0.05)
        finally:
            gone.set()

    with Peer(babbling) as peer:
        configure(peer.url)
        assert one(1) == 1
        assert gone.wait(30)
        wove.shutdown()


def test_a_stream_may_last_and_its_lines_are_bounded(no_leaks: None) -> None:
    def streaming(line: Line) -> None:
        request = line.request()
        beat = json.dumps({"type": "heartbeat", "run_id": request.frame["run_id"]}).encode() + b"\n"
        line.send(HEAD)
        for _ in range(40):
            line.send(b"".join(chunks(beat * 20, 1000)))
        long = b"{" if request.frame["task_id"] != "only" else b""
        end = json.dumps(events(request.frame)[1]).encode() + b"\n" if not long else b" " * 40_000
        line.send(b"".join(chunks(long + end, 5000)) + b"0\r\n\r\n")

    with Peer(streaming) as peer:
        configure(peer.url, max_message_bytes=20_000)  # the signs of life alone are more than that
        assert one(1) == 1
        with pytest.raises(
            EnvironmentExecutionError, match="a line of more than 20000 bytes .*'max_message_bytes'"
        ):
            with weave() as w:

                @w.do(environment="peer")
                def endless() -> None: ...

        wove.shutdown()


# ------------------------------------------------------------------ large bodies


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_large_bodies_to_a_slow_reader(
    encrypted: bool, certificates: Certificates, no_leaks: None
) -> None:
    """Written as the other side takes it: what is on its way is not copied into a buffer as a whole."""

    def slow(line: Line) -> None:
        line.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        serve(line)

    context = None
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    with Peer(slow, tls=context) as peer:
        configure(peer.url, root_certificates=str(certificates.authority))
        block = bytes(range(256)) * 12_000
        assert one(block) == block
        assert one(block[:5]) == block[:5]
        assert peer.connections == 1
        wove.shutdown()


def test_pieces_are_gathered_into_chunks_that_are_worth_it() -> None:
    gathered = ChunkBuffer()
    assert gathered.size == 0
    for number in range(300_000):
        gathered.add(bytes([number % 256]))
    large = bytes(50_000)
    gathered.add(large)
    gathered.add(b"end")
    chunks = gathered.take()
    assert b"".join(chunks) == bytes(number % 256 for number in range(300_000)) + large + b"end"
    assert len(chunks) < 10 and any(chunk is large for chunk in chunks)
    assert gathered.size == 0 and gathered.take() == []


# ------------------------------------------------------------------ TLS


def test_plain_text_where_tls_is_spoken_and_the_reverse(
    certificates: Certificates, no_leaks: None
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    with Peer(serve, tls=context) as peer:
        configure(peer.url.replace("https", "http"))
        with pytest.raises(
            (EnvironmentExecutionError, WorkerLostError), match="TLS|lost the connection|closed the"
        ):
            one()
        wove.shutdown()
    with Peer(
        lambda line: line.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    ) as peer:
        configure(peer.url.replace("http", "https"))
        with pytest.raises(EnvironmentExecutionError, match="it does not speak TLS"):
            one()
        wove.shutdown()


def test_a_certificate_for_another_name_is_refused(
    certificates: Certificates, no_leaks: None
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.misnamed.certificate, certificates.misnamed.key)
    with Peer(serve, tls=context) as peer:
        configure(peer.url, root_certificates=str(certificates.authority))
        with pytest.raises(
            EnvironmentExecutionError, match="certificate was not accepted.*IP address mismatch"
        ):
            one()
        assert peer.requests == []
        wove.shutdown()


# ------------------------------------------------------------------ names


def test_names_are_looked_up_without_the_loops_own_executor(no_leaks: None) -> None:
    background = BackgroundLoop()

    async def look_up() -> list[Any]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("nobody-is-called.invalid", 80)
        with pytest.raises(UnicodeError):
            await loop.getaddrinfo("x" * 70 + ".example", 80)
        return found

    found = asyncio.run_coroutine_threadsafe(look_up(), background.loop).result(30)
    assert {address[4][1] for address in found} == {80}
    assert background.loop._default_executor is None  # type: ignore[attr-defined]
    assert [thread.name for thread in threading.enumerate() if "asyncio" in thread.name] == []

    async def nothing() -> None: ...

    background.stop(nothing, 10)


def test_a_name_server_that_does_not_answer_keeps_no_process_alive(script: Any) -> None:
    found = script(
        """
        import socket, threading, time
        import wove
        from wove import weave

        real = socket.getaddrinfo
        def never(host, *args, **kwargs):
            if host == "slow.example":
                time.sleep(3600)
            return real(host, *args, **kwargs)
        socket.getaddrinfo = never

        config = {"url": "http://slow.example/", "insecure": True, "connect_timeout": 0.3}
        wove.config(environments={"peer": {"executor": "http", "executor_config": config}})
        try:
            with weave() as w:
                @w.do(environment="peer")
                def lost():
                    pass
        except wove.WorkerLostError as error:
            print("none within 0.3 s" in str(error))
        """
    )
    assert found.stdout == "True\n"
    assert found.seconds < 20
    assert not found.complaints


# ------------------------------------------------------------------ failing to connect


def test_a_service_that_is_down_is_asked_by_one_attempt_at_a_time(
    certificates: Certificates, no_leaks: None
) -> None:
    """Not by one for each of the runs that wait."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)

    def goes_down(line: Line) -> None:
        if line.number:
            line.reset()  # in the TLS handshake: to the pool, that is an attempt that failed
            return
        line.raw = context.wrap_socket(line.raw, server_side=True)
        request = line.request()
        line.send(answer(events(request.frame), Connection="close"))
        line.raw.close()

    with Peer(goes_down) as peer:
        configure(
            peer.url.replace("http", "https"),
            reconnect_timeout=1.0,
            root_certificates=str(certificates.authority),
        )
        assert one(1) == 1
        with pytest.raises(WorkerLostError, match="no connection to"):
            with weave() as w:

                @w.do(range(100), environment="peer")
                def lost(item: int) -> None: ...

        wove.shutdown()
        assert 2 < peer.connections < 150  # a first for each, then some


# ------------------------------------------------------------------ forks


def test_a_forked_child_has_connections_of_its_own_and_keeps_none_of_its_parent_open(
    script: Any, tmp_path: Path
) -> None:
    """Else a service would take a client that is gone for one that waits, as long as the child lives."""
    ended: list[bool] = []

    def watch(line: Line) -> None:
        while True:
            request = line.request()
            if request.frame["task_id"] == "endless":
                (tmp_path / "alive").touch()
                try:
                    line.until_gone()
                finally:
                    ended.append(not (tmp_path / "done").exists())
                    (tmp_path / "ended").touch()
            line.send(answer(events(request.frame)))

    with Peer(watch) as peer:
        found = script(
            f"""
            import os, threading, time, wove
            from wove import weave
            wove.config(environments={{"far": {{"executor": "http", "executor_config": {{"url": {peer.url!r}}}}}}})

            def run():
                with weave() as w:
                    @w.do(range(3), environment="far")
                    def negated(item):
                        return -item
                return w.result.negated

            def wait():
                with weave(error_mode="return") as w:
                    @w.do(environment="far")
                    def endless(): ...

            print(run(), flush=True)
            waiting = threading.Thread(target=wait)
            waiting.start()
            def until(name):
                while not os.path.exists(name):
                    time.sleep(0.01)
            until("alive")
            child = os.fork()
            if child == 0:
                print(run(), flush=True)
                open("forked", "w").close()
                until("done")
                os._exit(0)
            until("forked")
            print(run(), flush=True)
            wove.shutdown()
            waiting.join()
            until("ended")
            open("done", "w").close()
            assert os.waitpid(child, 0)[1] == 0
            """,
            flags=(),
        )
        assert found.stdout.splitlines() == ["[0, -1, -2]"] * 3
        assert ended == [True]


# ------------------------------------------------------------------ imports


def test_nothing_of_http_is_imported_before_it_is_used() -> None:
    code = "import wove, sys; print([m for m in sys.modules if m.startswith(('http', 'ssl', 'wove.executors.http'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_closing_leaves_no_connection_behind(no_leaks: None) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(serve)) for _ in range(3)]
        for peer in peers:
            configure(peer.url)
            assert one(1) == 1
        wove.shutdown()


class _Unanswered(Call):
    def begin(self) -> tuple[bytes, list[bytes]]:
        return b"GET / HTTP/1.1\r\n\r\n", []

    def streams(self, head: object) -> bool:
        return False

    def part(self, piece: bytes) -> int:
        return 0

    def answered(self, *_: object, **__: object) -> None: ...

    def failed(self, *_: object) -> None: ...


def test_closing_while_it_connects_leaves_no_socket_behind() -> None:
    """In whatever turn of the loop that is: a socket that is lost warns when it is collected."""

    async def main(port: int) -> None:
        for turns in range(25):
            pool = Pool(
                Origin("127.0.0.1", port, None, 1000),
                max_connections=1,
                connect_seconds=None,
                reconnect_seconds=None,
            )
            call = _Unanswered(urgent=False, limit=None)
            pool.submit(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            pool.withdraw(call)
            await pool.close()
            with warnings.catch_warnings(record=True, action="always") as caught:
                gc.collect()
            assert [str(warning.message) for warning in caught] == [], turns

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(main(listener.getsockname()[1]))
