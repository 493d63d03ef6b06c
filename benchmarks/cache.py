"""Kept results: what a hit and a miss cost beside the same rows in SQLite by hand."""

from __future__ import annotations

import itertools
import os
import pickle
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wove import weave
from wove.cache.records import HEAD_BYTES, SECRET_VARIABLE

from .harness import Figure, Target, benchmark, timed

ITEMS = [{"id": number, "name": f"item {number}"} for number in range(5_000)]

WITH_LOG = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"


def weave_threads(store: Path | None) -> Any:
    with weave(store=store) as w:

        @w.do(ITEMS, workers=8, cache=store is not None)
        def same(item: dict[str, Any]) -> dict[str, Any]:
            return item

    return w.result.same


def weave_loop(store: Path | None) -> Any:
    with weave(store=store) as w:

        @w.do(ITEMS, workers=8, cache=store is not None)
        async def same(item: dict[str, Any]) -> dict[str, Any]:
            return item

    return w.result.same


def read_by_hand(path: Path, keys: list[bytes]) -> list[Any]:
    """Each row by its key, as a program does that has one item at a time."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        found = []
        for key in keys:
            row = connection.execute("SELECT record FROM results WHERE key = ?", (key,)).fetchone()
            found.append(pickle.loads(row[0][HEAD_BYTES:]))
        return found
    finally:
        connection.close()


def write_by_hand(path: Path, results: list[Any], keys: list[bytes]) -> None:
    """Each row committed by itself: so that it is there if the next item ends the process."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(WITH_LOG)
        connection.execute("CREATE TABLE results (key BLOB PRIMARY KEY, record BLOB NOT NULL)")
        for key, value in zip(keys, results, strict=True):
            connection.execute("INSERT INTO results VALUES (?, ?)", (key, pickle.dumps(value, 5)))
    finally:
        connection.close()


@benchmark("cache")
def kept() -> Iterator[Figure]:
    """Kept results, beside the same rows in SQLite by hand."""
    os.environ.setdefault(SECRET_VARIABLE, "of the benchmarks")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh = (folder / str(number) for number in itertools.count())

        for label, run in (("in threads", weave_threads), ("on the loop", weave_loop)):
            store = folder / run.__name__
            run(store)
            file = store / "results.sqlite"
            connection = sqlite3.connect(file)
            keys = [row[0] for row in connection.execute("SELECT key FROM results ORDER BY rowid")]
            connection.close()

            yield Figure(
                f"{len(ITEMS):,} items {label}, all kept",
                "wove",
                [
                    timed("wove", lambda: run(store), expect=ITEMS),  # noqa: B023
                    timed("SELECT and unpickle each", lambda: read_by_hand(file, keys)),  # noqa: B023
                ],
                Target(1.5),
            )
            yield Figure(
                f"{len(ITEMS):,} items {label}, none kept",
                "wove",
                [
                    timed("wove", lambda: run(next(fresh)), expect=ITEMS),  # noqa: B023
                    timed(
                        "without cache, and INSERT each",
                        lambda: write_by_hand(next(fresh), run(None), keys),  # noqa: B023
                    ),
                ],
                Target(1.2),
            )
