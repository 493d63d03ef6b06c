"""Many coroutines, few asyncio tasks.

A lane is an asyncio task that takes one job after another and awaits each in place. Before it
awaits one it makes sure that another lane follows if there is more to take, so a job that waits
for something never holds up the next one, and each job still has a real task around it
(`asyncio.timeout`, task groups and cancellation work as usual). Jobs that never wait share one
lane, and cost no task at all.

What one job sets in its context no other may see: a lane whose job has changed the context ends,
and a fresh one goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

__all__ = ["SLICE_SECONDS", "Lanes"]

SLICE_SECONDS = 0.005
"""How long jobs that never wait may keep the loop from everything else."""

MAX_BURST = 256
"""The most lanes that are started at once; each time all of them were needed, the number doubles."""


class Lanes:
    """The base of both kinds of lanes: for the tasks of a weave, and for the items of a map.

    A subclass has the jobs: `available` tells how many can be taken right now, and `lane` takes
    and runs them until there is none, or until the lane is `spoiled`.

    Args:
        loop: Where the lanes run.
        context: What every job finds in its context.
        name: The name of the asyncio tasks.
        limit: The most lanes at once.
        idle: Called whenever the last lane has ended.
    """

    __slots__ = ("burst", "coming", "context", "idle", "limit", "loop", "name", "stopped", "tasks")

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
        self.burst = 1
        self.coming: set[asyncio.Task[None]] = set()
        self.stopped = False
        self.tasks: set[asyncio.Task[None]] = set()

    def available(self) -> int:
        """How many jobs can be taken now, as far as is known; never 0 when there is one."""
        raise NotImplementedError

    async def lane(self) -> None:
        """Call `enter`, then take and run jobs."""
        raise NotImplementedError

    def feed(self) -> None:
        """See to it that the jobs there are get lanes."""
        if self.coming or self.stopped:
            return
        count = min(self.burst, self.limit - len(self.tasks), self.available())
        while count > 0:
            count -= 1
            # Not loop.create_task: a task factory of the user's (an eager one) would start the
            # lane inside the one that feeds it.
            task = asyncio.Task(self.lane(), loop=self.loop, name=self.name, context=self.context.copy())
            self.tasks.add(task)
            self.coming.add(task)
            task.add_done_callback(self._lane_ended)

    def enter(self, task: asyncio.Task[Any]) -> None:
        """The lane *task* has started. If there still is work, those before it had to wait."""
        self.coming.discard(task)
        if self.burst < MAX_BURST and not self.coming and self.available():
            self.burst *= 2

    def spoiled(self, task: asyncio.Task[Any]) -> bool:
        """Whether the job that *task* has just run left something behind in it."""
        if task.cancelling():
            return True
        try:
            # Equal contexts are one and the same tree inside: this compares two pointers.
            return copy_context() != self.context
        except Exception:  # values that do not compare
            return True

    def stop(self) -> None:
        """Cancel all lanes but the one that calls, and take no more jobs."""
        if self.stopped:
            return
        self.stopped = True
        try:
            current = asyncio.current_task(self.loop)
        except RuntimeError:
            current = None
        for task in self.tasks:
            if task is not current:
                task.cancel()

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.coming.discard(task)  # cancelled before its first step
        if not task.cancelled():
            task.exception()  # a lane reports by itself what its job raised
        self.feed()
        if not self.tasks:
            self.idle()
