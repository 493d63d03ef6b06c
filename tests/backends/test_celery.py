"""Weaves on Celery, with real brokers and workers: what is special to it. The rest is in tests/contract."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up, insist
from tests.contract.test_contract import eventually, lines
from tests.support import servers as support, workers
from tests.support.elsewhere import ways
from tests.support.leaks import leak_check
from tests.support.proxy import Proxy
from tests.support.servers import Servers
from tests.support.workers import Worker
from wove import DeliveryOrphanedError, WorkerLostError, weave
from wove.errors import DeliveryError

pytestmark = pytest.mark.backend("celery", "redis")

RABBITMQ = pytest.param("rabbitmq", marks=pytest.mark.backend("rabbitmq"))

MODULE = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("shop", broker={broker!r}, backend={backend!r}, broker_connection_retry_on_startup=True)
app.conf.task_default_queue = {queue!r}
{more}
register(app)
"""

OWN = """
from wove.integrations.worker import run

@app.task(name="shop.wove_task")
def wove_task(payload):
    run(payload)
"""

Work = Callable[..., Worker]
Configure = Callable[..., None]


@pytest.fixture
def queue() -> str:
    return f"celery-{secrets.token_hex(4)}"


@pytest.fixture(params=["redis"])
def broker(request: pytest.FixtureRequest, servers: Servers) -> str:
    """The URL of a broker."""
    return str(getattr(servers, request.param).url)


@pytest.fixture
def work(broker: str, queue: str, tmp_path: Path) -> Iterator[Work]:
    """Starts workers of the test's queue."""
    started: list[Worker] = []

    def work(
        *options: str,
        pool: str = "prefork",
        url: str = broker,
        backend: str | None = None,
        **more: Any,
    ) -> Worker:
        source = MODULE.format(
            broker=url, backend=backend, queue=queue, more=more.pop("module", "")
        )
        command = workers.celery(
            "shop", *options, pool=pool, concurrency=more.pop("concurrency", 2)
        )
        folder = tmp_path / f"worker-{len(started)}"
        environ = {"TMPDIR": str(tmp_path), **more.pop("environ", {})}
        started.append(
            Worker.start(command, folder, modules={"shop": source}, environ=environ, **more)
        )
        return started[-1]

    yield work
    for worker in started:
        worker.stop(now=True)


@pytest.fixture
def configure(
    broker: str, queue: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "jobs"."""

    def configure(**more: Any) -> None:
        config = more if "app" in more else {"broker_url": broker, "queue": queue, **more}
        wove.config(environments={"jobs": {"executor": "celery", "executor_config": config}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("jobs")


# -------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_pools(configure: Configure, work: Work, pool: str) -> None:
    work(pool=pool)
    with weave() as w:
        w.do(range(20), environment="jobs")(add_one)
    assert w.result.add_one == list(range(1, 21))


def test_a_task_of_the_users_own(
    configure: Configure, work: Work, servers: Servers, tmp_path: Path
) -> None:
    """Without `register`: neither its options nor its remote control command."""
    configure(task_name="shop.wove_task")
    worker = work(module=OWN, backend=servers.redis.database(5))

    async def main() -> None:
        assert await there_will_be(add_one, item=1) == 2
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        await asyncio.sleep(2.0)  # somebody asks meanwhile
        worker.kill_child(int(lines(tmp_path / "pids")[0]))
        with pytest.raises(WorkerLostError, match="is gone"):
            await running

    asyncio.run(main())
    assert "pidbox command error" not in worker.log()


def test_a_task_of_the_users_own_under_our_name(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    worker = work(module=OWN.replace("shop.wove_task", "wove.run_backend_payload"))

    async def main() -> None:
        held = [
            begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
            for _ in range(2)
        ]
        await eventually(lambda: len(lines(tmp_path / "pids")) == 2)
        waiting = begin(add_one, item=1)
        await asyncio.sleep(6.0)  # some questions
        assert not waiting.done()
        (tmp_path / "until").touch()
        assert await asyncio.gather(*held, waiting) == ["done", "done", 2]

    asyncio.run(main())
    assert worker.log().count("pidbox command error") <= 1


def test_no_result_is_stored_but_failures_are(
    configure: Configure, work: Work, servers: Servers
) -> None:
    from redis import Redis

    url = servers.redis.database(6)
    configure(result_backend=url)
    worker = work(backend=url)
    with Redis.from_url(url) as redis:
        assert there_is(add_one, item=1) == 2
        worker.until(lambda: "succeeded in" in worker.log(), "has done it")
        assert redis.keys("celery-task-meta-*") == []
    assert "callable_pickle" not in worker.log()


def test_a_lost_process_in_the_words_of_the_result_backend(
    configure: Configure, work: Work, servers: Servers, tmp_path: Path
) -> None:
    url = servers.redis.database(7)
    configure(result_backend=url)
    worker = work(backend=url)

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        [child] = await eventually(lambda: lines(tmp_path / "pids"))
        worker.kill_child(int(child))
        with pytest.raises(
            WorkerLostError, match=r"Celery says FAILURE: WorkerLostError: .*signal 9 \(SIGKILL\)"
        ):
            await running
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())


def test_a_worker_with_another_secret(configure: Configure, work: Work) -> None:
    configure(security={"type": "signed", "secret": "one secret for us"})
    work(environ={"WOVE_WORKER_SECRET": "another for the worker"})
    with pytest.raises(WorkerLostError, match="says: PermissionError"):
        there_is(add_one, item=1)


@pytest.mark.parametrize(
    ("limit", "words"),
    [("soft_time_limit", "SoftTimeLimitExceeded"), ("time_limit", "SystemExit|time limit")],
)
def test_time_limits_of_celery(
    configure: Configure, work: Work, tmp_path: Path, limit: str, words: str
) -> None:
    configure(send_task_options={limit: 1})
    work()
    with pytest.raises(DeliveryOrphanedError, match=words):
        there_is(block, path=str(tmp_path / "path"), until=str(tmp_path / "until"))
    assert there_is(add_one, item=1) == 2


# --------------------------------------------------------------------------------------------------- deaths


@pytest.mark.timeout(120)
@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "stays away"])
def test_redis_keeps_what_a_dead_worker_took_in_advance(
    configure: Configure,
    work: Work,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes_back: bool,
) -> None:
    monkeypatch.setattr("wove.integrations.celery.lost.SILENT_SECONDS", 3.0)
    worker = work(restarts=comes_back, concurrency=1)

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        taken = [begin(add_one, item=n) for n in range(2)]
        await eventually(lambda: worker.log().count("received") == 3)
        await asyncio.sleep(3.0)  # somebody asks meanwhile
        worker.kill_all()
        with pytest.raises(WorkerLostError, match="is gone"):
            await running
        for run in taken:
            with pytest.raises(
                WorkerLostError, match="was taken by a worker .* that is gone, and not acknowledged"
            ):
                await run

    asyncio.run(main())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("broker", [RABBITMQ], indirect=True)
def test_rabbitmq_gives_it_to_another_one(
    configure: Configure, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wove.integrations.celery.lost.SILENT_SECONDS", 2.0)
    worker = work(concurrency=1)

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        taken = [begin(add_one, item=n) for n in range(2)]
        await eventually(lambda: worker.log().count("received") == 3)
        worker.kill_all()
        with pytest.raises(WorkerLostError, match="is gone"):
            await running
        await asyncio.sleep(4.0)  # longer than a message may be missing
        assert not any(run.done() for run in taken)
        work()
        assert await asyncio.gather(*taken) == [1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("broker", ["redis", RABBITMQ], indirect=True)
def test_a_queue_without_workers(
    configure: Configure, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits, waits; for minutes if need be."""
    monkeypatch.setattr("wove.integrations.celery.lost.SILENT_SECONDS", 1.0)

    async def main() -> None:
        waiting = begin(add_one, item=1)
        await asyncio.sleep(3.0)  # longer than a message may be missing
        assert not waiting.done()
        work()
        assert await waiting == 2

    asyncio.run(main())


@pytest.mark.parametrize("broker", ["redis", RABBITMQ], indirect=True)
def test_a_queue_that_is_purged(
    configure: Configure, work: Work, broker: str, queue: str, tmp_path: Path
) -> None:
    from celery import Celery

    work(concurrency=1, module="app.conf.worker_prefetch_multiplier = 1")

    async def main() -> None:
        held = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        waiting = [begin(add_one, item=n) for n in range(5)]
        await asyncio.sleep(2.0)
        with Celery(broker=broker, set_as_current=False).connection_for_write() as connection:
            assert connection.default_channel.queue_purge(queue)
        with pytest.raises(WorkerLostError, match="or the queue was purged"):
            await waiting[-1]
        (tmp_path / "until").touch()
        assert await held == "done"
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- cancel


def test_a_cancel_that_ends_the_process(configure: Configure, work: Work, tmp_path: Path) -> None:
    configure(terminate_on_cancel=True)
    worker = work()

    async def main() -> None:
        running = begin(
            insist, path=str(tmp_path / "pids")
        )  # others may hear of the cancel before the signal comes
        [child] = await eventually(lambda: lines(tmp_path / "pids"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: int(child) not in worker.children(), 20)
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())


@pytest.mark.parametrize("broker", ["redis", RABBITMQ], indirect=True)
def test_a_cancel_of_what_waits_is_acknowledged(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    work(concurrency=1)
    options = {"delivery_cancel_mode": "require_ack"}

    async def main() -> None:
        held = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        waiting = begin(count_up, path=str(tmp_path / "never"), options=options)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (
            time.monotonic() - began < 20.0
        )  # and not the half minute that it would be waited for
        (tmp_path / "until").touch()
        assert await held == "done"
        assert await there_will_be(add_one, item=1) == 2
        assert not lines(tmp_path / "never")

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------ the app


@pytest.mark.parametrize("broker", ["redis", RABBITMQ], indirect=True)
def test_an_app_of_the_users_own_is_left_alone(
    configure: Configure, work: Work, broker: str, queue: str
) -> None:
    from celery import Celery, current_app

    app = Celery("shop", broker=broker, backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=queue, task_serializer="pickle", task_ignore_result=False)
    before, current = dict(app.conf), current_app._get_current_object()
    work()
    configure(app=app)
    assert there_is(add_one, item=1) == 2
    wove.shutdown()
    assert dict(app.conf) == before and current_app._get_current_object() is current
    assert app._pool is None  # and what it has of connections was not even made


def test_a_child_process_has_connections_of_its_own(configure: Configure, work: Work) -> None:
    work()
    assert there_is(add_one, item=1) == 2
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, str(there_is(add_one, item=2)).encode())
            wove.shutdown()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "3"
    assert os.waitpid(child, 0)[1] == 0
    assert there_is(add_one, item=3) == 4


# ------------------------------------------------------------------------------------------- broken brokers


@pytest.mark.parametrize("broker", ["redis", RABBITMQ], indirect=True)
def test_connections_that_break(
    configure: Configure, work: Work, broker: str, queue: str, request: pytest.FixtureRequest
) -> None:
    from urllib.parse import urlsplit

    port = urlsplit(broker).port
    assert port is not None
    work()
    with Proxy(port) as proxy:
        configure(broker_url=broker.replace(str(port), str(proxy.port)))
        assert there_is(add_one, item=1) == 2
        proxy.down()
        again = threading.Timer(1.0, proxy.up)
        again.start()
        assert there_is(add_one, item=2) == 3  # waits until it is back
        again.join()
        proxy.down()
        proxy.up()
        assert there_is(add_one, item=3) == 4
        proxy.down()
        with pytest.raises(
            DeliveryError, match="environment 'jobs': the broker at .* cannot be used: .*refused"
        ):
            there_is(add_one, item=4)
        wove.shutdown()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_black_hole(configure: Configure, scheme: str) -> None:
    """It takes connections, and says nothing. Nobody waits for long, and threads neither."""
    import socket

    async def longest_gap() -> float:
        gap, last = 0.0, time.monotonic()
        running = [begin(add_one, item=n) for n in range(200)]
        while not all(run.done() for run in running):
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gap, last = max(gap, now - last), now
        for run in running:
            with pytest.raises(DeliveryError, match="the broker at .* cannot be used"):
                await run
        return gap

    with socket.create_server(("127.0.0.1", 0), backlog=1000) as hole:
        configure(broker_url=f"{scheme}://127.0.0.1:{hole.getsockname()[1]}//")
        # What holds up the loop does so each time; what a busy machine adds does not.
        assert any(asyncio.run(longest_gap()) < 1.0 for _ in range(3))
        wove.shutdown()


def test_a_broker_that_stops_answering(configure: Configure, work: Work, tmp_path: Path) -> None:
    with support.redis.running(tmp_path / "redis") as redis:
        configure(broker_url=redis.url)
        work(url=redis.url)
        assert there_is(add_one, item=1) == 2
        os.kill(redis.kept.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeliveryError, match="the broker at .* cannot be used: .*[Tt]ime"):
                there_is(add_one, item=1)
        finally:
            os.kill(redis.kept.pid, signal.SIGCONT)
        assert there_is(add_one, item=1) == 2
        wove.shutdown()


def test_a_broker_that_is_not_there(configure: Configure) -> None:
    configure(broker_url="redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(
        DeliveryError, match="the broker at redis://:.*127.0.0.1:1/0 cannot be used"
    ) as caught:
        there_is(add_one, item=1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("broker", [RABBITMQ], indirect=True)
def test_a_queue_declared_otherwise(configure: Configure, broker: str, queue: str) -> None:
    """RabbitMQ refuses: an error of the run, that says so."""
    from celery import Celery
    from kombu import Queue

    with Celery(broker=broker, set_as_current=False).connection_for_write() as connection:
        Queue(queue, durable=False, auto_delete=True)(connection.default_channel).declare()
        with pytest.raises(DeliveryError, match="the broker at .* refuses: PreconditionFailed"):
            there_is(add_one, item=1)
        wove.shutdown()
