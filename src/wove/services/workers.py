"""Where a worker service's tasks run: in threads of its own process, or in worker processes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from wove.concurrency import forks, thread_pool
from wove.concurrency.mailbox import LoopMailbox
from wove.concurrency.thread_pool import run_in_thread
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, TERMINAL

__all__ = ["ProcessBackend", "ThreadBackend", "WorkerBackend"]

CLOSE_SECONDS: Final = 1.0
"""How long tasks may take to unwind after the service has given them up."""


class WorkerBackend(Protocol):
    """Runs ``run_task`` frames. Its events come on the loop, one at a time."""

    def submit(self, frame: dict[str, Any]) -> None:
        """Run it."""

    def cancel(self, run_id: str) -> None:
        """End it, as far as that can be done."""

    async def close(self) -> None:
        """End everything."""

    def abandon(self) -> None:
        """End everything, after the loop was closed."""


class ThreadBackend:
    """In threads of this process; coroutines on one loop beside that of the service.

    Args:
        on_event: Is given the events, on the running loop.
    """

    def __init__(self, on_event: Callable[[dict[str, Any]], object]) -> None:
        with forks.importing:
            from wove.worker.runner import Runner

        mailbox = self._mailbox = LoopMailbox(asyncio.get_running_loop())

        def emit(event: dict[str, Any]) -> None:
            mailbox.post(on_event, event)

        self._runner = Runner(emit, name="wove-service")

    def submit(self, frame: dict[str, Any]) -> None:
        self._runner.submit(frame)

    def cancel(self, run_id: str) -> None:
        self._runner.cancel({"run_id": run_id})

    async def close(self) -> None:
        await run_in_thread(self._runner.close, CLOSE_SECONDS)
        self._mailbox.close()

    def abandon(self) -> None:
        thread_pool.submit(self._runner.close, CLOSE_SECONDS)


class ProcessBackend:
    """In a pool of worker processes, as the ``stdio`` executor has them.

    Args:
        on_event: Is given the events, on the running loop.
        processes: The most processes.
    """

    def __init__(self, on_event: Callable[[dict[str, Any]], object], processes: int) -> None:
        with forks.importing:
            from wove.executors.stdio.executor import worker_command
            from wove.executors.stdio.pool import Pool
            from wove.executors.stdio.process import WATCHES_PIPES
            from wove.executors.stdio.worker import Plan
            from wove.worker.stdio import boot_record, child_environment

        self._on_event = on_event
        self._tasks: dict[str, str] = {}
        plan = Plan(
            environment="worker service",
            command=worker_command(launched=not WATCHES_PIPES),
            launched=not WATCHES_PIPES,
            processes=processes,
            terminate=True,
            start_seconds=60.0,
            cwd=None,
            environ=child_environment(os.environ),
            boot=boot_record(os.environ, sys.path),
        )
        self._pool = Pool(plan, self._take)

    def submit(self, frame: dict[str, Any]) -> None:
        self._tasks[frame["run_id"]] = frame["task_id"]
        self._pool.run(frame)

    def cancel(self, run_id: str) -> None:
        self._pool.cancel({"type": "cancel_task", "run_id": run_id})

    async def close(self) -> None:
        await self._pool.stop()

    def abandon(self) -> None:
        raise RuntimeError(
            "the event loop was closed under the worker processes of this worker service: close it before, "
            "with `await app.queue.aclose()`, or by its lifespan"
        )

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] in TERMINAL:
                self._on_event(self._as_sent(event, self._tasks.pop(event["run_id"], "?")))
            else:
                self._on_event(event)

    @staticmethod
    def _as_sent(event: dict[str, Any], task: str) -> dict[str, Any]:
        """*event* as a worker would have sent it: the pool itself ends the runs of a worker that is lost."""
        exception = event.pop("exception", None)
        if isinstance(exception, BaseException):
            fields = from_exception(exception, task=task, source="executor", retryable=True)
            event = {**event, **fields, "python": PYTHON}
        return {**event, "task_id": task}
