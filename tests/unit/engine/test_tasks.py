"""Tasks that are generators: their items stream to those who map over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import weave


class Boom(Exception):
    pass


@pytest.mark.parametrize("mapped", ["sync", "async", "retried"])
def test_items_of_a_generator_are_there_before_it_has_ended(form: str, mapped: str) -> None:
    """The generator waits for what becomes of each item before it makes the next."""
    seen = threading.Semaphore(0)

    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            for i in range(4):
                yield i
                assert seen.acquire(timeout=PATIENCE)

        def each(item: int) -> int:
            seen.release()
            return item * 2

        async def async_each(item: int) -> int:
            return each(item)

        async_each.__name__ = "each"
        w.do("source", retries=int(mapped == "retried"))(async_each if mapped == "async" else each)

        @w.do
        def whole(source: list[int]) -> list[int]:
            return source

    result = run(form, declare)
    assert (result.source, result.each, result.whole) == ([0, 1, 2, 3], [0, 2, 4, 6], [0, 1, 2, 3])


@pytest.mark.parametrize("mapped", ["sync", "async"])
def test_items_of_an_async_generator_are_there_before_it_has_ended(form: str, mapped: str) -> None:
    def declare(w: weave) -> None:
        seen = asyncio.Semaphore(0)
        loops: list[Any] = []

        @w.do
        async def source() -> AsyncIterator[int]:
            loops.append(asyncio.get_running_loop())
            for i in range(4):
                yield i
                async with asyncio.timeout(PATIENCE):
                    await seen.acquire()

        async def each(item: int) -> int:
            seen.release()
            return item * 2

        def sync_each(item: int) -> int:
            loops[0].call_soon_threadsafe(seen.release)
            return item * 2

        sync_each.__name__ = "each"
        w.do("source")(each if mapped == "async" else sync_each)

    result = run(form, declare)
    assert (result.source, result.each) == ([0, 1, 2, 3], [0, 2, 4, 6])


def test_several_maps_over_one_generator_get_all_of_it(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            yield from range(50)

        for i in range(3):
            fn: Any = (lambda item: item) if i % 2 else asynchronous
            fn.__name__ = f"each{i}"
            w.do("source", workers=i + 1)(fn)

        @w.do
        async def last(each0: list[int]) -> int:
            return len(each0)

    async def asynchronous(item: int) -> int:
        return item

    result = run(form, declare)
    assert result.each0 == result.each1 == result.each2 == list(range(50))
    assert result["last"] == 50


def test_a_map_that_names_its_source_sees_the_whole_list(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            yield from range(3)

        @w.do("source")
        def each(item: int, source: list[int]) -> tuple[int, int]:
            return item, len(source)

    assert run(form, declare).each == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("mode", ["raise", "return", "continue"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_generator_that_fails_midway(form: str, mode: str, waits: bool) -> None:
    """What maps over it fails with its exception, and so does what depends on that."""

    def declare(w: weave) -> None:
        first = asyncio.Event()

        @w.do
        async def source() -> AsyncIterator[int]:
            yield 1
            if waits:
                async with asyncio.timeout(PATIENCE):
                    await first.wait()
            raise Boom

        @w.do("source")
        async def each(item: int) -> int:
            first.set()
            return item

        @w.do
        def after(each: list[int]) -> None: ...

    done = attempt(form, declare, error_mode=mode)
    error = done.result.exception
    assert isinstance(error, Boom)
    assert done.error is (error if mode == "raise" else None)
    assert done.result.cancelled == ()
    assert [(failure.task, failure.exception) for failure in done.result.failures] == [
        ("source", error)
    ]
    for name in ("source", "each", "after"):
        if mode == "raise":
            with pytest.raises(Boom) as caught:
                done.result[name]
            assert caught.value is error
        else:
            assert done.result[name] is error
    assert error.__notes__ == ["in task 'source'"]


def test_a_generator_that_fails_and_is_tried_again_gives_nothing_twice(form: str) -> None:
    attempts = 0

    def declare(w: weave) -> None:
        @w.do(retries=2)
        def source() -> Iterator[int]:
            nonlocal attempts
            attempts += 1
            yield 1
            if attempts < 3:
                raise Boom
            yield 2

        @w.do("source")
        def each(item: int) -> int:
            return item * 10

    result = run(form, declare)
    assert (result.source, result.each, attempts) == ([1, 2], [10, 20], 3)


def test_an_item_that_fails_ends_the_generator(form: str) -> None:
    closed = threading.Event()

    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            try:
                yield from range(10**9)
            finally:
                closed.set()

        @w.do("source")
        def each(item: int) -> None:
            raise Boom

    assert isinstance(attempt(form, declare).error, Boom)
    assert closed.wait(PATIENCE)


def test_generators_of_generators(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            yield from range(3)

        @w.do("source")
        def several(item: int) -> Iterator[int]:
            yield from range(item)

        @w.do("several")
        async def lengths(item: list[int]) -> int:
            return len(item)

        @w.do
        async def empty() -> AsyncIterator[int]:
            for i in ():
                yield i

        @w.do("empty")
        def nothing(item: int) -> None: ...

    result = run(form, declare)
    assert (result.several, result.lengths, result.nothing) == ([[], [0], [0, 1]], [0, 1, 2], [])


def test_a_generator_in_a_single_thread_does_not_wait_for_those_who_map_over_it(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            yield from range(20)

        @w.do("source")
        def each(item: int) -> int:
            return item

    assert run(form, declare, max_workers=1).each == list(range(20))


def test_a_streaming_map_waits_for_its_other_inputs(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def source() -> Iterator[int]:
            yield from range(3)

        @w.do
        def factor(source: list[int]) -> int:
            return len(source)

        @w.do("source")
        async def each(item: int, factor: int) -> int:
            return item * factor

    assert run(form, declare).each == [0, 3, 6]
