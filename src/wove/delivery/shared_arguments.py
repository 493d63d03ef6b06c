"""Shared arguments of a map: those that are the same object in each item are pickled once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wove.protocol import pickling, signing
from wove.protocol.limits import INLINE_BYTES

if TYPE_CHECKING:
    from wove.protocol.pickling import Pickled

__all__ = ["SharedArguments", "SharedPickle"]

MIN_BYTES: Final = INLINE_BYTES
"""Smaller ones go along with each item: that is simpler, and as fast."""


class SharedPickle(NamedTuple):
    """The pickle of a dict of arguments, and its SHA-256 in hexadecimal."""

    pickled: Pickled
    id: str


class SharedArguments:
    """Finds out what the items of one map share, from the arguments of those that are sent.

    May be used in several threads at once.
    """

    __slots__ = ("_lock", "_pickle", "_values")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] | None = None  # that all items until now had in common
        self._pickle: SharedPickle | None = None

    def split(self, args: dict[str, Any], label: str) -> tuple[dict[str, Any], SharedPickle | None]:
        """Return the arguments that an item has for itself, and the pickle of the others.

        Args:
            args: All arguments of the item.
            label: What they are, for the error: ``"the arguments of item 3 of task 'pdf'"``.

        Returns:
            *args* and ``None`` where the others are small, or not known yet.

        Raises:
            SerializationError: The others cannot be pickled.
        """
        with self._lock:
            values = self._values
            if values is None:
                self._values = dict(args)
                return args, None

            if any(args.get(name) is not value for name, value in values.items()):
                self._pickle = None
                self._values = values = {
                    name: value for name, value in values.items() if args.get(name) is value
                }
            if values and self._pickle is None:
                pickled = pickling.dumps(values, label=label)
                if pickled.size < MIN_BYTES:
                    self._values = values = {}
                else:
                    self._pickle = SharedPickle(pickled, str(signing.digest(pickled.chunks)))
            if self._pickle is None:
                return args, None
            return {name: value for name, value in args.items() if name not in values}, self._pickle
