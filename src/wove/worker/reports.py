"""What a run reports while it runs, sent a few times a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wove.observe.reports import Report

__all__ = ["INTERVAL_SECONDS", "RunReports"]

INTERVAL_SECONDS: Final = 0.1
"""The shortest time between two ``progress`` events of one run: a display is redrawn as often."""


class RunReports:
    """Sends the progress of one run: the first report at once, then the latest one, at most ten times a second.

    Args:
        names: The fields that every event of the run has.
        emit: Sends an event. It must neither raise nor block.
        call_at: Has `flush` called at a moment, in monotonic seconds.
    """

    __slots__ = ("_call_at", "_due", "_emit", "_ended", "_lock", "_names", "_pid", "_report")

    def __init__(
        self,
        names: Mapping[str, Any],
        emit: Callable[[dict[str, Any]], None],
        call_at: Callable[[RunReports, float], None],
    ) -> None:
        self._names = names
        self._emit = emit
        self._call_at = call_at
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._due = 0.0
        self._ended = False
        self._pid = os.getpid()

    def report(self, report: Report) -> None:
        """Send *report*, now or a little later. Has no effect in a process that the task has forked."""
        if os.getpid() != self._pid:
            return

        now = time.monotonic()
        with self._lock:
            if self._ended:
                return
            waits = self._report is not None
            self._report = report
            if now >= self._due:
                self._send(now)
                return

        if not waits:
            self._call_at(self, self._due)

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            self._send(time.monotonic())

    def close(self) -> None:
        """Send what waits, and nothing after it: the run has ended."""
        with self._lock:
            self._send(time.monotonic())
            self._ended = True

    def _send(self, now: float) -> None:
        """Send the report that waits, with the lock held, so that the end of the run stays behind it."""
        report, self._report = self._report, None
        if report is None or self._ended:
            return
        self._due = now + INTERVAL_SECONDS
        fields = {"done": report.done, "total": report.total, "note": report.note}
        self._emit({"type": "progress", **self._names, **fields})
