"""Events that wait to be sent: newer reports of a run take the place of older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["add_waiting"]

E = TypeVar("E", bound=Mapping[str, Any])


def add_waiting(waiting: list[E], event: E) -> None:
    """Add *event* to the events that wait, instead of an older report of its run.

    So the list stays short however long nothing is sent, and however often a task reports its progress.
    """
    if event["type"] == "progress":
        for index, other in enumerate(waiting):
            if other["type"] == "progress" and other["run_id"] == event["run_id"]:
                waiting[index] = event
                return

    waiting.append(event)
