"""Which part of a value it is that cannot be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

__all__ = ["explain"]

_DEPTH: Final = 8
_PROBES: Final = 2_000  # a value of a million good parts is not searched to its end


def explain(
    value: object, label: str, error: BaseException, picklable: Callable[[object], bool]
) -> str:
    """Return the message about *value*, which could not be pickled because of *error*.

    Args:
        value: The whole value.
        label: What it is: ``"the arguments of task 'pdf'"``.
        error: What the pickler said.
        picklable: Tells whether a part of it can be pickled.
    """
    path, part = _culprit(value, picklable)
    kind = type(part)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    place = f"{label}: {path.strip()} ({name})" if path else f"{label} ({name})"
    return (
        f"cannot pickle {place}: {_text(error)}. Send plain data that it can be made from instead "
        f"(a path, a URL, an id), and open or create it where it is used."
    )


def _culprit(value: object, picklable: Callable[[object], bool]) -> tuple[str, object]:
    """The deepest part that does not pickle, and the way to it."""
    path = ""
    probes = _PROBES
    seen = {id(value)}

    for depth in range(_DEPTH):
        for step, part in _parts(value, outermost=depth == 0):
            probes -= 1
            if probes < 0:
                return path, value
            if id(part) not in seen and not picklable(part):
                seen.add(id(part))
                path, value = path + step, part
                break
        else:
            break

    return path, value


def _parts(value: object, *, outermost: bool) -> Iterator[tuple[str, object]]:
    whole = value

    if isinstance(value, dict):
        for key, item in list(cast(dict[object, object], value).items()):
            # The outermost dict is nearly always that of the arguments: name them as the task does.
            bare = outermost and isinstance(key, str) and key.isidentifier()
            yield (str(key) if bare else f"[{_short(key)}]"), item
            yield f" key {_short(key)}", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast(list[object], value)):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in cast(set[object], value):
            yield f" member {_short(item)}", item
    elif callable(value) and not isinstance(value, type):
        yield from _parts_of_callable(value)

    if not isinstance(value, type):
        for name, item in list(_mapping(whole, "__dict__").items()):
            yield f".{name}", item


def _parts_of_callable(value: object) -> Iterator[tuple[str, object]]:
    code: Any = getattr(value, "__code__", None)
    cells: Any = getattr(value, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        try:
            yield f" variable {name!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue

    known = _mapping(value, "__globals__")
    for name in getattr(code, "co_names", ()):
        if name in known:
            yield f" global {name!r}", known[name]

    for index, item in enumerate(getattr(value, "__defaults__", None) or ()):
        yield f" default {index}", item
    for name in ("__self__", "__func__", "__wrapped__", "func", "args", "keywords"):
        if hasattr(value, name):
            yield f".{name}", getattr(value, name)


def _mapping(value: object, attribute: str) -> dict[str, object]:
    found = getattr(value, attribute, None)
    return cast(dict[str, object], found) if isinstance(found, dict) else {}


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 40 else text[:37] + "..."


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".rstrip(".")
    except Exception:
        return type(error).__name__
