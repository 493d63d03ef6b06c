"""Many coroutines, few asyncio tasks.

A lane is an asyncio task that takes one job after another and awaits each in place. When there is
more to take it has the loop look after the rest (`more`): if the lane gets through before the loop
comes to that, nothing was needed; if a job has to wait for something, the loop finds work left and
starts lanes for it, twice as many each time. So a job that waits never holds up the next one, each
job still has a real task around it (`asyncio.timeout`, task groups and cancellation work as usual),
and jobs that never wait share one lane, and cost no task at all.

What one job sets in its context no other may see: a lane whose job has changed the context ends,
and a fresh one goes on.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable
from contextvars import Context, copy_context
from operator import is_
from typing import Any

__all__ = ["SLICE_SECONDS", "CoroutinePool"]

SLICE_SECONDS = 0.005
"""How long jobs that never wait may keep the loop from everything else."""

MAX_BURST = 256
"""The most lanes that are started at once; each time all of them were needed, the number doubles."""


class CoroutinePool:
    """The base of both kinds of lanes: for the tasks of a weave, and for the items of a map.

    A subclass has the jobs: `available` tells how many can be taken right now, and `lane` takes and
    runs them until there is none, or until the lane is `spoiled`.

    Args:
        loop: Where the lanes run.
        context: What every job finds in its context.
        name: The name of the asyncio tasks.
        limit: The most lanes at once.
        idle: Called whenever the last lane has ended.

    Attributes:
        inside: Set while jobs come that somebody will look after when all of them are there.
    """

    __slots__ = (
        "_burst", "_look", "_values", "context", "idle", "inside", "limit", "loop", "name", "stopped", "tasks"
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str,
        limit: float,
        idle: Callable[[], object],
    ) -> None:
        self.loop = loop
        self.context = context
        self.name = name
        self.limit = limit
        self.idle = idle
        self.stopped = False
        self.inside = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._burst = 1
        self._look: asyncio.Handle | None = None
        self._values = list(context.values())

    def available(self) -> int:
        """How many jobs can be taken now, as far as is known; never 0 when there is one."""
        raise NotImplementedError

    async def lane(self) -> None:
        """Take and run jobs; call `left` in the end, and raise nothing."""
        raise NotImplementedError

    def feed(self) -> None:
        """Jobs have come: see to it that they get lanes."""
        if self.inside or self._look is not None or self.stopped:
            return
        count = self.available()
        if count:
            count = min(count, self._burst)
        while count > 0 and len(self.tasks) < self.limit:
            count -= 1
            # Not loop.create_task: a task factory of the user's (an eager one) would start the
            # lane inside the one that feeds it.
            task = Task(self.lane(), loop=self.loop, name=self.name, context=self.context.copy())
            self.tasks.add(task)
            task.add_done_callback(self._lane_ended, context=self.context)

    def more(self) -> None:
        """In a lane, before a job is awaited: have the loop look after the others if that job waits."""
        if self._look is None and not self.stopped:
            self._look = self.loop.call_soon(self._looked)

    def _looked(self) -> None:
        self._look = None
        if self._burst < MAX_BURST and self.available():
            self._burst *= 2
        self.feed()

    def left(self, lane: asyncio.Task[Any]) -> None:
        """*lane* takes no more jobs, and is in its last step."""
        # The end of a lane is handled here and now, not in a round of the loop of its own;
        # the callback is for a lane that was cancelled before its first step.
        lane.remove_done_callback(self._lane_ended)
        self._lane_ended(lane)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.feed()
        if not self.tasks:
            if self._look is not None and not self.available():
                self._look.cancel()
                self._look = None
            self.idle()

    def current(self) -> asyncio.Task[Any]:
        """The lane that asks."""
        task = asyncio.current_task(self.loop)
        assert task is not None
        return task

    def spoiled(self, lane: asyncio.Task[Any], values: list[Any] | None = None) -> bool:
        """Return whether the job that *lane* has just run left something behind in it.

        Args:
            lane: The lane.
            values: The values of its context variables before its first job, where the lane has set some itself.
        """
        if lane.cancelling():
            return True
        # By identity: an equal value may be another object, which the next job would share. A job
        # cannot take variables away, so as many variables are the same ones.
        now = copy_context()
        before = self._values if values is None else values
        return len(now) != len(before) or not all(map(is_, now.values(), before))

    def stop(self) -> None:
        """Cancel all lanes but the one that calls, and take no more jobs."""
        if self.stopped:
            return
        self.stopped = True
        current = asyncio.current_task(self.loop)
        for task in self.tasks:
            if task is not current:
                task.cancel()
