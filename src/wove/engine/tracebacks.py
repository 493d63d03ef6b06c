"""The origin that an exception shows: the user's lines, and the task."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType
from typing import cast

__all__ = ["annotate", "raisable"]

_ENGINE = os.path.dirname(__file__) + os.sep


def annotate(error: BaseException, task: str, item: int | None = None) -> int | None:
    """Note on *error* that it came from *task*, and begin its traceback with the user's code.

    Returns:
        The position of the item it came from, if it came from one.
    """
    # By its method: a class may refuse to have attributes set, as a frozen dataclass does.
    error.with_traceback(_of_user(error.__traceback__))
    where = f"in task {task!r}"
    found: object = getattr(error, "__notes__", ())
    notes = list(cast("list[object]", found)) if isinstance(found, (list, tuple)) else []
    for note in notes:
        if isinstance(note, str) and note.startswith(where):
            rest = note.removeprefix(f"{where}, item ")
            return int(rest) if rest.isdigit() else None

    note = where if item is None else f"{where}, item {item}"

    try:
        error.add_note(note)
    except Exception:
        with suppress(Exception):
            BaseException.__setattr__(error, "__notes__", [*notes, note])

    return item


def raisable(error: BaseException, task: str) -> BaseException:
    """*error*, or where it is one that cannot be raised out of a coroutine, what Python makes of it (PEP 479)."""
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
