"""What an exception says of where it came from: the user's lines, and which task it was."""

from __future__ import annotations

import os
from types import TracebackType

__all__ = ["annotate"]

_ENGINE = os.path.dirname(__file__) + os.sep
_ITEM = "__wove_item__"


def annotate(error: BaseException, task: str, item: int | None = None) -> int | None:
    """Note on *error* that it came from *task*, and begin its traceback with the user's code.

    Returns:
        The position of the item it came from, if it came from one.
    """
    error.__traceback__ = _of_user(error.__traceback__)
    where = f"in task {task!r}"
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, str) and note.startswith(where):
            rest = note.removeprefix(f"{where}, item ")
            return int(rest) if rest.isdigit() else None
    error.add_note(where if item is None else f"{where}, item {item}")
    return item


def _of_user(traceback: TracebackType | None) -> TracebackType | None:
    found = traceback
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_ENGINE):
        found = found.tb_next
    return found or traceback
