"""Whole weaves whose tasks run elsewhere: what the block shows of it, in both of its forms."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import wove
from tests.contract.links import LINKS, Link, parameters
from tests.support.forms import attempt
from tests.support.services import Services
from tests.support.tracing import make_span, traced
from wove import (
    DeliveryOrphanedError,
    EnvironmentExecutor,
    TaskTimeoutError,
    Weave,
    WorkerLostError,
    merge,
    weave,
)
from wove.observe.events import listen

Form = Callable[..., Any]

REQUEST = wove.carry(ContextVar("REQUEST", default="none"))

WORKERS = [link for link in LINKS if link.pickles and link.cancels]
"""The links to processes that run Wove, too."""


class InThreads(EnvironmentExecutor):
    """The smallest executor of one's own: a thread for each run, with live objects."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def start(
        self, *, environment_name: str, environment_config: Any, run_config: Any
    ) -> None:
        self.log.append("start")
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    async def send(self, frame: Any) -> None:
        self.log.append(frame["type"])
        if frame["type"] == "run_task":
            threading.Thread(target=self._run, args=(frame,), daemon=True).start()

    def _run(self, frame: dict[str, Any]) -> None:
        event: dict[str, Any] = {"run_id": frame["run_id"], "task_id": frame["task_id"]}
        try:
            event |= {"type": "task_result", "result": frame["callable"](**frame["args"])}
        except Exception as error:
            event |= {"type": "task_error", "exception": error}
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def recv(self) -> Any:
        return await self.events.get()

    async def stop(self) -> None:
        self.log.append("stop")


def configure(name: str, link: Link, services: Services) -> None:
    found = link.environment(name, services)
    wove.config(
        environments={
            name: {"executor": found.executor, "executor_config": dict(found.executor_config)}
        }
    )


@pytest.fixture
def own_executor() -> InThreads:
    own = InThreads()
    wove.config(environments={"own": {"executor": own}})
    return own


@pytest.fixture(params=parameters(WORKERS))
def pool(request: pytest.FixtureRequest, services: Services) -> Link:
    """The environment "pool", behind each link in turn."""
    configure("pool", request.param, services)
    return request.param


@pytest.fixture(params=["own", *parameters(WORKERS)])
def environment(request: pytest.FixtureRequest, services: Services, own_executor: InThreads) -> str:
    """The name of an environment: of one's own executor, and behind each link."""
    if request.param == "own":
        return "own"
    configure("pool", request.param, services)
    return "pool"


@pytest.fixture(params=["with", "async with", "with in a loop"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_tasks_of_every_kind(form: str, environment: str) -> None:
    def declare(w: weave) -> None:
        @w.do(environment=environment)
        def plain(n: int, *, by_name: int = 2) -> int:
            return n + by_name

        @w.do(environment=environment)
        def positional(n: int, /, plain: int) -> tuple[int, int]:
            return n, plain

        @w.do(environment=environment)
        def generated(plain: int) -> Iterator[int]:
            yield from range(plain)

        @w.do("generated", environment=environment, workers=2)
        def mapped(item: int, n: int) -> int:
            return item * n

        @w.do
        def merged() -> Any:
            return merge(lambda item: item + 1, [1, 2, 3], environment=environment)

        @w.do
        async def here(positional: Any, mapped: list[int], merged: list[int]) -> Any:
            return positional, mapped, merged

    result = attempt(form, declare, n=3).result
    assert result.final == ((3, 5), [0, 3, 6, 9, 12], [2, 3, 4])
    assert result.generated == [0, 1, 2, 3, 4]


def test_coroutines_run_in_the_worker(form: str, pool: Link) -> None:
    def declare(w: weave) -> None:
        @w.do(range(20), environment="pool")
        async def pid(item: int) -> int:
            await asyncio.sleep(0.001)
            return os.getpid()

    assert os.getpid() not in attempt(form, declare).result.pid


def test_an_error_is_the_users_own(form: str, environment: str) -> None:
    class Unhappy(Exception):
        pass

    def declare(w: weave) -> None:
        @w.do(range(10), environment=environment)
        def odd(item: int) -> int:
            if item == 7:
                raise Unhappy(item)
            return item

        @w.do
        def after(odd: list[int]) -> int:
            return len(odd)

    tried = attempt(form, declare)
    assert isinstance(tried.error, Unhappy)
    assert tried.error.args == (7,)
    (note,) = tried.error.__notes__
    host = "" if environment == "own" else r", host \S+"
    item = rf"in task 'odd', item 7 \(value 7\), environment '{environment}'{host}, attempt 1"
    assert re.fullmatch(rf"{item}, run [0-9a-f]+-[0-9a-f]+", note)
    if environment != "own":
        remote = str(tried.error.__cause__)
        assert "test_weaves.py" in remote and "raise Unhappy(item)" in remote
    with pytest.raises(Unhappy):
        _ = tried.result.after


def test_progress_and_context_variables_travel(pool: Link) -> None:
    def step(item: int) -> str:
        for done in range(1, 4):
            wove.progress(done, 3, f"part {done}")
        return REQUEST.get()

    reports: list[dict[str, Any]] = []
    stop = listen(lambda event, fields: reports.append(fields) if "done" in fields else None)
    token = REQUEST.set("request 7")
    try:
        with weave() as w:
            w.do([10, 20], environment="pool")(step)
    finally:
        REQUEST.reset(token)
        stop()

    assert w.result.step == ["request 7", "request 7"]
    last = {report["item"]: report for report in reports}
    assert {item: report["note"] for item, report in last.items()} == {0: "part 3", 1: "part 3"}
    assert all(report["done"] == report["total"] == 3 for report in last.values())


def test_the_trace_goes_on_in_the_worker(pool: Link) -> None:
    with traced() as trace, weave() as w:
        w.do([1, 2], environment="pool")(spanned)

    (root,) = trace.tree()[""]
    runs = {span.attributes["wove.item"]: span for span in trace.spans if "run" in span.name}
    assert root == "weave" and set(runs) == {0, 1}
    for item, (trace_id, parent) in enumerate(w.result.spanned):
        assert trace_id == f"{runs[item].context.trace_id:032x}"
        assert parent == f"{runs[item].context.span_id:016x}"


def spanned(item: int) -> tuple[str, str]:
    return make_span()


def test_logs_and_output_come_home(
    pool: Link, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")

    def speak(item: int) -> None:
        import logging

        logging.getLogger("app.speaking").info("info %s", item)
        logging.getLogger("app.speaking").debug("debug %s", item)
        print("printed", item)

    with weave(remote_logs=True) as w:
        w.do([10, 20], environment="pool")(speak)

    host = w.result.run_records[0].host
    assert sorted(
        record.getMessage() for record in caplog.records if record.name == "app.speaking"
    ) == [f"[speak item {item} on {host}] info {10 * item + 10}" for item in (0, 1)]
    printed = sorted(line for line in capsys.readouterr().out.splitlines() if "printed" in line)
    assert printed == [f"[speak item {item} on {host}] printed {10 * item + 10}" for item in (0, 1)]


def test_retries_are_new_runs(form: str, environment: str, tmp_path: Any) -> None:
    tries = tmp_path / "tries"

    def declare(w: weave) -> None:
        @w.do(environment=environment, retries=3)
        def third() -> int:
            with open(tries, "a") as file:
                file.write("x")
            if len(tries.read_text()) < 3:
                raise OSError("not yet")
            return len(tries.read_text())

    result = attempt(form, declare).result
    assert result.third == 3
    assert [record.attempt for record in result.run_records] == [1, 2, 3]
    assert len({record.run_id for record in result.run_records}) == 3
    assert [record.error for record in result.run_records] == [
        "OSError: not yet",
        "OSError: not yet",
        None,
    ]


def test_records_say_where(form: str, pool: Link) -> None:
    def declare(w: weave) -> None:
        @w.do(range(3), environment="pool")
        def pid(item: int) -> int:
            return os.getpid()

    result = attempt(form, declare).result
    assert [record.pid for record in result.run_records] == result.pid
    assert all(
        record.bytes_out and record.bytes_in and record.host for record in result.run_records
    )
    assert {record.environment for record in result.run_records} == {"pool"}


def test_a_time_limit_holds_for_the_run(form: str, tmp_path: Any, pool: Link) -> None:
    done = tmp_path / "done"

    def declare(w: weave) -> None:
        @w.do(environment="pool", timeout=0.3, delivery_cancel_mode="require_ack")
        def slow() -> None:
            time.sleep(0.7)
            done.touch()

    tried = attempt(form, declare)
    assert isinstance(tried.error, TaskTimeoutError)
    # The end was acknowledged: nothing of the task runs any more.
    assert not done.exists()


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("policy", ["cancel", "fail", "detach"])
def test_what_becomes_of_a_run_whose_weave_stops(
    form: str, policy: Any, timeout: Any, tmp_path: Any, pool: Link
) -> None:
    started, done, go = tmp_path / "started", tmp_path / "done", tmp_path / "go"

    def declare(w: weave) -> None:
        @w.do(environment="pool", delivery_orphan_policy=policy, timeout=timeout)
        def remote() -> None:
            started.touch()
            while not go.exists():
                time.sleep(0.01)
            done.touch()

        @w.do
        async def fails() -> None:
            while not started.exists():
                await asyncio.sleep(0.01)
            raise LookupError

    tried = attempt(form, declare)
    assert isinstance(tried.error, LookupError)
    go.touch()
    if policy == "cancel":
        assert tried.result.cancelled == ("remote",)
    else:
        with pytest.raises(DeliveryOrphanedError):
            _ = tried.result.remote
    if policy == "detach":
        deadline = time.monotonic() + 20
        while not done.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_worker_that_dies(form: str, pool: Link) -> None:
    def declare(w: weave) -> None:
        @w.do(environment="pool")
        def dies() -> None:
            os._exit(3)

    tried = attempt(form, declare)
    assert isinstance(tried.error, WorkerLostError)
    if pool.names_signals:
        assert "exit status 3" in str(tried.error)


def test_a_class_with_tasks_elsewhere(form: str, environment: str) -> None:
    class Doubling(Weave):
        factor = 2

        @Weave.do("numbers", environment=environment, workers=2)
        def doubled(self, item: int) -> int:
            return item * self.factor

        @Weave.do
        def total(self, doubled: list[int]) -> int:
            return sum(doubled)

    assert attempt(form, lambda w: None, Doubling, numbers=[1, 2, 3]).result.final == 12


def test_the_block_waits_for_one_lost_map_only(form: str, pool: Link) -> None:
    def declare(w: weave) -> None:
        @w.do(range(4), environment="pool")
        def dies(item: int) -> int:
            if item == 2:
                os._exit(1)
            return item

        @w.do(range(4), environment="pool")
        def lives(item: int) -> int:
            return item

        @w.do
        def total(lives: list[int]) -> int:
            return sum(lives)

    result = attempt(form, declare, error_mode="continue").result
    assert isinstance(result.dies, WorkerLostError)
    # A crash takes along what its process was running, and nothing else can go wrong.
    assert isinstance(result.lives, WorkerLostError) or result.total == 6


def test_an_unknown_executor_is_named(form: str) -> None:
    wove.config(environments={"typo": {"executor": "stdoi"}})

    def declare(w: weave) -> None:
        @w.do(environment="typo")
        def never() -> None: ...

    tried = attempt(form, declare)
    assert isinstance(tried.error, ValueError)
    assert "Did you mean 'stdio'?" in str(tried.error)


def test_an_executor_of_ones_own_lives_as_long_as_the_weave(
    form: str, own_executor: InThreads
) -> None:
    def declare(w: weave) -> None:
        @w.do(range(3), environment="own")
        def twice(item: int) -> int:
            return item * 2

    for _ in range(2):
        assert attempt(form, declare).result.twice == [0, 2, 4]
    run = ["start", "run_task", "run_task", "run_task", "stop"]
    assert own_executor.log == run * 2


def test_weaves_in_many_threads_share_the_pool(pool: Link) -> None:
    def one(results: list[Any]) -> None:
        with weave() as w:

            @w.do(range(50), environment="pool")
            def pid(item: int) -> int:
                return os.getpid()

        results.append(w.result.pid)

    results: list[Any] = []
    threads = [threading.Thread(target=one, args=(results,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len({pid for pids in results for pid in pids}) <= 2


def test_a_task_in_the_pool_may_weave_there(pool: Link) -> None:
    with weave() as w:

        @w.do(environment="pool")
        def outer() -> Any:
            with weave(n=2) as inner:

                @inner.do(range(3))
                def times(item: int, n: int) -> int:
                    return item * n

            return (
                inner.result.final,
                merge(lambda item: item + 1, [1, 2]),
                asyncio.run(asyncio.sleep(0, "ran")),
            )

    assert w.result.outer == ([0, 2, 4], [2, 3], "ran")
