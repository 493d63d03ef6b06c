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
"""There is no item yet; the source calls `Source.wake` when that changes."""

PULL_AHEAD = 64
"""The most items of an iterator that wait to be taken."""

CLOSE_SECONDS = 5.0
"""How long an async iterable may take to end once nobody wants its items any more."""

UNKNOWN: Final = 1 << 30

_EMPTY: Final[dict[object, object]] = {}
_CONTAINERS: Final[frozenset[type]] = frozenset(
    {
        *(list, tuple, range, dict, set, frozenset, str, bytes, bytearray, deque),
        *(type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items())),
    }
)


def is_iterable(value: object) -> bool:
    """Whether a task can map over *value*."""
    kind = type(value)
    if kind is FunctionType:
        return False
    return hasattr(kind, "__iter__") or hasattr(kind, "__aiter__") or hasattr(kind, "__getitem__")


def is_container(value: object) -> bool:
    """Return whether *value* is a built-in container, whose items exist already."""
    return type(value) in _CONTAINERS


def is_task(value: object) -> bool:
    """Whether ``w.do(value)`` declares *value*, and does not map over it.

    An object that can be called and iterated (a model of layers, a mock) is a task; a class that can be
    iterated, such as an ``enum``, is a source.
    """
    return callable(value) and not (isinstance(value, type) and is_iterable(value))


def is_async_iterable(value: object) -> bool:
    """Whether *value* is iterated with ``async for``."""
    return hasattr(type(value), "__aiter__")


class Source:
    """The items of one map.

    Attributes:
        wake: Called on the loop when there may be something to take after a `WAIT`.
        anywhere: Whether `take` may be called from any thread (one at a time).
        blocks: Whether it runs code of the user's.
    """

    __slots__ = ("wake",)
    anywhere = False
    blocks = False

    def __init__(self) -> None:
        self.wake: Callable[[], object] = _nothing

    def take(self) -> Any:
        """The next item, `END` or `WAIT`; raises what the user's iterable raises."""
        raise NotImplementedError

    def available(self) -> int:
        """How many items `take` can give now, as far as is known."""
        return UNKNOWN

    async def close(self) -> None:
        """Nothing will be taken any more."""


class _Container(Source):
    """A built-in container: its items exist already, and no code of the user's runs to get them."""

    __slots__ = ("_left", "_next")
    anywhere = True

    def __init__(self, iterator: Iterator[Any], left: int) -> None:
        super().__init__()
        self._next = iterator.__next__
        self._left = left

    def take(self) -> Any:
        try:
            item = self._next()
        except StopIteration:
            self._left = 0
            return END
        self._left -= 1
        return item

    def available(self) -> int:
        # Never 0 before the end was seen: somebody has to see it.
        return self._left or 1


class _Iterator(Source):
    """An iterator of the user's, for threads that can afford to wait for it."""

    __slots__ = ("_context", "_iterator")
    anywhere = True
    blocks = True

    def __init__(self, iterator: Iterator[Any], context: Context) -> None:
        super().__init__()
        self._iterator = iterator
        self._context = context.copy()

    def take(self) -> Any:
        try:
            return self._context.run(next, self._iterator)
        except StopIteration:
            return END


class _Pumped(Source):
    """Items that something else brings, and that wait here to be taken."""

    __slots__ = ("_buffer", "_busy", "_ended", "_error")

    def __init__(self) -> None:
        super().__init__()
        self._buffer: deque[Any] = deque()
        self._busy = False
        self._ended = False
        self._error: BaseException | None = None

    def take(self) -> Any:
        if self._buffer:
            return self._buffer.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

        if self._ended:
            return END
        self.want()
        return WAIT

    def available(self) -> int:
        return len(self._buffer) or int(self._ended or not self._busy)

    def want(self) -> None:
        """More items may come now."""
        if not self._busy and not self._ended:
            self._busy = True
            self.pull()

    def pull(self) -> None:
        """See to it that items come, and then that `paused` or `end` is called."""
        raise NotImplementedError

    def paused(self) -> None:
        """No more items come until they are wanted."""
        self._busy = False
        self.wake()

    def end(self, error: BaseException | None) -> None:
        """No more items come at all."""
        self._busy, self._ended, self._error = False, True, error
        self.wake()


class _InThread(_Pumped):
    """An iterator of the user's, advanced in a thread so that it may block.

    Each item can be taken as soon as it is there. The thread goes ahead while there is room, so that
    a fast iterator costs few hand-overs.
    """

    __slots__ = ("_closed", "_context", "_hungry", "_inbox", "_iterator", "_most")

    def __init__(
        self, iterator: Iterator[Any], inbox: RunMailbox, context: Context, most: int
    ) -> None:
        super().__init__()
        self._iterator = iterator
        self._inbox = inbox
        self._context = context.copy()
        self._most = most
        self._hungry = False
        self._closed = False

    def take(self) -> Any:
        if self._comes() and 2 * len(self._buffer) <= self._most:
            self.want()
        return super().take()

    def available(self) -> int:
        self._comes()
        return super().available()

    def _comes(self) -> bool:
        """Whether there is an item. If not, the thread will say when there is one."""
        if self._buffer:
            return True
        self._hungry = True
        return bool(self._buffer)  # one that came before the thread could see that it is to tell

    def pull(self) -> None:
        start_thread(self._advance)

    def _advance(self) -> Job | None:
        buffer, run, post = self._buffer, self._context.run, self._inbox.post

        try:
            while len(buffer) < self._most and not self._closed:
                buffer.append(run(next, self._iterator))
                if self._hungry:
                    self._hungry = False
                    post(self._woken)
        except StopIteration:
            post(self.end, None)
        except BaseException as error:  # belongs to the task that maps over it
            post(self.end, error)
        else:
            post(self.paused)

        return None

    def _woken(self) -> None:
        self.wake()

    async def close(self) -> None:
        self._closed = True


class _Asynchronous(_Pumped):
    """An async iterable, advanced by a task of its own, one item at a time.

    One task for all items: an async generator may hold a timeout or a task group across them.
    """

    __slots__ = ("_context", "_iterator", "_loop", "_task", "_wanted")

    def __init__(
        self, iterable: AsyncIterable[Any], loop: asyncio.AbstractEventLoop, context: Context
    ) -> None:
        super().__init__()
        self._iterator: AsyncIterator[Any] = aiter(iterable)
        self._loop = loop
        self._context = context.copy()
        self._task: asyncio.Task[None] | None = None
        self._wanted: asyncio.Future[None] | None = None

    def pull(self) -> None:
        if self._task is None:
            self._task = asyncio.Task(self._bring(), loop=self._loop, context=self._context)
        elif self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def _bring(self) -> None:
        error: BaseException | None = None

        try:
            while True:
                self._buffer.append(await anext(self._iterator))
                self._wanted = self._loop.create_future()
                self.paused()
                await self._wanted
        except StopAsyncIteration:
            pass
        except BaseException as caught:  # belongs to the task that maps over it, or it is over
            error = caught
            await self._close_iterator()

        self.end(error)

    async def _close_iterator(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            # The map has its outcome; what the iterator says in closing changes nothing.
            with suppress(BaseException):
                await close()

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)


class _Counted(Source):
    """Gives no item before it knows that there are not more than *most*."""

    __slots__ = ("_all", "_inner", "_items", "_most", "_task")

    def __init__(self, inner: Source, task: str, most: int) -> None:
        super().__init__()
        self._inner = inner
        self._task = task
        self._most = most
        self._items: deque[Any] = deque()
        self._all = False
        inner.wake = self._woken

    def take(self) -> Any:
        while not self._all:
            item = self._inner.take()
            if item is WAIT:
                return WAIT
            if item is END:
                self._all = True
            elif len(self._items) == self._most:
                raise _too_many(self._task, f"at least {self._most + 1}", self._most)
            else:
                self._items.append(item)

        return self._items.popleft() if self._items else END

    def available(self) -> int:
        return len(self._items) or 1 if self._all else self._inner.available()

    async def close(self) -> None:
        await self._inner.close()
        self._inner.wake = _nothing

    def _woken(self) -> None:
        self.wake()


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
        """More items have come."""
        self.items.extend(items)
        self._wake()

    def close(self, items: list[Any] | None, error: BaseException | None = None) -> None:
        """The task has ended, with all its *items* or with *error*."""
        if items is not None and items is not self.items:
            self.items[:] = items
        self._closed = True
        self._error = error
        self._wake()
        self._readers.clear()

    def reader(self) -> Source:
        """A source that starts with the first item."""
        reader = _StreamReader(self)
        if not self._closed:
            self._readers.append(reader)
        return reader

    def look(self, position: int) -> Any:
        """The item at *position*, `END` or `WAIT`; raises the error that the task ended with."""
        if position < len(self.items):
            return self.items[position]
        if not self._closed:
            return WAIT
        if self._error is not None:
            raise self._error
        return END

    def ready(self, position: int) -> int:
        """How many items there are from *position* on; 1 for the end."""
        return len(self.items) - position or int(self._closed)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


class _StreamReader(Source):
    __slots__ = ("_position", "_stream")

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._position = 0

    def take(self) -> Any:
        item = self._stream.look(self._position)
        if item is not END and item is not WAIT:
            self._position += 1
        return item

    def available(self) -> int:
        return self._stream.ready(self._position)


def _nothing() -> None:
    return None


def open_source(
    value: Any,
    *,
    task: str,
    most: int | None,
    workers: float,
    by_threads: bool,
    loop: asyncio.AbstractEventLoop,
    inbox: RunMailbox,
    context: Context,
) -> Source:
    """The source of the items of *value*.

    Args:
        value: Any iterable or async iterable.
        task: The name of the task that maps over it, for messages.
        most: The most items it may have (`max_pending`), or ``None``.
        workers: How many items can be under way at once.
        by_threads: Whether threads take the items, as far as the source lets them.
        loop: The weave's loop.
        inbox: The way from a thread to that loop.
        context: What the iterable's own code finds in its context.

    Raises:
        TypeError: *value* is not iterable.
        ValueError: It has more than *most* items.
    """
    if is_container(value):
        if most is not None and len(value) > most:
            raise _too_many(task, len(value), most)
        return _Container(iter(value), len(value))

    source: Source

    if isinstance(value, Stream):
        source = value.reader()
    elif is_async_iterable(value):
        source = _Asynchronous(value, loop, context)
    else:
        iterator = _iterate(value, task, context)
        # Never on the loop: it may block, and everything else that the loop has to do with it.
        if by_threads and most is None:
            source = _Iterator(iterator, context)
        else:
            source = _InThread(iterator, inbox, context, int(min(PULL_AHEAD, workers)))

    return source if most is None else _Counted(source, task, most)


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


def _too_many(task: str, count: int | str, most: int) -> ValueError:
    return ValueError(
        f"task {task!r} maps over {count} items, more than max_pending={most}; "
        "map over fewer at once, or raise max_pending"
    )
