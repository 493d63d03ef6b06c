"""Many coroutines in few asyncio tasks.

A worker is an asyncio task that receives one job after another and awaits each in place. When there
are further jobs, it schedules a look at them in the loop (`spawn_soon`). If the worker finishes them
before the loop gets to that, nothing else was needed. If a job has to wait for something, the loop
finds jobs left and starts workers for them, twice as many each time. So a job that waits never holds
up the next one, each job still has a real task around it (`asyncio.timeout`, task groups and
cancellation work as usual), and jobs that never wait share one worker, and cost no task at all.

No job may see what another one has set in its context: a worker whose job has changed the context
ends, and a new one goes on.
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
"""Maximum number of workers that are started at once; the number doubles each time all were needed."""


class CoroutinePool:
    """The base of two pools: of the tasks of a weave, and of the items of a map.

    A subclass has the jobs: `available` returns how many can be received now, and `work` receives and
    runs them until there is none, or until its worker `is_spoiled`.

    Args:
        loop: Where the workers run.
        context: The context variables of every job.
        name: The name of the asyncio tasks.
        limit: Maximum number of workers.
        on_idle: Called whenever the last worker has ended.

    Attributes:
        deferred: While true, `spawn` does nothing: more jobs come, and it is called after the last.
        stopped: Whether no further job is run.
        tasks: The workers.
    """

    __slots__ = (
        "_burst", "_spawning", "_starting", "_values", "context", "deferred", "limit", "loop", "name", "on_idle",
        "stopped", "tasks",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str,
        limit: float,
        on_idle: Callable[[], object],
    ) -> None:
        self.loop = loop
        self.context = context
        self.name = name
        self.limit = limit
        self.on_idle = on_idle
        self.stopped = False
        self.deferred = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._burst = 1
        self._starting = False
        self._spawning: asyncio.Handle | None = None
        self._values = list(context.values())

    def available(self) -> int:
        """Return how many jobs can be received now, as far as is known; never 0 when there is one."""
        raise NotImplementedError

    async def work(self) -> None:
        """Receive and run jobs, as one worker; call `worker_ended` in the end, and raise nothing."""
        raise NotImplementedError

    def spawn(self) -> None:
        """Start workers for the jobs that can be received now."""
        if self.deferred or self._spawning is not None or self.stopped:
            return
        count = self.available()
        if count:
            count = min(count, self._burst)
        while count > 0 and len(self.tasks) < self.limit:
            count -= 1
            self._start()

    def spawn_one(self) -> None:
        """Start a worker for a new job, unless one is about to start: that one looks for all jobs there are."""
        if self._starting or self._spawning is not None or self.stopped:
            return
        if len(self.tasks) < self.limit and self.available():
            self._starting = True
            self._start()

    def _start(self) -> None:
        # Not loop.create_task: a task factory of the user's (an eager one) would start the
        # worker inside the one that calls this.
        task = Task(self.work(), loop=self.loop, name=self.name, context=self.context.copy())
        self.tasks.add(task)
        task.add_done_callback(self._ended, context=self.context)

    def spawn_soon(self) -> None:
        """Have the loop start workers for the other jobs; called in a worker before it awaits its own."""
        if self._spawning is None and not self.stopped:
            self._spawning = self.loop.call_soon(self._spawn_more)

    def _spawn_more(self) -> None:
        self._spawning = None
        if self._burst < MAX_BURST and self.available():
            self._burst *= 2
        self.spawn()

    def worker_ended(self, worker: asyncio.Task[Any]) -> None:
        """Count *worker* out: it runs no further job, and is in its last step."""
        # Here and now, not in a round of the loop of its own. The callback is for a worker that was
        # cancelled before its first step.
        worker.remove_done_callback(self._ended)
        self._ended(worker)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.spawn()
        if not self.tasks:
            if self._spawning is not None and not self.available():
                self._spawning.cancel()
                self._spawning = None
            self.on_idle()

    def current(self) -> asyncio.Task[Any]:
        """Return the worker that runs this code, and begins."""
        self._starting = False
        task = asyncio.current_task(self.loop)
        assert task is not None
        return task

    def is_spoiled(self, worker: asyncio.Task[Any], values: list[Any] | None = None) -> bool:
        """Return whether the last job of *worker* left it cancelled, or its context changed.

        Args:
            worker: The worker.
            values: The values of its context variables before its first job, where it has set some itself.
        """
        if worker.cancelling():
            return True
        # By identity: an equal value may be another object, which the next job would share. A job
        # cannot take variables away, so as many variables are the same ones.
        now = copy_context()
        before = self._values if values is None else values
        return len(now) != len(before) or not all(map(is_, now.values(), before))

    def stop(self) -> None:
        """Cancel all workers but the one that calls this, and run no further job."""
        if self.stopped:
            return
        self.stopped = True
        current = asyncio.current_task(self.loop)
        for task in self.tasks:
            if task is not current:
                task.cancel()
