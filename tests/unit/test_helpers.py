"""The helpers: shapes of data, and sync code in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.helpers import batch, denone, flatten, fold, redict, sync_to_async, undict


def stream(*items: Any) -> Iterator[Any]:
    yield from items


# ------------------------------------------------------------------ flatten


@pytest.mark.parametrize(
    ("items", "flat"),
    [
        ([[1], [2, 3]], [1, 2, 3]),
        ([], []),
        ([[], [1], []], [1]),
        ([[1, [2]], [[3]]], [1, [2], [3]]),
        (stream(stream(1), range(2, 4), {4}), [1, 2, 3, 4]),
        (["ab", ["cd"]], ["ab", "cd"]),
        ([b"ab", bytearray(b"c")], [b"ab", bytearray(b"c")]),
        ([{"a": 1}, [{"b": 2}]], [{"a": 1}, {"b": 2}]),
        ([1, [2], None], [1, 2, None]),
        ({"a": 1}.items(), ["a", 1]),
    ],
)
def test_flatten(items: Any, flat: list[Any]) -> None:
    assert flatten(items) == flat


# ------------------------------------------------------------------ fold, batch


@pytest.mark.parametrize(
    ("items", "size", "folded"),
    [
        ([1, 2, 3, 4, 5], 2, [[1, 2], [3, 4], [5]]),
        ([1, 2], 2, [[1, 2]]),
        ([1], 5, [[1]]),
        ([], 3, []),
        ("abc", 2, [["a", "b"], ["c"]]),
        (stream(1, 2, 3), 1, [[1], [2], [3]]),
        ({"a": 1, "b": 2}, 2, [["a", "b"]]),
    ],
)
def test_fold(items: Any, size: int, folded: list[list[Any]]) -> None:
    assert fold(items, size) == folded


@pytest.mark.parametrize(
    ("items", "count", "batched"),
    [
        ([1, 2, 3, 4, 5], 2, [[1, 2, 3], [4, 5]]),
        ([1, 2, 3, 4, 5], 3, [[1, 2], [3, 4], [5]]),
        ([1, 2], 5, [[1], [2]]),
        ([], 3, []),
        (stream(1, 2, 3, 4), 1, [[1, 2, 3, 4]]),
    ],
)
def test_batch(items: Any, count: int, batched: list[list[Any]]) -> None:
    assert batch(items, count) == batched


@given(items=st.lists(st.integers()), number=st.integers(1, 50))
def test_fold_and_batch_lose_nothing(items: list[int], number: int) -> None:
    folded, batched = fold(items, number), batch(iter(items), number)
    assert flatten(folded) == flatten(batched) == items
    assert all(len(part) == number for part in folded[:-1])
    assert len(batched) == min(number, len(items))
    sizes = {len(part) for part in batched}
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert 0 not in sizes


class Three:
    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize("cut", [fold, batch])
def test_sizes(cut: Callable[[Any, Any], Any]) -> None:
    assert len(cut(range(9), Three())) == 3
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{cut.__name__}: .* must be at least 1, not {value}"):
            cut([1], value)
    for wrong in (True, False, 2.0, "2", None):
        with pytest.raises(
            TypeError, match=f"{cut.__name__}: .* must be a whole number, not {wrong!r}"
        ):
            cut([1], wrong)


ON_ANYTHING: dict[str, Callable[[Any], object]] = {
    "flatten": flatten,
    "fold": functools.partial(fold, size=2),
    "batch": functools.partial(batch, count=2),
    "redict": redict,
    "denone": denone,
}


@pytest.mark.parametrize("name", ON_ANYTHING)
def test_not_iterable(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: an iterable is needed, not int"):
        ON_ANYTHING[name](3)


def test_an_exception_of_the_source_comes_out_as_it_is() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise TypeError("mine")

    for name, call in ON_ANYTHING.items():
        with pytest.raises(TypeError, match=r"^mine$"):
            call(broken() if name != "redict" else ((item, item) for item in broken()))


# ------------------------------------------------------------------ undict, redict, denone


def test_undict_and_redict() -> None:
    numbers = {1: 2}
    assert undict({"a": 1, "b": None}) == [("a", 1), ("b", None)]
    assert undict(MappingProxyType(numbers)) == [(1, 2)]
    assert redict(stream(("a", 1), ["b", 2], ("a", 3))) == {"a": 3, "b": 2}
    assert redict([]) == {}


@given(st.dictionaries(st.text(), st.integers()))
def test_redict_turns_undict_back(mapping: dict[str, int]) -> None:
    assert redict(undict(mapping)) == mapping
    assert list(redict(undict(mapping))) == list(mapping)


def test_undict_needs_a_mapping() -> None:
    with pytest.raises(TypeError, match="undict: a mapping is needed, such as a dict, not list"):
        undict([("a", 1)])  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [1, "ab", b"ab", (1,), (1, 2, 3), None])
def test_redict_needs_pairs(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"redict: item 1 is not a \(key, value\) pair: "):
        redict([("a", 1), pair])


def test_redict_keys_need_a_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        redict([([], 1)])


def test_denone_keeps_other_false_values() -> None:
    assert denone(stream(None, 0, "", [], False, None, 1)) == [0, "", [], False, 1]


# ------------------------------------------------------------------ sync_to_async

number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


def test_it_runs_in_a_thread_with_arguments_and_context() -> None:
    def work(a: int, *, b: int) -> tuple[int, int, int]:
        seen = number.get()
        number.set(99)
        return a + b, seen, threading.get_ident()

    async def main() -> None:
        number.set(7)
        total, seen, ident = await sync_to_async(work)(1, b=2)
        assert (total, seen) == (3, 7)
        assert ident != threading.get_ident()
        assert number.get() == 7

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile() -> None:
    async def main() -> float:
        begun = time.monotonic()
        await asyncio.gather(*(sync_to_async(time.sleep)(0.2) for _ in range(20)))
        return time.monotonic() - begun

    assert asyncio.run(main()) < 2


def test_it_keeps_name_doc_and_signature() -> None:
    def work(a: int, b: str = "x") -> None:
        """Does it."""

    wrapped = sync_to_async(work)
    assert inspect.iscoroutinefunction(wrapped)
    assert (wrapped.__name__, wrapped.__doc__) == ("work", "Does it.")
    assert inspect.signature(wrapped) == inspect.signature(work)


def test_coroutine_functions_come_back_unchanged() -> None:
    async def work() -> int:
        return 1

    class Work:
        async def __call__(self) -> int:
            return 1

        async def method(self) -> int:
            return 1

    held = Work()
    bound = held.method
    partial = functools.partial(work)
    assert sync_to_async(work) is work
    assert sync_to_async(held) is held
    assert sync_to_async(bound) is bound
    assert sync_to_async(partial) is partial
    # The class itself is a sync callable, whatever its objects are.
    made = sync_to_async(Work)
    assert isinstance(asyncio.run(made()), Work)


def test_what_can_be_awaited_is_awaited() -> None:
    async def work(value: int) -> int:
        return value

    def wrapper(value: int) -> Any:
        return work(value)

    assert asyncio.run(sync_to_async(wrapper)(3)) == 3
    assert asyncio.run(sync_to_async(lambda: work(4))()) == 4


def test_methods_partials_and_builtins() -> None:
    class Counter:
        total = 0

        @sync_to_async
        def add(self, amount: int) -> int:
            self.total += amount
            return self.total

    assert asyncio.run(Counter().add(2)) == 2
    assert asyncio.run(sync_to_async(functools.partial(pow, 2))(5)) == 32
    assert asyncio.run(sync_to_async(len)("abc")) == 3


class Failure(Exception):
    pass


def test_the_exception_is_the_object_that_was_raised() -> None:
    raised = Failure("x")

    def work() -> None:
        raise raised

    with pytest.raises(Failure) as caught:
        asyncio.run(sync_to_async(work)())
    assert caught.value is raised
    assert caught.traceback[-1].name == "work"


def test_stop_iteration_neither_hangs_nor_vanishes() -> None:
    empty: list[int] = []
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        asyncio.run(asyncio.wait_for(sync_to_async(lambda: next(iter(empty)))(), 5))
    assert isinstance(caught.value.__cause__, StopIteration)


def test_system_exit_reaches_the_caller() -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        with pytest.raises(SystemExit) as stopped:
            await sync_to_async(leave)()
        assert stopped.value.code == 3

    asyncio.run(main())


def test_a_cancelled_caller_does_not_wait() -> None:
    release = threading.Event()

    async def main() -> float:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sync_to_async(release.wait)(10)
        return time.monotonic() - begun

    try:
        assert asyncio.run(main()) < 2
    finally:
        release.set()


def test_a_failure_holds_nothing_in_a_cycle() -> None:
    class Held(Exception):
        pass

    def work() -> None:
        raise Held

    async def main() -> weakref.ref[Held]:
        try:
            await sync_to_async(work)()
        except Held as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        kept = asyncio.run(main())
        deadline = time.monotonic() + 2  # its thread may be a moment behind
        while kept() is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("value", [None, 3, "work"])
def test_a_callable_is_needed(value: Any) -> None:
    with pytest.raises(TypeError, match="sync_to_async: a callable is needed"):
        sync_to_async(value)
