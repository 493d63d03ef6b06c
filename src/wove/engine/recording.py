"""Writes the timeline of a run when it has ended, however it ended: ``weave(record="run.html")``."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Final

from wove.concurrency.thread_pool import run_in_thread
from wove.engine.outcome import records_of_task
from wove.observe.timeline import Timeline, check_path
from wove.observe.timeline.model import ItemColumns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wove.engine.scheduler import WeaveRun
    from wove.engine.tasks import Task
    from wove.result import RunRecord

__all__ = ["Recorder", "title_of"]

_log = logging.getLogger("wove")

TITLE_CHARACTERS = 70

MIN_COLUMNS: Final = 1_000
"""From this number of items on, the columns of a map are recorded instead of a record for each item."""
"""Maximum length of a title; longer ones are cut."""


def title_of(names: Iterable[str]) -> str:
    """Return the title of a timeline of the tasks *names*."""
    title = f"Weave of {', '.join(names) or 'no tasks'}"
    return title if len(title) <= TITLE_CHARACTERS else f"{title[: TITLE_CHARACTERS - 1]}…"


class Recorder:
    """Makes recordings of runs, all to one file.

    Args:
        path: The file: ``.html`` for a page, ``.json`` for a Chrome trace.

    Raises:
        ValueError: *path* ends in neither of them.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = check_path(path, "weave: record")

    def __call__(self, run: WeaveRun) -> Recording:
        """Return the recording of *run*, which begins now."""
        return Recording(run, self.path)


class Recording:
    """Writes the timeline of *run* to *path* when it is closed. Never raises, so that no weave fails because of it."""

    def __init__(self, run: WeaveRun, path: Path) -> None:
        self._run: WeaveRun | None = run
        self._path = path

    def close(self) -> None:
        """Write the file, unless it is written."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            title = title_of(task.name for task in run.tasks)
            records, columns = _recording_of(run)
            Timeline(records, title, columns).save(self._path)
        except Exception as error:
            _log.error("the record of a weave could not be written to %s: %r", self._path, error)

    async def aclose(self) -> None:
        """`close`, without blocking the loop."""
        await run_in_thread(self.close)


def _recording_of(run: WeaveRun) -> tuple[list[RunRecord], list[ItemColumns]]:
    """Return the records of *run*, which has ended, but columns for the items of maps that simply succeeded."""
    offset = time() - perf_counter()
    records: list[RunRecord] = []
    columns: list[ItemColumns] = []

    for task in run.tasks:
        items = _columns_of(task, offset)
        if items is None:
            records += records_of_task(task, offset)
        else:
            columns.append(items)

    for attempts in run.merges:
        records += attempts.records
    return records, columns


def _columns_of(task: Task, offset: float) -> ItemColumns | None:
    items = task.items
    if items is None or len(items.started) < MIN_COLUMNS or not task.settings.is_local:
        return None
    if items.errors or task.retries() or 0.0 in items.ended or 0.0 in items.started:
        return None
    if items.threads and len(items.threads) != len(items.started):
        return None

    columns = ItemColumns(
        task.name,
        task.settings.environment.name,
        items.started,
        items.ended,
        items.threads,
        offset,
    )
    return columns if columns.fits_one_row() else None
