"""Exceptions to event fields and back."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from wove.errors import (
    EnvironmentExecutionError,
    SerializationError,
    WoveError,
    advice_on_other_wove,
)
from wove.protocol.by_value import make_portable
from wove.protocol.frames import PYTHON, ErrorReport
from wove.protocol.limits import TRACEBACK_CHARACTERS
from wove.protocol.pickling import Pickled, dumps, loads

__all__ = ["RemoteTraceback", "from_exception", "to_exception"]


class RemoteTraceback(Exception):
    """Not an error of its own: the traceback on the worker's side, as the cause of what was raised there."""

    def __str__(self) -> str:
        return f'\n"""\n{"".join(str(part) for part in self.args).rstrip()}\n"""'


def from_exception(
    exception: BaseException, *, task: str, source: str = "task", retryable: bool | None = None
) -> dict[str, Any]:
    """Return the fields of a ``task_error`` event that carry *exception*.

    Never raises, whatever the exception does when it is printed or pickled.

    Args:
        exception: What ended the task.
        task: The task's name, for messages.
        source: Whose fault it was: ``"task"``, ``"executor"``, ``"transport"`` or ``"config"``.
        retryable: Whether another attempt can help; ``None``: yes, for an ordinary exception of the task.

    Returns:
        ``error``, always, and ``exception_pickle`` if the exception survives being pickled and unpickled.
    """
    if retryable is None:
        retryable = isinstance(exception, Exception) and not isinstance(
            exception, SerializationError
        )

    report: ErrorReport = {
        "kind": _kind(exception),
        "message": _message(exception),
        "traceback": _traceback(exception),
        "retryable": retryable,
        "source": source,
    }
    fields: dict[str, Any] = {"error": report}
    pickled, trouble = _pickle(exception, task)
    if pickled is not None:
        fields["exception_pickle"] = pickled
    else:
        report["lacking"] = trouble

    return fields


def to_exception(event: Mapping[str, Any], *, task: str) -> BaseException:
    """Return the exception that a ``task_error`` event reports, ready to be raised.

    It is the exception that the task raised, with the remote traceback as its ``__cause__``, where it came
    along and can be rebuilt here, and an :class:`~wove.errors.EnvironmentExecutionError` where not.

    May import and unpickle, so do not call it on an event loop.

    Args:
        event: The event, decoded.
        task: The task's name, for messages.
    """
    report, trouble = _report(event, task)
    trouble = trouble or str(report.get("lacking") or "")
    exception: object = event.get("exception")
    if exception is None and "exception_pickle" in event:
        theirs = event.get("python")
        if isinstance(theirs, str) and theirs.split(".")[:2] != PYTHON.split("."):
            trouble = f"it was pickled by Python {theirs}, and this is Python {PYTHON}"
        else:
            try:
                exception = loads(
                    event["exception_pickle"], label=f"the exception of task {task!r}"
                )
            except SerializationError as error:
                trouble = str(error)

    if isinstance(exception, BaseException):
        if text := report.get("traceback"):
            exception.__cause__ = RemoteTraceback(_with_source(str(text)))
        return exception

    return _without_object(report, trouble, task, exception)


def _without_object(
    report: dict[str, Any], trouble: str, task: str, exception: object
) -> BaseException:
    kind, message = report.get("kind"), report.get("message")
    if exception is not None and not message:
        message = str(exception)
    said = ": ".join(str(part) for part in (kind, message) if part)
    text = f"task {task!r} failed" + (f": {said}" if said else ", and its worker did not say why")
    text += advice_on_other_wove(text)
    if trouble:
        text += f" (its exception object is missing: {trouble})"
    error = EnvironmentExecutionError(text, report)
    if remote := report.get("traceback"):
        error.__cause__ = RemoteTraceback(_with_source(str(remote)))
    return error


def _report(event: Mapping[str, Any], task: str) -> tuple[dict[str, Any], str]:
    """The plain part of the report, and what was wrong with it."""
    report: object = event.get("error")
    trouble = ""
    pickled = event.get("error_pickle")
    if report is None and isinstance(pickled, (Pickled, bytes)):
        try:
            report = loads(pickled, label=f"the error of task {task!r}")
        except SerializationError as error:
            trouble = str(error)

    if isinstance(report, BaseException):
        return {"kind": _kind(report), "message": _message(report)}, trouble
    if isinstance(report, Mapping):
        return {
            str(name): value for name, value in cast(Mapping[object, object], report).items()
        }, trouble

    return ({} if report is None else {"message": str(report)}), trouble


def _pickle(exception: BaseException, task: str) -> tuple[Pickled | None, str]:
    """Return the exception's pickle, which makes an exception of the same type, and the names of its missing parts.

    Where parts of it cannot be pickled, it travels without them. Never raises.
    """
    try:
        try:
            return _checked(exception, task), ""
        except Exception:
            copy, lacking = make_portable(exception, lambda part: _survives(part, task))
            copy.add_note(
                f"without what cannot be pickled of it: {', '.join(lacking)}"
                if lacking
                else "without what cannot be rebuilt of it"
            )
            return _checked(copy, task), ""
    except BaseException as error:  # cloudpickle missing included: the report still goes out
        return None, _message(error)


def _checked(exception: BaseException, task: str) -> Pickled:
    label = f"the exception of task {task!r}"
    pickled = dumps(exception, label=label)
    rebuilt = loads(pickled, label=label)
    if type(rebuilt) is not type(exception):
        raise SerializationError(f"{label} is rebuilt as {type(rebuilt).__name__}")
    return pickled


def _survives(part: object, task: str) -> bool:
    try:
        loads(dumps(part, label=task), label=task)
    except Exception:
        return False
    return True


def _kind(exception: BaseException) -> str:
    kind = type(exception)
    module = kind.__module__
    if module == builtins.__name__ or module == "__main__":
        return kind.__qualname__
    return f"{module}.{kind.__qualname__}"


def _message(exception: BaseException) -> str:
    try:
        return str(exception)
    except BaseException:  # the user's own __str__: anything can happen, and nothing may come of it
        return "<its message could not be printed>"


def _traceback(exception: BaseException) -> str:
    import traceback

    frames = exception.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_globals.get("__name__"), exception):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(exception), exception, frames))
    except BaseException:
        text = f"{_kind(exception)}: {_message(exception)}\n"

    if len(text) > TRACEBACK_CHARACTERS:
        half = TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"

    return text


_PLACE: Final = re.compile(
    r'^([ |]*)  File "(?P<file>[^"\n]+)", line (?P<line>\d{1,9})(?:, in .*)?$', re.MULTILINE
)


def _with_source(text: str) -> str:
    """A remote traceback with the source lines that its worker did not have, where this process has them."""
    import linecache

    def add_source(place: re.Match[str]) -> str:
        indent = place[1]
        if text.startswith(f"\n{indent}    ", place.end()):
            return place[0]
        source = linecache.getline(place["file"], int(place["line"])).strip()
        return f"{place[0]}\n{indent}    {source}" if source else place[0]

    return _PLACE.sub(add_source, text)


def _is_ours(module: object, exception: BaseException) -> bool:
    """Whether a traceback's outermost frame is the machinery that called the task."""
    if isinstance(exception, WoveError) or not isinstance(module, str):
        return False
    return module.startswith("wove.worker.")
