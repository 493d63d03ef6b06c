"""From a run that has ended to the result that its user reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from wove.engine.tasks import CANCELLED, DONE
from wove.result import Failure, RunRecord, WoveResult, worded

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.engine.tasks import Task
    from wove.graph.plan import Plan

__all__ = ["failed_before_running", "result_of"]


class _Records:
    """The records of a run, made when they are first read: most weaves are never asked for them."""

    def __init__(self, run: WeaveRun) -> None:
        self._run: WeaveRun | None = run
        self._made: tuple[RunRecord, ...] = ()

    def __call__(self) -> tuple[RunRecord, ...]:
        if self._run is not None:
            run, self._run = self._run, None
            self._offset = time() - perf_counter()
            made = [record for task in run.tasks for record in self._of(task)]
            made += [record for attempts in run.merges for record in attempts.records]
            self._made = tuple(made)
        return self._made

    def _of(self, task: Task) -> Iterator[RunRecord]:
        if not task.settings.is_local:
            yield from task.records()
            return
        environment = task.settings.environment.name
        if task.items is not None:
            errors = dict(task.items.errors)
            for position, (started, ended) in enumerate(
                zip(task.items.started, task.items.ended, strict=True)
            ):
                error = errors.get(position)
                yield RunRecord(
                    task.name,
                    position,
                    attempt=task.attempts(position),
                    environment=environment,
                    started=started + self._offset,
                    ended=ended + self._offset if ended else None,
                    error=_text(error),
                )
        elif task.started:
            yield RunRecord(
                task.name,
                attempt=task.attempts(),
                environment=environment,
                started=task.started + self._offset,
                ended=task.ended + self._offset if task.ended else None,
                error=_text(task.error),
            )


def _text(error: BaseException | None) -> str | None:
    return None if error is None else worded(error)


def result_of(run: WeaveRun, initial: Mapping[str, Any]) -> WoveResult:
    """The result of *run*, which has ended."""
    values: dict[str, Any] = {}
    errors: dict[str, BaseException] = {}
    timings: dict[str, float] = {}
    cancelled: list[str] = []
    for task in run.tasks:
        if task.status is CANCELLED:
            cancelled.append(task.name)
            continue
        if task.status is DONE:
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
    )


def failed_before_running(
    plan: Plan, initial: Mapping[str, Any], error: BaseException, returns_errors: bool
) -> WoveResult:
    """The result of a weave that failed with *error* before any of its tasks ran."""
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
