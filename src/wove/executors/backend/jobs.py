"""The runs that were handed to a backend and have not ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from wove.executors.base import Frame
from wove.integrations.naming import idempotency_key
from wove.protocol.completed_runs import Key

__all__ = ["SubmittedJob"]

RECONNECT_SECONDS: Final = 60.0
"""Default of ``delivery_reconnect_seconds``: how long a worker may be silent whose connection the network has cut."""


class SubmittedJob:
    """One run that is being submitted, or was.

    Attributes:
        run_id: The id of the run.
        task: The task's name.
        reconnect_seconds: How long its worker may be silent because of the network.
        key: The key of its result in the completed runs; ``None`` without an idempotency key.
        submission: What the adapter returned; ``None`` before.
        submitted: Whether the adapter has returned.
        started: Whether a worker has reported the start.
        worker: The process that runs it: host, pid and a random number; ``""``: not known.
        cancelled: Whether it was cancelled, and its end is still awaited.
        claims: The ids of the pickles that its worker may fetch.
        suspicion: The task that runs after its worker's connection has ended.
        stopped: Whether its worker has reported that it was stopped, and the backend is asked for the reason.
    """

    __slots__ = (
        "cancelled",
        "claims",
        "key",
        "reconnect_seconds",
        "run_id",
        "started",
        "stopped",
        "submission",
        "submitted",
        "suspicion",
        "task",
        "worker",
    )

    def __init__(self, frame: Frame, environment: str) -> None:
        self.run_id: str = frame["run_id"]
        self.task: str = frame["task_id"]
        key = idempotency_key(frame)
        self.key: Key | None = None if key is None else (environment, self.task, key)
        delivery: Mapping[str, Any] = frame.get("delivery") or {}
        self.reconnect_seconds = float(
            delivery.get("delivery_reconnect_seconds", RECONNECT_SECONDS)
        )
        self.submission: Any = None
        self.worker = ""
        self.submitted = self.started = self.cancelled = self.stopped = False
        self.claims: list[str] = []
        self.suspicion: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"run {self.run_id} of task {self.task!r}"
