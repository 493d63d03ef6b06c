"""Writes the log records and the output of remote tasks in this process: to its loggers and its streams."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from wove.concurrency import forks, thread_pool

if TYPE_CHECKING:
    from wove.delivery.run import RemoteRun

__all__ = ["LineQueue", "lines_home"]

MAX_WAITING_LINES: Final = 50_000
"""How many lines may wait for a slow handler or a slow terminal; those that come then are dropped and counted."""

FLUSH_SECONDS: Final = 1.0
"""How long the end of a weave waits until its lines are written."""

_log = logging.getLogger("wove")


class _Lines(NamedTuple):
    """Lines of one run.

    Attributes:
        origin: Attributes of the records: what ran where.
        prefix: The same for a person.
        lines: As they came.
        dropped: How many more there were.
    """

    origin: Mapping[str, Any]
    prefix: str
    lines: Sequence[Any]
    dropped: int


class LineQueue:
    """Writes lines in a thread of its own, so that a slow handler delays no weave."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Lines] = deque()
        self._count = 0
        self._is_writing = False

    def put(self, run: RemoteRun, event: Mapping[str, Any]) -> None:
        """Write the lines of a ``log`` *event* of *run* soon. Never blocks."""
        host = run.host or str(event.get("host") or "?")
        given, dropped = event.get("lines"), event.get("dropped")
        lines: list[Any] = cast("Any", given) if isinstance(given, list) else []
        count = dropped if isinstance(dropped, int) and dropped > 0 else 0
        origin = {
            "wove_task": run.request.call.task,
            "wove_item": run.request.item,
            "wove_host": host,
            "wove_environment": run.request.settings.environment.name,
            "wove_run_id": run.run_id,
        }
        item = "" if run.request.item is None else f" item {run.request.item}"
        prefix = f"[{run.request.call.task}{item} on {host}]"

        with self._lock:
            if self._count + len(lines) > MAX_WAITING_LINES:
                lines, count = [], count + len(lines)
            self._count += len(lines)
            self._waiting.append(_Lines(origin, prefix, lines, count))
            if self._is_writing:
                return
            self._is_writing = True

        thread_pool.relay.submit(self._write)

    async def flush(self) -> None:
        """Wait until what has come is written, for a moment at most."""
        import asyncio

        if self._is_writing:  # the thread has one job after the other
            written = asyncio.ensure_future(thread_pool.relay.call(int))
            await asyncio.wait({written}, timeout=FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_writing = False
                    return
                lines = self._waiting.popleft()
                self._count -= len(lines.lines)
            try:
                _write(lines)
            except Exception as error:  # of a handler or a stream of the user's
                _log.debug("lines of %s could not be written: %r", lines.prefix, error)

    def reset_after_fork(self) -> None:
        """Called in a forked child: the lines that wait are its parent's."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._count = 0
        self._is_writing = False


def _write(lines: _Lines) -> None:
    output: dict[str, list[str]] = {}

    for line in lines.lines:
        created, level, name, text = line
        if level:
            _handle(float(created), int(level), str(name), f"{lines.prefix} {text}", lines.origin)
        else:
            output.setdefault(str(name), []).append(f"{lines.prefix} {text}\n")

    for name, texts in output.items():
        stream = sys.stderr if name == "stderr" else sys.stdout
        if stream is not None:
            stream.write("".join(texts))
            stream.flush()

    if lines.dropped:
        _log.warning("%s %d more lines were dropped", lines.prefix, lines.dropped)


def _handle(created: float, level: int, name: str, text: str, origin: Mapping[str, Any]) -> None:
    logger = logging.getLogger(name)
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(name, level, "(remote)", 0, "%s", (text,), None, extra=origin)
    record.created, record.msecs = created, (created % 1) * 1000
    logger.handle(record)


lines_home: Final = LineQueue()
"""The lines of this process's remote runs."""

forks.after_in_child(forks.Phase.THREADS, lines_home.reset_after_fork)
