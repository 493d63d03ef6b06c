"""Makes the result that the user reads of a run that has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from wove.engine.tasks import CANCELLED, DONE
from wove.result import Failure, RunRecord, WoveResult, worded

if TYPE_CHECKING:
    from wove.engine.mapping import MapProgress
    from wove.engine.scheduler import WeaveRun
    from wove.engine.tasks import Task
    from wove.graph.plan import Plan

__all__ = ["failed_before_running", "records_of", "records_of_task", "result_of"]


class _Records:
    """The records of a run, made when they are first read, which is never for most weaves."""

    def __init__(self, run: WeaveRun) -> None:
        self._run: WeaveRun | None = run
        self._made: tuple[RunRecord, ...] = ()

    def __call__(self) -> tuple[RunRecord, ...]:
        if self._run is not None:
            run, self._run = self._run, None
            self._made = tuple(records_of(run))
        return self._made


def records_of(run: WeaveRun) -> list[RunRecord]:
    """Return the records of *run*, which may still be running; also from another thread."""
    offset = time() - perf_counter()
    records = [record for task in run.tasks for record in records_of_task(task, offset)]
    return records + [record for attempts in list(run.merges) for record in attempts.records.copy()]


def records_of_task(task: Task, offset: float) -> Iterator[RunRecord]:
    if not task.settings.is_local:
        yield from task.records().copy()
        return

    if task.items is not None and task.items.kept:
        yield from _items_of(task, task.items, offset)
    elif task.started:
        yield RunRecord(
            task.name,
            attempt=task.attempts(),
            environment=task.settings.environment.name,
            started=task.started + offset,
            ended=task.ended + offset if task.ended else None,
            thread=task.thread or None,
            error=_text(task.error),
        )


def _items_of(task: Task, items: MapProgress, offset: float) -> Iterator[RunRecord]:
    environment = task.settings.environment.name
    errors = dict(items.errors.copy())

    # An item that is just being launched may have no end or thread yet.
    for position, (started, ended) in enumerate(
        zip(items.started[:], items.ended[:], strict=False)
    ):
        if not started:  # it was never launched, because it failed in the map that is the source
            continue
        error = errors.get(position)
        thread = items.threads[position] if position < len(items.threads) else 0
        yield RunRecord(
            task.name,
            position,
            attempt=task.attempts(position),
            environment=environment,
            started=started + offset,
            ended=ended + offset if ended else None,
            thread=thread or None,
            error=_text(error),
        )


def _text(error: BaseException | None) -> str | None:
    return None if error is None else worded(error)


def result_of(run: WeaveRun, initial: Mapping[str, Any]) -> WoveResult:
    """Return the result of *run*, which has ended."""
    values: dict[str, Any] = {}
    errors: dict[str, BaseException] = {}
    timings: dict[str, float] = {}
    cancelled: list[str] = []
    unkept: list[str] = []

    for task in run.tasks:
        if task.status is CANCELLED:
            cancelled.append(task.name)
            continue
        if task.status is DONE and not task.settings.keep:
            unkept.append(task.name)
        elif task.status is DONE:
            values[task.name] = task.value
        elif task.error is not None:
            errors[task.name] = task.error
        if task.started:
            timings[task.name] = task.seconds()

    return WoveResult(
        tuple([task.name for task in run.tasks]),
        values=values,
        errors=errors,
        initial=initial,
        timings=timings,
        cancelled=tuple(cancelled),
        exception=run.error or run.cancelled_by,
        failures=tuple([Failure(*failure) for failure in run.failures]),
        run_records=_Records(run),
        returns_errors=run.resolver.weave().error_mode != "raise",
        unkept=tuple(unkept),
    )


def failed_before_running(
    plan: Plan, initial: Mapping[str, Any], error: BaseException, returns_errors: bool
) -> WoveResult:
    """Return the result of a weave that failed with *error* before any of its tasks ran."""
    return WoveResult(
        tuple(node.name for node in plan.nodes),
        values={},
        errors={},
        initial=initial,
        timings={},
        cancelled=tuple(node.name for node in plan.nodes),
        exception=error,
        failures=(),
        run_records=tuple,
        returns_errors=returns_errors,
    )
