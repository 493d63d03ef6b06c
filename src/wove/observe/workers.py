"""The workers of a weave at one moment: one row for each thread, process or service that runs its tasks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EVENT_LOOP", "UNKNOWN", "WAITING", "WorkerRow"]

EVENT_LOOP = "event loop"
WAITING = "waiting for a worker"
"""The row of the runs that no worker is known to have begun."""

UNKNOWN = "worker unknown"
"""The row of the runs that ended before a worker was known."""


@dataclass(slots=True)
class WorkerRow:
    """One worker at one moment.

    Attributes:
        environment: The name of its environment.
        name: Its thread, or its host and process id.
        running: How many tasks and items it runs now.
        done: How many have ended well.
        failed: How many have failed.
        busy: For how many seconds it has worked on those that have ended.
    """

    environment: str
    name: str
    running: int = 0
    done: int = 0
    failed: int = 0
    busy: float = 0.0
