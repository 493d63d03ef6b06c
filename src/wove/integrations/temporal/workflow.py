"""Wove's workflow for Temporal, and its only step, for workflows of the user's own.

The sandbox of workflows imports this module, so it imports only Temporal and the standard library. A workflow must make
the same decisions when it is replayed, so everything here depends on the payload alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.common import RetryPolicy

from wove.integrations.common.timing import longest_seconds

__all__ = ["ACTIVITY", "HEARTBEAT_SECONDS", "WORKFLOW", "RunBackendPayload", "run_payload"]

WORKFLOW: Final = "wove.run_backend_payload"
ACTIVITY: Final = "wove.run_backend_payload"
"""The registered names of workflow and activity."""

HEARTBEAT_SECONDS: Final = 10.0
"""How long an activity may send no heartbeat before Temporal counts it as lost. The weave knows at once: see
`wove.callback.liveness`."""

GRACE_SECONDS: Final = 30.0
"""Seconds by which Temporal's time limit is later than the run's, at which the worker ends the run and reports that."""

MAX_SECONDS: Final = 10 * 365 * 86400.0
"""The time limit that stands for none. An activity must have one, and the server cuts it to the workflow's."""


async def run_payload(payload: Mapping[str, Any]) -> None:
    """Run *payload* as an activity, once; to be awaited in a workflow.

    A worker starts it when it has capacity. It ends when the weave cannot be waiting any more, when its worker sends no
    heartbeat, or when the workflow is cancelled, which the running task is told.

    Args:
        payload: The argument of the workflow.

    Raises:
        ActivityError: The activity itself has failed and did not report to the weave. A failure of the task is not one.

    Example::

        @workflow.defn
        class Audited:
            @workflow.run
            async def run(self, payload: dict[str, Any]) -> None:
                await workflow.execute_activity(audit, payload["task_name"], start_to_close_timeout=MINUTE)
                await run_payload(payload)
    """
    await workflow.execute_activity(
        ACTIVITY,
        payload,
        start_to_close_timeout=timedelta(
            seconds=min(longest_seconds(payload) + GRACE_SECONDS, MAX_SECONDS)
        ),
        heartbeat_timeout=timedelta(seconds=HEARTBEAT_SECONDS),
        # The weave decides how often a run is tried, and submits each attempt itself.
        retry_policy=RetryPolicy(maximum_attempts=1),
        # Otherwise the workflow would be closed while its activity still runs.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


# It does not need the sandbox, which would import all modules again for each run.
@workflow.defn(name=WORKFLOW, sandboxed=False)
class RunBackendPayload:
    """A workflow with one activity, which runs one payload. For ``Worker(workflows=[...])``."""

    @workflow.run
    async def run(self, payload: dict[str, Any]) -> None:
        """Run *payload*, as `run_payload` does."""
        await run_payload(payload)
