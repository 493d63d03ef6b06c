"""Threads for sync tasks: as few as will do, and as many as are needed.

A sender may hand over dozens of tiny tasks at once, which one thread finishes in a millisecond; or dozens that
all block, and each needs a thread. Which of the two it will be cannot be known in advance, so the queue decides: a
thread that has finished one task takes the next, and only when the head of the queue has waited for
:data:`PATIENCE_SECONDS` does another thread come to take it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from wove.concurrency.thread_pool import ThreadPool

__all__ = ["TaskThreadPool"]

PATIENCE_SECONDS: Final = 0.002
"""How long a queued task is left to the busy threads. A tiny task is over long before that; starting a thread takes a
tenth of it."""

_log = logging.getLogger("wove.worker")
_now = time.monotonic


class TaskThreadPool(ThreadPool):
    """A thread pool that grows only when its threads are stuck.

    No call waits for longer than a few milliseconds behind one that blocks. One thread at a time, the watcher, waits
    for the head of the queue to become old; then it takes that call like any other thread.

    Args:
        limit: Maximum number of threads; ``None``: as many as there are blocked calls.
        name: The name of each thread, before a number.
    """

    def reset_after_fork(self) -> None:
        super().reset_after_fork()
        self._queued_at: deque[float] = deque()  # for each waiting call
        self._is_watched = False  # whether there is a watcher
        self._taken_at = 0.0  # when a thread last took a call

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called in a thread. An exception that it raises is logged.

        Raises:
            RuntimeError: There is no thread, and none can be started.
        """
        with self._lock:
            if not self._busy():  # then no call waits either
                self._taken_at = _now()
                self._employ(fn, *args)
                return

            self._calls.append((fn, args))
            self._queued_at.append(_now())
            self._ensure_watcher()

    def _busy(self) -> int:
        """Return the number of threads that make calls. Called with the lock held, like all below."""
        return len(self._threads) - len(self._idle) - self._is_watched

    def _employ(self, fn: Callable[..., object], *args: Any) -> None:
        new = self._assign((fn, args))
        if new is not None:
            self._launch(new)

    def _ensure_watcher(self) -> None:
        if self._is_watched or not self._calls:
            return
        if not self._idle and self._limit is not None and len(self._threads) >= self._limit:
            return

        self._is_watched = True
        try:
            self._employ(self._watch)
        except RuntimeError as error:  # the system has no more threads
            self._is_watched = False
            _log.warning(
                "cannot start another thread, so blocked tasks hold up queued ones: %s", error
            )

    def _next_call(self) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
        if not self._calls:
            return None

        self._queued_at.popleft()
        self._taken_at = _now()
        call = self._calls.popleft()
        self._ensure_watcher()
        return call

    def _patience(self) -> float:
        """Return for how many seconds the head of the queue may still be left to the busy threads."""
        now = _now()
        if not self._calls or not self._busy() or now - self._taken_at >= PATIENCE_SECONDS:
            return 0.0
        return self._queued_at[0] + PATIENCE_SECONDS - now

    def _watch(self) -> None:
        """Return when the head of the queue has waited for too long; the pool then gives it to this thread."""
        while True:
            with self._lock:
                seconds = self._patience()
                if seconds <= 0:
                    self._is_watched = False
                    return
            time.sleep(seconds)
