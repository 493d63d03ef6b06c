"""Sync callables in threads.

One pool of daemon threads serves the whole process: they start on demand and end when idle, and
one that is stuck in a task nobody waits for any more does not keep the process alive. How many
threads a weave may use at once is the weave's own affair: its `Slots`.
"""

from __future__ import annotations

import os
import threading
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Protocol

__all__ = ["Inbox", "Slots", "ThreadCall", "start_thread"]

IDLE_SECONDS = 10.0
"""How long a thread without work waits for some before it ends."""


class Job(Protocol):
    """Something to run in a thread; it may give the next job for the same thread."""

    def __call__(self) -> Job | None: ...


class _Pool:
    """Idle threads, the last one first: its stack and caches are the warmest."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []
        self.started = 0

    def start(self, job: Job) -> None:
        with self.lock:
            worker = self.idle.pop() if self.idle else None
            if worker is None:
                self.started += 1
                number = self.started
        if worker is not None:
            worker.job = job
            worker.wake.release()
            return
        worker = _Worker(self, job)
        threading.Thread(target=worker.work, name=f"wove-{number}", daemon=True).start()


class _Worker:
    __slots__ = ("job", "pool", "wake")

    def __init__(self, pool: _Pool, job: Job) -> None:
        self.pool = pool
        self.job: Job | None = job
        self.wake = threading.Lock()
        self.wake.acquire()

    def work(self) -> None:
        pool = self.pool
        while True:
            job, self.job = self.job, None
            while job is not None:  # ends as None: what a task held must not live as long as an idle thread
                job = job()
            with pool.lock:
                pool.idle.append(self)
            if not self.wake.acquire(timeout=IDLE_SECONDS):
                with pool.lock:
                    if self in pool.idle:
                        pool.idle.remove(self)
                        return
                self.wake.acquire()  # a job was given to this thread at the last moment


_pool = _Pool()


def _forget_threads() -> None:
    """A forked child has none of its parent's threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def start_thread(job: Job) -> None:
    """Run *job*, which must not raise, in a thread of its own from the process's pool."""
    _pool.start(job)


class Slots:
    """How many threads one weave uses at once. Jobs over the limit wait in the order they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0
        self.lock = threading.Lock()
        self.waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Run *job* in a thread as soon as there is a slot; the job ends with `next`."""
        with self.lock:
            if self.active >= self.limit:
                self.waiting.append(job)
                return
            self.active += 1
        start_thread(job)

    def next(self) -> Job | None:
        """Give a slot back, or get the next job that is to run in it."""
        with self.lock:
            if self.waiting:
                return self.waiting.popleft()
            self.active -= 1
            return None

    def leave(self) -> None:
        """Give a slot back from elsewhere than its thread, or because its job waits for others."""
        job = self.next()
        if job is not None:
            start_thread(job)

    def enter(self) -> None:
        """Take a slot back after a wait, over the limit if need be: waiting here could be for ever."""
        with self.lock:
            self.active += 1

    def discard(self) -> None:
        """Forget what has not started."""
        with self.lock:
            self.waiting.clear()


class Inbox:
    """Calls from threads into a loop, many for one wake-up."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._bell: SimpleQueue[None] | None = None

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop, unless the loop has been closed."""
        self._calls.append((callback, args))
        if not self._woken:
            self._woken = True
            bell = self._bell
            if bell is not None:
                bell.put(None)
                return
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop was closed: nobody waits for this any more
                self._calls.clear()

    def ring(self) -> None:
        """From now on the calls are for `serve`."""
        self._bell = SimpleQueue()

    def serve(self, until: Callable[[], object]) -> None:
        """In the thread of the loop, which does not run: make the calls that come, until *until*.

        A thread that is woken this way is woken by one system call, a loop by a dozen.
        """
        bell = self._bell
        assert bell is not None
        while not until():
            bell.get()
            self._drain()
        self._bell = None
        # Somebody may have rung the bell that nobody hears any more.
        self.loop.call_soon(self._drain)

    def _drain(self) -> None:
        # First the flag, then the calls: a call that comes between the two only wakes us once more.
        self._woken = False
        calls = self._calls
        while calls:
            callback, args = calls.popleft()
            callback(*args)


class ThreadCall:
    """One call of a sync callable in a thread, which its loop can stop waiting for at any time.

    Attributes:
        ended: Called on the loop with ``(succeeded, value or exception)``, unless abandoned.
        begun: Called on the loop when a thread has taken up the call.
    """

    __slots__ = ("begun", "context", "ended", "fn", "inbox", "lock", "slots", "state")

    _WAITING, _RUNNING, _OVER = range(3)

    def __init__(
        self,
        fn: Callable[[], Any],
        *,
        slots: Slots,
        inbox: Inbox,
        context: Context,
        ended: Callable[[bool, Any], object],
        begun: Callable[[], object] | None = None,
    ) -> None:
        self.fn: Callable[[], Any] | None = fn
        self.slots = slots
        self.inbox = inbox
        self.context = context
        self.ended = ended
        self.begun = begun
        self.state = self._WAITING
        self.lock = threading.Lock()

    def start(self) -> ThreadCall:
        """Hand the call to a thread, at once or when there is a slot."""
        self.slots.submit(self._run)
        return self

    def abandon(self) -> None:
        """Do not wait for the call any more: its slot is free, and its outcome is dropped."""
        with self.lock:
            was, self.state = self.state, self._OVER
        self.fn = None
        if was == self._RUNNING:
            self.slots.leave()

    def _run(self) -> Job | None:
        with self.lock:
            fn = self.fn
            if fn is None or self.state == self._OVER:
                return self.slots.next()
            self.state = self._RUNNING
        if self.begun is not None:
            self.inbox.post(self.begun)
        try:
            outcome = (True, self.context.run(fn))
        except BaseException as error:  # SystemExit and the like belong to the weave, not to this thread
            outcome = (False, error)
        del fn
        with self.lock:
            was, self.state = self.state, self._OVER
        if was == self._OVER:  # abandoned meanwhile, and the slot given back
            return None
        self.fn = None
        following = self.slots.next()
        self.inbox.post(self.ended, *outcome)
        return following

    def wait_begun(self) -> Future[None]:
        """A future that is done when a thread has taken up the call; to be asked for before `start`."""
        future: Future[None] = self.inbox.loop.create_future()

        def begun() -> None:
            if not future.done():
                future.set_result(None)

        self.begun = begun
        return future
