"""Temporal: a run is a workflow of one activity.

Its worker is ``python -m wove.integrations.temporal --task-queue reports``, or one of the user's own::

    from wove.integrations.temporal import activities, workflows

    worker = Worker(client, task_queue="reports", workflows=workflows(), activities=activities())

This may stand in a module with workflows: their sandbox, which imports it anew, gets no more of Wove than workflow code
needs. All else is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.temporal.adapter import TemporalAdapter
    from wove.integrations.temporal.worker import main
    from wove.integrations.temporal.workflow import RunBackendPayload, run_payload
    from wove.security import SecurityConfig

__all__ = ["RunBackendPayload", "TemporalAdapter", "activities", "main", "run_payload", "workflows"]

_HOMES = {
    "RunBackendPayload": "workflow",
    "TemporalAdapter": "adapter",
    "main": "worker",
    "run_payload": "workflow",
}


def workflows() -> list[type]:
    """Return the workflows for ``Worker(workflows=[...])``."""
    from wove.integrations.temporal.workflow import RunBackendPayload

    return [RunBackendPayload]


def activities(*, security: SecurityConfig = None) -> list[Callable[..., Any]]:
    """Return the activities for ``Worker(activities=[...])``.

    Args:
        security: As the environment's ``security``; ``None``: the secret in the variable ``WOVE_WORKER_SECRET``, if
            there is one.

    Raises:
        ValueError: *security* is not right.

    Example::

        worker = Worker(
            client, task_queue="reports", workflows=[Mine, *workflows()], activities=[mine, *activities()]
        )
    """
    from wove.integrations.temporal.worker import make_activity

    return [make_activity(security)]


# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, _HOMES)
