"""Finds out early that the callable of a task cannot travel, while the tasks that it waits for run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from wove.concurrency import forks, thread_pool
from wove.engine.binding import portable

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.engine.tasks import Task

__all__ = ["check_callables"]


def check_callables(run: WeaveRun, tasks: Sequence[Task]) -> None:
    """Pickle the callables of *tasks* in a thread, and have `WeaveRun.cannot_travel` called for each that cannot.

    The pickles are not kept: what a callable captures may change until its task begins.

    Args:
        run: The run that the tasks belong to.
        tasks: Tasks of other environments that wait for something.
    """
    waiting = [task for task in tasks if not _travels_by_name(task.node.declaration.fn)]
    if waiting:
        thread_pool.submit(_check, run, waiting)


def _travels_by_name(fn: object) -> bool:
    """Return whether *fn* is a function at the top level of a module that others can import."""
    return (
        isinstance(fn, FunctionType)
        and fn.__module__ != "__main__"
        and fn.__qualname__.isidentifier()
    )


def _check(run: WeaveRun, tasks: Sequence[Task]) -> None:
    with forks.importing:
        from wove.errors import SerializationError
        from wove.executors.registry import executor_class
        from wove.protocol import pickling

    for task in tasks:
        declaration, environment = task.node.declaration, task.settings.environment
        if run.closed:
            return
        try:
            if not executor_class(environment.executor, environment.name).wire:
                continue
            fn: Any = portable(declaration.fn, declaration.kind, declaration.signature)
            if not pickling.is_picklable(fn):
                pickling.dumps(fn, label=f"the function of task {task.name!r}")
        except SerializationError as error:
            # A RuntimeError says that a task changed what is captured meanwhile.
            if not isinstance(error.__cause__, RuntimeError):
                run.inbox.post(partial(run.cannot_travel, task, error))
        except Exception:  # whatever it is, it is raised where the environment is used
            pass
