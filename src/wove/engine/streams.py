"""Streams: the items that one task gives to the maps over it, while it still runs.

::

    generator task ── GeneratorStream ─┬─ StreamReader ── map
    mapped task ───── Stream ──────────┴─ StreamReader ── map

Each item goes with its position, in the order in which the items become ready, so that the results of a
map have the positions of its source. A generator is advanced when a map asks for an item. A mapped task
runs at its own pace, and each map over it receives its results as they come.

Where the task has ``keep=False``, a stream holds no item for longer than its readers need it, and is
*bounded*: the task pauses while a reader has as many items as it can use, its ``workers`` and one more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wove.engine.sources import END, WAIT, Source

if TYPE_CHECKING:
    from wove.engine.completions import CompletionLog
    from wove.engine.threads import RunMailbox

__all__ = ["GeneratorStream", "Stream", "StreamReader", "UnusedSourceError"]


class UnusedSourceError(Exception):
    """Every map over a generator has ended before the generator. It is closed, and has no result."""


class Stream:
    """The results of a mapped task's items, for the maps over it.

    Attributes:
        ended: Whether no further item comes.
        error: The exception that the task ended with, if any.
        bounded: Whether the task pauses while a reader has no room.
        paused: Whether it may have paused, so that `on_room` is to be called.
        on_room: Called on the loop when a reader may have room again.
    """

    __slots__ = ("_notifying", "_readers", "bounded", "ended", "error", "on_room", "paused")

    def __init__(self) -> None:
        self.bounded = False
        self.paused = False
        self.on_room: Callable[[], object] = _nothing
        self.ended = False
        self.error: BaseException | None = None
        # Replaced and never changed, because threads iterate over it.
        self._readers: tuple[StreamReader | CompletionLog, ...] = ()
        self._notifying = False

    @property
    def workers(self) -> float:
        """The maximum number of items that one of the readers runs at once."""
        return max((reader.workers for reader in self._readers), default=1)

    def reader(self, workers: float, max_items: int | None = None) -> StreamReader:
        """Return a source of all items; called before the first one.

        Args:
            workers: How many items the map runs at once.
            max_items: Maximum number of items that the stream can have, where that is known.
        """
        reader = StreamReader(self, workers, max_items)
        self._readers = (*self._readers, reader)
        return reader

    def add_log(self, log: CompletionLog) -> None:
        """Have *log* follow the stream; called before the first item."""
        self._readers = (*self._readers, log)

    def has_room(self, running: int, workers: float) -> bool:
        """Return whether the task may begin another item; called in any thread.

        Args:
            running: How many of its items run, for which the readers must have room too.
            workers: How many items it may run at once. A reader has room for as many, so that it does not
                reduce that number while it keeps up.
        """
        if self._has_room(running, workers):
            return True
        # First the flag, then another look: a reader that receives an item looks at the flag after that.
        self.paused = True
        return self._has_room(running, workers)

    def _has_room(self, running: int, workers: float) -> bool:
        for reader in self._readers:  # all() would make a generator for each item
            room = workers if workers > reader.room else reader.room  # noqa: FURB136
            if running + len(reader.items) >= room:
                return False
        return True

    def push(self, position: int, value: Any) -> None:
        """Give an item to all readers."""
        for reader in self._readers:
            reader.items.append((position, value))
            reader.notify()

    def post(self, mailbox: RunMailbox, position: int, value: Any) -> None:
        """`push`, in any thread."""
        for reader in self._readers:
            reader.items.append((position, value))
        if not self._notifying:
            self._notifying = True
            mailbox.post(self._notify)

    def _notify(self) -> None:
        # First the flag, then the readers: an item that comes between the two only has this called again.
        self._notifying = False
        for reader in self._readers:
            reader.notify()

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """End the stream: its task has ended, with *value* or with *error*."""
        self.ended, self.error = True, error
        self._notify()
        self._readers = ()
        self.on_room = _nothing

    def request(self) -> None:
        """Called when a reader has no item left."""

    def remove(self, reader: StreamReader, *, launched: bool) -> None:
        """Give no further item to *reader*.

        Args:
            reader: The source of a map that has ended, or that cannot begin any more.
            launched: Whether it had begun.
        """
        self._readers = tuple(other for other in self._readers if other is not reader)
        self.on_room()


class GeneratorStream(Stream):
    """The items of a generator task, which is advanced as its readers ask for items.

    Attributes:
        pulls_all: Whether the generator is advanced without being asked, because a task needs all items.
        kept: Whether all items are the result of the task.
    """

    __slots__ = ("_count", "_items", "_outcome", "_pulling", "_source", "kept", "pulls_all")

    def __init__(self) -> None:
        super().__init__()
        self.pulls_all = False
        self.kept = True
        self._count = 0
        self._items: list[Any] = []
        self._source: Source | None = None
        self._outcome: asyncio.Future[BaseException | None] | None = None
        self._pulling = False

    async def run(self, source: Source) -> list[Any]:
        """Give the items of *source* to the readers until it ends, and return them, where they are kept.

        Raises:
            UnusedSourceError: All maps over it ended before, and no other task needs the items.
            BaseException: The exception of the generator.
        """
        self._source = source
        source.on_ready = self.on_room = self._pull
        outcome = self._outcome = asyncio.get_running_loop().create_future()

        try:
            self._pull()
            error = await outcome
        finally:
            self._source = None
            await source.close()
            source.on_ready = self.on_room = _nothing

        if error is not None:
            raise error
        return self._items

    def request(self) -> None:
        self._pull()

    def _pull(self) -> None:
        if self._pulling:  # a reader that got an item asks for the next one
            return
        self._pulling = True

        try:
            while self._is_requested():
                if not self._receive():
                    return
        finally:
            self._pulling = False

    def _is_requested(self) -> bool:
        if self._outcome is None or self._outcome.done():
            return False
        if self.bounded and not self.has_room(0, 0):
            return False
        return self.pulls_all or any(reader.waiting for reader in self._readers)

    def _receive(self) -> bool:
        """Receive one item, and return whether there may be another one now."""
        assert self._source is not None and self._outcome is not None
        try:
            item = self._source.receive()
        except BaseException as error:  # the generator's: its task fails with it
            self._outcome.set_result(error)
            return False

        if item is WAIT:
            return False
        if item is END:
            self._outcome.set_result(None)
            return False

        position, self._count = self._count, self._count + 1
        if self.kept:
            self._items.append(item)
        self.push(position, item)
        return True

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        if error is None and self._count < len(value):
            # It did not run as a stream (with retries, or cached).
            for position, item in enumerate(value):
                self.push(position, item)
        super().end(value, error)

    def remove(self, reader: StreamReader, *, launched: bool) -> None:
        super().remove(reader, launched=launched)
        if self._readers or self.pulls_all or self.ended:
            return

        if not launched:  # its result is still a result of the weave
            self.pulls_all = True
            self._pull()
        elif self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(UnusedSourceError())


class StreamReader(Source):
    """The items of a stream for one map, as ``(position, item)``.

    Attributes:
        items: Those that wait; appended to in any thread, which then has `notify` called on the loop.
        workers: How many items the map runs at once.
        max_items: Maximum number of items that the stream can have, where that is known.
        waiting: Whether the map has asked for an item that is not there yet.
        room: Maximum number of items that wait here while the stream is bounded; infinite where the map
            cannot begin before the stream has ended.
    """

    __slots__ = (
        "items",
        "_launched",
        "_receiving",
        "_stream",
        "max_items",
        "room",
        "waiting",
        "workers",
    )
    positioned = True

    def __init__(self, stream: Stream, workers: float, max_items: int | None) -> None:
        super().__init__()
        self.workers = workers
        self.room = workers + 1
        self.max_items = max_items
        self.waiting = False
        self._stream = stream
        self.items: deque[tuple[int, Any]] = deque()
        self._launched = False
        # While the map receives it is not notified: it may hold its lock, and looks again anyway.
        self._receiving = False

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the stream, if any."""
        return self._stream.error

    def notify(self) -> None:
        """Have the map receive the new items."""
        self.waiting = False
        if not self._receiving:
            self.on_ready()

    def receive(self) -> Any:
        self._launched = True
        if not self.items and not self._stream.ended:
            self.waiting = self._receiving = True
            self._stream.request()
            self._receiving = False
            self.waiting = not self.items and not self._stream.ended

        if self.items:
            item = self.items.popleft()
            if self._stream.paused:
                self._stream.paused = False
                self._receiving = True
                self._stream.on_room()
                self._receiving = False
            return item
        if not self._stream.ended:
            return WAIT
        if self._stream.error is not None:
            raise self._stream.error
        return END

    def available(self) -> int:
        return len(self.items) or int(not self.waiting)

    def discard(self) -> None:
        """Receive nothing any more."""
        self.items.clear()
        self._stream.remove(self, launched=self._launched)

    async def close(self) -> None:
        self.discard()


def _nothing() -> None:
    return None
