"""One run at a worker service, and the clients that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from wove.protocol.completed_runs import Key, bulk

__all__ = ["Name", "QueuedRun", "Subscription"]

Name: TypeAlias = tuple[str, str]
"""The sender of a run, and its run id."""


HELD_SHARE: Final = 0.75
"""The part of ``delivery_reconnect_seconds`` for which a service waits for a client. The client counts from the moment
at which it notices the loss; the service notices a silent one 20 to 40 s after it happened."""

MAX_HELD_SECONDS: Final = 3600.0
"""Maximum of ``delivery_reconnect_seconds`` at a service."""


class Subscription:
    """One client that waits for a run.

    Attributes:
        run_id: Its id of the run.
        task_id: Its name of the task.
        peer: Its address, for the log.
        over: Whether it has received the end, or has left.
    """

    __slots__ = ("beats", "run", "name", "names", "over", "peer", "run_id", "task_id", "on_event")

    def __init__(
        self,
        frame: dict[str, Any],
        on_event: Callable[[dict[str, Any]], object],
        peer: str,
        owner: str,
    ) -> None:
        self.run_id: str = frame["run_id"]
        self.task_id: str = frame["task_id"]
        self.names: dict[str, Any] = {"run_id": self.run_id, "task_id": self.task_id}
        self.name: Name = (owner, self.run_id)
        self.beats: float | None = frame["delivery"].get("delivery_heartbeat_seconds")
        self.on_event = on_event
        self.peer = peer
        self.over = False
        self.run: QueuedRun | None = None


class QueuedRun:
    """One run.

    Attributes:
        run_id: As its first client calls it.
        inner: As the workers call it.
        frame: The command, until it is handed to the workers; then no more than its names.
        names: Those.
        key: Who sent it, its task and its idempotency key; ``None`` without one.
        arrived: When; as all times, by the loop's clock.
        submitted_at: When the workers got it.
        began: When they said that it started.
        stopping: The workers have been told to end it.
        subscriptions: Who waits for it.
        hold_seconds: How long it waits for its client to come back after the connection was lost; 0 to not wait.
        hold: Ends it after that time, while it waits.
        started: Its ``task_started`` event.
        size_in: Bytes of its callable and arguments.
    """

    __slots__ = (
        "arrived_at",
        "started_at",
        "submitted_at",
        "beats",
        "frame",
        "inner",
        "key",
        "hold",
        "hold_seconds",
        "known_as",
        "names",
        "outlives_its_client",
        "peer",
        "run_id",
        "size_in",
        "started",
        "stopping",
        "task_id",
        "subscriptions",
    )

    def __init__(self, frame: dict[str, Any], subscription: Subscription, now: float) -> None:
        delivery: dict[str, Any] = frame["delivery"]
        key = delivery.get("delivery_idempotency_key")
        self.key: Key | None = (
            (subscription.name[0], subscription.task_id, key)
            if isinstance(key, str) and key
            else None
        )
        self.outlives_its_client = (
            self.key is not None or delivery.get("delivery_orphan_policy") == "detach"
        )
        seconds = delivery.get("delivery_reconnect_seconds") or 0.0
        self.hold_seconds = HELD_SHARE * min(MAX_HELD_SECONDS, seconds)
        self.hold: asyncio.TimerHandle | None = None
        self.run_id = self.inner = subscription.run_id
        self.task_id = subscription.task_id
        self.names = subscription.names
        self.peer = subscription.peer
        self.beats = subscription.beats
        self.subscriptions = [subscription]
        self.known_as = {subscription.name}
        self.frame = frame
        self.arrived_at = now
        self.size_in = bulk(frame)
        self.submitted_at: float | None = None
        self.started_at: float | None = None
        self.started: dict[str, Any] | None = None
        self.stopping = False

    @property
    def matters(self) -> bool:
        """Whether its end is of interest: a client waits for it, or it is to go on without one."""
        return bool(self.subscriptions) or not self.stopping

    def is_shared(self, subscription: Subscription) -> bool:
        """Whether the events have other names than those *subscription* knows."""
        return subscription.run_id != self.inner or subscription.task_id != self.task_id

    def beats_for(self, subscription: Subscription) -> bool:
        """Whether the heartbeats of this run are close enough together for *subscription*."""
        return subscription.beats is None or (
            self.beats is not None and self.beats <= subscription.beats
        )
