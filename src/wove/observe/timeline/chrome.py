"""The Chrome trace format, which https://ui.perfetto.dev and ``chrome://tracing`` open.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from wove.observe.timeline.model import PHASES, WORK, Bar, Model, State

__all__ = ["events"]

MAX_SPLIT_RUNS: Final = 20_000
"""Up to how many runs the parts of each get slices of their own. With more, a viewer would take minutes to open
the file; the parts are then among the arguments of the run only."""

_HERE: Final = range(WORK - 1, WORK + 2)


def events(model: Model) -> Iterator[dict[str, Any]]:
    """Yield the trace events of *model*: a process for each environment, a thread for each lane."""
    processes = {lane.environment: None for lane in model.lanes}
    numbers = {name: number for number, name in enumerate(processes, 1)}
    for name, number in numbers.items():
        yield _metadata("process_name", number, 0, name=name)
        yield _metadata("process_sort_index", number, 0, sort_index=number)

    for thread, lane in enumerate(model.lanes, 1):
        name = f"{lane.worker} #{lane.slot + 1}" if lane.slot else lane.worker
        yield _metadata("thread_name", numbers[lane.environment], thread, name=name)
        yield _metadata("thread_sort_index", numbers[lane.environment], thread, sort_index=thread)

    split = sum(map(len, model.bars)) <= MAX_SPLIT_RUNS
    ways = count()

    for thread, (lane, bars) in enumerate(zip(model.lanes, model.bars, strict=True), 1):
        place = {"pid": numbers[lane.environment], "tid": thread}
        for bar in bars:
            yield _slice(model, bar, place)
            if bar.state in (State.FAILED, State.LOST, State.RETRIED) or bar.losses:
                yield _mark(model, bar, place)
            if split and _remote(bar):
                yield from _way(model, bar, {**place, "cat": "way", "id": next(ways)})


def _metadata(kind: str, process: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def _remote(bar: Bar) -> bool:
    return any(bar.parts[:WORK]) or any(bar.parts[WORK + 1 :])


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _name(model: Model, bar: Bar) -> str:
    task = model.tasks[bar.task]
    return task if bar.item < 0 else f"{task}[{bar.item}]"


def _slice(model: Model, bar: Bar, place: dict[str, int]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "task": model.tasks[bar.task],
        "state": State(bar.state).name.lower(),
    }
    if bar.item >= 0:
        arguments["item"] = bar.item
    if bar.attempt > 1:
        arguments["attempt"] = bar.attempt
    if bar.losses:
        arguments["losses"] = bar.losses
    if bar.error >= 0:
        arguments["error"] = model.errors[bar.error]
    if _remote(bar):
        arguments["bytes_out"], arguments["bytes_in"] = bar.bytes_out, bar.bytes_in
        arguments["milliseconds"] = {
            phase: round(seconds * 1e3, 3) for phase, seconds in zip(PHASES, bar.parts, strict=True)
        }

    return {
        "ph": "X",
        "cat": "run",
        "name": _name(model, bar),
        **place,
        "ts": _micro(bar.begun),
        "dur": _micro(bar.busy),
        "args": arguments,
    }


def _mark(model: Model, bar: Bar, place: dict[str, int]) -> dict[str, Any]:
    what = "lost" if bar.losses or bar.state is State.LOST else State(bar.state).name.lower()
    return {
        "ph": "i",
        "s": "t",
        "cat": what,
        "name": f"{_name(model, bar)} {what}",
        **place,
        "ts": _micro(bar.begun + bar.busy),
    }


def _way(model: Model, bar: Bar, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the whole way of a remote run, as asynchronous slices: those may overlap."""
    time = bar.begun - sum(bar.parts[: WORK - 1])
    yield {**common, "ph": "b", "name": _name(model, bar), "ts": _micro(time)}

    for place, (phase, seconds) in enumerate(zip(PHASES, bar.parts, strict=True)):
        if seconds > 0 and place not in _HERE:
            yield {**common, "ph": "b", "name": phase, "ts": _micro(time)}
            yield {**common, "ph": "e", "name": phase, "ts": _micro(time + seconds)}
        time += seconds

    yield {**common, "ph": "e", "name": _name(model, bar), "ts": _micro(time)}
