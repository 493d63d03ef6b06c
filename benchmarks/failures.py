"""One task fails: how soon the block raises."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from wove import weave

from .graphs import Graph, graph
from .harness import Figure, Probe, Target, Values, benchmark

SIBLINGS = 1_000


class BrokenError(Exception):
    """What the failing task raises."""


async def sleeping(item: int) -> None:
    await asyncio.sleep(60)


async def failing() -> None:
    raise BrokenError


def group_fails(functions: list[Callable[[], Any]]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(function())

    asyncio.run(main())


def group_of_items_fails() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for item in range(SIBLINGS):
                group.create_task(sleeping(item))
            group.create_task(failing())

    asyncio.run(main())


def weave_fails(functions: list[Callable[[], Any]]) -> None:
    with weave() as w:
        for function in functions:
            w.do(function)


def weave_of_items_fails() -> None:
    with weave() as w:
        w.do(range(SIBLINGS))(sleeping)
        w.do(failing)


def until_raised(label: str, work: Callable[[], object]) -> Probe:
    """Seconds until *work* has raised `BrokenError`, alone or in a group."""

    def probe() -> Values:
        gc.collect()
        begin = end = perf_counter()
        try:
            work()
        except* BrokenError:
            end = perf_counter()
        assert end > begin, "nothing was raised"
        return {label: end - begin}

    return probe


def of_functions(label: str, work: Callable[[list[Callable[[], Any]]], None], siblings: Graph) -> Probe:
    """As `until_raised`, with new function objects every time."""

    def probe() -> Values:
        functions = [*siblings.functions().values(), failing]
        return until_raised(label, lambda: work(functions))()

    return probe


def beside_blocked_threads() -> Values:
    """Seconds from the failure until the block has raised, while four threads block for 2 s."""
    failed = raised = 0.0
    try:
        with weave() as w:
            for name in ("one", "two", "three", "four"):
                w.do(_blocking(name))

            @w.do
            async def late() -> None:
                nonlocal failed
                await asyncio.sleep(0.2)
                failed = perf_counter()
                raise BrokenError

    except BrokenError:
        raised = perf_counter()
    time.sleep(2)  # the abandoned threads end before the next round begins
    return {"from the failure to the raise": raised - failed}


def _blocking(name: str) -> Callable[[], None]:
    def block() -> None:
        time.sleep(2)

    block.__name__ = name
    return block


@benchmark("failure")
def failures() -> Iterator[Figure]:
    """The first failure beside many sleeping siblings, and beside blocked threads."""
    yield Figure(
        "one task fails beside a map of 1,000 sleeping items",
        "wove",
        [until_raised("wove", weave_of_items_fails), until_raised("TaskGroup", group_of_items_fails)],
        Target(1.2),
    )
    edges: dict[str, list[str]] = {f"t{index}": [] for index in range(SIBLINGS)}
    siblings = graph(edges, lambda name: "await sleep(60)", sleep=asyncio.sleep)
    yield Figure(
        "one task fails beside 1,000 sleeping tasks",
        "wove",
        [of_functions("wove", weave_fails, siblings), of_functions("TaskGroup", group_fails, siblings)],
        Target(1.2),
    )
    label = "from the failure to the raise"
    yield Figure(
        "one task fails beside 4 threads blocked for 2 s",
        label,
        [beside_blocked_threads],
        Target(0.1, "within"),
        rounds=7,
        warm_up=False,
    )
