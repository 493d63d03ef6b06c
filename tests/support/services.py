"""Worker services in processes of their own: ``python -m wove worker http|grpc|websocket``, as a user starts them.

    >>> with running(Plan("http", secret="s", tls=True), tmp_path, certificates) as service:
    ...     wove.config(environments={"w": {"executor": "http", "executor_config": service.config()}})

`services` is a fixture that starts each `Plan` once per session and gives it to every test that asks. A plan that is
``supervised`` is started again on its port when it dies.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.certificates import Certificates, Pair
from tests.support.kept import Kept, free_port, launch

__all__ = ["Plan", "Service", "Services", "running"]

VARIABLE = "WOVE_TEST_SECRET"
"""The environment variable in which a service finds its secret."""

SCHEMES = {"http": ("http", "https"), "websocket": ("ws", "wss")}


@dataclass(frozen=True)
class Plan:
    """How to start a service. Equal plans are one service of the `services` fixture.

    Attributes:
        transport: Which one.
        secret: What requests must be signed with; ``None``: nothing.
        sign_replies: Whether the service signs, too.
        tls: Whether it has a certificate: the session's own, or the `Pair` given to `running`.
        client_ca: Path of the CA whose certificates its clients must show.
        processes: Number of its worker processes; ``None``: it runs tasks in threads.
        concurrency: As ``--concurrency``.
        supervised: Whether it is started again when it dies.
        host: Where it listens.
        options: More of its options.
        inside: What to put before the command: ``("ip", "netns", "exec", ...)``.
    """

    transport: Literal["http", "grpc", "websocket"]
    secret: str | None = None
    sign_replies: bool = False
    tls: bool = False
    client_ca: Path | None = None
    processes: int | None = None
    concurrency: int | None = None
    supervised: bool = False
    host: str = "127.0.0.1"
    options: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    @property
    def security(self) -> str | dict[str, Any] | None:
        """What `NetworkExecutorSecurity.from_config` takes for it, on either side."""
        if self.secret is None:
            return None
        return {
            "type": "signed",
            "secret": self.secret,
            **({"sign_replies": True} if self.sign_replies else {}),
        }


@dataclass
class Service(Kept):
    """A service that runs (or ran)."""

    plan: Plan
    port: int
    certificates: Certificates | None

    def ready(self) -> str:
        """Wait until it accepts connections; returns the line with which it says so."""
        return str(self.until(lambda: self.status().get("line"), "accepts connections"))

    # ------------------------------------------------------------------------------------ the other side of it

    @property
    def address(self) -> str:
        """Its ``url`` or ``target``."""
        return self.address_at(self.plan.host)

    def address_at(self, host: str, port: int | None = None) -> str:
        """Its ``url`` or ``target`` by another name, or through a proxy."""
        where = f"[{host}]" if ":" in host else host
        where = f"{where}:{self.port if port is None else port}"
        if self.plan.transport == "grpc":
            return where
        return f"{SCHEMES[self.plan.transport][self.plan.tls]}://{where}/wove/tasks"

    def config(
        self, *, host: str | None = None, port: int | None = None, **more: Any
    ) -> dict[str, Any]:
        """An ``executor_config`` for it: address, security, and the CA to trust; and *more*, or other than that."""
        address = self.address_at(host or self.plan.host, port)
        config: dict[str, Any] = {"target" if self.plan.transport == "grpc" else "url": address}
        if self.plan.transport == "grpc":
            config["secure"] = self.plan.tls
        if self.plan.security is not None:
            config["security"] = self.plan.security
        if self.plan.tls and self.certificates is not None:
            config["root_certificates"] = str(self.certificates.authority)
        return {key: value for key, value in {**config, **more}.items() if value is not ...}

    def healthy(self) -> bool:
        """Whether it answers its health check (a TCP connection, for gRPC)."""
        if self.plan.transport == "grpc":
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.plan.host, self.port), 5),
            ):
                return True
            return False
        context = (
            ssl.create_default_context(cafile=str(self.certificates.authority))
            if self.certificates
            else None
        )
        make = (
            functools.partial(http.client.HTTPSConnection, context=context)
            if self.plan.tls
            else None
        )
        connection = (make or http.client.HTTPConnection)(self.plan.host, self.port, timeout=10)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def start(
    plan: Plan,
    folder: Path,
    certificates: Certificates | None = None,
    *,
    pair: Pair | None = None,
    port: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Service:
    """Start a service and wait until it accepts connections.

    Args:
        plan: What to start.
        folder: For its log and its keeper's notes; its own.
        certificates: The session's, for TLS.
        pair: Another certificate than ``certificates.server``.
        port: Default: one that is free.
        environ: More environment variables.
    """
    port = port or free_port()
    command = [
        *plan.inside,
        sys.executable,
        "-m",
        "wove",
        "worker",
        plan.transport,
        *_options(plan, port),
    ]
    if plan.tls:
        assert certificates is not None
        pair = pair or certificates.server
        command += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
        if plan.client_ca is not None:
            command += ["--client-ca", str(plan.client_ca)]
    variables = dict(environ or {})
    if plan.security is not None:
        assert plan.secret is not None
        variables[VARIABLE] = plan.secret if not plan.sign_replies else json.dumps(plan.security)
    # The folder from which a service's tasks are imported is the one it is started in: the default, that of the tests.
    process = launch(command, folder, restarts=plan.supervised, environ=variables)
    service = Service(
        f"wove worker {plan.transport}", folder, plan.supervised, process, plan, port, certificates
    )
    try:
        service.ready()
    except BaseException:
        service.stop()
        raise
    return service


def _options(plan: Plan, port: int) -> Iterator[str]:
    yield from ("--bind", f"[{plan.host}]:{port}" if ":" in plan.host else f"{plan.host}:{port}")
    if plan.secret is not None:
        yield from ("--security", f"env:{VARIABLE}")
    if plan.processes is not None:
        yield from ("--processes", str(plan.processes))
    if plan.concurrency is not None:
        yield from ("--concurrency", str(plan.concurrency))
    yield from plan.options


@contextmanager
def running(
    plan: Plan, folder: Path, certificates: Certificates | None = None, **options: Any
) -> Iterator[Service]:
    """As `start`; the service ends with the block."""
    service = start(plan, folder, certificates, **options)
    try:
        yield service
    finally:
        service.stop()


class Services:
    """The session's services, each started when the first test asks for it."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.folder, self.certificates = folder, certificates
        self.started: dict[Plan, Service] = {}

    def get(self, plan: Plan) -> Service:
        """The service of *plan*, accepting connections."""
        if plan not in self.started:
            folder = self.folder / f"{len(self.started)}-{plan.transport}"
            self.started[plan] = start(plan, folder, self.certificates)
        service = self.started[plan]
        service.ready()
        return service

    def stop(self) -> None:
        # All at once: each takes as long as its own drain.
        for service in self.started.values():
            if service.process.stdin is not None:
                service.process.stdin.close()
        for service in self.started.values():
            service.stop()


@pytest.fixture(scope="session")
def services(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Services]:
    """Each `Plan`'s service, one for the whole session."""
    found = Services(tmp_path_factory.mktemp("services"), certificates)
    yield found
    found.stop()
