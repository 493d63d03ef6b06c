"""Many tasks that depend on each other: scheduling, planning, and the critical path."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from inspect import iscoroutinefunction
from time import perf_counter, sleep
from types import CodeType, FunctionType
from typing import Any

from wove import weave

from .harness import Figure, Probe, Target, Values, benchmark


@dataclass(frozen=True, slots=True)
class Graph:
    """Task functions, and what each depends on, by name.

    `functions` makes new function objects each time, as a block in a function does.
    """

    codes: Mapping[str, CodeType]
    edges: Mapping[str, Sequence[str]]
    names: Mapping[str, Any]

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            name: FunctionType(code, dict(self.names), name) for name, code in self.codes.items()
        }


def graph(
    edges: Mapping[str, Sequence[str]],
    body: Callable[[str], str],
    sync: Sequence[str] = (),
    **names: Any,
) -> Graph:
    """A graph of async tasks (those in *sync* excepted) that run *body* and return a number.

    *names* are what the bodies may use.
    """
    codes: dict[str, CodeType] = {}
    for name, parents in edges.items():
        kind = "def" if name in sync else "async def"
        head, total = f"{kind} {name}({', '.join(parents)}):", f"sum([{', '.join(parents)}])"
        scope: dict[str, Any] = {}
        exec(f"{head}\n    {body(name)}\n    return 1 + {total}", scope)
        codes[name] = scope[name].__code__
    return Graph(codes, edges, names)


def weave_graph(functions: Mapping[str, Callable[..., Any]], last: str) -> object:
    with weave() as w:
        for function in functions.values():
            w.do(function)
    return w.result[last]


async def loop_graph(
    functions: Mapping[str, Callable[..., Any]], edges: Mapping[str, Sequence[str]], last: str
) -> object:
    """What an expert writes with `graphlib`: a task starts as soon as its own inputs are there."""
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    loop, results = asyncio.get_running_loop(), dict[str, Any]()
    finished: asyncio.Future[None] = loop.create_future()

    def start() -> None:
        for name in sorter.get_ready():
            arguments = {parent: results[parent] for parent in edges[name]}
            function = functions[name]
            if iscoroutinefunction(function):
                work: asyncio.Future[Any] = loop.create_task(function(**arguments))
            else:
                work = loop.run_in_executor(None, partial(function, **arguments))
            work.add_done_callback(partial(ended, name))

    def ended(name: str, work: asyncio.Future[Any]) -> None:
        try:
            results[name] = work.result()
        except BaseException as error:
            if not finished.done():
                finished.set_exception(error)
            return
        sorter.done(name)
        start()
        if not sorter.is_active():
            finished.set_result(None)

    start()
    await finished
    return results[last]


def weave_probe(work: Graph, last: str) -> Probe:
    def probe() -> Values:
        functions = work.functions()
        gc.collect()
        begin = perf_counter()
        answer = weave_graph(functions, last)
        elapsed = perf_counter() - begin
        assert isinstance(answer, int)
        return {"wove": elapsed}

    return probe


def loop_probe(work: Graph, last: str, label: str = "graphlib loop over asyncio") -> Probe:
    def probe() -> Values:
        functions = work.functions()
        gc.collect()
        begin = perf_counter()
        answer = asyncio.run(loop_graph(functions, work.edges, last))
        elapsed = perf_counter() - begin
        assert isinstance(answer, int)
        return {label: elapsed}

    return probe


def chain(length: int) -> dict[str, list[str]]:
    return {f"t{index}": [f"t{index - 1}"] if index else [] for index in range(length)}


def layers(count: int, width: int, seed: int) -> dict[str, list[str]]:
    """*count* tasks in layers of *width*, each with one to three parents in the layer before."""
    choose = random.Random(seed)
    edges: dict[str, list[str]] = {}
    for index in range(count):
        above = (
            range((index // width - 1) * width, (index // width) * width) if index >= width else ()
        )
        edges[f"t{index}"] = (
            [f"t{p}" for p in choose.sample(above, choose.randint(1, 3))] if above else []
        )
    return edges


@benchmark("graph")
def graphs() -> Iterator[Figure]:
    """A thousand tasks at once, and five hundred in a row, beside a graphlib loop."""
    independent: dict[str, list[str]] = {f"t{index}": [] for index in range(1_000)}
    reduced = {**independent, "total": list(independent)}
    for title, edges, is_sync, target in (
        ("1,000 independent tasks and a reducer", reduced, False, Target(1.5)),
        ("a chain of 500 tasks", chain(500), False, Target(1.5)),
        ("layers of 20, 1,000 tasks", layers(1_000, 20, seed=1), False, None),
        ("a chain of 500 sync tasks", chain(500), True, None),
        ("layers of 20, 1,000 sync tasks", layers(1_000, 20, seed=1), True, None),
    ):
        work, last = (
            graph(edges, lambda name: "pass", tuple(edges) if is_sync else ()),
            list(edges)[-1],
        )
        yield Figure(
            title,
            "wove",
            [weave_probe(work, last), loop_probe(work, last)],
            target,
            rounds=21,
        )


class FirstTaskError(Exception):
    """Raised by the first task that runs, so that only planning is paid for."""


def planning_probe(count: int) -> Probe:
    """Seconds a task from the block's begin until its first task runs, for *count* tasks.

    The tasks are declared in a random order, because a planner may be lucky with a sorted one.
    """
    started: list[float] = []

    def mark() -> None:
        started.append(perf_counter())
        raise FirstTaskError

    edges = layers(count, 20, seed=count)
    names = list(edges)
    random.Random(count).shuffle(names)
    shuffled = {name: edges[name] for name in names}
    work = graph(shuffled, lambda name: "pass" if edges[name] else "mark()", mark=mark)

    def probe() -> Values:
        functions = work.functions()
        started.clear()
        gc.collect()
        begin = perf_counter()
        with weave(error_mode="return") as w:
            for function in functions.values():
                w.do(function)
        return {f"a task, of {count:,}": (started[0] - begin) / count}

    return probe


def running_probe(count: int) -> Probe:
    """Seconds a task for a whole weave of *count* tasks."""
    edges = layers(count, 20, seed=count)
    probe = weave_probe(graph(edges, lambda name: "pass"), list(edges)[-1])
    return lambda: {f"a task, of {count:,}": probe()["wove"] / count}


@benchmark("planning")
def planning() -> Iterator[Figure]:
    """Whether declaring and planning grow linearly: the cost a task at 4,000 beside that at 100."""
    counts = (100, 500, 1_000, 2_000, 4_000)
    between = tuple(f"a task, of {count:,}" for count in counts[1:-1])
    for title, probe, target in (
        ("declaring and planning, 100 to 4,000 tasks", planning_probe, Target(1.5)),
        ("the whole weave, 100 to 4,000 tasks", running_probe, None),
    ):
        yield Figure(
            title, "a task, of 4,000", [probe(c) for c in counts], target, between, rounds=11
        )


def critical_path(edges: Mapping[str, Sequence[str]], seconds: Mapping[str, float]) -> float:
    """The longest sum of durations along the edges: no schedule can be quicker."""
    ends: dict[str, float] = {}
    for name in TopologicalSorter(edges).static_order():
        ends[name] = seconds[name] + max((ends[parent] for parent in edges[name]), default=0.0)
    return max(ends.values())


def path_figure(
    title: str,
    edges: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    sync: Sequence[str] = (),
) -> Figure:
    def body(name: str) -> str:
        return f"{'sleep' if name in sync else 'await asleep'}({seconds[name]})"

    work = graph(edges, body, sync, sleep=sleep, asleep=asyncio.sleep)
    longest, by_hand, last = (
        critical_path(edges, seconds),
        "graphlib loop over asyncio",
        list(edges)[-1],
    )
    return Figure(
        title,
        "wove",
        [
            weave_probe(work, last),
            lambda: {"critical path": longest},
            loop_probe(work, last, by_hand),
        ],
        Target(0.97, "at least"),
        aside=(by_hand,),
        rounds=7,
    )


@benchmark("critical-path")
def critical_paths() -> Iterator[Figure]:
    """Whether anything waits for what it does not need: critical path / elapsed."""
    edges: dict[str, list[str]] = {
        "quick": [],
        "slow_after": ["quick"],
        "slow": [],
        "quick_after": ["slow"],
    }
    seconds = {"quick": 0.1, "slow_after": 0.4, "slow": 0.4, "quick_after": 0.1}
    yield path_figure("fast -> slow beside slow -> fast, async", edges, seconds)
    yield path_figure("fast -> slow beside slow -> fast, sync", edges, seconds, sync=tuple(edges))
    for seed in (1, 2, 3):
        edges = layers(60, 10, seed)
        choose = random.Random(seed)
        seconds = {name: choose.uniform(0.02, 0.12) for name in edges}
        yield path_figure(f"layered graph {seed} of 60 tasks, async", edges, seconds)
    sync = tuple(edges)[::2]
    yield path_figure(f"layered graph {seed} of 60 tasks, every other sync", edges, seconds, sync)
