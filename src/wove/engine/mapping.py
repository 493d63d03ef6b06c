"""One task, many items: lazy, bounded, paced, with the results in the order of the items.

Plain sync calls in this process run in threads that receive item after item by themselves
(`_ThreadItems`). Everything else runs in the asyncio tasks of a `CoroutinePool` (`_LoopItems`).
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from wove.concurrency.django_connections import close_connections
from wove.engine.attempts import Caller
from wove.engine.coroutine_pool import SLICE_SECONDS, CoroutinePool
from wove.engine.sources import END, WAIT, Source, is_container, open_source
from wove.engine.threads import discard, is_awaitable, thread_number
from wove.engine.tracebacks import raisable
from wove.graph.signature import Kind

if TYPE_CHECKING:
    from wove.engine.binding import ItemCall
    from wove.engine.scheduler import WeaveRun
    from wove.engine.streams import Stream
    from wove.engine.threads import Job

__all__ = ["MapItems", "MapProgress", "map_items"]


class MapState(Enum):
    """The states of a map, from its first item to its end.

    ========= ================================================== ===========================
    state     meaning                                            followed by
    ========= ================================================== ===========================
    OPEN      The source may have further items.                 EXHAUSTED when it has none;
                                                                 STOPPED when something fails
    EXHAUSTED Every item was received; the last ones still run.  STOPPED when one of them fails
    STOPPED   No item is launched any more; calls that run in    ABANDONED when the loop hears of it
              threads have not been given up yet.
    ABANDONED Calls that still run are cancelled or given up.    none
    ========= ================================================== ===========================

    Each state may be followed by ABANDONED, when the weave stops. The map has ended when its future
    `MapItems.finished` is done.
    """

    OPEN = "open"
    EXHAUSTED = "exhausted"
    STOPPED = "stopped"
    ABANDONED = "abandoned"


# By these names, because looking up a member of an enum costs more than comparing it.
OPEN: Final = MapState.OPEN
EXHAUSTED: Final = MapState.EXHAUSTED
STOPPED: Final = MapState.STOPPED
ABANDONED: Final = MapState.ABANDONED


class MapProgress:
    """The progress of one map's items.

    Attributes:
        state: Whether items are still received from the source.
        results: By position; ``None`` where an item has not succeeded.
        started: When each item was first launched, on the clock of `time.perf_counter`.
        ended: When each item ended; 0 while it runs.
        threads: The number of the thread that runs each item; empty where items run on the loop.
        errors: The failures as ``(position, exception)``, the first one first; the position is
            ``None`` for an error of the source itself.
        kept: Whether results and times are kept by position. Otherwise *results* and *threads* are empty,
            *started* has the first start alone and *ended* the last end, so that memory does not grow.
        launched: How many items were launched, where they are not kept.
        completed: How many items have ended, where they are not kept.
    """

    kept = True
    launched = 0
    completed = 0
    state: MapState
    results: list[Any]
    started: array[float]
    ended: array[float]
    threads: array[int]
    errors: list[tuple[int | None, BaseException]]

    @property
    def exhausted(self) -> bool:
        """Whether every item was received, so that their number is known."""
        return self.state is EXHAUSTED

    def snapshot(self) -> MapProgress:
        """Return the progress alone, without the references of a map that runs."""
        copied = MapProgress()
        copied.state, copied.results, copied.errors = self.state, self.results, self.errors
        copied.started, copied.ended, copied.threads = self.started, self.ended, self.threads
        copied.kept, copied.launched, copied.completed = self.kept, self.launched, self.completed
        return copied


class MapItems(MapProgress):
    """The items of one map, while they run.

    Attributes:
        caller: Makes the calls.
        finished: Done when the map has ended.
    """

    def __init__(
        self, run: WeaveRun, caller: Caller, source: Source, outlet: Stream | None, kept: bool
    ) -> None:
        self._run = run
        self._source = source
        self._outlet = outlet
        self._workers = caller.settings.workers or 0
        self._bounded = outlet is not None and outlet.bounded
        self.kept = kept
        self.caller = caller
        self.state = OPEN
        self.results = []
        self.started = array("d")
        self.ended = array("d")
        self.threads = array("i")
        self.errors = []
        self.finished: asyncio.Future[None] = run.loop.create_future()

    def begin(self) -> None:
        """Launch the items that can be received now."""
        raise NotImplementedError

    def stop(self) -> None:
        """Launch no further item, and cancel or give up those that run."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release the source, which may not be used up."""
        await self._source.close()
        # Only the garbage collector frees a reference cycle, and results can be many.
        self._source.on_ready = _nothing
        if self._outlet is not None:
            self._outlet.on_room = _nothing

    def launch(self, position: int | None = None) -> int:
        """Make room for the item at *position*, otherwise for the next one, and return its position."""
        if position is not None:
            missing = position + 1 - len(self.results)
            if missing > 0:
                self.results.extend([None] * missing)
                self.started.extend(array("d", [0.0]) * missing)
                self.ended.extend(array("d", [0.0]) * missing)
            self.started[position] = perf_counter()
            return position

        position = len(self.results)
        self.results.append(None)
        self.started.append(perf_counter())
        self.ended.append(0.0)
        return position

    def _launch_unkept(self, position: int | None = None) -> int:
        if not self.launched:
            self.started.append(perf_counter())
            self.ended.append(0.0)
        if position is None:
            position = self.launched
        self.launched += 1
        return position

    def _set_ended(self, position: int) -> float:
        """Set the end of the item at *position* to now, and return that."""
        now = perf_counter()
        if self.kept:
            self.ended[position] = now
        else:
            self.ended[0] = now
            self.completed += 1
        return now

    def has_room(self, running: int = 0) -> bool:
        """Return whether the maps over this one have room for another item beside the *running* ones."""
        outlet = self._outlet
        return outlet is None or not outlet.bounded or outlet.has_room(running, self._workers)

    def add_cached(self, position: int, value: Any) -> None:
        """Record *value* as the result of the item at *position*, which does not run: it was kept."""
        if self.kept:
            self.launch(position)
            self.results[position] = value
        else:
            self._launch_unkept(position)
        self._set_ended(position)
        if self._outlet is not None:
            self._outlet.push(position, value)

    def finish(self) -> None:
        """Mark the map as ended."""
        if not self.finished.done():
            self.finished.set_result(None)


class _LoopItems(CoroutinePool, MapItems):
    """Items that run on the loop, each inside an asyncio task of the pool."""

    def __init__(
        self,
        run: WeaveRun,
        caller: Caller,
        source: Source,
        call: ItemCall,
        limit: float,
        outlet: Stream | None,
        kept: bool,
    ) -> None:
        MapItems.__init__(self, run, caller, source, outlet, kept)
        CoroutinePool.__init__(self, run.loop, caller.context, caller.name, limit, self._on_idle)
        self._call = call
        self._pacing = False
        self._running = 0  # counted where the stream to other maps is bounded
        # A stream notifies of each item: one worker looks for all of them.
        source.on_ready = self.spawn_one if source.positioned else self.spawn
        if outlet is not None:
            outlet.on_room = self.spawn_one

    def begin(self) -> None:
        self.spawn()

    def available(self) -> int:
        # While the launch of one item is being paced, no other item may be received.
        if self.state is not OPEN or self._pacing:
            return 0
        if self._bounded and not self.has_room(self._running):
            return 0
        return self._source.available()

    async def work(self) -> None:
        worker = self.current()

        try:
            await self._run_items(worker)
        except asyncio.CancelledError:
            return  # between two items
        except BaseException as error:  # not an item's: those are caught where it runs
            self._failed(None, error)
        finally:
            self.worker_ended(worker)

    async def _run_items(self, worker: asyncio.Task[Any]) -> None:
        caller, pacer, bind = self.caller, self.caller.pacer, self._call.bind
        cache, outlet, positioned = caller.cache, self._outlet, self._source.positioned
        kept, bounded = self.kept, self._bounded
        launch = self.launch if kept else self._launch_unkept
        invoke: Callable[[Any], Awaitable[Any]] | None = None
        if caller.plain and caller.kind is Kind.ASYNC:
            invoke = self._call.invoke
        since = perf_counter()

        while not self.stopped:
            if self._pacing:
                return
            item = self._receive()
            if item is END or item is WAIT:
                return
            if pacer is not None:
                self._pacing = True
                try:
                    await pacer.turn()
                finally:
                    self._pacing = False

            if positioned:
                position, item = item
                launch(position)
            else:
                position = launch()
            if self._spawning is None:
                self.spawn_soon()
            try:
                if invoke is not None:
                    value = await invoke(item)
                else:
                    value = await caller(bind(item), position)
                if cache is not None:
                    await cache.keep_item_later(position, value)
            except GeneratorExit as error:
                # The item raised it, or this coroutine is being closed: in both cases it must end.
                self._failed(position, error, item)
                return
            except BaseException as error:  # SystemExit and the like are outcomes too
                self._failed(position, error, item)
            else:
                if kept:
                    self.results[position] = value
                if outlet is not None:
                    outlet.push(position, value)

            if bounded:
                self._running -= 1
            now = perf_counter()
            if kept:
                self.ended[position] = now
            else:
                self._set_ended(position)
            if self.is_spoiled(worker):
                return
            if now - since > SLICE_SECONDS:
                await asyncio.sleep(0)
                since = perf_counter()

    def _receive(self) -> Any:
        if self.state is not OPEN:
            return END
        if self._bounded and not self.has_room(self._running):
            return WAIT
        try:
            item = self._source.receive()
        except BaseException as error:  # the source's own; it comes out as it is
            self.state = EXHAUSTED
            if self._run.keeps_going:
                self.errors.append((None, error))
            else:
                self._failed(None, error)
            return END

        if item is END:
            self.state = EXHAUSTED
        elif item is not WAIT and self._bounded:
            self._running += 1
        return item

    def _failed(self, position: int | None, error: BaseException, item: Any = None) -> None:
        if self.stopped and isinstance(error, asyncio.CancelledError):
            return
        self.errors.append((position, error))
        if position is not None:
            self.caller.annotate(error, position, item)
        if position is None or not self._run.keeps_going:
            self.stop()

    def _on_idle(self) -> None:
        if self.state is not OPEN:
            self.finish()

    def stop(self) -> None:
        self.state = ABANDONED
        CoroutinePool.stop(self)
        if not self.tasks:
            self.finish()

    async def close(self) -> None:
        await super().close()
        self.on_idle = _nothing


class _Supply(Enum):
    """How the next items of a map whose items run in threads are being got.

    ======= ============================================ ======================================
    state   meaning                                      followed by
    ======= ============================================ ======================================
    IDLE    Nothing.                                     ASKED by a thread that found no item;
                                                         PULLING by a thread that pulls one itself
    ASKED   The loop was asked to receive more.          IDLE when it has
    PULLING A thread runs the user's iterator, without   IDLE when it has returned
            the lock. No other thread may.
    ======= ============================================ ======================================
    """

    IDLE = "idle"
    ASKED = "asked"
    PULLING = "pulling"


_IDLE: Final = _Supply.IDLE
_ASKED: Final = _Supply.ASKED
_PULLING: Final = _Supply.PULLING


class _ThreadItems(MapItems):
    """Items of a plain sync call: each thread receives the next one by itself.

    A thread that has received an item starts another thread if there may be more. So items that
    block get threads up to the limit, and items that do not block share one or two.
    """

    def __init__(
        self,
        run: WeaveRun,
        caller: Caller,
        source: Source,
        call: ItemCall,
        limit: float,
        outlet: Stream | None,
        kept: bool,
    ) -> None:
        super().__init__(run, caller, source, outlet, kept)
        self._call = call
        self._limit = limit
        self._lock = threading.Lock()
        self._positioned = source.positioned
        self._supply = _IDLE
        self._buffer: deque[Any] = deque()
        self._threads = 0  # those that were submitted and have not left yet
        self._starting = 0  # of these, the one that has not begun yet
        self._running = 0  # items
        self._awaiting: set[asyncio.Task[None]] = set()
        source.on_ready = self._refill
        if outlet is not None:
            outlet.on_room = self._refill

    def begin(self) -> None:
        self._refill()

    def _refill(self) -> None:
        """On the loop: receive as many items as may run, and get a thread for them."""
        grow = False

        with self._lock:
            if self._supply is _ASKED:
                self._supply = _IDLE
            if not self._source.thread_safe:
                while self.state is OPEN and self._may_receive(self._running + len(self._buffer)):
                    item = self._receive()
                    if item is WAIT:
                        break
                    if item is not END:
                        self._buffer.append(item)
            grow = self._grow()

        if grow:
            try:
                self._run.slots.submit(self._work)
            except RuntimeError as error:  # the system has no more threads
                with self._lock:
                    self._starting = 0
                    self._threads -= 1
                    self._source_failed(error)

        self._check_finished()

    def _receive(self) -> Any:
        """Return the next item of the source; called with the lock held."""
        try:
            item = self._source.receive()
        except BaseException as error:
            return self._source_failed(error)

        if item is END:
            self._exhaust()
        return item

    def _may_receive(self, running: int) -> bool:
        return running < self._limit and (not self._bounded or self.has_room(running))

    def _exhaust(self) -> None:
        if self.state is OPEN:
            self.state = EXHAUSTED

    def _source_failed(self, error: BaseException) -> Any:
        """Record an error of the source; called with the lock held."""
        self.errors.append((None, error))  # it comes out as it is
        if self.state is not ABANDONED:
            self.state = EXHAUSTED if self._run.keeps_going else STOPPED
        return END

    def _next(self) -> Any:
        """Return an item, `END` where none can be had now, or `WAIT` where this thread is to pull one.

        Called in a thread, with the lock held.
        """
        state = self.state
        if state is STOPPED or state is ABANDONED or self._running >= self._limit:
            return END
        if self._buffer:
            return self._buffer.popleft()
        if self._bounded and not self.has_room(self._running):
            return END
        if state is not OPEN or not self._source.thread_safe:
            return END
        if self._supply is _PULLING:
            return END
        if not self._source.runs_user_code:
            return self._receive()
        self._supply = _PULLING
        return WAIT

    def _claim(self, item: Any, thread: int) -> tuple[Any, int, bool]:
        """Return the item that was just received, its position, and whether to start another thread.

        Must happen under the same lock as receiving the item; otherwise two threads could swap positions.
        """
        if not self.kept:
            given, item = item if self._positioned else (None, item)
            position = self._launch_unkept(given)
        elif self._positioned:
            position, item = item
            self.launch(position)
            self.threads.extend(array("i", [0]) * (position + 1 - len(self.threads)))
            self.threads[position] = thread
        else:
            position = self.launch()
            self.threads.append(thread)
        self._running += 1
        return item, position, self._grow()

    def add_cached(self, position: int, value: Any) -> None:
        if self.kept:
            self.threads.append(0)
        super().add_cached(position, value)

    def _pull(self, thread: int) -> tuple[Any, int, bool]:
        """In a thread: as `_receive` and `_claim`, without the lock while the iterator runs."""
        error: BaseException | None = None
        item: Any = END
        try:
            item = self._source.receive()
        except BaseException as caught:
            error = caught

        with self._lock:
            self._supply = _IDLE
            if error is not None:
                self._source_failed(error)
            elif item is END:
                self._exhaust()
            elif self.state is OPEN:
                return self._claim(item, thread)
            return END, 0, False

    def _grow(self) -> bool:
        """Count another thread and return True, where one is needed; called with the lock held."""
        if self._starting or self._supply is _PULLING or self._threads >= self._limit:
            return False
        if self._running >= self._limit or self.state is STOPPED or self.state is ABANDONED:
            return False
        if self._bounded and not self._buffer and not self.has_room(self._running):
            return False
        if not self._buffer and (self.state is not OPEN or not self._source.thread_safe):
            return False
        self._starting = 1
        self._threads += 1
        return True

    def _work(self) -> Job | None:
        """In a thread: receive and run items until there is none."""
        run, invoke, context = self._run, self._call.invoke, self.caller.context
        cache, outlet, kept = self.caller.cache, self._outlet, self.kept
        following: Job | None = None
        thread = thread_number()
        with self._lock:
            self._starting = 0
            given_up = self.state is ABANDONED

        if given_up:
            return run.slots.next()
        while True:
            position, grow = 0, False
            with self._lock:
                item = self._next()
                if item is END:
                    if self.state is ABANDONED:
                        return None  # the slot was given back when this thread was given up
                    self._threads -= 1
                    following = run.slots.next()
                    break
                if item is not WAIT:
                    item, position, grow = self._claim(item, thread)

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
            except BaseException as caught:  # SystemExit and the like belong to the weave
                error = caught

            if kept:
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
                if kept:
                    self.results[position] = value
                if outlet is not None:
                    outlet.post(run.inbox, position, value)
            self._item_ended()

        close_connections()  # once for all items that this thread has run
        run.inbox.post(self._check_finished)
        return following

    def _item_ended(self) -> None:
        with self._lock:
            self._running -= 1
            if not self.kept:
                self._set_ended(0)
            ask = not (
                self._source.thread_safe
                or self._buffer
                or self._supply is not _IDLE
                or self.state is not OPEN
            )
            if ask:
                self._supply = _ASKED

        if ask:
            self._run.inbox.post(self._refill)

    def _failed(self, position: int, error: BaseException, item: Any) -> None:
        error = raisable(error, self.caller.name)
        self.caller.annotate(error, position, item)

        with self._lock:
            self.errors.append((position, error))
            if self._run.keeps_going:
                return
            # At once: the other threads launch no further item, however long the loop takes.
            if self.state is not ABANDONED:
                self.state = STOPPED

        self._run.inbox.post(self.stop)

    def _await(self, position: int, item: Any, value: Awaitable[Any]) -> None:
        """On the loop: await what an item's call returned."""
        if self.state is ABANDONED:
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
            if self.kept:
                self.results[position] = result
            if self._outlet is not None:
                self._outlet.push(position, result)
        except BaseException as error:
            stopped = self.state in (STOPPED, ABANDONED)
            if not (stopped and isinstance(error, asyncio.CancelledError)):
                self._failed(position, error, item)
        if self.kept:
            self.ended[position] = perf_counter()

    def _await_ended(self, value: Awaitable[Any], task: asyncio.Task[None]) -> None:
        discard(value)  # it was cancelled before its first step
        self._awaiting.discard(task)
        if not task.cancelled():
            task.exception()
        self._item_ended()
        self._refill()

    def _check_finished(self) -> None:
        """On the loop: end the map if everything in it has ended."""
        if self.state in (STOPPED, ABANDONED):
            if self.errors and not self.finished.done():
                self.stop()
            finished = not self._awaiting
        else:
            finished = (
                self.state is EXHAUSTED
                and not self._threads
                and not self._running
                and not self._buffer
            )

        if finished:
            self.finish()

    def stop(self) -> None:
        with self._lock:
            # Calls that run in threads are given up, and their slots are free for others. A thread
            # that has not begun yet gives its slot back by itself.
            given_up = 0 if self.state is ABANDONED else self._threads - self._starting
            self.state = ABANDONED
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
    call: ItemCall,
    *,
    on_started: Callable[[MapItems], object] | None = None,
    outlet: Stream | None = None,
    kept: bool = True,
) -> list[Any]:
    """Run one call per item of *value*, and return their results in order.

    Args:
        run: The weave's run.
        caller: Makes the calls.
        value: Any iterable or async iterable, or a source.
        call: How one item is called.
        on_started: Called with the items before the first one runs.
        outlet: Gets each result as it comes, for other maps.
        kept: Whether the list of results is needed; otherwise an empty one is returned.

    Raises:
        BaseException: The first error of an item, or of the source.
    """
    settings = caller.settings
    caller.attempts.kept = kept
    in_threads = settings.is_local and caller.kind in (Kind.SYNC, Kind.GENERATOR)
    limit: float = settings.workers or (run.slots.limit if in_threads else float("inf"))
    by_threads = caller.plain and caller.kind is Kind.SYNC
    if caller.cache is not None and not (is_container(value) and outlet is None):
        # Threads look items up only where no code of the user's runs to get them, and no other map
        # has to hear of the results that are found.
        by_threads = False
    source = open_source(
        value,
        task=caller.name,
        max_items=settings.max_pending,
        workers=limit,
        by_threads=by_threads,
        loop=run.loop,
        inbox=run.inbox,
        context=caller.context,
    )
    if caller.cache is not None:
        source = caller.cache.between(source, run.inbox, limit, by_threads=by_threads)

    items: MapItems
    if by_threads:
        items = _ThreadItems(run, caller, source, call, min(limit, run.slots.limit), outlet, kept)
    else:
        items = _LoopItems(run, caller, source, call, limit, outlet, kept)

    if caller.cache is not None:
        caller.cache.on_found(items.add_cached, items.has_room)
    if on_started is not None:
        on_started(items)
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
