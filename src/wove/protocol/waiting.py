"""Events that wait to be sent: newer reports of a run take the place of older ones, and its lines are collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

__all__ = ["MAX_WAITING_LINES", "add_waiting", "size_of_lines", "without_lines"]

MAX_WAITING_LINES: Final = 5_000
"""How many lines of a run are kept where its events cannot be sent before its end; the newest ones."""

LINE_OVERHEAD_BYTES: Final = 64

E = TypeVar("E", bound=Mapping[str, Any])


def add_waiting(waiting: list[E], event: E) -> None:
    """Add *event* to the events that wait, or to an older event of its run and kind.

    So the list stays short however long nothing is sent, and however much a task reports.
    """
    kind = event["type"]
    if kind == "progress" or "lines" in event:
        for index, other in enumerate(waiting):
            if other["type"] == kind and other["run_id"] == event["run_id"]:
                waiting[index] = event if kind == "progress" else cast("E", _joined(other, event))
                return

    waiting.append(event)


def _joined(older: Mapping[str, Any], newer: Mapping[str, Any]) -> Mapping[str, Any]:
    lines = [*older.get("lines", ()), *newer["lines"]]
    surplus = max(0, len(lines) - MAX_WAITING_LINES)
    dropped = older.get("dropped", 0) + newer.get("dropped", 0) + surplus
    return {**newer, "lines": lines[surplus:], "dropped": dropped}


def size_of_lines(event: Mapping[str, Any]) -> int:
    """Return about how many bytes the lines of a ``log`` event take; 0 for any other event."""
    return sum(len(line[-1]) + LINE_OVERHEAD_BYTES for line in event.get("lines", ()))


def without_lines(event: E) -> E:
    """Return a ``log`` event that only counts its lines, for a client that does not keep up."""
    dropped = event.get("dropped", 0) + len(event["lines"])
    return cast("E", {**event, "lines": [], "dropped": dropped})
