"""The time limit of a job. It imports only the standard library, because the sandbox of workflows imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["longest_seconds"]


def longest_seconds(payload: Mapping[str, Any]) -> float:
    """Return the seconds after which the job of *payload* cannot be awaited any more; infinite without a limit.

    The worker ends the run at its own limit, and reports that. A backend ends the job at this later limit only if the
    worker could not.
    """
    delivery: Mapping[str, Any] = payload.get("delivery") or {}
    limits = [payload.get("deadline")]
    if delivery.get("delivery_orphan_policy") != "detach":
        limits.append(delivery.get("delivery_timeout"))
    seconds = min((each for each in limits if each is not None), default=math.inf)
    return float(seconds + (payload.get("retry_seconds") or 0))
