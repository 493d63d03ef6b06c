"""The keys of one task's results.

A key is a hash of the task's name, its code (`fingerprint`), ``cache_version``, and the arguments. Those that all items
of a map share come first, once, and the item last. ``cache_key`` stands in the place of all values: of arguments,
defaults and the variables of closures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from wove.cache.canonical import canonical_bytes
from wove.cache.fingerprint import DIGEST_BYTES, Fingerprint
from wove.errors import SerializationError
from wove.graph.templates import render

if TYPE_CHECKING:
    from types import FunctionType

    from wove.graph.rules import IdempotencyKey

__all__ = ["TaskKeys"]

FORMAT = b"wove-result-1"
"""Another one makes all keys anew."""


class TaskKeys:
    """Makes the keys of one task, for one set of arguments.

    Args:
        fn: The task's callable.
        task: Its name.
        arguments: By name, without a map's item.
        item: The name of the parameter that receives the item; ``None`` for a task that is not mapped.
        cache_key: What tells its results apart; ``None`` for the arguments themselves.
        cache_version: A part of every key.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        task: str,
        arguments: Mapping[str, Any],
        item: str | None,
        cache_key: IdempotencyKey | None,
        cache_version: str | None,
    ) -> None:
        self._fn = fn
        self._label = f"task {task!r}"
        self._task = task
        self._arguments = arguments
        self._item = item
        self._cache_key = cache_key
        self._version = cache_version

    def key(self) -> bytes:
        """Return the key of the result of a task that is not mapped. Errors as `key_of_item`."""
        hashed = self._shared.copy()
        if self._cache_key is not None:
            hashed.update(self._rendered(self._arguments))
        return hashed.digest()

    def key_of_item(self, item: object) -> bytes:
        """Return the key of the result of *item*.

        Raises:
            SerializationError: A value cannot be pickled; the message names it.
            ValueError, TypeError: ``cache_key`` is wrong for these arguments.
        """
        hashed = self._shared.copy()
        if self._cache_key is not None:
            hashed.update(self._rendered({**self._arguments, self._item or "item": item}))
        else:
            hashed.update(self._encoded("the item", item))
        return hashed.digest()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The code."""
        return Fingerprint(self._fn, self._label, values=self._cache_key is None)

    @cached_property
    def _shared(self) -> blake2b:
        """The hash of all that is not an item's own."""
        hashed = blake2b(digest_size=DIGEST_BYTES)
        version = b"" if self._version is None else self._version.encode()
        parts = [FORMAT, self._task.encode(), self.fingerprint.digest, version]

        if self._cache_key is None:
            for name in sorted(self._arguments):
                label = f"the argument {name!r}"
                parts += [name.encode(), self._encoded(label, self._arguments[name])]
        for part in parts:
            hashed.update(len(part).to_bytes(8, "big"))
            hashed.update(part)

        hashed.update(b"item" if self._item is not None else b"task")
        return hashed

    def _rendered(self, arguments: Mapping[str, Any]) -> bytes:
        assert self._cache_key is not None
        return render(self._cache_key, arguments, self._label, "cache_key").encode()

    def _encoded(self, label: str, value: object) -> bytes:
        try:
            return canonical_bytes(value, self._code_of)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"{self._label} has cache=True, and {label} cannot be part of a key: {error}. Say with cache_key "
                f"what tells the results apart"
            ) from error

    def _code_of(self, function: FunctionType) -> bytes:
        return Fingerprint(function, self._label).digest
