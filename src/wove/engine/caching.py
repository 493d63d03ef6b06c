"""Connects a run with the results that `wove.cache` keeps.

A task with ``cache=True`` has one `CachedTask`. It runs a task that is not mapped only where there is no kept result.
Between a map and its source it puts `_CachedSource`: kept results go straight into the map, and only the other items
are received. So these alone use workers, pacing and threads, wherever they run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from wove.cache.keys import TaskKeys
from wove.cache.results import Found, TaskResults
from wove.cache.stores import Store, open_store
from wove.concurrency.thread_pool import run_in_thread, submit
from wove.engine.sources import END, WAIT, Source
from wove.observe.events import emit
from wove.protocol.pickling import is_plain

if TYPE_CHECKING:
    from wove.engine.threads import RunMailbox
    from wove.settings.resolution import TaskSettings

__all__ = ["CachedTask", "cached_task"]

BATCH: Final = 256
"""Maximum number of items that are looked up together, where they exist already."""

MAX_AHEAD: Final = 64
"""Maximum number of items of a running source that are looked up before a worker is free for them."""


def cached_task(
    store: Any,
    task: str,
    fn: Callable[..., Any],
    settings: TaskSettings,
    arguments: Mapping[str, Any],
    item: str | None,
) -> CachedTask:
    """Return the cache of a task with ``cache=True``.

    Args:
        store: The weave's ``store``.
        task: The task's name.
        fn: Its callable.
        settings: Its settings.
        arguments: Its arguments by name, without a map's item.
        item: The parameter that receives the item; ``None`` for a task that is not mapped.

    Raises:
        ValueError: The weave has no store.
    """
    if store is None:
        raise ValueError(
            f"task {task!r} has cache=True, and its weave has no store: "
            'say where results are kept, weave(store="runs/")'
        )

    keys = TaskKeys(fn, task, arguments, item, settings.cache_key, settings.cache_version)
    opened = open_store(store)
    return CachedTask(task, opened, TaskResults(task, keys, opened))


class CachedTask:
    """The results of one task, or of the items of one map."""

    def __init__(self, task: str, store: Store, results: TaskResults) -> None:
        self._task = task
        self._store = store
        self._results = results
        self._source: _CachedSource | None = None

    async def run(self, compute: Callable[[], Awaitable[Any]]) -> Any:
        """Return the kept result, otherwise that of *compute*, which is then kept."""
        async with self:
            found = await run_in_thread(self._results.find)
            if found.kept:
                return found.value
            value = await compute()
            await self._keep(found.key, value)
            return value

    async def __aenter__(self) -> Self:
        self._store.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        await run_in_thread(self._close)
        emit("cache", task=self._task, taken=self._results.taken, missing=self._results.missing)

    def _close(self) -> None:
        self._results.flush()
        self._store.release()

    # --- of a map

    def between(
        self, source: Source, inbox: RunMailbox, limit: float, *, by_threads: bool
    ) -> Source:
        """Return the items of *source* that have no result yet.

        Args:
            source: All items.
            inbox: Posts calls from a thread to the loop.
            limit: How many items can run at once.
            by_threads: Whether threads receive the items; the thread that receives one then looks it up, too.
        """
        self._source = _CachedSource(
            source, self._results, self._store, inbox, limit, by_threads=by_threads
        )
        return self._source

    def on_found(
        self, on_found: Callable[[int, Any], object], has_room: Callable[[], bool]
    ) -> None:
        """Have *on_found* called with the position and the kept result of each item that does not run.

        Args:
            on_found: What is called.
            has_room: Returns whether the maps over this one have room for a result. Where they have not, the
                source returns `WAIT`, and is asked again when they have.
        """
        assert self._source is not None
        self._source.on_found = on_found
        self._source.has_room = has_room

    def keep_item(self, position: int, value: Any) -> None:
        """Keep the result of the item at *position*."""
        assert self._source is not None
        self._results.keep(self._source.keys.pop(position), value)

    async def keep_item_later(self, position: int, value: Any) -> None:
        """Keep the result of the item at *position*."""
        assert self._source is not None
        await self._keep(self._source.keys.pop(position), value)

    async def _keep(self, key: bytes, value: Any) -> None:
        if not self._results.is_full and is_plain(value):
            self._results.keep(key, value)
        else:
            # Before another task gets the value, and may change it.
            await run_in_thread(self._results.keep, key, value)


class _CachedSource(Source):
    """The items without a kept result. They are looked up in batches, never on the loop.

    Attributes:
        keys: The keys of the items that were received, by position, until their results are kept.
        on_found: Called with the position of an item that does not run, and its kept result.
        has_room: Returns whether `on_found` may be called.
    """

    __slots__ = (
        "_busy", "_ended", "_error", "_inbox", "_inner", "_limit", "_position", "_ready", "_results",
        "_store", "has_room", "keys", "on_found", "positioned", "thread_safe",
    )  # fmt: skip

    def __init__(
        self,
        inner: Source,
        results: TaskResults,
        store: Store,
        inbox: RunMailbox,
        limit: float,
        *,
        by_threads: bool,
    ) -> None:
        super().__init__()
        self._inner = inner
        self._results = results
        self._store = store
        self._inbox = inbox
        self._limit = (
            BATCH if inner.thread_safe and not inner.runs_user_code else int(min(limit, MAX_AHEAD))
        )
        self._ready: deque[tuple[Any, Found]] = deque()
        self._busy = False
        self._ended = False
        self._error: BaseException | None = None
        self._position = 0
        self.thread_safe = by_threads
        self.positioned = inner.positioned
        self.keys: dict[int, bytes] = {}
        self.on_found: Callable[[int, Any], object] = _nothing
        self.has_room: Callable[[], bool] = _always
        inner.on_ready = self._notify

    def receive(self) -> Any:
        while True:
            while self._ready:
                if not self.has_room():
                    return WAIT
                item, found = self._ready.popleft()
                if self.positioned:
                    position = item[0]
                else:
                    position, self._position = self._position, self._position + 1
                if not found.kept:
                    self.keys[position] = found.key
                    return item
                self.on_found(position, found.value)
            if self._busy:
                return WAIT
            if self._error is not None:
                raise self._error
            if self._ended:
                return END
            if not self._receive_batch():
                return WAIT

    def _receive_batch(self) -> bool:
        """Receive items and look them up; return whether that is done already, or nothing is left to receive."""
        items: list[Any] = []

        try:
            while len(items) < self._limit:
                item = self._inner.receive()
                if item is WAIT:
                    break
                if item is END:
                    self._ended = True
                    break
                items.append(item)
        except BaseException as error:  # the user's; raised after the items before it
            self._error = error

        if not items:
            return self._ended or self._error is not None
        if self.thread_safe:
            self._ready.extend(zip(items, self._find(items), strict=True))
            return True

        self._busy = True
        self._store.acquire()
        submit(self._look_up, items)
        return False

    def _find(self, items: Sequence[Any]) -> Sequence[Found]:
        return self._results.find_items([item for _, item in items] if self.positioned else items)

    def _look_up(self, items: Sequence[Any]) -> None:
        """Look *items* up in a thread, and post the results to the loop."""
        found: Sequence[Found] = []
        error: BaseException | None = None
        try:
            found = self._find(items)
        except BaseException as caught:
            error = caught
        self._store.release()
        self._inbox.post(self._looked_up, items[: len(found)], found, error)

    def _looked_up(
        self, items: Sequence[Any], found: Sequence[Found], error: BaseException | None
    ) -> None:
        self._busy = False
        self._ready.extend(zip(items, found, strict=True))
        if error is not None:
            self._error = error
        self.on_ready()

    def _notify(self) -> None:
        if not self._busy:
            self.on_ready()

    def available(self) -> int:
        if self._ready or self._busy:
            return len(self._ready)
        return 1 if self._ended or self._error is not None else self._inner.available()

    async def close(self) -> None:
        self.on_found, self.has_room = _nothing, _always
        self._ready.clear()
        await self._inner.close()
        self._inner.on_ready = _nothing


def _nothing(*_: object) -> None:
    return None


def _always() -> bool:
    return True
