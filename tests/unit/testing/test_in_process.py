"""Environments in this process, recorded, with faults."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import wove
from wove import DeliveryTimeoutError, SerializationError, WorkerLostError, weave
from wove.testing import in_process


@pytest.fixture(params=[True, False], ids=["codec", "direct"])
def codec(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(autouse=True)
def _environments() -> None:
    """Nothing listens there: whatever runs, runs in this process."""
    wove.config(
        environments={
            "service": {
                "executor": "http",
                "executor_config": {"url": "http://127.0.0.1:9/"},
                "retries": 1,
            }
        }
    )


def test_sync_async_and_mapped_tasks(codec: bool) -> None:
    with in_process(codec=codec) as recorder, weave(start=1) as w:

        @w.do(environment="service")
        def one(start: int) -> int:
            return start

        @w.do(environment="service")
        async def two(one: int) -> int:
            await asyncio.sleep(0)
            return one + 1

        @w.do([1, 2, 3], environment="service")
        def each(item: int, two: int) -> tuple[int, int]:
            return item * two, os.getpid()

    assert w.result.each == [(2, os.getpid()), (4, os.getpid()), (6, os.getpid())]
    assert [run.args for run in recorder.of("each")] == [
        {"item": item, "two": 2} for item in (1, 2, 3)
    ]
    assert {run.environment for run in recorder} == {"service"} and len(recorder) == 5


def test_what_cannot_be_pickled_fails_with_the_codec_alone(codec: bool) -> None:
    lock = threading.Lock()
    with in_process(codec=codec), weave(lock=lock, error_mode="return") as w:

        @w.do(environment="service")
        def same(lock: Any) -> Any:
            return lock

    assert isinstance(w.result.same, SerializationError) if codec else w.result.same is lock


def test_an_error_is_the_users_own(codec: bool) -> None:
    with (
        in_process(codec=codec),
        pytest.raises(KeyError, match="missing"),
        weave() as w,
    ):

        @w.do(environment="service", retries=0)
        def broken() -> None:
            raise KeyError("missing")


def test_a_lost_worker_and_a_retry(codec: bool) -> None:
    executed: list[int] = []
    with in_process(codec=codec) as recorder:
        recorder.lose("task", times=1, runs=False)
        with weave() as w:

            @w.do(environment="service")
            def task() -> int:
                return 7

        assert w.result.task == 7 and len(recorder.of("task")) == 2  # retries=1 of the environment

        recorder.lose("task", times=2)
        with pytest.raises(WorkerLostError, match="as the test asked for"), weave() as w:

            @w.do(environment="service")
            def task() -> None:
                executed.append(1)

    assert codec or executed == [1, 1]


def test_a_failure(codec: bool) -> None:
    with in_process(codec=codec) as recorder:
        recorder.fail(None, ConnectionError("no route"), times=2)
        with pytest.raises(ConnectionError, match="no route"), weave() as w:

            @w.do(environment="service")
            def task() -> int:
                return 7


def test_a_run_that_waits_for_longer_than_its_limit(codec: bool) -> None:
    with in_process(codec=codec) as recorder:
        recorder.delay("task", 60.0)
        with pytest.raises(DeliveryTimeoutError), weave() as w:

            @w.do(environment="service", retries=0, delivery_timeout=0.05)
            def task() -> int:
                return 7


def test_events_that_come_twice_count_once(codec: bool) -> None:
    with in_process(codec=codec) as recorder:
        recorder.duplicate()
        with weave() as w:

            @w.do(range(20), environment="service")
            def task(item: int) -> int:
                return item

    assert w.result.task == list(range(20)) and len(recorder) == 20


def test_weaves_of_several_threads(codec: bool) -> None:
    def one(number: int) -> list[int]:
        with weave(number=number) as w:

            @w.do(range(5), environment="service")
            def task(item: int, number: int) -> int:
                return item + number

        return w.result.task

    with in_process(codec=codec), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(8))) == [
            [item + number for item in range(5)] for number in range(8)
        ]


def test_the_configuration_comes_back() -> None:
    from wove import settings

    before = settings.current()
    with pytest.raises(RuntimeError, match="stop"), in_process("another", "service"):
        assert {"another", "service"} <= set(settings.current().environments)
        raise RuntimeError("stop")

    assert settings.current() is before


def test_a_fault_needs_a_run_to_happen_to() -> None:
    with in_process() as recorder, pytest.raises(ValueError, match="times must be at least 1"):
        recorder.lose("task", times=0)
