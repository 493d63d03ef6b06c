"""A map over a map takes each item as soon as it is there."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import Weave, merge, weave
from wove.result import WoveResult
from wove.testing import in_process

KINDS = ["sync", "async"]
PAIRS = list(itertools.product(KINDS, KINDS))
TRIPLES = list(itertools.product(KINDS, KINDS, KINDS))


class Boom(Exception):
    pass


def stage(kind: str, name: str, work: Callable[[Any], Any]) -> Any:
    def sync(item: Any) -> Any:
        return work(item)

    async def asynchronous(item: Any) -> Any:
        await asyncio.sleep(0)
        return work(item)

    fn = sync if kind == "sync" else asynchronous
    fn.__name__ = name
    return fn


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_an_item_goes_on_before_the_others_are_there(form: str, kinds: tuple[str, str]) -> None:
    """The last item of the first map waits until the second map has run all others."""
    others = threading.Semaphore(0)

    def wait_for_others() -> None:
        for _ in range(4):
            assert others.acquire(timeout=PATIENCE)

    def first(item: int) -> int:
        if item == 4:
            wait_for_others()
        return item + 1

    async def first_async(item: int) -> int:
        if item == 4:
            await asyncio.to_thread(wait_for_others)
        return item + 1

    def second(item: int) -> int:
        others.release()
        return item * 10

    first_async.__name__ = "first"

    def declare(w: weave) -> None:
        w.do(range(5))(first if kinds[0] == "sync" else first_async)
        w.do("first")(stage(kinds[1], "second", second))

    assert run(form, declare).second == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("kinds", TRIPLES, ids="-".join)
@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 1}, {"workers": 3}, {"retries": 1}, {"timeout": PATIENCE, "workers": 2}],
    ids=str,
)
def test_results_have_the_positions_of_the_source(
    kinds: tuple[str, str, str], options: dict[str, Any]
) -> None:
    gaps = random.Random(3)
    naps = [gaps.choice((0.0, 0.0, 0.001, 0.003)) for _ in range(60)]
    runs: list[tuple[str, int]] = []

    def declare(w: weave) -> None:
        async def slow(item: int) -> int:
            await asyncio.sleep(naps[item])
            runs.append(("a", item))
            return item

        def slow_sync(item: int) -> int:
            threading.Event().wait(naps[item])
            runs.append(("a", item))
            return item

        slow.__name__ = slow_sync.__name__ = "a"

        def again(name: str) -> Callable[[int], int]:
            return lambda item: runs.append((name, item)) or item

        w.do(range(60), **options)(slow if kinds[0] == "async" else slow_sync)
        w.do("a", **options)(stage(kinds[1], "b", again("b")))
        w.do("b", **options)(stage(kinds[2], "c", again("c")))

        @w.do
        def whole(a: list[int], c: list[int]) -> bool:
            return a == c

    result = run("with", declare)
    assert result.a == result.b == result.c == list(range(60))
    assert result.whole is True
    assert sorted(runs) == [(name, item) for name in "abc" for item in range(60)]


def test_items_are_launched_in_the_order_in_which_they_become_ready(form: str) -> None:
    launched: list[int] = []

    def declare(w: weave) -> None:
        gates = [asyncio.Event() for _ in range(4)]
        gates[3].set()

        @w.do(range(4))
        async def first(item: int) -> int:
            async with asyncio.timeout(PATIENCE):
                await gates[item].wait()
            return item

        @w.do("first")
        async def second(item: int) -> int:
            launched.append(item)
            if item:
                gates[item - 1].set()
            return item

    assert run(form, declare).second == [0, 1, 2, 3]
    assert launched == [3, 2, 1, 0]


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
@pytest.mark.parametrize("max_workers", [1, 2])
def test_stages_that_share_a_thread_do_not_wait_for_each_other(
    kinds: tuple[str, str], max_workers: int
) -> None:
    def declare(w: weave) -> None:
        @w.do
        def rows() -> Iterator[int]:
            yield from range(100)

        w.do("rows", workers=4)(stage(kinds[0], "first", lambda item: item))
        w.do("first", workers=4)(stage(kinds[1], "second", lambda item: item))
        w.do("second", workers=4)(stage(kinds[0], "third", lambda item: item))

    assert run("with", declare, max_workers=max_workers).third == list(range(100))


def test_a_pipeline_with_other_inputs_and_several_readers(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(range(10))
        async def first(item: int) -> int:
            return item

        @w.do
        def total(first: list[int]) -> int:
            return sum(first)

        @w.do("first")
        def shared(item: int, total: int) -> int:
            return item + total

        @w.do("first")
        async def squared(item: int) -> int:
            return item * item

        @w.do("squared")
        def with_all(item: int, squared: list[int]) -> tuple[int, int]:
            return item, len(squared)

    result = run(form, declare)
    assert result.shared == [45 + item for item in range(10)]
    assert result.with_all == [(item * item, 10) for item in range(10)]


@pytest.mark.parametrize("source", [[], (), iter(())], ids=lambda value: type(value).__name__)
def test_an_empty_pipeline(form: str, source: Any) -> None:
    def declare(w: weave) -> None:
        w.do(source)(stage("async", "first", lambda item: item))
        w.do("first")(stage("sync", "second", lambda item: item))

    assert run(form, declare).second == []


def test_classes_pipeline_and_an_override_stays_in_it() -> None:
    class Base(Weave):
        @Weave.do([1, 2, 3])
        def first(self, item: int) -> int:
            return item

        @Weave.do("first")
        def second(self, item: int) -> int:
            return item * 2

    with weave(Base) as w:

        @w.do
        async def first(item: int) -> int:  # stays mapped over the source of the class
            return item * 10

    assert w.result.second == [20, 40, 60]


def test_merge_in_a_stage_of_a_pipeline(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(range(4), workers=2)
        def first(item: int) -> Any:
            return merge(lambda n: n + 1, range(item))

        @w.do("first", workers=2)
        async def second(item: list[int]) -> Any:
            return sum(await merge(lambda n: n * 2, item))

    assert run(form, declare).second == [0, 2, 6, 12]


# ---------------------------------------------------------------------- failures


def fails_at(position: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == position:
            raise Boom(item)
        return item

    return work


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_with_continue_the_items_that_succeeded_go_on(kinds: tuple[str, str]) -> None:
    ran: list[int] = []

    def declare(w: weave) -> None:
        w.do(range(10), workers=2)(stage(kinds[0], "first", fails_at(3)))
        w.do("first")(stage(kinds[1], "second", lambda item: ran.append(item) or item))
        w.do("second")(stage(kinds[0], "third", lambda item: item))

        @w.do
        def after(third: list[int]) -> None: ...

        @w.do
        def beside() -> int:
            return 1

    done = attempt("with", declare, error_mode="continue")
    result = done.result
    assert done.error is None
    assert sorted(ran) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    error = result.first
    assert isinstance(error, Boom)
    assert result.second is result.third is result.after is result.exception is error
    assert [(one.task, one.item) for one in result.failures] == [("first", 3)]
    assert (result.beside, result.cancelled) == (1, ())
    assert_recorded(result, "second", [0, 1, 2, 4, 5, 6, 7, 8, 9])
    assert result.timings["second"] < PATIENCE


def assert_recorded(result: WoveResult, task: str, positions: list[int]) -> None:
    records = [record for record in result.run_records if record.task == task]
    assert [record.item for record in records] == positions
    assert all(record.ended and record.ended >= record.started > 1e9 for record in records)


def test_with_continue_a_map_that_begins_later_still_runs_what_succeeded() -> None:
    """Also when its source has failed before its other inputs were there."""
    ran: list[int] = []

    def declare(w: weave) -> None:
        failed = threading.Event()

        @w.do(range(3))
        def first(item: int) -> int:
            if item == 1:
                failed.set()
                raise Boom
            return item

        @w.do
        def factor() -> int:
            assert failed.wait(PATIENCE)
            return 2

        @w.do
        async def later(factor: int) -> int:
            for _ in range(5):
                await asyncio.sleep(0.001)
            return factor

        @w.do("first")
        def second(item: int, later: int) -> None:
            ran.append(item * later)

    result = attempt("with", declare, error_mode="continue").result
    assert sorted(ran) == [0, 4]
    assert isinstance(result.second, Boom)


@pytest.mark.parametrize("mode", ["raise", "return"])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_otherwise_the_first_failure_ends_every_stage(
    form: str, mode: str, kinds: tuple[str, str]
) -> None:
    def declare(w: weave) -> None:
        w.do(itertools.count(), workers=2)(stage(kinds[0], "first", lambda item: item))
        w.do("first", workers=2)(stage(kinds[1], "second", fails_at(3)))
        w.do("second", workers=2)(stage(kinds[0], "third", lambda item: item))

    done = attempt(form, declare, error_mode=mode)
    error = done.result.exception
    assert isinstance(error, Boom)
    assert done.error is (error if mode == "raise" else None)
    assert "first" in done.result.cancelled
    assert [(one.task, one.item) for one in done.result.failures] == [("second", 3)]


def test_retries_of_a_stage_give_the_next_one_each_item_once(form: str) -> None:
    attempts: dict[int, int] = {}
    received: list[int] = []

    def flaky(item: int) -> int:
        attempts[item] = attempts.get(item, 0) + 1
        if attempts[item] <= item % 3:
            raise Boom
        return item

    def declare(w: weave) -> None:
        w.do(range(9), retries=2, workers=3)(stage("sync", "first", flaky))
        w.do("first")(stage("async", "second", lambda item: received.append(item) or item))

    assert run(form, declare).second == list(range(9))
    assert sorted(received) == list(range(9))


def test_max_pending_refuses_a_pipeline_at_its_source_alone() -> None:
    """A map has as many items as its source, so it need not wait for the last one to count them."""
    others = threading.Semaphore(0)

    def declare(w: weave) -> None:
        @w.do(range(3))
        def first(item: int) -> int:
            if item == 2:
                assert others.acquire(timeout=PATIENCE)
            return item

        @w.do("first")
        def second(item: int) -> int:
            if item == 0:
                others.release()
            return item

    assert run("with", declare, max_pending=3).second == [0, 1, 2]
    refused = attempt("with", declare, max_pending=2)
    assert isinstance(refused.error, ValueError)


def test_limit_per_minute_paces_a_stage() -> None:
    launched: list[float] = []

    def declare(w: weave) -> None:
        w.do(range(5))(stage("async", "first", lambda item: item))

        @w.do("first", limit_per_minute=6000)
        async def second(item: int) -> int:
            launched.append(asyncio.get_running_loop().time())
            return item

    assert run("with", declare).second == list(range(5))
    assert launched[-1] - launched[0] >= 0.03


@pytest.mark.parametrize("codec", [False, True])
def test_a_pipeline_across_environments(codec: bool) -> None:
    others = threading.Semaphore(0)

    def declare(w: weave) -> None:
        @w.do(range(5))
        def fetch(item: int) -> int:
            if item == 4:
                assert others.acquire(timeout=PATIENCE)
            return item

        @w.do("fetch", environment="pool")
        def parse(item: int) -> int:
            return item * 2

        @w.do("parse")
        async def store(item: int) -> int:
            others.release()
            return item + 1

    with in_process("pool", codec=codec):
        assert run("with", declare).store == [1, 3, 5, 7, 9]
