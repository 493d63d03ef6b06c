"""Which services a weave trusts, and which weaves a service does, on all transports.

Where the service is not to be trusted, it is played by a bare TLS listener that notes every byte it can read:
there must be none.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.support.certificates import Certificates, Pair
from tests.support.leaks import leak_check
from tests.support.services import Plan, Service, Services

import wove
from wove import weave

SOON = 30.0
"""Seconds within which a refusal must be there: gRPC gives a handshake 20."""

SECRET = "only for those one trusts"

Transport = Literal["http", "grpc", "websocket"]
TRANSPORTS: tuple[Any, ...] = tuple(
    pytest.param(name, marks=pytest.mark.backend(name, "tls"))
    for name in ("http", "grpc", "websocket")
)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


def safe(transport: Transport) -> Plan:
    return Plan(transport, SECRET, tls=True)


def strict(transport: Transport, certificates: Certificates) -> Plan:
    """It wants to see a certificate of its clients."""
    return Plan(transport, SECRET, tls=True, client_ca=certificates.authority)


@pytest.fixture(autouse=True)
def nothing_stays(
    transport: Transport,
    services: Services,
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[None]:
    """Also not of a connection that failed half way."""
    for plan in (safe(transport), strict(transport, certificates), Plan(transport)):
        services.get(plan)  # these do stay
    with leak_check(tmp_path / "temporary", caplog=caplog):
        yield


def run_once(transport: Transport, config: dict[str, Any], marker: Path | None = None) -> int:
    """One task through an environment with *config*. It says its process id, and leaves *marker* where it ran."""
    wove.config(environments={"far": {"executor": transport, "executor_config": config}})
    path = None if marker is None else str(marker)
    with weave() as w:

        @w.do(environment="far")
        def task() -> int:
            if path is not None:
                open(path, "x").close()
            return os.getpid()

    return int(w.result.task)


def refusal(transport: Transport, config: dict[str, Any], marker: Path) -> str:
    """What the run ends with, in words; it must end soon, and the task must not have run."""
    began = time.monotonic()
    with pytest.raises((RuntimeError, OSError)) as caught:
        run_once(transport, config, marker)
    assert time.monotonic() - began < SOON, caught.value
    assert not marker.exists()
    message = str(caught.value)
    assert "task 'task'" in message and "environment 'far'" in message, message
    return message


# ------------------------------------------------------------------------------------ a service that may be trusted


@pytest.fixture
def service(services: Services, transport: Transport) -> Service:
    return services.get(safe(transport))


@pytest.fixture
def strict_service(services: Services, transport: Transport, certificates: Certificates) -> Service:
    return services.get(strict(transport, certificates))


@pytest.mark.parametrize("form", ["path", "text", "bytes", "Path"])
def test_a_private_authority(
    transport: Transport, service: Service, certificates: Certificates, form: str
) -> None:
    path = certificates.authority
    root: Any = {
        "path": str(path),
        "Path": path,
        "text": path.read_text(),
        "bytes": path.read_bytes(),
    }[form]
    assert run_once(transport, service.config(root_certificates=root)) == service.pid


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_by_name_and_by_address(transport: Transport, service: Service, host: str) -> None:
    assert run_once(transport, service.config(host=host)) == service.pid


@pytest.mark.parametrize("form", ["path", "text"])
def test_a_client_shows_its_certificate(
    transport: Transport, strict_service: Service, certificates: Certificates, form: str
) -> None:
    pair = certificates.client
    certificate, key = pair.pem() if form == "text" else (str(pair.certificate), str(pair.key))
    assert (
        run_once(transport, strict_service.config(client_certificate=certificate, client_key=key))
        == strict_service.pid
    )


@pytest.mark.parametrize("which", ["none", "of another authority"])
def test_a_client_without_a_good_certificate(
    transport: Transport,
    strict_service: Service,
    certificates: Certificates,
    which: str,
    tmp_path: Path,
) -> None:
    pair = certificates.stranger_client
    shown = (
        {"client_certificate": str(pair.certificate), "client_key": str(pair.key)}
        if which != "none"
        else {}
    )
    message = refusal(transport, strict_service.config(**shown), tmp_path / "ran")
    assert "certificate" in message.lower() or "handshake" in message.lower(), message


# ----------------------------------------------------------------------------------- services that may not be trusted


class Listener:
    """Accepts connections, and notes what it can read of them."""

    def __init__(self, pair: Pair | None) -> None:
        self.heard = bytearray()
        self.connections = 0
        self._context: ssl.SSLContext | None = None
        if pair is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pair.certificate, pair.key)
            self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over:
            with contextlib.suppress(OSError):
                connection, _ = self._socket.accept()
                self.connections += 1
                connection.settimeout(2.0)
                with connection, contextlib.suppress(OSError):
                    self._listen(connection)

    def _listen(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            while piece := connection.recv(65536):
                self.heard += piece

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()


@contextmanager
def listening(pair: Pair | None) -> Iterator[Listener]:
    listener = Listener(pair)
    try:
        yield listener
    finally:
        listener.close()


def config_for(transport: Transport, port: int, *, tls: bool = True, **more: Any) -> dict[str, Any]:
    nobody: Any = None
    service = Service("nobody", Path(), False, nobody, Plan(transport, SECRET, tls=tls), port, None)
    return service.config(**more)


Which = Callable[[Certificates], Pair]

UNTRUSTED = {
    # name: (the service's certificate, the authority that the weave trusts, what the error must speak of)
    "unknown authority": (lambda c: c.server, None, r"certificate"),
    "another authority": (lambda c: c.stranger_server, lambda c: c.authority, r"certificate"),
    "expired": (lambda c: c.expired, lambda c: c.authority, r"expired"),
    "wrong name": (lambda c: c.misnamed, lambda c: c.authority, r"(?i)hostname|not valid for|name"),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_a_service_that_is_not_to_be_trusted(
    transport: Transport, certificates: Certificates, case: str, tmp_path: Path
) -> None:
    pair, authority, words = UNTRUSTED[case]
    trusted = {} if authority is None else {"root_certificates": str(authority(certificates))}
    with listening(pair(certificates)) as listener:
        message = refusal(
            transport, config_for(transport, listener.port, **trusted), tmp_path / "ran"
        )
        assert re.search(words, message), message
        assert str(listener.port) in message
    assert listener.connections
    assert not listener.heard


def test_tls_to_a_service_without(
    transport: Transport, certificates: Certificates, tmp_path: Path
) -> None:
    with listening(None) as listener:
        config = config_for(transport, listener.port, root_certificates=str(certificates.authority))
        began = time.monotonic()
        message = refusal(transport, config, tmp_path / "ran")
        assert str(listener.port) in message
    assert time.monotonic() - began < SOON
    assert SECRET.encode() not in listener.heard
    assert b"wove" not in listener.heard.lower()  # a handshake, but neither header nor frame


def test_tls_to_our_service_without(
    transport: Transport, services: Services, certificates: Certificates, tmp_path: Path
) -> None:
    plain = services.get(Plan(transport))
    config = config_for(transport, plain.port, root_certificates=str(certificates.authority))
    message = refusal(transport, config, tmp_path / "ran")
    assert "TLS" in message or "SSL" in message, message


def test_plaintext_to_a_service_with_tls(
    transport: Transport, service: Service, tmp_path: Path
) -> None:
    message = refusal(transport, config_for(transport, service.port, tls=False), tmp_path / "ran")
    assert str(service.port) in message


def test_a_listener_that_never_answers_the_handshake(
    transport: Transport, certificates: Certificates, tmp_path: Path
) -> None:
    """It accepts the connection, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trusted = {"root_certificates": str(certificates.authority)}
        limit: dict[str, Any] = {
            "http": {"connect_timeout": 1.0},
            "grpc": {"channel_options": {"grpc.min_reconnect_backoff_ms": 1000}},
            "websocket": {"open_timeout": 1.0},
        }[transport]
        config = config_for(transport, silent.getsockname()[1], **trusted, **limit)
        refusal(transport, config, tmp_path / "ran")
