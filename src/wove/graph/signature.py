"""Reads the parameters of callables, without calling them."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, cast

__all__ = ["ITEM", "Kind", "Signature", "describe", "kind_of", "name_of", "read"]

ITEM: Final = "*item"
"""The name of an item that goes to the ``*args`` of a callable. No parameter can have this name."""


class Kind(enum.Enum):
    """The kinds of results of a task's callable."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


class Signature:
    """The parameters of a callable that can be given a value, in order.

    Attributes:
        names: Every parameter but ``*args`` and ``**kwargs``.
        defaults: The names of those that have a default.
        positional_only: How many of the first parameters cannot be given by name.
        positional: How many of the first parameters can be given by position.
        default_of: The default values of the positional-only parameters, to fill a gap before a given one.
        variadic: Whether there is a ``*args``, which can take the item of a map.
    """

    __slots__ = ("default_of", "defaults", "names", "positional", "positional_only", "variadic")

    def __init__(
        self,
        names: tuple[str, ...],
        defaults: frozenset[str],
        positional_only: int,
        positional: int,
        default_of: dict[str, Any] | None = None,
        *,
        variadic: bool = False,
    ) -> None:
        self.names = names
        self.defaults = defaults
        self.positional_only = positional_only
        self.positional = positional
        self.default_of = default_of
        self.variadic = variadic


MAX_WRAPPERS: Final = 100
"""Maximum number of wrappers that are followed, because an object may say that it wraps itself."""

REMEMBERED = 4096
"""Maximum number of signatures that are kept for the next run of the same block."""

_NONE: frozenset[str] = frozenset()
_EMPTY = Signature((), _NONE, 0, 0)
_ONLY_VARIADIC = Signature((), _NONE, 0, 0, variadic=True)
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
    """Return the parameters of *fn* (`read`), and the kind of result that calling it has (`kind_of`)."""
    if type(fn) is not FunctionType or fn.__dict__ or fn.__defaults__ or fn.__kwdefaults__:
        return read(fn, mapped=mapped), kind_of(fn)
    # A block that is run again declares new functions with the same code.
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
    """Return the signature of *fn*.

    A built-in without a signature is taken to have one parameter, for the item, when *mapped*.

    Raises:
        TypeError: *fn* has no signature that can be read, and is not mapped.
    """
    # `inspect.signature` costs some 10 us, and a weave of a thousand tasks reads a thousand signatures.
    if type(fn) is FunctionType:
        if not _disguised(fn):
            return _read_function(fn, 0)
    elif isinstance(fn, MethodType):
        function: object = fn.__func__
        if type(function) is FunctionType and not _disguised(function):
            return _read_function(function, 1)

    return _read_any(fn, mapped)


def _disguised(fn: FunctionType) -> bool:
    """Return whether *fn* shows another signature than its own."""
    return bool(fn.__dict__) and ("__wrapped__" in fn.__dict__ or "__signature__" in fn.__dict__)


def _read_function(fn: FunctionType, skip: int) -> Signature:
    code = fn.__code__
    positional = code.co_argcount
    if skip and not positional:  # def method(*args)
        skip = 0
    names = code.co_varnames[skip : positional + code.co_kwonlyargcount]
    variadic = bool(code.co_flags & inspect.CO_VARARGS)
    if not names:
        return _ONLY_VARIADIC if variadic else _EMPTY

    defaults = _NONE
    default_of = None

    if fn.__defaults__ or fn.__kwdefaults__:
        given = fn.__defaults__ or ()
        optional = code.co_varnames[positional - len(given) : positional]
        defaults = frozenset((*optional, *(fn.__kwdefaults__ or ())))
        if code.co_posonlyargcount:
            default_of = dict(zip(optional, given, strict=True))

    return Signature(
        names,
        defaults,
        max(0, code.co_posonlyargcount - skip),
        positional - skip,
        default_of,
        variadic=variadic,
    )


def _read_any(fn: Callable[..., Any], mapped: bool) -> Signature:
    try:
        parameters = dict(inspect.signature(fn).parameters)
    except ValueError:
        if mapped:
            return _ONE_ITEM
        raise TypeError(
            f"{name_of(fn)!r} does not tell its parameters; declare a function that calls it"
        ) from None

    if _is_bound_dispatcher(fn):
        parameters.pop(next(iter(parameters), ""), None)

    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    names: list[str] = []
    default_of: dict[str, Any] = {}
    variadic = False
    # By name where that is possible: a wrapper that shows another function's signature may have
    # its parameters in other places.
    positional = positional_only = 0

    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic = True
            positional = len(names)
        if name in bound or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue

        names.append(name)
        if parameter.default is not parameter.empty:
            default_of[name] = parameter.default
        if parameter.kind is parameter.POSITIONAL_ONLY or (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and not _takes_by_name(fn, name, len(names) - 1)
        ):
            positional = positional_only = len(names)

    return Signature(
        tuple(names),
        frozenset(default_of),
        positional_only,
        positional,
        default_of,
        variadic=variadic,
    )


def _takes_by_name(fn: Any, name: str, position: int) -> bool:
    """Return whether the code that a call reaches takes *name* as a keyword, whatever signature it shows.

    A wrapper with ``*args`` alone takes no keyword, and one that has another name in that place takes the
    value there; ``**kwargs`` pass everything on to the wrapped callable. A callable that dispatches on its
    first argument needs that argument by position; `functools.singledispatch` and its like have ``register``.

    Args:
        fn: The callable.
        name: A parameter of the signature that it shows.
        position: The parameter's place among them.
    """
    for _ in range(MAX_WRAPPERS):
        if fn is None or isinstance(fn, type):
            return True

        if isinstance(fn, functools.partial):
            known = cast("Any", fn)
            fn, position = known.func, position + len(known.args)
        elif isinstance(fn, MethodType):
            fn, position = fn.__func__, position + 1
        elif type(fn) is FunctionType:
            code = fn.__code__
            named = code.co_argcount + code.co_kwonlyargcount
            if name in code.co_varnames[code.co_posonlyargcount : named]:
                return True
            if position < code.co_argcount or not code.co_flags & inspect.CO_VARKEYWORDS:
                return False
            if position == 0 and code.co_flags & inspect.CO_VARARGS and hasattr(fn, "register"):
                return False
            fn = fn.__dict__.get("__wrapped__")
        elif hasattr(fn, "__wrapped__"):  # of C, as functools.cache: it passes everything on
            fn = fn.__wrapped__
        else:
            call = getattr(cast("type[object]", type(fn)), "__call__", None)
            fn, position = (call, position + 1) if type(call) is FunctionType else (None, position)

    return True


def _is_bound_dispatcher(fn: Any) -> bool:
    """Return whether *fn* shows the ``self`` that it already has, as a `functools.singledispatchmethod` does."""
    return (
        type(fn) is FunctionType
        and fn.__code__.co_qualname == "singledispatchmethod.__get__.<locals>._method"
    )


def kind_of(fn: Callable[..., Any]) -> Kind:
    """Return the kind of result that calling *fn* has, as far as *fn* tells beforehand."""
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
    """Return the name that a task gets from its callable."""
    if type(fn) is FunctionType:
        return fn.__name__
    target: Any = fn
    while isinstance(target, functools.partial):
        if "__name__" in target.__dict__:
            return str(target.__dict__["__name__"])
        target = target.func

    name = getattr(target, "__name__", None)
    return name if isinstance(name, str) else type(target).__name__
