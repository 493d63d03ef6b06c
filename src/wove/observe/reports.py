"""`wove.progress`: a task reports how far it is, wherever it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

__all__ = ["REPORTER", "FindReporter", "Report", "Reporter", "progress", "report_of_event"]

MAX_NOTE_CHARACTERS: Final = 200
"""A note is one line of a display; longer ones are cut."""


class Report(NamedTuple):
    """The last progress that a task, or an item of a mapped task, has reported.

    Attributes:
        done: How much is done; ``None`` where only a note was given.
        total: How much there is; ``None`` where that is not known.
        note: One line of text; empty where none was given.
        item: The position of the item that reported it; ``None`` for an unmapped task, and in this process.
        host: The worker's host name; ``None`` in this process.
    """

    done: float | None
    total: float | None
    note: str
    item: int | None = None
    host: str | None = None


class Reporter(Protocol):
    """Receives the reports of one task."""

    def report(self, report: Report, /) -> None:
        """Take in *report*. Called from any thread; must neither raise nor block."""


FindReporter: TypeAlias = Callable[[], Reporter | None]
"""Returns the reporter of a task; ``None`` once the task has ended. A weak reference is one."""

REPORTER: Final[ContextVar[FindReporter | None]] = ContextVar("wove_reporter", default=None)
"""Finds the reporter of the task that the current code is part of."""


def progress(
    done: float | None = None, total: float | None = None, note: str | None = None
) -> None:
    """Report how far the current task is: the progress display, the live page and events show it.

    May be called as often as is convenient: a worker sends at most ten reports a second, the last one in any case.
    Outside a task the call has no effect, so that functions can also be used alone.

    Args:
        done: How much is done, in any unit.
        total: How much there is, in the same unit; ``None`` where that is not known.
        note: One line that says what is going on.

    Raises:
        TypeError: *done* or *total* is not a number, or *note* is not text.
        ValueError: *done* or *total* is negative or not finite, or nothing was given.

    Example:
        >>> def train(model, epochs):
        ...     for epoch in range(epochs):
        ...         loss = model.fit_once()
        ...         wove.progress(epoch + 1, epochs, f"loss {loss:.3f}")
    """
    report = Report(
        _number(done, "done"), _number(total, "total"), "" if note is None else _line(note)
    )
    if report == _NOTHING:
        raise ValueError("wove.progress: give what is done, or a note")
    find = REPORTER.get()
    reporter = None if find is None else find()
    if reporter is not None:
        reporter.report(report)


_NOTHING: Final = Report(None, None, "")


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"wove.progress: {name} must be a number, not {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"wove.progress: {name} must be 0 or more, and finite, not {value!r}")
    return value


def _line(note: object) -> str:
    if not isinstance(note, str):
        raise TypeError(f"wove.progress: note must be text, not {type(note).__name__}")
    return " ".join(note.split())[:MAX_NOTE_CHARACTERS]


def report_of_event(event: Mapping[str, Any], item: int | None, host: str | None) -> Report | None:
    """Return the report of a ``progress`` event; ``None`` where its fields are not what they should be."""
    try:
        done, total = _number(event.get("done"), "done"), _number(event.get("total"), "total")
        return Report(done, total, _line(event.get("note") or ""), item, host)
    except (TypeError, ValueError):
        return None
