"""One receiver per address and process: who shares it, who cannot, and what is left of it."""

from __future__ import annotations

import asyncio
import socket
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.receiving import (
    SIGNED,
    Receiving,
    RecordingSubscriber,
    Wire,
    beat,
    receiving,
    started,
)
from tests.support.scripts import Finished

from wove.callback import receiver as receivers
from wove.callback.receiver import Receiver, RunStatus, open_route, read_address
from wove.errors import DeliveryError
from wove.security import NetworkExecutorSecurity


def free_ports(count: int) -> int:
    """The first of *count* ports in a row that are free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        return first


def opened_by(receiving_loop: Receiving) -> list[Receiver]:
    """The receivers on the loop of *receiving_loop*; other tests of this process may have theirs."""
    return [
        receiver
        for (loop, _, _), receiver in receivers._receivers.items()
        if loop is receiving_loop.background.loop
    ]


def test_environments_share_a_port(receiving_loop: Receiving) -> None:
    port = free_ports(1)
    subscribers = [RecordingSubscriber(), RecordingSubscriber(), RecordingSubscriber()]
    routes = [
        receiving_loop.open(subscribers[0], port=port, token="a"),
        receiving_loop.open(subscribers[1], port=str(port), token="b"),
    ]
    routes.append(receiving_loop.open(subscribers[2], port=port, token="b"))
    assert {route.port for route in routes} == {port} and len(opened_by(receiving_loop)) == 1
    subscribers[1].statuses["r1"] = RunStatus.UNKNOWN
    with Wire(routes[0]) as wire:
        assert wire.post(beat("r0")).status == 204
        assert (
            wire.request(body=b'{"type":"heartbeat","run_id":"r1"}', path="/wove/events/b").status
            == 204
        )
        receiving_loop.call(routes[0].close())
        assert wire.post(beat("r0")).status == 404, (
            "the others are still there, and so is the connection"
        )
        receiving_loop.call(routes[2].close())
        assert (
            wire.request(body=b'{"type":"heartbeat","run_id":"r1"}', path="/wove/events/b").status
            == 410
        )
        receiving_loop.call(routes[1].close())
        assert wire.ended()
    assert [subscriber.taken for subscriber in subscribers] == [
        [("heartbeat", "r0")],
        [],
        [("heartbeat", "r1")],
    ]
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0
    assert not opened_by(receiving_loop)


def test_threads_open_at_once(receiving_loop: Receiving) -> None:
    port = free_ports(1)
    opened: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: opened.append(receiving_loop.open(RecordingSubscriber(), port=port).port)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [port] * 8 and len(opened_by(receiving_loop)) == 1


def test_without_a_port_they_share_one_too(receiving_loop: Receiving) -> None:
    assert (
        receiving_loop.open(RecordingSubscriber()).port
        == receiving_loop.open(RecordingSubscriber()).port
    )


def test_one_token_and_two_securities(receiving_loop: Receiving) -> None:
    plain, signed = (
        RecordingSubscriber(r2=RunStatus.UNKNOWN),
        RecordingSubscriber(r1=RunStatus.UNKNOWN),
    )
    receiving_loop.open(plain, token="t")
    with Wire(receiving_loop.open(signed, token="t", security=SIGNED)) as wire:
        assert wire.post(beat("r1")).status == 204
        assert wire.post(beat("r2")).status == 401, "it is the other's, who wants a signature"
        assert wire.signed(beat("r2")).status == 204
    assert (plain.taken, signed.taken) == ([("heartbeat", "r1")], [("heartbeat", "r2")])


@pytest.mark.parametrize("host", ["::1", "::", "localhost", "0.0.0.0"])
def test_hosts(receiving_loop: Receiving, host: str) -> None:
    route = receiving_loop.open(RecordingSubscriber(), host=host, token="t")
    targets = {
        "::1": ["::1"],
        "::": ["::1", "127.0.0.1"],
        "localhost": ["localhost"],
        "0.0.0.0": ["127.0.0.1"],
    }[host]
    for target in targets:
        with Wire(route, target) as wire:
            assert wire.post(beat("r1")).status == 204
    if host == "::1":
        assert route.url == f"http://[::1]:{route.port}/wove/events/t"


def test_a_range_gives_each_process_a_port_of_its_own(receiving_loop: Receiving) -> None:
    first = free_ports(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        route = receiving_loop.open(
            RecordingSubscriber(),
            port=f"{first}-{first + 2}",
            url="http://web:{port}/wove/events/{token}",
            token="t",
        )
        assert route.port == first + 1
        assert route.url == f"http://web:{first + 1}/wove/events/t"
    assert (
        receiving_loop.open(RecordingSubscriber(), port=f"{first}-{first + 2}").port == first + 1
    ), "within a process it is shared"


@pytest.mark.parametrize("ports", [1, 2])
def test_a_port_that_another_process_has(receiving_loop: Receiving, ports: int) -> None:
    first = free_ports(ports)
    taken = [socket.create_server(("127.0.0.1", port)) for port in range(first, first + ports)]
    given = first if ports == 1 else f"{first}-{first + 1}"
    with pytest.raises(DeliveryError) as caught:
        receiving_loop.open(RecordingSubscriber(), port=given)
    text = str(caught.value)
    assert f"environment 'reports': the callback port{'' if ports == 1 else 's'} {first}" in text
    for remedy in ("another port", "0, for any", '"9010-9019"', "{port}"):
        assert remedy in text
    for sock in taken:
        sock.close()
    assert receiving_loop.open(RecordingSubscriber(), port=given).port == first, "it is tried again"


def test_a_port_that_another_environment_has(receiving_loop: Receiving) -> None:
    port = receiving_loop.open(RecordingSubscriber(), host="0.0.0.0", port=free_ports(1)).port
    with pytest.raises(
        DeliveryError,
        match=f"another environment of this process listens on the callback port {port}",
    ):
        receiving_loop.open(RecordingSubscriber(), port=port)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "is not an address of this machine"),
        ("no-such-host.invalid", "there is no host 'no-such-host.invalid'"),
    ],
)
def test_a_host_that_is_not_this_one(receiving_loop: Receiving, host: str, says: str) -> None:
    with pytest.raises(DeliveryError, match=says):
        receiving_loop.open(RecordingSubscriber(), host=host)
    assert not opened_by(receiving_loop)


def test_opening_can_be_given_up(receiving_loop: Receiving) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(
            open_route(
                read_address({"callback_host": "localhost"}, label="x"),
                RecordingSubscriber(),
                security=NetworkExecutorSecurity.from_config(None),
                max_message_bytes=1000,
                label="x",
            )
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    receiving_loop.call(give_up())
    assert not opened_by(receiving_loop)


@pytest.mark.usefixtures("no_leaks")
def test_closing_costs_nothing_and_leaves_nothing() -> None:
    def seconds() -> float:
        with receiving() as receiving_loop:
            subscriber = RecordingSubscriber()
            subscriber.claims["c"] = [bytes(50_000_000)]
            route = receiving_loop.open(subscriber, host="localhost")
            with (
                Wire(route, "localhost") as idle,
                Wire(route, "localhost") as busy,
                Wire(route, "localhost") as stuck,
            ):
                assert idle.post(started("r1"), X_Wove_Worker="w").status == 204
                busy.send(busy.head("POST", busy.path, {"Content-Length": "100000"}) + b"x")
                stuck.send(stuck.head("GET", f"{stuck.path}/claims/c", {}))
                assert stuck.sock.recv(10)
                began = time.monotonic()
                receiving_loop.call(route.close())
                took = time.monotonic() - began
                assert idle.ended()
            receiving_loop.call(route.close())
        return took

    # What is always waited for shows each time; what a busy machine adds does not.
    assert any(seconds() < 0.4 for _ in range(5))


def test_a_loop_that_ended_without_a_word_does_not_keep_the_port(no_leaks: None) -> None:
    port = free_ports(1)

    def open_and_forget() -> None:
        async def main() -> None:
            await open_route(
                read_address({"callback_port": port}, label="x"),
                RecordingSubscriber(),
                security=NetworkExecutorSecurity.from_config(None),
                max_message_bytes=1000,
                label="x",
            )

        asyncio.run(main())

    open_and_forget()
    with receiving() as receiving_loop:
        assert receiving_loop.open(RecordingSubscriber(), port=port).port == port


def test_a_forked_child_has_a_receiver_of_its_own(
    script: Callable[..., Finished], tmp_path: Path
) -> None:
    port = free_ports(2)
    source = f"""
    import asyncio, os, socket, sys, warnings
    sys.path.insert(0, {str(Path(__file__).parents[3])!r})
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    from tests.support.receiving import RecordingSubscriber, Wire, beat, receiving, started

    with receiving() as receiving_loop:
        subscriber = RecordingSubscriber()
        route = receiving_loop.open(subscriber, port="{port}-{port + 1}", token="t")
        wire = Wire(route)
        assert wire.post(started("r1"), X_Wove_Worker="w").status == 204
        ready, begin = os.pipe()
        child = os.fork()
        if not child:
            os.close(begin)
            os.read(ready, 1)  # until the parent has let go of its port
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", {port})) != 0, "the child holds the parent's port"
            with receiving() as own:
                mine = own.open(RecordingSubscriber(), port="{port}-{port + 1}", token="t")
                assert mine.port == {port}
                with Wire(mine) as other:
                    assert other.post(beat("r2")).status == 204
            sys.stdout.flush()
            os._exit(0)
        assert wire.post(beat("r1")).status == 204, "the child took the parent's connection along"
        receiving_loop.call(route.close())
        assert wire.ended(), "the child holds the parent's connection"
        wire.sock.close()
        os.close(begin)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert subscriber.lost == []
        print("done")
    """
    finished = script(textwrap.dedent(source))
    assert finished.stdout == "done\n" and finished.stderr == ""
