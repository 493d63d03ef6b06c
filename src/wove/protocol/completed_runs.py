"""The results of runs with an idempotency key, in case the same run is sent again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

from wove.protocol.pickling import Pickled

__all__ = ["CompletedRuns", "Key", "bulk"]

Key: TypeAlias = tuple[str, str, str]
"""The sender, the task, and the idempotency key."""

OVERHEAD_BYTES = 1024
"""Number of bytes that an entry counts beside its pickle: empty results take memory, too."""


class CompletedRuns:
    """Keeps terminal events, bounded in number, bytes and time. It reads no clock.

    Args:
        runs: Maximum number of events.
        size: Maximum number of bytes of all their pickles. A larger event is not kept.
        seconds: How long an event is kept.
    """

    def __init__(self, *, runs: int, size: int, seconds: float) -> None:
        self._runs = runs
        self._size = self._room = size
        self._seconds = seconds
        self._kept: OrderedDict[Key, tuple[dict[str, Any], int, float]] = OrderedDict()

    def get(self, key: Key, now: float) -> dict[str, Any] | None:
        """Return the event of *key*, if it is still kept at *now* (in seconds, of any clock that never goes back)."""
        self._expire(now)
        entry = self._kept.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Key, event: dict[str, Any], now: float) -> None:
        """Keep *event*, and drop the oldest events beyond the limits."""
        self._expire(now)
        self.drop(key)
        size = bulk(event) + OVERHEAD_BYTES
        if size > self._size or not self._runs:
            return
        self._kept[key] = (event, size, now + self._seconds)
        self._room -= size
        while self._room < 0 or len(self._kept) > self._runs:
            self.drop(next(iter(self._kept)))

    def __len__(self) -> int:
        return len(self._kept)

    def drop(self, key: Key) -> None:
        """Forget the event of *key*, if it is remembered."""
        entry = self._kept.pop(key, None)
        if entry is not None:
            self._room += entry[1]

    def _expire(self, now: float) -> None:
        # The order of their arrival is that of their expiry.
        while self._kept and next(iter(self._kept.values()))[2] <= now:
            self.drop(next(iter(self._kept)))


def bulk(frame: Mapping[str, Any]) -> int:
    """Return the number of bytes of the pickles in *frame*."""
    size = 0
    for value in frame.values():
        if isinstance(value, Pickled):
            size += value.size
    return size
