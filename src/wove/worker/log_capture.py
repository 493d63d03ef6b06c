"""Captures what tasks log and print, for the weaves that want it (``remote_logs=True``)."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any, Final, Protocol, TextIO

from wove.concurrency import forks

__all__ = ["CAPTURE", "LineBudget", "LineSink", "LogCapture", "capture"]

MAX_LINES_SECOND: Final = 5_000
"""How many lines the runs of one process send in a second: more than anybody reads, and little work for the weave."""

MAX_CHARACTERS_SECOND: Final = 1_000_000

MAX_LINE_CHARACTERS: Final = 4_000
"""Longer lines are cut. A traceback in a log record counts as one line."""


class LineSink(Protocol):
    """Receives the lines of one run."""

    @property
    def is_here(self) -> bool:
        """Whether this process is the one in which the run began, not one that its task has forked."""
        ...

    def add_record(self, record: logging.LogRecord, /) -> None:
        """Take in a log record. Must neither raise nor block."""

    def add_output(self, stream: str, text: str, /) -> None:
        """Take in what was written to ``"stdout"`` or ``"stderr"``. Must neither raise nor block."""


CAPTURE: Final[ContextVar[LineSink | None]] = ContextVar("wove_capture", default=None)
"""Receives what the current code logs and prints. Threads that a task starts itself are not part of it."""


class LineBudget:
    """Bounds the lines of all runs of one process, so that a task which logs without end delays no result.

    The runs share it without a lock: where threads count at the same moment, a line or two more are sent.
    """

    __slots__ = ("_characters", "_lines", "_updated_at")

    def __init__(self) -> None:
        self._lines = float(MAX_LINES_SECOND)
        self._characters = float(MAX_CHARACTERS_SECOND)
        self._updated_at = time.monotonic()

    def has_room(self, now: float) -> bool:
        """Return whether one more line may be sent at *now*, in monotonic seconds."""
        passed = now - self._updated_at
        if passed > 0:
            self._updated_at = now
            self._lines = min(self._lines + passed * MAX_LINES_SECOND, MAX_LINES_SECOND)
            self._characters = min(
                self._characters + passed * MAX_CHARACTERS_SECOND, MAX_CHARACTERS_SECOND
            )
        return self._lines >= 1 and self._characters > 0

    def spend(self, characters: int) -> None:
        """Count a line of *characters* characters."""
        self._lines -= 1
        self._characters -= characters


class LogCapture:
    """The capture of one process: a handler of the root logger, and stand-ins for ``sys.stdout`` and ``sys.stderr``.

    It is in place while any runner uses it. What is not part of a captured run goes where it went before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._handler = _Handler()
        self._threshold: _Threshold | None = None
        self._filtered: list[logging.Handler] = []
        self._streams: dict[str, _Stream] = {}

    def acquire(self, level: int) -> None:
        """Capture from now on, records of *level* and above; `release` takes it back."""
        with self._lock:
            self._users += 1
            root = logging.getLogger()
            if self._users == 1:
                self._install(root)
            if level < root.level:
                root.setLevel(level)

    def lower(self, level: int) -> None:
        """Capture records of *level*, too."""
        root = logging.getLogger()
        if level < root.level:
            with self._lock:
                root.setLevel(min(level, root.level))

    def release(self) -> None:
        """Put everything back as it was, if nobody else captures."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._remove(logging.getLogger())

    def reset_lock(self) -> None:
        """Called in a forked child: the lock may be held by a thread that does not exist there."""
        self._lock = threading.Lock()

    def _install(self, root: logging.Logger) -> None:
        self._threshold = _Threshold(root.level)
        self._filtered = list(root.handlers)
        for handler in self._filtered:
            handler.addFilter(self._threshold)
        root.addHandler(self._handler)
        self._handler.level_before = root.level

        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is not None:
                stand_in = self._streams[name] = _Stream(name, stream)
                setattr(sys, name, stand_in)

    def _remove(self, root: logging.Logger) -> None:
        root.removeHandler(self._handler)
        root.setLevel(self._handler.level_before)
        for handler in self._filtered:
            if self._threshold is not None:
                handler.removeFilter(self._threshold)

        self._filtered, self._threshold = [], None
        for name, stand_in in self._streams.items():
            if getattr(sys, name) is stand_in:
                setattr(sys, name, stand_in.stream)
        self._streams = {}


class _Threshold(logging.Filter):
    """Keeps from handlers of the worker what reaches them only because the root logger's level was lowered."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or _has_own_level(record.name)


def _has_own_level(name: str) -> bool:
    logger = logging.getLogger(name)
    while logger.parent is not None:
        if logger.level:
            return True
        logger = logger.parent
    return False


class _Handler(logging.Handler):
    """Gives the records of captured runs to their sinks.

    Attributes:
        level_before: The root logger's level without the capture.
    """

    level_before = logging.WARNING

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of the base class: a sink has one of its own.
        sink = CAPTURE.get()
        if sink is not None and sink.is_here:
            sink.add_record(record)
        elif len(logging.getLogger().handlers) == 1:
            # Without this handler there would be none, and Python's own last one would print the record.
            last = logging.lastResort
            if last is not None and record.levelno >= max(last.level, self.level_before):
                last.handle(record)

        return True


class _Stream:
    """Stands for ``sys.stdout`` or ``sys.stderr``: what captured runs write goes to their sinks."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self.stream = stream

    def write(self, text: str) -> int:
        sink = CAPTURE.get()
        if sink is None or not sink.is_here:
            return self.stream.write(text)
        sink.add_output(self._name, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


capture: Final = LogCapture()
"""The capture of this process."""

forks.after_in_child(forks.Phase.LOCKS, capture.reset_lock)
