"""Sync callables in threads.

One pool of daemon threads serves the whole process: they start on demand and end when idle, and
one that is stuck in a task nobody waits for any more does not keep the process alive. How many
threads a weave may use at once is the weave's own affair: its `Slots`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, Protocol

from wove.concurrency import forks

__all__ = [
    "Inbox",
    "Slots",
    "ThreadCall",
    "discard",
    "is_awaitable",
    "start_thread",
    "thread_number",
]

IDLE_SECONDS = 10.0
"""How long a thread without work waits for some before it ends."""

RETURN_SECONDS = 0.25
"""Where the system has no more threads: how long one of ours may take from the end of a call to being idle."""

REFUSAL_SECONDS = 2.0
"""How long it is taken for granted, after that time, that no thread is about to be idle."""


class Job(Protocol):
    """Something to run in a thread; it may give the next job for the same thread."""

    def __call__(self) -> Job | None: ...


class _Pool:
    """Idle threads, the last one first: its stack and caches are the warmest."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []
        self.started = 0
        self.refused = -REFUSAL_SECONDS

    def start(self, job: Job, patient: bool) -> None:
        with self.lock:
            worker = self.idle.pop() if self.idle else None
            self.started += worker is None
            number = self.started

        if worker is None:
            try:
                threading.Thread(
                    target=_Worker(self, job, number).work, name=f"wove-{number}", daemon=True
                ).start()
            except RuntimeError:
                worker = self._next_idle() if patient else None
                if worker is None:
                    raise
            else:
                return

        worker.job = job
        worker.wake.release()

    def _next_idle(self) -> _Worker | None:
        """A thread that is just over with its work: its end is told before the thread is idle."""
        began = time.monotonic()
        if began < self.refused + REFUSAL_SECONDS:
            return None
        while time.monotonic() < began + RETURN_SECONDS:
            time.sleep(0.001)
            with self.lock:
                if self.idle:
                    return self.idle.pop()

        self.refused = time.monotonic()
        return None


class _Worker:
    __slots__ = ("job", "number", "pool", "wake")

    def __init__(self, pool: _Pool, job: Job, number: int) -> None:
        self.number = number
        self.pool = pool
        self.job: Job | None = job
        self.wake = threading.Lock()
        self.wake.acquire()

    def work(self) -> None:
        pool = self.pool
        _tail.number = self.number

        while True:
            job, self.job = self.job, None
            while (
                job is not None
            ):  # ends as None: what a task held must not live as long as an idle thread
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


def reset_after_fork() -> None:
    """A forked child has none of its parent's threads."""
    global _pool
    _pool = _Pool()


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)


class _Tail(threading.local):
    """A thread whose job is over but for what its end makes possible: it can go on with that."""

    open = False
    job: Job | None = None
    number = 0


_tail = _Tail()


def thread_number() -> int:
    """Return the number of the current thread, if it is the pool's, from 1; otherwise 0."""
    return _tail.number


def start_thread(job: Job, patient: bool = True) -> None:
    """Run *job*, which must not raise, in a thread of its own from the process's pool.

    Args:
        job: What to run.
        patient: Whether to wait a moment for a thread of the pool, should the system have no more.

    Raises:
        RuntimeError: The system has no more threads.
    """
    if _tail.open:
        _tail.open = False
        _tail.job = job
        return

    _pool.start(job, patient)


class Slots:
    """How many threads one weave uses at once. Jobs over the limit wait in the order they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0
        self.lock = threading.Lock()
        self.waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Run *job* in a thread as soon as there is a slot; the job ends with `next`.

        Raises:
            RuntimeError: The system has no more threads, and this weave has none that could do it later.
        """
        with self.lock:
            if self.active >= self.limit:
                self.waiting.append(job)
                return
            self.active += 1
            first = self.active == 1

        try:
            start_thread(job, patient=first)
        except RuntimeError:
            with self.lock:
                self.active -= 1
                if self.active:
                    self.waiting.append(job)
                    return
            raise

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

    @contextlib.contextmanager
    def given_up(self) -> Generator[None]:
        """For a thread that only waits meanwhile; its job is over the limit afterwards, if need be."""
        self.leave()
        try:
            yield
        finally:
            with self.lock:  # without waiting for a slot: that could be for ever
                self.active += 1


def is_awaitable(value: object) -> bool:
    """Whether *value*, which a sync call gave, is still to be awaited."""
    return hasattr(type(value), "__await__")


def discard(value: object) -> None:
    """Nobody will await *value*; a coroutine would complain about that when it is freed."""
    if isinstance(value, CoroutineType):
        value.close()


class Inbox:
    """Calls from threads into a loop, many for one wake-up.

    As long as nothing but threads is at work, the loop need not even run: between `hold` and `serve`
    the thread that has a call makes it itself, one at a time, and the loop's own thread sleeps until
    *until* says that it is needed, or that it is all over. To wake a thread costs more than most
    calls, and to wake a loop twice as much.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._until: Callable[[], object] | None = None
        self._closed = False

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop, unless this or the loop has been closed."""
        self._calls.append((callback, args))
        if self._closed:
            self._drop()
            return

        if self._until is not None and self._make_calls():
            return
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop was closed: nobody waits for this any more
                self._drop()

    def close(self) -> None:
        """Nobody waits for any call any more."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may drop them as well
            while True:
                for value in self._calls.popleft()[1]:
                    discard(value)

    def hold(self, until: Callable[[], object]) -> None:
        """From now on calls are made without the loop; the first one when `serve` is called."""
        self._turn = threading.Lock()
        self._holding = True
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._turn.acquire()
        self._until = until

    def serve(self) -> None:
        """In the loop's thread: wait until the loop is needed, or not needed any more."""
        until = self._until
        assert until is not None
        self._holding = False
        self._turn.release()
        self._make_calls()
        while not until():
            self._bell.get()
        self.let_go()

    def let_go(self) -> None:
        """In the loop's thread: from now on calls are made by the loop."""
        if self._until is None:
            return
        if self._holding:  # `serve` was never reached
            self._holding = False
            self._turn.release()

        with self._turn:
            self._until = None
        if self._calls:
            self.loop.call_soon(self._drain)

    def _make_calls(self) -> bool:
        """Make the calls there are, unless another thread does; whether they need not go to the loop."""
        # Whoever gives up its turn looks again: a call may have come whose thread saw the turn taken.
        while self._calls and self._turn.acquire(blocking=False):
            try:
                until = self._until
                if until is None:
                    return False
                while self._calls and not until():
                    callback, args = self._calls.popleft()
                    callback(*args)
                if until():
                    self._bell.put(None)
                    return True
            finally:
                self._turn.release()

        return True

    def _drain(self) -> None:
        # First the flag, then the calls: a call that comes between the two only wakes us once more.
        self._woken = False
        calls = self._calls
        count = len(calls)  # those that come meanwhile must not keep the loop from everything else
        while count and calls and not self._closed:
            count -= 1
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
        except (
            BaseException
        ) as error:  # SystemExit and the like belong to the weave, not to this thread
            outcome = (False, error)

        del fn
        with self.lock:
            was, self.state = self.state, self._OVER
        if was == self._OVER:  # abandoned meanwhile, and the slot given back
            discard(outcome[1])
            return None

        self.fn = None
        following = self.slots.next()
        if following is not None:
            self.inbox.post(self.ended, *outcome)
            return following

        _tail.open = True
        self.inbox.post(self.ended, *outcome)
        _tail.open = False
        following, _tail.job = _tail.job, None
        return following

    def wait_begun(self) -> Future[None]:
        """A future that is done when a thread has taken up the call; to be asked for before `start`."""
        future: Future[None] = self.inbox.loop.create_future()

        def begun() -> None:
            if not future.done():
                future.set_result(None)

        self.begun = begun
        return future
