"""How long a backend lets a job run. Pure, and nothing but the standard library: a workflow's sandbox imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["longest_seconds"]


def longest_seconds(payload: Mapping[str, Any]) -> float:
    """After how many seconds nobody can be waiting for the job of *payload* any more; infinite without a limit.

    Its worker ends the run by itself when its time is over, and then reports that, so what a backend does at this
    limit is for workers that do not get to it.
    """
    delivery: Mapping[str, Any] = payload.get("delivery") or {}
    limits = [payload.get("deadline")]
    if delivery.get("delivery_orphan_policy") != "detach":
        limits.append(delivery.get("delivery_timeout"))
    seconds = min((each for each in limits if each is not None), default=math.inf)
    return float(seconds + (payload.get("retry_seconds") or 0))
