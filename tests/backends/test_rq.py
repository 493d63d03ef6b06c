"""Weaves on RQ with real workers: what is special to it. What all backends have in common is in tests/contract."""

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
from tests.contract.backend_tasks import add_one, block, hang
from tests.contract.test_contract import eventually, lines
from tests.support import servers as support, workers
from tests.support.elsewhere import ways
from tests.support.kept import kill
from tests.support.leaks import leak_check
from tests.support.servers import Servers
from tests.support.workers import Worker
from wove import DeliveryOrphanedError, WorkerLostError, weave
from wove.errors import DeliveryError

pytestmark = pytest.mark.backend("rq")

SIMPLE = "rq.worker.SimpleWorker"

Work = Callable[..., Worker]
Configure = Callable[..., None]


@pytest.fixture
def queue() -> str:
    return f"rq-{secrets.token_hex(4)}"


@pytest.fixture
def work(servers: Servers, queue: str, tmp_path: Path) -> Iterator[Work]:
    """Starts workers of the test's queue."""
    started: list[Worker] = []

    def work(worker_class: str | None = None, *options: str, **more: Any) -> Worker:
        command = workers.rq(
            more.pop("url", servers.redis.url), *options, queue=queue, worker_class=worker_class
        )
        started.append(Worker.start(command, tmp_path / f"worker-{len(started)}", **more))
        return started[-1]

    yield work
    for worker in started:
        worker.stop(now=True)


@pytest.fixture
def configure(
    servers: Servers, queue: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "jobs"."""

    url = servers.redis.url  # it is started here, and not under the leak check

    def configure(**more: Any) -> None:
        config = more if "queue" in more else {"redis_url": url, "queue_name": queue, **more}
        wove.config(environments={"jobs": {"executor": "rq", "executor_config": config}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("jobs")


# -------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("worker_class", [None, SIMPLE])
def test_what_the_worker_prints_and_redis_keeps(
    configure: Configure, work: Work, servers: Servers, worker_class: str | None
) -> None:
    from redis import Redis

    configure(callback_token="token-of-this-test")
    worker = work(worker_class)
    assert there_is(add_one, item=1) == 2
    worker.until(lambda: "Job OK" in worker.log(), "is done with it")
    assert "wove task 'add_one', run " in worker.log()
    assert "token-of-this-test" not in worker.log() and "callable_pickle" not in worker.log()
    with Redis.from_url(servers.redis.url) as redis:
        kept = [
            key
            for key in redis.keys("rq:job:wove-*")
            if b"add_one" in (redis.hget(key, "description") or b"")
        ]
        assert kept and all(0 < redis.ttl(key) <= 60 for key in kept)


def test_what_a_run_needs_is_imported_before_the_fork(configure: Configure, work: Work) -> None:
    worker = work()

    def imported() -> list[str]:
        import sys

        return [name for name in ("wove.integrations.worker", "cloudpickle") if name in sys.modules]

    assert there_is(imported) == ["wove.integrations.worker", "cloudpickle"]
    maps = Path(f"/proc/{worker.pid}/status").read_text()
    assert "Threads:\t2" in maps  # the one that listens to commands; none of ours
    assert there_is(add_one, item=1) == 2


def test_workers_with_another_serializer(
    configure: Configure, work: Work, servers: Servers, queue: str
) -> None:
    from redis import Redis
    from rq import Queue

    work(None, "--serializer", "rq.serializers.JSONSerializer")
    with Redis.from_url(servers.redis.url) as client:
        configure(queue=Queue(queue, connection=client, serializer="rq.serializers.JSONSerializer"))
        assert there_is(add_one, item=1) == 2
        wove.shutdown()
        assert client.ping()


def test_a_worker_without_wove(configure: Configure, work: Work) -> None:
    work(modules={"sitecustomize": "import sys\nsys.modules['wove'] = None\n"})
    with pytest.raises(
        WorkerLostError, match=r"its job failed on worker \w+: .*is Wove installed where it runs\?"
    ):
        there_is(add_one, item=1)


def test_a_worker_with_another_secret(configure: Configure, work: Work) -> None:
    configure(security={"type": "signed", "secret": "one secret for us"})
    work(SIMPLE, environ={"WOVE_WORKER_SECRET": "another for the worker"})
    with pytest.raises(WorkerLostError, match="PermissionError"):
        there_is(add_one, item=1)


@pytest.mark.parametrize("worker_class", [None, SIMPLE])
def test_a_time_limit_of_rq(
    configure: Configure, work: Work, tmp_path: Path, worker_class: str | None
) -> None:
    configure(enqueue_options={"job_timeout": 1})
    work(worker_class)
    with pytest.raises(DeliveryOrphanedError, match="JobTimeoutException"):
        there_is(block, path=str(tmp_path / "path"), until=str(tmp_path / "until"))
    assert there_is(add_one, item=1) == 2


# --------------------------------------------------------------------------------------------------- deaths


def test_a_killed_work_horse(configure: Configure, work: Work, tmp_path: Path) -> None:
    worker = work()

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        [horse] = await eventually(lambda: lines(tmp_path / "pids"))
        assert worker.children() == [int(horse)]
        kill(int(horse))
        with pytest.raises(
            WorkerLostError, match=r"Work-horse terminated unexpectedly; .*\(signal 9\)"
        ):
            await running
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())


def test_a_work_horse_outlives_its_worker(
    configure: Configure, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wove.integrations.rq.states.SILENT_SECONDS", 1.0)
    worker = work(restarts=True)  # or else its keeper would end the horse

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        worker.kill()
        await asyncio.sleep(4.0)  # longer than nothing may be heard of a run whose worker is away
        (tmp_path / "until").touch()
        assert await running == "done"

    asyncio.run(main())


def test_a_worker_that_dies_before_the_run_has_begun(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    stuck = """
from rq.worker import SimpleWorker

class Stuck(SimpleWorker):
    def perform_job(self, job, queue, execution=None):
        if execution is not None:
            self.prepare_job_execution(job, True)
        open({path!r}, "w").write("there")
        import time
        time.sleep(40)
"""
    path = tmp_path / "there"
    worker = work("stuck.Stuck", modules={"stuck": stuck.format(path=str(path))})

    async def main() -> None:
        running = begin(add_one, item=1)
        await eventually(path.exists)
        worker.kill()
        with pytest.raises(WorkerLostError, match="has no connection to Redis any more"):
            await running

    asyncio.run(main())


def test_a_cold_shutdown(configure: Configure, work: Work, tmp_path: Path) -> None:
    worker = work()

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        os.kill(worker.pid, signal.SIGINT)
        await asyncio.sleep(1.2)  # RQ takes a second one that comes sooner for the same
        os.kill(worker.pid, signal.SIGINT)
        with pytest.raises(WorkerLostError):
            await running

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- cancel


def test_a_run_that_does_not_end_when_it_is_cancelled_is_killed(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    worker = work()

    async def main() -> None:
        running = begin(hang, path=str(tmp_path / "pids"))
        await eventually(lambda: lines(tmp_path / "pids"))
        [horse] = worker.children()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: horse not in worker.children(), 20)
        assert await there_will_be(add_one, item=1) == 2
        assert "stopped by user" in worker.log()

    asyncio.run(main())


def test_what_is_cancelled_is_killed_at_the_latest_when_the_process_ends(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    worker = work()

    async def main() -> None:
        running = begin(hang, path=str(tmp_path / "pids"))
        await eventually(lambda: lines(tmp_path / "pids"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.5)  # the cancel is with the adapter

    asyncio.run(main())
    wove.shutdown()
    worker.until(lambda: "stopped by user" in worker.log(), "has stopped the job", patience=4.0)


# ---------------------------------------------------------------------------------------------------- Redis


def test_a_redis_that_loses_its_data(
    configure: Configure, work: Work, queue: str, tmp_path: Path
) -> None:
    """What runs goes on; what has not begun is lost."""

    with support.redis.running(tmp_path / "redis") as redis:
        configure(redis_url=redis.url)
        worker = work(SIMPLE, url=redis.url)

        async def main() -> None:
            running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
            await eventually(lambda: lines(tmp_path / "pids"))
            waiting = begin(add_one, item=1)
            await asyncio.sleep(0.5)
            redis.kept.kill()
            with support.redis.running(tmp_path / "again", port=redis.port):
                with pytest.raises(WorkerLostError, match="no longer in Redis"):
                    await waiting
                assert not running.done()
                (tmp_path / "until").touch()
                assert await running == "done"
                worker.stop(now=True)
                wove.shutdown()

        asyncio.run(main())


def test_a_redis_that_is_a_black_hole(configure: Configure, work: Work, tmp_path: Path) -> None:
    """It takes connections and commands, and says nothing."""
    with support.redis.running(tmp_path / "redis") as redis:
        configure(redis_url=f"{redis.url}?socket_timeout=0.5")
        work(SIMPLE, url=redis.url)

        async def main() -> None:
            assert await there_will_be(add_one, item=1) == 2
            os.kill(redis.kept.pid, signal.SIGSTOP)
            try:
                with pytest.raises(
                    DeliveryError,
                    match=r"Redis at 127\.0\.0\.1:\d+ \(.*did not take the job: Timeout",
                ):
                    await there_will_be(add_one, item=1)
            finally:
                os.kill(redis.kept.pid, signal.SIGCONT)
            assert await there_will_be(add_one, item=1) == 2

        asyncio.run(main())
        wove.shutdown()


def test_a_black_hole_from_the_start(configure: Configure, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as hole:
        port = hole.getsockname()[1]
        configure(redis_url=f"redis://127.0.0.1:{port}/0?socket_timeout=0.3")
        began = time.monotonic()
        with pytest.raises(
            DeliveryError, match=rf"Redis at .*:{port} .*could not be reached.*Is Redis running"
        ):
            there_is(add_one, item=1)
        assert time.monotonic() - began < 20  # and not the minute of `start_timeout`


# ----------------------------------------------------------------------------------------------------- fork


def test_a_forked_child_and_its_parent(configure: Configure, work: Work, tmp_path: Path) -> None:
    work(SIMPLE)
    assert there_is(add_one, item=1) == 2
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(there_is(add_one, item=10)).encode())
            wove.shutdown()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == "11"
    os.waitpid(child, 0)
    assert there_is(add_one, item=2) == 3


# ----------------------------------------------------------------------------------------------------- keys


def test_one_key_in_two_processes(
    configure: Configure, work: Work, servers: Servers, queue: str, tmp_path: Path
) -> None:
    """An environment of another name stands for the other process: they do not know each other's runs either."""
    work(SIMPLE)
    options = {"delivery_idempotency_key": "once"}

    async def main() -> None:
        until = tmp_path / "until"
        values = {"path": str(tmp_path / "pids"), "until": str(until)}
        running = asyncio.create_task(there_will_be(block, options=options, **values))
        await eventually(lambda: lines(tmp_path / "pids"))
        other = {
            "executor": "rq",
            "executor_config": {"redis_url": servers.redis.url, "queue_name": queue},
        }
        wove.config(environments={"other": other})
        with pytest.raises(DeliveryError, match="with this idempotency key is already job"):
            async with weave(**values) as w:
                w.do(environment="other", **options)(block)
        until.touch()
        assert await running == "done"

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- threads


def test_four_threads_share_one_environment(configure: Configure, work: Work) -> None:
    work(SIMPLE)
    seen: list[Any] = []

    def one(number: int) -> None:
        with weave() as w:
            w.do(range(number, number + 10), environment="jobs")(add_one)
        seen.append(w.result.add_one == list(range(number + 1, number + 11)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
