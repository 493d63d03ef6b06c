"""`w.stream`: the results of a map of a background weave, as they come."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.support.forms import PATIENCE

from wove import TaskCancelledError, WeaveStateError, weave


class Boom(Exception):
    pass


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_results_come_in_order_of_completion_while_the_map_runs(kind: str) -> None:
    gates = [threading.Event() for _ in range(4)]
    gates[3].set()

    with weave(background=True) as w:

        def found(item: int) -> int:
            assert gates[item].wait(PATIENCE)
            return item * 10

        async def found_async(item: int) -> int:
            assert await asyncio.to_thread(gates[item].wait, PATIENCE)
            return item * 10

        found_async.__name__ = "found"
        w.do(range(4))(found if kind == "sync" else found_async)

    seen: list[tuple[int, int]] = []
    for position, value in w.stream("found"):
        seen.append((position, value))
        if position:
            gates[position - 1].set()
    assert seen == [(3, 30), (2, 20), (1, 10), (0, 0)]
    assert w.wait(PATIENCE)
    assert list(w.stream("found")) == seen
    assert list(w.stream("found", ordered=True)) == seen[::-1]


def test_in_the_order_of_the_source() -> None:
    first = threading.Event()

    with weave(background=True) as w:

        @w.do(range(5))
        def found(item: int) -> int:
            if item == 0:
                assert first.wait(PATIENCE)
            elif item == 4:
                first.set()
            return item

    assert list(w.stream("found", ordered=True)) == [(i, i) for i in range(5)]
    assert w.wait(PATIENCE)


def test_async_for_follows_from_another_loop() -> None:
    async def main() -> None:
        gates = [threading.Event() for _ in range(3)]
        gates[0].set()

        with weave(background=True) as w:

            @w.do(range(3), workers=1)
            def found(item: int) -> int:
                assert gates[item].wait(PATIENCE)
                return item

            @w.do("found")
            async def after(item: int) -> int:
                return item + 1

        seen: list[tuple[int, int]] = []
        async with asyncio.timeout(PATIENCE):
            async for position, value in w.stream("after"):
                seen.append((position, value))
                if position < 2:
                    gates[position + 1].set()
        assert seen == [(0, 1), (1, 2), (2, 3)]
        assert w.wait(PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["raise", "return", "continue"])
@pytest.mark.parametrize("ordered", [False, True])
def test_it_ends_with_the_exception_of_the_map(mode: Any, ordered: bool) -> None:
    done = threading.Event()

    with weave(background=True, error_mode=mode, on_done=lambda _: done.set()) as w:

        @w.do(range(4), workers=1)
        def found(item: int) -> int:
            if item == 2:
                raise Boom
            return item

    seen: list[int] = []
    with pytest.raises(Boom):
        for position, _ in w.stream("found", ordered=ordered):
            seen.append(position)
    assert seen == ([0, 1, 3] if mode == "continue" else [0, 1])
    assert done.wait(PATIENCE)
    assert w.wait(PATIENCE)


def test_a_map_that_never_ran_ends_it_too() -> None:
    done = threading.Event()

    with weave(background=True, on_done=lambda _: done.set()) as w:

        @w.do
        def broken() -> list[int]:
            raise Boom

        @w.do("broken")
        def found(item: int) -> int:
            return item

        @w.do(range(2))
        async def beside(item: int, slow: int) -> int:
            return item

        @w.do
        async def slow() -> int:
            await asyncio.sleep(PATIENCE)
            return 1

    with pytest.raises(Boom):
        list(w.stream("found"))
    with pytest.raises(TaskCancelledError):
        list(w.stream("beside"))
    assert done.wait(PATIENCE)
    assert w.wait(PATIENCE)


def test_an_iteration_that_is_left_early_holds_up_nothing() -> None:
    with weave(background=True) as w:

        @w.do(range(50))
        async def found(item: int) -> int:
            return item

    for _ in w.stream("found"):
        break
    assert w.wait(PATIENCE)
    assert w.result.found == list(range(50))


def test_what_cannot_be_followed_is_refused() -> None:
    with weave() as w:

        @w.do([1])
        def found(item: int) -> int:
            return item

    with pytest.raises(WeaveStateError, match="background=True"):
        w.stream("found")

    with weave(background=True) as other:
        with pytest.raises(WeaveStateError, match="after its block"):
            other.stream("found")

        @other.do([1])
        def kept(item: int) -> int:
            return item

        @other.do([1], keep=False)
        def unkept(item: int) -> int:
            return item

        @other.do
        def plain() -> int:
            return 1

    for name in ("unkept", "plain", "keept"):
        with pytest.raises(ValueError, match=r"w\.stream: .*There are: kept"):
            other.stream(name)
    assert other.wait(PATIENCE)
