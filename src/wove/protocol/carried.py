"""`wove.carry`: context variables whose values travel with every task."""

from __future__ import annotations

import contextlib
import copyreg
import sys
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from importlib import import_module
from typing import Any, Final, TypeVar, cast

__all__ = ["carried_values", "carry", "carrying"]

T = TypeVar("T")

_carried: list[ContextVar[Any]] = []
_named: Final[dict[tuple[str, str], ContextVar[Any]]] = {}
"""Variables of this process that stand for those of a script, by module and name."""

_places: Final[dict[ContextVar[Any], tuple[str, str]]] = {}
"""The module and the name of each variable that was pickled."""


def carry(variable: ContextVar[T]) -> ContextVar[T]:
    """Have the value of *variable* travel with every task from now on, wherever the task runs.

    A local task sees the caller's context variables anyway. A remote one sees the values of those that are carried.
    The variable is found again by its module and name; one of the script itself (``__main__``) is made anew in the
    worker, where functions of the script refer to it. Values are pickled.

    Args:
        variable: The variable. It should be a global of its module.

    Returns:
        *variable*, so that the definition can be wrapped.

    Raises:
        TypeError: It is not a `contextvars.ContextVar`.

    Example:
        >>> from contextvars import ContextVar
        >>> request_id = wove.carry(ContextVar("request_id", default="-"))
    """
    if not isinstance(cast("object", variable), ContextVar):
        raise TypeError(f"wove.carry: a ContextVar is needed, not {type(variable).__name__}")
    if not any(variable is known for known in _carried):
        _carried.append(variable)
        copyreg.pickle(ContextVar, _reduce)

    return variable


def carried_values(context: Context) -> dict[ContextVar[Any], Any]:
    """Return the carried variables that have a value in *context*, with their values."""
    return {variable: context[variable] for variable in _carried if variable in context}


def carrying(
    fn: Callable[..., Any], values: Mapping[ContextVar[Any], Any], *, is_async: bool
) -> Callable[..., Any]:
    """Return *fn* as a callable that sets the context variables before it is called.

    Args:
        fn: The callable.
        values: The values of the variables.
        is_async: Whether *fn* is a coroutine function; then so is the one returned.
    """
    pairs = list(values.items())
    return _CarryingCoroutine(fn, pairs) if is_async else _Carrying(fn, pairs)


class _Carrying:
    """A callable that sets context variables first."""

    def __init__(self, fn: Callable[..., Any], values: list[tuple[ContextVar[Any], Any]]) -> None:
        self.fn = fn
        self.values = values

    def __call__(self, /, **arguments: Any) -> Any:
        _set(self.values)
        return self.fn(**arguments)


class _CarryingCoroutine(_Carrying):
    async def __call__(self, /, **arguments: Any) -> Any:
        _set(self.values)
        return await self.fn(**arguments)


def _set(values: list[tuple[ContextVar[Any], Any]]) -> None:
    for variable, value in values:
        variable.set(value)


# --- variables in pickles ---------------------------------------------------------------------------------


def _reduce(variable: ContextVar[Any]) -> tuple[Any, ...]:
    place = _places.get(variable) or _place_of(variable)
    if place is None:
        raise TypeError(
            f"the context variable {variable.name!r} cannot travel: it is not a global of a module"
        )
    _places[variable] = place

    defaults: tuple[Any, ...] = ()
    with contextlib.suppress(LookupError):  # where it has none
        defaults = (Context().run(variable.get),)  # there is no other way to read it
    return _find, (*place, variable.name, *defaults)


def _place_of(variable: ContextVar[Any]) -> tuple[str, str] | None:
    """Return the module of which *variable* is a global, and its name there; the script only if no other has it."""
    in_script: tuple[str, str] | None = None

    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                if module_name != "__main__":
                    return module_name, name
                in_script = module_name, name

    return in_script


def _find(module: str, name: str, variable_name: str, *defaults: Any) -> ContextVar[Any]:
    """Return the variable of that place; where this process does not have it, one that stands for it."""
    if (module, name) not in _named:
        try:
            found: object = getattr(import_module(module), name, None)
        except ImportError:
            found = None
        if isinstance(found, ContextVar):
            variable: ContextVar[Any] = cast("Any", found)
            return variable

        made: ContextVar[Any] = (
            ContextVar(variable_name, default=defaults[0])
            if defaults
            else ContextVar(variable_name)
        )
        _named[module, name] = made
        _places[made] = module, name

    return _named[module, name]
