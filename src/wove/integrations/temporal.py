"""Temporal: a run is a workflow of one activity.

Its worker is ``python -m wove.integrations.temporal --task-queue reports``, or one of the user's own::

    from wove.integrations.temporal import activities, workflows

    worker = Worker(client, task_queue="reports", workflows=workflows(), activities=activities())

This may stand in a module with workflows: their sandbox, which imports it anew, gets no more of Wove than workflow code
needs. All else is imported on first use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wove.integrations.temporal_adapter import TemporalAdapter
    from wove.integrations.temporal_worker import main
    from wove.integrations.temporal_workflow import RunBackendPayload, run_payload
    from wove.security import SecurityConfig

__all__ = ["RunBackendPayload", "TemporalAdapter", "activities", "main", "run_payload", "workflows"]

_HOMES = {
    "RunBackendPayload": "temporal_workflow",
    "TemporalAdapter": "temporal_adapter",
    "main": "temporal_worker",
    "run_payload": "temporal_workflow",
}


def workflows() -> list[type]:
    """What belongs into ``Worker(workflows=[...])``."""
    from wove.integrations.temporal_workflow import RunBackendPayload

    return [RunBackendPayload]


def activities(*, security: SecurityConfig = None) -> list[Callable[..., Any]]:
    """What belongs into ``Worker(activities=[...])``.

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
    from wove.integrations.temporal_worker import make_activity

    return [make_activity(security)]


# Hidden from type checkers, which would otherwise believe in every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'wove.integrations.temporal' has no attribute {name!r}")
        return getattr(importlib.import_module(f"wove.integrations.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


if __name__ == "__main__":
    from wove.integrations.temporal_worker import main as command

    sys.exit(command())
