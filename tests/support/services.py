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
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.certificates import Certificates, Pair

__all__ = ["Plan", "Service", "Services", "running"]

ROOT = Path(__file__).parents[2]
VARIABLE = "WOVE_TEST_SECRET"
"""The environment variable in which a service finds its secret."""

PATIENCE = 40.0
"""Seconds that a service may take to start, on a machine that does other things."""

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
        return {"type": "signed", "secret": self.secret, **({"sign_replies": True} if self.sign_replies else {})}


@dataclass
class Service:
    """A service that runs (or ran)."""

    plan: Plan
    port: int
    folder: Path
    certificates: Certificates | None
    keeper: subprocess.Popen[bytes] = field(repr=False)

    def status(self) -> dict[str, Any]:
        """What its keeper knows of it; see tests/support/keeper.py."""
        path = self.folder / "status"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def pid(self) -> int:
        """The process of the service itself. Waits for it, if it is just being started again."""
        return int(self._until(lambda status: status.get("pid")))

    @property
    def starts(self) -> int:
        """How often it was started."""
        return int(self.status().get("starts", 0))

    def log(self) -> str:
        """All that it has said, on stdout and stderr."""
        return (self.folder / "log").read_text(errors="replace")

    def ready(self) -> str:
        """Wait until it accepts connections; returns the line with which it says so."""
        return str(self._until(lambda status: status.get("line")))

    def kill(self) -> None:
        """SIGKILL. A supervised one comes again by itself; another is dead when this returns."""
        pid, starts = self.pid, self.starts
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())["pid"] == pid and status["starts"] == starts:
            assert time.monotonic() < deadline, "a killed service is still there"
            time.sleep(0.005)

    def stop(self) -> int:
        """SIGTERM, and wait for its end. Fails when it leaves a process behind. Returns its exit status."""
        if self.keeper.stdin is not None:
            self.keeper.stdin.close()
        self.keeper.wait()
        status = self.status()
        if status["left"]:
            pytest.fail(f"the service left processes behind: {status['left']}", pytrace=False)
        return int(status["ended"][-1])

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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

    def config(self, *, host: str | None = None, port: int | None = None, **more: Any) -> dict[str, Any]:
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
            with contextlib.suppress(OSError), socket.create_connection((self.plan.host, self.port), 5):
                return True
            return False
        context = ssl.create_default_context(cafile=str(self.certificates.authority)) if self.certificates else None
        make = functools.partial(http.client.HTTPSConnection, context=context) if self.plan.tls else None
        connection = (make or http.client.HTTPConnection)(self.plan.host, self.port, timeout=10)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _until(self, look: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := look(status := self.status())):
            over = self.keeper.poll() is not None or (status.get("ended") and not self.plan.supervised)
            if over or time.monotonic() > deadline:
                pytest.fail(f"the service is not there: {status}\n{self.log()[-5000:]}", pytrace=False)
            time.sleep(0.005)
        return found


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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").touch()
    port = port or free_port()
    command = [*plan.inside, sys.executable, "-m", "wove", "worker", plan.transport, *_options(plan, port)]
    if plan.tls:
        assert certificates is not None
        pair = pair or certificates.server
        command += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
        if plan.client_ca is not None:
            command += ["--client-ca", str(plan.client_ca)]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})}
    if plan.security is not None:
        variables[VARIABLE] = plan.secret if not plan.sign_replies else json.dumps(plan.security)
    keep = [str(Path(__file__).with_name("keeper.py")), str(folder / "status"), str(folder / "log")]
    keeper = subprocess.Popen(
        [sys.executable, "-I", *keep, "restart" if plan.supervised else "once", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # The folder from which a service's tasks are imported is the one it is started in.
        cwd=ROOT,
        env=variables,
        # A Ctrl-C at the tests is not for the services: the tests stop them.
        start_new_session=True,
    )
    service = Service(plan, port, folder, certificates, keeper)
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
def running(plan: Plan, folder: Path, certificates: Certificates | None = None, **options: Any) -> Iterator[Service]:
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
            if service.keeper.stdin is not None:
                service.keeper.stdin.close()
        for service in self.started.values():
            service.stop()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Services]:
    """Each `Plan`'s service, one for the whole session."""
    found = Services(tmp_path_factory.mktemp("services"), certificates)
    yield found
    found.stop()


def free_port() -> int:
    """A port where nobody listens, outside the range from which the system takes those of outgoing connections.

    Inside of it, another connection could take the port of a service that is just being restarted; even one *to* that
    port, which TCP then connects to itself.
    """
    low, high = 20_000, 32_000
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        high = min(high, first)
    for port in random.sample(range(low, high), 100):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return port
    raise OSError(f"no port between {low} and {high} is free")
