"""What a worker fetches, however slowly."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from urllib.parse import urlsplit

import pytest
from tests.support.receiving import SIGNED, Receiving, RecordingSubscriber, Wire, beat, eventually
from tests.unit.callback.test_connections import receiver_of

from wove.callback import server
from wove.protocol.payload import claim_url
from wove.security import NetworkExecutorSecurity


@pytest.mark.parametrize(
    "chunks", [[b""], [], [b"abc"], [b"abc", memoryview(b"defg")], [b"x" * 1_000_000, b"y"]]
)
def test_a_claim_comes_as_it_is(
    receiving_loop: Receiving, chunks: list[bytes | memoryview]
) -> None:
    subscriber = RecordingSubscriber()
    subscriber.claims["c-1"] = chunks
    route = receiving_loop.open(subscriber)
    with Wire(route) as wire:
        path = urlsplit(claim_url(route.url, "c-1")).path
        for _ in range(2):
            answer = wire.request("GET", path=path)
            assert answer.status == 200 and answer.body == b"".join(chunks)
            assert answer.fields["content-type"] == "application/octet-stream"
        assert wire.request("GET", path=path + "x").status == 410
        assert wire.post(beat("r1")).status == 204
        assert wire.request("GET", path=path, version="1.0").fields["connection"] == "close"
        assert wire.ended()


def test_claims_are_for_those_who_sign(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    subscriber.claims["c"] = [b"abc"]
    security = NetworkExecutorSecurity.from_config(SIGNED)
    with Wire(receiving_loop.open(subscriber, security=SIGNED)) as wire:
        path = f"{wire.path}/claims/c"
        assert wire.request("GET", path=path).status == 401
        wrong = security.headers_for(transport="http", target=wire.path)
        assert wire.request("GET", path=path, **wrong).status == 403
        right = security.headers_for(transport="http", target=path)
        assert wire.request("GET", path=path, **right).body == b"abc"
        assert wire.request("GET", path=path, **right).status == 403, "not twice"
        assert wire.request("GET", path=wire.path + "x/claims/c", **right).status == 404


def test_fifty_megabytes_for_several_at_once_and_one_slow_reader(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    chunk = os.urandom(1_000_000)
    subscriber.claims["c"] = [memoryview(chunk)] * 50
    expected = hashlib.sha256(chunk * 50).hexdigest()
    route = receiving_loop.open(subscriber)
    found = receiver_of(route)
    with Wire(route) as slow:
        slow.send(slow.head("GET", f"{slow.path}/claims/c", {}))
        digests: list[str] = []

        def fetch() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", route.port, timeout=20)
            connection.request("GET", f"{slow.path}/claims/c")
            digests.append(hashlib.sha256(connection.getresponse().read()).hexdigest())
            connection.close()

        threads = [threading.Thread(target=fetch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert digests == [expected] * 3
        held = [each._transport.get_write_buffer_size() for each in list(found._connections)]
        assert sum(held) < 2_000_000, "what the slow one has not read is not copied"
        assert hashlib.sha256(slow.answer().body).hexdigest() == expected
        assert slow.request("GET", path=f"{slow.path}/claims/d").status == 410


def test_a_reader_that_has_stopped_is_given_up(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.1)
    subscriber = RecordingSubscriber()
    subscriber.claims["c"] = [bytes(20_000_000)]
    route = receiving_loop.open(subscriber)
    found = receiver_of(route)
    with Wire(route) as wire:
        wire.send(wire.head("GET", f"{wire.path}/claims/c", {}))
        eventually(lambda: found._connections)
        eventually(lambda: not found._connections)


def test_a_reader_that_leaves(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    subscriber.claims["c"] = [bytes(20_000_000)]
    route = receiving_loop.open(subscriber)
    found = receiver_of(route)
    with Wire(route) as wire:
        wire.send(wire.head("GET", f"{wire.path}/claims/c", {}))
        wire.sock.recv(1000)
    eventually(lambda: not found._connections)
