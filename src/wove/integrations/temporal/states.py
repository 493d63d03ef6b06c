"""The states of workflows: one query for those that have ended, and a closer look at one of those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from temporalio.api.enums.v1 import EventType, TaskQueueType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowHistoryEventFilterType,
)
from temporalio.exceptions import ActivityError, ChildWorkflowError
from temporalio.service import RPCError, RPCStatusCode

from wove.integrations.base import JobStatus
from wove.integrations.common.error_text import MAX_CHARACTERS
from wove.integrations.temporal.client import RPC, Submission

__all__ = ["WorkflowProbe", "close_event", "end_text", "failure_text"]

MAX_QUERY_RUNS: Final = 500
"""Maximum number of runs in one query."""

MAX_READ_ENDS: Final = 200
"""Maximum number of workflows whose ends are read after one query. The remaining ones are read after the next."""

MAX_PENDING_CALLS: Final = 16
"""Maximum number of pending calls to the server."""

WAITED_SECONDS: Final = 3.0
"""How long a workflow may wait for a worker before its history is read. (A failed attempt to run workflow code can be
seen at the next attempt, which follows at once.)"""

CLOSED: Final = ("Completed", "Failed", "Canceled", "Terminated", "TimedOut", "ContinuedAsNew")
"""Values of ``ExecutionStatus`` in a list filter: docs.temporal.io/list-filter."""

GIVEN_UP: Final = "Wove has given it up, because its workers cannot run it"


class WorkflowProbe:
    """Finds out which workflows are over. For one loop.

    Args:
        client: The client for all calls.
        task_queue: The task queue of the workflows.
        has_started: As `BackendAdapter`.
    """

    def __init__(self, client: Client, task_queue: str, has_started: Callable[[str], bool]) -> None:
        self._client = client
        self._task_queue = task_queue
        self._has_started = has_started
        self._slots = asyncio.Semaphore(MAX_PENDING_CALLS)
        self._probes = 0

    async def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each workflow that is over or cannot be run; see `StatusProbe`.

        Raises:
            RPCError: Temporal cannot be asked.
        """
        runs = {submission.run_id: run_id for run_id, submission in submissions.items()}
        ended = await self._closed(list(runs))
        statuses: dict[str, JobStatus] = {}
        some = list(islice(ended.items(), MAX_READ_ENDS))
        found = await self._all(
            self._status(submissions[runs[temporals]], state) for temporals, state in some
        )
        for (temporals, _), status in zip(some, found, strict=True):
            if status is not None:
                statuses[runs[temporals]] = status

        now = asyncio.get_running_loop().time()
        waiting = [
            run_id
            for run_id, submission in submissions.items()
            if submission.run_id not in ended
            and now - submission.since > WAITED_SECONDS
            and not self._has_started(run_id)
        ]
        if waiting:
            statuses.update(await self._stuck(waiting, submissions))
        return statuses

    async def _all(self, calls: Any) -> list[Any]:
        async def one(call: Any) -> Any:
            async with self._slots:
                return await call

        return await asyncio.gather(*map(one, calls))

    # ------------------------------------------------------------------ workflows that have ended

    async def _closed(self, names: Sequence[str]) -> dict[str, WorkflowExecutionStatus | None]:
        """Return the state of the runs among *names* that are closed."""
        states = ", ".join(f"'{each}'" for each in CLOSED)
        ended: dict[str, WorkflowExecutionStatus | None] = {}

        for start in range(0, len(names), MAX_QUERY_RUNS):
            some = ", ".join(f"'{name}'" for name in names[start : start + MAX_QUERY_RUNS])
            query = f"RunId IN ({some}) AND ExecutionStatus IN ({states})"
            async for each in self._client.list_workflows(query, rpc_timeout=RPC):
                ended[each.run_id] = each.status

        return ended

    async def _status(
        self, submission: Submission, state: WorkflowExecutionStatus | None
    ) -> JobStatus | None:
        """Return the status of a closed workflow; ``None``: another run of it has taken over."""
        if state is WorkflowExecutionStatus.COMPLETED:
            return JobStatus("finished", f"{submission} is completed")
        end = await close_event(submission.handle(self._client))
        if end is None:
            return JobStatus("missing", f"{submission} is gone from Temporal")
        details: Any = getattr(end, str(end.WhichOneof("attributes")))
        if next_run := getattr(details, "new_execution_run_id", ""):
            submission.run_id = next_run
            return None

        return JobStatus("lost", f"{submission} {await end_text(self._client, end)}")

    # ------------------------------------------------------------------ workflows that wait

    async def _stuck(
        self, waiting: Sequence[str], submissions: Mapping[str, Submission]
    ) -> dict[str, JobStatus]:
        """Return the status of waiting workflows that cannot be run. Only if one cannot, more of them are checked."""
        self._probes += 1
        first = waiting[self._probes % len(waiting)]
        status = await self._stuck_status(submissions[first])
        if status is None:
            return {}

        others = [run_id for run_id in waiting if run_id != first][:MAX_READ_ENDS]
        found = await self._all(self._stuck_status(submissions[run_id]) for run_id in others)
        statuses = {first: status, **dict(zip(others, found, strict=True))}
        return {run_id: each for run_id, each in statuses.items() if each is not None}

    async def _stuck_status(self, submission: Submission) -> JobStatus | None:
        """Return the status of a workflow that no worker can run; ``None``: one can."""
        handle = submission.handle(self._client)

        try:
            description = await handle.describe(rpc_timeout=RPC)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return JobStatus("missing", f"{submission} is gone from Temporal: it was deleted")
            raise

        if description.raw_description.pending_workflow_task.attempt < 2:
            return None
        said = await self._failure_of_code(submission, description)
        if said is None:
            return None
        try:
            # Otherwise the server would try it for ever.
            await handle.terminate(reason=GIVEN_UP, rpc_timeout=RPC)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

        return JobStatus(
            "lost", f"{submission} of type {description.workflow_type!r} cannot be run: {said}"
        )

    async def _failure_of_code(
        self, submission: Submission, description: WorkflowExecutionDescription
    ) -> str | None:
        """Return the workers' error about workflow code that they failed to run, such as an unknown type."""
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return None
        said: str | None = None

        async for event in submission.handle(self._client).fetch_history_events(rpc_timeout=RPC):
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                details = event.workflow_task_failed_event_attributes
                error = await self._client.data_converter.decode_failure(details.failure)
                said = f"{failure_text(error)} (worker {details.identity})"
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                said = None

        return said

    async def why_waiting(self) -> str:
        """Return why workflows wait: whether workers poll the task queue, or none does.

        Raises:
            RPCError: Temporal cannot be asked.
        """
        answer = await self._client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(
                namespace=self._client.namespace,
                task_queue=TaskQueue(name=self._task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            ),
            timeout=RPC,
        )
        queue = f"task queue {self._task_queue!r} of namespace {self._client.namespace!r}"
        if not answer.pollers:
            return (
                f"no Temporal worker polls {queue} (python -m wove.integrations.temporal --task-queue "
                f"{self._task_queue})"
            )
        return f"{len(answer.pollers)} Temporal workers poll {queue}"


async def close_event(handle: WorkflowHandle[Any, Any]) -> HistoryEvent | None:
    """Return the last event of a closed workflow; ``None``: it is not closed, or there is no such workflow.

    Raises:
        RPCError: Temporal cannot be asked.
    """
    last: HistoryEvent | None = None
    only = WorkflowHistoryEventFilterType.CLOSE_EVENT

    try:
        async for event in handle.fetch_history_events(event_filter_type=only, rpc_timeout=RPC):
            last = event
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise

    return last


async def end_text(client: Client, end: HistoryEvent) -> str:
    """Return how a workflow ended, by its last event: ``"was terminated by 7@host: the budget is spent"``."""
    kind = EventType.Name(end.event_type).removeprefix("EVENT_TYPE_WORKFLOW_EXECUTION_")
    details: Any = getattr(end, str(end.WhichOneof("attributes")))
    match kind:
        case "FAILED":
            return f"failed: {failure_text(await client.data_converter.decode_failure(details.failure))}"
        case "TERMINATED":
            by = f" by {details.identity}" if details.identity else ""
            return f"was terminated{by}: {details.reason or 'no reason was given'}"
        case "CANCELED":
            return "was cancelled in Temporal"
        case "TIMED_OUT":
            return "timed out in Temporal (execution_timeout or run_timeout)"
        case _:
            return f"has ended in Temporal ({kind.lower()})"


def failure_text(error: BaseException) -> str:
    """Return a failure and its causes in one line.

    Example:
        >>> failure_text(ApplicationError("no signature", type="PermissionError"))
        'PermissionError: no signature'
    """
    said: list[str] = []
    at: BaseException | None = error
    while at is not None:
        # These only wrap their cause, with a text such as "Activity task failed".
        if at.__cause__ is None or not isinstance(at, (ActivityError, ChildWorkflowError)):
            said.append(str(at) or type(at).__name__)
        at = at.__cause__

    return ", because of ".join(said)[:MAX_CHARACTERS]
