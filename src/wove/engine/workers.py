"""Counts what each worker of a run has done, a little more at each look: what has ended is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from wove.engine.tasks import DONE, RUNNING
from wove.observe.workers import EVENT_LOOP, UNKNOWN, WAITING, WorkerRow

if TYPE_CHECKING:
    from wove.engine.mapping import MapProgress
    from wove.engine.scheduler import WeaveRun
    from wove.engine.tasks import Task
    from wove.result import RunRecord

__all__ = ["WorkerCounter"]


class WorkerCounter:
    """Counts for *run*. Its state is read while it changes, so that a row may be a moment behind another."""

    def __init__(self, run: WeaveRun) -> None:
        self._run = run
        self._rows: dict[tuple[str, str], WorkerRow] = {}
        self._records: dict[int, _Records] = {}
        self._items: dict[str, _Items] = {}
        self._ended: set[str] = set()

    def rows(self) -> list[WorkerRow]:
        """Return how the workers stand now, by environment and name."""
        for row in self._rows.values():
            row.running = 0

        for task in self._run.tasks:
            self._look_at(task)
        for attempts in list(self._run.merges):
            self._count_records(attempts.records)

        shown = (row for row in self._rows.values() if row.running or row.done or row.failed)
        return [replace(row) for row in sorted(shown, key=_order)]

    def _look_at(self, task: Task) -> None:
        if not task.settings.is_local:
            self._count_records(task.records())
        elif task.items is not None:
            self._count_items(task, task.items)
        elif task.started and task.name not in self._ended:
            row = self._row(task.settings.environment.name, _thread(task.thread))
            if task.status is RUNNING:
                row.running += 1
            else:
                self._ended.add(task.name)
                _count(row, task.status is not DONE, task.ended - task.started)

    def _count_records(self, records: list[RunRecord]) -> None:
        known = self._records.setdefault(id(records), _Records())

        for record in known.changed(records):
            if record.ended is None:
                name = WAITING if record.host is None else f"{record.host} pid {record.pid}"
                self._row(record.environment, name).running += 1
                continue
            name = UNKNOWN if record.host is None else f"{record.host} pid {record.pid}"
            spent = record.trip.worker_spent if record.trip is not None else None
            busy = record.ended - record.started if spent is None else sum(spent)
            _count(self._row(record.environment, name), record.error is not None, busy)

    def _count_items(self, task: Task, items: MapProgress) -> None:
        known = self._items.setdefault(task.name, _Items())
        environment = task.settings.environment.name

        def row_of(position: int) -> WorkerRow:
            thread = items.threads[position] if position < len(items.threads) else 0
            return self._row(environment, _thread(thread))

        for position, seconds in known.changed(items):
            if seconds is None:
                row_of(position).running += 1
            else:
                _count(row_of(position), False, seconds)

        # By the errors, because an item may have ended a moment before its error is there.
        for position in known.failed(items):
            row = row_of(position)
            row.done -= 1
            row.failed += 1

    def _row(self, environment: str, name: str) -> WorkerRow:
        key = environment, name
        if key not in self._rows:
            self._rows[key] = WorkerRow(environment, name)
        return self._rows[key]


class _Records:
    """A growing list of records, read so far."""

    def __init__(self) -> None:
        self._count = 0
        self._running: list[RunRecord] = []

    def changed(self, records: list[RunRecord]) -> Iterator[RunRecord]:
        """Yield the records that run, and those that have ended since the last call."""
        looked = self._running + records[self._count :]
        self._count += len(looked) - len(self._running)
        self._running = []

        for record in looked:
            if record.ended is None:
                self._running.append(record)
            yield record


class _Items:
    """The items of a map in this process, read so far."""

    def __init__(self) -> None:
        self._count = self._errors = 0
        self._running: list[int] = []

    def failed(self, items: MapProgress) -> Iterator[int]:
        """Yield the positions of the items that have failed since the last call."""
        errors = items.errors[self._errors :]
        self._errors += len(errors)
        return (position for position, _ in errors if position is not None)

    def changed(self, items: MapProgress) -> Iterator[tuple[int, float | None]]:
        """Yield the positions of items: with ``None`` while they run, with their seconds once when they have ended."""
        count = min(len(items.started), len(items.ended))
        looked = [*self._running, *range(self._count, count)]
        self._count, self._running = count, []
        now = perf_counter()

        for position in looked:
            started, ended = items.started[position], items.ended[position]
            if not started or started > now:  # not launched yet
                self._running.append(position)
            elif not ended:
                self._running.append(position)
                yield position, None
            else:
                yield position, ended - started


def _thread(number: int) -> str:
    return f"thread {number}" if number else EVENT_LOOP


def _count(row: WorkerRow, failed: bool, seconds: float) -> None:
    row.failed += failed
    row.done += not failed
    row.busy += max(0.0, seconds)


def _order(row: WorkerRow) -> tuple[str, bool, int, str]:
    return row.environment, row.name in (WAITING, UNKNOWN), len(row.name), row.name
