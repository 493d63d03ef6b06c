"""The notes of Dask's scheduler and workers about a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

__all__ = ["never_began"]

SCHEDULER: Final = "scheduler"
"""Who tells, in the scheduler's rows (distributed/client.py, `Client._story`); a worker's have its address."""

STARTED: Final = frozenset({"executing", "long-running", "resumed", "memory", "error", "flight"})
"""States of a task at a worker that has begun it."""

TRANSITION: Final = 6
"""Number of columns in a worker's row about two states: before, wanted, after, what follows from it, why, when."""

GONE: Final = frozenset({"released", "forgotten"})


def never_began(key: str, story: Iterable[tuple[Any, ...]]) -> bool:
    """Whether *story*, told after a cancel, shows that no worker has begun the task *key*, and none will.

    The notes are of limited length, and the oldest go first. So that nothing is said of an end is not proof: the task's
    beginning and its end must both be there.

    Args:
        key: The task's.
        story: Rows of `distributed.Client.story`: who tells, the key, and what happened to it. The scheduler's go on
            with the state before and after; a worker's with ``"compute-task"``, or with the states before, wanted and
            after (distributed/worker_state_machine.py, `WorkerState._transition`).

    Example:
        >>> never_began("k", [("scheduler", "k", "released", "waiting"), ("scheduler", "k", "waiting", "forgotten")])
        True
    """
    at_scheduler: list[tuple[Any, ...]] = []
    at_workers: dict[str, list[tuple[Any, ...]]] = {}
    for who, about, *row in story:
        if about == key:
            rows = at_scheduler if who == SCHEDULER else at_workers.setdefault(who, [])
            rows.append(tuple(row))

    if not at_scheduler or at_scheduler[0][0] != "released" or at_scheduler[-1][1] not in GONE:
        return False
    if not at_workers:
        return all("processing" not in row[:2] for row in at_scheduler)
    return all(map(_only_waited, at_workers.values()))


def _only_waited(rows: list[tuple[Any, ...]]) -> bool:
    """Whether a worker has had the task, has given it up, and has done nothing in between."""
    states = [row[:3] for row in rows if len(row) == TRANSITION]
    if not states or all(row[0] != "compute-task" for row in rows):
        return False
    return states[-1][2] in GONE and not any(STARTED.intersection(each) for each in states)
