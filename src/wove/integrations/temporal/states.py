"""The ends of workflows: one query for those that have ended, and a look at one of those that wait."""

from __future__ import annotations

import asyncio
import logging
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

__all__ = ["Fates", "end_of", "words_of", "words_of_end"]

logger = logging.getLogger("wove")

ASKED_AT_ONCE: Final = 500
"""Runs in one query."""

READ_AT_ONCE: Final = 200
"""Workflows whose ends are read after one query. The others' turn comes with the next."""

CALLS_AT_ONCE: Final = 16

WAITED_SECONDS: Final = 3.0
"""A workflow that no worker has begun for so long is looked at. (An attempt to run workflow code that fails is seen at
the next one, which follows at once.)"""

ALONE_SECONDS: Final = 10.0
"""If one has waited for so long, it is worth a warning that its task queue has no worker."""

CLOSED: Final = ("Completed", "Failed", "Canceled", "Terminated", "TimedOut", "ContinuedAsNew")
"""Values of ``ExecutionStatus`` in a list filter: docs.temporal.io/list-filter."""

GIVEN_UP: Final = "Wove has given it up, because its workers cannot run it"


class Fates:
    """Asks about workflows. For one loop.

    Args:
        client: Whom.
        task_queue: Where they wait for workers.
        begun: Whether the worker of a run has reported.
        label: What log messages begin with.
    """

    def __init__(
        self, client: Client, task_queue: str, begun: Callable[[str], bool], *, label: str
    ) -> None:
        self._client = client
        self._task_queue = task_queue
        self._begun = begun
        self._what = label
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE)
        self._looked_at = 0
        self._warned = False

    async def ask(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """The fates of those that have one, by Wove's run ids.

        Raises:
            RPCError: Temporal cannot be asked.
        """
        runs = {submission.run_id: run_id for run_id, submission in submissions.items()}
        ended = await self._ended(list(runs))
        fates: dict[str, JobStatus] = {}
        some = list(islice(ended.items(), READ_AT_ONCE))
        found = await self._all(
            self._fate_of(submissions[runs[temporals]], status) for temporals, status in some
        )
        for (temporals, _), fate in zip(some, found, strict=True):
            if fate is not None:
                fates[runs[temporals]] = fate

        now = asyncio.get_running_loop().time()
        waiting = [
            run_id
            for run_id, submission in submissions.items()
            if submission.run_id not in ended
            and now - submission.since > WAITED_SECONDS
            and not self._begun(run_id)
        ]
        if waiting:
            fates.update(await self._look_at(waiting, submissions))
        return fates

    async def _all(self, calls: Any) -> list[Any]:
        async def one(call: Any) -> Any:
            async with self._turns:
                return await call

        return await asyncio.gather(*map(one, calls))

    # ------------------------------------------------------------------ what has ended

    async def _ended(self, names: Sequence[str]) -> dict[str, WorkflowExecutionStatus | None]:
        """The status of the runs among *names* that are closed."""
        statuses = ", ".join(f"'{each}'" for each in CLOSED)
        ended: dict[str, WorkflowExecutionStatus | None] = {}

        for start in range(0, len(names), ASKED_AT_ONCE):
            some = ", ".join(f"'{name}'" for name in names[start : start + ASKED_AT_ONCE])
            query = f"RunId IN ({some}) AND ExecutionStatus IN ({statuses})"
            async for each in self._client.list_workflows(query, rpc_timeout=RPC):
                ended[each.run_id] = each.status

        return ended

    async def _fate_of(
        self, submission: Submission, status: WorkflowExecutionStatus | None
    ) -> JobStatus | None:
        """Return the end of a closed workflow; ``None``: another run of it has taken over."""
        if status is WorkflowExecutionStatus.COMPLETED:
            return JobStatus("finished", f"{submission} is completed")
        end = await end_of(submission.handle(self._client))
        if end is None:
            return JobStatus("missing", f"{submission} is gone from Temporal")
        details: Any = getattr(end, str(end.WhichOneof("attributes")))
        if next_run := getattr(details, "new_execution_run_id", ""):
            submission.run_id = next_run
            return None

        return JobStatus("lost", f"{submission} {await words_of_end(self._client, end)}")

    # ------------------------------------------------------------------ what does not begin

    async def _look_at(
        self, waiting: Sequence[str], submissions: Mapping[str, Submission]
    ) -> dict[str, JobStatus]:
        """Look at one that waits. What is wrong with it is probably wrong with all: then look at more."""
        self._looked_at += 1
        first = waiting[self._looked_at % len(waiting)]
        fate = await self._stuck(submissions[first])
        if fate is None:
            await self._warn_if_alone(submissions[first])
            return {}

        others = [run_id for run_id in waiting if run_id != first][:READ_AT_ONCE]
        found = await self._all(self._stuck(submissions[run_id]) for run_id in others)
        fates = {first: fate, **dict(zip(others, found, strict=True))}
        return {run_id: each for run_id, each in fates.items() if each is not None}

    async def _stuck(self, submission: Submission) -> JobStatus | None:
        """Why no worker can begin it; ``None``: one can."""
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
            # Or it would be tried for ever.
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
        """Return the workers' error about a workflow's code that they failed to run, such as an unknown type."""
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return None
        said: str | None = None

        async for event in submission.handle(self._client).fetch_history_events(rpc_timeout=RPC):
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                details = event.workflow_task_failed_event_attributes
                error = await self._client.data_converter.decode_failure(details.failure)
                said = f"{words_of(error)} (worker {details.identity})"
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                said = None

        return said

    async def _warn_if_alone(self, submission: Submission) -> None:
        """Warn, once as long as it is so, that nobody takes work from the task queue."""
        waited = asyncio.get_running_loop().time() - submission.since
        if waited < ALONE_SECONDS:
            return
        answer = await self._client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(
                namespace=self._client.namespace,
                task_queue=TaskQueue(name=self._task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            ),
            timeout=RPC,
        )
        if not answer.pollers and not self._warned:
            logger.warning(
                "%s: %s has been waiting for %.0f s, and no worker takes runs from the task queue %r of namespace %r. "
                "Start one: python -m wove.integrations.temporal --task-queue %s",
                self._what,
                submission,
                waited,
                self._task_queue,
                self._client.namespace,
                self._task_queue,
            )

        self._warned = not answer.pollers


async def end_of(handle: WorkflowHandle[Any, Any]) -> HistoryEvent | None:
    """The last event of a workflow that is closed; ``None``: there is none, or no such workflow.

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


async def words_of_end(client: Client, end: HistoryEvent) -> str:
    """How a workflow ended, by its last event: ``"was terminated by 7@host: the budget is spent"``."""
    kind = EventType.Name(end.event_type).removeprefix("EVENT_TYPE_WORKFLOW_EXECUTION_")
    details: Any = getattr(end, str(end.WhichOneof("attributes")))
    match kind:
        case "FAILED":
            return (
                f"failed: {words_of(await client.data_converter.decode_failure(details.failure))}"
            )
        case "TERMINATED":
            by = f" by {details.identity}" if details.identity else ""
            return f"was terminated{by}: {details.reason or 'no reason was given'}"
        case "CANCELED":
            return "was cancelled in Temporal"
        case "TIMED_OUT":
            return "timed out in Temporal (execution_timeout or run_timeout)"
        case _:
            return f"has ended in Temporal ({kind.lower()})"


def words_of(error: BaseException) -> str:
    """A failure and what it came from, in one line.

    Example:
        >>> words_of(ApplicationError("no signature", type="PermissionError"))
        'PermissionError: no signature'
    """
    said: list[str] = []
    at: BaseException | None = error
    while at is not None:
        # Only around another one: "Activity task failed".
        if at.__cause__ is None or not isinstance(at, (ActivityError, ChildWorkflowError)):
            said.append(str(at) or type(at).__name__)
        at = at.__cause__

    return ", because of ".join(said)[:MAX_CHARACTERS]
