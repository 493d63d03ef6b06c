"""Makes exceptions show their origin: the user's lines, and the task."""

from __future__ import annotations

import os
import re
import reprlib
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, cast

from wove.errors import HELP_PAGE, DeliveryError, SerializationError

__all__ = ["ABSENT", "annotate", "raisable"]

ABSENT: Final = object()
"""Stands for the item of an error that did not come from an item."""

_ENGINE = os.path.dirname(__file__) + os.sep
_POSITION: Final = re.compile(r", item (\d+)")

_repr: Final = reprlib.Repr()  # shortens inside containers too, and does not make the rest
_repr.maxstring = _repr.maxother = 60


def annotate(
    error: BaseException,
    task: str,
    item: int | None = None,
    value: Any = ABSENT,
    origin: str = "",
) -> int | None:
    """Add a note to *error* that names *task*, and begin its traceback with the user's code.

    Args:
        error: The exception. It gets one note for each task that it passes.
        task: The task's name.
        item: The position of the item that failed; ``None`` for an unmapped task.
        value: The item itself.
        origin: The end of the note, as `Attempts.origin` returns it.

    Returns:
        The position of the item that raised it, or ``None``.
    """
    # By its method, because a class may refuse to set attributes, as a frozen dataclass does.
    error.with_traceback(_of_user(error.__traceback__))
    where = f"in task {task!r}"
    found: object = getattr(error, "__notes__", ())
    notes = list(cast("list[object]", found)) if isinstance(found, (list, tuple)) else []

    for note in notes:
        if isinstance(note, str) and note.startswith(where):
            position = _POSITION.match(note, len(where))
            return None if position is None else int(position[1])

    note = where if item is None else f"{where}, item {item}"
    if value is not ABSENT:
        note += f" (value {_shown(value)})"
    note += origin
    if isinstance(error, (DeliveryError, SerializationError)):
        note += f"\n{HELP_PAGE}"

    try:
        error.add_note(note)
    except Exception:
        with suppress(Exception):
            BaseException.__setattr__(error, "__notes__", [*notes, note])

    return item


def _shown(value: object) -> str:
    """Return *value* in at most about 60 characters of one line, whatever its ``__repr__`` does."""
    try:
        return " ".join(_repr.repr(value).split())
    except BaseException:
        return f"<{type(value).__name__}>"


def raisable(error: BaseException, task: str) -> BaseException:
    """Return *error*, or a RuntimeError for a StopIteration, which a coroutine cannot raise (PEP 479)."""
    if not isinstance(error, StopIteration):
        return error
    replaced = RuntimeError(f"task {task!r} raised StopIteration")
    replaced.__cause__ = error
    return replaced


def _of_user(traceback: TracebackType | None) -> TracebackType | None:
    found = traceback
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_ENGINE):
        found = found.tb_next
    return found or traceback
