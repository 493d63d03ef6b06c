"""Sources of a mapped task's items, which never wait: they give an item, the end, or "not yet"."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from types import FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

from wove.engine.threads import start_thread

if TYPE_CHECKING:
    from wove.engine.threads import Job, RunMailbox, ThreadLimiter

__all__ = [
    "END",
    "WAIT",
    "Source",
    "generator_source",
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
"""How long a generator or an async iterable may take to close."""

RUNNING_SECONDS = 0.1
"""How long a map that has ended waits for a generator that is running, and is closed when it pauses."""

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
        positioned: Whether items are received as ``(position, item)``, not in the order of the positions.
        max_items: Maximum number of items, where it is known.
    """

    __slots__ = ("on_ready",)
    thread_safe = False
    runs_user_code = False
    positioned = False
    max_items: int | None = None

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


class _UserIterator:
    """An iterator of the user's. A generator that is not used up is closed."""

    __slots__ = ("_context", "_iterator", "_lock")

    def __init__(self, iterator: Iterator[Any], context: Context) -> None:
        self._iterator = iterator
        self._context = context.copy()
        self._lock = threading.Lock()

    def next(self) -> Any:
        """Return the next item; raises StopIteration after the last."""
        with self._lock:
            return self._context.run(next, self._iterator)

    async def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close a generator in a thread, because its code may block; wait for that, but not for long."""
        iterator = self._iterator
        if not isinstance(iterator, GeneratorType) or iterator.gi_frame is None:
            return
        if not iterator.gi_running and not iterator.gi_suspended:
            iterator.close()  # it has not begun, so that no code of the user's runs
            return

        # A generator that is running cannot be stopped: it is closed when it gives its next item.
        seconds = RUNNING_SECONDS if iterator.gi_running else CLOSE_SECONDS
        closed: asyncio.Future[None] = loop.create_future()
        start_thread(partial(self._close, iterator, loop, closed))
        await asyncio.wait({closed}, timeout=seconds)

    def _close(
        self,
        iterator: GeneratorType[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        closed: asyncio.Future[None],
    ) -> None:
        # The map has its outcome; an error in closing the generator does not change it.
        with self._lock, suppress(BaseException):
            self._context.run(iterator.close)
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(_complete, closed)


class _DirectSource(Source):
    """An iterator of the user's, advanced by the threads that run its items."""

    __slots__ = ("_iterator", "_loop")
    thread_safe = True
    runs_user_code = True

    def __init__(self, iterator: _UserIterator, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._iterator = iterator
        self._loop = loop

    def receive(self) -> Any:
        try:
            return self._iterator.next()
        except StopIteration:
            return END

    async def close(self) -> None:
        await self._iterator.close(self._loop)


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

    Args:
        iterator: The iterator.
        inbox: Posts calls from the thread to the loop.
        max_buffered: Maximum number of items that wait to be received.
        limiter: The limit of threads that the thread counts against while it runs, if any.
    """

    __slots__ = ("_closed", "_inbox", "_iterator", "_limiter", "_max_buffered", "_notifies")

    def __init__(
        self,
        iterator: _UserIterator,
        inbox: RunMailbox,
        max_buffered: int,
        limiter: ThreadLimiter | None = None,
    ) -> None:
        super().__init__()
        self._iterator = iterator
        self._inbox = inbox
        self._max_buffered = max_buffered
        self._limiter = limiter
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
        if self._limiter is None:
            start_thread(self._advance)
        else:
            self._limiter.submit(self._advance)

    def _advance(self) -> Job | None:
        buffer, advance, post = self._buffer, self._iterator.next, self._inbox.post

        try:
            while len(buffer) < self._max_buffered and not self._closed:
                buffer.append(advance())
                if self._notifies:
                    self._notifies = False
                    post(self._notify)
        except StopIteration:
            post(self.on_ended, None)
        except BaseException as error:  # belongs to the task that maps over it
            post(self.on_ended, error)
        else:
            post(self.on_paused)

        return None if self._limiter is None else self._limiter.next()

    def _notify(self) -> None:
        self.on_ready()

    async def close(self) -> None:
        self._closed = True
        await self._iterator.close(self._inbox.loop)


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

    __slots__ = ("_complete", "_inner", "_items", "_max_items", "_task", "positioned")

    def __init__(self, inner: Source, task: str, max_items: int) -> None:
        super().__init__()
        self._inner = inner
        self._task = task
        self._max_items = max_items
        self._items: deque[Any] = deque()
        self._complete = False
        self.positioned = inner.positioned
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


def _nothing() -> None:
    return None


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def generator_source(
    generator: Any,
    *,
    workers: float,
    loop: asyncio.AbstractEventLoop,
    inbox: RunMailbox,
    limiter: ThreadLimiter,
    context: Context,
) -> Source:
    """Return the source of the items of a generator task.

    Args:
        generator: The generator or async generator, which has not begun.
        workers: How many items can run at once.
        loop: The weave's loop.
        inbox: Posts calls from a thread to that loop.
        limiter: The limit of the weave's threads.
        context: The context variables of the task.
    """
    if is_async_iterable(generator):
        return _AsyncSource(generator, loop, context)
    iterator = _UserIterator(generator, context)
    return _ThreadSource(iterator, inbox, int(min(PULL_AHEAD, workers)), limiter)


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
        value: Any iterable or async iterable, or a source.
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

    if isinstance(value, Source):
        source = value
        if max_items is not None and value.max_items is not None and value.max_items <= max_items:
            return source
    elif is_async_iterable(value):
        source = _AsyncSource(value, loop, context)
    else:
        iterator = _UserIterator(_iterate(value, task, context), context)
        # Never on the loop: the iterator may block, and with it all that runs there.
        if by_threads and max_items is None:
            source = _DirectSource(iterator, loop)
        else:
            source = _ThreadSource(iterator, inbox, int(min(PULL_AHEAD, workers)))

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
