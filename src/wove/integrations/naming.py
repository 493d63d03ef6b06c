"""Names of jobs that backends accept, made from run ids, idempotency keys and task names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["idempotency_key", "job_id", "job_mark", "job_name"]

_RUN_ID: Final = re.compile(r"[A-Za-z0-9_-]+")


def idempotency_key(frame: Mapping[str, Any]) -> str | None:
    """Return the idempotency key of a ``run_task`` frame; ``None``: it has none."""
    delivery: Mapping[str, Any] = frame.get("delivery") or {}
    key = delivery.get("delivery_idempotency_key")
    return key if isinstance(key, str) and key else None


def job_id(frame: Mapping[str, Any], *, prefix: str = "wove-", most: int = 64) -> str:
    """Return the id of a job: of ``[A-Za-z0-9_-]``, the same for runs of one task with the same idempotency key.

    Args:
        frame: The ``run_task`` frame.
        prefix: What the id begins with.
        most: The maximum length; at least 40 more than that of the prefix.

    Example:
        >>> job_id({"run_id": "9f3a-1", "task_id": "pdf", "delivery": {}})
        'wove-9f3a-1'
    """
    key = idempotency_key(frame)
    if key is None:
        return f"{prefix}{frame['run_id']}"[:most]
    # Always hashed, so that the same keys work with all backends; with the task's name, since two tasks may use one
    # key.
    text = f"{frame['task_id']}\n{key}".encode("utf-8", "surrogatepass")
    return f"{prefix}key-{hashlib.sha256(text).hexdigest()[:32]}"[:most]


def job_mark(frame: Mapping[str, Any], size: int) -> str:
    """Return *size* hexadecimal digits for a readable name, the same for the same `job_id`."""
    return hashlib.sha256(job_id(frame).encode("utf-8", "surrogatepass")).hexdigest()[:size]


def job_name(
    task: str, *, prefix: str = "wove-", most: int, pattern: str = "a-z0-9-", suffix: str = ""
) -> str:
    """Return a readable name for a job of *task*. Characters that the backend does not accept become ``-``.

    Args:
        task: The task's name, any text.
        prefix: What the name begins with.
        most: The maximum length.
        pattern: The accepted characters, as in a regular expression's brackets. Without capital letters, the name
            becomes lower case.
        suffix: What the name ends with. It is never cut.

    Example:
        >>> job_name("Täsk_1", most=20, suffix="-9f3a")
        'wove-t-sk-1-9f3a'
    """
    name = task if "A-Z" in pattern else task.lower()
    name = re.sub(rf"[^{pattern}]+", "-", name).strip("-_.") or "task"
    room = most - len(prefix) - len(suffix)
    return f"{prefix}{name[:room].rstrip('-_.')}{suffix}"
