"""From a node of the plan and the values there are to a call that can be made, here or elsewhere."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from wove.engine.binding import call_here, call_now, item_call, names_elsewhere, portable
from wove.graph.plan import Declaration, Node, plan

VALUES = {"a": 1, "b": 2, "c": 3}


def node(fn: Callable[..., Any], *, mapped: bool = False) -> Node:
    made = plan(
        {"task": Declaration(fn, {}, [0] if mapped else None, mapped=mapped, name="task")}, VALUES
    )
    assert made.error is None
    return made.nodes[0]


def plain(a: Any, b: Any) -> Any:
    return a, b


def defaults(a: Any, x: Any = 8, b: Any = 9) -> Any:
    return a, x, b


def keywords(*, a: Any, x: Any = 8) -> Any:
    return a, x


def slashed(a: Any, x: Any = 8, b: Any = 9, /, y: Any = 7, c: Any = 6) -> Any:
    return a, x, b, y, c


def starred(a: Any, *args: Any, b: Any = 0, **kwargs: Any) -> Any:
    return a, args, b, kwargs


def nothing() -> Any:
    return ()


def self_named(a: Any, fn: Any = 5) -> Any:
    return a, fn


CASES = [
    (plain, (1, 2)),
    (defaults, (1, 8, 2)),
    (keywords, (1, 8)),
    (slashed, (1, 8, 2, 7, 3)),
    (starred, (1, (), 2, {})),
    (nothing, ()),
    (self_named, (1, 5)),
]


@pytest.mark.parametrize(("fn", "expected"), CASES)
def test_a_call_here(fn: Callable[..., Any], expected: Any) -> None:
    assert call_here(node(fn), VALUES)() == expected
    assert call_now(node(fn), VALUES) == expected


@pytest.mark.parametrize(("fn", "expected"), CASES)
def test_a_call_elsewhere_goes_by_name_alone(fn: Callable[..., Any], expected: Any) -> None:
    made = node(fn)
    declaration = made.declaration
    call = portable(declaration.fn, declaration.kind, declaration.signature)
    assert call(**names_elsewhere(made, VALUES)) == expected


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda item: item, "I"),
        (lambda item, a: (item, a), ("I", 1)),
        (lambda a, item, b: (a, item, b), (1, "I", 2)),
        (lambda a, b, item: (a, b, item), (1, 2, "I")),
        (lambda a, *, item: (a, item), (1, "I")),
        (lambda *, b, item, a: (a, item, b), (1, "I", 2)),
        (lambda a, item, /, b: (a, item, b), (1, "I", 2)),
        (lambda item, /, *, b: (item, b), ("I", 2)),
        (lambda item=5: item, "I"),
        (lambda a, x=8, /: (a, x), (1, "I")),
        (lambda x=8, a=9, /: (x, a), ("I", 1)),
        (lambda self, a: (self, a), ("I", 1)),
        (len, 1),
        (str, "I"),
    ],
)
def test_a_call_per_item(fn: Callable[..., Any], expected: Any) -> None:
    made = node(fn, mapped=True)
    assert item_call(made, VALUES, local=True).invoke("I") == expected
    declaration = made.declaration
    call = portable(declaration.fn, declaration.kind, declaration.signature)
    if fn is not str:  # it has no name for what it takes
        assert call(**names_elsewhere(made, VALUES), **{made.item or "": "I"}) == expected


def test_generators_travel_as_lists() -> None:
    def generator(a: Any) -> Iterator[Any]:
        yield a
        yield a + 1

    async def async_generator(a: Any, /) -> AsyncIterator[Any]:
        yield a
        yield a + 1

    for fn in (generator, async_generator):
        declaration = node(fn).declaration
        call = pickle.loads(
            cloudpickle.dumps(portable(fn, declaration.kind, declaration.signature))
        )
        value = call(a=1)
        assert (asyncio.run(value) if asyncio.iscoroutine(value) else value) == [1, 2]


def test_what_needs_nothing_special_travels_as_it_is() -> None:
    declaration = node(plain).declaration
    assert portable(plain, declaration.kind, declaration.signature) is plain
