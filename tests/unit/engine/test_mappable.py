"""Whatever ``map(fn, items)`` can call, a task can map: here, in another process, and by ``merge``."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

import wove
from wove import UnresolvedSignatureError, merge, weave


@functools.singledispatch
def dispatched(value: Any) -> str:
    return "other"


@dispatched.register
def _(value: int) -> str:
    return f"int {value}"


class Holder:
    @functools.singledispatchmethod
    def dispatched(self, value: Any) -> str:
        return "other"

    @dispatched.register
    def _(self, value: int) -> str:
        return f"int {value}"


class Model:
    """Called, and iterated over its layers."""

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __call__(self, value: int) -> str:
        return f"int {value}"


def plain(value: int) -> str:
    return f"int {value}"


def stars(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


def both_stars(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def renamed(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(item: Any) -> Any:
        return fn(item)

    return wrapper


def unnamed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that says nothing of what it wraps."""
    return lambda *args: fn(*args)


def behind_slash(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(item: Any, /, **kwargs: Any) -> Any:
        return fn(item, **kwargs)

    return wrapper


def beside_stars(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(item: Any, **kwargs: Any) -> Any:
        return fn(item, **kwargs)

    return wrapper


CALLABLES = {
    "singledispatch": dispatched,
    "singledispatchmethod": Holder().dispatched,
    "cached singledispatch": functools.cache(dispatched),
    "wrapped singledispatch": both_stars(dispatched),
    "cache": functools.cache(plain),
    "lru_cache": functools.lru_cache(maxsize=2)(plain),
    "*args": stars(plain),
    "*args twice": stars(stars(plain)),
    "*args behind **kwargs": both_stars(stars(plain)),
    "another name": renamed(plain),
    "another name behind **kwargs": both_stars(renamed(plain)),
    "no signature": unnamed(plain),
    "positional only": behind_slash(plain),
    "another name beside **kwargs": beside_stars(plain),
    "callable and iterable": Model(),
    "class": type("Made", (), {"__new__": lambda cls, value: f"int {value}"}),
    "partial": functools.partial(stars(lambda prefix, value: f"{prefix} {value}"), "int"),
    "mock": MagicMock(side_effect=plain),
    "built-in": "int {}".format,
}


# What cannot be pickled, whoever calls it; see tests/unit/protocol.
STAYS_HERE = {
    "mock",
    "class",
    "cache",
    "lru_cache",
    "singledispatchmethod",
    "cached singledispatch",
    "wrapped singledispatch",
}


@pytest.mark.parametrize("fn", CALLABLES.values(), ids=CALLABLES)
def test_what_map_can_call(fn: Callable[..., Any]) -> None:
    assert list(map(fn, [1, 2])) == ["int 1", "int 2"]

    with weave() as w:
        w.do([1, 2])(fn)

        @w.do
        def merged() -> list[str]:
            return merge(fn, [1, 2])

    assert list(w.result) == [["int 1", "int 2"]] * 2


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("name", sorted(set(CALLABLES) - STAYS_HERE))
def test_the_same_in_another_process(name: str) -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    with weave() as w:
        w.do([1, 2], environment="pool")(CALLABLES[name])

        @w.do
        def merged() -> list[str]:
            return merge(CALLABLES[name], [1, 2], environment="pool")

    assert list(w.result) == [["int 1", "int 2"]] * 2


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("environment", ["default", "pool"])
def test_the_item_comes_behind_what_is_needed(environment: str) -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})

    def described(first: str, *rest: int, **more: Any) -> tuple[Any, ...]:
        return first, rest, more

    with weave(first="one") as w:
        w.do([1, 2], environment=environment)(described)

    assert w.result.described == [("one", (1,), {}), ("one", (2,), {})]


def test_a_task_that_is_not_mapped() -> None:
    with weave(value=7) as w:
        w.do(stars(plain))

    assert w.result.plain == "int 7"


def test_an_object_that_can_be_called_and_iterated_is_a_task() -> None:
    with weave(value=1) as w:
        w.do(Model())

    assert w.result.Model == "int 1"

    with pytest.raises(UnresolvedSignatureError, match="'value' of task 'Model'"), weave() as w:
        w.do(Model())


def test_a_class_that_can_be_iterated_is_a_source() -> None:
    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    with weave() as w:

        @w.do(Color)
        def name(color: Color) -> str:
            return color.name

    assert w.result.name == ["RED", "BLUE"]


def test_a_partial_object_has_the_name_that_was_set_on_it() -> None:
    fn = functools.partial(plain, 1)
    fn.__name__ = "first"  # type: ignore[attr-defined]

    with weave() as w:
        w.do(fn)
        w.do(functools.partial(plain, 2))

    assert (w.result.first, w.result.plain) == ("int 1", "int 2")
