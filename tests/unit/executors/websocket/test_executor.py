"""`executor="websocket"`: its configuration, what it sends, and when it connects again."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.peers import Line, Peer, events
from tests.support.services import Plan, running
from tests.support.sockets import Socket, serve_sockets, ws

import wove
from wove import SerializationError, WorkerLostError, weave
from wove.errors import install_command
from wove.executors.websocket import connection as websocket_connection
from wove.protocol import websocket as sockets
from wove.protocol.pickling import dumps
from wove.protocol.streams import split_signature

pytestmark = [pytest.mark.backend("websocket")]

URL = "ws://127.0.0.1:9/"


def configure(url: str, **config: Any) -> None:
    executor_config = {"url": ws(url), **config}
    wove.config(environments={"far": {"executor": "websocket", "executor_config": executor_config}})


def run_one() -> Any:
    with weave() as w:

        @w.do(environment="far")
        def one() -> int:
            return 1

    return w.result.one


# ------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("config", "kind", "says"),
    [
        ({}, ValueError, "'url' is missing.*wss://"),
        ({"url": 7}, TypeError, "'url' must be a URL"),
        ({"url": "http://127.0.0.1/"}, ValueError, "'url' must begin with ws:// or wss://"),
        (
            {"url": "ws://me:secret@127.0.0.1/"},
            ValueError,
            "(?s)^(?!.*secret@).*user name or password",
        ),
        (
            {"url": "ws://workers.internal/"},
            ValueError,
            'no TLS and no security.*a wss:// URL.*\'insecure|"insecure"',
        ),
        ({"url": "wss://workers.internal/"}, ValueError, "no security"),
        (
            {"url": "ws://workers.internal/", "security": {"type": "bearer", "token": "t"}},
            ValueError,
            "no TLS",
        ),
        (
            {"url": URL, "root_certificates": "ca.pem"},
            ValueError,
            "'root_certificates'.* are for wss://",
        ),
        (
            {"url": "wss://localhost/", "root_certificates": "/nowhere/ca.pem"},
            ValueError,
            "'root_certificates'.*No such",
        ),
        (
            {"url": URL, "headers": {"Sec-WebSocket-Protocol": "mine"}},
            ValueError,
            "Sec-WebSocket-Protocol",
        ),
        ({"url": URL, "headers": {"Upgrade": "h2c"}}, ValueError, "Upgrade"),
        ({"url": URL, "headers": {"X-A": "b\r\nX-C: d"}}, ValueError, "X-A.*line breaks"),
        ({"url": URL, "headers": [("X-A", 1)]}, TypeError, "X-A.*must be text"),
        ({"url": URL, "open_timeout": 0}, ValueError, "'open_timeout'"),
        ({"url": URL, "open_timeout": True}, TypeError, "'open_timeout'"),
        ({"url": URL, "reconnect_timeout": "5"}, TypeError, "'reconnect_timeout'"),
        ({"url": URL, "max_message_bytes": 0}, ValueError, "'max_message_bytes'"),
        (
            {"url": URL, "headres": {}},
            ValueError,
            "websocket has no executor_config key 'headres'.*'headers'",
        ),
        ({"url": URL, "timeout": 5}, ValueError, "websocket has no executor_config key 'timeout'"),
    ],
)
def test_configuration_is_checked(config: dict[str, Any], kind: type[Exception], says: str) -> None:
    wove.config(environments={"far": {"executor": "websocket", "executor_config": config}})
    with pytest.raises(kind, match=says) as caught:
        run_one()
    assert "environment 'far'" in str(caught.value)


def test_the_missing_package_is_named(script: Callable[..., Any]) -> None:
    """Before anything is sent; and nothing imports it sooner."""
    found = script(
        """
        import sys
        import wove
        from wove import weave

        class Nowhere:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "websockets":
                    raise ModuleNotFoundError(name)

        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "websockets" else real(name, *rest)
        sys.meta_path.insert(0, Nowhere())
        executor = wove.WebSocketEnvironmentExecutor
        import wove.environment
        assert wove.environment.WebSocketEnvironmentExecutor is executor
        wove.config(environments={"far": {"executor": "websocket", "executor_config": {"url": "ws://127.0.0.1:9/"}}})
        try:
            with weave() as w:
                @w.do(environment="far")
                def one(): ...
        except wove.MissingDependencyError as error:
            print(error)
        """
    )
    assert install_command("websocket") in found.stdout


# ------------------------------------------------------------------ what is sent


def test_the_handshake(no_leaks: None) -> None:
    with Peer(serve_sockets) as peer:
        security = {"type": "signed", "secret": "s", "key": "k1"}
        url = f"http://127.0.0.1:{peer.port}/wove/tasks?tenant=1"
        configure(url, security=security, headers=[("X-Project", "reports")])
        assert run_one() == 1
        (request,) = peer.requests
        assert request.first == "GET /wove/tasks?tenant=1 HTTP/1.1"
        assert request.headers["host"] == f"127.0.0.1:{peer.port}"
        assert request.headers["x-project"] == "reports"
        assert request.headers["x-wove-key"] == "k1"
        assert request.headers["sec-websocket-protocol"] == "wove, wove.v1"
        assert (
            "sec-websocket-extensions" not in request.headers
        )  # what is base64 is not worth compressing
        wove.shutdown()


@pytest.mark.parametrize("subprotocol", [None, sockets.PLAIN])
def test_plain_is_one_whole_command_a_message(subprotocol: str | None, no_leaks: None) -> None:
    """Also to a server that picks the first subprotocol that it is offered."""
    seen: list[dict[str, Any]] = []

    def behave(line: Line) -> None:
        connection = Socket(line, subprotocol)
        while True:
            command = connection.command()
            seen.append(command)
            connection.send({"events": events(command)})

    with Peer(behave) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(range(200), environment="far")
            def negated(item: int) -> int:
                return -item

        assert w.result.negated == [-n for n in range(200)]
        assert all("callable_pickle" in command and "args_pickle" in command for command in seen)
        wove.shutdown()


def test_ours_is_batched_and_has_each_callable_once(no_leaks: None) -> None:
    messages: list[Any] = []

    def behave(line: Line) -> None:
        connection = Socket(line, sockets.OURS)
        known: dict[str, str] = {}
        while True:
            found = json.loads(connection.message())
            messages.append(found)
            told = []
            for command in found if isinstance(found, list) else [found]:
                if "callable_pickle" in command:
                    known[command["callable_id"]] = command["callable_pickle"]
                told += events({**command, "callable_pickle": known[command["callable_id"]]})
            connection.send(told)

    with Peer(behave) as peer:
        configure(peer.url)
        ballast = os.urandom(
            100_000
        )  # so that it is encoded elsewhere, and what follows must wait for that
        with weave() as w:

            @w.do(range(300), environment="far")
            def small(item: int) -> int:
                return -item

            @w.do(range(300), environment="far")
            def large(item: int) -> int:
                return item + len(ballast)

        assert w.result.small == [-n for n in range(300)]
        assert w.result.large == [n + 100_000 for n in range(300)]
        commands = [
            command
            for found in messages
            for command in (found if isinstance(found, list) else [found])
        ]
        assert len(commands) == 600 > 2 * len(messages)
        assert sum("callable_pickle" in command for command in commands) == 2
        wove.shutdown()


def test_a_message_beyond_the_limit_is_not_sent(no_leaks: None) -> None:
    with Peer(serve_sockets) as peer:
        configure(peer.url, max_message_bytes=100_000)
        with pytest.raises(SerializationError, match="100000.*'max_message_bytes'"):
            with weave(bulk=bytes(200_000)) as w:

                @w.do(environment="far")
                def with_argument(bulk: bytes) -> None: ...

        bulk = bytes(200_000)
        with pytest.raises(SerializationError, match="100000.*'max_message_bytes'.*function"):
            with weave() as w:

                @w.do(environment="far")
                def with_ballast() -> int:
                    return len(bulk)

        assert run_one() == 1
        assert peer.connections == 1
        wove.shutdown()


def test_a_function_beyond_the_limit_holds_up_no_other_run(no_leaks: None) -> None:
    """What goes out in the same turn of the loop, before it and after it, gets there."""

    def late(line: Line) -> None:
        time.sleep(0.5)  # meanwhile all of them wait
        serve_sockets(line)

    with Peer(late) as peer:
        configure(peer.url, max_message_bytes=50_000)
        bulk = bytes(40_000)  # in base64 it is too much
        with weave(error_mode="continue") as w:

            @w.do(range(20), environment="far")
            def before(item: int) -> int:
                return item

            @w.do(range(3), environment="far")
            def large(item: int) -> int:
                return len(bulk)

            @w.do(range(20), environment="far")
            def after(item: int) -> int:
                return -item

        assert w.result.before == list(range(20))
        assert w.result.after == [-n for n in range(20)]
        assert isinstance(w.result.exception, SerializationError)
        wove.shutdown()


def test_events_of_given_up_runs_are_ignored(no_leaks: None) -> None:
    late = threading.Event()

    def behave(line: Line) -> None:
        connection = Socket(line)
        held: list[dict[str, Any]] = []
        for command in connection.commands():
            if command["type"] == "cancel_task":
                late.set()
            elif command["task_id"] == "slow":
                held += events(command)
            else:
                for event in [*held, *held, *events(command)]:
                    connection.send(event)

    with Peer(behave) as peer:
        configure(peer.url)
        with weave(error_mode="return") as w:

            @w.do(environment="far", delivery_timeout=0.2)
            def slow() -> None: ...

        assert isinstance(w.result.slow, TimeoutError)
        assert late.wait(30)
        assert run_one() == 1
        assert peer.connections == 1
        wove.shutdown()


# ------------------------------------------------------------------ connecting again


def dying(times: int, then: Callable[[Line], object] = serve_sockets) -> Callable[[Line], object]:
    """Behaves, then refuses the next *times* connections, then behaves again."""

    def behave(line: Line) -> None:
        if 1 <= line.number <= times:
            line.reset()
        else:
            then(line)

    return behave


def test_connects_again_to_a_service_that_was_there(no_leaks: None) -> None:
    parted = threading.Event()

    def then(line: Line) -> None:
        connection = Socket(line)
        command = connection.command()
        for event in events(command):
            connection.send(event)
        try:
            connection.close(1001, "a restart")
        finally:
            parted.set()

    with Peer(dying(3, then)) as peer:
        configure(peer.url)
        assert run_one() == 1
        assert parted.wait(
            10
        )  # what is sent before that is lost, as nobody knows whether it was taken
        assert run_one() == 1  # three attempts come to nothing before
        assert peer.connections == 5
        wove.shutdown()


def test_a_connection_that_has_ended_takes_nothing_more() -> None:
    """Not even in the moment before asyncio reports its loss: the command would be in no queue any more."""

    class Owner:
        def __init__(self) -> None:
            self.ends: list[tuple[bool, str]] = []
            self.over = asyncio.get_running_loop().create_future()

        def message(
            self, connection: websocket_connection.Connection, chunks: list[bytes]
        ) -> None: ...

        def writable(self, connection: websocket_connection.Connection) -> None: ...

        def gone(self, connection: websocket_connection.Connection, why: str) -> None:
            self.ends.append((connection.writable, why))
            self.over.set_result(None)

    async def main(url: str) -> None:
        owner = Owner()
        connection = await websocket_connection.connect(
            url, owner, headers=[], subprotocols=[], max_size=1000, context=None, seconds=30.0
        )
        assert connection.writable
        connection.send([b"{}"])
        async with asyncio.timeout(30):
            await owner.over
            await connection.ended
        assert owner.ends == [(False, "the connection was lost without a closing handshake")]

    # The peer's end closes with its function, without the closing handshake of RFC 6455.
    with Peer(lambda line: Socket(line).message()) as peer:
        asyncio.run(main(ws(peer.url)))


def test_gives_up_connecting_after_a_while(no_leaks: None) -> None:
    def then(line: Line) -> None:
        connection = Socket(line)
        for event in events(connection.command()):
            connection.send(event)
        connection.close(1001)

    with Peer(dying(10_000, then)) as peer:
        configure(peer.url, reconnect_timeout=0.5)
        assert run_one() == 1
        began = time.monotonic()
        with pytest.raises(WorkerLostError, match="could not be sent"):
            run_one()
        assert 0.5 <= time.monotonic() - began < 30
        assert 3 <= peer.connections < 20  # with a delay that grows
        wove.shutdown()


def test_runs_that_a_restarting_service_of_ours_did_not_take_are_sent_again(no_leaks: None) -> None:
    """Its last message says so, where the other side is ours: none of them has begun."""
    got: list[str] = []

    def behave(line: Line) -> None:
        connection = Socket(line, sockets.OURS)
        for command in connection.commands():
            got.append(command["task_id"])
            if line.number == 0:
                connection.send(sockets.GOODBYE)
                connection.close(sockets.RESTARTING, "see you")
            connection.send(events(command))

    with Peer(behave) as peer:
        configure(peer.url)
        assert run_one() == 1
        assert got == ["one", "one"]
        wove.shutdown()


def test_the_close_code_of_a_restart_alone_repeats_nothing(no_leaks: None) -> None:
    """Proxies close with 1012, too, and know nothing of runs that have begun."""
    got: list[str] = []

    def behave(line: Line) -> None:
        connection = Socket(line, sockets.OURS)
        for command in connection.commands():
            got.append(command["task_id"])
            connection.close(sockets.RESTARTING, "see you")

    with Peer(behave) as peer:
        configure(peer.url)
        with pytest.raises(WorkerLostError, match="code 1012"):
            run_one()
        assert got == ["one"]
        wove.shutdown()


def test_an_answer_that_came_before_a_restart_is_the_answer(no_leaks: None) -> None:
    """Also while it is still being decoded, as a large one is for a while: the run is not sent again."""
    got: list[str] = []
    size = 12_000_000

    def behave(line: Line) -> None:
        connection = Socket(line, sockets.OURS)
        for command in connection.commands():
            got.append(command["task_id"])
            connection.send(events(command))
            if command["task_id"] == "large":
                connection.send(sockets.GOODBYE)
                connection.close(sockets.RESTARTING, "see you")

    with Peer(behave) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(environment="far")
            def large() -> bytes:
                return bytes(size)

        assert len(w.result.large) == size
        assert run_one() == 1
        assert got == ["large", "one"]
        wove.shutdown()


def test_a_lost_run_does_not_wait_for_what_comes_over_the_next_connection(no_leaks: None) -> None:
    """Under load something is always being decoded; only what came before the loss may hold its answer."""
    dropped, over = threading.Event(), threading.Event()

    def behave(line: Line) -> None:
        connection = Socket(line)
        command = connection.command()
        beat = {"type": "heartbeat", "run_id": command["run_id"], "more": "." * 4_000_000}
        if line.number == 0:
            connection.send(beat)
            line.raw.close()
            dropped.set()
            return
        while not over.is_set():
            connection.send(beat)
        connection.send(events(command))
        connection.until_gone()

    def victim() -> None:
        try:
            with pytest.raises(WorkerLostError, match="lost"):
                run_one()
        finally:
            over.set()

    with Peer(behave) as peer:
        configure(peer.url)
        thread = threading.Thread(target=victim)
        thread.start()
        assert dropped.wait(30)
        # With a retry, for the loss of the first connection may not be known here yet.
        with weave() as w:

            @w.do(environment="far", retries=1)
            def busy() -> int:
                return 1

        assert w.result.busy == 1  # ends as soon as the victim has
        thread.join()
        wove.shutdown()


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..localhost"])
def test_a_name_that_cannot_even_be_asked_for_ends_the_run(host: str, no_leaks: None) -> None:
    wove.config(
        environments={
            "far": {
                "executor": "websocket",
                "executor_config": {"url": f"ws://{host}:9/", "insecure": True},
            }
        }
    )
    with pytest.raises((ValueError, wove.DeliveryError), match="a{70}|no host"):
        run_one()
    wove.shutdown()


def test_a_service_that_is_restarted_loses_nothing_that_it_did_not_take(tmp_path: Path) -> None:
    """SIGTERM under load, and one that comes after: every run has its result, without any retries."""
    with running(Plan("websocket", concurrency=4), tmp_path / "first") as first:
        config = first.config(reconnect_timeout=40.0)
        wove.config(environments={"far": {"executor": "websocket", "executor_config": config}})
        started, restarted = threading.Event(), threading.Event()
        second: list[Any] = []

        def restart() -> None:
            started.wait(30)
            first.stop()
            context = running(
                Plan("websocket", concurrency=4), tmp_path / "second", port=first.port
            )
            second.append(context)
            context.__enter__()
            restarted.set()

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            with weave() as w:

                @w.do(range(400), environment="far", workers=32)
                def nap(item: int) -> int:
                    import time

                    time.sleep(0.02)
                    return item

                @w.do
                def trigger() -> None:
                    readyz = f"http://127.0.0.1:{first.port}/readyz"
                    while True:
                        with urllib.request.urlopen(readyz, timeout=30) as reply:
                            if json.load(reply)["running"] == 4:
                                break
                    started.set()

            assert w.result.nap == list(range(400))
            assert restarted.wait(30)
        finally:
            started.set()
            thread.join()
            wove.shutdown()
            for context in second:
                context.__exit__(None, None, None)


# ------------------------------------------------------------------ scale, forks


def test_a_thousand_runs_in_flight_on_one_connection(no_leaks: None) -> None:
    """The service answers none before it has them all."""

    def behave(line: Line) -> None:
        connection = Socket(line, sockets.OURS)
        held, known = [], {}
        for command in connection.commands():
            known.setdefault(command["callable_id"], command.get("callable_pickle"))
            held.append({**command, "callable_pickle": known[command["callable_id"]]})
            if len(held) == 1000:
                for one in reversed(held):
                    connection.send(events(one))

    with Peer(behave) as peer:
        configure(peer.url)
        with weave() as w:

            @w.do(range(1000), environment="far")
            def same(item: int) -> int:
                return item

        assert w.result.same == list(range(1000))
        assert peer.connections == 1
        wove.shutdown()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_connection_of_its_own(script: Callable[..., Any]) -> None:
    with Peer(serve_sockets) as peer:
        found = script(
            f"""
            import os, wove
            from wove import weave
            config = {{"url": "ws://127.0.0.1:{peer.port}/"}}
            wove.config(environments={{"far": {{"executor": "websocket", "executor_config": config}}}})
            def run():
                with weave() as w:
                    @w.do(range(3), environment="far")
                    def negated(item):
                        return -item
                return w.result.negated
            print(run(), flush=True)
            child = os.fork()
            if child == 0:
                print(run(), flush=True)
                wove.shutdown()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(run(), flush=True)
            """,
            flags=(),
        )
        assert found.stdout.splitlines() == ["[0, -1, -2]"] * 3
        assert peer.connections == 2


# ------------------------------------------------------------------ the text of messages


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 67, 68, 69, 1000])
@pytest.mark.parametrize("signatures", [1, 2])
def test_signatures_are_split_off_wherever_a_message_is_cut(cut: int, signatures: int) -> None:
    line = b",".join([b"v1=" + b"ab" * 32] * signatures)
    message = line + b'\n{"type": "heartbeat"}'
    signature, rest = split_signature([message[n : n + cut] for n in range(0, len(message), cut)])
    assert signature == line.decode()
    assert b"".join(rest) == b'{"type": "heartbeat"}'


@pytest.mark.parametrize("message", [b"", b"{}", b"v1=", b"v1=" + b"a" * 5000, b"v", b"x\n{}"])
def test_what_is_not_signed_has_no_signature(message: bytes) -> None:
    signature, rest = split_signature([message])
    assert signature is None
    assert b"".join(rest) == message


def test_objects_are_joined() -> None:
    assert b"".join(sockets.joined([b'{"a":1', b"}"], [b'{"b":"', b'2"}'])) == b'{"a":1,"b":"2"}'


def test_stopping_while_it_connects_leaves_no_socket_behind() -> None:
    """In whatever turn of the loop that is: a socket that is lost warns when it is collected."""

    async def main(url: str) -> None:
        for turns in range(25):
            executor = wove.WebSocketEnvironmentExecutor()
            await executor.start(
                environment_name="far", environment_config={"url": url}, run_config={}
            )
            pickles = {
                "callable_pickle": dumps(dict, label="dict"),
                "args_pickle": dumps({}, label="nothing"),
            }
            executor.send_nowait(
                {"type": "run_task", "run_id": "r", "task_id": "t", **pickles, "delivery": {}}
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            await executor.stop()
            with warnings.catch_warnings(record=True, action="always") as caught:
                gc.collect()
            assert [str(warning.message) for warning in caught] == [], turns

    with Peer(serve_sockets) as peer:
        asyncio.run(main(ws(peer.url)))
