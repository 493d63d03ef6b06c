"""Weaves on ARQ with real workers: what is special to it. What all backends have in common is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up
from tests.contract.test_contract import eventually, lines
from tests.support import servers as support, workers
from tests.support.elsewhere import ways
from tests.support.leaks import leak_check
from tests.support.servers import Servers
from tests.support.workers import Worker
from wove import WorkerLostError, weave
from wove.errors import DeliveryError
from wove.integrations.arq import adapter as ours

pytestmark = pytest.mark.backend("arq")

MODULE = """
from arq.connections import RedisSettings
from wove.integrations.arq import worker_function, wove_run_backend_payload

class WorkerSettings:
    functions = [{function}]
    redis_settings = RedisSettings.from_dsn({url!r})
    queue_name = {queue!r}
    poll_delay = 0.05
    max_jobs = 5
    {more}
"""

Work = Callable[..., Worker]
Configure = Callable[..., None]


@pytest.fixture
def queue() -> str:
    return f"arq-{secrets.token_hex(4)}"


@pytest.fixture
def url(servers: Servers) -> str:
    return servers.redis.url


@pytest.fixture
def work(url: str, queue: str, tmp_path: Path) -> Iterator[Work]:
    """Starts workers of the test's queue."""
    started: list[Worker] = []

    def work(
        function: str = "worker_function()", more: str = "", at: str = url, **options: Any
    ) -> Worker:
        source = MODULE.format(function=function, url=at, queue=queue, more=more)
        folder = tmp_path / f"worker-{len(started)}"
        started.append(
            Worker.start(
                workers.arq("app.WorkerSettings"), folder, modules={"app": source}, **options
            )
        )
        return started[-1]

    yield work
    for worker in started:
        worker.stop(now=True)


@pytest.fixture
def configure(
    url: str, queue: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "jobs"."""

    def configure(*, policy: str = "cancel", **more: Any) -> None:
        where = {} if "pool" in more else {"redis_settings": url}
        environment = {"executor": "arq", "executor_config": {**where, "queue_name": queue, **more}}
        wove.config(environments={"jobs": {**environment, "delivery_orphan_policy": policy}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


@pytest.fixture
def redis(url: str) -> Iterator[Any]:
    import redis

    with redis.Redis.from_url(url) as client:
        yield client


there_is, there_will_be, begin = ways("jobs")


# ------------------------------------------------------------------------------------------- what Redis sees


def test_a_map_takes_few_round_trips(configure: Configure, work: Work, redis: Any) -> None:
    work()
    assert there_is(add_one, item=1) == 2
    before = redis.info("commandstats").get("cmdstat_zadd", {}).get("calls", 0)
    multi = redis.info("commandstats")["cmdstat_multi"]["calls"]
    with weave() as w:

        @w.do(range(300), environment="jobs", workers=300)
        def added(item: int) -> int:
            return item + 1

    assert w.result.added == list(range(1, 301))
    after = redis.info("commandstats")
    assert after["cmdstat_zadd"]["calls"] - before == 300
    # The worker has three transactions a job.
    assert after["cmdstat_multi"]["calls"] - multi < 3 * 300 + 100


def test_what_a_job_leaves_in_redis(configure: Configure, work: Work, redis: Any) -> None:
    worker = work()
    assert there_is(add_one, item=1) == 2
    worker.until(lambda: "●" in worker.log(), "is done with it")
    [job] = redis.keys("arq:result:wove-*")[-1:]
    assert 0 < redis.ttl(job) <= 30
    assert not redis.keys(job.replace(b"result", b"job"))


# -------------------------------------------------------------------------------------------------- cancel


def test_what_is_cancelled_in_the_queue_is_taken_out_of_it(
    configure: Configure, work: Work, redis: Any, queue: str, tmp_path: Path
) -> None:
    async def main() -> None:
        running = begin(count_up, path=str(tmp_path / "never"))
        await eventually(lambda: redis.zcard(queue) == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: redis.zcard(queue) == 0)

    asyncio.run(main())
    with pytest.raises(wove.DeliveryTimeoutError, match="delivery_timeout"):
        # Nobody has it, so the acknowledgement is Redis's, and comes at once: no worker is there to give one.
        there_is(
            add_one,
            item=1,
            options={"delivery_timeout": 0.3, "delivery_cancel_mode": "require_ack"},
        )
    assert redis.zcard(queue) == 0
    work()
    assert there_is(add_one, item=1) == 2
    assert not (tmp_path / "never").exists()


def test_a_hundred_cancels_at_once(configure: Configure, redis: Any, queue: str) -> None:
    async def main() -> None:
        running = begin_map(100)
        await eventually(lambda: redis.zcard(queue) == 100)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: redis.zcard(queue) == 0)

    asyncio.run(main())


def begin_map(number: int) -> asyncio.Task[None]:
    async def main() -> None:
        async with weave() as w:

            @w.do(range(number), environment="jobs")
            def added(item: int) -> int:
                return item + 1

    return asyncio.create_task(main())


# -------------------------------------------------------------------------------------------------- workers


def test_arqs_own_limit_does_not_hold(
    configure: Configure, work: Work, redis: Any, tmp_path: Path
) -> None:
    """Neither is a long run ended, nor is it handed out again; and the worker's other jobs keep their settings."""
    more = "job_timeout = 1\n    on_startup = staticmethod(__import__('limits').tell)"
    told = tmp_path / "told"
    modules = f"""
async def tell(ctx):
    import gc
    from arq.worker import Worker
    [worker] = [each for each in gc.get_objects() if isinstance(each, Worker)]
    open({str(told)!r}, "a").write(f"{{worker.in_progress_timeout_s}}\\n")
"""
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "limits.py").write_text(modules)
    for _ in range(2):
        work(more=more, path=tmp_path / "extra")
    path = str(tmp_path / "begun")

    def long(path: str) -> str:
        import os
        import time

        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(14)  # longer than the key of the running job is kept, which is 11 s
        return "done"

    assert there_is(long, path=path) == "done"
    assert len(lines(Path(path))) == 1
    assert lines(told) == ["11", "11"]


@pytest.mark.parametrize("function", ["worker_function()", "wove_run_backend_payload"])
def test_a_worker_that_is_stopped_hands_back_what_runs(
    configure: Configure, work: Work, tmp_path: Path, function: str
) -> None:
    """ARQ hands its job out again. It is not begun twice."""
    first = work(function)
    path, until = tmp_path / "pids", tmp_path / "until"

    async def main() -> None:
        running = begin(block, path=str(path), until=str(until))
        [pid] = await eventually(lambda: lines(path))
        os.kill(int(pid), signal.SIGTERM)
        with pytest.raises(WorkerLostError, match="stopped in the middle of it"):
            await running
        second = work(function)
        said = (
            "max retries 1 exceeded" if function == "worker_function()" else "it is not begun twice"
        )
        await eventually(lambda: said in second.log())
        assert len(lines(path)) == 1

    asyncio.run(main())
    assert first.status()["ended"]


def test_a_run_is_submitted_again_when_its_worker_is_stopped(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    configure(policy="requeue")
    first = work()
    path, until = tmp_path / "pids", tmp_path / "until"

    async def main() -> None:
        running = begin(block, path=str(path), until=str(until))
        await eventually(lambda: lines(path))
        await asyncio.to_thread(first.stop)
        work()
        await eventually(lambda: len(lines(path)) == 2)
        until.touch()
        assert await running == "done"

    asyncio.run(main())


def test_a_worker_that_refuses(configure: Configure, work: Work) -> None:
    """Told by ARQ's result, which is a pickle; and nothing that is not signed is unpickled."""
    configure(security={"type": "signed", "secret": "one"})
    work("worker_function(security={'type': 'signed', 'secret': 'another'})")
    with pytest.raises(WorkerLostError, match="failed: PermissionError: .*sign"):
        there_is(add_one, item=1)


def test_queues_that_are_emptied(configure: Configure, redis: Any, queue: str) -> None:
    async def main() -> None:
        for empty, words in (
            (lambda: redis.delete(queue), "taken out of the queue"),
            (redis.flushdb, "gone from"),
        ):
            running = begin(add_one, item=1)
            await eventually(lambda: redis.zcard(queue) == 1)
            empty()
            with pytest.raises(WorkerLostError, match=words):
                await running

    asyncio.run(main())


def test_options_of_arq(configure: Configure, work: Work, redis: Any, queue: str) -> None:
    configure(enqueue_options={"_defer_by": 0.5, "_expires": 100})
    began = time.monotonic()

    async def main() -> None:
        running = begin(add_one, item=1)
        await eventually(lambda: redis.zcard(queue) == 1)
        [job] = redis.zrange(queue, 0, -1)
        assert 0 < redis.ttl(b"arq:job:" + job) <= 100
        work()
        assert await running == 2
        assert time.monotonic() - began >= 0.5

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------- keys


@contextlib.asynccontextmanager
async def adapter(url: str, queue: str, **more: Any) -> AsyncIterator[Any]:
    """The adapter itself, on this loop."""
    where = {} if "pool" in more else {"redis_settings": url}
    found = ours.ARQAdapter("jobs", {**where, "queue_name": queue, **more})
    found.configure()
    await found.start()
    try:
        yield found
    finally:
        await found.close()


def frame(run_id: str, key: str | None = None) -> dict[str, Any]:
    delivery = {} if key is None else {"delivery_idempotency_key": key}
    return {"type": "run_task", "run_id": run_id, "task_id": "t", "delivery": delivery}


def payload(run_id: str) -> dict[str, Any]:
    return {"version": 1, "run_id": run_id}


def submitted(found: Any, run_id: str, key: str | None = None) -> Any:
    return found.submit(payload(run_id), frame(run_id, key))


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on this process is another than the one that has submitted jobs before."""
    return ours._keyed.reset_after_fork


def test_a_kept_result_is_replaced(
    url: str, queue: str, redis: Any, stranger: Callable[[], None]
) -> None:
    async def main() -> None:
        async with adapter(url, queue) as found:
            job = await submitted(found, "r1", "k")
            redis.set(f"arq:result:{job}", b"old", ex=3600)
            redis.delete(f"arq:job:{job}")
            redis.zrem(queue, job)
            stranger()
            assert await submitted(found, "r2", "k") == job
            assert not redis.exists(f"arq:result:{job}") and redis.zscore(queue, job)

    asyncio.run(main())


def test_a_job_that_lives_for_another_process(
    url: str, queue: str, redis: Any, stranger: Callable[[], None]
) -> None:
    async def main() -> None:
        async with adapter(url, queue) as found:
            job = await submitted(found, "r1", "k")
            stranger()
            with pytest.raises(DeliveryError, match="waits in the queue already.*another process"):
                await submitted(found, "r2", "k")
            redis.set(f"arq:in-progress:{job}", b"1", px=60_000)
            with pytest.raises(DeliveryError, match="runs already"):
                await submitted(found, "r3", "k")
            redis.delete(
                f"arq:in-progress:{job}", f"arq:job:{job}"
            )  # it has waited for longer than it is kept
            assert await submitted(found, "r4", "k") == job

    asyncio.run(main())


def test_a_job_that_another_environment_waits_for(
    configure: Configure, work: Work, url: str, queue: str, tmp_path: Path
) -> None:
    work()
    there = {"executor": "arq", "executor_config": {"redis_settings": url, "queue_name": queue}}
    wove.config(environments={"jobs": there, "beside": there})

    async def main() -> None:
        values = {"path": str(tmp_path / "path"), "until": str(tmp_path / "until")}
        options = {"delivery_idempotency_key": "one"}
        running = begin(block, **values, options=options)
        await eventually(lambda: lines(tmp_path / "path"))
        with pytest.raises(DeliveryError, match="submitted by another environment of this process"):
            await ways("beside").there_will_be(block, **values, options=options)
        (tmp_path / "until").touch()
        assert await running == "done"

    asyncio.run(main())


def test_what_is_left_of_our_own(url: str, queue: str, redis: Any) -> None:
    async def main() -> None:
        async with adapter(url, queue) as found:
            job = await submitted(found, "r1", "k")
            assert await submitted(found, "r2", "k") == job  # what waits is replaced where it is
            assert redis.zcard(queue) == 1 and b"r2" in redis.get(f"arq:job:{job}")
            # Its worker was killed: it counts as running, for as long as job_timeout says.
            redis.set(f"arq:in-progress:{job}", b"1", px=300_000)
            other = await submitted(found, "r3", "k")
            assert other != job and redis.zrange(queue, 0, -1) == [other.encode()]
            assert not redis.exists(f"arq:in-progress:{job}", f"arq:job:{job}")

    asyncio.run(main())


def test_a_cancel_that_comes_too_late(url: str, queue: str, redis: Any) -> None:
    async def main() -> None:
        async with adapter(url, queue) as found:
            job = await submitted(found, "r1")
            redis.set(f"arq:in-progress:{job}", b"1", px=60_000)
            assert await found.cancel("r1", job, {}) is False
            assert (
                redis.zscore("arq:abort", job) is not None
            )  # heard by workers with allow_abort_jobs
            redis.delete(f"arq:in-progress:{job}")
            assert await found.cancel("r1", job, {}) is False, "it has run"
            assert await found.cancel("r2", await submitted(found, "r2"), {}) is True

    asyncio.run(main())


def test_a_redis_without_zmscore(
    url: str, queue: str, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with adapter(url, queue) as found:
            jobs = {each: await submitted(found, each) for each in ("r1", "r2")}
            command = type(found._pool).execute_command

            async def older(self: Any, *args: Any, **options: Any) -> Any:
                return await command(
                    self, *(("ZMSCORES",) if args[0] == "ZMSCORE" else args), **options
                )

            monkeypatch.setattr(type(found._pool), "execute_command", older)
            assert await found.watch(jobs) == {}
            redis.zrem(queue, jobs["r1"])
            assert [*await found.watch(jobs)] == ["r1"]

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------- fork


def test_a_forked_child_and_its_parent(configure: Configure, work: Work) -> None:
    work()
    for number in range(3):
        assert there_is(add_one, item=number) == number + 1
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
    assert there_is(add_one, item=3) == 4


# ---------------------------------------------------------------------------------------- the user's own pool


def test_a_pool_is_used_on_its_loop(configure: Configure, work: Work, url: str, queue: str) -> None:
    from arq import create_pool
    from arq.connections import RedisSettings

    work()

    async def main() -> None:
        pool = await create_pool(RedisSettings.from_dsn(url))
        configure(pool=pool)
        assert await there_will_be(add_one, item=1) == 2
        # Also from a thread, as long as its loop runs.
        assert await asyncio.to_thread(there_is, add_one, item=2) == 3
        async with weave() as w:

            @w.do(range(50), environment="jobs")
            def added(item: int) -> int:
                return item + 1

        assert w.result.added == list(range(1, 51))
        await asyncio.to_thread(wove.shutdown)
        assert await pool.ping()  # it is the user's, and open
        await pool.aclose(close_connection_pool=True)

    asyncio.run(main())


def test_a_pool_whose_loop_does_not_run(configure: Configure, url: str) -> None:
    from arq import create_pool
    from arq.connections import RedisSettings

    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(create_pool(RedisSettings.from_dsn(url)))
    configure(pool=pool)
    with pytest.raises(
        DeliveryError, match="its pool belongs to an event loop that is not running"
    ):
        there_is(add_one, item=1)
    loop.run_until_complete(pool.aclose(close_connection_pool=True))
    loop.close()


def test_a_pool_that_is_not_connected(configure: Configure, work: Work, url: str) -> None:
    from arq.connections import ArqRedis
    from redis.asyncio import ConnectionPool

    work()
    connections = ConnectionPool.from_url(url)
    configure(pool=ArqRedis(connections))
    assert there_is(add_one, item=1) == 2

    async def main() -> None:
        assert await there_will_be(add_one, item=2) == 3

    asyncio.run(main())
    from wove.delivery.manager import manager

    asyncio.run_coroutine_threadsafe(connections.disconnect(), manager._background.loop).result(10)  # type: ignore[union-attr]


def test_a_pool_with_an_enqueue_job_of_its_own(configure: Configure, work: Work, url: str) -> None:
    from arq.connections import ArqRedis
    from redis.asyncio import ConnectionPool

    asked: list[Any] = []

    class Traced(ArqRedis):
        async def enqueue_job(self, function: str, *args: Any, **options: Any) -> Any:
            asked.append((function, asyncio.get_running_loop(), options["_job_id"]))
            return await super().enqueue_job(function, *args, **options)

    work()

    async def main() -> None:
        pool = Traced(ConnectionPool.from_url(url))
        await pool.ping()
        configure(pool=pool)
        options = {"delivery_idempotency_key": "k"}
        assert await there_will_be(add_one, item=1) == 2
        assert await there_will_be(add_one, item=2, options=options) == 3
        assert [loop for _, loop, _ in asked] == [asyncio.get_running_loop()] * 2
        assert asked[1][2].startswith("wove-key-")
        await pool.aclose(close_connection_pool=True)

    asyncio.run(main())


# ----------------------------------------------------------------------------------- a Redis that is not there


def test_nobody_listens_there(configure: Configure) -> None:
    from tests.support.kept import free_port

    port = free_port()
    configure(
        redis_settings={"host": "127.0.0.1", "port": port, "password": "sesame", "conn_retries": 0}
    )
    with pytest.raises(
        DeliveryError, match=f"Redis at 127.0.0.1:{port}/0 could not be used"
    ) as caught:
        there_is(add_one, item=1)
    assert "sesame" not in str(caught.value)


def test_a_redis_that_does_not_answer(configure: Configure, work: Work, tmp_path: Path) -> None:
    """It holds up neither the loop nor other weaves, and costs a run no longer than ``send_timeout``."""
    with support.redis.running(tmp_path / "server") as server:
        configure(redis_settings=server.url, send_timeout=1.5)
        work(at=server.url)
        assert there_is(add_one, item=1) == 2
        gaps: list[float] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            running = begin(add_one, item=1)
            last = loop.time()
            while not running.done():
                await asyncio.sleep(0.005)
                gaps.append(loop.time() - last)
                last = loop.time()
            with pytest.raises(
                (wove.DeliveryTimeoutError, DeliveryError), match="send_timeout|no answer within"
            ):
                running.result()

        os.kill(server.kept.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            asyncio.run(main())
            assert time.monotonic() - began < 30
            assert threading.active_count() < 30
        finally:
            os.kill(server.kept.pid, signal.SIGCONT)
        assert there_is(add_one, item=2) == 3
        assert sorted(gaps)[len(gaps) // 2] < 0.5
        wove.shutdown()
