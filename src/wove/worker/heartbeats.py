"""The worker's timer while tasks run: heartbeats, deadlines, and measurements of the load.

One thread does all of it: a task that blocks must not hold up its own heartbeat. The thread exists only while there is
something to watch.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

__all__ = ["HeartbeatTimer", "LoadMeter"]

LINGER_SECONDS: Final = 5.0
"""How long the thread outlives its last run: the next one is often close behind."""

MIN_WINDOW_SECONDS: Final = 0.005
MAX_WINDOW_SECONDS: Final = 0.5
"""Bounds of the time over which the load is measured."""

BLOCKED_BELOW: Final = 0.25
"""Share of one core below which the running tasks are taken to wait."""

REPEAT_SECONDS: Final = 1.0
"""How often it is reported that they still wait."""

_now = time.monotonic

K = TypeVar("K", bound=Hashable)


class LoadMeter:
    """Finds out whether the running tasks compute or wait, by the CPU time that this process gets.

    Each measurement covers the window since the one before. Windows start at 5 ms and double while nothing changes.

    Args:
        count: Returns how many tasks run, and how many were ever started.
        report: Called with the number of running tasks when they all wait: once when that is found, again
            after a task has been started, and every second as long as it stays so.

    Attributes:
        due: When to measure next, in monotonic seconds; infinite while nothing runs.
    """

    def __init__(self, count: Callable[[], tuple[int, int]], report: Callable[[int], None]) -> None:
        self.due = math.inf
        self.count = count
        self._report = report
        self._window = MIN_WINDOW_SECONDS
        self._since: float | None = None
        self._cpu = 0.0
        self._started = -1
        self._reported = (-1, -math.inf)

    def restart(self, now: float) -> None:
        """Measure from *now* on, in short windows again, because a task has started."""
        if self._since is None:
            self._since, self._cpu = now, time.process_time()
        self._window = MIN_WINDOW_SECONDS
        self.due = min(self.due, now + self._window)

    def measure(self, now: float) -> None:
        """Measure the window that ends *now* (monotonic seconds), and report if the tasks waited."""
        running, started = self.count()
        if not running or self._since is None:
            self._since, self.due = None, math.inf
            return

        cpu = time.process_time()
        elapsed, share = now - self._since, (cpu - self._cpu) / max(now - self._since, 1e-9)
        # A late measurement says that the machine or the interpreter lock is busy, not that tasks wait.
        late = elapsed > 2 * self._window + MIN_WINDOW_SECONDS
        changed = started != self._started
        self._since, self._cpu, self._started = now, cpu, started
        self._window = MIN_WINDOW_SECONDS if changed else min(2 * self._window, MAX_WINDOW_SECONDS)
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
    """Calls functions for runs at their time, in a thread of its own. The functions must not raise.

    Args:
        beat: Called when a heartbeat is due.
        expire: Called once when the deadline has passed.
        meter: Measures the load; ``None``: it is not measured.
        name: Name of the thread.
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
        """Call *beat* for *key* every *seconds*, until `drop`."""
        with self._changed:
            watch = self._watches.setdefault(key, _Watch())
            watch.every = seconds
            watch.next_beat = _now() + watch.every
            self._wake_by(watch.next_beat)

    def expire_at(self, key: K, deadline: float) -> None:
        """Call *expire* for *key* when *deadline* (monotonic seconds) has passed, unless `drop` comes first."""
        with self._changed:
            self._watches.setdefault(key, _Watch()).deadline = deadline
            self._wake_by(deadline)

    def drop(self, key: K) -> None:
        """Call nothing more for *key*."""
        with self._changed:
            self._watches.pop(key, None)

    def started(self) -> None:
        """Have the load measured soon, because a task has started. Costs next to nothing when that is due anyway."""
        now = _now()
        if self._meter is not None and self._asleep_until > now + 2 * MIN_WINDOW_SECONDS:
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
                beats, expired, due = self._collect_due(now)
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
                self._meter.measure(now)

    def _collect_due(self, now: float) -> tuple[list[K], list[K], float]:
        """Return the keys whose heartbeat is due, those whose deadline is, and when the next one will be."""
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
