"""Where records are kept: the contract, a folder with a file for each, and a store of the user's own."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from wove.errors import CacheError

__all__ = [
    "DirectoryStore",
    "FileStore",
    "KeptTask",
    "ObjectStore",
    "ResultStore",
    "Row",
    "Store",
    "open_store",
    "publish",
]


class Row(NamedTuple):
    """One record on its way into a store.

    Attributes:
        key: The key of the result.
        task: The name of the task, for people.
        record: What is kept.
    """

    key: bytes
    task: str
    record: bytes


class KeptTask(NamedTuple):
    """The entry of a store for one task.

    Attributes:
        task: The task's name.
        results: The number of results.
        bytes: Their size.
        newest: When the last one was written, in seconds since 1970.
    """

    task: str
    results: int
    bytes: int
    newest: float


@runtime_checkable
class ResultStore(Protocol):
    """A store of the user's own. Its methods are called from several threads, also at the same time.

    A key is text of letters, digits, ``_``, ``-`` and one ``/``; a record is bytes, and is handed back as it came.
    """

    def get(self, key: str) -> bytes | None:
        """Return the record under *key*, or ``None``."""

    def put(self, key: str, record: bytes) -> object:
        """Keep *record* under *key*, in the place of any other."""

    def delete(self, key: str) -> object:
        """Drop the record under *key*, if there is one."""


class Store:
    """The contract of stores inside Wove: `ResultStore` for many records at once.

    Attributes:
        label: How messages name it.
    """

    label: str

    def get_many(self, task: str, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return the records that there are under *keys* of *task*."""
        raise NotImplementedError

    def put_many(self, rows: Sequence[Row]) -> None:
        """Keep *rows*: all that come after a crash of the process are there."""
        raise NotImplementedError

    def delete_many(self, task: str, keys: Iterable[bytes]) -> None:
        """Drop the records under *keys* of *task*."""
        raise NotImplementedError

    def acquire(self) -> None:
        """Use the store from now on, until `release` is called as often."""

    def release(self) -> None:
        """Close what is open, once nobody uses the store."""


class FileStore(Store):
    """A store in the file system, which the command line can look into.

    Args:
        path: Where it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.label = str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.path),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def get(self, key: str) -> bytes | None:
        """As `ResultStore.get`."""
        task, name = _parts(key)
        return self.get_many(task, [name]).get(name)

    def put(self, key: str, record: bytes) -> None:
        """As `ResultStore.put`."""
        task, name = _parts(key)
        self.put_many([Row(name, task, record)])

    def delete(self, key: str) -> None:
        """As `ResultStore.delete`."""
        task, name = _parts(key)
        self.delete_many(task, [name])

    def tasks(self) -> list[KeptTask]:
        """Return what there is of each task, by name."""
        raise NotImplementedError

    def remove(self, tasks: Sequence[str] | None, older_than: float) -> int:
        """Remove results.

        Args:
            tasks: The names of the tasks; ``None`` for all.
            older_than: Only those written before this time, in seconds since 1970.

        Returns:
            The number of results that were removed.
        """
        raise NotImplementedError

    def rows(self) -> Iterable[Row]:
        """Return all records, as they are: their signatures are not checked."""
        raise NotImplementedError


class ObjectStore(Store):
    """A store of the user's own, in the place of one of ours."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self.label = f"the store {store!r:.80}"

    def get_many(self, task: str, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        found = {key: self._store.get(_name(task, key)) for key in keys}
        return {key: bytes(record) for key, record in found.items() if record is not None}

    def put_many(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._store.put(_name(row.task, row.key), row.record)

    def delete_many(self, task: str, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._store.delete(_name(task, key))


def _name(task: str, key: bytes) -> str:
    """Return a key as text: it fits in a file name and in an address."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in task)
    return f"{safe or '_'}/{key.hex()}"


def _parts(key: str) -> tuple[str, bytes]:
    task, _, name = key.rpartition("/")
    return task, bytes.fromhex(name)


SUFFIX: Final = ".result"


class DirectoryStore(FileStore):
    """Keeps each result in a file of its own: ``TASK/KEY.result``.

    For network file systems, on which SQLite cannot lock, and for results of many megabytes. A file is written under
    another name and then renamed, so that a reader finds a whole one or none.

    Args:
        path: The folder; it is made when it is first written to.

    Example:
        >>> DirectoryStore("runs")
        DirectoryStore('runs')
    """

    def get_many(self, task: str, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                found[key] = self._file(task, key).read_bytes()
        return found

    def put_many(self, rows: Sequence[Row]) -> None:
        for row in rows:
            file = self._file(row.task, row.key)
            file.parent.mkdir(parents=True, exist_ok=True)
            # The name belongs to this one thread, whatever other threads, processes and hosts write.
            made = file.with_name(f"{file.name}.{threading.get_ident():x}.{secrets.token_hex(8)}")
            try:
                made.write_bytes(row.record)
                made.replace(file)
            except BaseException:
                made.unlink(missing_ok=True)
                raise

    def delete_many(self, task: str, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._file(task, key).unlink(missing_ok=True)

    def _file(self, task: str, key: bytes) -> Path:
        return self.path / f"{_name(task, key)}{SUFFIX}"

    def _files(self) -> Iterable[tuple[str, Path]]:
        if not self.path.is_dir():
            raise CacheError(f"{self.label}: there is no folder of that name")
        for file in sorted(self.path.glob(f"*/*{SUFFIX}")):
            yield file.parent.name, file

    def tasks(self) -> list[KeptTask]:
        kept: dict[str, KeptTask] = {}
        for task, file in self._files():
            status = file.stat()
            one = kept.get(task, KeptTask(task, 0, 0, 0.0))
            kept[task] = KeptTask(
                task,
                one.results + 1,
                one.bytes + status.st_size,
                max(one.newest, status.st_mtime),
            )
        return list(kept.values())

    def remove(self, tasks: Sequence[str] | None, older_than: float) -> int:
        count = 0
        for task, file in self._files():
            if (tasks is None or task in tasks) and file.stat().st_mtime < older_than:
                file.unlink(missing_ok=True)
                count += 1
        return count

    def rows(self) -> Iterable[Row]:
        for task, file in self._files():
            yield Row(bytes.fromhex(file.name.removesuffix(SUFFIX)), task, file.read_bytes())


def open_store(store: Any) -> Store:
    """Return the store of ``weave(store=...)``: a path, one of ours, or an object of the user's own."""
    if isinstance(store, Store):
        return store
    if isinstance(store, str):
        from wove.cache.sqlite import SQLiteStore  # here, because other stores do without

        return SQLiteStore(store)
    return ObjectStore(store)


def publish(made: Path, path: Path) -> None:
    """Give the file *made* the name *path*, unless there is a file of that name. *made* may remain."""
    try:
        os.link(made, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            made.replace(path)
