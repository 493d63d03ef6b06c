"""The usual store: one SQLite file, for any number of threads and processes of one machine at once.

The file is in write-ahead mode, in which a reader waits for nobody and a writer for other writers only. One connection
reads and another one writes, each under a lock of its own. Who wrote a record is checked above this, by its signature;
here it is checked that the file is a database of this very layout, before anything is read from it or written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from wove.cache.stores import FileStore, KeptTask, Row, publish
from wove.concurrency import forks
from wove.errors import CacheError, MissingDependencyError

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["SQLiteStore"]

T = TypeVar("T")

FILE_NAME: Final = "results.sqlite"
"""The name of the file where the path is a folder."""

FILE_SUFFIXES: Final = frozenset({".sqlite", ".sqlite3", ".db"})
"""A path that ends so is that of the file itself, also before there is one."""

APPLICATION_ID: Final = 0x574F5645
"""``WOVE``: in the file's header, so that it is known whose it is."""

LAYOUT: Final = 1
"""The version of the table, as SQLite's ``user_version``."""

BUSY_SECONDS: Final = 30.0
"""How long a writer waits for those of other processes."""

HEADER: Final = b"SQLite format 3\x00"

MAX_PARAMETERS: Final = 256
"""Keys in one query. Each count needs a statement of its own, which SQLite prepares once."""

_TABLE: Final = (
    "CREATE TABLE results "
    "(key BLOB PRIMARY KEY, task TEXT NOT NULL, written REAL NOT NULL, record BLOB NOT NULL)"
)


class SQLiteStore(FileStore):
    """Keeps results in one SQLite file.

    Args:
        path: The file, if there is one of that name or its name ends in ``.sqlite``, ``.sqlite3`` or ``.db``; otherwise
            a folder, and the file in it is ``results.sqlite``. Both are made when they are first used.

    Example:
        >>> SQLiteStore("runs")
        SQLiteStore('runs/results.sqlite')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        if place.suffix not in FILE_SUFFIXES and not place.is_file():
            place /= FILE_NAME
        super().__init__(place)
        self._users = 0
        self._reset_locks()
        _stores.add(self)

    def _reset_locks(self) -> None:
        self._opening = threading.Lock()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._reader: Connection | None = None
        self._writer: Connection | None = None

    def reset_after_fork(self) -> None:
        """Leave the connections to the parent: to close one here could take its locks away."""
        _parents.extend(c for c in (self._reader, self._writer) if c is not None)
        self._reset_locks()

    # --- records

    def get_many(self, task: str, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with self._in_use(), self._errors_named(), self._reading:
            reader = self._open()[0]
            for start in range(0, len(keys), MAX_PARAMETERS):
                some = keys[start : start + MAX_PARAMETERS]
                found.update(reader.execute(_select(len(some)), some).fetchall())
        return found

    def put_many(self, rows: Sequence[Row]) -> None:
        written = time.time()
        values = [(row.key, row.task, written, row.record) for row in rows]
        self._write(
            lambda writer: writer.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", values
            )
        )

    def delete_many(self, task: str, keys: Iterable[bytes]) -> None:
        values = [(key,) for key in keys]
        self._write(lambda writer: writer.executemany("DELETE FROM results WHERE key = ?", values))

    def _write(self, change: Callable[[Connection], T]) -> T:
        with self._in_use(), self._errors_named(), self._writing:
            writer = self._open()[1]
            writer.execute("BEGIN IMMEDIATE")
            try:
                outcome = change(writer)
                writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(Exception):  # where SQLite has rolled back by itself
                    writer.execute("ROLLBACK")
                raise
            return outcome

    # --- for the command line

    def tasks(self) -> list[KeptTask]:
        query = (
            "SELECT task, count(*), sum(length(record)), max(written) FROM results GROUP BY task"
        )
        with self._looked_into() as reader:
            return [KeptTask(*row) for row in reader.execute(query)]

    def remove(self, tasks: Sequence[str] | None, older_than: float) -> int:
        where, values = "written < ?", [older_than, *(tasks or ())]
        if tasks is not None:
            where += f" AND task IN ({', '.join('?' * len(tasks))})"
        with self._looked_into():
            count = self._write(
                lambda writer: writer.execute(f"DELETE FROM results WHERE {where}", values).rowcount
            )
            with self._errors_named(), self._writing:
                self._open()[1].execute("VACUUM")
        return count

    def rows(self) -> Iterable[Row]:
        with self._looked_into() as reader:
            for row in reader.execute("SELECT key, task, record FROM results"):
                yield Row(*row)

    @contextlib.contextmanager
    def _looked_into(self) -> Generator[Connection]:
        """Open a file that must exist."""
        if not self.path.is_file():
            raise CacheError(f"{self.label}: there is no file of that name")
        self.acquire()
        try:
            with self._errors_named():
                yield self._open()[0]
        finally:
            self.release()

    # --- the file

    @contextlib.contextmanager
    def _in_use(self) -> Generator[None]:
        """Close the file afterwards, unless somebody else uses the store, too."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        with self._opening:
            self._users += 1

    def release(self) -> None:
        with self._opening:
            self._users -= 1
            if self._users:
                return
            with self._reading, self._writing:
                for connection in (self._reader, self._writer):
                    if connection is not None:
                        connection.close()
                self._reader = self._writer = None

    def _open(self) -> tuple[Connection, Connection]:
        """Return the connections that read and write."""
        with self._opening:
            if self._reader is None or self._writer is None:
                if not self._has_header():
                    self._make()
                reader = self._connect(self.path)
                try:
                    self._check_layout(reader)
                    self._writer = self._connect(self.path)
                except BaseException:
                    reader.close()
                    raise
                self._reader = reader
            return self._reader, self._writer

    def _connect(self, path: Path) -> Connection:
        sqlite3 = _sqlite3()
        # The threads take turns; without `isolation_level` no transaction begins unless it is said here.
        connection: Connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            # With a write-ahead log, a commit survives the end of the process; a power failure may undo it.
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _has_header(self) -> bool:
        """Return whether there is a SQLite file; refuse another one."""
        try:
            with self.path.open("rb") as file:
                begin = file.read(len(HEADER))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CacheError(f"{self.label}: cannot be read: {error}") from error
        if begin != HEADER:
            raise CacheError(f"{self.label}: not a SQLite file. It was left as it is")
        return True

    def _make(self) -> None:
        """Make the file with all that is in a new one, unless another process does so first.

        It is made under another name: several processes cannot begin a write-ahead log of one file together.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = self.path.with_name(f"{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}")

        try:
            writer = self._connect(made)
            try:
                writer.execute("PRAGMA journal_mode = WAL")
                writer.execute(_TABLE)
                writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                writer.execute(f"PRAGMA user_version = {LAYOUT}")
            finally:
                writer.close()
            publish(made, self.path)
        finally:
            made.unlink(missing_ok=True)

    def _check_layout(self, connection: Connection) -> None:
        """Refuse a file in which there is something else than our table."""
        layout = self._layout(connection)
        if layout == (APPLICATION_ID, LAYOUT, [("table", "results", _TABLE)]):
            return
        if layout[0] == APPLICATION_ID:
            raise CacheError(
                f"{self.label}: a store of results of another version of Wove, or a damaged one. It was left as it "
                f"is; use another path"
            )
        raise CacheError(
            f"{self.label}: a SQLite file of another program, not a store of results. It was left as it is"
        )

    def _layout(self, connection: Connection) -> tuple[int, int, list[Any]]:
        """Return what the file says it is."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        made = connection.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        ).fetchall()
        return application, version, made

    @contextlib.contextmanager
    def _errors_named(self) -> Generator[None]:
        """Have every error of SQLite's name the file."""
        sqlite3 = _sqlite3()
        try:
            yield
        except sqlite3.Error as error:
            raise CacheError(f"{self.label}: {error}") from error


def _select(count: int) -> str:
    statement = _selects.get(count)
    if statement is None:
        statement = _selects[count] = (
            f"SELECT key, record FROM results WHERE key IN ({', '.join('?' * count)})"
        )
    return statement


_selects: Final[dict[int, str]] = {}


def _sqlite3() -> Any:
    try:
        import sqlite3
    except ImportError as error:
        raise MissingDependencyError(
            f"this Python was built without SQLite ({error}): use wove.cache.DirectoryStore as the store"
        ) from None
    return sqlite3


# --- forks ------------------------------------------------------------------------------------------------

_stores: Final[weakref.WeakSet[SQLiteStore]] = weakref.WeakSet()
_parents: Final[list[Connection]] = []
"""Connections of the parent of this process."""


def _reset_after_fork() -> None:
    for store in list(_stores):
        store.reset_after_fork()


forks.after_in_child(forks.Phase.CLIENTS, _reset_after_fork)
