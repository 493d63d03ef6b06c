"""Many coroutines in few asyncio tasks, and none of them the worse for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from tests.support.forms import PATIENCE, run

from wove import weave
from wove.engine.coroutine_pool import CoroutinePool

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Counter:
    """How many asyncio tasks are made while it is in place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        counter, original = self, asyncio.Task

        class Task(original):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                counter.made += 1
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(asyncio, "Task", Task)


def named(name: str, fn: Any) -> Any:
    fn.__name__ = name
    return fn


def test_tasks_that_never_wait_share_asyncio_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)

    async def quick() -> int:
        return 1

    def declare(w: weave) -> None:
        for i in range(500):
            w.do(named(f"t{i}", _copy(quick)))

    assert sum(run("with", declare)) == 500
    assert counter.made < 50


def _copy(fn: Any) -> Any:
    async def copied() -> Any:
        return await fn()

    return copied


def test_every_task_has_a_real_asyncio_task_around_it(form: str) -> None:
    """Those that wait at the same time have different ones."""

    def declare(w: weave) -> None:
        gate = asyncio.Barrier(20)

        async def wait() -> Any:
            before = asyncio.current_task()
            async with asyncio.timeout(PATIENCE):
                await gate.wait()
            assert asyncio.current_task() is before
            return before

        for i in range(20):
            w.do(named(f"t{i}", _copy(wait)))

    tasks = list(run(form, declare))
    assert len(set(tasks)) == 20
    assert None not in tasks


def test_tasks_that_compute_do_not_keep_the_loop_to_themselves() -> None:
    """Something else on the loop gets its turn long before many quick tasks are through."""

    async def main() -> int:
        import time

        ticks = 0
        over = False

        async def tick() -> None:
            nonlocal ticks
            while not over:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        async with weave() as w:

            @w.do(range(200))
            async def items(item: int) -> None:
                time.sleep(0.0005)

            for i in range(50):

                async def compute() -> None:
                    time.sleep(0.0005)

                w.do(named(f"t{i}", compute))

        over = True
        await ticking
        return ticks

    assert asyncio.run(main()) > 5


def test_values_that_do_not_compare_may_be_in_the_context(form: str) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("nobody needs to compare me")

        __hash__ = None  # type: ignore[assignment]

    def declare(w: weave) -> None:
        for i in range(3):

            async def look() -> Any:
                found = VARIABLE.get()
                VARIABLE.set(Odd())
                return found

            w.do(named(f"t{i}", look))

    context = contextvars.copy_context()
    odd = Odd()
    context.run(VARIABLE.set, odd)
    assert all(found is odd for found in context.run(run, form, declare))


def test_a_task_that_changes_its_context_costs_others_nothing_but_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter(monkeypatch)

    def declare(w: weave) -> None:
        @w.do(range(100), workers=1)
        async def items(item: int) -> Any:
            before = VARIABLE.get()
            if item % 10 == 0:
                VARIABLE.set(item + 1)
            return before

    assert run("with", declare).items == [None] * 100
    assert counter.made < 40


def test_a_worker_that_is_stopped_runs_no_more_jobs() -> None:
    ran: list[int] = []
    jobs = list(range(10))

    class Some(CoroutinePool):
        @property
        def jobs(self) -> list[int]:
            return jobs

        def available(self) -> int:
            return len(self.jobs)

        async def work(self) -> None:
            worker = self.current()
            try:
                while self.jobs and not self.stopped:
                    ran.append(self.jobs.pop(0))
                    if self.jobs:
                        self.spawn_soon()
                    await asyncio.sleep(0)
                    if len(ran) == 3:
                        self.stop()
            except asyncio.CancelledError:
                return
            finally:
                self.worker_ended(worker)

    async def main() -> None:
        idle = asyncio.Event()
        pool = Some(asyncio.get_running_loop(), contextvars.copy_context(), "some", 2, idle.set)
        pool.spawn()
        async with asyncio.timeout(PATIENCE):
            await idle.wait()
        assert pool.tasks == set()
        pool.spawn()
        assert pool.tasks == set()

    asyncio.run(main())
    assert 3 <= len(ran) < 10


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_workers_than_the_limit(limit: int) -> None:
    most = 0
    lock = threading.Lock()
    now = 0

    def declare(w: weave) -> None:
        @w.do(range(30), workers=limit)
        async def items(item: int) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            await asyncio.sleep(0)
            with lock:
                now -= 1

    run("async with", declare)
    assert most == limit
