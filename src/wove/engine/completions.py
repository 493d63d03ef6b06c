"""Follows a map of a background weave from other threads and loops: its results as they come."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from wove.engine.sources import END, WAIT

if TYPE_CHECKING:
    from wove.engine.streams import Stream
    from wove.engine.tasks import Task
    from wove.result import WoveResult

__all__ = ["CompletionLog", "ResultStream"]


class CompletionLog:
    """The order in which the items of one map were completed. It reads the map's stream, and never paces it.

    Attributes:
        name: The name of the task.
        positions: The positions of the items, in order of completion.
        workers: As of every reader of a stream: how many items it uses at once.
        room: As of every reader of a stream: there is always room.
        waiting: As of every reader of a stream: it asks for no item.
        result: The result of the weave, when that has ended.
    """

    workers: Final = 0.0
    room: Final = float("inf")
    waiting: Final = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions = array("Q")
        self.result: WoveResult | None = None
        self._stream: Stream | None = None
        self._task: Task | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[], object], ...] = ()

    def attach(self, task: Task, stream: Stream) -> None:
        """Follow *task*, which gives its results to *stream*; called before it runs."""
        self._task, self._stream = task, stream

    @property
    def items(self) -> CompletionLog:
        """The queue of a reader: the log itself."""
        return self

    def append(self, item: tuple[int, Any]) -> None:
        """Add an item; called in any thread."""
        self.positions.append(item[0])

    def __len__(self) -> int:
        """Return how many items wait: none, because the map keeps its results."""
        return 0

    def notify(self) -> None:
        """Have the listeners look for new items."""
        for listener in self._listeners:
            listener()

    def close(self, result: WoveResult) -> None:
        """End the log: the weave has ended with *result*."""
        self.result, self._closed = result, True
        self.notify()

    @property
    def ended(self) -> bool:
        """Whether no further item is completed."""
        return self._closed or (self._stream is not None and self._stream.ended)

    def value(self, position: int) -> Any:
        """Return the result of the item at *position*, which was completed."""
        assert self._task is not None and self._task.items is not None
        return self._task.items.results[position]

    def check(self) -> None:
        """Raise the exception of the map, which has ended, if it failed."""
        if self._stream is not None and self._stream.ended:
            if self._stream.error is not None:
                raise self._stream.error
            return

        assert self.result is not None
        value = self.result[self.name]  # raises, or returns the exception, as the error mode says
        if isinstance(value, BaseException):
            raise value

    def listen(self, listener: Callable[[], object]) -> None:
        """Have *listener* called, in any thread, when there may be something new."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unlisten(self, listener: Callable[[], object]) -> None:
        """Undo `listen`."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other is not listener)


class ResultStream:
    """The results of a map as they come: ``(position, value)``, by ``for`` or ``async for``.

    Each iteration begins with the first result. It ends when the map does, and raises the map's exception.
    """

    def __init__(self, log: CompletionLog, *, ordered: bool) -> None:
        self._log = log
        self._ordered = ordered

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        cursor, changed = _Cursor(self._log, ordered=self._ordered), threading.Event()
        listener = changed.set
        self._log.listen(listener)

        try:
            while True:
                changed.clear()
                item = cursor.next()
                if item is END:
                    break
                if item is WAIT:
                    changed.wait()
                else:
                    yield item
        finally:
            self._log.unlisten(listener)

        self._log.check()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        cursor = _Cursor(self._log, ordered=self._ordered)

        def listener() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(changed.set)

        self._log.listen(listener)

        try:
            while True:
                changed.clear()
                item = cursor.next()
                if item is END:
                    break
                if item is WAIT:
                    await changed.wait()
                else:
                    yield item
        finally:
            self._log.unlisten(listener)

        self._log.check()


class _Cursor:
    """One iteration over a log."""

    def __init__(self, log: CompletionLog, *, ordered: bool) -> None:
        self._log = log
        self._ordered = ordered
        self._read = 0
        self._next = 0
        self._completed: set[int] = set()  # and not given yet, where they are given in order

    def next(self) -> Any:
        """Return the next ``(position, value)``, `WAIT` or `END`."""
        log = self._log
        ended = log.ended  # before the positions: none comes after it
        position = self._next_ordered(ended) if self._ordered else self._next_completed()
        if position is None:
            return END if ended else WAIT
        return position, log.value(position)

    def _next_completed(self) -> int | None:
        positions = self._log.positions
        if self._read == len(positions):
            return None
        self._read += 1
        return positions[self._read - 1]

    def _next_ordered(self, ended: bool) -> int | None:
        positions = self._log.positions
        while self._read < len(positions):
            self._completed.add(positions[self._read])
            self._read += 1

        if self._next not in self._completed:
            if not (ended and self._completed):
                return None
            self._next = min(self._completed)  # those before it have failed
        position, self._next = self._next, self._next + 1
        self._completed.discard(position)
        return position
