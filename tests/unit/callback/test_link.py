"""Where a callback URL leads to, and a connection there."""

from __future__ import annotations

import os
import socket

import pytest
from tests.support.callback_peer import Answer, Peer, make_payload
from tests.support.certificates import Certificates

from wove.callback import link, sender
from wove.callback.link import Destination, Link, exchange, request
from wove.errors import DeliveryError
from wove.integrations import worker
from wove.integrations.worker import run
from wove.protocol.pickling import loads


@pytest.mark.parametrize(
    ("url", "origin", "authority", "target"),
    [
        ("http://web:9010/wove/events/t", (False, "web", 9010), "web:9010", "/wove/events/t"),
        (
            "https://Web/wove/events/t?a=1&b=%20",
            (True, "web", 443),
            "web",
            "/wove/events/t?a=1&b=%20",
        ),
        ("http://web", (False, "web", 80), "web", "/"),
        ("http://[::1]:80/x", (False, "::1", 80), "[::1]:80", "/x"),
        ("http://user:word@web/x#fragment", (False, "web", 80), "web", "/x"),
        (
            "http://bücher.example/x",
            (False, "xn--bcher-kva.example", 80),
            "xn--bcher-kva.example",
            "/x",
        ),
    ],
)
def test_a_callback_url(url: str, origin: object, authority: str, target: str) -> None:
    destination = Destination.parse(url)
    assert (destination.origin, destination.authority, destination.target) == (
        origin,
        authority,
        target,
    )


@pytest.mark.parametrize(
    "url", ["web/x", "ftp://web/x", "http:///x", "http://web/a b", "http://web/\r\nX: y", ""]
)
def test_what_cannot_be_posted_to(url: str) -> None:
    with pytest.raises(ValueError, match="is not an? "):
        Destination.parse(url)


def test_the_token_is_in_no_message() -> None:
    assert str(Destination.parse("https://web/wove/events/token")) == "https://web:443"
    assert str(Destination.parse("http://[::1]:1/wove/events/token")) == "http://[::1]:1"


def test_an_early_answer_to_a_large_request(peer: Peer) -> None:
    peer.refuse_body = Answer(413, body=b"too large")
    destination = Destination.parse(peer.url)
    body = [os.urandom(1024 * 1024)] * 50
    head = request(destination, "POST", [("Content-Length", str(sum(map(len, body))))])
    answer, text = exchange(destination, head, body, stall_seconds=10)
    assert (answer.status, text) == (413, b"too large")


def test_a_name_without_an_address() -> None:
    with pytest.raises(socket.gaierror):
        Link(Destination.parse("http://nobody.invalid/x"))


class TestTLS:
    @pytest.fixture(autouse=True)
    def _fresh_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "_context", None)

    @pytest.mark.parametrize("size", [10, 5_000_000])
    def test_a_run(
        self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        peer = Peer(tls=certificates.server)
        data = os.urandom(size)
        payload = make_payload(peer, lambda data: data[::-1], data=data, claim=["args_pickle"])
        run(payload)
        assert loads(peer.end(payload["run_id"])["result_pickle"], label="r") == data[::-1]
        # Kept, although TLS 1.3 says something by itself after the handshake.
        again = make_payload(peer, lambda: 1)
        opened = peer.opened
        run(again)
        assert peer.opened == opened
        peer.close()
        worker.close(10)

    def test_a_connection_that_was_closed_is_noticed(
        self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        peer = Peer(tls=certificates.server)
        run(make_payload(peer, lambda: 1))
        peer.hang_up()
        peer.until(lambda: not peer.connections)
        run(make_payload(peer, lambda: 1, retry_seconds=0))
        assert len(peer.requests) == 2
        peer.close()
        worker.close(10)

    @pytest.mark.parametrize("whose", ["stranger_server", "misnamed", "expired"])
    def test_others_are_not_trusted(
        self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, whose: str
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        peer = Peer(tls=getattr(certificates, whose))
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            run(make_payload(peer, lambda: 1, retry_seconds=0))
        assert not peer.requests
        peer.close()
        worker.close(10)
        sender.close(10)
