"""The states of Dask's tasks: as the client knows them, and as the logs of scheduler and workers show them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from wove.integrations.base import JobStatus
from wove.integrations.common.client_loops import ClientCalls
from wove.integrations.common.error_text import exception_text

__all__ = ["FutureProbe", "loop_of", "never_started"]

SCHEDULER: Final = "scheduler"
"""The source of the scheduler's rows (distributed/client.py, `Client._story`); those of a worker have its address."""

STARTED: Final = frozenset({"executing", "long-running", "resumed", "memory", "error", "flight"})
"""States of a task at a worker that has started it."""

TRANSITION: Final = 6
"""Number of columns in a worker's row about a transition: before, requested, after, consequences, reason, time."""

GONE: Final = frozenset({"released", "forgotten"})
"""States of a task that scheduler or worker has dropped."""


class FutureProbe:
    """Finds out which tasks are over, from their futures: the scheduler sends each change to the client.

    Args:
        client: Returns the client; ``None`` while there is none.
        calls: Makes calls on the client's loop.
    """

    def __init__(self, client: Callable[[], Any], calls: ClientCalls) -> None:
        self._client = client
        self._calls = calls

    async def ended(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        """Return the status of each task that is over; see `StatusProbe`."""
        # No reference to a future may remain after this call, since Dask keeps a task as long as there is one.
        client = self._client()
        if client is None:
            return {}
        if not loop_of(client).is_running():
            lost = JobStatus("lost", "the event loop of its Dask client has ended")
            return dict.fromkeys(submissions, lost)

        states = {run_id: future.status for run_id, future in submissions.items()}
        statuses = {
            run_id: JobStatus("finished", "finished")
            for run_id, state in states.items()
            if state == "finished"
        }
        over = [run_id for run_id, state in states.items() if state in ("error", "cancelled")]
        if over:

            async def reasons() -> list[str]:
                return [await _reason(submissions[run_id], client) for run_id in over]

            statuses |= {
                run_id: JobStatus("lost", reason)
                for run_id, reason in zip(over, await self._calls.call(reasons), strict=True)
            }

        return statuses


async def _reason(future: Any, client: Any) -> str:
    """Return why a task is over, as Dask says it. Called on the client's loop; it does not wait."""
    if future.status == "error":
        return exception_text(await future.exception())

    try:
        await future.result()
    except BaseException as error:
        if (
            isinstance(error, asyncio.CancelledError)
            and (task := asyncio.current_task())
            and task.cancelling()
        ):
            raise
        reason = exception_text(error)
    else:
        return "finished"

    return reason if client.status == "running" else f"{reason} (the client is {client.status})"


def loop_of(client: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop of a `distributed.Client`."""
    return cast("asyncio.AbstractEventLoop", client.loop.asyncio_loop)


def never_started(key: str, story: Iterable[tuple[Any, ...]]) -> bool:
    """Return whether *story*, read after a cancel, shows that no worker has started the task *key*, and none will.

    The logs are limited, and the oldest rows are dropped first. So the absence of a row proves nothing: the first and
    the last transition of the task must both be there.

    Args:
        key: The key of the task.
        story: Rows of `distributed.Client.story`: source, key, and what happened. The scheduler's go on with the states
            before and after; a worker's with ``"compute-task"``, or with the states before, requested and after
            (distributed/worker_state_machine.py, `WorkerState._transition`).

    Example:
        >>> never_started("k", [("scheduler", "k", "released", "waiting"), ("scheduler", "k", "waiting", "forgotten")])
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
    """Return whether a worker has received the task and dropped it without starting it."""
    states = [row[:3] for row in rows if len(row) == TRANSITION]
    if not states or all(row[0] != "compute-task" for row in rows):
        return False
    return states[-1][2] in GONE and not any(STARTED.intersection(each) for each in states)
