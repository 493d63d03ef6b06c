"""A few daemon threads for work that must not happen on a loop: pickling, unpickling, encoding, printing.

Threads start on demand and end by themselves when idle. A forked child starts with none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from wove.concurrency import forks
from wove.concurrency.mailbox import post_to

__all__ = ["ThreadPool", "close", "names", "relay", "run_in_thread", "submit"]

T = TypeVar("T")

IDLE_SECONDS: Final = 5.0
"""How long a thread without work waits before it ends."""

MAX_THREADS: Final = 8
"""Pickling holds the GIL, so more threads than this only add memory for values in flight."""


class ThreadPool:
    """Makes calls in at most *limit* threads, in the order of their submission.

    Args:
        limit: Maximum number of threads. With 1, calls run strictly one after the other.
        name: The name of each thread.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Drop all calls and threads: in a forked child, both are the parent's."""
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = False

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called in a thread. *fn* must not raise."""
        with self._changed:
            self._calls.append((fn, args))
            if self._idle >= len(self._calls):
                self._changed.notify()
                return
            if len(self._threads) >= self._limit:
                return  # a busy thread takes the call next
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._threads.add(thread)

        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, and starts no threads any more
            with self._changed:
                self._threads.discard(thread)
                alone = not self._threads
            while alone and self._calls:
                fn, args = self._calls.popleft()
                fn(*args)

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
        """End the threads once they are idle; wait for each at most *timeout* seconds.

        Args:
            timeout: Seconds.
            for_good: No call comes any more. A thread that is still busy then ends right after its call.
        """
        with self._changed:
            self._closing = True
            threads = list(self._threads)
            self._changed.notify_all()

        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout)

        with self._changed:
            self._closing = for_good

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._idle += 1
                    woken = not self._closing and self._changed.wait(IDLE_SECONDS)
                    self._idle -= 1
                    if not woken and not self._calls:
                        self._threads.discard(threading.current_thread())
                        return
                fn, args = self._calls.popleft()
            fn(*args)
            del fn, args  # an idle thread must not keep the last arguments alive


_codec: Final = ThreadPool(MAX_THREADS, "wove-codec")

relay: Final = ThreadPool(1, "wove-stderr")
"""Copies the output of workers to the stderr of this process. A slow terminal must delay nothing else."""

MAX_LOOKUPS: Final = 8

names: Final = ThreadPool(MAX_LOOKUPS, "wove-dns")
"""Looks up host names. A name server that does not answer blocks its thread for half a minute."""

LOOKUP_SECONDS: Final = 0.1
"""How long a thread that looks up a name is waited for when Wove ends, in seconds. It is a daemon, and the
caller who wanted the name is gone."""


def submit(fn: Callable[..., object], *args: Any) -> None:
    """Have ``fn(*args)`` called in one of the codec threads of the process. *fn* must not raise."""
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
    for pool in (_codec, relay, names):
        pool.reset_after_fork()


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)
