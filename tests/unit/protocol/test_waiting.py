"""Events that wait to be sent."""

from __future__ import annotations

from typing import Any

from wove.protocol.waiting import (
    MAX_WAITING_LINES,
    add_waiting,
    size_of_lines,
    without_lines,
)


def progress(done: int, run_id: str = "r") -> dict[str, Any]:
    return {"type": "progress", "run_id": run_id, "done": done}


def log(*texts: str, dropped: int = 0, run_id: str = "r") -> dict[str, Any]:
    lines = [[0.0, 20, "app", text] for text in texts]
    return {"type": "log", "run_id": run_id, "lines": lines, "dropped": dropped}


def test_a_newer_report_takes_the_place_of_an_older_one_of_its_run() -> None:
    waiting: list[dict[str, Any]] = []
    for event in (progress(1), progress(1, "other"), {"type": "heartbeat"}, progress(2)):
        add_waiting(waiting, event)
    assert waiting == [progress(2), progress(1, "other"), {"type": "heartbeat"}]


def test_lines_of_a_run_are_collected() -> None:
    waiting: list[dict[str, Any]] = []
    for event in (log("a", dropped=1), log("b", run_id="other"), log("c", dropped=2)):
        add_waiting(waiting, event)
    assert waiting == [log("a", "c", dropped=3), log("b", run_id="other")]


def test_the_newest_lines_are_kept() -> None:
    waiting: list[dict[str, Any]] = []
    add_waiting(waiting, log(*map(str, range(MAX_WAITING_LINES))))
    add_waiting(waiting, log("a", "b"))
    (event,) = waiting
    assert len(event["lines"]) == MAX_WAITING_LINES and event["dropped"] == 2
    assert event["lines"][0][-1] == "2" and event["lines"][-1][-1] == "b"


def test_a_message_of_another_worker_is_not_joined() -> None:
    waiting: list[dict[str, Any]] = []
    message = {"type": "log", "run_id": "r", "message": "hello"}
    add_waiting(waiting, message)
    add_waiting(waiting, message)
    assert waiting == [message, message]


def test_what_lines_take_and_what_is_left_without_them() -> None:
    assert size_of_lines({"type": "heartbeat"}) == 0
    assert size_of_lines(log("ab", "c")) == 3 + 2 * 64
    assert without_lines(log("ab", "c", dropped=3)) == log(dropped=5)
