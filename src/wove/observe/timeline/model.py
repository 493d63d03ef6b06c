"""From run records to a picture: which lane a run is drawn in, when each of its parts began, how it ended.

Times of a worker are by the clock of its host. They are moved onto this process's clock as NTP does it:
of all runs of a host, the one with the shortest round trip tells how far that clock is off.
"""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from operator import sub
from time import time
from typing import Final, NamedTuple, Protocol, overload

__all__ = [
    "PHASES",
    "Bar",
    "ColumnBars",
    "ItemColumns",
    "Lane",
    "Model",
    "RecordView",
    "State",
    "build",
]

PHASES: Final = ("wait", "pickle", "send", "queue", "load", "work", "dump", "return", "unpickle")
"""The parts of a remote run, in order: the wait for a slot of its environment, pickling here, sending, the
queue there, unpickling there, the task's own work, pickling there, the way back, unpickling here. A local
run is all work."""

WORK: Final = PHASES.index("work")

MAX_SLOTS: Final = 48
"""Most rows that one worker gets for what it runs at the same time. What exceeds them shares the last one:
a picture with ten thousand rows shows nothing."""


CLOCK_SECONDS: Final = 0.001
"""By how much two runs may seem to overlap that a worker ran one after the other: clocks are not better."""


class RecordView(Protocol):
    """The fields of a run record that a timeline reads; `wove.result.RunRecord` describes the fields."""

    @property
    def task(self) -> str: ...
    @property
    def item(self) -> int | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def environment(self) -> str: ...
    @property
    def started(self) -> float: ...
    @property
    def ended(self) -> float | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def thread(self) -> int | None: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def losses(self) -> int: ...
    @property
    def error(self) -> str | None: ...
    @property
    def trip(self) -> TripView | None: ...


class TripView(Protocol):
    """The fields of a remote run's way that a timeline reads; `wove.result.Trip` describes the fields."""

    @property
    def admitted(self) -> float | None: ...
    @property
    def handed_over(self) -> float | None: ...
    @property
    def sent(self) -> float | None: ...
    @property
    def start_seen(self) -> float | None: ...
    @property
    def end_seen(self) -> float | None: ...
    @property
    def worker_began(self) -> float | None: ...
    @property
    def worker_spent(self) -> Sequence[float] | None: ...


class State(IntEnum):
    """How a run ended."""

    DONE = 0
    FAILED = 1
    LOST = 2
    """Its worker, or the way to it, was gone."""
    CANCELLED = 3
    UNFINISHED = 4
    """It was still running when the records were read."""
    RETRIED = 5
    """It failed, and another attempt followed."""


class Lane(NamedTuple):
    """One row of the picture: one worker, or one of the places in it.

    Attributes:
        environment: Its environment's name.
        host: Its host's name; empty for runs that no worker is known to have begun.
        pid: Its process id; 0 where it is not known.
        thread: Its thread's number in this process, from 1; 0 where it is not known.
        slot: Which of the things that it runs at the same time are drawn here, from 0.
    """

    environment: str
    host: str
    pid: int
    thread: int
    slot: int

    @property
    def worker(self) -> str:
        """Return the worker's name in the picture."""
        if not self.host:
            return "not begun"
        name = f"{self.host} {self.pid}"
        return f"{name} thread {self.thread}" if self.thread else name

    @property
    def short(self) -> str:
        """Return the worker's name in a narrow picture."""
        return f"thread {self.thread}" if self.thread else self.worker


class Bar(NamedTuple):
    """One run in the picture. All times are seconds since the first run began.

    Attributes:
        task: Index of its task in `Model.tasks`.
        item: The item's position; -1 for a run of an unmapped task.
        state: How it ended.
        attempt: Counted from 1.
        losses: How often it was lost and submitted again.
        error: Index of its error in `Model.errors`; -1 where there is none.
        bytes_out: Bytes that were sent.
        bytes_in: Bytes that came back.
        begun: When the worker began it.
        parts: Seconds of each of `PHASES`, none negative. Those before the worker had it lie before `begun`.
    """

    task: int
    item: int
    state: int
    attempt: int
    losses: int
    error: int
    bytes_out: int
    bytes_in: int
    begun: float
    parts: tuple[float, ...]

    @property
    def busy(self) -> float:
        """For how many seconds the worker was occupied with it."""
        return self.parts[WORK - 1] + self.parts[WORK] + self.parts[WORK + 1]


class ItemColumns(NamedTuple):
    """The items of a map in this process that have all succeeded at the first attempt: no object for each.

    Attributes:
        task: The task's name.
        environment: The name of its environment.
        started: When each item began, in seconds of any clock.
        ended: When it ended.
        threads: The number of its thread, from 1; empty where the items ran on the loop.
        offset: What makes seconds since the epoch of these times.
    """

    task: str
    environment: str
    started: array[float]
    ended: array[float]
    threads: array[int]
    offset: float

    def by_thread(self) -> Iterator[tuple[int, Sequence[int], array[float], array[float]]]:
        """Yield the number of each thread, with the positions, the starts and the ends of its items."""
        if not self.threads or min(self.threads) == max(self.threads):
            number = self.threads[0] if self.threads else 0
            yield number, range(len(self.started)), self.started, self.ended
            return

        # The sort keeps the order of the items of each thread.
        order = array("i", sorted(range(len(self.threads)), key=self.threads.__getitem__))
        started = array("d", map(self.started.__getitem__, order))
        ended = array("d", map(self.ended.__getitem__, order))
        first = 0
        for number, count in sorted(Counter(self.threads).items()):
            end = first + count
            yield number, order[first:end], started[first:end], ended[first:end]
            first = end

    def fits_one_row(self) -> bool:
        """Return whether no item of a thread, or of the loop, overlaps another: a thread runs one after the other."""
        if self.threads or len(self.started) < 2:
            return True
        return bool(max(map(sub, self.ended, self.started[1:])) <= CLOCK_SECONDS)


class ColumnBars(Sequence[Bar]):
    """The bars of items that one thread, or the loop, ran one after the other; each is made when it is read.

    Attributes:
        task: Index of the task in `Model.tasks`.
        positions: The items' positions.
        started: When each began.
        ended: When each ended.
        origin: The time of `Model.origin` on the clock of these times.
    """

    def __init__(
        self,
        task: int,
        positions: Sequence[int],
        started: array[float],
        ended: array[float],
        origin: float,
    ) -> None:
        self.task = task
        self.positions = positions
        self.started = started
        self.ended = ended
        self.origin = origin

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Bar: ...
    @overload
    def __getitem__(self, index: slice) -> list[Bar]: ...
    def __getitem__(self, index: int | slice) -> Bar | list[Bar]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]

        started = self.started[index]
        work = max(0.0, self.ended[index] - started)
        parts = (*_BEFORE, work, *_AFTER)
        begun = started - self.origin
        return Bar(self.task, self.positions[index], State.DONE, 1, 0, -1, 0, 0, begun, parts)


@dataclass(slots=True)
class Model:
    """All that a picture of a weave's runs needs.

    Attributes:
        origin: When the first run began, in seconds since the epoch.
        seconds: From then to the end of the last one.
        tasks: Names of tasks.
        errors: Texts of errors.
        lanes: The rows, from top to bottom.
        bars: The runs of each lane, by `Bar.begun`.
    """

    origin: float = 0.0
    seconds: float = 0.0
    tasks: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    lanes: list[Lane] = field(default_factory=list[Lane])
    bars: list[Sequence[Bar]] = field(default_factory=list[Sequence[Bar]])


class _Names:
    """Numbers for texts, in the order in which they come."""

    __slots__ = ("numbers",)

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


_Worker = tuple[str, str, int, int]
"""Environment, host, process id, thread."""


def build(
    records: Iterable[RecordView],
    now: float | None = None,
    columns: Sequence[ItemColumns] = (),
) -> Model:
    """Lay out *records*.

    Args:
        records: One record a run, in any order.
        now: Until when runs that have not ended are drawn, in seconds since the epoch.
        columns: Items of maps that have no records.
    """
    records = [record for record in records if record.started]
    if not records and not columns:
        return Model()

    now, here = time() if now is None else now, os.getpid()
    origin = min(
        *(record.started for record in records),
        *(min(items.started) + items.offset for items in columns),
        math.inf,
    )
    offsets = _clock_offsets(records)
    attempts = _last_attempts(records)
    tasks, errors = _Names(), _Names()
    workers: dict[_Worker, list[Bar]] = {}
    last = origin

    for record in records:
        ended = record.ended
        if ended is None:
            ended = max(now, record.started)
        last = max(last, ended)
        begun, parts = _parts(record, ended, offsets)
        bar = Bar(
            tasks[record.task],
            -1 if record.item is None else record.item,
            _state(record, attempts),
            record.attempt,
            record.losses,
            -1 if record.error is None else errors[record.error],
            record.bytes_out,
            record.bytes_in,
            begun - origin,
            parts,
        )
        workers.setdefault(_worker(record, here), []).append(bar)

    rows: dict[_Worker, list[ColumnBars]] = {}
    for items in columns:
        last = max(last, max(items.ended) + items.offset)
        for thread, positions, begun_at, ended_at in items.by_thread():
            row = ColumnBars(
                tasks[items.task], positions, begun_at, ended_at, origin - items.offset
            )
            rows.setdefault((items.environment, _HOST, here, thread), []).append(row)

    model = Model(origin, last - origin, list(tasks.numbers), list(errors.numbers))
    _fill_lanes(model, workers, rows)
    return model


def _worker(record: RecordView, here: int) -> _Worker:
    if record.trip is None:
        return record.environment, _HOST, here, record.thread or 0
    return record.environment, record.host or "", record.pid or 0, 0


_HOST: Final = (
    os.uname().nodename if sys.platform != "win32" else os.environ.get("COMPUTERNAME", "here")
)


# ---------------------------------------------------------------------- how it ended


def _last_attempts(records: Iterable[RecordView]) -> dict[tuple[str, int | None], int]:
    """Return the number of the last attempt of everything that was tried more than once."""
    last: dict[tuple[str, int | None], int] = {}
    for record in records:
        if record.attempt > 1:
            key = record.task, record.item
            last[key] = max(record.attempt, last.get(key, 0))
    return last


def _state(record: RecordView, last_attempts: dict[tuple[str, int | None], int]) -> State:
    if record.error is None:
        return State.DONE if record.ended is not None else State.UNFINISHED
    if record.error.startswith("WorkerLostError"):
        return State.LOST
    if record.attempt < last_attempts.get((record.task, record.item), 0):
        return State.RETRIED
    return State.CANCELLED if record.error.startswith("CancelledError") else State.FAILED


# ---------------------------------------------------------------------- when each part was


def _clock_offsets(records: Iterable[RecordView]) -> dict[str, float]:
    """Return by how many seconds the clock of each host is ahead of this one's."""
    best: dict[str, tuple[float, float]] = {}

    for record in records:
        trip = record.trip
        if (
            trip is None
            or record.host is None
            or trip.worker_began is None
            or trip.worker_spent is None
        ):
            continue
        if trip.handed_over is None or trip.end_seen is None:
            continue
        worker_ended = trip.worker_began + sum(trip.worker_spent)
        way = (trip.end_seen - trip.handed_over) - (worker_ended - trip.worker_began)
        ahead = ((trip.worker_began - trip.handed_over) + (worker_ended - trip.end_seen)) / 2
        if record.host not in best or way < best[record.host][0]:
            best[record.host] = way, ahead

    # Half the shortest way is what cannot be told apart from a clock that is right.
    return {host: ahead if abs(ahead) > way / 2 else 0.0 for host, (way, ahead) in best.items()}


def _parts(
    record: RecordView, ended: float, offsets: dict[str, float]
) -> tuple[float, tuple[float, ...]]:
    """Return when the worker began *record*, and the seconds of each of `PHASES`."""
    trip = record.trip
    started = record.started
    if trip is None:
        return started, (*_BEFORE, max(0.0, ended - started), *_AFTER)
    if trip.admitted is None:  # it has not even got a slot
        return ended, (max(0.0, ended - started), *_BEFORE[1:], 0.0, *_AFTER)

    # One after the other, whatever the clocks say.
    admitted = max(started, trip.admitted)
    handed_over = max(admitted, trip.handed_over or ended)
    sent = max(handed_over, trip.sent or handed_over)
    end_seen = max(sent, trip.end_seen or ended)

    if trip.worker_began is not None and trip.worker_spent is not None:
        load, work, dump = _within(trip.worker_spent, end_seen - sent)
        begun = trip.worker_began - offsets.get(record.host or "", 0.0)
        begun = min(max(begun, sent), max(sent, end_seen - (load + work + dump)))
    else:
        begun = min(max(trip.start_seen or sent, sent), end_seen)
        load, work, dump = 0.0, end_seen - begun, 0.0

    busy = load + work + dump
    return begun, (
        admitted - started,
        handed_over - admitted,
        sent - handed_over,
        begun - sent,
        load,
        work,
        dump,
        max(0.0, end_seen - begun - busy),
        max(0.0, ended - end_seen),
    )


def _within(spent: Sequence[float], limit: float) -> tuple[float, float, float]:
    """Return *spent*, made shorter where it could not have fitted into *limit* seconds."""
    load, work, dump = spent
    share = min(1.0, limit / max(load + work + dump, 1e-9))
    return load * share, work * share, dump * share


_BEFORE: Final = (0.0,) * WORK
_AFTER: Final = (0.0,) * (len(PHASES) - WORK - 1)


# ---------------------------------------------------------------------- where it is drawn


def _fill_lanes(
    model: Model, workers: dict[_Worker, list[Bar]], columns: dict[_Worker, list[ColumnBars]]
) -> None:
    all_workers = {**workers, **columns}
    environments = {worker[0]: None for worker in all_workers}
    order = {name: place for place, name in enumerate(environments)}

    for worker in sorted(
        all_workers, key=lambda worker: (order[worker[0]], not worker[1], worker[1:])
    ):
        rows = [*_slots(workers.get(worker, [])), *columns.get(worker, ())]
        for slot, bars in enumerate(rows):
            model.lanes.append(Lane(*worker, slot))
            model.bars.append(bars)


def _slots(bars: list[Bar]) -> list[list[Bar]]:
    """Spread *bars* over as few rows as possible, so that none hides another; at most `MAX_SLOTS`."""
    bars.sort(key=lambda bar: bar.begun)
    rows: list[list[Bar]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []

    for bar in bars:
        while busy and busy[0][0] <= bar.begun + CLOCK_SECONDS:
            heappush(free, heappop(busy)[1])
        if free:
            row = heappop(free)
        elif len(rows) < MAX_SLOTS:
            row = len(rows)
            rows.append([])
        else:
            rows[-1].append(bar)
            continue
        rows[row].append(bar)
        heappush(busy, (bar.begun + bar.busy, row))

    return rows
