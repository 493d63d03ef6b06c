"""Workers of queues, and their own ways to hand them work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.servers import Servers
from tests.support.workers import Command, Worker, arq, celery, rq, taskiq

CELERY = """
import os, time
from celery import Celery
app = Celery("app", broker={broker!r}, backend={results!r}, broker_connection_retry_on_startup=True)
@app.task(name="pids")
def pids(seconds=0):
    time.sleep(seconds)
    return os.getpid(), os.getppid()
"""

ARQ = """
import os, arq
from arq.connections import RedisSettings
async def pids(ctx):
    return os.getpid(), os.getppid()
class WorkerSettings:
    functions = [pids]
    redis_settings = RedisSettings.from_dsn({url!r})
    poll_delay = 0.05
"""

TASKIQ = """
import os, taskiq_redis
broker = taskiq_redis.ListQueueBroker({url!r}).with_result_backend(taskiq_redis.RedisAsyncResultBackend({url!r}))
@broker.task(task_name="pids")
async def pids():
    return os.getpid(), os.getppid()
"""

RQ = """
import os
def pids():
    return os.getpid(), os.getppid()
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """The module of some source, here: as the worker has it under the name ``app``."""

    def load(source: str) -> ModuleType:
        module = ModuleType("app")
        monkeypatch.setitem(sys.modules, "app", module)
        exec(source, module.__dict__)
        return module

    return load


@pytest.mark.backend("celery", "redis", "rabbitmq")
@pytest.mark.parametrize(
    ("broker", "pool"), [("redis", "prefork"), ("redis", "threads"), ("rabbitmq", "solo")]
)
def test_celery(
    servers: Servers, load: Callable[[str], ModuleType], tmp_path: Path, broker: str, pool: str
) -> None:
    source = CELERY.format(broker=getattr(servers, broker).url, results=servers.redis.url)
    with (
        load(source).app as app,
        Worker.start(
            celery("app", pool=pool), tmp_path / "worker", modules={"app": source}
        ) as worker,
    ):
        pid, parent = app.send_task("pids").get(timeout=20)
        assert (parent if pool == "prefork" else pid) == worker.pid
        if pool == "prefork":
            running = app.send_task("pids", [60])
            tasks = lambda: (app.control.inspect().active() or {}).values()  # noqa: E731
            [task] = worker.until(lambda: [*chain.from_iterable(tasks())], "has begun")
            worker.kill_child(task["worker_pid"])
            with pytest.raises(Exception, match="SIGKILL"):
                running.get(timeout=20)


@pytest.mark.backend("rq")
@pytest.mark.parametrize("worker_class", [None, "rq.worker.SimpleWorker"])
def test_rq(servers: Servers, tmp_path: Path, worker_class: str | None) -> None:
    from redis import Redis
    from rq import Queue

    url = servers.redis.url
    with Redis.from_url(url) as connection:
        queue = Queue("test_rq", connection=connection)
        command = rq(url, queue="test_rq", worker_class=worker_class)
        with Worker.start(command, tmp_path / "worker", modules={"app": RQ}) as worker:
            job = queue.enqueue("app.pids")
            worker.until(lambda: job.get_status(refresh=True).value == "finished", "has finished")
            pid, parent = job.return_value()
            assert (pid if worker_class else parent) == worker.pid


@pytest.mark.backend("arq")
def test_arq(servers: Servers, load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    source = ARQ.format(url=servers.redis.url)

    async def main() -> tuple[int, int]:
        import arq as library
        from arq.jobs import ResultNotFound

        pool = await library.create_pool(load(source).WorkerSettings.redis_settings)
        try:
            job = await pool.enqueue_job("pids")
            try:
                return await job.result(timeout=20, poll_delay=0.05)
            except ResultNotFound:  # the job ended between ARQ's two questions
                return await job.result(timeout=20, poll_delay=0.05)
        finally:
            await pool.aclose()

    with Worker.start(
        arq("app.WorkerSettings"), tmp_path / "worker", modules={"app": source}, restarts=True
    ) as worker:
        assert asyncio.run(main())[0] == worker.pid
        before = worker.pid
        worker.kill_all()
        worker.ready()
        assert asyncio.run(main())[0] == worker.pid != before


@pytest.mark.backend("taskiq")
def test_taskiq(servers: Servers, load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    source = TASKIQ.format(url=servers.redis.url)
    app = load(source)

    async def main() -> Any:
        await app.broker.startup()
        task = await app.pids.kiq()
        result = await task.wait_result(timeout=20, check_interval=0.02)
        await app.broker.shutdown()
        return result.return_value

    with Worker.start(taskiq("app:broker"), tmp_path / "worker", modules={"app": source}) as worker:
        pid, parent = asyncio.run(main())
        assert parent == worker.pid
        assert worker.kill_child(pid) == pid
        worker.until(lambda: pid not in worker.children(), "has lost it")
        assert asyncio.run(main())[1] == worker.pid


def test_a_worker_that_does_not_start_shows_why(tmp_path: Path) -> None:
    command = Command(
        "broken", (sys.executable, "-c", "raise SystemExit('no such queue')"), "never"
    )
    with pytest.raises(pytest.fail.Exception, match="no such queue"):
        Worker.start(command, tmp_path / "worker")


def test_what_a_worker_can_import(tmp_path: Path) -> None:
    script = "import app, time; print('ready'); __import__('tests.support'); print('and tests'); time.sleep(60)"
    command = Command("imports", (sys.executable, "-c", script), "ready")
    with Worker.start(command, tmp_path / "with", modules={"app": ""}) as worker:
        worker.until(lambda: "and tests" in worker.log(), "has them")
    with Worker.start(
        command, tmp_path / "without", modules={"app": ""}, path=None, restarts=True
    ) as worker:
        worker.until(lambda: "No module named 'tests'" in worker.log(), "lacks them")
        pid = worker.pid
        worker.until(lambda: worker.starts > 2, "is started again")
        assert pid != worker.pid
