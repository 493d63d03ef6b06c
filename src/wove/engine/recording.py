"""Writes the timeline of a run when it has ended, however it ended: ``weave(record="run.html")``."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from wove.concurrency.thread_pool import run_in_thread
from wove.engine.outcome import records_of
from wove.observe.timeline import Timeline, check_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wove.engine.scheduler import WeaveRun

__all__ = ["Recorder", "title_of"]

_log = logging.getLogger("wove")

TITLE_CHARACTERS = 70
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
            Timeline(records_of(run), title).save(self._path)
        except Exception as error:
            _log.error("the record of a weave could not be written to %s: %r", self._path, error)

    async def aclose(self) -> None:
        """`close`, without blocking the loop."""
        await run_in_thread(self.close)
