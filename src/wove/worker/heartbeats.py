"""The worker's clock while tasks run: heartbeats, deadlines, and a look at the load.

All of it in one thread that exists only while there is something to watch, because a task that blocks must
not keep its own heartbeat from being sent.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

__all__ = ["HeartbeatTimer", "LoadMeter"]

LINGER_SECONDS: Final = 5.0  # the thread outlives its last run: the next one is often close behind

FIRST_WINDOW_SECONDS: Final = 0.005
MAX_WINDOW_SECONDS: Final = 0.5
BLOCKED_BELOW: Final = 0.25  # of one core
REPEAT_SECONDS: Final = 1.0

_now = time.monotonic

K = TypeVar("K", bound=Hashable)


class LoadMeter:
    """Tells whether the running tasks compute or wait, from the CPU time that this process gets.

    Each look is at the window since the one before. Windows start at 5 ms and double while nothing changes.

    Args:
        count: Returns how many tasks run, and how many were ever started.
        report: Called with the number of running tasks when they all wait: once when that is found, again
            after a task has been started, and every second as long as it stays so.

    Attributes:
        due: When to look next, in monotonic seconds; infinite while nothing runs.
    """

    def __init__(self, count: Callable[[], tuple[int, int]], report: Callable[[int], None]) -> None:
        self.due = math.inf
        self.count = count
        self._report = report
        self._window = FIRST_WINDOW_SECONDS
        self._since: float | None = None
        self._cpu = 0.0
        self._started = -1
        self._reported = (-1, -math.inf)

    def restart(self, now: float) -> None:
        """Something started: measure from *now* on, in short windows again."""
        if self._since is None:
            self._since, self._cpu = now, time.process_time()
        self._window = FIRST_WINDOW_SECONDS
        self.due = min(self.due, now + self._window)

    def look(self, now: float) -> None:
        """Look at the window that ends *now* (monotonic seconds), and report if the tasks waited."""
        running, started = self.count()
        if not running or self._since is None:
            self._since, self.due = None, math.inf
            return

        cpu = time.process_time()
        elapsed, share = now - self._since, (cpu - self._cpu) / max(now - self._since, 1e-9)
        # A look that comes late says that the machine or the interpreter lock is busy, not that tasks wait.
        late = elapsed > 2 * self._window + FIRST_WINDOW_SECONDS
        changed = started != self._started
        self._since, self._cpu, self._started = now, cpu, started
        self._window = (
            FIRST_WINDOW_SECONDS if changed else min(2 * self._window, MAX_WINDOW_SECONDS)
        )
        self.due = now + self._window
        if late or share >= BLOCKED_BELOW:
            return
        reported_started, reported_at = self._reported
        if started != reported_started or now - reported_at >= REPEAT_SECONDS:
            self._reported = (started, now)
            self._report(running)


class _Watch:
    __slots__ = ("deadline", "every", "next_beat")

    def __init__(self) -> None:
        self.every = math.inf
        self.next_beat = math.inf
        self.deadline = math.inf


class HeartbeatTimer(Generic[K]):
    """Calls back for runs, by the clock. The callbacks come from its own thread and must not raise.

    Args:
        beat: Called when a heartbeat is due.
        expire: Called once when the deadline has passed.
        meter: Looks at the load; ``None``: nobody wants to know.
        name: What the thread is called.
    """

    def __init__(
        self,
        *,
        beat: Callable[[K], None],
        expire: Callable[[K], None],
        meter: LoadMeter | None,
        name: str,
    ) -> None:
        self._beat = beat
        self._expire = expire
        self._meter = meter
        self._name = name
        self._changed = threading.Condition(threading.Lock())
        self._watches: dict[K, _Watch] = {}
        self._thread: threading.Thread | None = None
        self._asleep_until = math.inf
        self._closed = False

    def beat_every(self, key: K, seconds: float) -> None:
        """Beat for *key*, every so many seconds, until :meth:`drop`."""
        with self._changed:
            watch = self._watches.setdefault(key, _Watch())
            watch.every = seconds
            watch.next_beat = _now() + watch.every
            self._wake_by(watch.next_beat)

    def expire_at(self, key: K, deadline: float) -> None:
        """Say so when *deadline* (monotonic seconds) has passed, unless :meth:`drop` comes first."""
        with self._changed:
            self._watches.setdefault(key, _Watch()).deadline = deadline
            self._wake_by(deadline)

    def drop(self, key: K) -> None:
        """Forget *key*."""
        with self._changed:
            self._watches.pop(key, None)

    def started(self) -> None:
        """A task started, and the load is to be looked at soon. Costs next to nothing when that is due anyway."""
        now = _now()
        if self._meter is not None and self._asleep_until > now + 2 * FIRST_WINDOW_SECONDS:
            with self._changed:
                self._meter.restart(now)
                self._wake_by(self._meter.due)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wake_by(self, moment: float) -> None:
        if self._thread is None and not self._closed:
            # Not from a pool: a heartbeat must not wait for a thread, and this one lives while anything runs.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        elif moment < self._asleep_until:
            self._changed.notify()

    def _run(self) -> None:
        idle_since: float | None = None

        while True:
            with self._changed:
                now = _now()
                beats, expired, due = self._what_is_due(now)
                look = self._meter is not None and self._meter.due <= now
                if not (beats or expired or look):
                    if due < math.inf:
                        idle_since = None
                    elif idle_since is None:
                        idle_since = now
                    if self._closed or (
                        idle_since is not None and now - idle_since >= LINGER_SECONDS
                    ):
                        self._thread, self._asleep_until = None, math.inf
                        return
                    self._asleep_until = due
                    if self._meter is not None and due == math.inf and self._meter.count()[0]:
                        # It started after the last look, and before `started` could see us asleep.
                        self._meter.restart(now)
                        continue
                    self._changed.wait(min(due - now, LINGER_SECONDS))
                    self._asleep_until = -math.inf
                    continue
            for key in expired:
                self._expire(key)
            for key in beats:
                self._beat(key)
            if look and self._meter is not None:
                self._meter.look(now)

    def _what_is_due(self, now: float) -> tuple[list[K], list[K], float]:
        """Whose heartbeat and whose deadline is due, and when the next thing will be."""
        beats: list[K] = []
        expired: list[K] = []
        due = self._meter.due if self._meter is not None else math.inf

        for key, watch in self._watches.items():
            if watch.deadline <= now:
                watch.deadline = math.inf
                expired.append(key)
            if watch.next_beat <= now:
                watch.next_beat = now + watch.every
                beats.append(key)
            due = min(due, watch.deadline, watch.next_beat)

        return beats, expired, due
