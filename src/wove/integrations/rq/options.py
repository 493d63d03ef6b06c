"""The ``enqueue_options`` of an environment on RQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wove.graph.rules import shown
from wove.settings.config_readers import options

__all__ = ["read_options"]

OPTIONS: Final = (
    "job_timeout",
    "result_ttl",
    "failure_ttl",
    "ttl",
    "at_front",
    "depends_on",
    "meta",
    "on_success",
    "on_failure",
    "on_stopped",
    "webhooks",
)
"""The keys of ``enqueue_options``: options of `rq.Queue.enqueue` (rq/queue.py, `parse_args`)."""

RESERVED: Final = {
    "job_id": "it is made of the run's id, or of delivery_idempotency_key",
    "unique": "a job with an idempotency key is",
    "description": "it names task and run; RQ prints it",
    "retry": "a job that runs twice would report twice. Use the task's retries, or delivery_orphan_policy='requeue'",
    "repeat": "a run is one job",
    "rate_limit": "use delivery_max_in_flight, or limit_per_minute of the task",
    "pipeline": "it belongs to one submission",
    "args": "the payload is the only argument",
    "kwargs": "the payload is the only argument",
}
"""Options of it that the user cannot set, and why."""

RESULT_TTL: Final = 60
"""Seconds that a finished job is kept, so that `watch` can see how it ended. Its result is not in it."""

FAILURE_TTL: Final = 600
"""Seconds that a failed job is kept, so that its reason can be read with RQ's own tools. RQ's default is a year."""


def read_options(config: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """Return the options of `rq.Queue.enqueue` for each job, with Wove's defaults.

    Args:
        config: The ``executor_config``.
        label: What messages begin with.

    Raises:
        TypeError: ``enqueue_options`` is not a dict.
        ValueError: An option is unknown or reserved; the message says why.
    """
    given = options(config, "enqueue_options", label=label, reserved=RESERVED, known=OPTIONS)
    if not isinstance(given.get("meta") or {}, dict):
        raise TypeError(
            f"{label}: executor_config 'enqueue_options': 'meta' must be a dict, not {shown(given['meta'])}"
        )

    return {"result_ttl": RESULT_TTL, "failure_ttl": FAILURE_TTL, **given}
