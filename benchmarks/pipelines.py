"""Maps over maps, beside the same by hand: workers that pass items on through queues."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import wove
from wove import weave

from .children import no_op
from .harness import Figure, Target, benchmark, timed
from .memory import FLOOR, peak
from .queues import by_hand

FETCHES = 64
STEPS = 8
TURNS = 20_000
BY_HAND = "asyncio.Queue and executors by hand"


async def fetch(item: int) -> int:
    """Take 5 to 50 milliseconds, as a request does."""
    await asyncio.sleep(0.005 + item * 7 % 46 / 1000)
    return item


def step(item: int) -> int:
    return item + 1


def burn(item: int) -> int:
    """About a millisecond of plain Python."""
    for number in range(TURNS):
        item += number & 1
    return item


def weave_mixed(items: Sequence[int], processes: int) -> Any:
    with weave() as w:
        w.do(items, workers=FETCHES)(fetch)
        w.do("fetch", workers=STEPS)(step)
        w.do("step", workers=processes, environment="pool")(burn)
    return w.result.burn


async def in_executor(executor: Executor, fn: Callable[[int], int], item: int) -> int:
    return await asyncio.get_running_loop().run_in_executor(executor, fn, item)


def mixed_by_hand(
    items: Sequence[int], threads: Executor, pool: Executor, processes: int
) -> list[Any]:
    results: list[Any] = [None] * len(items)
    stages = [
        (fetch, FETCHES),
        (partial(in_executor, threads, step), STEPS),
        (partial(in_executor, pool, burn), processes),
    ]
    asyncio.run(by_hand(items, stages, results))
    return results


def weave_no_ops(items: Sequence[int]) -> Any:
    with weave() as w:
        w.do(items, workers=8)(named("first"))
        w.do("first", workers=8)(named("second"))
        w.do("second", workers=8)(named("third"))
    return w.result.third


def named(name: str) -> Any:
    async def stage(item: int) -> int:
        return item

    stage.__name__ = name
    return stage


def no_ops_by_hand(items: Sequence[int]) -> list[Any]:
    results: list[Any] = [None] * len(items)
    asyncio.run(by_hand(items, [(no_op, 8)] * 3, results))
    return results


@benchmark("pipeline")
def pipelines() -> Iterator[Figure]:
    """Three maps in a row, beside queues by hand: mixed stages, no-ops, and memory with keep=False."""
    cpus = os.cpu_count() or 1
    items = range(2_000)
    with ProcessPoolExecutor(cpus) as pool, ThreadPoolExecutor(STEPS) as threads:
        answers = list(pool.map(burn, range(1, len(items) + 1), chunksize=50))
        wove.config(environments={"pool": {"executor": "stdio"}})
        processes = 2 * cpus
        yield Figure(
            f"{len(items):,} items: async fetch, sync step, CPU step in the pool",
            "wove",
            [
                timed("wove", partial(weave_mixed, items, processes), expect=answers),
                timed(
                    BY_HAND,
                    partial(mixed_by_hand, items, threads, pool, processes),
                    expect=answers,
                ),
            ],
            Target(1.05),
            rounds=7,
        )

    many = list(range(100_000))
    yield Figure(
        f"{len(many):,} async no-ops through three stages of 8 workers",
        "wove",
        [
            timed("wove", partial(weave_no_ops, many), expect=many),
            timed(BY_HAND, partial(no_ops_by_hand, many), expect=many),
        ],
        Target(1.2),
        rounds=7,
    )
    yield Figure(
        "peak memory of 1,000,000 async no-ops through three stages, keep=False",
        "wove",
        [
            peak("wove", "weave_pipeline", 1_000_000, 8),
            peak(BY_HAND, "pipeline_by_hand", 1_000_000, 8),
            peak(FLOOR, "nothing"),
        ],
        Target(1.5),
        aside=(FLOOR,),
        rounds=1,
        warm_up=False,
        unit="MiB",
    )
