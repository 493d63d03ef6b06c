"""``keep=False``: a result goes to the tasks that need it, and is then released."""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import ResultNotKeptError, merge, weave
from wove.observe.sampling import Sampler
from wove.testing import in_process

KINDS = ["sync", "async"]
PAIRS = list(itertools.product(KINDS, KINDS))


class Boom(Exception):
    pass


class Live:
    """Counts the objects that it made and that are still referred to."""

    class Value:
        def __init__(self, number: int) -> None:
            self.number = number

    def __init__(self) -> None:
        self.made = 0
        self.now = 0
        self.most = 0
        self.lock = threading.Lock()

    def make(self, number: int) -> Any:
        value = self.Value(number)
        with self.lock:
            self.made += 1
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(value, self._gone)
        return value

    def _gone(self) -> None:
        with self.lock:
            self.now -= 1


def stage(kind: str, name: str, work: Callable[[Any], Any]) -> Any:
    def sync(item: Any) -> Any:
        return work(item)

    async def asynchronous(item: Any) -> Any:
        await asyncio.sleep(0)
        return work(item)

    fn = sync if kind == "sync" else asynchronous
    fn.__name__ = name
    return fn


def test_reading_it_says_that_it_was_not_kept(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(keep=False)
        def rows() -> list[int]:
            return [1, 2]

        @w.do
        def total(rows: list[int]) -> int:
            return sum(rows)

    result = run(form, declare)
    assert result.total == 3
    assert "rows" in result and len(result) == 2 and "rows=not kept" in repr(result)
    for read in (lambda: result.rows, lambda: result["rows"], lambda: list(result)):
        with pytest.raises(ResultNotKeptError, match=r"'rows' was not kept.*keep=False"):
            read()
    with pytest.raises(ResultNotKeptError):
        _ = pickle.loads(pickle.dumps(result)).rows


def test_the_last_task_may_have_no_result(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(range(3), keep=False)
        def stored(item: int) -> int:
            return item

    with pytest.raises(ResultNotKeptError, match="'stored'"):
        _ = run(form, declare).final


def test_a_failure_is_still_read_as_a_failure(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(range(3), keep=False)
        def stored(item: int) -> int:
            raise Boom

    done = attempt(form, declare)
    with pytest.raises(Boom):
        _ = done.result.stored


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_released_when_the_last_task_that_needs_it_has_ended(kind: str) -> None:
    live = Live()
    seen: list[int] = []

    def declare(w: weave) -> None:
        @w.do(keep=False)
        def value() -> Any:
            return live.make(1)

        w.do(stage_of(kind, "first", lambda value: value.number))
        w.do(stage_of(kind, "second", lambda value: value.number))

        @w.do
        async def after(first: int, second: int) -> None:
            for _ in range(3):
                await asyncio.sleep(0.001)
            gc.collect()
            seen.append(live.now)

    result = run("with", declare)
    assert (result.first, result.second, seen) == (1, 1, [0])


def stage_of(kind: str, name: str, work: Callable[[Any], Any]) -> Any:
    def sync(value: Any) -> Any:
        return work(value)

    async def asynchronous(value: Any) -> Any:
        return work(value)

    fn = sync if kind == "sync" else asynchronous
    fn.__name__ = name
    return fn


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
@pytest.mark.parametrize("workers", [(1, 1), (4, 2), (2, 4)], ids=str)
def test_a_pipeline_holds_what_its_workers_can_use(
    form: str, kinds: tuple[str, str], workers: tuple[int, int]
) -> None:
    """The second map is slower than the first, which therefore has to wait for it."""
    live = Live()
    count = 150
    sums: list[int] = []

    def second(value: Any) -> None:
        if value.number % 10 == 0:
            threading.Event().wait(0.001)
        sums.append(value.number)

    def declare(w: weave) -> None:
        w.do(range(count), workers=workers[0], keep=False)(stage(kinds[0], "first", live.make))
        w.do("first", workers=workers[1], keep=False)(stage(kinds[1], "second", second))

    run(form, declare)
    assert sorted(sums) == list(range(count))
    # The first map's running items and its results that wait; the second map's running items; one
    # more for each worker, whose last value is still referred to.
    assert live.most <= max(workers[0], workers[1] + 1) + workers[1] + sum(workers)


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_task_holds_what_its_slowest_map_can_use(source: str, kind: str) -> None:
    live = Live()
    counts = {"quick": 0, "slow": 0}

    def count(name: str) -> Callable[[Any], None]:
        def work(value: Any) -> None:
            if name == "slow" and value.number % 10 == 0:
                threading.Event().wait(0.001)
            counts[name] += 1

        return work

    def declare(w: weave) -> None:
        if source == "sync":

            @w.do(keep=False)
            def rows() -> Iterator[Any]:
                yield from map(live.make, range(200))
        else:

            @w.do(keep=False)
            async def rows() -> AsyncIterator[Any]:
                for number in range(200):
                    yield live.make(number)

        w.do("rows", workers=1, keep=False)(stage(kind, "quick", count("quick")))
        w.do("rows", workers=1, keep=False)(stage(kind, "slow", count("slow")))

    run("with", declare)
    assert counts == {"quick": 200, "slow": 200}
    assert live.most <= 12


def test_a_map_that_waits_for_another_input_paces_its_source() -> None:
    made = 0
    release = threading.Event()
    seen: list[int] = []

    def declare(w: weave) -> None:
        @w.do(range(1000), workers=2, keep=False)
        async def first(item: int) -> int:
            nonlocal made
            made += 1
            return item

        @w.do
        async def slow() -> int:
            for _ in range(5):
                await asyncio.sleep(0.001)
            seen.append(made)
            return 1

        @w.do("first", workers=2)
        async def second(item: int, slow: int) -> int:
            return item * slow

    assert run("with", declare).second == list(range(1000))
    assert seen[0] <= 5
    release.set()


def test_a_map_that_needs_the_end_of_its_source_does_not_pace_it(form: str) -> None:
    """Otherwise each would wait for the other for ever."""

    def declare(w: weave) -> None:
        w.do(range(50), workers=2, keep=False)(stage("async", "first", lambda item: item))
        w.do("first", workers=2)(stage("sync", "squared", lambda item: item * item))

        @w.do
        def total(squared: list[int]) -> int:
            return sum(squared)

        @w.do("first", workers=2)
        def second(item: int, total: int) -> int:
            return item + total

    assert run(form, declare).second == [40425 + item for item in range(50)]


def test_a_task_that_needs_the_whole_list_gets_it(form: str) -> None:
    live = Live()
    seen: list[int] = []

    def declare(w: weave) -> None:
        w.do(range(50), workers=2, keep=False)(stage("sync", "first", live.make))
        w.do("first", workers=1)(stage("sync", "second", lambda value: value.number))

        @w.do
        def count(first: list[Any]) -> int:
            return len(first)

        @w.do
        async def after(count: int, second: list[int]) -> None:
            for _ in range(3):
                await asyncio.sleep(0.001)
            gc.collect()
            seen.append(live.now)

    result = run(form, declare)
    assert (result.count, result.second) == (50, list(range(50)))
    assert seen[0] <= 1  # the last one may still be referred to by an idle thread


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_stages_that_share_one_thread_and_hold_little_do_not_stop(kinds: tuple[str, str]) -> None:
    def declare(w: weave) -> None:
        @w.do(keep=False)
        def rows() -> Iterator[int]:
            yield from range(100)

        w.do("rows", workers=2, keep=False)(stage(kinds[0], "first", lambda item: item))
        w.do("first", workers=2, keep=False)(stage(kinds[1], "second", lambda item: item))
        w.do("second", workers=2)(stage(kinds[0], "third", lambda item: item))

    assert run("with", declare, max_workers=1).third == list(range(100))


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_with_continue_items_that_fail_leave_room_for_others(kinds: tuple[str, str]) -> None:
    ran: list[int] = []

    def odd_fails(item: int) -> int:
        if item % 2:
            raise Boom
        return item

    def declare(w: weave) -> None:
        w.do(range(60), workers=2, keep=False)(stage(kinds[0], "first", odd_fails))
        w.do("first", workers=2, keep=False)(stage(kinds[1], "second", ran.append))

    done = attempt("with", declare, error_mode="continue")
    assert sorted(ran) == list(range(0, 60, 2))
    assert isinstance(done.result.second, Boom)
    assert len(done.result.failures) == 30


def test_stages_of_one_environment_do_not_wait_for_each_others_slots() -> None:
    def declare(w: weave) -> None:
        remote: dict[str, Any] = {"environment": "pool", "workers": 3, "keep": False}
        w.do(range(40), **remote)(stage("sync", "first", lambda item: item + 1))
        w.do("first", **remote)(stage("sync", "second", lambda item: item * 2))
        w.do("second", environment="pool", workers=3)(stage("sync", "third", lambda item: item))

    with in_process("pool"):
        result = run("with", declare, delivery_max_in_flight=1)
    assert result.third == [2 * (item + 1) for item in range(40)]
    assert {record.task for record in result.run_records} == {"third"}


def test_progress_and_records_of_a_map_that_is_not_kept() -> None:
    rows: list[Any] = []

    def declare(w: weave) -> None:
        w.do(range(20), workers=2, keep=False)(stage("sync", "first", lambda item: item))
        w.do("first", workers=2, keep=False)(stage("async", "second", lambda item: item))

    w = weave()
    with w:
        declare(w)
    assert w._execution is not None and w._execution._run is not None
    rows = Sampler(w._execution._run).rows()
    assert [(row.items, row.total, row.state) for row in rows] == [(20, 20, "done")] * 2
    records = w.result.run_records
    assert [(record.task, record.item) for record in records] == [("first", None), ("second", None)]
    assert all(record.ended and record.ended >= record.started for record in records)


def test_merge_refuses_it() -> None:
    def declare(w: weave) -> None:
        @w.do
        def task() -> Any:
            return merge(str, [1], keep=False)

    assert isinstance(attempt("with", declare).error, ValueError)


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(TypeError, match="keep must be True or False"), weave() as w:
        w.do(keep=1)(lambda: None)  # type: ignore[call-overload, typeddict-item, unused-ignore]


def test_a_consumer_that_is_blocked_stops_the_source() -> None:
    made, release = 0, threading.Event()
    blocked = threading.Barrier(3)

    def declare(w: weave) -> None:
        @w.do(keep=False)
        def rows() -> Iterator[int]:
            nonlocal made
            while made < 10_000:
                made += 1
                yield made

        @w.do("rows", workers=2, keep=False)
        async def first(item: int) -> int:
            return item

        @w.do("first", workers=2, keep=False)
        def second(item: int) -> None:
            if not release.is_set():
                blocked.wait(PATIENCE)
                release.wait(PATIENCE)

        @w.do
        def observer() -> int:
            blocked.wait(PATIENCE)
            settled = -1
            while settled != made:
                settled = made
                release.wait(0.02)
            release.set()
            return settled

    assert run("with", declare).observer <= 12
    assert made == 10_000
