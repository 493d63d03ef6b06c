"""One command to a worker service, and what is known of it until its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from wove.executors.base import Frame
from wove.protocol import signing

__all__ = ["PendingRequest", "Reply", "Verify"]

Verify: TypeAlias = Callable[[Sequence[bytes]], None]
"""Is given a reply before anything in it is decoded; raises `PermissionError` if it is not authentic."""

Reply: TypeAlias = tuple[list[bytes], bool, str, Verify | None]
"""The arguments of `NetworkExecutor.answered`, beside the exchange."""


class PendingRequest:
    """One command on its way out, and what comes back for it.

    Attributes:
        run_id: Of the run.
        task: The task's name.
        frame: The command.
        is_cancel: Whether it is a ``cancel_task``.
        chunks: The command as one JSON text. A transport may clear it once it is written.
        size: Bytes of all chunks.
        digest: Of the chunks, if requests are signed.
        sent_headers: What the request was signed with, to verify the reply.
        state: The transport's own.
        sent: `wove.executors.network.executor.NetworkExecutor.transmit` has been called for it.
        over: Nothing that comes for it counts any more.
        unwanted: Its service has been told to cancel it.
    """

    __slots__ = (
        "began",
        "busy_since",
        "chunks",
        "digest",
        "frame",
        "heard",
        "is_cancel",
        "offers",
        "over",
        "run_id",
        "sent",
        "sent_headers",
        "size",
        "state",
        "task",
        "timer",
        "unread",
        "unwanted",
    )

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.run_id: str = frame["run_id"]
        self.task: str = frame["task_id"]
        self.is_cancel = frame["type"] == "cancel_task"
        self.chunks: list[bytes] = []
        self.size = 0
        self.digest: signing.Digest | None = None
        self.sent_headers: Any = None
        self.state: Any = None
        self.sent = self.over = self.heard = self.unwanted = False
        self.busy_since: float | None = None
        self.offers = 0
        self.timer: asyncio.TimerHandle | None = None
        self.unread: deque[Reply] = deque()

    def __str__(self) -> str:
        return f"{'cancel of ' if self.is_cancel else ''}run {self.run_id} of task {self.task!r}"
