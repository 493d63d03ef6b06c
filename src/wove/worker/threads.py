"""Threads for sync work: as few as will do, and as many as are needed.

A sender may hand over dozens of tiny tasks at once, which one thread finishes in a millisecond; or dozens that
all block, and each needs a thread. Nobody knows in advance which it will be, so the queue decides: a thread
that is done with one job takes the next, and only when the head of the queue has waited for
:data:`PATIENCE_SECONDS` does another thread come to take it.
"""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Crew"]

PATIENCE_SECONDS: Final = 0.002
IDLE_SECONDS: Final = 10.0

_log = logging.getLogger("wove.worker")
_now = time.monotonic


class Crew:
    """Runs jobs in daemon threads. No job waits for longer than a few milliseconds behind one that blocks.

    Args:
        limit: The most threads at a time; ``None``: as many as there are blocked jobs.
        name: What the threads are called, before a number.
    """

    def __init__(self, *, limit: int | None = None, name: str = "wove-worker") -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._idle: list[_WorkerThread] = []  # the last to become idle is the first to work again
        self._count = 0  # threads
        self._busy = 0  # of them at a job, or sure to take one
        self._watched = False  # whether one of them looks after the head of the queue
        self._taken_at = 0.0  # when a job was last taken
        self._closed = False
        self._numbers = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run *job*, which must not raise, soon.

        Raises:
            RuntimeError: No thread can be started, and there is none.
        """
        with self._lock:
            self._queue.append((_now(), job))
            try:
                self._see_to_the_queue()
            except RuntimeError:
                if not self._busy:
                    self._queue.pop()
                    raise

    def close(self) -> None:
        """Let the threads end as soon as they are idle. Jobs that are queued still run."""
        with self._lock:
            self._closed = True
            for hand in self._idle:
                hand.gate.release()
            self._idle.clear()

    # Everything below is called with the lock held.

    def _see_to_the_queue(self) -> None:
        if not self._queue:
            return
        if not self._busy:
            self._busy += 1
            try:
                self._summon(watch=False)
            except RuntimeError:
                self._busy -= 1
                raise
        elif not self._watched and (self._idle or self._limit is None or self._count < self._limit):
            self._watched = True
            try:
                self._summon(watch=True)
            except RuntimeError:
                self._watched = False  # the busy ones take the rest, one after the other
                raise

    def _summon(self, *, watch: bool) -> None:
        if self._idle:
            hand = self._idle.pop()
            hand.watching = watch
            hand.gate.release()
            return

        self._numbers += 1
        hand = _WorkerThread(self._serve, f"{self._name}-{self._numbers}")
        hand.watching = watch
        hand.start()
        self._count += 1

    def _take(self) -> Callable[[], None]:
        _, job = self._queue.popleft()
        self._taken_at = _now()

        try:
            self._see_to_the_queue()
        except RuntimeError as error:  # the system has no more threads to give
            _log.warning(
                "cannot start another thread, so blocked tasks hold up queued ones: %s", error
            )

        return job

    def _patience(self) -> float:
        """How long the head of the queue may still be left to those who are at work."""
        now = _now()
        if not self._busy or now - self._taken_at >= PATIENCE_SECONDS:
            return 0.0
        return self._queue[0][0] + PATIENCE_SECONDS - now

    def _next(self, hand: _WorkerThread) -> Callable[[], None] | None:
        """The next job for *hand*, after a wait; ``None`` when it should end."""
        while True:
            if not hand.watching:
                if self._queue:
                    return self._take()
                self._busy -= 1
                if not self._wait_idle(hand):
                    self._count -= 1
                    return None
            elif not self._queue:
                self._watched = hand.watching = False
                self._busy += 1
            elif (seconds := self._patience()) > 0:
                self._pause(hand, seconds)
            else:
                self._watched = hand.watching = False
                self._busy += 1
                return self._take()

    def _wait_idle(self, hand: _WorkerThread) -> bool:
        """Wait to be summoned; false when that does not happen any more."""
        if self._is_over():
            return False
        self._idle.append(hand)
        if not self._pause(hand, IDLE_SECONDS) and hand in self._idle:
            self._idle.remove(hand)
            return False

        return not self._is_over()

    def _is_over(self) -> bool:
        return self._closed and not self._queue

    def _pause(self, hand: _WorkerThread, seconds: float) -> bool:
        self._lock.release()
        try:
            return hand.gate.acquire(timeout=seconds)
        finally:
            self._lock.acquire()

    def _serve(self, hand: _WorkerThread) -> None:
        while True:
            with self._lock:
                job = self._next(hand)
            if job is None:
                return
            try:
                job()
            except BaseException:
                _log.exception("a job of the worker failed")
            del job  # what it worked on should not live until the next one comes


class _WorkerThread(threading.Thread):
    """A thread of a crew.

    Attributes:
        gate: Released once for every time it is summoned.
        watching: Whether it is to look after the head of the queue, and not to take it at once.
    """

    def __init__(self, serve: Callable[[_WorkerThread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._serve = serve
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.watching = False

    def run(self) -> None:
        self._serve(self)
