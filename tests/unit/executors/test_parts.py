"""The small parts: who gets the next run, the codec threads, names of executors."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from wove.concurrency.thread_pool import ThreadPool
from wove.executors.base import EnvironmentExecutor
from wove.executors.registry import BUILT_IN, executor_class
from wove.executors.stdio.balance import BACKLOG_BYTES, MAX_AHEAD, MAX_AT_ONCE, WorkerLoad, choose
from wove.executors.stdio.process import describe_exit


class TestSeat:
    def test_one_at_a_time_at_first(self) -> None:
        worker = WorkerLoad()
        assert worker.free(0) == 1
        worker.assigned(0.0)
        assert worker.free(0) == 0

    def test_short_runs_wait_beforehand(self) -> None:
        worker = WorkerLoad()
        now = 0.0
        for _ in range(10):
            while worker.free(0):
                worker.assigned(now)
            now += 0.00005 * worker.load
            worker.finished(worker.load, now)
        assert worker.ahead == MAX_AHEAD
        assert worker.free(BACKLOG_BYTES) == 1

    def test_one_long_run_ends_that(self) -> None:
        worker = WorkerLoad(ahead=MAX_AHEAD, pace=0.00005)
        worker.assigned(0.0)
        worker.finished(1, 1.0)
        assert worker.ahead == 0

    def test_waiting_runs_double_the_room(self) -> None:
        worker = WorkerLoad()
        for expected in (2, 4, 8):
            while worker.free(0):
                worker.assigned(0.0)
            assert worker.waits()
            assert worker.limit == expected
        assert not worker.waits()  # it has not even filled what it has
        worker.finished(worker.load, 10.0)
        worker.idle()
        assert worker.limit == 1

    def test_stagnation_gives_one_more_until_something_moves(self) -> None:
        worker = WorkerLoad()
        worker.assigned(0.0)
        worker.stagnates()
        worker.stagnates()
        assert worker.free(0) == 2
        worker.assigned(0.0)
        worker.finished(1, 9.0)
        assert worker.free(0) == 0

    def test_no_limit(self) -> None:
        worker = WorkerLoad(limit=None)
        assert worker.free(0) == MAX_AT_ONCE
        assert not worker.waits()


def test_the_least_loaded_first() -> None:
    assert choose([3, 3], [2, 0], 4) == [1, 1, 0, 1]
    assert choose([1, 0], [0, 0], 4) == [0]
    assert choose([], [], 4) == []


class TestOffload:
    def test_one_thread_keeps_the_order(self) -> None:
        pool, seen = ThreadPool(1, "test-offload"), []
        for number in range(100):
            pool.submit(seen.append, number)
        pool.close(10)
        assert seen == list(range(100))

    def test_threads_start_on_demand_and_end(self) -> None:
        pool = ThreadPool(3, "test-offload")
        meeting = threading.Barrier(3, timeout=20)
        for _ in range(3):
            pool.submit(meeting.wait)
        pool.close(20)
        assert not [thread for thread in threading.enumerate() if thread.name == "test-offload"]
        again = threading.Event()
        pool.submit(again.set)
        assert again.wait(20)
        pool.close(20)


class Own(EnvironmentExecutor):
    async def start(self, **_: Any) -> None: ...  # type: ignore[override]

    async def send(self, frame: Any) -> None: ...

    async def recv(self) -> Any: ...

    async def stop(self) -> None: ...


class TestRegistry:
    def test_every_name_has_a_class(self) -> None:
        for name in BUILT_IN:
            assert issubclass(executor_class(name, "e"), EnvironmentExecutor)

    def test_an_own_executor(self) -> None:
        assert executor_class(Own(), "e") is Own
        assert (Own.scope, Own.wire) == ("run", False)

    def test_unknown_names(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"environment 'e': there is no executor 'stdoi'. Did you mean 'stdio'.*local",
        ):
            executor_class("stdoi", "e")

    @pytest.mark.parametrize("wrong", [7, None, Own])
    def test_what_is_no_executor(self, wrong: object) -> None:
        with pytest.raises(TypeError, match="environment 'e'"):
            executor_class(wrong, "e")


def test_exit_statuses_in_words() -> None:
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(-11) == "signal SIGSEGV"
    assert describe_exit(-9).startswith("signal SIGKILL (")
    assert describe_exit(None) == "an unknown status"
