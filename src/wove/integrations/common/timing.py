"""The time limit of a job. It imports only the standard library, because the sandbox of workflows imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["longest_seconds", "run_seconds", "trip_seconds"]


def longest_seconds(payload: Mapping[str, Any]) -> float:
    """Return the seconds after which the job of *payload* cannot be awaited any more; infinite without a limit.

    The worker ends the run at its own limit, and reports that. A backend ends the job at this later limit only if the
    worker could not.
    """
    return min(run_seconds(payload), trip_seconds(payload))


def run_seconds(payload: Mapping[str, Any]) -> float:
    """Return the seconds after which the job of *payload* is over once a worker has started it; infinite without a
    limit."""
    return _with_report(payload, payload.get("deadline"))


def trip_seconds(payload: Mapping[str, Any]) -> float:
    """Return the seconds after its submission when the job of *payload* is over; infinite without a limit."""
    delivery: Mapping[str, Any] = payload.get("delivery") or {}
    if delivery.get("delivery_orphan_policy") == "detach":
        return math.inf
    return _with_report(payload, delivery.get("delivery_timeout"))


def _with_report(payload: Mapping[str, Any], seconds: float | None) -> float:
    return math.inf if seconds is None else float(seconds + (payload.get("retry_seconds") or 0))
