"""The smallest weaves: what the block itself costs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from wove import weave

from .harness import Figure, Target, benchmark, timed, timed_in_loop


async def async_left(value: int) -> int:
    return value + 1


async def async_right(value: int) -> int:
    return value + 2


async def async_join(left: int, right: int) -> int:
    return left + right


def left(value: int) -> int:
    return value + 1


def right(value: int) -> int:
    return value + 2


def join(left: int, right: int) -> int:
    return left + right


def weave_one() -> object:
    with weave(value=1) as w:

        @w.do
        async def left(value: int) -> int:
            return value + 1

    return w.result.left


def asyncio_one() -> object:
    return asyncio.run(async_left(1))


def weave_async_diamond() -> object:
    with weave(value=1) as w:

        @w.do
        async def left(value: int) -> int:
            return value + 1

        @w.do
        async def right(value: int) -> int:
            return value + 2

        @w.do
        async def join(left: int, right: int) -> int:
            return left + right

    return w.result.join


async def weave_diamond_in_loop() -> object:
    async with weave(value=1) as w:

        @w.do
        async def left(value: int) -> int:
            return value + 1

        @w.do
        async def right(value: int) -> int:
            return value + 2

        @w.do
        async def join(left: int, right: int) -> int:
            return left + right

    return w.result.join


async def group_diamond() -> object:
    async with asyncio.TaskGroup() as group:
        one = group.create_task(async_left(1))
        other = group.create_task(async_right(1))
    return await async_join(one.result(), other.result())


def asyncio_diamond() -> object:
    return asyncio.run(group_diamond())


def weave_sync_diamond() -> object:
    with weave(value=1) as w:

        @w.do
        def left(value: int) -> int:
            return value + 1

        @w.do
        def right(value: int) -> int:
            return value + 2

        @w.do
        def join(left: int, right: int) -> int:
            return left + right

    return w.result.join


async def weave_sync_diamond_in_loop() -> object:
    async with weave(value=1) as w:

        @w.do
        def left(value: int) -> int:
            return value + 1

        @w.do
        def right(value: int) -> int:
            return value + 2

        @w.do
        def join(left: int, right: int) -> int:
            return left + right

    return w.result.join


def pool_diamond(pool: ThreadPoolExecutor) -> object:
    one, other = pool.submit(left, 1), pool.submit(right, 1)
    return pool.submit(join, one.result(), other.result()).result()


def pool_diamond_and_caller(pool: ThreadPoolExecutor) -> object:
    one, other = pool.submit(left, 1), pool.submit(right, 1)
    return join(one.result(), other.result())


def own_pool_diamond() -> object:
    with ThreadPoolExecutor() as pool:
        return pool_diamond(pool)


async def to_thread_diamond() -> object:
    async with asyncio.TaskGroup() as group:
        one = group.create_task(asyncio.to_thread(left, 1))
        other = group.create_task(asyncio.to_thread(right, 1))
    return await asyncio.to_thread(join, one.result(), other.result())


@benchmark("block")
def blocks() -> Iterator[Figure]:
    """One task, and diamonds of three, in `with` and `async with`."""
    yield Figure(
        "with: one async task",
        "wove",
        [
            timed("wove", weave_one, number=100, expect=2),
            timed("asyncio.run", asyncio_one, number=100, expect=2),
        ],
        Target(1.5),
        rounds=31,
    )
    yield Figure(
        "with: async diamond",
        "wove",
        [
            timed("wove", weave_async_diamond, number=100, expect=5),
            timed("asyncio.run, TaskGroup", asyncio_diamond, number=100, expect=5),
        ],
        Target(1.5),
        rounds=31,
    )
    with ThreadPoolExecutor() as pool:
        yield Figure(
            "with: sync diamond",
            "wove",
            [
                timed("wove", weave_sync_diamond, number=50, expect=5),
                timed("ThreadPoolExecutor, kept", partial(pool_diamond, pool), number=50, expect=5),
                timed("ThreadPoolExecutor, per call", own_pool_diamond, number=50, expect=5),
                timed(
                    "kept, join by caller",
                    partial(pool_diamond_and_caller, pool),
                    number=50,
                    expect=5,
                ),
            ],
            Target(1.5),
            aside=("kept, join by caller",),
            rounds=31,
        )
    yield Figure(
        "async with: async diamond",
        "wove",
        [
            timed_in_loop("wove", weave_diamond_in_loop, number=200, expect=5),
            timed_in_loop("TaskGroup", group_diamond, number=200, expect=5),
        ],
        Target(3),
        rounds=31,
    )
    yield Figure(
        "async with: sync diamond",
        "wove",
        [
            timed_in_loop("wove", weave_sync_diamond_in_loop, number=50, expect=5),
            timed_in_loop("TaskGroup, asyncio.to_thread", to_thread_diamond, number=50, expect=5),
        ],
        rounds=31,
    )
