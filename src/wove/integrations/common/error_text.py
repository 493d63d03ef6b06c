"""Text of the errors that a backend has recorded, read without trusting the writers of its store."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, cast

__all__ = ["UnreadableError", "exception_text", "safe_unpickle"]

MAX_CHARACTERS: Final = 2000
"""Maximum length of a text: a few lines of a message."""

TBLIB: Final = "tblib.pickling_support"
"""The module that pickles exceptions in processes that have imported Dask: as a call of
``unpickle_exception_with_attrs`` with class and attributes, or of ``unpickle_exception`` with class and arguments."""


class UnreadableError(ValueError):
    """The data is not a pickle, or contains something other than plain values and exceptions."""


class _StandIn:
    """Stands for an object of any class. It keeps the arguments of the class and has no behaviour."""

    def __new__(cls, *args: object, **_: object) -> Self:
        made = super().__new__(cls)
        made.made_of = args
        return made

    def __init__(self, *_: object, **__: object) -> None: ...

    made_of: tuple[object, ...]

    def __setstate__(self, state: object) -> None: ...

    def __call__(self, *args: object) -> _StandIn:
        return type(self)(*args)


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Nothing is imported, so no function that a pickle names can be called.
        return type(
            global_name.rpartition(".")[2] or "object", (_StandIn,), {"__module__": module_name}
        )


def safe_unpickle(data: bytes) -> Any:
    """Unpickle *data* safely: everything but plain values becomes a stand-in without behaviour.

    For data in a store that others can write to: usual unpickling would run code of their choice.

    Raises:
        UnreadableError: *data* cannot be read in this way.

    Example:
        >>> exception_text(safe_unpickle(pickle.dumps(PermissionError("no signature"))))
        'PermissionError: no signature'
    """
    try:
        return _SafeUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a malicious pickle can provoke any exception
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


def exception_text(error: object) -> str:
    """Return an exception as one line, like the last line of its traceback.

    Args:
        error: An exception, one that `safe_unpickle` has returned, or a dict of Taskiq's.
    """
    if isinstance(error, BaseException):
        name, details = type(error).__name__, [str(error)]
    elif isinstance(error, _StandIn):
        name, details = _of_stand_in(error)
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


def _of_stand_in(error: _StandIn) -> tuple[str, list[str]]:
    made_of = error.made_of
    if type(error).__module__ == TBLIB and len(made_of) > 1 and isinstance(made_of[0], type):
        content = made_of[1]
        if isinstance(content, Mapping):
            content = cast("Mapping[str, object]", content).get("args")
        args = cast("tuple[object, ...]", content) if isinstance(content, tuple) else ()
        return made_of[0].__name__, list(map(str, args))

    return type(error).__name__, list(map(str, made_of))
