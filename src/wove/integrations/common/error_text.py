"""A backend's own record of a job's end, for messages: read without trusting whoever could write it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, cast

__all__ = ["UnreadableError", "inert", "of_exception"]

MAX_CHARACTERS: Final = 2000
"""A reason is a line or a few."""

TBLIB: Final = "tblib.pickling_support"
"""Where Dask has been imported, and so this, a pickled exception is a call of ``unpickle_exception_with_attrs`` with
its class and its attributes, or of ``unpickle_exception`` with its class and its arguments."""


class UnreadableError(ValueError):
    """Bytes that are not a pickle, or one of something other than plain values and exceptions."""


class _Inert:
    """Stands for an object of whatever class: knows its name and what it was made of, and does nothing."""

    def __new__(cls, *args: object, **_: object) -> Self:
        made = super().__new__(cls)
        made.made_of = args
        return made

    def __init__(self, *_: object, **__: object) -> None: ...

    made_of: tuple[object, ...]

    def __setstate__(self, state: object) -> None: ...

    def __call__(self, *args: object) -> _Inert:
        return type(self)(*args)


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Nothing is imported, so nothing that a pickle names can be called: not even what looks harmless.
        return type(
            global_name.rpartition(".")[2] or "object", (_Inert,), {"__module__": module_name}
        )


def inert(data: bytes) -> Any:
    """Unpickle *data* safely: everything that is not a plain value becomes a stand-in without behaviour.

    For what lies in a store that others can write to: unpickling it as usual would run what they like.

    Raises:
        UnreadableError: It cannot be read so.

    Example:
        >>> of_exception(inert(pickle.dumps(PermissionError("no signature"))))
        'PermissionError: no signature'
    """
    try:
        return _InertUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # whatever a pickle that somebody made up can provoke
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


def of_exception(error: object) -> str:
    """An exception in one line, as the last one of its traceback: of a real one, an `inert` one, a taskiq one."""
    if isinstance(error, BaseException):
        name, details = type(error).__name__, [str(error)]
    elif isinstance(error, _Inert):
        name, details = _of_inert(error)
    elif isinstance(error, Mapping):  # taskiq.serialization.prepare_exception
        fields = cast("Mapping[str, object]", error)
        name, message = str(fields.get("exc_type") or "Exception"), fields.get("exc_message")
        details = [str(message or "")]
        if isinstance(message, (list, tuple)):
            details = list(map(str, cast("Sequence[object]", message)))
    else:
        name, details = "", [str(error)]

    text = ": ".join(filter(None, (name, ", ".join(filter(None, details)))))
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _of_inert(error: _Inert) -> tuple[str, list[str]]:
    made_of = error.made_of
    if type(error).__module__ == TBLIB and len(made_of) > 1 and isinstance(made_of[0], type):
        content = made_of[1]
        if isinstance(content, Mapping):
            content = cast("Mapping[str, object]", content).get("args")
        args = cast("tuple[object, ...]", content) if isinstance(content, tuple) else ()
        return made_of[0].__name__, list(map(str, args))

    return type(error).__name__, list(map(str, made_of))
