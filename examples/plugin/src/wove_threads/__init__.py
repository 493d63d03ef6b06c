"""An executor for Wove: a thread pool of its own for each environment.

With this package installed, an environment may say ``{"executor": "threads", "executor_config": {"threads": 4}}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wove import EnvironmentExecutor

__all__ = ["ThreadsExecutor"]


class ThreadsExecutor(EnvironmentExecutor):
    """Runs tasks in its own threads; ``threads`` says how many (4)."""

    scope = "process"

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        self.pool = ThreadPoolExecutor(environment_config.get("threads", 4), environment_name)
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.running: set[asyncio.Task[None]] = set()

    async def send(self, frame: dict[str, Any]) -> None:
        if frame["type"] != "run_task":
            return
        task = asyncio.create_task(self.run(frame))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def run(self, frame: dict[str, Any]) -> None:
        run = {"run_id": frame["run_id"], "task_id": frame["task_id"]}
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(
                self.pool, lambda: frame["callable"](**frame["args"])
            )
        except Exception as error:
            await self.events.put({"type": "task_error", "exception": error, **run})
        else:
            await self.events.put({"type": "task_result", "result": result, **run})

    async def recv(self) -> dict[str, Any]:
        return await self.events.get()

    async def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
