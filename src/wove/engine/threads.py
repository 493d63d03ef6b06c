"""Sync callables in threads.

One pool of threads serves the weaves of the whole process. How many threads a weave may use at once is its own affair:
its `ThreadLimiter`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, Protocol

from wove.concurrency.django_connections import close_connections
from wove.concurrency.limiter import CapacityLimiter
from wove.concurrency.mailbox import LoopMailbox
from wove.concurrency.thread_pool import ThreadPool

__all__ = [
    "JobPool",
    "RunMailbox",
    "ThreadCall",
    "ThreadLimiter",
    "discard",
    "is_awaitable",
    "start_thread",
    "thread_number",
]

RETURN_SECONDS = 0.25
"""Where the system has no more threads: how long one of ours may take from the end of a call to being idle."""

REFUSAL_SECONDS = 2.0
"""How long to assume, after that time, that no thread is about to be idle."""


class Job(Protocol):
    """Something to run in a thread; it may return the next job for the same thread."""

    def __call__(self) -> Job | None: ...


class JobPool(ThreadPool):
    """The threads of the weaves of this process."""

    def __init__(self) -> None:
        super().__init__(None, "wove")
        self._refused_at = -REFUSAL_SECONDS  # when no thread was to be had, and none became idle

    def run(self, job: Job, patient: bool) -> None:
        """Run *job* in a thread, as `start_thread` does."""
        try:
            self.start(_run, job)
        except RuntimeError:
            if not (patient and self._start_later(job)):
                raise

    def _start_later(self, job: Job) -> bool:
        """Start *job* when a thread becomes idle: the end of a call is reported before its thread is idle."""
        began = time.monotonic()
        if began < self._refused_at + REFUSAL_SECONDS:
            return False

        while time.monotonic() < began + RETURN_SECONDS:
            time.sleep(0.001)
            with contextlib.suppress(RuntimeError):
                self.start(_run, job)
                return True

        self._refused_at = time.monotonic()
        return False


_threads = JobPool()


class _Tail(threading.local):
    """A thread whose job is over except for what its end makes possible: the thread can go on with that."""

    open = False
    job: Job | None = None


_tail = _Tail()


def thread_number() -> int:
    """Return the number of the current thread, if it is one of the weaves' pool, from 1; otherwise 0."""
    return _threads.current_number()


def start_thread(job: Job, patient: bool = True) -> None:
    """Run *job*, which must not raise, in a thread of the weaves' pool.

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

    _threads.run(job, patient)


def _run(job: Job) -> None:
    following: Job | None = job
    del job

    # It ends as None: what a job holds must not live as long as an idle thread.
    while following is not None:
        following = following()


class ThreadLimiter(CapacityLimiter):
    """How many threads one weave uses at once. Jobs over the limit wait in the order they came.

    Attributes:
        limit: Maximum number of threads.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def submit(self, job: Job) -> None:
        """Run *job* in a thread as soon as the limit allows; the job ends with `next`.

        Raises:
            RuntimeError: The system has no more threads, and this weave has none that could do it later.
        """
        if self.try_acquire() or self.acquire(partial(self._start, job)) is None:
            self._start(job)

    def next(self) -> Job | None:
        """Give the thread of the calling job back, or return the next job that is to run in it."""
        if not self._queue:  # a job that comes meanwhile gets another thread
            self.release()
            return None

        _tail.open = True
        self.release()
        _tail.open = False
        following, _tail.job = _tail.job, None
        return following

    @contextlib.contextmanager
    def given_up(self) -> Generator[None]:
        """Give the place of a thread that only waits to others; afterwards its job may be beyond the limit."""
        self.release()
        try:
            yield
        finally:
            self.acquire_beyond_limit()  # to wait here could be for ever

    def _start(self, job: Job) -> None:
        try:
            start_thread(job, patient=self.in_use == 1)
        except RuntimeError:
            # The threads that this weave has take the job over, one after the other.
            if not self.acquire_again(partial(self._start, job)):
                raise


def is_awaitable(value: object) -> bool:
    """Return whether *value*, which a sync call returned, is still to be awaited."""
    return hasattr(type(value), "__await__")


def discard(value: object) -> None:
    """Close *value* if it is a coroutine: it will not be awaited, and would complain about that when it is freed."""
    if isinstance(value, CoroutineType):
        value.close()


class RunMailbox(LoopMailbox):
    """The mailbox of one weave's run, which can do without the loop.

    As long as nothing but threads is at work, the loop need not even run: between `hold` and `serve`
    the thread that posts a call makes it itself, one at a time, and the loop's own thread sleeps until
    *until* returns that it is needed, or that the run is over. To wake a thread costs more than most
    calls, and to wake a loop twice as much.
    """

    __slots__ = ("_bell", "_holding", "_turn", "_until")

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__(loop)
        self._until: Callable[[], object] | None = None

    def post(self, fn: Callable[..., object], *args: Any) -> bool:
        """Have ``fn(*args)`` called, on the loop or in its place.

        A call that is dropped closes the coroutines among its *args*.

        Returns:
            Whether the call has been made or will be.
        """
        self._calls.append([fn, args])
        if not self._closed:
            if self._until is not None and self._make_calls():
                return True
            if self._woken or self._wake_once():
                return True

        self._drop()
        return False

    def close(self) -> None:
        """Drop the calls that wait, and refuse new ones: the run is over."""
        self._closed = True
        self._drop()

    def hold(self, until: Callable[[], object]) -> None:
        """From now on make calls without the loop; the first one when `serve` is called."""
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
        """In the loop's thread: from now on leave the calls to the loop."""
        if self._until is None:
            return
        if self._holding:  # `serve` was never reached
            self._holding = False
            self._turn.release()

        with self._turn:
            self._until = None
        if self._calls:
            self._woken = True
            self.loop.call_soon(self._drain, context=Context())

    def _make_calls(self) -> bool:
        """Make the calls that wait, unless another thread does; return whether they need not go to the loop."""
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

    def _drop(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may drop them as well
            while True:
                for argument in self._calls.popleft()[1]:
                    discard(argument)


class ThreadCall:
    """One call of a sync callable in a thread, which its loop can stop waiting for at any time.

    Attributes:
        ended: Called on the loop with ``(succeeded, value or exception)``, unless abandoned.
        on_started: Called on the loop when a thread has begun the call.
    """

    __slots__ = ("context", "ended", "fn", "inbox", "lock", "on_started", "slots", "state")

    _WAITING, _RUNNING, _OVER = range(3)

    def __init__(
        self,
        fn: Callable[[], Any],
        *,
        slots: ThreadLimiter,
        inbox: RunMailbox,
        context: Context,
        ended: Callable[[bool, Any], object],
    ) -> None:
        self.fn: Callable[[], Any] | None = fn
        self.slots = slots
        self.inbox = inbox
        self.context = context
        self.ended = ended
        self.on_started: Callable[[], object] | None = None
        self.state = self._WAITING
        self.lock = threading.Lock()

    def start(self) -> ThreadCall:
        """Have the call made in a thread, at once or when the limit allows."""
        self.slots.submit(self._run)
        return self

    def abandon(self) -> None:
        """Do not wait for the call any more: free its place in the limit, and drop its outcome."""
        with self.lock:
            was, self.state = self.state, self._OVER
        self.fn = None
        if was == self._RUNNING:
            self.slots.release()

    def _run(self) -> Job | None:
        with self.lock:
            fn = self.fn
            if fn is None or self.state == self._OVER:
                return self.slots.next()
            self.state = self._RUNNING

        if self.on_started is not None:
            self.inbox.post(self.on_started)
        try:
            outcome = (True, self.context.run(fn))
        except (
            BaseException
        ) as error:  # SystemExit and the like belong to the weave, not to this thread
            outcome = (False, error)

        close_connections()
        del fn
        with self.lock:
            was, self.state = self.state, self._OVER
        if was == self._OVER:  # abandoned meanwhile, and given back to the limit
            discard(outcome[1])
            return None

        self.fn = None
        _tail.open = (
            True  # for the next job of this weave, or else for what the outcome makes possible
        )
        self.slots.release()
        self.inbox.post(self.ended, *outcome)
        _tail.open = False
        following, _tail.job = _tail.job, None
        return following

    def wait_started(self) -> Future[None]:
        """Return a future that is done when a thread has begun the call. To be called before `start`."""
        future: Future[None] = self.inbox.loop.create_future()

        def on_started() -> None:
            if not future.done():
                future.set_result(None)

        self.on_started = on_started
        return future
