"""`wove.doctor` on set-ups that are broken in one way each: it names the fault, and says what mends it."""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.support.kept import free_port
from tests.support.servers import Servers
from tests.support.services import Plan, Services, running
from tests.support.workers import Worker, celery, rq

import wove
from wove import BackendAdapter, BackendAdapterEnvironmentExecutor, WorkerLostError, weave
from wove.diagnosis import Finding

SECRET = "s" * 40
OTHER_SECRET = "t" * 40
SECONDS = 30.0
"""How long a probe may take. Nothing here takes as long; a wait for what never comes is cut short below."""


def examined(
    executor: object,
    config: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    payload_bytes: int = 100_000,
    modules: tuple[str, ...] = (),
) -> dict[str, Finding]:
    """The findings of doctor about one environment, by check; of several of one name the last."""
    wove.config(environments={"broken": {"executor": executor, "executor_config": config}})
    findings = wove.doctor("broken", timeout=seconds, payload_bytes=payload_bytes, modules=modules)
    return {finding.check: finding for finding in findings if finding.environment}


def fault(findings: Mapping[str, Finding], check: str) -> Finding:
    """The one finding that has failed, which is that of *check*, and says what to do."""
    wrong = [finding for finding in findings.values() if not finding.ok]
    assert [finding.check for finding in wrong] == [check], wrong
    assert wrong[0].remedy
    return wrong[0]


@contextmanager
def worker_script(folder: Path, changes: str) -> Iterator[dict[str, Any]]:
    """The `executor_config` of a pool whose worker makes *changes* to itself before it begins."""
    script = folder / "worker_of_doctor_tests.py"
    script.write_text(f"{changes}\nfrom wove.worker.stdio import main\nmain()\n")
    yield {"command": [sys.executable, str(script)]}


# ------------------------------------------------------------------ nothing is wrong


@pytest.mark.backend("stdio")
def test_a_pool_is_well() -> None:
    findings = examined("stdio", {"processes": 1}, modules=("json",))
    assert all(finding.ok for finding in findings.values()), findings
    checks = ["packages", "start", "worker", "versions", "modules", "latency", "clock", "payload"]
    assert list(findings) == [*checks, "cancel"]


def test_a_service_is_well(services: Services) -> None:
    service = services.get(Plan("http", secret=SECRET))
    findings = examined("http", service.config())
    assert all(finding.ok for finding in findings.values()), findings
    assert {"address", "secret", "stream", "cancel"} <= set(findings)


# ------------------------------------------------------------------ worker services


def test_a_wrong_url() -> None:
    with proxy(0, 0, status=404) as port:
        findings = examined("http", {"url": f"http://127.0.0.1:{port}/nowhere"})
    assert "correct the path" in fault(findings, "address").remedy


def test_a_host_that_does_not_exist() -> None:
    findings = examined("http", {"url": "http://no-such-host.invalid/wove/tasks", "insecure": True})
    assert "there is no host 'no-such-host.invalid'" in fault(findings, "address").message


def test_a_closed_port() -> None:
    port = free_port()
    findings = examined("grpc", {"target": f"127.0.0.1:{port}"})
    assert f"nothing listens at 127.0.0.1:{port}" in fault(findings, "address").message


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_wrong_secret(services: Services, transport: Any) -> None:
    service = services.get(Plan(transport, secret=SECRET))
    security = {"type": "signed", "secret": OTHER_SECRET}
    findings = examined(transport, service.config(security=security))
    assert "set the same secret on both sides" in fault(findings, "secret").remedy


def test_an_expired_certificate(tmp_path: Path, certificates: Certificates) -> None:
    plan = Plan("http", secret=SECRET, tls=True)
    with running(plan, tmp_path / "service", certificates, pair=certificates.expired) as service:
        findings = examined("https", service.config())
    assert "has expired" in fault(findings, "certificate").message
    assert "renew the certificate" in findings["certificate"].remedy


class _Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy as many are configured: small requests, and responses in one piece."""

    protocol_version = "HTTP/1.1"
    target = 0
    most = 0
    status = 413

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        if size > self.most:
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            return
        onward = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        onward.request("POST", self.path, self.rfile.read(size), dict(self.headers))
        response = onward.getresponse()
        content = response.read()
        self.send_response(response.status)
        self.send_header("Content-Type", response.getheader("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        onward.close()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(port: int, most: int, status: int = 413) -> Iterator[int]:
    """A proxy in front of *port* that answers bodies of more than *most* bytes with *status*."""
    handler = type("Handler", (_Proxy,), {"target": port, "most": most, "status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_proxy_that_takes_no_large_body(services: Services) -> None:
    service = services.get(Plan("http"))
    with proxy(service.port, 100_000) as port:
        findings = examined("http", service.config(port=port), payload_bytes=80_000)
    assert findings["payload"].status == "failed"
    assert findings["payload"].message.startswith("80,000 bytes do not pass, 65,536 do: ")
    assert "client_max_body_size" in findings["payload"].remedy


def test_a_proxy_that_buffers(services: Services) -> None:
    service = services.get(Plan("http"))
    with proxy(service.port, 10**9) as port:
        findings = examined("http", service.config(port=port))
    assert "together with its end" in findings["stream"].message
    assert "proxy_buffering off" in findings["stream"].remedy


# ------------------------------------------------------------------ the worker's side


@pytest.mark.backend("stdio")
def test_a_clock_that_is_ten_minutes_off(tmp_path: Path) -> None:
    changes = "import time\nreal = time.time\ntime.time = lambda: real() + 600"
    with worker_script(tmp_path, changes) as config:
        findings = examined("stdio", config)
    message = fault(findings, "clock").message
    # The time that the probe was on its way is not counted.
    assert re.fullmatch(r"the worker's clock is (5[5-9]\d|600) s ahead of this one", message)


def test_a_clock_that_spoils_signatures(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 600\n"
    )
    plan = Plan("http", secret=SECRET)
    environ = {"PYTHONPATH": str(tmp_path)}
    with running(plan, tmp_path / "service", environ=environ) as service:
        findings = examined("http", service.config())
    assert "NTP" in fault(findings, "clock").remedy


@pytest.mark.backend("stdio")
def test_another_minor_version_of_python(tmp_path: Path) -> None:
    changes = "import wove.protocol.frames\nwove.protocol.frames.PYTHON = '3.9'"
    with worker_script(tmp_path, changes) as config:
        findings = examined("stdio", config)
    found = fault(findings, "versions")
    assert "Python 3.9" in found.message and "same minor version" in found.remedy


@pytest.mark.backend("stdio")
def test_another_package_of_the_name_there(tmp_path: Path) -> None:
    with worker_script(tmp_path, "import wove\nwove.__version__ = '2.0.3'") as config:
        findings = examined("stdio", config)
    found = fault(findings, "versions")
    assert "wove 2.0.3" in found.message and "pip uninstall wove" in found.remedy


@pytest.mark.backend("stdio")
def test_a_package_that_is_missing_there(tmp_path: Path) -> None:
    changes = "import sys\nsys.modules['cloudpickle'] = None"
    with worker_script(tmp_path, changes) as config:
        findings = examined("stdio", config)
    assert "where the worker runs" in fault(findings, "packages").remedy


@pytest.mark.backend("stdio")
def test_a_module_that_is_missing_there() -> None:
    findings = examined("stdio", {"processes": 1}, modules=("no_such_module_of_mine",))
    found = fault(findings, "modules")
    assert "cannot import no_such_module_of_mine: ModuleNotFoundError" in found.message
    assert "install no_such_module_of_mine where the worker runs" in found.remedy


# ------------------------------------------------------------------ this side


class _Needy(BackendAdapter):
    name = "needy"
    required_modules = ("no_such_package_of_mine",)
    install_hint = "pip install no-such-package-of-mine"

    def submit(self, payload: Any, frame: Any) -> None: ...

    def cancel(self, run_id: str, submission: Any, frame: Any) -> None: ...


def test_a_package_that_is_missing_here() -> None:
    executor = BackendAdapterEnvironmentExecutor("needy", adapter_class=_Needy)
    found = fault(examined(executor, {}), "packages")
    assert "pip install no-such-package-of-mine" in found.message


def test_a_callback_port_that_is_taken() -> None:
    executor = BackendAdapterEnvironmentExecutor("needy", adapter_class=_Willing)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = fault(examined(executor, {"callback_port": port}), "callback")
    assert f"callback port {port} on 127.0.0.1" in found.message


class _Willing(_Needy):
    required_modules = ()


def test_a_key_that_does_not_exist() -> None:
    found = fault(examined("stdio", {"proceses": 1}), "configuration")
    assert "'proceses'" in found.message and "'processes'" in found.message


# ------------------------------------------------------------------ queues


@pytest.fixture(scope="module")
def queue_worker(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis with an RQ worker on the queue ``default``."""
    url = servers.redis.database(11)
    with Worker.start(rq(url), tmp_path_factory.mktemp("rq")):
        yield url


@pytest.mark.backend("rq", "redis")
def test_a_queue_is_well(queue_worker: str) -> None:
    findings = examined("rq", {"redis_url": queue_worker})
    assert all(finding.ok for finding in findings.values()), findings
    assert {"address", "callback"} <= set(findings)


@pytest.mark.backend("rq", "redis")
def test_no_worker(queue_worker: str) -> None:
    findings = examined("rq", {"redis_url": queue_worker, "queue_name": "nobody"})
    found = fault(findings, "worker")
    assert "no RQ worker listens to queue 'nobody' (rq worker nobody)" in found.message


@pytest.mark.backend("rq", "redis")
def test_a_callback_address_that_the_worker_cannot_reach(queue_worker: str) -> None:
    config = {
        "redis_url": queue_worker,
        "callback_url": f"http://127.0.0.1:{free_port()}/wove/events/{{token}}",
        "callback_retry_seconds": 1.0,
    }
    found = fault(examined("rq", config), "callback")
    assert "set 'callback_url' to an address" in found.remedy


@pytest.mark.backend("rq", "redis")
def test_a_worker_with_another_secret(queue_worker: str) -> None:
    config = {"redis_url": queue_worker, "security": {"type": "signed", "secret": SECRET}}
    found = fault(examined("rq", config), "secret")
    assert "WOVE_WORKER_SECRET" in found.remedy


@pytest.mark.backend("rq", "redis")
def test_a_worker_with_another_package_of_the_name(servers: Servers, tmp_path: Path) -> None:
    url = servers.redis.database(13)
    package = {"wove": "__version__ = '2.0.3'\n"}
    with Worker.start(rq(url), tmp_path / "rq", modules=package, path=None):
        found = fault(examined("rq", {"redis_url": url}), "versions")
        assert "pip uninstall wove" in found.remedy

        with pytest.raises(WorkerLostError, match="pip uninstall wove"), weave() as w:

            @w.do(environment="broken")
            def first() -> None: ...


@pytest.mark.backend("rq", "redis")
def test_a_user_of_the_broker_without_rights(servers: Servers) -> None:
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(servers.redis.database(11)) as client:
        client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~nothing", "+ping", "+info")
    port = servers.redis.port
    found = fault(examined("rq", {"redis_url": f"redis://weak:pw@127.0.0.1:{port}/11"}), "rights")
    assert "give the broker's user the right" in found.remedy


@pytest.mark.backend("celery", "rabbitmq")
def test_a_user_of_the_broker_with_a_wrong_password(servers: Servers) -> None:
    url = servers.rabbitmq.url.replace("guest:guest", "guest:wrong")
    found = fault(examined("celery", {"broker_url": url}), "rights")
    assert "ACCESS_REFUSED" in found.message and "correct its password" in found.remedy


@pytest.fixture(scope="module")
def celery_worker(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker with a Celery worker on the queue ``other``."""
    url = servers.redis.database(12)
    source = (
        "import celery\nfrom wove.integrations.celery import register\n"
        f"app = celery.Celery('shop', broker={url!r})\nregister(app)\n"
    )
    command = celery("shop:app", "-Q", "other", pool="threads")
    with Worker.start(command, tmp_path_factory.mktemp("celery"), modules={"shop": source}):
        yield url


@pytest.mark.backend("celery", "redis")
def test_a_worker_on_another_queue(celery_worker: str) -> None:
    found = fault(examined("celery", {"broker_url": celery_worker, "queue": "mine"}), "worker")
    assert "no Celery worker takes from queue 'mine'" in found.message


@pytest.mark.backend("celery", "redis")
def test_a_task_that_the_worker_does_not_know(celery_worker: str) -> None:
    config = {"broker_url": celery_worker, "queue": "other", "task_name": "shop.unknown"}
    found = fault(examined("celery", config), "worker")
    assert "shop.unknown" in found.message
    assert "register Wove's task" in found.remedy
