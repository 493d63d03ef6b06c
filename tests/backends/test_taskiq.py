"""Weaves on Taskiq with real workers: what is special to it. What all backends have in common is in tests/contract."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
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
from wove.integrations.taskiq import register

pytestmark = pytest.mark.backend("taskiq")

MODULE = """
from taskiq import SimpleRetryMiddleware
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
from wove.integrations.taskiq import register
from wove.integrations.worker import arun

broker = {kind}({url!r}, queue_name={queue!r}, socket_timeout=None, {options})
{more}
"""

RESULTS = """
broker.with_result_backend(RedisAsyncResultBackend({url!r}, result_ex_time=60))
register(broker{security})
"""

KINDS = ["ListQueueBroker", "RedisStreamBroker"]

Work = Callable[..., Worker]
Configure = Callable[..., None]


@pytest.fixture
def queue() -> str:
    return f"taskiq-{secrets.token_hex(4)}"


@pytest.fixture
def url(servers: Servers) -> str:
    return servers.redis.url


@pytest.fixture
def make(url: str, queue: str) -> Callable[..., Any]:
    """A broker for the weave's side."""
    import taskiq_redis

    def make(
        kind: str = "ListQueueBroker", at: str = url, *, results: bool = False, **options: Any
    ) -> Any:
        broker = getattr(taskiq_redis, kind)(at, queue_name=queue, **options)
        if results:
            broker.with_result_backend(taskiq_redis.RedisAsyncResultBackend(at, result_ex_time=60))
        return broker

    return make


@pytest.fixture
def work(url: str, queue: str, tmp_path: Path) -> Iterator[Work]:
    """Starts workers of the test's queue."""
    started: list[Worker] = []

    def work(
        more: str = "register(broker)",
        *arguments: str,
        kind: str = "ListQueueBroker",
        at: str = url,
        options: str = "",
        processes: int = 1,
        **rest: Any,
    ) -> Worker:
        source = MODULE.format(kind=kind, url=at, queue=queue, options=options, more=more)
        command = workers.taskiq("app:broker", *arguments, workers=processes)
        folder = tmp_path / f"worker-{len(started)}"
        started.append(Worker.start(command, folder, modules={"app": source}, **rest))
        return started[-1]

    yield work
    for worker in started:
        worker.stop(now=True)


@pytest.fixture
def configure(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> Iterator[Configure]:
    """Configures the environment "jobs"."""

    def configure(*, policy: str = "cancel", **config: Any) -> None:
        if "task" not in config and "broker" not in config:
            config["broker"] = make()
        environment = {"executor": "taskiq", "executor_config": config}
        wove.config(environments={"jobs": {**environment, "delivery_orphan_policy": policy}})

    make()  # imports what it needs
    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("jobs")


# -------------------------------------------------------------------------------------------------- brokers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["task", "broker"])
def test_brokers(
    configure: Configure, work: Work, make: Callable[..., Any], kind: str, way: str
) -> None:
    broker = make(kind)
    configure(**{way: register(broker) if way == "task" else broker})
    work(kind=kind)
    with weave() as w:

        @w.do(range(100), environment="jobs")
        def added(item: int) -> int:
            return item + 1

    assert w.result.added == list(range(1, 101))


def test_a_broker_in_memory(configure: Configure) -> None:
    from taskiq import InMemoryBroker

    broker = InMemoryBroker()

    @broker.task
    def theirs() -> int:
        return 7

    configure(task=register(broker))
    assert there_is(add_one, item=1) == 2

    async def main() -> None:
        assert await there_will_be(add_one, item=2) == 3
        wove.shutdown()
        assert (
            await (await theirs.kiq()).wait_result()
        ).return_value == 7  # what it runs threads with is not closed

    asyncio.run(main())
    broker.executor.shutdown()


def test_a_task_of_ones_own_and_its_queue(
    configure: Configure, work: Work, make: Callable[..., Any], tmp_path: Path
) -> None:
    work(
        "@broker.task('shop.wove_task')\nasync def wove_task(payload: dict) -> None:\n    await arun(payload)"
    )
    configure(broker=make(), task_name="shop.wove_task")
    assert there_is(add_one, item=1) == 2


# --------------------------------------------------------------------------------------------------- losses


def test_a_message_that_a_dead_worker_of_a_stream_holds(
    configure: Configure, make: Callable[..., Any], url: str, queue: str
) -> None:
    """Taskiq's other workers would look for it after the next message, which there may never be."""
    import redis

    configure(broker=make("RedisStreamBroker", idle_timeout=1000))

    async def main() -> None:
        waiting = begin(add_one, item=1)
        with redis.Redis.from_url(url) as dead:
            await eventually(
                lambda: dead.exists(queue) and dead.xreadgroup("taskiq", "dead", {queue: ">"})
            )
        with pytest.raises(WorkerLostError, match="a worker has taken it from the queue"):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(main())


def test_what_waits_in_a_queue_is_not_lost(
    configure: Configure, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes, and whatever else is taken from it."""
    monkeypatch.setattr("wove.integrations.common.silent_jobs.SILENCE_SECONDS", 2.0)
    work("register(broker)", "--max-async-tasks", "1")
    path, until = tmp_path / "pids", tmp_path / "until"

    async def main() -> None:
        first = begin(block, path=str(path), until=str(until))
        await eventually(lambda: lines(path))
        waiting = [begin(add_one, item=number) for number in range(3)]
        await asyncio.sleep(4.0)  # longer than what was taken may be silent
        assert not any(each.done() for each in waiting)
        until.touch()
        assert await asyncio.gather(first, *waiting) == ["done", 1, 2, 3]

    asyncio.run(main())


def test_a_worker_that_refuses(
    configure: Configure, work: Work, make: Callable[..., Any], url: str
) -> None:
    """Told by the result, a pickle, of which nothing is unpickled: it is not signed."""
    security = ", security={'type': 'signed', 'secret': 'another'}"
    work(RESULTS.format(url=url, security=security))
    configure(broker=make(results=True), security={"type": "signed", "secret": "one"})
    with pytest.raises(WorkerLostError, match="failed: PermissionError: .*sign"):
        there_is(add_one, item=1)


def test_a_task_that_ends_without_running_the_payload(
    configure: Configure, work: Work, make: Callable[..., Any], url: str
) -> None:
    task = "\n@broker.task('shop.forgetful')\nasync def forgetful(payload: dict) -> None:\n    pass"
    work(RESULTS.format(url=url, security="") + task)
    configure(broker=make(results=True), task_name="shop.forgetful")
    with pytest.raises(WorkerLostError, match="has a result.*did not hand the payload to"):
        there_is(add_one, item=1)


def test_a_retrying_broker_begins_nothing_twice(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    """Whether a run is submitted again is the weave's affair."""
    middlewares = "broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3, default_retry_label=True))"
    worker = work(f"{middlewares}\nregister(broker)")
    path, until = tmp_path / "pids", tmp_path / "until"

    async def main() -> None:
        # The worker cannot report to a receiver that is gone, so that its task fails.
        running = begin(block, path=str(path), until=str(until))
        await eventually(lambda: lines(path))
        await asyncio.to_thread(wove.shutdown)
        with pytest.raises(DeliveryError):
            await running

    configure(callback_retry_seconds=0.5)
    asyncio.run(main())
    until.touch()
    worker.until(lambda: "Exception found while executing function" in worker.log(), "has failed")
    time.sleep(1)
    assert len(lines(path)) == 1


# --------------------------------------------------------------------------------------------------- cancel


def test_what_was_cancelled_in_the_queue_is_not_begun(
    configure: Configure, work: Work, tmp_path: Path
) -> None:
    never = tmp_path / "never"

    async def main() -> None:
        running = [begin(count_up, path=str(never)) for _ in range(20)]
        await asyncio.sleep(
            1.2
        )  # younger ones may have begun by the time that their worker learns of it
        for each in running:
            each.cancel()
        await asyncio.wait(running)
        work()
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())
    assert not never.exists()


# ----------------------------------------------------------------------------------------------------- fork


def test_a_forked_child_and_its_parent(
    configure: Configure, work: Work, make: Callable[..., Any]
) -> None:
    work()
    configure(task=register(make()))
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


# -------------------------------------------------------------------------------------------- the user's loop


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_is_used_on_its_loop(
    configure: Configure, work: Work, make: Callable[..., Any], kind: str
) -> None:
    work(kind=kind)
    loops: list[Any] = []
    broker = make(kind)
    configure(task=register(broker))
    kick = broker.kick

    async def kicked(message: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await kick(message)

    broker.kick = kicked

    async def main() -> None:
        await broker.startup()
        assert await there_will_be(add_one, item=1) == 2
        # Also from a thread, as long as its loop runs.
        assert await asyncio.to_thread(there_is, add_one, item=2) == 3
        assert loops == [asyncio.get_running_loop()] * 2
        await asyncio.to_thread(wove.shutdown)
        await kicked_once_more()
        await broker.shutdown()

    async def kicked_once_more() -> None:
        assert await there_will_be(add_one, item=3) == 4  # it was not shut down

    asyncio.run(main())


def test_a_broker_whose_loop_does_not_run(configure: Configure, make: Callable[..., Any]) -> None:
    broker = make()
    register(broker)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.startup())
    configure(broker=broker)
    with pytest.raises(
        DeliveryError,
        match=r"its broker \(ListQueueBroker\) belongs to an event loop that is not run",
    ):
        there_is(add_one, item=1)
    loop.run_until_complete(broker.shutdown())
    loop.close()


def test_a_broker_that_nobody_has_started(
    configure: Configure, work: Work, make: Callable[..., Any]
) -> None:
    """It is started once, and shut down in the end."""
    from taskiq import TaskiqEvents

    told: list[str] = []
    work()
    broker = make()
    broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, lambda _: told.append("up"))
    broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, lambda _: told.append("down"))
    configure(broker=broker)
    for number in range(2):
        assert there_is(add_one, item=number) == number + 1

    async def main() -> None:
        assert await there_will_be(add_one, item=2) == 3

    asyncio.run(main())
    asyncio.run(main())
    wove.shutdown()
    assert told == ["up", "down"]


# ----------------------------------------------------------------------------------- a Redis that is not there


def test_nobody_listens_there(configure: Configure, make: Callable[..., Any]) -> None:
    from tests.support.kept import free_port

    configure(broker=make(at=f"redis://:sesame@127.0.0.1:{free_port()}"))
    with pytest.raises(
        DeliveryError, match=r"its broker \(ListQueueBroker\) did not take the task"
    ) as caught:
        there_is(add_one, item=1)
    assert "sesame" not in str(caught.value)


def test_a_redis_that_does_not_answer(
    configure: Configure, work: Work, make: Callable[..., Any], tmp_path: Path
) -> None:
    """It holds up neither the loop nor other weaves, and costs a run no longer than ``send_timeout``."""
    with support.redis.running(tmp_path / "server") as server:
        configure(broker=make(at=server.url), send_timeout=1.5)
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
                (wove.DeliveryTimeoutError, DeliveryError),
                match="send_timeout|did not answer within",
            ):
                running.result()

        os.kill(server.kept.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            asyncio.run(main())
            assert time.monotonic() - began < 30
        finally:
            os.kill(server.kept.pid, signal.SIGCONT)
        assert there_is(add_one, item=2) == 3
        assert sorted(gaps)[len(gaps) // 2] < 0.5
        wove.shutdown()
