"""Workers of backends that are killed and come again, all the time: no run is lost, none comes twice, none hangs.

A new backend is one more row in `DYING`.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.support import workers
from tests.support.kept import Kept, kill
from tests.support.killer import Killer
from tests.support.servers import Servers, dask as dask_server, ray as ray_server
from tests.support.volume import volume
from tests.support.workers import Worker

import wove
from wove import weave

RUNS = volume(2000, 200)
"""Over each backend."""

FEWER = {"temporal": volume(500, 50), "rq": volume(300, 30)}
"""Over those that take several seconds to hand out again what a death has left, or a process for each run."""

EVERY = volume(3.0, 1.5)
"""Seconds between two deaths; more only where the worker needs longer to come up."""

ALIVE = 1.0
"""Seconds that it takes work before it dies."""

AT_LEAST = volume(3, 2)
"""It goes on until there were so many deaths."""


class Mortal(Protocol):
    """What is killed."""

    def ready(self) -> None:
        """Wait until it takes work, since it was started last."""

    def kill_all(self) -> object:
        """Kill it with all of its processes. It comes again by itself."""


Opened = AbstractContextManager[tuple[Mapping[str, Any], Mortal]]
Open = Callable[[Servers, Path], Opened]

_CELERY = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("mortal", broker={url!r}, broker_connection_retry_on_startup=True)
app.conf.task_default_queue = {queue!r}
register(app)
"""


def celery(broker: str) -> Open:
    """Celery on that broker, with a prefork worker of two processes that takes eight messages in advance."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        url, queue = getattr(servers, broker).url, f"mortal-{secrets.token_hex(4)}"
        modules = {"mortal": _CELERY.format(url=url, queue=queue)}
        with Worker.start(
            workers.celery("mortal", "--without-mingle"), folder, modules=modules, restarts=True
        ) as worker:
            yield (
                {"executor": "celery", "executor_config": {"broker_url": url, "queue": queue}},
                worker,
            )

    return opened


def rq(worker_class: str | None = None) -> Open:
    """RQ, with a worker that forks for each job, or with one that does not."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
        command = workers.rq(url, queue=queue, worker_class=worker_class)
        with Worker.start(command, folder, restarts=True) as worker:
            yield (
                {"executor": "rq", "executor_config": {"redis_url": url, "queue_name": queue}},
                worker,
            )

    return opened


_ARQ = """
from arq.connections import RedisSettings
from wove.integrations.arq import worker_function

class WorkerSettings:
    functions = [worker_function()]
    redis_settings = RedisSettings.from_dsn({url!r})
    queue_name = {queue!r}
    poll_delay = 0.05
"""


@contextmanager
def arq(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """ARQ, with a worker of ten jobs at a time."""
    url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
    modules = {"mortal": _ARQ.format(url=url, queue=queue)}
    with Worker.start(
        workers.arq("mortal.WorkerSettings"), folder, modules=modules, restarts=True
    ) as worker:
        yield (
            {"executor": "arq", "executor_config": {"redis_settings": url, "queue_name": queue}},
            worker,
        )


_TASKIQ = """
from taskiq_redis import {kind}
from wove.integrations.taskiq import register

broker = {kind}({url!r}, queue_name={queue!r}, socket_timeout=None, **{options})
register(broker)
"""


def taskiq(kind: str, **options: Any) -> Open:
    """Taskiq with that broker, and a worker of two processes."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        import taskiq_redis

        url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
        modules = {"mortal": _TASKIQ.format(kind=kind, url=url, queue=queue, options=options)}
        with Worker.start(
            workers.taskiq("mortal:broker"), folder, modules=modules, restarts=True
        ) as worker:
            broker = getattr(taskiq_redis, kind)(url, queue_name=queue, **options)
            yield {"executor": "taskiq", "executor_config": {"broker": broker}}, worker

    return opened


@contextmanager
def temporal(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """Temporal, with the worker that Wove has for it."""
    address, queue = servers.temporal.address, f"mortal-{secrets.token_hex(4)}"
    options = ("--task-queue", queue, "--target-host", address, "--max-concurrent", "20")
    command = workers.module(
        "wove.integrations.temporal", *options, ready="takes runs from task queue"
    )
    with Worker.start(command, folder, restarts=True) as worker:
        yield (
            {
                "executor": "temporal",
                "executor_config": {"target_host": address, "task_queue": queue},
            },
            worker,
        )


class DaskWorker:
    """A worker of Dask, with its nanny; both are started again."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.kill_all = kept.kill_all

    def ready(self) -> None:
        self._kept.until(lambda: "Registered to:" in self._kept.latest_log(), "is registered")


@contextmanager
def dask(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """Dask, with one worker of one thread."""
    with dask_server.running(folder, workers=1) as cluster:
        config = {"executor": "dask", "executor_config": {"address": cluster.address}}
        yield config, DaskWorker(cluster.workers[0])


class RayWorkers:
    """The worker processes of a Ray cluster, which starts others."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def ready(self) -> None:
        self._kept.until(self._pids, "has worker processes")

    def kill_all(self) -> None:
        for pid in self._pids():
            kill(pid)

    def _pids(self) -> list[int]:
        # The node's agents call themselves alike, and the node does not outlive them.
        worker = re.compile(r"\(ray::(?!Dashboard|RuntimeEnv)")
        return [pid for pid, name in self._kept.processes().items() if worker.search(name)]


@contextmanager
def ray(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """Ray, on two CPUs."""
    with ray_server.running(folder) as cluster:
        yield (
            {"executor": "ray", "executor_config": {"address": cluster.address}},
            RayWorkers(cluster.kept),
        )


DYING = [
    pytest.param(celery("redis"), id="celery-redis", marks=pytest.mark.backend("celery", "redis")),
    pytest.param(
        celery("rabbitmq"), id="celery-rabbitmq", marks=pytest.mark.backend("celery", "rabbitmq")
    ),
    pytest.param(rq("rq.worker.SimpleWorker"), id="rq-simple", marks=pytest.mark.backend("rq")),
    pytest.param(rq(), id="rq", marks=pytest.mark.backend("rq")),
    pytest.param(arq, id="arq", marks=pytest.mark.backend("arq")),
    pytest.param(taskiq("ListQueueBroker"), id="taskiq-list", marks=pytest.mark.backend("taskiq")),
    # What a worker has fetched and not begun, another one takes over: after ten minutes, unless it is told otherwise.
    # The lock under which it does that outlives a worker that is killed in between.
    pytest.param(
        taskiq("RedisStreamBroker", idle_timeout=5000, unacknowledged_lock_timeout=5),
        id="taskiq-stream",
        marks=pytest.mark.backend("taskiq"),
    ),
    pytest.param(
        temporal, id="temporal", marks=[pytest.mark.backend("temporal"), pytest.mark.timeout(900)]
    ),
    pytest.param(dask, id="dask", marks=pytest.mark.backend("dask")),
    pytest.param(ray, id="ray", marks=pytest.mark.backend("ray")),
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("opened", DYING)
def test_runs_on_a_worker_that_is_killed_again_and_again(
    request: pytest.FixtureRequest, opened: Open, servers: Servers, tmp_path: Path
) -> None:
    began = str(tmp_path / "began")
    arrived: Counter[int] = Counter()

    def returned(item: int) -> int:
        # One write() of a few bytes with O_APPEND: it is there as a whole before the process can die.
        file = os.open(began, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, b"%d\n" % item)
        finally:
            os.close(file)
        time.sleep(0.005)
        return item

    with opened(servers, tmp_path / "worker") as (environment, worker):
        wove.config(environments={"mortal": {**environment, "delivery_orphan_policy": "requeue"}})
        runs = min(RUNS, FEWER.get(request.node.callspec.id, RUNS))
        killer = Killer(worker.ready, worker.kill_all, every=EVERY, alive=ALIVE)
        begin = time.monotonic()
        items, results = range(0), list[int]()
        with killer.at_work():
            while (
                killer.kills < AT_LEAST
            ):  # a quick machine is through before that, and gets as many again
                more = range(len(items), len(items) + runs)
                with weave() as w:

                    @w.do(more, environment="mortal")
                    def far(item: int) -> int:
                        return returned(item)

                    @w.do("far")
                    def counted(item: int) -> None:
                        arrived[item] += 1

                items, results = range(more.stop), results + w.result.far

        seconds = time.monotonic() - begin
        wove.shutdown()
    ran = Counter(map(int, Path(began).read_text().split()))
    print(f"{len(items)} runs, {sum(ran.values())} begun, {killer.kills} deaths, {seconds:.1f} s")
    assert results == list(items)  # none lost, none twice, each in its place
    assert arrived == Counter(items)
    assert ran.keys() == set(items)  # each was really there, and not only here
