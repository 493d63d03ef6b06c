"""Sources of a mapped task's items, which never wait: they give an item, the end, or "not yet"."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import Context
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from wove.engine.threads import start_thread

if TYPE_CHECKING:
    from wove.engine.threads import Job, RunMailbox

__all__ = [
    "END",
    "WAIT",
    "Source",
    "Stream",
    "is_container",
    "is_iterable",
    "is_task",
    "open_source",
]

END: Final = object()
"""There is no further item."""

WAIT: Final = object()
"""There is no item yet; the source calls `Source.on_ready` when that changes."""

PULL_AHEAD = 64
"""Maximum number of items of an iterator that wait to be received."""

CLOSE_SECONDS = 5.0
"""How long an async iterable may take to close."""

UNKNOWN: Final = 1 << 30
"""Stands for an unknown number of items: as many as a map may want."""

_EMPTY: Final[dict[object, object]] = {}
_CONTAINERS: Final[frozenset[type]] = frozenset(
    {
        *(list, tuple, range, dict, set, frozenset, str, bytes, bytearray, deque),
        *(type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items())),
    }
)


def is_iterable(value: object) -> bool:
    """Return whether a task can map over *value*."""
    kind = type(value)
    if kind is FunctionType:
        return False
    return hasattr(kind, "__iter__") or hasattr(kind, "__aiter__") or hasattr(kind, "__getitem__")


def is_container(value: object) -> bool:
    """Return whether *value* is a built-in container, whose items exist already."""
    return type(value) in _CONTAINERS


def is_task(value: object) -> bool:
    """Return whether ``w.do(value)`` declares *value*, and does not map over it.

    An object that can be called and iterated (a model of layers, a mock) is a task; a class that can be
    iterated, such as an ``enum``, is a source.
    """
    return callable(value) and not (isinstance(value, type) and is_iterable(value))


def is_async_iterable(value: object) -> bool:
    """Return whether *value* is iterated with ``async for``."""
    return hasattr(type(value), "__aiter__")


class Source:
    """The items of one map.

    Attributes:
        on_ready: Called on the loop when there may be something to receive after a `WAIT`.
        thread_safe: Whether `receive` may be called in any thread (in one at a time).
        runs_user_code: Whether `receive` runs code of the user's, which may block.
    """

    __slots__ = ("on_ready",)
    thread_safe = False
    runs_user_code = False

    def __init__(self) -> None:
        self.on_ready: Callable[[], object] = _nothing

    def receive(self) -> Any:
        """Return the next item, `END` or `WAIT`; raises what the user's iterable raises."""
        raise NotImplementedError

    def available(self) -> int:
        """Return how many items `receive` can return now, as far as is known."""
        return UNKNOWN

    async def close(self) -> None:
        """Release what the items come from: none is received any more."""


class _ContainerSource(Source):
    """A built-in container: its items exist already, and no code of the user's runs to get them."""

    __slots__ = ("_left", "_next")
    thread_safe = True

    def __init__(self, iterator: Iterator[Any], left: int) -> None:
        super().__init__()
        self._next = iterator.__next__
        self._left = left

    def receive(self) -> Any:
        try:
            item = self._next()
        except StopIteration:
            self._left = 0
            return END
        self._left -= 1
        return item

    def available(self) -> int:
        # Never 0 before the end was received: a worker must come for it.
        return self._left or 1


class _DirectSource(Source):
    """An iterator of the user's, advanced by the threads that run its items."""

    __slots__ = ("_context", "_iterator")
    thread_safe = True
    runs_user_code = True

    def __init__(self, iterator: Iterator[Any], context: Context) -> None:
        super().__init__()
        self._iterator = iterator
        self._context = context.copy()

    def receive(self) -> Any:
        try:
            return self._context.run(next, self._iterator)
        except StopIteration:
            return END


class _BufferedSource(Source):
    """The base of sources whose items are produced elsewhere, and wait here to be received."""

    __slots__ = ("_buffer", "_busy", "_ended", "_error")

    def __init__(self) -> None:
        super().__init__()
        self._buffer: deque[Any] = deque()
        self._busy = False
        self._ended = False
        self._error: BaseException | None = None

    def receive(self) -> Any:
        if self._buffer:
            return self._buffer.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

        if self._ended:
            return END
        self.request()
        return WAIT

    def available(self) -> int:
        return len(self._buffer) or int(self._ended or not self._busy)

    def request(self) -> None:
        """Have more items produced, unless that is being done."""
        if not self._busy and not self._ended:
            self._busy = True
            self.produce()

    def produce(self) -> None:
        """Begin to produce items; `on_paused` or `on_ended` must be called after the last one."""
        raise NotImplementedError

    def on_paused(self) -> None:
        """Called when no more items come until the next `request`."""
        self._busy = False
        self.on_ready()

    def on_ended(self, error: BaseException | None) -> None:
        """Called when no more items come at all."""
        self._busy, self._ended, self._error = False, True, error
        self.on_ready()


class _ThreadSource(_BufferedSource):
    """An iterator of the user's, advanced in a thread so that it may block.

    Each item can be received as soon as it is there. The thread goes ahead while there is room, so
    that a fast iterator costs few hand-overs.
    """

    __slots__ = ("_closed", "_context", "_inbox", "_iterator", "_max_buffered", "_notifies")

    def __init__(
        self, iterator: Iterator[Any], inbox: RunMailbox, context: Context, max_buffered: int
    ) -> None:
        super().__init__()
        self._iterator = iterator
        self._inbox = inbox
        self._context = context.copy()
        self._max_buffered = max_buffered
        self._notifies = False
        self._closed = False

    def receive(self) -> Any:
        if self._has_item() and 2 * len(self._buffer) <= self._max_buffered:
            self.request()
        return super().receive()

    def available(self) -> int:
        self._has_item()
        return super().available()

    def _has_item(self) -> bool:
        """Return whether there is an item; if not, have the thread notify the loop of the next one."""
        if self._buffer:
            return True
        self._notifies = True
        return bool(self._buffer)  # one may have come before the thread could see the flag

    def produce(self) -> None:
        start_thread(self._advance)

    def _advance(self) -> Job | None:
        buffer, run, post = self._buffer, self._context.run, self._inbox.post

        try:
            while len(buffer) < self._max_buffered and not self._closed:
                buffer.append(run(next, self._iterator))
                if self._notifies:
                    self._notifies = False
                    post(self._notify)
        except StopIteration:
            post(self.on_ended, None)
        except BaseException as error:  # belongs to the task that maps over it
            post(self.on_ended, error)
        else:
            post(self.on_paused)

        return None

    def _notify(self) -> None:
        self.on_ready()

    async def close(self) -> None:
        self._closed = True


class _AsyncSource(_BufferedSource):
    """An async iterable, advanced by a task of its own, one item at a time.

    One task for all items: an async generator may hold a timeout or a task group across them.
    """

    __slots__ = ("_context", "_iterator", "_loop", "_requested", "_task")

    def __init__(
        self, iterable: AsyncIterable[Any], loop: asyncio.AbstractEventLoop, context: Context
    ) -> None:
        super().__init__()
        self._iterator: AsyncIterator[Any] = aiter(iterable)
        self._loop = loop
        self._context = context.copy()
        self._task: asyncio.Task[None] | None = None
        self._requested: asyncio.Future[None] | None = None

    def produce(self) -> None:
        if self._task is None:
            self._task = asyncio.Task(self._advance(), loop=self._loop, context=self._context)
        elif self._requested is not None and not self._requested.done():
            self._requested.set_result(None)

    async def _advance(self) -> None:
        error: BaseException | None = None

        try:
            while True:
                self._buffer.append(await anext(self._iterator))
                self._requested = self._loop.create_future()
                self.on_paused()
                await self._requested
        except StopAsyncIteration:
            pass
        except BaseException as caught:  # belongs to the task that maps over it
            error = caught
            await self._close_iterator()

        self.on_ended(error)

    async def _close_iterator(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            # The map has its outcome; an error in closing the iterator does not change it.
            with suppress(BaseException):
                await close()

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)


class _LimitedSource(Source):
    """Returns no item before it is known that there are at most *max_items* of them."""

    __slots__ = ("_complete", "_inner", "_items", "_max_items", "_task")

    def __init__(self, inner: Source, task: str, max_items: int) -> None:
        super().__init__()
        self._inner = inner
        self._task = task
        self._max_items = max_items
        self._items: deque[Any] = deque()
        self._complete = False
        inner.on_ready = self._notify

    def receive(self) -> Any:
        while not self._complete:
            item = self._inner.receive()
            if item is WAIT:
                return WAIT
            if item is END:
                self._complete = True
            elif len(self._items) == self._max_items:
                raise _too_many(self._task, f"at least {self._max_items + 1}", self._max_items)
            else:
                self._items.append(item)

        return self._items.popleft() if self._items else END

    def available(self) -> int:
        return len(self._items) or 1 if self._complete else self._inner.available()

    async def close(self) -> None:
        await self._inner.close()
        self._inner.on_ready = _nothing

    def _notify(self) -> None:
        self.on_ready()


class Stream:
    """The items of a task that is a generator function, while it runs and after.

    Attributes:
        items: All items so far; in the end the task's result.
    """

    __slots__ = ("_closed", "_error", "_readers", "items")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._closed = False
        self._error: BaseException | None = None
        self._readers: list[Source] = []

    def extend(self, items: list[Any]) -> None:
        """Add *items* to the stream."""
        self.items.extend(items)
        self._notify()

    def close(self, items: list[Any] | None, error: BaseException | None = None) -> None:
        """End the stream: the task has ended, with all its *items* or with *error*."""
        if items is not None and items is not self.items:
            self.items[:] = items
        self._closed = True
        self._error = error
        self._notify()
        self._readers.clear()

    def reader(self) -> Source:
        """Return a source that starts with the first item."""
        reader = _StreamReader(self)
        if not self._closed:
            self._readers.append(reader)
        return reader

    def get(self, position: int) -> Any:
        """Return the item at *position*, `END` or `WAIT`; raises the error that the task ended with."""
        if position < len(self.items):
            return self.items[position]
        if not self._closed:
            return WAIT
        if self._error is not None:
            raise self._error
        return END

    def available(self, position: int) -> int:
        """Return how many items there are from *position* on; 1 for the end."""
        return len(self.items) - position or int(self._closed)

    def _notify(self) -> None:
        for reader in self._readers:
            reader.on_ready()


class _StreamReader(Source):
    __slots__ = ("_position", "_stream")

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._position = 0

    def receive(self) -> Any:
        item = self._stream.get(self._position)
        if item is not END and item is not WAIT:
            self._position += 1
        return item

    def available(self) -> int:
        return self._stream.available(self._position)


def _nothing() -> None:
    return None


def open_source(
    value: Any,
    *,
    task: str,
    max_items: int | None,
    workers: float,
    by_threads: bool,
    loop: asyncio.AbstractEventLoop,
    inbox: RunMailbox,
    context: Context,
) -> Source:
    """Return the source of the items of *value*.

    Args:
        value: Any iterable or async iterable.
        task: The name of the task that maps over it, for messages.
        max_items: Maximum number of items (`max_pending`), or ``None``.
        workers: How many items can run at once.
        by_threads: Whether threads receive the items, where the source allows it.
        loop: The weave's loop.
        inbox: Posts calls from a thread to that loop.
        context: The context variables of the iterable's own code.

    Raises:
        TypeError: *value* is not iterable.
        ValueError: It has more than *max_items* items.
    """
    if is_container(value):
        if max_items is not None and len(value) > max_items:
            raise _too_many(task, len(value), max_items)
        return _ContainerSource(iter(value), len(value))

    source: Source

    if isinstance(value, Stream):
        source = value.reader()
    elif is_async_iterable(value):
        source = _AsyncSource(value, loop, context)
    else:
        iterator = _iterate(value, task, context)
        # Never on the loop: the iterator may block, and with it all that runs there.
        if by_threads and max_items is None:
            source = _DirectSource(iterator, context)
        else:
            source = _ThreadSource(iterator, inbox, context, int(min(PULL_AHEAD, workers)))

    return source if max_items is None else _LimitedSource(source, task, max_items)


def _iterate(value: Any, task: str, context: Context) -> Iterator[Any]:
    try:
        iterator: Iterator[Any] = context.copy().run(iter, value)
    except TypeError as error:
        if is_iterable(value):
            raise
        raise TypeError(
            f"task {task!r} cannot map over {value!r:.80}: {type(value).__name__} is not iterable"
        ) from error

    return iterator


def _too_many(task: str, count: int | str, max_items: int) -> ValueError:
    return ValueError(
        f"task {task!r} maps over {count} items, more than max_pending={max_items}; "
        "map over fewer at once, or raise max_pending"
    )
