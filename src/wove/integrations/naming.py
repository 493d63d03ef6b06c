"""Names that backends take: made from run ids, idempotency keys and task names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["idempotency_key", "job_id", "job_mark", "job_name"]

_RUN_ID: Final = re.compile(r"[A-Za-z0-9_-]+")


def idempotency_key(frame: Mapping[str, Any]) -> str | None:
    """The idempotency key of a ``run_task`` frame, if it has one."""
    delivery: Mapping[str, Any] = frame.get("delivery") or {}
    key = delivery.get("delivery_idempotency_key")
    return key if isinstance(key, str) and key else None


def job_id(frame: Mapping[str, Any], *, prefix: str = "wove-", most: int = 64) -> str:
    """The id of a job: of ``[A-Za-z0-9_-]``, and the same for runs of one task that have the same idempotency key.

    Args:
        frame: The ``run_task`` frame.
        prefix: What it begins with.
        most: The most characters that the backend takes; at least 40 beyond the prefix's.

    Example:
        >>> job_id({"run_id": "9f3a-1", "task_id": "pdf", "delivery": {}})
        'wove-9f3a-1'
    """
    key = idempotency_key(frame)
    if key is None:
        return f"{prefix}{frame['run_id']}"[:most]
    # Hashed always, and with the task's name: two tasks may use one key, and what fits one backend fits another.
    text = f"{frame['task_id']}\n{key}".encode("utf-8", "surrogatepass")
    return f"{prefix}key-{hashlib.sha256(text).hexdigest()[:32]}"[:most]


def job_mark(frame: Mapping[str, Any], size: int) -> str:
    """*size* hexadecimal digits, for a name that is otherwise made to be read: the same for the same `job_id`."""
    return hashlib.sha256(job_id(frame).encode("utf-8", "surrogatepass")).hexdigest()[:size]


def job_name(
    task: str, *, prefix: str = "wove-", most: int, pattern: str = "a-z0-9-", suffix: str = ""
) -> str:
    """A readable name for a job of *task*: the characters that the backend does not take become ``-``.

    Args:
        task: The task's name, any text.
        prefix: What it begins with.
        most: The most characters of the whole.
        pattern: The characters that are taken, as in a regular expression's brackets. Without capitals, the name
            becomes lower case.
        suffix: What it ends with, whole.

    Example:
        >>> job_name("Täsk_1", most=20, suffix="-9f3a")
        'wove-t-sk-1-9f3a'
    """
    name = task if "A-Z" in pattern else task.lower()
    name = re.sub(rf"[^{pattern}]+", "-", name).strip("-_.") or "task"
    room = most - len(prefix) - len(suffix)
    return f"{prefix}{name[:room].rstrip('-_.')}{suffix}"
