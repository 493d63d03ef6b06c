"""Which worker process gets the next run. Pure: no clock, no I/O.

A process starts with one run at a time, so that runs that compute have a core each. Two things raise that:

* Short runs: some more wait in the process already, as much as it does in a few milliseconds, so that it
  never idles while the answer travels.
* Waiting runs: a worker says when none of its runs computes (they sleep, or wait for a network); then it
  gets twice as many. And when nothing at all starts or ends for a while, every process gets one more: a
  run may be waiting for another one that has not started.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["WorkerLoad", "choose"]

AHEAD_SECONDS: Final = 0.005
"""How much work waits in a process beforehand."""

MAX_AHEAD: Final = 64
"""Maximum number of runs that wait in a process beforehand."""

MAX_AT_ONCE: Final = 1024
"""Maximum number of runs in one process at once, each of which may take a thread there."""

BACKLOG_BYTES: Final = 256 * 1024
"""With more than this still to be written to it, a process gets nothing beforehand."""


@dataclass(slots=True, eq=False)
class WorkerLoad:
    """The load of one process.

    Attributes:
        limit: How many runs may be at once in it; ``None`` for any number.
        extra: How many more, until something moves again.
        load: How many are in it that count: runs that were cancelled do not.
        ahead: How many more wait in it.
        pace: Seconds from the end of one run to the end of the next, on average; ``None`` if not known.
        marked_at: When the last run ended, or the first came after a pause.
    """

    limit: int | None = 1
    extra: int = 0
    load: int = 0
    ahead: int = 0
    pace: float | None = None
    marked_at: float = field(default=0.0)

    def free(self, backlog: int) -> int:
        """Return how many more runs it can take, with *backlog* bytes still to be written to it."""
        if self.limit is None:
            return MAX_AT_ONCE
        ahead = self.ahead if backlog < BACKLOG_BYTES else 0
        return max(0, min(self.limit + self.extra + ahead, MAX_AT_ONCE) - self.load)

    def assigned(self, now: float) -> None:
        """Note that it got a run."""
        if self.load == 0:
            self.marked_at = now
        self.load += 1

    def finished(self, count: int, now: float) -> None:
        """Note that *count* of its runs have ended, as was seen at *now* (seconds)."""
        self.load = max(0, self.load - count)
        self.extra = 0
        pace = max(0.0, now - self.marked_at) / count
        self.marked_at = now
        if self.pace is None or pace > self.pace:
            self.pace = pace  # slower than it was: believed at once
        else:
            self.pace = 0.5 * self.pace + 0.5 * pace

        fitting = int(AHEAD_SECONDS / self.pace) if self.pace > 0 else MAX_AHEAD
        self.ahead = min(fitting, MAX_AHEAD, 2 * self.ahead + 2)

    def idle(self) -> None:
        """Forget what was learned about runs that wait: no process has anything to do."""
        if self.limit is not None and self.load == 0:
            self.limit = 1

    def waits(self) -> bool:
        """Note that none of its runs computes, and return whether it may have more because of that."""
        if self.limit is None or self.load < self.limit or self.limit >= MAX_AT_ONCE:
            return False
        self.limit = min(2 * self.limit, MAX_AT_ONCE)
        return True

    def stagnates(self) -> None:
        """Make room for one more run, because nothing has moved for a while."""
        self.extra = min(self.extra + 1, MAX_AT_ONCE)


def choose(free: list[int], load: list[int], count: int) -> list[int]:
    """Return which process gets each of the next *count* runs: the least loaded first.

    Args:
        free: How many more each can take.
        load: How many each has.
        count: How many runs there are to give.

    Returns:
        Positions in *free*, in order; fewer than *count* if there is less room.
    """
    free, load = list(free), list(load)
    chosen: list[int] = []
    while len(chosen) < count:
        best = -1
        for index, room in enumerate(free):
            if room > 0 and (best < 0 or load[index] < load[best]):
                best = index
        if best < 0:
            break
        free[best] -= 1
        load[best] += 1
        chosen.append(best)

    return chosen
