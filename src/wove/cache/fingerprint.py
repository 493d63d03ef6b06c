"""The code of a task, as far as it decides what the task gives.

Part of it are the task's own code object with all that is nested in it, the defaults of its parameters, the values in
its closure, and the functions of its own module that it names, with theirs. Not part of it are line numbers and file
names, so that moving a function or its project changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, cast

from wove.cache.canonical import canonical_bytes
from wove.errors import SerializationError

__all__ = ["DIGEST_BYTES", "Fingerprint"]

DIGEST_BYTES: Final = 20
"""Bytes of a key. Two keys out of a trillion are the same with a probability of 1 in 10**24."""


class Fingerprint:
    """The fingerprint of one callable.

    Args:
        fn: The callable.
        label: What messages call it: ``"task 'pdf'"``.
        values: Whether defaults and the values of closures are part of it, beside code.
        outer: The one whose values *fn* is among: the functions in it are not followed again.

    Attributes:
        digest: Stands for all of it.
        functions: The names of the functions whose code is part of it, the callable's own first.
        captured: The names of the variables of closures whose values are part of it.
        defaults: The names of the parameters whose defaults are part of it.

    Raises:
        SerializationError: A value cannot be pickled; the message names the variable.
    """

    def __init__(
        self, fn: object, label: str, *, values: bool = True, outer: Fingerprint | None = None
    ) -> None:
        self._label = label
        self._values = values
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        # By identity, with the number of each; the functions live as long as their number is used.
        self._seen: dict[int, tuple[int, FunctionType]] = {} if outer is None else {**outer._seen}
        self.functions: list[str] = []
        self.captured: list[str] = []
        self.defaults: list[str] = []
        # Code objects of two versions of Python have nothing in common.
        self._add("python", repr(sys.version_info[:2]).encode())
        self._callable(fn)
        self.digest = self._hash.digest()

    def code_of(self, function: FunctionType) -> bytes:
        """Return what stands for *function* among the arguments."""
        seen = self._seen.get(id(function))
        if seen is not None:
            return str(seen[0]).encode()
        return Fingerprint(function, self._label, values=self._values, outer=self).digest

    def _add(self, tag: str, data: bytes) -> None:
        self._hash.update(f"{tag}:{len(data)}:".encode())
        self._hash.update(data)

    def _callable(self, fn: object) -> None:
        if isinstance(fn, FunctionType):
            self._function(fn)
        elif isinstance(fn, partial):
            self._callable(cast("object", fn.func))
            self._value("partial", "its arguments", (fn.args, fn.keywords))
        elif isinstance(fn, MethodType):
            self._callable(fn.__func__)
            self._instance(fn.__self__)
        elif isinstance(fn, type):
            self._class(fn)
        elif (wrapped := getattr(fn, "__wrapped__", None)) is not None:
            self._add("wrapper", type(fn).__qualname__.encode())
            self._callable(wrapped)
        elif isinstance(fn, BuiltinFunctionType):
            self._add("builtin", f"{fn.__module__}.{fn.__qualname__}".encode())
            if not isinstance(fn.__self__, (ModuleType, type(None))):
                self._value("self", "self", fn.__self__)
        else:
            self._callable(type(fn).__call__)
            self._instance(fn)

    def _class(self, kind: type) -> None:
        """Add the methods of *kind*, and of its bases in the same module."""
        self._add("class", kind.__qualname__.encode())
        for base in kind.__mro__:
            if base.__module__ != kind.__module__:
                continue
            for name, member in sorted(vars(base).items()):
                function = cast("object", getattr(member, "__func__", member))
                if isinstance(function, FunctionType):
                    self._add("method", name.encode())
                    self._function(function)

    def _instance(self, value: object) -> None:
        """Add the object that a method is bound to. Its class may be one that has no name in a module."""
        kind = type(value)
        if isinstance(value, type):
            self._class(value)
            return

        self._class(kind)
        default = all(
            getattr(kind, name) is getattr(object, name)
            for name in ("__reduce__", "__reduce_ex__", "__getstate__")
        )
        has_slots = any("__slots__" in vars(base) for base in kind.__mro__[:-1])
        self._value("self", "self", value if has_slots or not default else vars(value))

    def _function(self, fn: FunctionType) -> None:
        seen = self._seen.get(id(fn))
        if seen is not None:
            self._add("again", str(seen[0]).encode())
            return

        self._seen[id(fn)] = len(self._seen), fn
        self.functions.append(fn.__qualname__)
        self._code(fn.__code__)
        self._defaults(fn)
        self._closure(fn)
        self._called(fn)

    def _defaults(self, fn: FunctionType) -> None:
        if not self._values:
            return
        code = fn.__code__
        positional = fn.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]

        for name, value in (
            *zip(names, positional, strict=True),
            *(fn.__kwdefaults__ or {}).items(),
        ):
            self.defaults.append(name)
            self._value("default", f"the default of {name!r}", value)

    def _closure(self, fn: FunctionType) -> None:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                self._add("empty", name.encode())
                continue

            self._add("cell", name.encode())
            if isinstance(value, FunctionType):
                self._function(value)
            elif isinstance(value, ModuleType):
                self._add("module", value.__name__.encode())
            elif self._values:
                self.captured.append(name)
                self._value("captured", f"the variable {name!r} of its closure", value)

    def _called(self, fn: FunctionType) -> None:
        """Add the functions of its own module that *fn* names."""
        for name in sorted(set(_names(fn.__code__))):
            found = fn.__globals__.get(name)
            if isinstance(found, FunctionType) and found.__module__ == fn.__module__:
                self._add("calls", name.encode())
                self._function(found)

    def _value(self, tag: str, which: str, value: object) -> None:
        if not self._values:
            return
        try:
            self._add(tag, canonical_bytes(value, self.code_of))
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"{self._label} has cache=True, and {which} cannot be part of a key: {error}. Pass it as an "
                f"argument that can be pickled, or say with cache_key what tells the results apart"
            ) from error

    def _code(self, code: CodeType) -> None:
        self._add("code", code.co_code)
        self._add("exceptions", code.co_exceptiontable)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self._add("names", repr((counts, names)).encode())
        self._constant(code.co_consts)

    def _constant(self, value: Any) -> None:
        if isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, tuple):
            constants = cast("tuple[object, ...]", value)
            self._add("tuple", str(len(constants)).encode())
            for constant in constants:
                self._constant(constant)
        elif isinstance(
            value, frozenset
        ):  # of `x in {"a", "b"}`: its order differs between processes
            self._add(
                "set", repr(sorted(map(_described, cast("frozenset[object]", value)))).encode()
            )
        else:
            self._add("constant", _described(value).encode())


def _described(constant: object) -> str:
    return f"{type(constant).__name__} {constant!r}"


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
