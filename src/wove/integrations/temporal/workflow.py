"""Wove's workflow for Temporal, and the step of which it consists, for workflows of one's own.

It is imported in the sandbox of workflows too, so it imports nothing but Temporal and the standard library. What a
workflow decides must stay the same when it is replayed: everything here depends on the payload alone.
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
"""The types under which a worker knows them."""

HEARTBEAT_SECONDS: Final = 10.0
"""After so long without a heartbeat, Temporal takes an activity for lost. The weave knows at once: see
`wove.callback.liveness`."""

GRACE_SECONDS: Final = 30.0
"""By what Temporal's time limit comes after the run's: the worker ends the run by itself, and reports that."""

MAX_SECONDS: Final = 10 * 365 * 86400.0
"""An activity must have a time limit; this is none. The server takes it: it cuts what is longer than its workflow."""


async def run_payload(payload: Mapping[str, Any]) -> None:
    """Run *payload* as an activity, once; to be awaited in a workflow.

    It is begun whenever a worker has room, and ends when the weave cannot be waiting any more, when its worker gives
    no sign of life, or with the workflow's cancellation, which the running task hears of.

    Args:
        payload: What the workflow was started with.

    Raises:
        ActivityError: The activity has failed: what happened instead of a report to the weave, not in the task.

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
        # How often a run is tried is for its weave to say, and who is told to try again is told by it.
        retry_policy=RetryPolicy(maximum_attempts=1),
        # Closed, the workflow would say of an activity that still runs that it has ended.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


# Nothing in it needs the sandbox, which would import all this anew for each run.
@workflow.defn(name=WORKFLOW, sandboxed=False)
class RunBackendPayload:
    """One activity that runs one payload. Belongs into ``Worker(workflows=[...])``."""

    @workflow.run
    async def run(self, payload: dict[str, Any]) -> None:
        """Run *payload*, as `run_payload` does."""
        await run_payload(payload)
