"""One command to a worker service, and its state until its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from wove.errors import WorkerLostError
from wove.executors.base import Frame
from wove.protocol import signing

__all__ = ["PendingRequest", "Reply", "Verify"]

Verify: TypeAlias = Callable[[Sequence[bytes]], None]
"""Called with a reply before it is decoded; raises `PermissionError` if the reply is not authentic."""

Reply: TypeAlias = tuple[list[bytes], bool, str, Verify | None]
"""The arguments of `NetworkExecutor.answered` beside the request."""


class PendingRequest:
    """One command, from its hand-over to its end.

    Attributes:
        run_id: The id of its run.
        task: The task's name.
        frame: The command.
        is_cancel: Whether it is a ``cancel_task``.
        chunks: The command as one JSON text. A transport may clear it once it is written.
        size: Size of all chunks, in bytes.
        digest: The digest of the chunks, if requests are signed.
        sent_headers: The headers with which the request was signed, to verify the reply.
        state: State of the transport.
        sent: Whether it has been passed to the transport.
        left: Whether the service may have it.
        loss: Why its connection was lost, while it is resumed.
        lost_at: When it was, in the loop's time.
        over: Whether it has ended, so that replies to it are ignored.
        complete: Whether the event that ends its run has arrived.
        heard: Whether an event of it has arrived since it was sent.
        cancelling: Whether its service has been asked to cancel it.
        busy_since: When a busy service first declined it, in the loop's time.
        offers: How often it has been offered to a busy service again.
        timer: Ends it, or offers it again.
        unread: Replies that wait to be decoded.
    """

    __slots__ = (
        "busy_since",
        "chunks",
        "complete",
        "left",
        "loss",
        "lost_at",
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
        "cancelling",
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
        self.sent = self.left = self.over = self.heard = self.cancelling = self.complete = False
        self.lost_at = 0.0
        self.loss: WorkerLostError | None = None
        self.busy_since: float | None = None
        self.offers = 0
        self.timer: asyncio.TimerHandle | None = None
        self.unread: deque[Reply] = deque()

    def __str__(self) -> str:
        return f"{'cancel of ' if self.is_cancel else ''}run {self.run_id} of task {self.task!r}"
