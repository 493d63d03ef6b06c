"""Sends the progress, the log records and the output of a run, a few times a second."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from wove.worker.log_capture import MAX_LINE_CHARACTERS, LineBudget

if TYPE_CHECKING:
    from wove.observe.reports import Report

__all__ = ["INTERVAL_SECONDS", "RunReports"]

INTERVAL_SECONDS: Final = 0.1
"""The shortest time between two ``progress`` or ``log`` events of one run: a display is redrawn as often."""

DROPPED_SECONDS: Final = 1.0
"""The shortest time between two events that count dropped lines: each is a warning at home."""

_format: Final = logging.Formatter().format  # with the traceback, where the record has one

Line = list[Any]
"""When it was written, in seconds since the epoch; its level, 0 for output; its logger or stream; its text."""


class RunReports:
    """Sends the progress of one run, and its lines where they are wanted, at most ten times a second.

    The first report or line goes out at once, the last ones before the end of the run. Of the reports only the latest
    one counts; lines beyond the budget are dropped and counted.

    Args:
        names: The fields that every event of the run has.
        host: The name of this host.
        emit: Sends an event. It must neither raise nor block.
        call_at: Has `flush` called at a moment, in monotonic seconds.
        budget: Bounds the lines of all runs.
    """

    __slots__ = (
        "_budget",
        "_call_at",
        "_dropped",
        "_dropped_due",
        "_due",
        "_emit",
        "_ended",
        "_host",
        "_is_scheduled",
        "_lines",
        "_lock",
        "_names",
        "_partial",
        "_pid",
        "_report",
    )

    def __init__(
        self,
        names: Mapping[str, Any],
        host: str,
        emit: Callable[[dict[str, Any]], None],
        call_at: Callable[[RunReports, float], None],
        budget: LineBudget,
    ) -> None:
        self._names = names
        self._host = host
        self._emit = emit
        self._call_at = call_at
        self._budget = budget
        self._lock = (
            threading.RLock()
        )  # a record may be logged while a value of another is being formatted
        self._report: Report | None = None
        self._lines: list[Line] = []
        self._partial: dict[str, str] = {}
        self._dropped = 0
        self._due = self._dropped_due = 0.0
        self._is_scheduled = self._ended = False
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this process is the one in which the run began, not one that its task has forked."""
        return os.getpid() == self._pid

    def report(self, report: Report) -> None:
        """Send *report*, now or a little later. Has no effect in a process that the task has forked."""
        if self.is_here:
            with self._lock:
                self._report = report
                self._something_waits()

    def add_record(self, record: logging.LogRecord) -> None:
        """Send a log record, now or a little later."""
        with self._lock:
            if not self._budget.has_room(time.monotonic()):
                self._dropped += 1
            else:
                try:
                    text = _format(record)
                except (
                    Exception
                ) as error:  # as of any handler: a wrong call of a logger ends no task
                    text = f"{record.msg!r} (it cannot be formatted: {error})"
                self._add_line(record.levelno, record.name, text)
            self._something_waits()

    def add_output(self, stream: str, text: str) -> None:
        """Send the lines of *text*, as soon as they are complete."""
        with self._lock:
            *lines, rest = (self._partial.get(stream, "") + text).split("\n")
            if len(rest) > MAX_LINE_CHARACTERS:
                lines.append(rest)
                rest = ""
            self._partial[stream] = rest
            for line in lines:
                if self._budget.has_room(time.monotonic()):
                    self._add_line(0, stream, line)
                else:
                    self._dropped += 1
            if lines:
                self._something_waits()

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            self._is_scheduled = False
            self._send()

    def close(self) -> None:
        """Send what waits, and nothing after it: the run has ended."""
        with self._lock:
            for stream, text in self._partial.items():
                if text:
                    self._add_line(0, stream, text)
            self._send(is_end=True)
            self._ended = True

    def _add_line(self, level: int, name: str, text: str) -> None:
        text = text[:MAX_LINE_CHARACTERS]
        self._budget.spend(len(text))
        self._lines.append([round(time.time(), 3), level, name, text])

    def _something_waits(self) -> None:
        if self._ended or self._is_scheduled:
            return
        if time.monotonic() >= self._due:
            self._send()
        else:
            self._is_scheduled = True
            self._call_at(self, self._due)

    def _send(self, *, is_end: bool = False) -> None:
        """Send what waits, with the lock held, so that the end of the run stays behind it."""
        if self._ended:
            return
        self._due = time.monotonic() + INTERVAL_SECONDS
        report, self._report = self._report, None
        lines, self._lines = self._lines, []
        dropped = 0
        if is_end or self._due >= self._dropped_due:
            dropped, self._dropped = self._dropped, 0
            self._dropped_due = self._due + DROPPED_SECONDS

        if report is not None:
            fields = {"done": report.done, "total": report.total, "note": report.note}
            self._emit({"type": "progress", **self._names, **fields})
        if lines or dropped:
            self._emit(
                {
                    "type": "log",
                    **self._names,
                    "host": self._host,
                    "lines": lines,
                    "dropped": dropped,
                }
            )
