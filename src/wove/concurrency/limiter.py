"""How much of something is in use at once: runs, bytes, requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["CapacityLimiter", "Reservation"]


class Reservation:
    """A place in the queue of a `CapacityLimiter`."""

    __slots__ = ("amount", "granted", "limit")

    def __init__(self, amount: int, limit: int | None, granted: Callable[[], object]) -> None:
        self.amount = amount
        self.limit = limit
        self.granted = granted


class CapacityLimiter:
    """Counts what is in use, and lets callers wait for the rest to come back.

    First come, first served: a caller waits behind those that came before it, so that none starves. An amount
    that is larger than the limit is granted when nothing else is in use. All methods are thread-safe.

    Args:
        limit: The most that is in use at once; ``None``: no limit.

    Attributes:
        in_use: How much is granted now.
    """

    __slots__ = ("_limit", "_lock", "_queue", "in_use")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._queue: deque[Reservation] = deque()
        self.in_use = 0

    def try_acquire(self, amount: int = 1) -> bool:
        """Return whether *amount* is granted at once. If so, give it back with `release`."""
        with self._lock:
            if self._queue or not self._fits(amount, None):
                return False
            self.in_use += amount
            return True

    def acquire(
        self, granted: Callable[[], object], *, amount: int = 1, limit: int | None = None
    ) -> Reservation | None:
        """Acquire *amount*, now or when it is this caller's turn.

        Args:
            granted: Called, from any thread, when an *amount* that did not fit at once has been granted after
                all. It must not block.
            amount: How much.
            limit: The most that may be in use with this caller's *amount*; ``None``: the limit of all.

        Returns:
            ``None`` if *amount* is granted; otherwise the place in the queue, for `withdraw`.
        """
        with self._lock:
            # Without any limit there is nothing to wait for, and others that wait are not passed over.
            unlimited = limit is None and self._limit is None
            if unlimited or (not self._queue and self._fits(amount, limit)):
                self.in_use += amount
                return None
            place = Reservation(amount, limit, granted)
            self._queue.append(place)
            return place

    def acquire_beyond_limit(self, amount: int = 1) -> None:
        """Acquire *amount* at once, whatever the limit: for a caller that had it before, and must not wait."""
        with self._lock:
            self.in_use += amount

    def acquire_again(self, granted: Callable[[], object], amount: int = 1) -> bool:
        """Give *amount* back without granting it to those that wait, and wait for it until others release theirs.

        Args:
            granted: As for `acquire`.
            amount: How much.

        Returns:
            False if nothing else is in use, so that the wait could last for ever. Then *amount* is only given back.
        """
        with self._lock:
            self.in_use -= amount
            if self.in_use:
                self._queue.append(Reservation(amount, None, granted))
            return bool(self.in_use)

    def release(self, amount: int = 1) -> None:
        """Give *amount* back."""
        with self._lock:
            self.in_use -= amount
            admitted = self._admit() if self._queue else ()
        for place in admitted:
            place.granted()

    def withdraw(self, place: Reservation) -> bool:
        """Stop waiting.

        Returns:
            False if the amount has been granted meanwhile; then it must be given back.
        """
        with self._lock:
            try:
                self._queue.remove(place)
            except ValueError:
                return False
            admitted = self._admit()  # the next one may be smaller, or have a higher limit

        for each in admitted:
            each.granted()
        return True

    def resize(self, limit: int | None) -> None:
        """Set another limit for the callers without one of their own, also for those that wait."""
        with self._lock:
            self._limit = limit
            admitted = self._admit()
        for place in admitted:
            place.granted()

    def _fits(self, amount: int, own_limit: int | None) -> bool:
        limit = self._limit if own_limit is None else own_limit
        return limit is None or self.in_use + amount <= limit or not self.in_use

    def _admit(self) -> list[Reservation]:
        admitted: list[Reservation] = []
        while self._queue and self._fits(self._queue[0].amount, self._queue[0].limit):
            place = self._queue.popleft()
            self.in_use += place.amount
            admitted.append(place)
        return admitted
