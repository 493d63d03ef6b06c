"""Daemon threads that take one call after the other: the only thread pool of this package.

Threads start on demand, the one that became idle last works first (its stack and caches are the warmest), and idle
ones end by themselves. A thread that is stuck in a call that is not awaited any more does not keep the process alive. A
forked child starts with no thread and no call.

A thread that runs as long as its owner, and that the owner joins, is a `threading.Thread` and not one of a pool.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakSet

from wove.concurrency import forks
from wove.concurrency.mailbox import post_to

__all__ = ["ThreadPool", "close", "names", "relay", "run_in_thread", "submit"]

T = TypeVar("T")

Call: TypeAlias = "tuple[Callable[..., object], tuple[Any, ...]]"

IDLE_SECONDS = 5.0
"""How long a thread without work waits before it ends."""

MAX_THREADS: Final = 8
"""Pickling holds the GIL, so more threads than this only add memory for values in flight."""

_log = logging.getLogger("wove")


class _PoolThread(threading.Thread):
    """A thread of *pool*.

    Attributes:
        number: Counted from 1 in its pool.
        call: What to do next. ``None`` when *gate* opens: end.
        gate: Released when there is a call for this thread while it is idle, or when the pool is closed.
    """

    def __init__(self, pool: ThreadPool, number: int, call: Call) -> None:
        super().__init__(name=f"{pool.name}-{number}", daemon=True)
        self.pool = pool
        self.number = number
        self.call: Call | None = call
        self.gate = _thread.allocate_lock()
        self.gate.acquire()

    def run(self) -> None:
        _current.thread = self
        self.pool.work(self)


class _Current(threading.local):
    """The current thread, where it belongs to a pool."""

    thread: _PoolThread | None = None


_current = _Current()


class ThreadPool:
    """Makes calls in threads, in the order of their submission.

    Args:
        limit: Maximum number of threads. With 1, calls run strictly one after the other. ``None``: no limit, so that no
            call waits.
        name: The name of each thread, before a number.

    Attributes:
        name: As given.
    """

    def __init__(self, limit: int | None, name: str) -> None:
        self.name = name
        self._limit = limit
        self.reset_after_fork()
        _pools.add(self)

    def reset_after_fork(self) -> None:
        """Drop all calls and threads: in a forked child, both are the parent's."""
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque()
        self._threads: set[_PoolThread] = set()
        self._idle: list[_PoolThread] = []
        self._started = 0
        self._closing = False

    def start(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called at once, in an idle thread or in a new one, whatever the limit is.

        Raises:
            RuntimeError: The system has no more threads, or the interpreter is ending.
        """
        with self._lock:
            new = self._assign((fn, args))
        if new is not None:
            self._launch(new)

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called in a thread. An exception that it raises is logged.

        Where no thread can be started, a busy one makes the call later; if there is none, this thread makes it now.
        """
        call = (fn, args)
        with self._lock:
            if not self._idle and self._limit is not None and len(self._threads) >= self._limit:
                self._calls.append(call)  # a busy thread takes it next
                return
            new = self._assign(call)

        if new is not None:
            try:
                self._launch(new)
            except RuntimeError:  # the interpreter is ending, and starts no threads any more
                self._make_without_new_thread(call)

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Return ``fn(*args)``, called in one of the threads. Cancelling this does not stop the call."""
        import asyncio  # here: a worker process without a loop starts in half the time

        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(ok: bool, value: Any) -> None:
            if done.cancelled():
                return
            if ok:
                done.set_result(value)
            else:
                done.set_exception(value)

        def call() -> None:
            outcome: tuple[bool, Any]

            try:
                outcome = (True, fn(*args))
            except StopIteration as error:  # a future refuses it
                outcome = (False, RuntimeError(f"{fn!r} raised {error!r}"))
            except BaseException as error:  # whatever it is, it belongs to the caller
                outcome = (False, error)

            post_to(loop, settle, *outcome)

        self.submit(call)
        return await done

    def close(self, timeout: float, *, for_good: bool = False) -> None:
        """End the threads once they have made all calls; wait for each at most *timeout* seconds.

        Args:
            timeout: Seconds.
            for_good: No call comes any more. A thread that is still busy then ends right after its call.
        """
        with self._lock:
            self._closing = True
            threads = list(self._threads)
            self._threads.difference_update(self._idle)
            for thread in self._idle:
                thread.gate.release()
            self._idle.clear()

        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout)

        with self._lock:
            self._closing = for_good

    def current_number(self) -> int:
        """Return the number of the current thread in this pool, from 1; 0 for a thread of another kind."""
        thread = _current.thread
        return thread.number if thread is not None and thread.pool is self else 0

    def _assign(self, call: Call) -> _PoolThread | None:
        """Give *call* to an idle thread, or return a new thread for `_launch`. Called with the lock held."""
        if self._idle:
            thread = self._idle.pop()
            thread.call = call
            thread.gate.release()
            return None

        self._started += 1
        thread = _PoolThread(self, self._started, call)
        self._threads.add(thread)
        return thread

    def _launch(self, thread: _PoolThread) -> None:
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            raise

    def _make_without_new_thread(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)
            if self._idle:
                self._assign(self._calls.popleft())
            alone = not self._threads

        while alone and self._calls:
            fn, args = self._calls.popleft()
            fn(*args)

    def _next_call(self) -> Call | None:
        """Return the call for a thread that has made one. Called with the lock held."""
        return self._calls.popleft() if self._calls else None

    def work(self, thread: _PoolThread) -> None:
        """Make calls in *thread*, until there are none and it has been idle for long. Called in that thread."""
        call, thread.call = thread.call, None

        while call is not None:
            fn, args = call
            try:
                fn(*args)
            except BaseException:
                _log.exception("a call in the thread %s failed", thread.name)
            del fn, args  # an idle thread must not keep the last arguments alive

            with self._lock:
                call = self._next_call()
                if call is None:
                    if self._closing:
                        self._threads.discard(thread)
                        return
                    self._idle.append(thread)

            if call is None:
                if not thread.gate.acquire(timeout=IDLE_SECONDS) and self._retire(thread):
                    return
                call, thread.call = thread.call, None

    def _retire(self, thread: _PoolThread) -> bool:
        """Remove *thread*, which has been idle for long enough; return False if a call came at the last moment."""
        with self._lock:
            if thread in self._idle:
                self._idle.remove(thread)
                self._threads.discard(thread)
                return True

        thread.gate.acquire()
        return False


_pools: Final[WeakSet[ThreadPool]] = WeakSet()

_codec: Final = ThreadPool(MAX_THREADS, "wove-codec")

relay: Final = ThreadPool(1, "wove-stderr")
"""Copies the output of workers to the stderr of this process. A slow terminal must delay nothing else."""

MAX_LOOKUPS: Final = 8

names: Final = ThreadPool(MAX_LOOKUPS, "wove-dns")
"""Looks up host names. A name server that does not answer blocks its thread for half a minute."""

LOOKUP_SECONDS: Final = 0.1
"""How long to wait, when Wove ends, for a thread that looks up a name, in seconds. The thread is a daemon, and its
caller is gone."""


def submit(fn: Callable[..., object], *args: Any) -> None:
    """Have ``fn(*args)`` called in one of the codec threads of the process."""
    _codec.submit(fn, *args)


async def run_in_thread(fn: Callable[..., T], *args: Any) -> T:
    """Return ``fn(*args)``, called in one of the codec threads.

    Unlike `asyncio.to_thread`, this leaves the threads of the user's loop to the user.
    """
    return await _codec.call(fn, *args)


def close(timeout: float) -> None:
    """End the threads after the calls that they have; wait for each at most *timeout* seconds.

    A later :func:`submit` starts new ones.
    """
    for pool in (_codec, relay):
        pool.close(timeout)
    names.close(min(timeout, LOOKUP_SECONDS))


def reset_after_fork() -> None:
    for pool in list(_pools):
        pool.reset_after_fork()


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)
