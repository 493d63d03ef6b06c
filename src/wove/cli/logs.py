"""Writes log lines to stderr in a thread, so that a slow stderr delays no caller."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Generator
from typing import Final

__all__ = ["logging_to_stderr"]

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

MAX_LINES: Final = 10_000
"""Maximum number of lines that wait for a slow stderr; more are dropped, because a full disk or a stopped terminal
must not stop the service."""


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class _OneLine(logging.Formatter):
    """Escape control characters in messages: text that came from elsewhere must not look like a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


class _Later(logging.Handler):
    """Formats and writes in its own thread, so that neither takes time of an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        # Not from a pool: it writes until `finish`, which joins it.
        self._thread = threading.Thread(target=self._write, name="wove-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < MAX_LINES:
            self._records.put(record)

    def finish(self) -> None:
        """Write what is left, for at most a second."""
        self._records.put(None)
        self._thread.join(1.0)

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            with contextlib.suppress(
                Exception
            ):  # stderr is closed, and there is no other place for the line
                sys.stderr.write(self.format(record) + "\n")
                if self._records.empty():
                    sys.stderr.flush()


@contextlib.contextmanager
def logging_to_stderr(level: str) -> Generator[None]:
    """Wove's log from *level* on, and the warnings of everything else, meanwhile."""
    handler = _Later()
    handler.setFormatter(_OneLine(FORMAT))
    root, ours = logging.getLogger(), logging.getLogger("wove")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(level.upper())

    try:
        yield
    finally:
        ours.setLevel(before)
        root.removeHandler(handler)
        handler.finish()
