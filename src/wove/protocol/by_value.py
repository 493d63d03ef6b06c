"""Definitions of a script that cloudpickle cannot pickle by value: how they are reduced, and made again.

cloudpickle pickles functions and classes of ``__main__`` by value. Other objects that such a script defines are
pickled by their name there, which no other process knows: cached functions, types made by ``NewType``, type aliases.
Some classes lose a part of themselves: their slots, or the locks of their descriptors. This module has a reducer for
each of them; its underscored functions are called by the unpickler, by their name.
"""

from __future__ import annotations

import _thread
import functools
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

__all__ = [
    "Reduced",
    "find_own_locks",
    "is_importable",
    "keep_filename",
    "keep_slots",
    "make_portable",
    "new_lock",
    "reduce_by_value",
    "reduce_singledispatch",
]

Reduced: TypeAlias = tuple[Any, ...]

MAX_TEXT: Final = 200
"""Maximum characters of the text that stands for an argument that cannot be pickled."""

_LOCK: Final = _thread.LockType
_RLOCK: Final = _thread.RLock
_LRU_CACHE: Final = type(functools.lru_cache(lambda: None))
_WRAPPER_ATTRIBUTES: Final = frozenset((*functools.WRAPPER_ASSIGNMENTS, "__wrapped__"))


def reduce_by_value(obj: object) -> Reduced | None:
    """Return how *obj* is pickled by value; ``None`` where it needs no help.

    Raises:
        TypeError: *obj* is known by its name in ``__main__`` only.
    """
    kind = type(obj)
    if (reducer := _REDUCERS.get(kind)) is not None:
        return None if is_importable(obj) else reducer(obj)
    if isinstance(obj, BaseException):
        return _reduce_exception(obj)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        return None
    return _reduce_by_own_method(obj) if kind.__module__ == "__main__" else None


def is_importable(obj: object) -> bool:
    """Return whether another process can find *obj* by its module and name."""
    module_name = getattr(obj, "__module__", None)
    if not isinstance(module_name, str) or module_name == "__main__":
        return False

    import cloudpickle

    parents = module_name.split(".")
    by_value = cast("set[str]", cloudpickle.list_registry_pickle_by_value())
    if any(".".join(parents[:count]) in by_value for count in range(1, len(parents) + 1)):
        return False

    found: object = sys.modules.get(module_name)
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", "")
    for part in str(name).split("."):
        found = getattr(found, part, None)
    return found is obj


def _reduce_by_own_method(obj: object) -> Reduced | None:
    """Reduce an instance of a class of ``__main__`` that has a ``__reduce__`` of its own."""
    reduced = obj.__reduce_ex__(5)
    if not isinstance(reduced, str):
        return reduced
    kind = type(obj)
    here = getattr(sys.modules.get("__main__"), reduced, None)
    if here is not obj and _by_name.get((kind, reduced)) is not obj:
        return None

    if "__dict__" not in dir(kind) and kind.__basicsize__ > object.__basicsize__:
        raise TypeError(
            f"{reduced!r} is an instance of {kind.__name__!r} that is pickled by its name in the script "
            f"(__main__), which other processes do not run: define it in a module that they can import"
        )

    return _make_by_name, (kind, reduced), dict(getattr(obj, "__dict__", {}))


_by_name: Final[dict[tuple[type, str], object]] = {}


def _make_by_name(kind: type[Any], name: str) -> object:
    """Return the one object of that name: here its script's own, elsewhere always the same copy."""
    here = getattr(sys.modules.get("__main__"), name, None)
    if type(here) is kind:
        return here
    return _by_name.setdefault((kind, name), object.__new__(kind))


# --- functions --------------------------------------------------------------------------------------------


def _reduce_cached(function: Any) -> Reduced:
    parameters = function.cache_parameters()
    attributes = cast("dict[str, Any]", vars(function))
    extra = {name: value for name, value in attributes.items() if name not in _WRAPPER_ATTRIBUTES}
    extra.pop("cache_parameters", None)
    made = (parameters["maxsize"], parameters["typed"], function.__wrapped__)
    return _make_cached, made, extra or None


def _make_cached(maxsize: int | None, typed: bool, function: Callable[..., Any]) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)


def reduce_singledispatch(function: Any) -> Reduced | None:
    """Return how *function* is pickled if `functools.singledispatch` made it; ``None`` if not."""
    known = getattr(function, "registry", None)
    if not isinstance(known, types.MappingProxyType) or not hasattr(function, "_clear_cache"):
        return None
    registry = dict(cast("Mapping[type, Any]", known))
    default = registry.pop(object)
    return _make_singledispatch, (default,), registry, None, None, _register_all


def _make_singledispatch(default: Callable[..., Any]) -> Any:
    return functools.singledispatch(default)


def _reduce_singledispatchmethod(method: Any) -> Reduced:
    return (
        _make_singledispatchmethod,
        (method.func,),
        method.dispatcher,
        None,
        None,
        _set_dispatcher,
    )


def _make_singledispatchmethod(function: Any) -> Any:
    return functools.singledispatchmethod(function)


def _set_dispatcher(method: Any, dispatcher: Any) -> None:
    method.dispatcher = dispatcher


def _register_all(function: Any, registry: Mapping[type, Callable[..., Any]]) -> None:
    for kind, implementation in registry.items():
        function.register(kind, implementation)


def keep_filename(code: types.CodeType, reduced: Reduced) -> Reduced:
    """Return cloudpickle's reduction of *code* with the name of its file, for tracebacks."""
    make, parts, *others = reduced
    named = tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)
    return make, named, *others


# --- classes ----------------------------------------------------------------------------------------------


def keep_slots(cls: type, reduced: Reduced) -> Reduced:
    """Return cloudpickle's reduction of *cls*, changed so that the class has its slots again when it is made.

    cloudpickle sets ``__slots__`` on the finished class, where it has no effect.
    """
    if "__slots__" not in vars(cls) or reduced[0].__name__ != "_make_skeleton_class":
        return reduced
    make, new, state, *others = reduced
    if typing.NamedTuple in new[2]:  # it makes its slots by itself
        return reduced

    attributes = {
        name: value
        for name, value in state[0].items()
        if not (isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls)
    }
    slots: Any = attributes.pop("__slots__")
    if not issubclass(type(slots), (str, list, tuple, dict)):  # an iterator, which is at its end
        slots = [
            name
            for name, value in vars(cls).items()
            if isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls
        ]

    type_constructor, name, bases, keywords, *tracking = new
    remade: tuple[Any, ...] = (
        type_constructor,
        name,
        bases,
        {**keywords, "__slots__": slots},
        *tracking,
    )
    return make, remade, (attributes, state[1]), *others


def _is_lock(obj: object) -> bool:
    """Return whether *obj* is a lock of `threading`."""
    return type(obj) is _LOCK or type(obj) is _RLOCK


def find_own_locks(obj: object) -> list[object]:
    """Return the locks that a class or a wrapped function was defined with: every process has its own of these.

    They are the class's attributes, those of its descriptors, and what a decorator keeps in its wrapper.
    """
    parts: list[object] = []

    if isinstance(obj, type):
        for value in cast("dict[str, object]", dict(vars(obj))).values():
            parts.append(value)
            if hasattr(type(value), "__get__") and isinstance(
                held := getattr(value, "__dict__", None), dict
            ):
                parts.extend(cast("dict[str, object]", held).values())
    elif isinstance(obj, types.FunctionType) and hasattr(obj, "__wrapped__"):
        for cell in obj.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue

    return [part for part in parts if _is_lock(part)]


def new_lock(lock: object) -> Reduced:
    """Return the reduction of a lock to a new one of its kind, which nobody holds."""
    return (_make_lock if type(lock) is _LOCK else _make_rlock), ()


def _make_lock() -> object:
    return _thread.allocate_lock()


def _make_rlock() -> object:
    return _thread.RLock()


# --- exceptions -------------------------------------------------------------------------------------------


def _reduce_exception(exception: BaseException) -> Reduced | None:
    """Reduce an exception whose class has an ``__init__`` of its own, so that this is not called again.

    Python would call it with ``args``, which need not be its arguments. All that it did is in the attributes.
    """
    kind = type(exception)
    made_in_python = any(
        isinstance(getattr(kind, name), types.FunctionType) for name in ("__init__", "__new__")
    )
    if not made_in_python or isinstance(kind.__reduce__, types.FunctionType):
        return None
    if isinstance(kind.__reduce_ex__, types.FunctionType):
        return None
    reduced = exception.__reduce__()
    if not isinstance(reduced, tuple):
        return None
    cls, arguments, *state = reduced
    if isinstance(exception, BaseExceptionGroup):  # args are what its own __new__ was given
        group = cast("BaseExceptionGroup[BaseException]", exception)
        arguments = (group.message, group.exceptions)

    return (_make_exception, (cls, arguments), *state) if cls is kind else None


def _make_exception(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    """Make an exception as the nearest class of Python's own would, without the user's ``__init__``."""
    base = next(cls for cls in kind.__mro__ if cls.__module__ == "builtins")
    made: BaseException = base.__new__(kind, *arguments)
    if not issubclass(kind, BaseExceptionGroup):
        cast("Any", base).__init__(made, *arguments)
    return made


def make_portable(
    exception: BaseException, picklable: Callable[[object], bool]
) -> tuple[BaseException, list[str]]:
    """Return a copy of *exception* without the parts that cannot be pickled, and the names of these.

    Arguments of that kind become their text.

    Args:
        exception: What a task raised.
        picklable: Tells whether a part of it can be pickled and made again.
    """
    lacking: list[str] = []
    arguments: list[object] = []

    for position, argument in enumerate(exception.args):
        if picklable(argument):
            arguments.append(argument)
        else:
            arguments.append(_short_text(argument))
            lacking.append(f"args[{position}] ({type(argument).__name__})")

    copy = _make_exception(type(exception), tuple(arguments))

    for name, value in vars(exception).items():
        if picklable(value):
            vars(copy)[name] = value
        else:
            lacking.append(f"{name} ({type(value).__name__})")

    return copy, lacking


def _short_text(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # the user's own __repr__
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


# --- types ------------------------------------------------------------------------------------------------


def _reduce_new_type(made: Any) -> Reduced:
    return _make_new_type, (made.__name__, made.__supertype__, made.__module__)


def _make_new_type(name: str, supertype: Any, module: str | None) -> Any:
    make: Any = typing.NewType
    made = make(name, supertype)
    made.__module__ = module
    return made


def _reduce_parameter(parameter: Any) -> Reduced:
    return _make_parameter, (type(parameter), parameter.__name__)


def _make_parameter(kind: Callable[[str], Any], name: str) -> Any:
    return kind(name)


def _reduce_alias(alias: Any) -> Reduced:
    """Reduce ``type name = value``, whose value may refer to the alias itself."""
    if alias.__type_params__:
        return _make_generic_alias, (alias.__name__, alias.__value__, alias.__type_params__)
    box: list[Any] = []
    return _make_alias, (alias.__name__, box), (box, alias.__value__), None, None, _set_value


def _make_generic_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    kind: Any = getattr(typing, "TypeAliasType")  # noqa: B009 (Python 3.12)
    return kind(name, value, type_params=parameters)


def _make_alias(name: str, box: list[Any]) -> Any:
    scope: dict[str, Any] = {"box": box}
    exec(
        f"type {name} = box[0]", scope
    )  # the statement alone makes an alias whose value comes later
    return scope[name]


def _set_value(alias: Any, state: tuple[list[Any], Any]) -> None:
    del alias
    box, value = state
    box.append(value)


_REDUCERS: Final[dict[type, Callable[[Any], Reduced]]] = {
    _LRU_CACHE: _reduce_cached,
    functools.singledispatchmethod: _reduce_singledispatchmethod,
    typing.NewType: _reduce_new_type,
    typing.ParamSpec: _reduce_parameter,
    typing.TypeVarTuple: _reduce_parameter,
}
if (_ALIAS := getattr(typing, "TypeAliasType", None)) is not None:
    _REDUCERS[_ALIAS] = _reduce_alias
