"""Generator tasks that feed a map: advanced as the map asks for items, and closed on every way out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run, soon

from wove import TaskCancelledError, weave

READ_AHEAD = 8
"""More than one item for each of two workers, and much less than all items."""


class Boom(Exception):
    pass


class Rows:
    """A generator task of either kind that counts what it gives, and says when it is closed."""

    def __init__(self, kind: str, count: int = 10**9) -> None:
        self.made = 0
        self.closed = threading.Event()
        self.count = count
        self.task: Callable[[], Any] = self.sync if kind == "sync" else self.asynchronous

    def sync(self) -> Iterator[int]:
        try:
            while self.made < self.count:
                self.made += 1
                yield self.made
        finally:
            self.closed.set()

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            while self.made < self.count:
                self.made += 1
                yield self.made
        finally:
            await asyncio.sleep(0)
            self.closed.set()

    def declare(self, w: weave) -> None:
        method: Any = self.task

        def rows() -> Iterator[int]:
            yield from method()

        async def async_rows() -> AsyncIterator[int]:
            inner = method()
            try:
                async for row in inner:
                    yield row
            finally:
                await inner.aclose()

        async_rows.__name__ = "rows"
        w.do(rows if method == self.sync else async_rows)


def mapped(kind: str, work: Callable[[int], Any]) -> Any:
    def use(row: int) -> Any:
        return work(row)

    async def use_async(row: int) -> Any:
        await asyncio.sleep(0)
        return work(row)

    use_async.__name__ = "use"
    return use if kind == "sync" else use_async


@pytest.fixture(params=["sync", "async"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_generator_is_advanced_as_items_are_used(form: str, source: str, kind: str) -> None:
    rows, used, most = Rows(source, 200), 0, 0

    def work(row: int) -> int:
        nonlocal used, most
        most = max(most, rows.made - used)
        used += 1
        return row

    def declare(w: weave) -> None:
        rows.declare(w)
        w.do("rows", workers=2)(mapped(kind, work))

    result = run(form, declare)
    assert result.use == result.rows == list(range(1, 201))
    assert most <= READ_AHEAD
    assert rows.closed.is_set()


def test_nothing_is_made_before_the_map_can_run(source: str, kind: str) -> None:
    rows = Rows(source, 5)
    made_before: list[int] = []

    def declare(w: weave) -> None:
        rows.declare(w)

        @w.do
        async def limit() -> int:
            for _ in range(5):
                await asyncio.sleep(0.002)
            made_before.append(rows.made)
            return 3

        if kind == "sync":

            @w.do("rows", workers=1)
            def use(row: int, limit: int) -> int:
                return row * limit
        else:

            @w.do("rows", workers=1)
            async def use(row: int, limit: int) -> int:
                return row * limit

    assert run("with", declare).use == [3, 6, 9, 12, 15]
    assert made_before == [0]


def test_a_task_that_needs_all_items_does_not_wait_for_the_map(source: str) -> None:
    rows = Rows(source, 50)
    all_made = threading.Event()

    def declare(w: weave) -> None:
        rows.declare(w)

        @w.do
        def total(rows: list[int]) -> int:
            all_made.set()
            return len(rows)

        @w.do("rows", workers=1)
        def use(row: int) -> bool:
            return all_made.wait(PATIENCE)

    result = run("with", declare)
    assert (result.total, result.use) == (50, [True] * 50)


def test_a_slow_map_does_not_hold_up_another_one(source: str) -> None:
    rows = Rows(source, 50)
    quick_done = threading.Event()

    def declare(w: weave) -> None:
        rows.declare(w)

        @w.do("rows", workers=1)
        async def quick(row: int) -> int:
            if row == 50:
                quick_done.set()
            return row

        @w.do("rows", workers=1)
        def slow(row: int) -> bool:
            return quick_done.wait(PATIENCE)

    assert run("with", declare).slow == [True] * 50


def test_an_item_that_fails_closes_the_generator(form: str, source: str, kind: str) -> None:
    rows = Rows(source)

    def fail(row: int) -> None:
        if row == 3:
            raise Boom

    def declare(w: weave) -> None:
        rows.declare(w)
        w.do("rows", workers=2)(mapped(kind, fail))

    assert isinstance(attempt(form, declare).error, Boom)
    soon(rows.closed.is_set)
    assert rows.made < 3 + READ_AHEAD


def test_a_task_that_fails_elsewhere_closes_the_generator(source: str, kind: str) -> None:
    rows = Rows(source)
    used = threading.Event()

    def declare(w: weave) -> None:
        rows.declare(w)
        w.do("rows", workers=2)(mapped(kind, lambda row: used.set()))

        @w.do
        def other() -> None:
            assert used.wait(PATIENCE)
            raise Boom

    assert isinstance(attempt("with", declare).error, Boom)
    soon(rows.closed.is_set)


def test_a_timeout_of_an_item_closes_the_generator(source: str) -> None:
    rows = Rows(source)

    def declare(w: weave) -> None:
        rows.declare(w)

        @w.do("rows", workers=2, timeout=0.01)
        async def use(row: int) -> None:
            await asyncio.sleep(PATIENCE)

    assert isinstance(attempt("with", declare).error, TimeoutError)
    soon(rows.closed.is_set)
    assert rows.made <= READ_AHEAD


def test_a_cancelled_weave_closes_the_generator(source: str, kind: str) -> None:
    rows = Rows(source)

    async def main() -> None:
        used = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def block() -> None:
            async with weave() as w:
                rows.declare(w)
                set_used = lambda row: loop.call_soon_threadsafe(used.set)  # noqa: E731
                w.do("rows", workers=2)(mapped(kind, set_used))

        task = asyncio.create_task(block())
        await asyncio.wait_for(used.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    soon(rows.closed.is_set)


def test_a_source_that_is_refused_is_closed_and_has_no_result(source: str, kind: str) -> None:
    """`max_pending` ends the map; an endless generator must not go on for its result alone."""
    rows = Rows(source)

    def declare(w: weave) -> None:
        rows.declare(w)
        w.do("rows")(mapped(kind, lambda row: row))

        @w.do
        def independent() -> int:
            return 1

    done = attempt("with", declare, error_mode="continue", max_pending=10)
    assert isinstance(done.result.use, ValueError)
    assert done.result.cancelled == ("rows",)
    with pytest.raises(TaskCancelledError):
        _ = done.result.rows
    assert done.result.independent == 1
    soon(rows.closed.is_set)
    assert rows.made < 200


def test_a_generator_whose_map_cannot_begin_still_has_its_result(source: str) -> None:
    rows = Rows(source, 20)

    def declare(w: weave) -> None:
        rows.declare(w)

        @w.do
        def broken() -> None:
            raise Boom

        @w.do("rows")
        def use(row: int, broken: None) -> int:
            return row

    done = attempt("with", declare, error_mode="continue")
    assert done.result.rows == list(range(1, 21))
    assert isinstance(done.result.use, Boom)


def test_a_generator_that_waits_holds_no_thread_of_the_weave() -> None:
    """With one thread, the generator and the items take turns."""
    rows = Rows("sync", 50)

    def declare(w: weave) -> None:
        rows.declare(w)
        w.do("rows", workers=4)(mapped("sync", lambda row: row))

    assert run("with", declare, max_workers=1).use == list(range(1, 51))


def test_a_generator_object_is_closed_when_its_map_fails(form: str, kind: str) -> None:
    for source in ("sync", "async"):
        rows = Rows(source)

        def fail(row: int) -> None:
            if row == 3:
                raise Boom

        def declare(w: weave, rows: Rows = rows, fail: Any = fail) -> None:
            w.do(rows.task(), workers=2)(mapped(kind, fail))

        assert isinstance(attempt(form, declare).error, Boom)
        soon(rows.closed.is_set)


def test_a_block_does_not_wait_for_a_generator_that_blocks() -> None:
    release = threading.Event()
    entered = threading.Event()

    def declare(w: weave) -> None:
        @w.do
        def rows() -> Iterator[int]:
            yield 1
            entered.set()
            release.wait(PATIENCE)
            yield 2

        @w.do("rows", workers=2)
        def use(row: int) -> None:
            assert entered.wait(PATIENCE)
            raise Boom

    began = time.monotonic()
    assert isinstance(attempt("with", declare).error, Boom)
    assert time.monotonic() - began < PATIENCE / 2
    release.set()
