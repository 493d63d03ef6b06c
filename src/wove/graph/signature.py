"""What a callable takes, read once, without calling it."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

__all__ = ["Kind", "Signature", "describe", "kind_of", "name_of", "read"]


class Kind(enum.Enum):
    """What calling a task's callable gives."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


class Signature:
    """The parameters of a callable that a value can be given to, in order.

    Attributes:
        names: Every parameter but ``*args`` and ``**kwargs``.
        defaults: Those that have a default.
        positional_only: How many of the first ones cannot be given by name.
        positional: How many of the first ones can be given by position.
        default_of: The default values of the positional-only ones, to fill a gap before a given one.
    """

    __slots__ = ("default_of", "defaults", "names", "positional", "positional_only")

    def __init__(
        self,
        names: tuple[str, ...],
        defaults: frozenset[str],
        positional_only: int,
        positional: int,
        default_of: dict[str, Any] | None = None,
    ) -> None:
        self.names = names
        self.defaults = defaults
        self.positional_only = positional_only
        self.positional = positional
        self.default_of = default_of


REMEMBERED = 4096
"""How many signatures are kept for the next run of the same block."""

_NONE: frozenset[str] = frozenset()
_EMPTY = Signature((), _NONE, 0, 0)
_ONE_ITEM = Signature(("item",), _NONE, 1, 1)

_KINDS = {
    0: Kind.SYNC,
    inspect.CO_GENERATOR: Kind.GENERATOR,
    inspect.CO_COROUTINE: Kind.ASYNC,
    inspect.CO_ASYNC_GENERATOR: Kind.ASYNC_GENERATOR,
}
_KIND_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


_described: dict[int, tuple[CodeType, tuple[Signature, Kind]]] = {}


def describe(fn: Callable[..., Any], *, mapped: bool) -> tuple[Signature, Kind]:
    """What *fn* takes (`read`) and what calling it gives (`kind_of`)."""
    if type(fn) is not FunctionType or fn.__dict__ or fn.__defaults__ or fn.__kwdefaults__:
        return read(fn, mapped=mapped), kind_of(fn)
    # A block that is run again declares other functions with the same code, which say the same.
    code = fn.__code__
    known = _described.get(id(code))  # the hash of a code object costs more than all the rest
    if known is not None and known[0] is code:
        return known[1]
    if len(_described) >= REMEMBERED:
        _described.clear()
    described = read(fn, mapped=mapped), kind_of(fn)
    _described[id(code)] = code, described
    return described


def read(fn: Callable[..., Any], *, mapped: bool) -> Signature:
    """The signature of *fn*.

    A built-in that does not tell its signature takes one item when *mapped*.

    Raises:
        TypeError: *fn* does not tell its signature and is not mapped.
    """
    # `inspect.signature` costs some 10 us; a weave of a thousand tasks reads a thousand of them.
    if type(fn) is FunctionType:
        if not _disguised(fn):
            return _read_function(fn, 0)
    elif isinstance(fn, MethodType):
        function: object = fn.__func__
        if type(function) is FunctionType and not _disguised(function):
            return _read_function(function, 1)
    return _read_any(fn, mapped)


def _disguised(fn: FunctionType) -> bool:
    """Whether *fn* shows another signature than its own."""
    return bool(fn.__dict__) and ("__wrapped__" in fn.__dict__ or "__signature__" in fn.__dict__)


def _read_function(fn: FunctionType, skip: int) -> Signature:
    code = fn.__code__
    positional = code.co_argcount
    if skip and not positional:  # def method(*args)
        skip = 0
    names = code.co_varnames[skip : positional + code.co_kwonlyargcount]
    if not names:
        return _EMPTY
    defaults = _NONE
    default_of = None
    if fn.__defaults__ or fn.__kwdefaults__:
        given = fn.__defaults__ or ()
        optional = code.co_varnames[positional - len(given) : positional]
        defaults = frozenset((*optional, *(fn.__kwdefaults__ or ())))
        if code.co_posonlyargcount:
            default_of = dict(zip(optional, given, strict=True))
    return Signature(
        names, defaults, max(0, code.co_posonlyargcount - skip), positional - skip, default_of
    )


def _read_any(fn: Callable[..., Any], mapped: bool) -> Signature:
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:
        if mapped:
            return _ONE_ITEM
        raise TypeError(
            f"{name_of(fn)!r} does not tell its parameters; declare a function that calls it"
        ) from None
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    names: list[str] = []
    default_of: dict[str, Any] = {}
    positional_only = 0
    positional = 0
    for name, parameter in parameters.items():
        if name in bound or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        names.append(name)
        if parameter.default is not parameter.empty:
            default_of[name] = parameter.default
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional_only += 1
    # By name wherever that is possible: a wrapper that shows another function's signature
    # need not take its parameters in the same places.
    positional = positional_only
    return Signature(tuple(names), frozenset(default_of), positional_only, positional, default_of)


def kind_of(fn: Callable[..., Any]) -> Kind:
    """What calling *fn* gives, as far as *fn* tells beforehand."""
    if type(fn) is FunctionType and not fn.__dict__:
        return _KINDS[fn.__code__.co_flags & _KIND_FLAGS]
    target: Any = fn
    while isinstance(target, functools.partial):
        target = target.func
    kind = cast("type[object]", type(target))
    for candidate in (target, getattr(kind, "__call__", None)):
        if inspect.iscoroutinefunction(candidate):
            return Kind.ASYNC
        if inspect.isasyncgenfunction(candidate):
            return Kind.ASYNC_GENERATOR
        if inspect.isgeneratorfunction(candidate):
            return Kind.GENERATOR
    return Kind.SYNC


def name_of(fn: Callable[..., Any]) -> str:
    """The name a task gets from its callable."""
    if type(fn) is FunctionType:
        return fn.__name__
    target: Any = fn
    while isinstance(target, functools.partial):
        target = target.func
    name = getattr(target, "__name__", None)
    return name if isinstance(name, str) else type(target).__name__
