"""The stdio pool: tiny tasks, CPU-bound tasks, and the second weave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import wove
from wove import weave

from .fresh import call
from .harness import Figure, Target, Values, benchmark, timed

TINY = 2_000
TURNS = 1_000_000


def following(item: int) -> int:
    return item + 1


def burn(item: int) -> int:
    """Some tens of milliseconds of plain Python."""
    total = item
    for number in range(TURNS):
        total += number * number
    return total


def weave_following(items: Sequence[int]) -> Any:
    with weave(environment="pool") as w:

        @w.do(items)
        def following(item: int) -> int:
            return item + 1

    return w.result.following


def weave_burn(items: Sequence[int]) -> Any:
    with weave(environment="pool") as w:
        w.do(items)(burn)
    return w.result.burn


@benchmark("stdio")
def pools() -> Iterator[Figure]:
    """The stdio pool, beside ProcessPoolExecutor.map; both are warm."""
    cpus = os.cpu_count() or 1
    with ProcessPoolExecutor(cpus) as pool:
        list(pool.map(following, range(4 * cpus)))  # before wove has a thread: the pool may fork
        wove.config(environments={"pool": {"executor": "stdio"}})
        items, answers = range(TINY), list(range(1, TINY + 1))
        chunked = "ProcessPoolExecutor.map, chunksize=50"
        yield Figure(
            f"{TINY:,} tiny tasks",
            "wove",
            [
                timed("wove", lambda: weave_following(items), expect=answers),
                timed(
                    "ProcessPoolExecutor.map",
                    lambda: list(pool.map(following, items)),
                    expect=answers,
                ),
                timed(
                    chunked, lambda: list(pool.map(following, items, chunksize=50)), expect=answers
                ),
            ],
            Target(1.3),
            aside=(chunked,),
        )
        heavy = range(8 * cpus)
        yield Figure(
            f"{len(heavy)} CPU-bound tasks on {cpus} processes",
            "wove",
            [
                timed("wove", lambda: weave_burn(heavy)),
                timed("ProcessPoolExecutor.map", lambda: list(pool.map(burn, heavy))),
            ],
            Target(1.1),
        )


def first_and_second() -> Values:
    answer = call("benchmarks.children:two_weaves")
    return {"second weave": answer["second"], "first weave": answer["first"]}


@benchmark("stdio-warm")
def warm() -> Iterator[Figure]:
    """The second weave on a stdio environment, beside the first, in fresh processes."""
    yield Figure(
        "the second weave on a warm environment",
        "second weave",
        [first_and_second],
        Target(0.05),
        rounds=11,
    )
