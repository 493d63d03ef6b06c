"""``delivery_max_in_flight``: how many runs of an environment are outside at once, over the whole process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from wove.concurrency import forks

__all__ = ["Gate", "gate"]


class Waiting:
    """A place in the queue of a :class:`Gate`."""

    __slots__ = ("granted", "limit")

    def __init__(self, limit: int, granted: Callable[[], object]) -> None:
        self.limit = limit
        self.granted = granted


class Gate:
    """Counts the runs in flight, and lets those wait that would be too many.

    First come, first served: a run waits behind those that came before it, so none starves. Runs
    without a limit count, for others to see, and never wait. All methods are thread-safe.
    """

    __slots__ = ("_lock", "_queue", "in_flight")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Waiting] = deque()
        self.in_flight = 0

    def enter(self, limit: int | None, granted: Callable[[], object]) -> Waiting | None:
        """Take a slot, or wait for one.

        Args:
            limit: The most runs in flight, this one included; ``None`` for no limit.
            granted: Called, from any thread, when the slot that was not free has been taken for this
                run after all. It must not block.

        Returns:
            ``None`` if the slot is taken, else the place in the queue, for :meth:`withdraw`.
        """
        with self._lock:
            if limit is None or (not self._queue and self.in_flight < limit):
                self.in_flight += 1
                return None
            place = Waiting(limit, granted)
            self._queue.append(place)
            return place

    def leave(self) -> None:
        """Give a slot back."""
        with self._lock:
            self.in_flight -= 1
            if not self._queue:
                return
            admitted = self._admit()
        for place in admitted:
            place.granted()

    def withdraw(self, place: Waiting) -> bool:
        """Stop waiting. False if the slot has been granted meanwhile: then it is to be given back."""
        with self._lock:
            try:
                self._queue.remove(place)
            except ValueError:
                return False
            admitted = self._admit()  # the one behind may have a higher limit
        for next_place in admitted:
            next_place.granted()
        return True

    def _admit(self) -> list[Waiting]:
        admitted: list[Waiting] = []
        while self._queue and self.in_flight < self._queue[0].limit:
            self.in_flight += 1
            admitted.append(self._queue.popleft())
        return admitted


_gates: dict[str, Gate] = {}
_lock = threading.Lock()


def gate(environment: str) -> Gate:
    """The one gate of the environment of that name in this process."""
    found = _gates.get(environment)
    if found is None:
        with _lock:
            found = _gates.setdefault(environment, Gate())
    return found


def reset_after_fork() -> None:
    """A forked child has no runs in flight, and its copy of the lock may be held by nobody."""
    global _gates, _lock
    _gates, _lock = {}, threading.Lock()


forks.after_in_child(forks.Phase.CACHES, reset_after_fork)
