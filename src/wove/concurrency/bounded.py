"""A dict that forgets."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dict with at most *maximum* keys: one more drops the key that was inserted first.

    A key that is set again keeps its place.

    Args:
        maximum: At least 1.
    """

    # An OrderedDict and not a dict: a dict takes linear time to find its first key after many deletions there.

    def __init__(self, maximum: int) -> None:
        super().__init__()
        self.maximum = maximum

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self.maximum:
            self.popitem(last=False)
