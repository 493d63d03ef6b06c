"""One task fails: how soon the block raises."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeAlias

from wove import weave

from .graphs import Graph, graph
from .harness import Figure, Probe, Target, Values, benchmark

SIBLINGS = 1_000


class BrokenError(Exception):
    """What the failing task raises."""


class Crowd:
    """Siblings that sleep, and one task that fails as soon as all of them do."""

    def __init__(self) -> None:
        self.awake = SIBLINGS
        self.all_asleep = asyncio.Event()

    async def sleep(self) -> None:
        self.awake -= 1
        if not self.awake:
            self.all_asleep.set()
        await asyncio.sleep(60)

    async def sleep_as(self, item: int) -> None:
        await self.sleep()

    async def failing(self) -> None:
        await self.all_asleep.wait()
        raise BrokenError

    def functions(self, siblings: Graph) -> list[Callable[[], Any]]:
        """New function objects, as a block in a function has them."""
        return [*replace(siblings, names={"sleep": self.sleep}).functions().values(), self.failing]


Work: TypeAlias = Callable[[Crowd, Sequence[Callable[[], Any]]], None]


def group_fails(crowd: Crowd, functions: Sequence[Callable[[], Any]]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(function())

    asyncio.run(main())


def group_of_items_fails(crowd: Crowd, functions: Sequence[Callable[[], Any]]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for item in range(SIBLINGS):
                group.create_task(crowd.sleep_as(item))
            group.create_task(crowd.failing())

    asyncio.run(main())


def weave_fails(crowd: Crowd, functions: Sequence[Callable[[], Any]]) -> None:
    with weave() as w:
        for function in functions:
            w.do(function)


def weave_of_items_fails(crowd: Crowd, functions: Sequence[Callable[[], Any]]) -> None:
    with weave() as w:
        w.do(range(SIBLINGS))(crowd.sleep_as)
        w.do(crowd.failing)


def until_raised(label: str, work: Work, siblings: Graph) -> Probe:
    """Seconds until *work* has raised `BrokenError`, alone or in a group."""

    def probe() -> Values:
        crowd = Crowd()
        functions = crowd.functions(siblings)
        gc.collect()
        begin = end = perf_counter()
        try:
            work(crowd, functions)
        except* BrokenError:
            end = perf_counter()
        assert end > begin, "nothing was raised"
        assert crowd.awake == 0
        return {label: end - begin}

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
    edges: dict[str, list[str]] = {f"t{index}": [] for index in range(SIBLINGS)}
    siblings = graph(edges, lambda name: "await sleep()", sleep=None)
    for title, subject, reference in (
        (
            "one task fails beside a map of 1,000 sleeping items",
            weave_of_items_fails,
            group_of_items_fails,
        ),
        ("one task fails beside 1,000 sleeping tasks", weave_fails, group_fails),
    ):
        yield Figure(
            title,
            "wove",
            [
                until_raised("wove", subject, siblings),
                until_raised("TaskGroup", reference, siblings),
            ],
            Target(1.2),
            rounds=21,
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
