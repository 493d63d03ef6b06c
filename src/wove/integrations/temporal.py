"""Temporal: a run is a workflow of one activity.

Its worker is ``python -m wove.integrations.temporal --task-queue reports``, or one of the user's own::

    from wove.integrations.temporal import activities, workflows

    worker = Worker(client, task_queue="reports", workflows=workflows(), activities=activities())

Everything here is imported on first use, so that a workflow's sandbox, which imports a worker's modules once more, gets
no more than what workflow code needs.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wove.integrations.temporal_adapter import TemporalAdapter
    from wove.integrations.temporal_worker import activities, main, workflows
    from wove.integrations.temporal_workflow import RunBackendPayload, run_payload

__all__ = ["RunBackendPayload", "TemporalAdapter", "activities", "main", "run_payload", "workflows"]

_HOMES = {
    "RunBackendPayload": "temporal_workflow",
    "TemporalAdapter": "temporal_adapter",
    "activities": "temporal_worker",
    "main": "temporal_worker",
    "run_payload": "temporal_workflow",
    "workflows": "temporal_worker",
}


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
