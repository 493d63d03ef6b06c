"""Values to bytes that are the same in every process: the arguments in the key of a result.

A pickle comes close. Two things are missing: the order of a set's elements differs between processes, and a function is
pickled by its name, which stays the same when its code changes. Only a pickle that may hold one of them is made again,
by a pickler that replaces both.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, TypeAlias, cast

__all__ = ["CodeOf", "canonical_bytes"]

PROTOCOL: Final = 5

CodeOf: TypeAlias = Callable[[FunctionType], bytes]
"""Gives the bytes that stand for a function among the values."""

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_SETS: Final = (pickle.EMPTY_SET, pickle.FROZENSET)


def canonical_bytes(value: object, code_of: CodeOf) -> bytes:
    """Return bytes that tell *value* from others. Equal dicts in another order count as others.

    Args:
        value: Anything that can be pickled; functions in it need not be.
        code_of: What stands for a function.

    Raises:
        Exception: Whatever pickling raises.
    """
    if type(value) in _SCALARS:
        return pickle.dumps(value, PROTOCOL)
    try:
        data = pickle.dumps(value, PROTOCOL)
    except (
        Exception
    ):  # a lambda, for one, which its code can stand for; whatever else it is, it is raised below
        return _rewritten(value, code_of, pure=True)

    # The byte of an opcode may also be part of a text: then the pickle is made twice, and is as good.
    if _SETS[0] in data or _SETS[1] in data:
        return _rewritten(value, code_of, pure=True)
    return _rewritten(value, code_of, pure=False) if pickle.STACK_GLOBAL in data else data


def _rewritten(value: object, code_of: CodeOf, *, pure: bool) -> bytes:
    target = io.BytesIO()
    # The C pickler is quicker, and asks nobody how to pickle a set.
    make = cast("Any", _PurePickler if pure else _Pickler)
    make(target, code_of).dump(value)
    return target.getvalue()


class _Replacing:
    """Has stand-ins pickled for functions and sets."""

    code_of: CodeOf

    def reducer_override(self, obj: object) -> Any:
        kind = type(obj)
        if kind is FunctionType and obj is not _stand_in:
            return _stand_in, ("function", self.code_of(cast("FunctionType", obj)))
        if kind is set or kind is frozenset:
            elements = cast("frozenset[object]", obj)
            encoded = sorted(canonical_bytes(element, self.code_of) for element in elements)
            return _stand_in, (kind.__name__, encoded)
        return NotImplemented


class _Pickler(_Replacing, pickle.Pickler):
    def __init__(self, target: io.BytesIO, code_of: CodeOf) -> None:
        super().__init__(target, PROTOCOL)
        self.code_of = code_of


_PythonPickler: Any = cast("Any", pickle)._Pickler


class _PurePickler(_Replacing, _PythonPickler):  # type: ignore[misc]  # has no stub
    def __init__(self, target: io.BytesIO, code_of: CodeOf) -> None:
        super().__init__(target, PROTOCOL)  # pyright: ignore[reportCallIssue]  # has no stub
        self.code_of = code_of


def _stand_in(*_: object) -> None:
    """Is named in these pickles, which are never loaded."""
