"""A weave on one host, its broker and the broker's worker on another: payloads go there, events are called back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import workers
from tests.support.kept import ROOT, Kept, free_port, keep
from tests.support.namespaces import TwoHosts, two_hosts
from tests.support.scripts import run_script
from tests.support.servers._ready import program
from tests.support.workers import Worker

pytestmark = [pytest.mark.backend("netns", "redis", "celery"), pytest.mark.timeout(180)]

SECRET = "known on both hosts"

WORKER = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("far", broker={broker!r})
app.conf.broker_connection_retry_on_startup = True
register(app)
"""

SCRIPT = """
import json, os, sys
import wove
from wove import WorkerLostError, weave

wove.config(environments={"far": {"executor": "celery", "executor_config": json.loads(sys.argv[1])}})

with weave() as w:

    @w.do(range(10), environment="far")
    def where(item):
        return item, os.readlink("/proc/self/ns/net")

    @w.do(environment="far")
    def large(blob=b"x" * 20_000_000):
        return len(blob), blob[:1] * 20_000_000

try:
    with weave() as lost:

        @lost.do(environment="far")
        def dies():
            import signal
            os.kill(os.getpid(), signal.SIGKILL)
except WorkerLostError as error:
    said = str(error)

size, back = w.result.large
print(json.dumps([w.result.where, size, len(back), os.readlink("/proc/self/ns/net"), said]))
"""


@dataclass(frozen=True)
class Far:
    """What runs on the other host."""

    hosts: TwoHosts
    broker: str
    worker: Worker


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    folder = tmp_path_factory.mktemp("far")
    with ExitStack() as stack:
        hosts = stack.enter_context(two_hosts())
        inside, port = hosts.inside(hosts.far), free_port()
        server = stack.enter_context(
            keep("redis", [*inside, *_redis(folder, hosts.address, port)], folder / "redis")
        )
        _until_ready(server)
        broker = f"redis://{hosts.address}:{port}/0"
        command = workers.celery("far_app")
        worker = Worker.start(
            replace(command, line=(*inside, *command.line)),
            folder / "worker",
            modules={"far_app": WORKER.format(broker=broker)},
            environ={"WOVE_WORKER_SECRET": SECRET},
            restarts=True,
        )
        yield Far(hosts, broker, stack.enter_context(worker))


def _redis(folder: Path, address: str, port: int) -> list[str]:
    (folder / "redis").mkdir()
    found = program("redis-server")
    assert found is not None
    options = {
        "port": port,
        "bind": address,
        "protected-mode": "no",
        "save": "",
        "appendonly": "no",
    }
    return [found, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def _until_ready(server: Kept) -> None:
    server.until(lambda: "eady to accept connections" in server.log(), "accepts connections")


def near(far: Far, folder: Path, config: dict[str, Any]) -> Any:
    """What the script prints on the near host."""
    found = run_script(
        SCRIPT,
        json.dumps(
            {
                "broker_url": far.broker,
                "security": {"type": "signed", "secret": SECRET},
                "insecure": True,
                **config,
            }
        ),
        cwd=folder,
        timeout=120,
        env={"PYTHONPATH": str(ROOT)},
        inside=far.hosts.inside(far.hosts.near),
    )
    return json.loads(found.stdout)


@pytest.mark.parametrize("how", ["every address, and a url", "one address"])
def test_tasks_run_there_and_are_called_back(far: Far, tmp_path: Path, how: str) -> None:
    address = far.hosts.near_address
    if how == "one address":
        config: dict[str, Any] = {"callback_host": address}
    else:
        url = f"http://{address}:{{port}}/wove/events/{{token}}"
        config = {"callback_host": "0.0.0.0", "callback_port": "9010-9019", "callback_url": url}
    where, size, back, here, said = near(far, tmp_path, config)
    assert [item for item, _ in where] == list(range(10))
    [there] = {namespace for _, namespace in where}
    assert there != here
    assert size == back == 20_000_000
    assert "'dies'" in said
