"""From a run that has ended: timings and the record of each run."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import weave


class Boom(Exception):
    pass


def test_a_record_for_each_task_and_item(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def a() -> None: ...

        @w.do(range(3))
        async def b(item: int, a: None) -> None: ...

        @w.do(range(2))
        def c(item: int) -> None: ...

    before = time.time()
    result = run(form, declare)
    after = time.time()
    records = result.run_records
    assert [(record.task, record.item) for record in records] == [
        ("a", None), ("b", 0), ("b", 1), ("b", 2), ("c", 0), ("c", 1)
    ]  # fmt: skip
    assert records is result.run_records
    for record in records:
        assert record.ended is not None
        assert before - 0.1 <= record.started <= record.ended <= after + 0.1
        assert (record.attempt, record.environment, record.error, record.run_id) == (
            1,
            "default",
            None,
            None,
        )
    a, b = records[0], records[1]
    assert a.ended is not None
    assert b.started >= a.ended - 0.001


def test_records_say_what_failed_and_how_often_it_was_tried(form: str) -> None:
    attempts: dict[Any, int] = {}

    def count(key: Any, failures: int) -> None:
        attempts[key] = attempts.get(key, 0) + 1
        if attempts[key] <= failures:
            raise Boom(key)

    def declare(w: weave) -> None:
        w.do(retries=2)(_named("a", lambda: count("a", 2)))
        w.do(retries=2)(_named("b", lambda: count("b", 9)))
        w.do(range(3), retries=2)(_named("c", lambda item: count(item, item)))
        w.do(range(3))(_named("d", lambda item: count(("d", item), item)))

    records = run(form, declare, error_mode="continue").run_records
    assert [(record.task, record.item, record.attempt, record.error) for record in records] == [
        ("a", None, 3, None),
        ("b", None, 3, "Boom: b"),
        ("c", 0, 1, None),
        ("c", 1, 2, None),
        ("c", 2, 3, None),
        ("d", 0, 1, None),
        ("d", 1, 1, "Boom: ('d', 1)"),
        ("d", 2, 1, "Boom: ('d', 2)"),
    ]


def _named(name: str, fn: Any) -> Any:
    fn.__name__ = name
    return fn


def test_what_never_started_has_no_record_and_no_timing(form: str) -> None:
    release = threading.Event()

    def declare(w: weave) -> None:
        started = asyncio.Event()

        @w.do
        async def runs() -> None:
            started.set()
            await asyncio.sleep(PATIENCE)

        @w.do
        async def bad() -> None:
            await started.wait()
            raise Boom

        @w.do
        def after(bad: None) -> None: ...

        @w.do
        def later(runs: None) -> None: ...

    result = attempt(form, declare).result
    release.set()
    assert {record.task for record in result.run_records} <= {"runs", "bad"}
    assert list(result.timings) == ["bad"]


@pytest.mark.parametrize("workers", [None, 1])
def test_timings(form: str, workers: int | None) -> None:
    """In seconds; of a mapped task from the start of its first item to the end of its last."""

    def declare(w: weave) -> None:
        @w.do
        def sync() -> None:
            time.sleep(0.02)

        @w.do
        async def asynchronous() -> None:
            await asyncio.sleep(0.02)

        @w.do(range(2), workers=workers)
        def mapped(item: int) -> None:
            time.sleep(0.02)

        @w.do(range(2), workers=workers)
        async def async_mapped(item: int) -> None:
            await asyncio.sleep(0.02)

        @w.do([])
        def empty(item: int) -> None: ...

        @w.do
        async def after(sync: None) -> None: ...

    timings = run(form, declare).timings
    assert list(timings) == ["sync", "asynchronous", "mapped", "async_mapped", "empty", "after"]
    least = 0.018 if workers is None else 0.036
    assert min(timings["sync"], timings["asynchronous"]) > 0.018
    assert min(timings["mapped"], timings["async_mapped"]) > least
    assert timings["empty"] >= 0
    assert timings["after"] < timings["sync"] + PATIENCE


def test_the_wait_for_a_thread_is_no_part_of_the_time() -> None:
    def declare(w: weave) -> None:
        w.do(_named("a", lambda: time.sleep(0.8)))
        w.do(_named("b", lambda: None))

    assert run("with", declare, max_workers=1).timings["b"] < 0.7
