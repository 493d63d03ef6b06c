"""What a callable takes, and what calling it gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock

import pytest

from wove.graph.signature import Kind, Signature, kind_of, name_of, read


def names(fn: Callable[..., Any], *, mapped: bool = False) -> tuple[str, ...]:
    return read(fn, mapped=mapped).names


def plain(a: int, b: int = 1, *args: int, c: int, d: int = 2, **kwargs: int) -> None: ...


async def coroutine(a: int) -> None: ...


def generator(a: int) -> Iterator[int]:
    yield a


async def async_generator(a: int) -> AsyncIterator[int]:
    yield a


class Owner:
    def method(self, a: int) -> None: ...

    async def async_method(self, a: int) -> None: ...

    @classmethod
    def class_method(cls, a: int) -> None: ...

    @staticmethod
    def static_method(a: int) -> None: ...

    def star_method(*args: Any) -> None: ...  # type: ignore[misc]

    def slashed(self, a: int, /, b: int) -> None: ...


class Called:
    def __call__(self, a: int) -> None: ...


class AsyncCalled:
    async def __call__(self, a: int) -> None: ...


class GeneratorCalled:
    def __call__(self, a: int) -> Iterator[int]:
        yield a


class AsyncGeneratorCalled:
    async def __call__(self, a: int) -> AsyncIterator[int]:
        yield a


def test_star_parameters_are_no_parameters() -> None:
    signature = read(plain, mapped=False)
    assert signature.names == ("a", "b", "c", "d")
    assert signature.defaults == {"b", "d"}
    assert signature.positional_only == 0


@pytest.mark.parametrize(
    "fn",
    [
        coroutine,
        generator,
        async_generator,
        Owner().method,
        Owner().async_method,
        Owner.class_method,
        Owner().class_method,
        Owner.static_method,
        vars(Owner)["static_method"],
        Called(),
        AsyncCalled(),
        lambda a: a,
        functools.partial(lambda z, a: None, 1),
        functools.partial(lambda a, z: None, z=1),
        functools.partial(functools.partial(lambda z, y, a: None, 1), 2),
        functools.partial(Owner().method),
        functools.wraps(coroutine)(lambda *args, **kwargs: None),
        functools.lru_cache(lambda a: a),
    ],
)
def test_callables_of_every_kind_tell_their_parameters(fn: Callable[..., Any]) -> None:
    assert names(fn) == ("a",)


def test_a_method_that_takes_only_stars_has_no_parameters() -> None:
    assert names(Owner().star_method) == ()


def test_self_does_not_count_among_the_positional_only() -> None:
    signature = read(Owner().slashed, mapped=False)
    assert (signature.names, signature.positional_only, signature.positional) == (("a", "b"), 1, 2)


def test_a_value_bound_by_name_is_no_parameter() -> None:
    assert names(functools.partial(plain, b=2)) == ("a", "c", "d")


def test_parameters_behind_one_bound_by_name_are_passed_by_name() -> None:
    signature = read(functools.partial(lambda a, b, c: None, b=1), mapped=False)
    assert signature.names == ("a", "c")
    assert signature.positional < 2


def test_a_class_takes_what_its_init_takes() -> None:
    class Point:
        def __init__(self, x: int, y: int = 0) -> None: ...

    signature = read(Point, mapped=False)
    assert signature.names == ("x", "y")
    assert signature.defaults == {"y"}


def test_an_explicit_signature_counts() -> None:
    def fn(*args: Any) -> None: ...

    fn.__signature__ = inspect.signature(coroutine)  # type: ignore[attr-defined]
    assert names(fn) == ("a",)


def test_a_built_in_without_a_signature_takes_one_item_when_mapped() -> None:
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(min)
    assert names(min, mapped=True) == ("item",)
    with pytest.raises(TypeError, match="'min' does not tell its parameters"):
        read(min, mapped=False)


def test_a_built_in_with_a_signature_tells_it() -> None:
    signature = read(len, mapped=False)
    assert (signature.names, signature.positional_only) == (("obj",), 1)


@pytest.mark.parametrize("fn", [plain, Owner().method, Called(), len, functools.partial(plain, 1)])
def test_it_agrees_with_inspect(fn: Callable[..., Any]) -> None:
    signature = read(fn, mapped=False)
    named = {
        n: p
        for n, p in inspect.signature(fn).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    assert signature.names == tuple(named)
    assert signature.defaults == {n for n, p in named.items() if p.default is not p.empty}
    assert signature.positional_only == sum(p.kind is p.POSITIONAL_ONLY for p in named.values())


def test_defaults_of_positional_only_parameters_are_kept() -> None:
    def fn(a: int, b: int = 7, c: int = 8, /) -> None: ...

    signature: Signature = read(fn, mapped=False)
    assert signature.positional_only == 3
    assert {name: (signature.default_of or {})[name] for name in ("b", "c")} == {"b": 7, "c": 8}


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (plain, Kind.SYNC),
        (lambda: None, Kind.SYNC),
        (len, Kind.SYNC),
        (Owner, Kind.SYNC),
        (AsyncCalled, Kind.SYNC),  # to call the class makes an instance
        (Called(), Kind.SYNC),
        (coroutine, Kind.ASYNC),
        (Owner().async_method, Kind.ASYNC),
        (functools.partial(coroutine, 1), Kind.ASYNC),
        (functools.partial(Owner().async_method), Kind.ASYNC),
        (AsyncCalled(), Kind.ASYNC),
        (functools.partial(AsyncCalled()), Kind.ASYNC),
        (AsyncMock(), Kind.ASYNC),
        (generator, Kind.GENERATOR),
        (functools.partial(generator, 1), Kind.GENERATOR),
        (GeneratorCalled(), Kind.GENERATOR),
        (async_generator, Kind.ASYNC_GENERATOR),
        (functools.partial(async_generator, 1), Kind.ASYNC_GENERATOR),
        (AsyncGeneratorCalled(), Kind.ASYNC_GENERATOR),
        # What a wrapper gives is seen when it is called.
        (functools.wraps(coroutine)(lambda a: coroutine(a)), Kind.SYNC),
    ],
)
def test_kinds(fn: Callable[..., Any], kind: Kind) -> None:
    assert kind_of(fn) is kind


def test_attributes_of_a_function_do_not_change_its_kind() -> None:
    async def marked() -> None: ...

    marked.note = "a decorator was here"  # type: ignore[attr-defined]
    assert kind_of(marked) is Kind.ASYNC


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="Python 3.12")
def test_a_function_marked_as_a_coroutine_function_is_one() -> None:
    assert kind_of(inspect.markcoroutinefunction(lambda: coroutine(1))) is Kind.ASYNC  # type: ignore[attr-defined, unused-ignore]


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (plain, "plain"),
        (functools.partial(functools.partial(plain, 1), c=2), "plain"),
        (Owner().method, "method"),
        (Called(), "Called"),
        (Called, "Called"),
        (functools.wraps(plain)(lambda *args: None), "plain"),
        (len, "len"),
        (lambda: None, "<lambda>"),
        (AsyncMock(), "AsyncMock"),
    ],
)
def test_a_task_gets_its_name_from_its_callable(fn: Callable[..., Any], name: str) -> None:
    assert name_of(fn) == name
