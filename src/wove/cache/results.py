"""The kept results of one task while it runs: they are looked up by the batch, and written as they come."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from wove.cache.keys import TaskKeys
from wove.cache.records import Seal
from wove.cache.stores import Row, Store
from wove.concurrency.thread_pool import submit

__all__ = ["Found", "TaskResults"]

_log = logging.getLogger("wove")

MAX_UNWRITTEN: Final = 64
"""Results that may wait to be written: as many are computed again after a crash, at most, beside those under way."""

MAX_UNWRITTEN_BYTES: Final = 16 << 20
"""Bytes that may wait to be written. One result of any size may wait alone."""

PROTOCOL: Final = 5


class Found(NamedTuple):
    """The outcome of a lookup.

    Attributes:
        key: The key of the result.
        kept: Whether there is a result.
        value: The result.
    """

    key: bytes
    kept: bool
    value: Any


class TaskResults:
    """The kept results of one task, for one set of arguments. Thread-safe.

    Args:
        task: The task's name.
        keys: Makes its keys.
        store: Where results are kept.

    Attributes:
        taken: How many results came out of the store.
        missing: How many did not.
    """

    def __init__(self, task: str, keys: TaskKeys, store: Store) -> None:
        self._task = task
        self._keys = keys
        self._store = store
        self._seal: Seal | None = None
        self._writer = _Writer(store, f"task {task!r}")
        self._warned: set[str] = set()
        self.taken = 0
        self.missing = 0

    # --- looking up

    def find(self) -> Found:
        """Return the result of a task that is not mapped, if there is one. Takes I/O; errors as `find_items`."""
        return self._find([self._keys.key()])[0]

    def find_items(self, items: Sequence[object]) -> list[Found]:
        """Return the results of *items*, as far as there are any. Takes I/O.

        Raises:
            CacheError: The store is damaged, or not one of ours.
            SerializationError: An item cannot be part of a key.
        """
        return self._find([self._keys.key_of_item(item) for item in items])

    def _find(self, keys: list[bytes]) -> list[Found]:
        records = self._store.get_many(self._task, keys)
        found = [self._load(key, records.get(key)) for key in keys]
        taken = sum(one.kept for one in found)
        self.taken += taken
        self.missing += len(found) - taken
        return found

    def _load(self, key: bytes, record: bytes | None) -> Found:
        if record is None:
            return Found(key, False, None)
        pickled = self._sealed().open(key, record, self._store.label)
        try:
            return Found(key, True, pickle.loads(pickled))
        except Exception as error:
            self._warn(
                f"task {self._task!r}: a kept result does not load ({type(error).__name__}: {error}); "
                "it is computed anew"
            )
            self._store.delete_many(self._task, [key])
            return Found(key, False, None)

    def _sealed(self) -> Seal:
        if self._seal is None:
            self._seal = Seal.of_user()
        return self._seal

    # --- keeping

    def keep(self, key: bytes, value: object) -> None:
        """Have *value* written under *key*. Takes as long as pickling it, and waits where much is unwritten."""
        try:
            pickled = pickle.dumps(value, PROTOCOL)
        except Exception as error:
            self._warn(f"task {self._task!r}: a result cannot be pickled, and is not kept: {error}")
            return
        self._writer.put(Row(key, self._task, self._sealed().close(key, pickled)))

    @property
    def is_full(self) -> bool:
        """Whether `keep` would wait."""
        return self._writer.is_full

    def flush(self) -> None:
        """Return when everything has been written."""
        self._writer.flush()

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning("%s", message)


class _Writer:
    """Writes records in the order in which they come: as many together as came during the last write."""

    def __init__(self, store: Store, label: str) -> None:
        self._store = store
        self._label = label
        self._changed = threading.Condition(threading.Lock())
        self._rows: list[Row] = []
        self._bytes = 0
        self._busy = False
        self._failed = False

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= MAX_UNWRITTEN or self._bytes >= MAX_UNWRITTEN_BYTES

    def put(self, row: Row) -> None:
        with self._changed:
            while self.is_full and not self._failed:
                self._changed.wait()
            if self._failed:
                return
            self._rows.append(row)
            self._bytes += len(row.record)
            if self._busy:
                return
            self._busy = True

        submit(self._write)

    def flush(self) -> None:
        with self._changed:
            while self._busy:
                self._changed.wait()

    def _write(self) -> None:
        while True:
            with self._changed:
                rows, self._rows, self._bytes = self._rows, [], 0
                if not rows:
                    self._busy = False
                self._changed.notify_all()
            if not rows:
                return
            try:
                self._store.put_many(rows)
            except Exception as error:  # of a full disk, for one; the task's own work goes on
                with self._changed:
                    self._failed = True
                _log.error("%s: no more of its results are kept: %s", self._label, error)
