"""The callables that a worker still has. Both sides know them without asking.

A mapped task sends the same callable with every item. A sender that talks to one worker process over one
ordered connection leaves it out once it has been sent: the frame then has only its ``callable_id``. Sender
and worker each keep one :class:`CallableCache` and treat every frame alike, in the order of the connection, so that
both forget the same callables at the same time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from wove.protocol.limits import CALLABLES_KEPT, CALLABLES_KEPT_BYTES

__all__ = ["CallableCache"]

V = TypeVar("V")


class CallableCache(Generic[V]):
    """The most recently used callables, by id.

    The sender, for every ``run_task`` frame::

        if sent.get(callable_id) is None:
            frame["callable_pickle"] = pickled
            sent.put(callable_id, True, pickled.size)

    and the worker keeps what came in the same way. Not thread-safe: one connection, one thread.

    Args:
        count: How many are kept.
        size: How many bytes their pickles may have together. A larger one is never kept.
    """

    def __init__(self, count: int = CALLABLES_KEPT, size: int = CALLABLES_KEPT_BYTES) -> None:
        self._count = count
        self._size = self._room = size
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def get(self, callable_id: str) -> V | None:
        """The one of that id, which becomes the most recently used; ``None`` if it is not there."""
        entry = self._kept.get(callable_id)
        if entry is None:
            return None
        self._kept.move_to_end(callable_id)
        return entry[0]

    def put(self, callable_id: str, value: V, size: int) -> None:
        """Keep *value*, whose pickle has *size* bytes, and forget the oldest ones that are too many."""
        if (old := self._kept.pop(callable_id, None)) is not None:
            self._room += old[1]
        if size > self._size:
            return
        self._kept[callable_id] = (value, size)
        self._room -= size
        while self._room < 0 or len(self._kept) > self._count:
            _, (_, freed) = self._kept.popitem(last=False)
            self._room += freed

    def __len__(self) -> int:
        return len(self._kept)
