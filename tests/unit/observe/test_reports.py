"""`wove.progress` in this process: what is checked, whose report it is, and what shows it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.forms import attempt

import wove
from wove import merge, weave
from wove.observe.events import listen
from wove.observe.reports import Report, report_of_event
from wove.observe.sampling import Row
from wove.observe.wording import ASCII, live_lines, plain_line


@pytest.fixture
def reports() -> Iterator[list[tuple[str, Any, Any, str]]]:
    """What tasks reported: task, done, total, note."""
    found: list[tuple[str, Any, Any, str]] = []

    def keep(event: str, fields: dict[str, Any]) -> None:
        if event == "task_progress":
            found.append((fields["task"], fields["done"], fields["total"], fields["note"]))

    stop = listen(keep)
    yield found
    stop()


def test_each_kind_of_task_reports_its_own(form: str, reports: list[Any]) -> None:
    def declare(w: weave) -> None:
        @w.do
        def plain() -> int:
            wove.progress(1, 2)
            return 1

        @w.do
        async def later(plain: int) -> int:
            wove.progress(1)
            await asyncio.sleep(0)
            wove.progress(2)
            return 2

        @w.do(timeout=60)
        def limited(later: int) -> int:
            wove.progress(note="three")
            return 3

        @w.do([1, 2], workers=1)
        def mapped(item: int, limited: int) -> None:
            wove.progress(item)

        @w.do([3], workers=1)
        async def mapped_later(item: int, mapped: Any) -> None:
            wove.progress(item)

        @w.do
        def merged(mapped_later: Any) -> Any:
            return merge(lambda item: wove.progress(item), [4])

        @w.do
        def generated(merged: Any) -> Iterator[int]:
            wove.progress(5)
            yield 5

        @w.do("generated")
        def taken(item: int) -> None:
            wove.progress(6)

    attempt(form, declare)
    assert reports == [
        ("plain", 1, 2, ""),
        ("later", 1, None, ""),
        ("later", 2, None, ""),
        ("limited", None, None, "three"),
        ("mapped", 1, None, ""),
        ("mapped", 2, None, ""),
        ("mapped_later", 3, None, ""),
        ("merged", 4, None, ""),
        ("generated", 5, None, ""),
        ("taken", 6, None, ""),
    ]


def test_a_weave_inside_a_task_reports_for_itself(form: str, reports: list[Any]) -> None:
    def outer() -> None:
        with weave() as w:

            @w.do
            async def inner() -> None:
                wove.progress(1)

        wove.progress(2)

    attempt(form, lambda w: w.do(outer))
    assert reports == [("inner", 1, None, ""), ("outer", 2, None, "")]


def test_outside_of_a_task_it_has_no_effect(reports: list[Any]) -> None:
    wove.progress(1, 2, "three")
    assert reports == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((), ValueError, "give what is done, or a note"),
        (("1",), TypeError, "done must be a number, not str"),
        ((True,), TypeError, "done must be a number, not bool"),
        ((1, -1), ValueError, "total must be 0 or more"),
        ((math.nan,), ValueError, "done must be 0 or more, and finite"),
        ((1, 2, 3), TypeError, "note must be text"),
    ],
)
def test_what_is_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wove.progress(*arguments)


@pytest.mark.parametrize("fields", [{"done": "x"}, {"total": -1}, {"note": 3}, {"done": True}])
def test_an_event_that_is_not_right_is_not_a_report(fields: dict[str, Any]) -> None:
    assert report_of_event(fields, None, None) is None


def test_a_note_is_one_line() -> None:
    report = report_of_event({"note": "two\nlines " + 500 * "x"}, 3, "far")
    assert report is not None and report.note.startswith("two lines xxx")
    assert len(report.note) == 200 and report[3:] == (3, "far")


def test_how_it_is_shown() -> None:
    def line(report: Report, **fields: Any) -> str:
        row = Row("train", "running", seconds=2.0, progress=report, **fields)
        return live_lines([row], 100, 1, ASCII)[0]

    assert line(Report(5, 10, "epoch 5")) == "* train  ##########..........  5/10 epoch 5  2.0 s"
    assert line(Report(1234567, None, "")) == "* train  1.23457e+06  2.0 s"
    assert line(Report(None, None, "loading")) == "* train  loading  2.0 s"
    mapped = line(Report(20, 10, "", 3), mapped=True, items=1, total=4)
    assert mapped == "* train  #####...............  1/4  item 3: 20/10  2.0 s"
    row = Row("train", "running", seconds=2.0, progress=Report(5, 10, "epoch 5"))
    assert plain_line(row) == "wove: train running: 5/10 epoch 5, 2.0 s"
    done = Row("train", "done", seconds=2.0, progress=Report(5, 10, "epoch 5"))
    assert plain_line(done) == "wove: train done: 2.0 s"
