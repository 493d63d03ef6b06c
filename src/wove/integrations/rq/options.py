"""The ``enqueue_options`` of an environment on RQ."""

from __future__ import annotations

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

TAKEN: Final = {
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
"""Other options of it, and why they cannot be."""

RESULT_TTL: Final = 60
"""Seconds that a finished job is kept. Its result is elsewhere; this is so that `watch` sees how it ended."""

FAILURE_TTL: Final = 600
"""Seconds that a failed one is kept: for whoever looks for the reason with RQ's own tools. RQ's default is a year."""


def read_options(value: object, *, label: str) -> dict[str, Any]:
    """The options of `rq.Queue.enqueue` for each job, with our defaults.

    Args:
        value: A dict, or ``None``.
        label: What messages begin with.

    Raises:
        TypeError: It is not a dict.
        ValueError: An option is not one, or not the user's to set; the message says why.
    """
    given = options(value, "enqueue_options", label=label, taken=TAKEN, known=OPTIONS)
    if not isinstance(given.get("meta") or {}, dict):
        raise TypeError(
            f"{label}: executor_config 'enqueue_options': 'meta' must be a dict, not {shown(given['meta'])}"
        )

    return {"result_ttl": RESULT_TTL, "failure_ttl": FAILURE_TTL, **given}
