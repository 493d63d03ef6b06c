"""Weaves whose results are kept: what runs a second time, and what does not."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from wove import CacheError, Weave, merge, weave
from wove.cache import DirectoryStore
from wove.cache.records import Seal
from wove.cache.stores import Row

# Functions of tests that run twice are made anew each time, and their code is the same.
ran: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


def note(value: Any) -> None:
    ran.append(value)


def test_tasks_and_items_run_once(tmp_path: Path) -> None:
    def run(factor: int) -> Any:
        with weave(store=tmp_path, factor=factor) as w:

            @w.do(cache=True)
            def numbers(factor: int) -> list[int]:
                note("numbers")
                return [n * factor for n in range(5)]

            @w.do("numbers", cache=True, workers=2)
            def doubled(number: int) -> int:
                note(number)
                return number * 2

            @w.do("numbers", cache=True)
            async def tripled(number: int, factor: int) -> int:
                note(-number)
                return number * 3

            @w.do
            def plain(doubled: list[int]) -> int:
                note("plain")
                return sum(doubled)

        return w.result

    first = run(1)
    assert len(ran) == 12
    ran.clear()
    second = run(1)
    assert ran == ["plain"]
    assert list(first) == list(second)
    ran.clear()
    other = run(2)
    # Items that were there before are not computed again, unless an argument beside them has changed.
    assert sorted(n for n in ran if isinstance(n, int) and n > 0) == [6, 8]
    assert sorted(n for n in ran if isinstance(n, int) and n <= 0) == [-8, -6, -4, -2, 0]
    assert other.tripled == [0, 6, 12, 18, 24]


@pytest.mark.parametrize("source", ["list", "generator", "async", "task"])
@pytest.mark.parametrize("kind", ["sync", "async", "retried"])
def test_items_of_every_source_and_kind(source: str, kind: str, tmp_path: Path) -> None:
    async def counted() -> AsyncIterator[int]:
        for n in range(300):
            yield n

    def run(wrong: frozenset[int]) -> Any:
        with weave(store=tmp_path, error_mode="return") as w:

            @w.do
            def listed() -> Iterator[int]:
                yield from range(300)

            sources: dict[str, Any] = {
                "list": list(range(300)),
                "generator": iter(range(300)),
                "async": counted(),
                "task": "listed",
            }
            options: dict[str, Any] = {"retries": 1} if kind == "retried" else {}

            def square(n: int) -> int:
                note(n)
                if n in expected_wrong:
                    raise ValueError(n)
                return n * n

            async def square_async(n: int) -> int:
                return square(n)

            # The set of wrong items is a global: what a function takes from there is not part of a key.
            expected_wrong.clear()
            expected_wrong.update(wrong)
            w.do(sources[source], cache=True, workers=4, cache_key="{n}", **options)(
                square_async if kind == "async" else square
            )
        return w.result

    broken = run(frozenset({250}))
    assert isinstance(broken.exception, ValueError)
    done = set(ran) - {250}
    ran.clear()
    whole = run(frozenset())
    assert whole.final == [n * n for n in range(300)]
    # Each result of the first run is there, but for those of items that were given up with the failure.
    assert 40 <= len(ran) <= 300 - len(done) + 5
    ran.clear()
    assert run(frozenset()).final == whole.final
    assert ran == []


expected_wrong: set[int] = set()


def test_hits_are_neither_paced_nor_counted_as_workers(tmp_path: Path) -> None:
    def run(n: int) -> Any:
        with weave(store=tmp_path) as w:

            @w.do(range(n), cache=True, limit_per_minute=6000, workers=1)
            async def item(i: int) -> int:
                note(i)
                return i

        return w.result

    run(5)
    result = run(6)
    assert ran == [0, 1, 2, 3, 4, 5]
    assert result.item == list(range(6))


def test_remote_tasks_are_looked_up_before_they_leave(tmp_path: Path) -> None:
    from wove.testing import in_process

    def run() -> Any:
        with in_process("far") as recorder, weave(store=tmp_path) as w:

            @w.do(range(10), environment="far", cache=True)
            def square(n: int) -> int:
                return n * n

            @w.do(environment="far", cache=True)
            def total(square: list[int]) -> int:
                return sum(square)

        return w.result, len(recorder.of("square")) + len(recorder.of("total"))

    wove.config(environments={"far": {"executor": "stdio"}})
    first, sent = run()
    assert sent == 11
    second, sent = run()
    assert sent == 0
    assert (first.total, second.total) == (285, 285)


def test_merge_and_classes(tmp_path: Path) -> None:
    class Report(Weave):
        @Weave.do(cache=True)
        def base(self, n: int) -> int:
            note("base")
            return n

        @Weave.do
        def parts(self, base: int) -> list[int]:
            def part(i: int) -> int:
                note(i)
                return i + base

            return merge(part, range(3), cache=True)

    for _ in range(2):
        with weave(Report, store=tmp_path, n=1) as w:
            pass
        assert w.result.parts == [1, 2, 3]
    assert sorted(map(str, ran)) == ["0", "1", "2", "base"]


def test_a_store_is_needed() -> None:
    with pytest.raises(ValueError, match=r"task 'one' has cache=True.*store="), weave() as w:

        @w.do(cache=True)
        def one() -> int:
            return 1


@pytest.mark.parametrize("store", [5, type("Half", (), {"get": print})(), DirectoryStore])
def test_what_is_no_store(store: Any) -> None:
    with pytest.raises(TypeError, match="store must be a path or an object with the methods"):
        weave(store=store)


def test_results_of_failures_are_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with weave(store=tmp_path, error_mode="return") as w:

            @w.do(cache=True)
            def one() -> None:
                note(1)
                raise ValueError

    assert ran == [1, 1]


def test_a_result_that_cannot_be_pickled_is_computed_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with weave(store=tmp_path) as w:

            @w.do(cache=True)
            def one() -> Any:
                note(1)
                return lambda: 1

        assert w.result.one() == 1
    assert ran == [1, 1]
    assert "task 'one': a result cannot be pickled, and is not kept" in caplog.text


class Gone:
    """A class that is missing in a later version."""


def test_a_result_that_does_not_load_is_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        with weave(store=tmp_path) as w:

            @w.do(cache=True)
            def one() -> Any:
                note(1)
                return globals().get("Gone", int)()

        return w.result.one

    assert isinstance(run(), Gone)
    monkeypatch.delitem(globals(), "Gone")
    assert run() == 0
    assert run() == 0
    assert ran == [1, 1]
    assert caplog.text.count("a kept result does not load (AttributeError") == 1


class Bomb:
    def __reduce__(self) -> Any:
        return note, ("unpickled",)


@pytest.mark.parametrize("kind", ["unsigned", "other secret", "moved"])
def test_nothing_that_is_not_signed_is_unpickled(kind: str, tmp_path: Path) -> None:
    def run() -> Any:
        with weave(store=tmp_path) as w:

            @w.do(cache=True)
            def one() -> int:
                note(1)
                return 1

        return w.result.one

    run()
    file = tmp_path / "results.sqlite"
    connection = sqlite3.connect(file)
    key = connection.execute("SELECT key FROM results").fetchone()[0]
    bomb = pickle.dumps(Bomb())
    record = {
        "unsigned": bomb,
        "other secret": Seal(b"another").close(key, bomb),
        "moved": Seal.of_user().close(b"another key", bomb),
    }[kind]
    connection.execute("UPDATE results SET record = ?", (record,))
    connection.commit()
    connection.close()
    ran.clear()
    with pytest.raises(CacheError) as caught:
        run()
    assert str(file) in str(caught.value)
    assert ran == []


def test_a_store_that_fails_to_write_costs_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(DirectoryStore):
        def put_many(self, rows: Any) -> None:
            raise OSError("no space left on device")

    with weave(store=Full(tmp_path)) as w:

        @w.do(range(200), cache=True)
        def one(n: int) -> int:
            return n

    assert w.result.one == list(range(200))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "task 'one': no more of its results are kept: no space left on device"
    ]


@pytest.mark.asyncio
async def test_large_values_in_a_loop_of_the_users(tmp_path: Path) -> None:
    for _ in range(2):
        async with weave(store=DirectoryStore(tmp_path)) as w:

            @w.do(range(5), cache=True, workers=2)
            async def big(n: int) -> bytes:
                note(n)
                return bytes([n]) * 300_000

        assert [len(value) for value in w.result.big] == [300_000] * 5
    assert sorted(ran) == [0, 1, 2, 3, 4]
    files = list((tmp_path / "big").iterdir())
    assert len(files) == 5


def test_a_record_is_readable_by_its_layout(tmp_path: Path) -> None:
    """docs/cache.md says how a record is made: this is that."""
    store = DirectoryStore(tmp_path)
    store.put_many([Row(b"k" * 20, "t", Seal(b"s").close(b"k" * 20, pickle.dumps(7)))])
    ((_, _, record),) = store.rows()
    assert record[:7] == b"wove\x00r1"
    assert pickle.loads(record[32:]) == 7


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_pipeline_of_kept_results_gives_each_item_once_and_waits_for_slow_maps(
    tmp_path: Path, kind: str
) -> None:
    def run() -> Any:
        most = 0

        with weave(store=tmp_path) as w:

            @w.do(range(300), cache=True, workers=2, keep=False)
            def first(item: int) -> int:
                note(item)
                return item + 1

            def count(item: int) -> int:
                nonlocal most
                reader = w._execution._run.tasks[1].reader  # type: ignore[union-attr]
                most = max(most, len(reader.items)) if reader is not None else most
                return item * 2

            async def count_async(item: int) -> int:
                await asyncio.sleep(0)
                return count(item)

            count.__name__ = count_async.__name__ = "second"
            w.do("first", workers=2)(count if kind == "sync" else count_async)

        return w.result.second, most

    for runs in (300, 300):
        second, most = run()
        assert second == [2 * (item + 1) for item in range(300)]
        assert most <= 3
        assert len(ran) == runs
