"""Stores: one contract for all of them, and what each one refuses."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.scripts import Finished

from wove.cache import DirectoryStore, ResultStore, SQLiteStore
from wove.cache.stores import ObjectStore, Row, Store, open_store
from wove.errors import CacheError


class InMemory:
    """What a user writes."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.records.get(key)

    def put(self, key: str, record: bytes) -> None:
        self.records[key] = record

    def delete(self, key: str) -> None:
        self.records.pop(key, None)


STORES: dict[str, Callable[[Path], Store]] = {
    "sqlite": lambda path: SQLiteStore(path),
    "directory": lambda path: DirectoryStore(path),
    "object": lambda path: ObjectStore(InMemory()),
}


@pytest.mark.parametrize("name", STORES)
def test_the_contract(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path / "made" / "runs")
    keys = [os.urandom(20) for _ in range(300)]
    store.acquire()
    try:
        assert store.get_many("t", keys) == {}
        store.put_many([Row(key, "t", key * 2) for key in keys])
        assert store.get_many("t", [*keys, b"x" * 20]) == {key: key * 2 for key in keys}
        store.put_many([Row(keys[0], "t", b"new")])
        assert store.get_many("t", keys[:1]) == {keys[0]: b"new"}
        store.delete_many("t", keys[:2])
        assert store.get_many("t", keys[:3]) == {keys[2]: keys[2] * 2}
    finally:
        store.release()


@pytest.mark.parametrize("name", ["sqlite", "directory"])
def test_each_of_ours_is_what_a_user_may_write(name: str, tmp_path: Path) -> None:
    store: object = STORES[name](tmp_path)
    assert isinstance(store, ResultStore)
    key = f"task/{b'k'.hex()}"
    assert store.get(key) is None
    store.put(key, b"record")
    assert store.get(key) == b"record"
    store.delete(key)
    assert store.get(key) is None
    if isinstance(store, Store):
        store.acquire()
        store.release()


@pytest.mark.parametrize("kind", [SQLiteStore, DirectoryStore])
def test_what_the_command_line_needs(
    kind: type[SQLiteStore] | type[DirectoryStore], tmp_path: Path
) -> None:
    store = kind(tmp_path / "runs")
    rows = [Row(bytes([n]) * 20, "even" if n % 2 == 0 else "odd", b"1234") for n in range(5)]
    store.put_many(rows)
    assert [(one.task, one.results, one.bytes) for one in store.tasks()] == [
        ("even", 3, 12),
        ("odd", 2, 8),
    ]
    assert sorted(store.rows()) == sorted(rows)
    newest = max(one.newest for one in store.tasks())
    assert store.remove(["odd"], newest - 60) == 0
    assert store.remove(["odd"], newest + 60) == 2
    assert store.remove(None, newest + 60) == 3
    assert store.tasks() == []
    with pytest.raises(CacheError, match="there is no f"):
        kind(tmp_path / "elsewhere").tasks()
    assert not (tmp_path / "elsewhere").exists()


def test_which_store_a_path_or_an_object_is(tmp_path: Path) -> None:
    assert open_store(str(tmp_path / "runs")).label == str(tmp_path / "runs" / "results.sqlite")
    assert open_store(str(tmp_path / "a.db")).label == str(tmp_path / "a.db")
    own = InMemory()
    assert isinstance(own, ResultStore)
    assert "InMemory" in open_store(own).label
    store = pickle.loads(pickle.dumps(SQLiteStore(tmp_path / "runs")))
    assert store.label == str(tmp_path / "runs" / "results.sqlite")


# --- SQLite


def test_release_closes_the_file_and_use_opens_it_again(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    store.acquire()
    store.put_many([Row(b"k", "t", b"r")])
    assert (tmp_path / "results.sqlite-wal").exists()
    store.release()
    assert os.listdir(tmp_path) == ["results.sqlite"]
    store.acquire()
    assert store.get_many("t", [b"k"]) == {b"k": b"r"}
    store.release()


def _other_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE results (key BLOB PRIMARY KEY, record BLOB)")
    connection.commit()
    connection.close()


def _with_a_trigger(path: Path) -> None:
    store = SQLiteStore(path)
    store.acquire()
    store.put_many([])
    store.release()
    connection = sqlite3.connect(path)
    connection.execute("CREATE VIEW more AS SELECT key FROM results")
    connection.commit()
    connection.close()


def _cut_short(path: Path) -> None:
    store = SQLiteStore(path)
    store.acquire()
    store.put_many([Row(os.urandom(20), "t", os.urandom(20_000)) for _ in range(20)])
    store.release()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("hello"), "not a SQLite file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (_other_program, "a SQLite file of another program"),
        (_with_a_trigger, "another version of Wove, or a damaged one"),
        (_cut_short, "malformed|damaged|disk image"),
    ],
)
def test_a_foreign_or_broken_file_is_refused_by_name_and_left_alone(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    store = SQLiteStore(path)
    store.acquire()
    with pytest.raises(CacheError, match=message) as caught:
        store.get_many("t", [os.urandom(20)])
        list(store.rows())
    store.release()
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


TOGETHER = """
import os
from wove.cache import SQLiteStore
from wove.cache.stores import Row

ready, go = os.pipe()
children = []
for number in range(4):
    children.append(os.fork())
    if not children[-1]:
        os.read(ready, 1)
        store = SQLiteStore("runs")
        store.acquire()
        for i in range(20):
            store.put_many([Row(f"{number}-{i}".encode(), "t", b"r")])
        store.release()
        os._exit(0)
os.write(go, b"1234")
print([os.waitpid(child, 0)[1] for child in children])
print([(one.task, one.results) for one in SQLiteStore("runs").tasks()], os.listdir("runs"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_several_processes_make_and_fill_one_file(script: Callable[..., Finished]) -> None:
    assert script(TOGETHER).stdout.splitlines() == [
        "[0, 0, 0, 0]",
        "[('t', 80)] ['results.sqlite']",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    store.acquire()
    store.put_many([Row(b"parent", "t", b"r")])
    child = os.fork()
    if not child:
        store.put_many([Row(b"child", "t", b"r")])
        os._exit(0 if len(store.get_many("t", [b"parent", b"child"])) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(store.get_many("t", [b"parent", b"child"])) == 2
    store.release()


# --- a folder


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    store.put_many([Row(b"k", "t", b"old")])

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        store.put_many([Row(b"k", "t", b"new")])
    monkeypatch.undo()
    assert store.get_many("t", [b"k"]) == {b"k": b"old"}
    assert len(os.listdir(tmp_path / "t")) == 1
