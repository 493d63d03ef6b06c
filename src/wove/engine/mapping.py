"""One task, many items: lazy, bounded, paced, with the results in the order of the items.

Plain sync calls in this process run in threads that take item after item by themselves
(`_ThreadedItems`); everything else runs in lanes (`_LanedItems`).
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from wove.engine.attempts import Bound, Caller
from wove.engine.coroutine_pool import SLICE_SECONDS, CoroutinePool
from wove.engine.sources import END, WAIT, Source, is_container, open_source
from wove.engine.threads import discard, is_awaitable, thread_number
from wove.engine.tracebacks import raisable
from wove.graph.signature import Kind

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.engine.threads import Job

__all__ = ["Items", "ItemsSoFar", "map_items"]


class ItemsSoFar:
    """The progress of one map's items.

    Attributes:
        results: By position; ``None`` where an item has not succeeded.
        started: When each item was first launched, on the clock of `time.perf_counter`.
        ended: When each item ended; 0 while it runs.
        threads: The number of the thread that runs each item; empty where items run on the loop.
        errors: What failed, as ``(position, exception)``, the first one first; the position is
            ``None`` for an error of the source itself.
        exhausted: Whether there is no further item.
    """

    results: list[Any]
    started: array[float]
    ended: array[float]
    threads: array[int]
    errors: list[tuple[int | None, BaseException]]
    exhausted: bool

    def so_far(self) -> ItemsSoFar:
        """The same, without what makes them run."""
        copied = ItemsSoFar()
        copied.results, copied.started, copied.ended = self.results, self.started, self.ended
        copied.errors, copied.exhausted = self.errors, self.exhausted
        copied.threads = self.threads
        return copied


class Items(ItemsSoFar):
    """The items of one map."""

    def __init__(self, run: WeaveRun, caller: Caller, source: Source) -> None:
        self._run = run
        self._source = source
        self.caller = caller
        self.results = []
        self.started = array("d")
        self.ended = array("d")
        self.threads = array("i")
        self.errors = []
        self.exhausted = False
        self.finished: asyncio.Future[None] = run.loop.create_future()

    def begin(self) -> None:
        """Start on the items there are."""
        raise NotImplementedError

    def stop(self) -> None:
        """Start nothing more, and end what runs."""
        raise NotImplementedError

    async def close(self) -> None:
        """It is over, one way or the other."""
        await self._source.close()
        # Only the garbage collector frees a reference cycle, and results can be many.
        self._source.wake = _nothing

    def launch(self) -> int:
        """Make room for the next item; returns its position."""
        position = len(self.results)
        self.results.append(None)
        self.started.append(perf_counter())
        self.ended.append(0.0)
        return position

    def found(self, value: Any) -> None:
        """Record *value* as the result of the next item, which does not run: it was kept."""
        position = self.launch()
        self.results[position] = value
        self.ended[position] = self.started[position]

    def finish(self) -> None:
        """Everything has ended."""
        if not self.finished.done():
            self.finished.set_result(None)


class _LanedItems(CoroutinePool, Items):
    """Items that run on the loop, each inside a lane."""

    def __init__(
        self,
        run: WeaveRun,
        caller: Caller,
        source: Source,
        invoke: Callable[[Any], Bound],
        limit: float,
    ) -> None:
        Items.__init__(self, run, caller, source)
        CoroutinePool.__init__(self, run.loop, caller.context, caller.name, limit, self._quiet)
        self._invoke: Callable[[Any], Any] = invoke
        self._pacing = False
        source.wake = self.feed

    def begin(self) -> None:
        self.feed()

    def available(self) -> int:
        # While a lane waits for the turn of its item, the next item is none of anybody's business.
        return 0 if self.exhausted or self._pacing else self._source.available()

    async def lane(self) -> None:
        lane = self.current()

        try:
            await self._take_and_run(lane)
        except asyncio.CancelledError:
            return  # between two items
        except BaseException as error:  # not an item's: those are caught where it runs
            self._failed(None, error)
        finally:
            self.left(lane)

    async def _take_and_run(self, lane: asyncio.Task[Any]) -> None:
        caller, pacer, cache = self.caller, self.caller.pacer, self.caller.cache
        call: Callable[[Any], Awaitable[Any]] | None = None
        if caller.plain and caller.kind is Kind.ASYNC:
            call = self._invoke
        since = perf_counter()

        while not self.stopped:
            if self._pacing:
                return
            item = self._take()
            if item is END or item is WAIT:
                return
            if pacer is not None:
                self._pacing = True
                try:
                    await pacer.turn()
                finally:
                    self._pacing = False
            position = self.launch()
            if self._look is None:
                self.more()
            try:
                if call is not None:
                    value = await call(item)
                else:
                    value = await caller(self._invoke(item), position)
                if cache is not None:
                    await cache.keep_item_later(position, value)
            except GeneratorExit as error:
                # Either the item's own, or this lane is being closed: in both cases it must end here.
                self._failed(position, error, item)
                return
            except BaseException as error:  # SystemExit and the like are outcomes too
                self._failed(position, error, item)
            else:
                self.results[position] = value
            now = self.ended[position] = perf_counter()
            if self.spoiled(lane):
                return
            if now - since > SLICE_SECONDS:
                await asyncio.sleep(0)
                since = perf_counter()

    def _take(self) -> Any:
        if self.exhausted or self.stopped:
            return END
        try:
            item = self._source.take()
        except BaseException as error:  # the source's own; it comes out as it is
            self.exhausted = True
            self._failed(None, error)
            return END

        if item is END:
            self.exhausted = True
        return item

    def _failed(self, position: int | None, error: BaseException, item: Any = None) -> None:
        if self.stopped and isinstance(error, asyncio.CancelledError):
            return
        self.errors.append((position, error))
        if position is not None:
            self.caller.annotate(error, position, item)
        if position is None or not self._run.keeps_going:
            self.stop()

    def _quiet(self) -> None:
        if self.exhausted or self.stopped:
            self.finish()

    def stop(self) -> None:
        CoroutinePool.stop(self)
        if not self.tasks:
            self.finish()

    async def close(self) -> None:
        await super().close()
        self.idle = _nothing


class _ThreadedItems(Items):
    """Items of a plain sync call: each thread takes the next one by itself.

    A thread that has taken an item sees to it that another one follows, if there is more to take;
    so items that block get threads up to the limit, and items that do not share one or two.
    """

    def __init__(
        self,
        run: WeaveRun,
        caller: Caller,
        source: Source,
        invoke: Callable[[Any], Any],
        limit: float,
    ) -> None:
        super().__init__(run, caller, source)
        self._invoke = invoke
        self._limit = limit
        self._lock = threading.Lock()
        self._buffer: deque[Any] = deque()
        self._asked = False
        self._coming = False
        self._pulling = False
        self._stopped = False
        self._abandoned = False
        self._threads = 0
        self._under_way = 0
        self._awaiting: set[asyncio.Task[None]] = set()
        source.wake = self._refill

    def begin(self) -> None:
        self._refill()

    def _refill(self) -> None:
        """On the loop: take what may be taken, and get a thread for it."""
        grow = False

        with self._lock:
            self._asked = False
            if not self._source.anywhere:
                while (
                    not self.exhausted
                    and not self._stopped
                    and self._under_way + len(self._buffer) < self._limit
                ):
                    item = self._take()
                    if item is WAIT:
                        break
                    if item is not END:
                        self._buffer.append(item)
            grow = self._grow()

        if grow:
            try:
                self._run.slots.submit(self._work)
            except RuntimeError as error:  # no thread to be had
                with self._lock:
                    self._coming = False
                    self._threads -= 1
                    self._broken(error)

        self._check()

    def _take(self) -> Any:
        """The next item of the source; called with the lock held."""
        try:
            item = self._source.take()
        except BaseException as error:
            return self._broken(error)

        if item is END:
            self.exhausted = True
        return item

    def _broken(self, error: BaseException) -> Any:
        """The source has failed; called with the lock held."""
        self.errors.append((None, error))  # it comes out as it is
        self._stopped = self.exhausted = True
        return END

    def _next(self) -> Any:
        """In a thread, with the lock held: an item, `END` for none now, or `WAIT` if it is to be pulled."""
        if self._stopped or self._under_way >= self._limit:
            return END
        if self._buffer:
            return self._buffer.popleft()
        if self.exhausted or self._pulling or not self._source.anywhere:
            return END
        if not self._source.blocks:
            return self._take()
        self._pulling = True
        return WAIT

    def _claim(self, thread: int) -> tuple[int, bool]:
        """The position of the item just taken, and whether another thread is wanted.

        In the same breath as taking it, with the lock held: or two threads would swap their items.
        """
        position = self.launch()
        self.threads.append(thread)
        self._under_way += 1
        return position, self._grow()

    def found(self, value: Any) -> None:
        self.threads.append(0)
        super().found(value)

    def _pull(self, thread: int) -> tuple[Any, int, bool]:
        """In a thread: as `_take` and `_claim`, without the lock while the iterator is at work."""
        error: BaseException | None = None
        item: Any = END
        try:
            item = self._source.take()
        except BaseException as caught:
            error = caught

        with self._lock:
            self._pulling = False
            if error is not None:
                self._broken(error)
            elif item is END:
                self.exhausted = True
            elif not self._stopped:
                return item, *self._claim(thread)
            return END, 0, False

    def _grow(self) -> bool:
        """Whether another thread is wanted; called with the lock held."""
        if self._coming or self._pulling or self._stopped:
            return False
        if self._threads >= self._limit or self._under_way >= self._limit:
            return False
        if not self._buffer and (self.exhausted or not self._source.anywhere):
            return False
        self._coming = True
        self._threads += 1
        return True

    def _work(self) -> Job | None:
        """In a thread: take and run items until there is none."""
        run, invoke, context = self._run, self._invoke, self.caller.context
        cache = self.caller.cache
        following: Job | None = None
        thread = thread_number()
        with self._lock:
            self._coming = False
            given_up = self._abandoned

        if given_up:
            return run.slots.next()
        while True:
            position, grow = 0, False
            with self._lock:
                item = self._next()
                if item is END:
                    if self._abandoned:
                        return None  # the slot was given back when this thread was given up
                    self._threads -= 1
                    following = run.slots.next()
                    break
                if item is not WAIT:
                    position, grow = self._claim(thread)
            if item is WAIT:
                item, position, grow = self._pull(thread)
                if item is END:
                    continue  # to leave as above
            if grow:
                run.slots.submit(self._work)
            error: BaseException | None = None
            value: Any = None
            try:
                value = context.copy().run(invoke, item)
            except (
                BaseException
            ) as caught:  # SystemExit and the like belong to the weave, not to this thread
                error = caught
            self.ended[position] = perf_counter()
            if error is not None:
                self._failed(position, error, item)
            elif is_awaitable(value):
                if self.finished.done():
                    discard(value)
                else:
                    run.inbox.post(self._await, position, item, value)
                continue
            else:
                if cache is not None:
                    cache.keep_item(position, value)
                self.results[position] = value
            self._ended_one()

        run.inbox.post(self._check)
        return following

    def _ended_one(self) -> None:
        with self._lock:
            self._under_way -= 1
            ask = not (self._asked or self.exhausted or self._source.anywhere or self._buffer)
            if ask:
                self._asked = True
        if ask:
            self._run.inbox.post(self._refill)

    def _failed(self, position: int, error: BaseException, item: Any) -> None:
        error = raisable(error, self.caller.name)
        self.caller.annotate(error, position, item)

        with self._lock:
            self.errors.append((position, error))
            if self._run.keeps_going:
                return
            self._stopped = (
                True  # at once: the other threads take no more, however long the loop takes
            )

        self._run.inbox.post(self.stop)

    def _await(self, position: int, item: Any, value: Awaitable[Any]) -> None:
        """On the loop: an item's call gave an awaitable."""
        if self._abandoned:
            discard(value)
            return

        task = asyncio.Task(
            self._awaited(position, item, value),
            loop=self._run.loop,
            context=self.caller.context.copy(),
        )
        self._awaiting.add(task)
        task.add_done_callback(partial(self._await_ended, value))

    async def _awaited(self, position: int, item: Any, value: Awaitable[Any]) -> None:
        try:
            result = await value
            if self.caller.cache is not None:
                await self.caller.cache.keep_item_later(position, result)
            self.results[position] = result
        except BaseException as error:
            if not (self._stopped and isinstance(error, asyncio.CancelledError)):
                self._failed(position, error, item)
        self.ended[position] = perf_counter()

    def _await_ended(self, value: Awaitable[Any], task: asyncio.Task[None]) -> None:
        discard(value)  # cancelled before its first step
        self._awaiting.discard(task)
        if not task.cancelled():
            task.exception()
        self._ended_one()
        self._refill()

    def _check(self) -> None:
        """On the loop: whether it is over."""
        if self._stopped:
            if self.errors and not self.finished.done():
                self.stop()
            over = not self._awaiting
        else:
            over = self.exhausted and not self._threads and not self._under_way and not self._buffer

        if over:
            self.finish()

    def stop(self) -> None:
        with self._lock:
            # Calls that run in threads are given up, and their slots are free for others. A thread that has
            # not begun yet gives its slot back by itself.
            given_up = 0 if self._abandoned else self._threads - self._coming
            self._stopped = self._abandoned = True
            self._buffer.clear()

        for _ in range(given_up):
            self._run.slots.release()
        for task in self._awaiting:
            task.cancel()
        if not self._awaiting:
            self.finish()


def _nothing() -> None:
    return None


async def map_items(
    run: WeaveRun,
    caller: Caller,
    value: Any,
    invoke: Callable[[Any], Any],
    *,
    begun: Callable[[Items], object] | None = None,
) -> list[Any]:
    """Run one call per item of *value*; returns their results in order.

    Args:
        run: The weave's run.
        caller: Makes the calls.
        value: Any iterable or async iterable.
        invoke: Makes of an item what *caller* calls; or calls, where nothing more is to be done.
        begun: Called with the items before the first one runs.

    Raises:
        BaseException: The first error of an item, or of the source.
    """
    settings = caller.settings
    threads = settings.is_local and caller.kind in (Kind.SYNC, Kind.GENERATOR)
    limit: float = settings.workers or (run.slots.limit if threads else float("inf"))
    by_threads = caller.plain and caller.kind is Kind.SYNC
    if caller.cache is not None and by_threads and not is_container(value):
        # Threads look up items where no code of the user's runs to get them; elsewhere the loop has it done.
        by_threads, invoke = False, partial(partial, invoke)
    source = open_source(
        value,
        task=caller.name,
        most=settings.max_pending,
        workers=limit,
        by_threads=by_threads,
        loop=run.loop,
        inbox=run.inbox,
        context=caller.context,
    )
    if caller.cache is not None:
        source = caller.cache.between(source, run.inbox, limit, by_threads=by_threads)
    items: Items
    if by_threads:
        items = _ThreadedItems(run, caller, source, invoke, min(limit, run.slots.limit))
    else:
        items = _LanedItems(run, caller, source, invoke, limit)

    if caller.cache is not None:
        caller.cache.on_found(items.found)
    if begun is not None:
        begun(items)
    try:
        items.begin()
        await asyncio.shield(items.finished)
    except asyncio.CancelledError:
        items.stop()
        await items.finished
        raise
    finally:
        await items.close()

    if items.errors:
        run.also_failed(caller.name, items.errors[1:])
        raise items.errors[0][1]

    return items.results
