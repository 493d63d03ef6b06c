"""What `map` can call can be mapped: by position where the item's name does not fit, here and elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from wove import config, merge, weave


def only_positional(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


def renaming(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(anything: Any) -> Any:
        return fn(anything)

    return wrapper


def looking(fn: Callable[..., Any]) -> Callable[..., Any]:
    """As a cache of one's own: it passes on what it gets, and looks at the first argument."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        assert args
        return fn(*args, **kwargs)

    return wrapper


def only_named(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(**kwargs: Any) -> Any:
        return fn(**kwargs)

    return wrapper


def bare(fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


class Memo:
    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args)


def double(n: int) -> int:
    return 2 * n


def positional(n: int, /) -> int:
    return 2 * n


def many(*numbers: int) -> int:
    return 2 * sum(numbers)


@functools.singledispatch
def dispatching(value: object) -> int:
    raise AssertionError("no integer")


@dispatching.register
def _(value: int) -> int:
    return 2 * value


class Doubler:
    def __call__(self, n: int) -> int:
        return 2 * n

    def method(self, n: int) -> int:
        return 2 * n

    @only_positional
    def wrapped(self, n: int) -> int:
        return 2 * n


CALLABLES: dict[str, Callable[..., Any]] = {
    "function": double,
    "positional-only": positional,
    "*args": many,
    "wrapper(*args)": only_positional(double),
    "wrapper(other)": renaming(double),
    "wrapper(*args, **kwargs)": looking(double),
    "wrapper(**kwargs)": only_named(double),
    "without wraps": bare(double),
    "two wrappers": looking(renaming(double)),
    "wrapper of a cache": only_positional(functools.cache(double)),
    "cache": functools.cache(double),
    "lru_cache": functools.lru_cache(maxsize=2)(double),
    "cache of a wrapper": functools.cache(renaming(double)),
    "class as decorator": Memo(double),
    "singledispatch": dispatching,
    "partial": functools.partial(lambda factor, n: factor * n, 2),
    "partial by name": functools.partial(lambda n, factor: factor * n, factor=2),
    "partial of a wrapper": functools.partial(only_positional(lambda factor, n: factor * n), 2),
    "instance": Doubler(),
    "method": Doubler().method,
    "wrapped method": Doubler().wrapped,
    "bound built-in": (2).__mul__,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_what_map_calls_is_mapped(name: str) -> None:
    fn = CALLABLES[name]
    if name != "wrapper(**kwargs)":  # which map() cannot call
        assert list(map(fn, [1, 2])) == [2, 4]
    with weave() as w:
        w.do([1, 2])(fn)
    assert w.result.final == [2, 4]


# A cached function travels by its name alone, and these do not stand under it.
@pytest.mark.parametrize("name", [name for name in CALLABLES if "cache" not in name])
def test_what_map_calls_is_mapped_elsewhere(name: str) -> None:
    config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    fn = CALLABLES[name]
    with weave() as w:
        w.do([1, 2], environment="pool")(fn)

        @w.do
        def merged() -> list[int]:
            return merge(fn, [3], environment="pool")

    assert list(w.result) == [[2, 4], [6]]


@pytest.mark.parametrize("decorate", [only_positional, renaming, Memo])
def test_a_wrapper_of_a_task_that_is_not_mapped(decorate: Callable[..., Any]) -> None:
    with weave(n=4) as w:
        w.do(decorate(double))
    assert w.result.double == 8


def test_dependencies_and_the_item_go_by_position_together() -> None:
    def add(first: int, item: int, last: int = 100) -> int:
        return first + item + last

    def rest(first: int, *items: int) -> tuple[int, ...]:
        return (first, *items)

    with weave(first=10) as w:
        w.do([1, 2])(only_positional(add))
        w.do([1, 2])(rest)
    assert w.result["add"] == [111, 112]
    assert w.result["rest"] == [(10, 1), (10, 2)]


def test_a_partial_is_named_as_it_says() -> None:
    fn = functools.partial(double, 3)
    fn.__name__ = "six"  # type: ignore[attr-defined]
    with weave() as w:
        w.do(fn)
    assert w.result.six == 6
