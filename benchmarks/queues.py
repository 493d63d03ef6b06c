"""Pipelines by hand: workers of each stage, and a short queue to the next. Imports asyncio alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias

Stage: TypeAlias = Callable[[Any], Awaitable[Any]]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Put: TypeAlias = Callable[[Any], Awaitable[None]]


async def by_hand(
    items: Iterable[Any], stages: Sequence[tuple[Stage, int]], results: list[Any] | None = None
) -> None:
    """Run *items* through *stages*, which are given with their workers; store the *results* by position."""
    numbered = iter(enumerate(items))

    async def receive_first() -> Any:
        return next(numbered, None)

    async def store(result: Any) -> None:
        if results is not None:
            results[result[0]] = result[1]

    receive: Receive = receive_first
    async with asyncio.TaskGroup() as group:
        for index, (stage, workers) in enumerate(stages):
            if index + 1 == len(stages):
                group.create_task(_run_stage(stage, workers, receive, store, 0))
                break
            following = stages[index + 1][1]
            queue: asyncio.Queue[Any] = asyncio.Queue(following + 1)
            group.create_task(_run_stage(stage, workers, receive, queue.put, following))
            receive = queue.get


async def _run_stage(
    stage: Stage, workers: int, receive: Receive, put: Put, following: int
) -> None:
    async def work() -> None:
        while (numbered := await receive()) is not None:
            position, item = numbered
            await put((position, await stage(item)))

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    for _ in range(following):  # one end for each worker of the next stage
        await put(None)
