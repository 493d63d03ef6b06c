"""The weaves that the page shows: those that run, as they are now, and the last that have ended, as they were then."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from time import time
from typing import Any, Final, NamedTuple, Protocol

from wove.observe.graph import Graph
from wove.observe.sampling import Row
from wove.observe.timeline import Timeline
from wove.observe.timeline.model import RecordView
from wove.observe.wording import progress_text
from wove.observe.workers import WorkerRow

__all__ = ["LiveRun", "Watched", "Weaves"]

MAX_ENDED: Final = 20
"""How many weaves that have ended are shown."""

MAX_RUNNING: Final = 100
"""How many weaves that run are shown; the newest ones."""

MAX_WORKERS: Final = 200
MAX_FAILURES: Final = 50
MAX_TRACEBACK_CHARACTERS: Final = 20_000


class LiveRun(Protocol):
    """The part of a run that the page reads, from its own threads, while the run goes on."""

    @property
    def title(self) -> str: ...
    def rows(self) -> Sequence[Row]: ...
    def workers(self) -> Sequence[WorkerRow]: ...
    def graph(self) -> Graph: ...
    def records(self) -> Sequence[RecordView]: ...
    def failures(self) -> Sequence[tuple[str, int | None, BaseException]]: ...


_SUMMARY: Final = ("number", "title", "state", "seconds", "done", "tasks")


class _Kept(NamedTuple):
    """The part of an ended weave that is shown."""

    details: dict[str, Any]
    graph: str
    timeline: str


class Watched:
    """One weave on the page.

    Args:
        number: Its number, from 1.
        run: The weave's run.
        weaves: The page's.
    """

    def __init__(self, number: int, run: LiveRun, weaves: Weaves) -> None:
        self.number = number
        self.title = run.title
        self._weaves = weaves
        self._run: LiveRun | None = run
        self._began = time()
        self._ended: float | None = None
        self._kept = _Kept({}, "", "")
        self._lock = threading.Lock()

    def close(self) -> None:
        """The run has ended: show how, and let go of it as soon as that is noted."""
        self._ended = time()
        self._weaves.ended(self)

    def keep(self) -> None:
        """Note what the run has left, and let go of it. Called by the page's own thread."""
        with self._lock:
            run, self._run = self._run, None
            if run is not None:
                self._kept = _Kept(self._details(run), run.graph().svg, self._data(run))

    def summary(self) -> dict[str, Any]:
        """Return what the list of weaves shows."""
        with self._lock:
            if self._run is not None:
                return self._summary(self._run.rows())
            return {name: self._kept.details[name] for name in _SUMMARY}

    def details(self) -> dict[str, Any]:
        """Return all but the pictures."""
        with self._lock:
            return self._kept.details if self._run is None else self._details(self._run)

    def graph(self) -> str:
        """Return the graph, as SVG."""
        with self._lock:
            return self._kept.graph if self._run is None else self._run.graph().svg

    def timeline(self) -> str:
        """Return the data of the timeline's page."""
        with self._lock:
            return self._kept.timeline if self._run is None else self._data(self._run)

    def _data(self, run: LiveRun) -> str:
        return Timeline(run.records(), self.title).data

    def _summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "number": self.number,
            "title": self.title,
            "state": self._state(rows),
            "seconds": (self._ended or time()) - self._began,
            "done": sum(row.state == "done" for row in rows),
            "tasks": len(rows),
        }

    def _details(self, run: LiveRun) -> dict[str, Any]:
        rows, failures, workers = run.rows(), run.failures(), run.workers()
        return {
            **self._summary(rows),
            "began": self._began,
            "rows": [_row(row) for row in rows],
            "workers": [asdict(worker) for worker in workers[:MAX_WORKERS]],
            "worker_count": len(workers),
            "failed": len(failures),
            "failures": [_failure(*failure) for failure in failures[:MAX_FAILURES]],
        }

    def _state(self, rows: Sequence[Row]) -> str:
        if self._ended is None:
            return "running"
        states = {row.state for row in rows}
        return next(
            (state for state in ("failed", "cancelled", "skipped") if state in states), "done"
        )


def _row(row: Row) -> dict[str, Any]:
    text = progress_text(row.progress) if row.progress and row.state == "running" else ""
    return {**asdict(row), "progress": text}


def _failure(task: str, item: int | None, error: BaseException) -> dict[str, Any]:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = f"{type(error).__name__} (its message cannot be shown)"
    where = task if item is None else f"{task}[{item}]"
    return {"where": where, "kind": type(error).__name__, "text": text[-MAX_TRACEBACK_CHARACTERS:]}


class Weaves:
    """The weaves on the page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._running: dict[int, Watched] = {}
        self._ended: deque[Watched] = deque(maxlen=MAX_ENDED)
        self._to_keep: deque[Watched] = deque()

    def add(self, run: LiveRun) -> Watched:
        """Show *run*, which begins now."""
        with self._lock:
            self._count += 1
            watched = self._running[self._count] = Watched(self._count, run, self)
            if len(self._running) > MAX_RUNNING:
                del self._running[next(iter(self._running))]
            return watched

    def ended(self, watched: Watched) -> None:
        """*watched* has ended."""
        with self._lock:
            if self._running.pop(watched.number, None) is not None:
                self._ended.append(watched)
                self._to_keep.append(watched)

    def tidy(self) -> None:
        """Let go of the runs that have ended. Not where they end: what they leave may be much."""
        while self._to_keep:
            watched = self._to_keep.popleft()
            if watched not in self._ended:
                continue
            try:
                watched.keep()
            except BaseException:
                with (
                    self._lock,
                    contextlib.suppress(ValueError),
                ):  # newer ones may have displaced it
                    self._ended.remove(watched)
                raise

    def all(self) -> list[Watched]:
        """Return all that are shown, the newest first."""
        with self._lock:
            shown = [*self._ended, *self._running.values()]
        return sorted(shown, key=lambda watched: watched.number, reverse=True)

    def get(self, number: int) -> Watched | None:
        """Return the one of that number."""
        return next((watched for watched in self.all() if watched.number == number), None)
