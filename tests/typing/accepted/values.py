"""Helpers, errors and executors, as a typed script uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, assert_type

import wove
from wove import (
    EnvironmentExecutor,
    TaskTimeoutError,
    WorkerLostError,
    batch,
    denone,
    flatten,
    fold,
    redict,
    sync_to_async,
    undict,
)

assert_type(wove.__version__, str)
assert_type(flatten([[1], [2]]), list[int])
assert_type(fold(range(5), 2), list[list[int]])
assert_type(batch("abc", 2), list[list[str]])
assert_type(denone([1, None]), list[int])
assert_type(undict({"a": 1}), list[tuple[str, int]])
assert_type(redict(undict({"a": 1})), dict[str, int])


def length(text: str) -> int:
    return len(text)


async def call() -> None:
    assert_type(await sync_to_async(length)("abc"), int)


class Inline(EnvironmentExecutor):
    """Runs each task at once."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        pass

    async def send(self, frame: dict[str, Any]) -> None:
        value = frame["callable"](**frame["args"])
        await self.events.put({"type": "task_result", "run_id": frame["run_id"], "result": value})

    async def recv(self) -> dict[str, Any]:
        return await self.events.get()

    async def stop(self) -> None:
        pass


def catch(error: Exception) -> None:
    if isinstance(error, TaskTimeoutError):
        assert_type(error.limit, float | None)
    elif isinstance(error, (wove.errors.DeliveryError, wove.environment.EnvironmentExecutionError)):
        print(error)


if __name__ == "__main__":
    asyncio.run(call())
    Inline()
    catch(WorkerLostError("gone"))
