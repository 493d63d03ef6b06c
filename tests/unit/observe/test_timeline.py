"""From run records to lanes and bars, to the bytes of a page, and to a Chrome trace."""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import time
import zlib
from array import array
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.forms import FORMS, attempt, run
from tests.support.made_records import ORIGIN, made_records

from wove import WeaveStateError, config, weave
from wove.observe.timeline import Timeline, chrome
from wove.observe.timeline.encoding import COLUMNS, encode
from wove.observe.timeline.model import (
    CLOCK_SECONDS,
    MAX_SLOTS,
    PHASES,
    WORK,
    ItemColumns,
    Model,
    State,
    build,
)
from wove.result import RunRecord, Trip

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
)


def local(task: str, began: float, ended: float | None, **fields: Any) -> RunRecord:
    return RunRecord(
        task, started=ORIGIN + began, ended=None if ended is None else ORIGIN + ended, **fields
    )


def remote(
    task: str, times: tuple[float, ...], worker: tuple[float, ...], **fields: Any
) -> RunRecord:
    """A run whose times are: started, admitted, handed over, sent, end seen, ended; and its worker's timing."""
    started, admitted, handed_over, sent, end_seen, ended = (ORIGIN + one for one in times)
    began, load, work, dump = worker
    trip = Trip(admitted, handed_over, sent, None, end_seen, ORIGIN + began, (load, work, dump))
    return RunRecord(
        task,
        environment="far",
        started=started,
        ended=ended,
        run_id="1",
        **{"host": "node", "pid": 7, **fields},
        trip=trip,
    )


def decoded(text: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What the page makes of its data."""
    data = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    count, at = header["runs"], 4 + size
    names = ("lane", *COLUMNS, "begun", *PHASES)
    columns = {name: [0] * count for name in names}
    for name in header["columns"]:
        planes = [data[at + place * count : at + (place + 1) * count] for place in range(4)]
        numbers = array("i", b"".join(bytes(four) for four in zip(*planes, strict=True)))
        columns[name] = list(accumulate(numbers))
        at += 4 * count
    assert at == len(data)
    return header, columns


# ---------------------------------------------------------------------- the model


def test_without_runs_there_is_nothing() -> None:
    assert build([]) == Model()
    assert build([RunRecord("never begun")]) == Model()


def test_a_local_run_is_all_work() -> None:
    model = build([local("a", 0, 0.5), local("b", 0.5, 2)])
    assert (model.tasks, model.origin, model.seconds) == (["a", "b"], ORIGIN, 2)
    assert [bar.begun for bar in model.bars[0]] == pytest.approx([0, 0.5])
    for bar, seconds in zip(model.bars[0], (0.5, 1.5), strict=True):
        assert bar.parts[WORK] == bar.busy == pytest.approx(seconds)
        assert sum(bar.parts) == pytest.approx(seconds)


def test_the_parts_of_a_remote_run_are_those_of_its_way() -> None:
    times = (0, 1, 1.5, 1.75, 9, 10)
    model = build([remote("a", times, (3, 0.25, 4, 0.5))])
    (bar,) = model.bars[0]
    assert dict(zip(PHASES, bar.parts, strict=True)) == pytest.approx(
        {
            "wait": 1,
            "pickle": 0.5,
            "send": 0.25,
            "queue": 1.25,
            "load": 0.25,
            "work": 4,
            "dump": 0.5,
            "return": 1.25,
            "unpickle": 1,
        }
    )
    assert bar.begun == pytest.approx(3)
    assert sum(bar.parts) == pytest.approx(10)


@pytest.mark.parametrize("ahead", [-3600.0, -0.2, 0.0, 0.2, 86_400.0])
def test_the_clock_of_another_host_is_corrected(ahead: float) -> None:
    quick = remote("a", (0, 0, 0, 0, 1.02, 1.02), (0.01 + ahead, 0, 1, 0))
    queued = remote("b", (2, 2, 2, 2, 8.01, 8.01), (7 + ahead, 0, 1, 0))
    (bars,) = build([quick, queued]).bars
    assert [bar.begun for bar in bars] == pytest.approx([0.01, 7], abs=0.011)
    assert bars[1].parts[PHASES.index("queue")] == pytest.approx(5, abs=0.011)


def test_what_a_worker_says_cannot_make_a_run_longer_than_it_was() -> None:
    (bars,) = build([remote("a", (0, 0, 0, 0, 1, 1), (0, 1e9, 1e12, 0))]).bars
    assert bars[0].busy == pytest.approx(1)
    assert all(part >= 0 for part in bars[0].parts)


def test_without_timing_the_news_of_the_start_tells_the_queue_from_the_work() -> None:
    trip = Trip(ORIGIN, ORIGIN, ORIGIN, start_seen=ORIGIN + 3, end_seen=ORIGIN + 5)
    record = RunRecord(
        "a", started=ORIGIN, ended=ORIGIN + 5, run_id="1", host="n", pid=1, trip=trip
    )
    ((bar,),) = build([record]).bars
    assert (bar.parts[PHASES.index("queue")], bar.parts[WORK]) == pytest.approx((3, 2))


def test_a_run_that_never_got_a_slot_has_waited() -> None:
    record = RunRecord("a", started=ORIGIN, ended=ORIGIN + 2, error="CancelledError: ", trip=Trip())
    model = build([record])
    assert model.lanes[0].worker == "not begun"
    assert model.bars[0][0].parts[0] == pytest.approx(2)
    assert model.bars[0][0].busy == 0


def test_how_each_run_ended() -> None:
    records = [
        local("ok", 0, 1),
        local("bad", 0, 1, error="ValueError: no"),
        local("gone", 0, 1, error="WorkerLostError: gone"),
        local("off", 0, 1, error="CancelledError: "),
        local("on", 0, None),
        remote("again", (0, 0, 0, 0, 1, 1), (0, 0, 1, 0), item=3, error="OSError: x"),
        remote("again", (1, 1, 1, 1, 2, 2), (1, 0, 1, 0), item=3, attempt=2, error="OSError: x"),
    ]
    model = build(records, now=ORIGIN + 5)
    found = {
        (model.tasks[bar.task], bar.attempt): State(bar.state)
        for bars in model.bars
        for bar in bars
    }
    assert found == {
        ("ok", 1): State.DONE,
        ("bad", 1): State.FAILED,
        ("gone", 1): State.LOST,
        ("off", 1): State.CANCELLED,
        ("on", 1): State.UNFINISHED,
        ("again", 1): State.RETRIED,
        ("again", 2): State.FAILED,
    }
    assert model.seconds == pytest.approx(5)


def test_each_worker_has_a_lane_and_what_overlaps_in_it_another() -> None:
    records = [
        local("a", 0, 1, thread=2),
        local("a", 0, 1, thread=1),
        remote("b", (0, 0, 0, 0, 3, 3), (0, 0, 3, 0), pid=8),
        remote("b", (1, 1, 1, 1, 2, 2), (1, 0, 1, 0), pid=8),
        remote("b", (0, 0, 0, 0, 3, 3), (0, 0, 3, 0), pid=7),
    ]
    lanes = [(lane.environment, lane.worker, lane.slot) for lane in build(records).lanes]
    here = f"{os.uname().nodename} {os.getpid()}"
    assert lanes == [
        ("default", f"{here} thread 1", 0),
        ("default", f"{here} thread 2", 0),
        ("far", "node 7", 0),
        ("far", "node 8", 0),
        ("far", "node 8", 1),
    ]


def test_no_bar_hides_another_as_long_as_there_are_rows() -> None:
    model = build(made_records(2_000))
    assert len(model.lanes) < 100
    for bars in model.bars:
        for one, following in pairwise(bars):
            assert one.begun + one.busy <= following.begun + CLOCK_SECONDS + 1e-6


def test_the_rows_of_one_worker_are_bounded() -> None:
    model = build([local("a", 0, 1) for _ in range(10 * MAX_SLOTS)])
    assert len(model.lanes) == MAX_SLOTS
    assert sum(map(len, model.bars)) == 10 * MAX_SLOTS


# ---------------------------------------------------------------------- the bytes of the page


def test_the_page_reads_what_was_written() -> None:
    model = build(made_records(400))
    header, columns = decoded(encode(model, title="x"))
    bars = [(lane, bar) for lane, row in enumerate(model.bars) for bar in row]
    assert (header["title"], header["runs"], header["tasks"]) == ("x", len(bars), model.tasks)
    assert header["lanes"] == [
        [one.environment, one.worker, one.short, one.slot] for one in model.lanes
    ]
    for place, (lane, bar) in enumerate(bars):
        written = {name: column[place] for name, column in columns.items()}
        assert written["lane"] == lane
        whole = ("task", "item", "state", "attempt", "losses", "error")
        assert [written[name] for name in whole] == [getattr(bar, name) for name in whole]
        assert (written["out"], written["in"]) == (bar.bytes_out, bar.bytes_in)
        times = [written["begun"], *(written[phase] for phase in PHASES)]
        assert [one * header["unit"] for one in times] == pytest.approx(
            [bar.begun, *bar.parts], abs=2 * header["unit"]
        )


def test_a_year_and_many_bytes_fit() -> None:
    year = 366 * 86_400.0
    model = build([local("a", 0, 1, bytes_out=2**40), local("a", year - 1, year)])
    header, columns = decoded(encode(model))
    assert [one * header["unit"] for one in columns["begun"]] == pytest.approx(
        [0, year - 1], rel=1e-6
    )
    assert max(columns["out"]) == 2**31 - 2


def test_a_hundred_thousand_items_are_less_than_ten_megabytes() -> None:
    assert len(Timeline(made_records(100_000)).html) < 3_000_000


def test_nothing_of_the_data_becomes_part_of_the_page() -> None:
    record = RunRecord(
        HOSTILE, 1, 1, HOSTILE, started=ORIGIN, ended=ORIGIN + 1, host=HOSTILE, run_id="1",
        error=HOSTILE, trip=Trip(),
    )  # fmt: skip
    page = Timeline([record], HOSTILE).html
    plain = Timeline([], "x").html
    assert HOSTILE not in page
    assert page.count("<script") == plain.count("<script")
    assert page.count("</script") == plain.count("</script")
    assert "<img" not in page


def test_the_page_allows_itself_its_own_script_and_no_network() -> None:
    page = Timeline([]).html
    policy = page.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src &#x27;none&#x27;")
    assert "unsafe" not in policy
    assert "http:" not in page and "https:" not in page


# ---------------------------------------------------------------------- the Chrome trace


def test_the_trace_is_what_viewers_expect() -> None:
    trace = json.loads(json.dumps(Timeline(made_records(300), "x").chrome_trace()))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} <= {"M", "X", "i", "b", "e"}
    for event in events:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and event["name"]
        if event["ph"] != "M":
            assert event["ts"] >= 0 and event["cat"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(made_records(300))
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"default", "pool", "celery", "cluster"}
    assert {event["tid"] for event in slices} <= {
        event["tid"] for event in events if event["name"] == "thread_name"
    }


def test_asynchronous_slices_of_a_trace_open_and_close_in_order() -> None:
    open_slices: dict[int, list[tuple[str, float]]] = {}
    for event in Timeline(made_records(300)).chrome_trace()["traceEvents"]:
        stack = open_slices.setdefault(event.get("id", -1), [])
        if event["ph"] == "b":
            stack.append((event["name"], event["ts"]))
        elif event["ph"] == "e":
            name, began = stack.pop()
            assert name == event["name"]
            assert began <= event["ts"]
    assert not any(open_slices.values())


def test_a_large_trace_names_the_parts_of_a_run_in_its_arguments_only() -> None:
    records = made_records(chrome.MAX_SPLIT_RUNS + 1)
    events = Timeline(records).chrome_trace()["traceEvents"]
    assert not [event for event in events if event["ph"] == "b"]
    far = next(event for event in events if event["ph"] == "X" and event["pid"] == 2)
    assert far["args"]["milliseconds"]["work"] > 0


# ---------------------------------------------------------------------- a weave's own


@pytest.mark.parametrize("form", FORMS)
def test_the_timeline_of_a_weave_has_all_its_runs(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do(range(5), workers=2)
        def double(item: int) -> int:
            time.sleep(0.001)
            return 2 * item

        @w.do
        async def total(double: list[int]) -> int:
            return sum(double)

    w = attempt(form, declare).w
    assert len(w.timeline()) == 6
    model = build(w.result.run_records)
    assert sorted(bar.item for bars in model.bars for bar in bars) == [-1, 0, 1, 2, 3, 4]
    threads = {record.thread for record in w.result.run_records if record.task == "double"}
    assert None not in threads and 1 <= len(threads) <= 2
    assert [record.thread for record in w.result.run_records if record.task == "total"] == [None]


def test_there_is_none_before_the_tasks_have_run() -> None:
    with weave() as w:
        with pytest.raises(WeaveStateError):
            w.timeline()


def test_what_is_noted_of_an_item_is_small() -> None:
    items = 20_000
    with weave() as w:

        @w.do(range(items), workers=2)
        def nothing(item: int) -> None: ...

    (task,) = w._execution._run.tasks  # type: ignore[union-attr]
    assert task.items is not None
    noted = (task.items.started, task.items.ended, task.items.threads)
    assert all(len(one) == items for one in noted)
    assert sum(map(sys.getsizeof, noted)) < 30 * items


@pytest.mark.backend("stdio")
def test_a_remote_run_knows_every_part_of_its_way() -> None:
    config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    with weave(environment="pool") as w:

        @w.do(range(3), workers=1)
        def double(item: int) -> int:
            import time

            time.sleep(0.05)
            return 2 * item

    for record in w.result.run_records:
        trip = record.trip
        assert trip is not None and trip.worker_spent is not None and trip.worker_began is not None
        points = [trip.admitted, trip.handed_over, trip.sent, trip.end_seen]
        assert points == sorted(filter(None, points))
        assert record.started <= points[0] and points[-1] <= (record.ended or 0)  # type: ignore[operator]
        assert trip.worker_spent[1] >= 0.05
        assert min(trip.worker_spent) >= 0
        # The same host, so the same clock.
        assert trip.handed_over <= trip.worker_began <= trip.end_seen  # type: ignore[operator]


@pytest.mark.backend("stdio")
def test_a_run_that_was_lost_and_sent_again_says_so(tmp_path: Path) -> None:
    config(environments={"pool": {"executor": "stdio", "delivery_orphan_policy": "requeue"}})
    once = tmp_path / "once"
    with weave(environment="pool", once=str(once)) as w:

        @w.do
        def fragile(once: str) -> int:
            import os
            import signal
            from pathlib import Path

            if not Path(once).exists():
                Path(once).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 1

    (record,) = w.result.run_records
    assert (record.losses, record.error, w.result.fragile) == (1, None, 1)


# ---------------------------------------------------------------------- maps, column by column


def columns_and_records(count: int, threads: list[int]) -> tuple[ItemColumns, list[RunRecord]]:
    """The items of a map whose threads take turns, in both forms."""
    started = array("d", (100 + 0.002 * position for position in range(count)))
    ended = array("d", (start + 0.001 for start in started))
    numbers = array("i", (threads[place % len(threads)] for place in range(count) if threads))
    columns = ItemColumns("each", "default", started, ended, numbers, ORIGIN - 100)
    records = [
        RunRecord(
            "each",
            place,
            started=started[place] + columns.offset,
            ended=ended[place] + columns.offset,
            thread=numbers[place] if numbers else None,
        )
        for place in range(count)
    ]
    return columns, records


@pytest.mark.parametrize("threads", [[], [1], [1, 2], [3, 1, 2, 1]], ids=str)
def test_columns_are_drawn_as_records_are(threads: list[int]) -> None:
    columns, records = columns_and_records(50, threads)
    first = RunRecord("first", started=ORIGIN - 1, ended=ORIGIN - 0.5, thread=9)
    one, other = build([first], columns=[columns]), build([first, *records])
    assert one.lanes == other.lanes and one.tasks == other.tasks
    assert (one.origin, one.seconds) == pytest.approx((other.origin, other.seconds))
    for row, others in zip(one.bars, other.bars, strict=True):
        assert len(row) == len(others)
        for bar, same in zip(row, others, strict=True):
            assert bar[:8] == same[:8]
            assert (bar.begun, *bar.parts) == pytest.approx((same.begun, *same.parts), abs=1e-5)

    header, written = decoded(encode(one))
    expected_header, expected = decoded(encode(other))
    assert header == {**expected_header, "origin": header["origin"], "seconds": header["seconds"]}
    for name in COLUMNS:
        assert written[name] == expected[name]
    for name in ("begun", "work"):
        assert written[name] == pytest.approx(expected[name], abs=2)


def test_items_that_overlap_on_the_loop_do_not_fit_one_row() -> None:
    columns, _ = columns_and_records(10, [])
    assert columns.fits_one_row()
    assert not columns._replace(ended=array("d", (end + 1 for end in columns.ended))).fits_one_row()


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_a_recorded_map_makes_no_record_for_each_item(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    save = Timeline.save

    def keep(timeline: Timeline, path: Path) -> Path:
        made.append(len(timeline._records))
        assert len(timeline) == 2_001
        return save(timeline, path)

    monkeypatch.setattr(Timeline, "save", keep)
    with weave(record=tmp_path / f"run{suffix}") as w:
        w.do(range(2_000))(lambda item: item)

        @w.do
        def alone() -> None: ...

    assert made == [1]
    text = (tmp_path / f"run{suffix}").read_text()
    if suffix == ".json":
        names = [event["name"] for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]
        assert len(names) == 2_001 and "<lambda>[1999]" in names


@pytest.mark.parametrize("fails", [True, False])
def test_a_map_with_a_failure_is_recorded_item_by_item(fails: bool, tmp_path: Path) -> None:
    def item(n: int) -> None:
        if fails and n == 7:
            raise ValueError(n)

    path = tmp_path / "run.json"
    with weave(record=path, error_mode="continue") as w:
        w.do(range(1_500))(item)
    states = [
        event["args"]["state"]
        for event in json.loads(path.read_text())["traceEvents"]
        if event["ph"] == "X"
    ]
    assert states.count("failed") == fails and states.count("done") == 1_500 - fails


# ---------------------------------------------------------------------- weave(record=...)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_the_record_is_written_at_the_end(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{suffix}"

    def declare(w: weave) -> None:
        @w.do
        def task() -> int:
            assert not path.exists()
            return 1

    run(form, declare, record=path)
    if suffix == ".html":
        assert "Weave of task" in path.read_text()
    else:
        assert [
            e["name"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"
        ] == ["task"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_written_after_a_failure_too(form: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def declare(w: weave) -> None:
        @w.do
        def task() -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(form, declare, record=str(path))
    marks = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "i"]
    assert [mark["cat"] for mark in marks] == ["failed"]


def test_a_weave_in_the_background_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with weave(background=True, record=path) as w:

        @w.do
        def task() -> int:
            return 1

    assert w.wait(20)
    assert path.exists()


@pytest.mark.parametrize("name", ["run.txt", "run", "run.html.gz", ""])
def test_a_record_must_be_one_of_two_kinds(name: str) -> None:
    with pytest.raises(ValueError, match=r"record must end in \.html \(a page\) or \.json"):
        weave(record=name)


def test_a_record_that_cannot_be_written_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "wove"), weave(record=tmp_path / "no" / "run.html") as w:

        @w.do
        def task() -> int:
            return 1

    assert w.result.task == 1
    assert "could not be written" in caplog.text


def test_what_cannot_be_text_is_written_all_the_same(tmp_path: Path) -> None:
    record = local("a\udcff", 0, 1, error="E: \udcfe\x00")
    for suffix in (".html", ".json"):
        path = Timeline([record], "x\udcff").save(tmp_path / f"run{suffix}")
        assert path.stat().st_size > 0


def test_a_notebook_shows_it_in_a_frame_of_its_own() -> None:
    shown = Timeline([local(HOSTILE, 0, 1)], HOSTILE)._repr_html_()
    assert shown.startswith("<iframe") and shown.endswith("></iframe>")
    assert shown.count("<") == 2  # the page is one attribute
    assert 'sandbox="allow-scripts"' in shown
