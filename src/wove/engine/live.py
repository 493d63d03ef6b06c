"""Shows a run to the live page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from wove.engine.outcome import records_of
from wove.engine.picture import graph_of_run
from wove.engine.recording import title_of
from wove.engine.workers import WorkerCounter
from wove.observe.sampling import Row, Sampler

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.observe.graph import Graph
    from wove.observe.workers import WorkerRow
    from wove.result import RunRecord

__all__ = ["LiveView"]


class LiveView:
    """The view of a run for the page of this process, until it is closed. Does nothing where there is no page.

    Args:
        run: The run, which has not begun yet.
    """

    def __init__(self, run: WeaveRun) -> None:
        self.title = title_of(task.name for task in run.tasks)
        self._run = run
        self._sampler = Sampler(run)
        self._workers = WorkerCounter(run)
        page: Any = sys.modules.get("wove.observe.dashboard")
        self._watched = None if page is None else page.watch(self)

    def close(self) -> None:
        """Detach the run, which has ended, from the page, which keeps what it shows."""
        if self._watched is not None:
            self._watched.close()
            self._watched = None

    async def aclose(self) -> None:
        """`close`."""
        self.close()

    def rows(self) -> list[Row]:
        """Return the present state of the tasks."""
        return self._sampler.rows()

    def workers(self) -> list[WorkerRow]:
        """Return how the workers stand now."""
        return self._workers.rows()

    def graph(self) -> Graph:
        """Return the present graph."""
        return graph_of_run(self._run)

    def records(self) -> list[RunRecord]:
        """Return the records of everything that has run until now."""
        return records_of(self._run)

    def failures(self) -> list[tuple[str, int | None, BaseException]]:
        """Return the failures until now."""
        return self._run.failures.copy()
