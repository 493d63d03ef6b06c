"""Samples of a running weave, taken now and then: one row for each task.

Nothing here costs the engine anything. Its state is read while it changes, so the numbers of a
row need not be of one and the same moment; those of a task that has ended are final.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence, Sized
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from time import perf_counter
from typing import Any, Final, Protocol

from wove.observe.reports import Report

__all__ = ["ENDED", "Row", "RunView", "Sampler", "length_of"]

ENDED: Final = frozenset({"done", "failed", "cancelled", "skipped"})
"""The states in which a task does not change any more; "skipped" is one that never began."""

RATE_SECONDS = 5.0
"""Number of seconds over which the rate of a map is measured."""

# No others: the length of an object of the user's may be slow, or not the number of its items.
_DICT: Final[dict[Any, Any]] = {}
_SIZED: Final[frozenset[type[Any]]] = frozenset(
    {list, tuple, range, dict, set, frozenset, str, bytes, bytearray, deque}
    | {type(_DICT.keys()), type(_DICT.values()), type(_DICT.items())}
)


def length_of(source: Any) -> int | None:
    """Return how many items *source* has; ``None`` where only using it up would tell."""
    return len(source) if type(source) in _SIZED else None


class _EnvironmentView(Protocol):
    @property
    def name(self) -> str: ...


class _SettingsView(Protocol):
    @property
    def environment(self) -> _EnvironmentView: ...


class _DeclarationView(Protocol):
    @property
    def mapped(self) -> bool: ...

    @property
    def source(self) -> Any: ...


class _NodeView(Protocol):
    @property
    def declaration(self) -> _DeclarationView: ...


class _ItemsView(Protocol):
    @property
    def kept(self) -> bool: ...

    @property
    def launched(self) -> int: ...

    @property
    def completed(self) -> int: ...

    @property
    def ended(self) -> array[float]: ...

    @property
    def errors(self) -> Sized: ...

    @property
    def exhausted(self) -> bool: ...


class _TaskView(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def status(self) -> Enum: ...

    @property
    def started(self) -> float: ...

    @property
    def ended(self) -> float: ...

    @property
    def error(self) -> BaseException | None: ...

    @property
    def items(self) -> _ItemsView | None: ...

    @property
    def settings(self) -> _SettingsView: ...

    @property
    def node(self) -> _NodeView: ...

    @property
    def progress(self) -> Report | None: ...

    def retries(self) -> int: ...


class RunView(Protocol):
    """As much of a run as is looked at."""

    @property
    def tasks(self) -> Sequence[_TaskView]: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def context(self) -> Context: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One task at one moment.

    Attributes:
        name: The task's.
        state: ``"waiting"``, ``"running"``, or one of `ENDED`.
        seconds: How long it has been running, or took.
        ended: When it ended, on the clock of `time.perf_counter`; 0 before.
        environment: Where it runs.
        mapped: Whether it is mapped; the numbers of items are 0 otherwise.
        items: How many items have ended.
        total: How many there are, where that is known.
        failed: How many of those that ended have failed.
        rate: Items a second lately, or over all when it has ended; 0 where there is none.
        retries: How many attempts were not the first one.
        error: The name of the type of what it failed with.
        progress: What it, or one of its items, has reported last.
    """

    name: str
    state: str
    seconds: float = 0.0
    ended: float = 0.0
    environment: str = "default"
    mapped: bool = False
    items: int = 0
    total: int | None = None
    failed: int = 0
    rate: float = 0.0
    retries: int = 0
    error: str = ""
    progress: Report | None = None


class Sampler:
    """Looks at the tasks of *run*."""

    def __init__(self, run: RunView) -> None:
        tasks = {task.name: task for task in run.tasks}
        self._watched = [_Watched(task, tasks, run.values) for task in run.tasks]

    def rows(self) -> list[Row]:
        """How the tasks stand now, in order of definition."""
        now = perf_counter()
        return [watched.row(now) for watched in self._watched]


class _Watched:
    __slots__ = ("_final", "_low", "_samples", "_task", "_tasks", "_values", "_waiting")

    def __init__(
        self, task: _TaskView, tasks: Mapping[str, _TaskView], values: Mapping[str, Any]
    ) -> None:
        self._task = task
        self._tasks = tasks
        self._values = values
        self._waiting = Row(
            task.name,
            "waiting",
            environment=task.settings.environment.name,
            mapped=task.node.declaration.mapped,
        )
        self._final: Row | None = None
        self._low = 0
        self._samples: deque[tuple[float, int]] = deque()

    def row(self, now: float) -> Row:
        if self._final is not None:
            return self._final
        task = self._task
        # Read once, and first: what is read after the status of a task that has ended is final.
        state, started = str(task.status.value), task.started
        if state == "pending":
            return self._waiting
        ended = 0.0 if state == "running" else task.ended
        if state != "running" and not started:
            state = "skipped"
        row = self._look(state, started, ended, now)
        if state in ENDED:
            self._final = row
        return row

    def _look(self, state: str, started: float, ended: float, now: float) -> Row:
        task = self._task
        seconds = max(0.0, (ended or now) - started) if started else 0.0
        items = task.items
        done = self._ended_items(items)
        error = task.error
        return Row(
            task.name,
            state,
            seconds=seconds,
            ended=ended,
            environment=task.settings.environment.name,
            mapped=task.node.declaration.mapped,
            items=done,
            total=self._total(items, done, state),
            failed=0 if items is None else len(items.errors),
            rate=self._rate(done, seconds, state, now),
            retries=task.retries(),
            error="" if error is None else type(error).__name__,
            progress=task.progress,
        )

    def _ended_items(self, items: _ItemsView | None) -> int:
        if items is None:
            return 0
        if not items.kept:
            return items.completed
        ended = items.ended

        # The items that have ended from the start on without a gap are never looked at again. Slices are copies:
        # an array that somebody holds a view of could not grow.
        try:
            self._low = ended.index(0.0, self._low)
        except ValueError:
            self._low = max(self._low, len(ended))
            return self._low

        rest = ended[self._low :]
        return self._low + len(rest) - rest.count(0.0)

    def _total(self, items: _ItemsView | None, done: int, state: str) -> int | None:
        if not self._task.node.declaration.mapped:
            return None
        length = self._length(self._task)
        if length is not None:
            return max(done, length)
        if items is not None and items.exhausted and state != "failed":
            return max(done, _launched(items))
        return None

    def _length(self, task: _TaskView) -> int | None:
        """Return the number of items of the mapped *task*, which is that of a mapped task that is its source."""
        source: Any = task.node.declaration.source
        if not isinstance(source, str):
            return length_of(source)
        other = self._tasks.get(source)
        if other is None or not other.node.declaration.mapped:
            return length_of(self._values.get(source))

        length = self._length(other)
        items = other.items
        if length is None and items is not None and items.exhausted:
            return _launched(items)
        return length

    def _rate(self, done: int, seconds: float, state: str, now: float) -> float:
        if state in ENDED:
            return done / seconds if seconds > 0 else 0.0
        samples = self._samples
        if not samples and seconds > 0:
            samples.append((now - seconds, 0))
        samples.append((now, done))
        while len(samples) > 2 and samples[1][0] < now - RATE_SECONDS:
            samples.popleft()
        since, before = samples[0]
        return (done - before) / (now - since) if now > since else 0.0


def _launched(items: _ItemsView) -> int:
    return len(items.ended) if items.kept else items.launched
