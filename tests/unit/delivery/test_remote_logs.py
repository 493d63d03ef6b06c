"""Lines that came from workers, on their way into loggers and streams."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from wove.delivery import remote_logs
from wove.delivery.remote_logs import LineQueue
from wove.delivery.request import Call, Request
from wove.delivery.run import RemoteRun
from wove.settings.model import Environment
from wove.settings.resolution import TaskSettings


@pytest.fixture
def run() -> RemoteRun:
    settings = TaskSettings(environment=Environment("reports", "stdio"))
    run = RemoteRun(Request(Call(print, "pdf"), {}, settings, item=3), None, None)  # type: ignore[arg-type]
    run.run_id = "r-1"
    return run


class Slow(logging.Handler):
    """Waits before each record until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert self.go_on.wait(60)
        self.messages.append(record.getMessage())


@pytest.fixture
def slow() -> Iterator[Slow]:
    handler = Slow()
    logger = logging.getLogger("app.slow")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    handler.go_on.set()
    logger.removeHandler(handler)
    logger.propagate = True


def event(
    *texts: str, level: int = 30, name: str = "app.lines", dropped: int = 0
) -> dict[str, Any]:
    lines = [[1.5, level, name, text] for text in texts]
    return {"type": "log", "host": "far", "lines": lines, "dropped": dropped}


def written(queue: LineQueue) -> None:
    asyncio.run(queue.flush())


def test_a_record_says_where_it_is_from(run: RemoteRun, caplog: pytest.LogCaptureFixture) -> None:
    queue = LineQueue()
    queue.put(run, event("100 %"))
    written(queue)
    (record,) = caplog.records
    assert record.getMessage() == "[pdf item 3 on far] 100 %"
    assert (record.name, record.levelno, record.created) == ("app.lines", 30, 1.5)
    fields = vars(record)
    assert (fields["wove_task"], fields["wove_item"], fields["wove_host"]) == ("pdf", 3, "far")
    assert (fields["wove_environment"], fields["wove_run_id"]) == ("reports", "r-1")


def test_levels_here_count(run: RemoteRun, caplog: pytest.LogCaptureFixture) -> None:
    queue = LineQueue()
    logging.getLogger("app.lines").setLevel(logging.ERROR)
    try:
        queue.put(run, event("not wanted"))
        written(queue)
    finally:
        logging.getLogger("app.lines").setLevel(logging.NOTSET)
    assert not caplog.records


def test_output_goes_to_the_streams(run: RemoteRun, capsys: pytest.CaptureFixture[str]) -> None:
    queue = LineQueue()
    queue.put(run, event("out", level=0, name="stdout"))
    queue.put(run, event("err", level=0, name="stderr"))
    written(queue)
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("[pdf item 3 on far] out\n", "[pdf item 3 on far] err\n")


def test_lines_that_are_none_are_survived(run: RemoteRun, caplog: pytest.LogCaptureFixture) -> None:
    queue = LineQueue()
    for lines in (None, "x", [1], [["x", "y", "z", "w"]]):
        queue.put(run, {"type": "log", "lines": lines, "dropped": "x"})
    queue.put(run, event("right"))
    written(queue)
    assert [record.getMessage() for record in caplog.records] == ["[pdf item 3 on far] right"]


def test_a_slow_handler_delays_nobody_and_what_is_too_much_is_counted(
    run: RemoteRun,
    slow: Slow,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_logs, "MAX_WAITING_LINES", 100)
    queue = LineQueue()
    for number in range(50):
        queue.put(run, event(*(f"{number}.{line}" for line in range(10)), name="app.slow"))
    slow.go_on.set()
    written(queue)
    dropped = sum(
        int(record.getMessage().split()[-5])
        for record in caplog.records
        if record.getMessage().endswith("more lines were dropped")
    )
    assert len(slow.messages) + dropped == 500
    assert len(slow.messages) <= 110
