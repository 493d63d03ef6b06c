"""One callable over many items, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from wove import merge, weave

from .harness import Figure, Target, benchmark, timed, timed_in_loop

AsyncItem: TypeAlias = Callable[[int], Awaitable[int]]
SyncItem: TypeAlias = Callable[[int], int]


async def no_op(item: int) -> int:
    return item


async def yielding(item: int) -> int:
    await asyncio.sleep(0)
    return item


async def napping(item: int) -> int:
    await asyncio.sleep(0.001)
    return item


def sync_no_op(item: int) -> int:
    return item


def sync_napping(item: int) -> int:
    time.sleep(0.002)
    return item


def sync_uneven(item: int) -> int:
    """Nine quick items, and then a slow one: batches of items must not wait for it."""
    if item % 10 == 9:
        time.sleep(0.01)
    return item


def weave_map(
    work: Callable[[int], Any],
    items: Sequence[int],
    workers: int | None = None,
    record: Path | None = None,
) -> object:
    with weave(record=record) as w:
        w.do(items, workers=workers)(work)
    return w.result.final


async def weave_map_in_loop(work: AsyncItem, items: Sequence[int]) -> object:
    async with weave() as w:
        w.do(items)(work)
    return w.result.final


async def gather(work: AsyncItem, items: Sequence[int]) -> list[int]:
    return await asyncio.gather(*map(work, items))


async def semaphore_gather(work: AsyncItem, items: Sequence[int], limit: int) -> list[int]:
    semaphore = asyncio.Semaphore(limit)

    async def one(item: int) -> int:
        async with semaphore:
            return await work(item)

    return await asyncio.gather(*map(one, items))


async def pull(work: AsyncItem, items: Sequence[int], limit: int) -> list[int]:
    """*limit* coroutines that share one iterator: the least that a bound can cost."""
    results = [0] * len(items)
    numbered = iter(enumerate(items))

    async def worker() -> None:
        for index, item in numbered:
            results[index] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(limit):
            group.create_task(worker())
    return results


def run_gather(work: AsyncItem, items: Sequence[int]) -> object:
    return asyncio.run(gather(work, items))


def run_semaphore_gather(work: AsyncItem, items: Sequence[int], limit: int) -> object:
    return asyncio.run(semaphore_gather(work, items, limit))


def run_pull(work: AsyncItem, items: Sequence[int], limit: int) -> object:
    return asyncio.run(pull(work, items, limit))


@benchmark("map-async")
def unbounded() -> Iterator[Figure]:
    """Async maps without a bound, beside asyncio.gather."""
    for count, rounds in ((10_000, 15), (100_000, 9)):
        items = list(range(count))
        yield Figure(
            f"with: {count:,} async no-ops",
            "wove",
            [
                timed("wove", partial(weave_map, no_op, items), expect=items),
                timed("asyncio.run, gather", partial(run_gather, no_op, items), expect=items),
            ],
            Target(1.2),
            rounds=rounds,
        )
        yield Figure(
            f"async with: {count:,} async no-ops",
            "wove",
            [
                timed_in_loop("wove", partial(weave_map_in_loop, no_op, items), expect=items),
                timed_in_loop("gather", partial(gather, no_op, items), expect=items),
            ],
            Target(1.2),
            rounds=rounds,
        )
    items = list(range(10_000))
    for what, work in (("sleep(0)", yielding), ("sleep(0.001)", napping)):
        yield Figure(
            f"with: {len(items):,} items that await {what}",
            "wove",
            [
                timed("wove", partial(weave_map, work, items), expect=items),
                timed("asyncio.run, gather", partial(run_gather, work, items), expect=items),
            ],
        )


@benchmark("map-workers")
def bounded() -> Iterator[Figure]:
    """Async maps with workers=100, beside a semaphore and gather."""
    pulling = "100 coroutines pulling one iterator"
    for what, work, count, rounds in (
        ("no-ops", no_op, 10_000, 15),
        ("no-ops", no_op, 100_000, 9),
        ("items that await sleep(0)", yielding, 10_000, 15),
        ("items that await sleep(0.001)", napping, 10_000, 9),
    ):
        items = list(range(count))
        yield Figure(
            f"workers=100: {count:,} async {what}",
            "wove",
            [
                timed("wove", partial(weave_map, work, items, workers=100), expect=items),
                timed(
                    "semaphore + gather",
                    partial(run_semaphore_gather, work, items, 100),
                    expect=items,
                ),
                timed(pulling, partial(run_pull, work, items, 100), expect=items),
            ],
            Target(0.6) if work is no_op else None,
            aside=(pulling,),
            rounds=rounds,
        )


def pool_map(pool: ThreadPoolExecutor, work: SyncItem, items: Sequence[int]) -> list[int]:
    return list(pool.map(work, items))


def own_pool_map(work: SyncItem, items: Sequence[int], limit: int | None = None) -> list[int]:
    with ThreadPoolExecutor(limit) as pool:
        return list(pool.map(work, items))


def weave_merge(items: Sequence[int]) -> object:
    with weave() as w:

        @w.do
        def merged() -> Any:
            return merge(sync_no_op, items)

    return w.result.merged


def weave_merge_awaited(items: Sequence[int]) -> object:
    with weave() as w:

        @w.do
        async def merged() -> Any:
            return await merge(sync_no_op, items)

    return w.result.merged


@benchmark("map-recorded")
def recorded() -> Iterator[Figure]:
    """A map whose timeline is written, beside the same map without."""
    items = list(range(100_000))
    with TemporaryDirectory() as folder:
        path = Path(folder, "run.html")
        yield Figure(
            '100,000 sync no-ops, record="run.html"',
            "recorded",
            [
                timed("recorded", partial(weave_map, sync_no_op, items, record=path), expect=items),
                timed("not recorded", partial(weave_map, sync_no_op, items), expect=items),
            ],
            Target(1.3),
            rounds=9,
        )


@benchmark("map-sync")
def threads() -> Iterator[Figure]:
    """Sync maps and merge, beside ThreadPoolExecutor.map."""
    items = list(range(10_000))
    with ThreadPoolExecutor() as pool:
        references = [
            timed(
                "ThreadPoolExecutor.map, kept",
                partial(pool_map, pool, sync_no_op, items),
                expect=items,
            ),
            timed(
                "ThreadPoolExecutor.map, per call",
                partial(own_pool_map, sync_no_op, items),
                expect=items,
            ),
        ]
        for title, subject in (
            ("10,000 sync no-ops", partial(weave_map, sync_no_op, items)),
            ("workers=8: 10,000 sync no-ops", partial(weave_map, sync_no_op, items, workers=8)),
            ("merge of 10,000 sync no-ops, in a sync task", partial(weave_merge, items)),
            ("merge of 10,000 sync no-ops, in an async task", partial(weave_merge_awaited, items)),
        ):
            yield Figure(
                title, "wove", [timed("wove", subject, expect=items), *references], Target(0.5)
            )
    for title, work, count in (
        ("workers=32: 1,000 items of time.sleep(0.002)", sync_napping, 1_000),
        ("workers=32: 1,000 items, each tenth sleeps 0.01", sync_uneven, 1_000),
    ):
        some = list(range(count))
        yield Figure(
            title,
            "wove",
            [
                timed("wove", partial(weave_map, work, some, workers=32), expect=some),
                timed(
                    "ThreadPoolExecutor(32).map", partial(own_pool_map, work, some, 32), expect=some
                ),
            ],
        )
