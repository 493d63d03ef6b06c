"""Posting events: together, again, at once, and to those who still wait."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.callback_peer import TAKEN, Answer, Peer, Request

from wove.callback import run_events, sender
from wove.callback.link import Destination
from wove.callback.reporter import DeliveryOutcome, RunReporter
from wove.callback.run_events import RunState
from wove.callback.sender import sender_for
from wove.errors import DeliveryError
from wove.protocol.faults import to_exception
from wove.protocol.pickling import Pickled, dumps, loads
from wove.security import NetworkExecutorSecurity, SecurityConfig

LARGE = run_events.LARGE_BYTES


class Runs:
    """Makes reports, and speaks for their runs."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.cancelled: list[str] = []
        self.reports: list[RunReporter] = []

    def open(
        self,
        run_id: str = "r",
        *,
        retry_seconds: float = 20,
        heartbeat_seconds: float = 5,
        detached: bool = False,
        security: NetworkExecutorSecurity | None = None,
    ) -> RunReporter:
        destination = Destination.parse(self.peer.url)
        report = RunReporter(
            run_id,
            "pdf",
            destination,
            security or NONE,
            retry_seconds=retry_seconds,
            heartbeat_seconds=heartbeat_seconds,
            detached=detached,
            cancel=lambda: self.cancelled.append(run_id),
        )
        sender_for(destination).open(report)
        self.reports.append(report)
        return report

    def started(self, run_id: str = "r", **options: Any) -> RunReporter:
        """A run whose start has arrived."""
        report = self.open(run_id, **options)
        report.put(event("task_started", run_id))
        self.peer.until(lambda: "task_started" in self.peer.of(run_id) and not self.peer.answering)
        return report


NONE = NetworkExecutorSecurity.from_config(None)


def event(kind: str, run_id: str = "r", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "run_id": run_id, "task_id": "pdf", **fields}


def result(value: object, run_id: str = "r") -> dict[str, Any]:
    return event("task_result", run_id, result_pickle=dumps(value, label="v"))


def delivered(report: RunReporter) -> DeliveryOutcome:
    outcome = report.wait(20)
    assert outcome is not None
    return outcome


def arrives(report: RunReporter) -> None:
    """Its end is delivered, and wanted."""
    outcome = delivered(report)
    assert outcome.error is None and outcome.awaited


def trouble(report: RunReporter) -> str:
    error = delivered(report).error
    assert isinstance(error, DeliveryError)
    return str(error)


@pytest.fixture
def runs(peer: Peer) -> Iterator[Runs]:
    runs = Runs(peer)
    yield runs
    peer.answer = lambda request: TAKEN
    for report in runs.reports:
        report.put(event("task_cancelled", report.run_id))
        assert report.wait(20)


# --- one run ----------------------------------------------------------------------------------------------


def test_a_short_run_is_one_request(peer: Peer, runs: Runs) -> None:
    report = runs.open()
    report.put(event("task_started", host="h", pid=7))
    report.put(result(1))
    arrives(report)
    (request,) = peer.requests
    assert (request.method, request.target) == ("POST", "/wove/events/a-token")
    assert request.headers["host"] == f"127.0.0.1:{peer.port}"
    assert request.headers["content-type"] == "application/json"
    (found,) = request.events
    assert (found["type"], found["host"], found["pid"]) == ("task_result", "h", 7)
    assert loads(found["result_pickle"], label="r") == 1


def test_a_longer_run_tells_that_it_has_started(peer: Peer, runs: Runs) -> None:
    report = runs.started()
    report.put(result(1))
    arrives(report)
    assert [request.types for request in peer.requests] == [["task_started"], ["task_result"]]
    assert len({request.connection for request in peer.requests}) == 1


def test_the_first_terminal_event_is_the_last_event(peer: Peer, runs: Runs) -> None:
    report = runs.open()
    report.put(result(1))
    report.put(event("task_cancelled"))
    report.put(event("heartbeat"))
    arrives(report)
    arrives(runs_once_more(runs))
    assert peer.of("r") == ["task_result"]


def runs_once_more(runs: Runs) -> RunReporter:
    report = runs.open("more")
    report.put(event("task_cancelled", "more"))
    return report


def test_heartbeats_that_wait_are_one(peer: Peer, runs: Runs) -> None:
    answered = threading.Event()

    def slow(request: Request) -> Answer:
        answered.wait(10)
        return TAKEN

    report = runs.started()
    peer.answer = slow
    report.put(event("heartbeat"))
    peer.until(lambda: len(peer.requests) == 2)
    for _ in range(5):
        report.put(event("heartbeat"))
    report.put(event("log", message="hello"))
    answered.set()
    peer.until(lambda: "log" in peer.of("r"))
    assert peer.of("r") == ["task_started", "heartbeat", "heartbeat", "log"]


# --- several runs -----------------------------------------------------------------------------------------


def test_what_waits_goes_together(peer: Peer, runs: Runs) -> None:
    let_go = threading.Event()

    def slow(request: Request) -> Answer:
        let_go.wait(10)
        return TAKEN

    peer.answer = slow
    first = runs.open("first")
    first.put(result(0, "first"))
    peer.until(lambda: peer.requests)
    others = [runs.open(f"r{number}") for number in range(100)]
    for number, report in enumerate(others):
        report.put(result(number, f"r{number}"))
    let_go.set()
    for report in (first, *others):
        arrives(report)
    assert [len(request.events) for request in peer.requests] == [1, 100]
    assert peer.opened == 1


def test_runs_of_other_tokens_and_secrets_go_apart(peer: Peer, runs: Runs) -> None:
    signed = NetworkExecutorSecurity.from_config({"type": "signed", "secret": "s"})
    let_go = threading.Event()

    def slow(request: Request) -> Answer:
        let_go.wait(10)
        return TAKEN

    peer.answer = slow
    first = runs.open("first")
    first.put(result(0, "first"))
    peer.until(lambda: peer.requests)
    one, two = runs.open("one"), runs.open("two", security=signed)
    one.put(result(1, "one"))
    two.put(result(2, "two"))
    let_go.set()
    for report in (first, one, two):
        arrives(report)
    assert [[e["run_id"] for e in request.events] for request in peer.requests] == [
        ["first"],
        ["one"],
        ["two"],
    ]
    assert ["x-wove-signature" in request.headers for request in peer.requests] == [
        False,
        False,
        True,
    ]


def test_one_that_is_malformed_does_not_take_others_along(peer: Peer, runs: Runs) -> None:
    let_go = threading.Event()

    def strict(request: Request) -> Answer:
        let_go.wait(10)
        return (
            Answer(400, body=b"no") if any(e["run_id"] == "bad" for e in request.events) else TAKEN
        )

    peer.answer = strict
    first = runs.open("first")
    first.put(result(0, "first"))
    peer.until(lambda: peer.requests)
    good, bad, also_good = runs.open("good"), runs.open("bad"), runs.open("also")
    for report in (good, bad, also_good):
        report.put(result(1, report.run_id))
    let_go.set()
    arrives(good)
    arrives(also_good)
    assert "answered 400 x: 'no'" in trouble(bad)


# --- who waits --------------------------------------------------------------------------------------------


def test_a_run_that_nobody_waits_for_is_cancelled(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(410) if "task_started" in request.types else TAKEN
    report = runs.started()
    peer.until(lambda: runs.cancelled)
    report.put(event("heartbeat"))
    report.put(event("task_cancelled"))
    arrives(report)
    assert peer.of("r") == ["task_started", "task_cancelled"] and runs.cancelled == ["r"]


def test_only_those_runs_that_nobody_waits_for_are_cancelled(peer: Peer, runs: Runs) -> None:
    one, two = runs.started("one"), runs.started("two")
    peer.answer = lambda request: Answer(headers={"X-Wove-Gone": "two, three"})
    one.put(event("heartbeat", "one"))
    two.put(event("heartbeat", "two"))
    peer.until(lambda: runs.cancelled)
    assert runs.cancelled == ["two"]
    one.put(result(1, "one"))
    arrives(one)
    two.put(event("task_cancelled", "two"))
    assert not delivered(two).awaited and delivered(two).error is None


def test_a_detached_run_goes_on(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(410)
    report = runs.started(detached=True)
    report.put(event("heartbeat"))
    report.put(result(1))
    assert not delivered(report).awaited
    assert (
        runs.cancelled == []
        and peer.of("r")[-1] == "task_result"
        and peer.of("r").count("task_result") == 1
    )


def test_a_detached_run_that_is_told_to_end_does(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(410, headers={"X-Wove-Cancelled": "r"})
    report = runs.started(detached=True)
    report.put(event("heartbeat"))
    peer.until(lambda: runs.cancelled)
    report.put(event("task_cancelled"))
    assert not delivered(report).awaited


# --- trouble ----------------------------------------------------------------------------------------------


def test_the_end_arrives_when_the_receiver_is_back(peer: Peer, runs: Runs) -> None:
    report = runs.started()
    peer.stop()
    report.put(result(7))
    time.sleep(5)  # what the issue asks for
    peer.start()
    arrives(report)
    assert loads(peer.end("r")["result_pickle"], label="r") == 7


def test_the_end_is_given_up_in_the_end(
    peer: Peer, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    peer.stop()
    report = runs.open(retry_seconds=0.3)
    report.put(result(7))
    said = trouble(report)
    assert said.startswith(
        "the end of run r of task 'pdf' could not be reported within 0.3 s: cannot connect to "
        f"http://127.0.0.1:{peer.port}: "
    )
    assert "Connection refused" in said and "a-token" not in said
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ] == [said]


def test_without_time_to_try_again_it_is_tried_once(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(503, body=b"later")
    report = runs.open(retry_seconds=0)
    report.put(result(7))
    assert "answered 503 x: 'later'" in trouble(report)
    assert peer.of("r") == ["task_result"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
def test_what_may_come_right_is_tried_again(peer: Peer, runs: Runs, status: int) -> None:
    peer.answer = lambda request: Answer(status) if len(peer.requests) < 3 else TAKEN
    report = runs.open()
    report.put(result(1))
    arrives(report)
    assert peer.of("r") == ["task_result"] * 3


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "answered 400 x: 'because'"),
        (
            401,
            "Both sides need the same secret: 'security' of the environment, and that of this worker",
        ),
        (403, "Both sides need the same secret"),
        (404, "Is its callback_url one of Wove's, with the right token?"),
        (301, "answered 301 x"),
    ],
)
def test_what_does_not_come_right_is_tried_once(
    peer: Peer, runs: Runs, status: int, says: str
) -> None:
    peer.answer = lambda request: Answer(status, body=b"because")
    report = runs.open()
    report.put(result(1))
    assert says in trouble(report) and trouble(report).startswith(
        "the end of run r of task 'pdf' is lost: http://"
    )
    assert peer.of("r") == ["task_result"]


def test_a_start_that_is_refused_changes_nothing(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(404) if "task_started" in request.types else TAKEN
    report = runs.started()
    report.put(result(1))
    arrives(report)
    assert runs.cancelled == []


def test_a_result_that_is_too_large_is_an_error_of_the_task(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(413) if len(request.body) > 4000 else TAKEN
    report = runs.open()
    report.put(result("x" * 5000))
    arrives(report)
    failed = peer.events[-1]
    assert failed["type"] == "task_error" and failed["error"]["source"] == "config"
    assert not failed["error"]["retryable"]
    assert str(to_exception(failed, task="pdf")) == (
        "what task 'pdf' has to report is pickled 5018 bytes, more than the receiver takes in one message "
        "(executor_config 'max_message_bytes'). Have the task store it, and return where it is"
    )


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_request_that_was_cut_off_is_sent_again(peer: Peer, runs: Runs, how: str) -> None:
    peer.answer = lambda request: Answer(instead=how) if len(peer.requests) == 1 else TAKEN
    report = runs.open()
    report.put(result(1))
    arrives(report)
    assert peer.of("r") == ["task_result"] * 2  # which counts once


def test_the_end_does_not_wait_behind_a_heartbeat(peer: Peer, runs: Runs) -> None:
    report = runs.started()
    peer.answer = lambda request: Answer(instead="hang") if "heartbeat" in request.types else TAKEN
    report.put(event("heartbeat"))
    peer.until(lambda: "heartbeat" in peer.of("r"))
    report.put(result(1))
    arrives(report)
    assert peer.requests[-1].connection != peer.requests[0].connection


def test_what_is_not_http_is_trouble(peer: Peer, runs: Runs) -> None:
    class Odd(Answer):
        def encode(self) -> bytes:
            return b"220 ready\r\n"

    peer.answer = lambda request: Odd()
    report = runs.open(retry_seconds=0.2)
    report.put(result(1))
    assert "not an HTTP/1.1 answer: it begins with '220 ready'" in trouble(report)


# --- the connection ---------------------------------------------------------------------------------------


def test_the_connection_is_kept_for_the_next_run(peer: Peer, runs: Runs) -> None:
    for number in range(3):
        report = runs.open(f"r{number}")
        report.put(result(number, f"r{number}"))
        arrives(report)
    assert {request.connection for request in peer.requests} == {1} and peer.opened == 1
    (worker,) = {request.headers["x-wove-worker"] for request in peer.requests}
    assert worker.split("/")[1] == str(os.getpid())


def test_a_connection_that_was_closed_meanwhile_is_opened_again(peer: Peer, runs: Runs) -> None:
    first = runs.open("first")
    first.put(result(0, "first"))
    arrives(first)
    peer.hang_up()
    peer.until(lambda: not peer.connections)
    second = runs.open("second", retry_seconds=0)
    second.put(result(1, "second"))
    arrives(second)
    assert peer.opened == 2


def test_a_dropped_connection_is_replaced_and_its_runs_say_that_they_are_there(
    peer: Peer, runs: Runs
) -> None:
    for run_id in ("one", "two"):
        runs.started(run_id)
    before = len(peer.requests)
    peer.hang_up()
    peer.until(lambda: len(peer.events) == 4)
    (request,) = peer.requests[before:]
    assert request.types == ["heartbeat"] * 2 and request.connection == 2
    assert {e["run_id"] for e in request.events} == {"one", "two"}


def test_a_receiver_that_closes_every_time_is_not_asked_all_the_time(
    peer: Peer, runs: Runs
) -> None:
    peer.answer = lambda request: Answer(headers={"Connection": "close"}, then="close")
    report = runs.started()
    time.sleep(0.3)
    assert peer.of("r") == ["task_started"] and peer.opened == 1
    report.put(result(1))
    arrives(report)
    assert peer.opened == 2


def test_nor_is_one_that_does_so_without_a_word(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(then="close")
    report = runs.started()
    time.sleep(1)
    assert peer.opened < 10
    report.put(result(1))
    arrives(report)


def test_http_1_0(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(200, minor=0, then="close")
    report = runs.started()
    report.put(result(1))
    arrives(report)
    assert peer.opened == 2


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left(peer: Peer) -> None:
    runs = Runs(peer)
    report = runs.started()
    report.put(result("x" * 2 * LARGE))
    arrives(report)
    peer.close()


def test_ipv6() -> None:
    try:
        peer = Peer("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    report = Runs(peer).started()
    report.put(result(1))
    arrives(report)
    assert peer.requests[0].headers["host"] == f"[::1]:{peer.port}"
    peer.close()
    sender.close(10)


def test_no_proxy_is_asked(peer: Peer, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    report = runs.open(retry_seconds=0)
    report.put(result(1))
    arrives(report)


# --- large ones -------------------------------------------------------------------------------------------


def test_a_large_result_goes_over_a_connection_of_its_own(peer: Peer, runs: Runs) -> None:
    beaten = threading.Event()

    def slow(request: Request) -> Answer:
        if "task_result" in request.types:
            beaten.wait(10)
        return TAKEN

    large, other = runs.started("large"), runs.started("other")
    peer.answer = slow
    value = os.urandom(2 * LARGE)
    large.put(result(value, "large"))
    peer.until(lambda: "task_result" in peer.of("large"))
    other.put(event("heartbeat", "other"))
    peer.until(lambda: "heartbeat" in peer.of("other"))  # although the large one is not through
    beaten.set()
    arrives(large)
    (upload,) = [request for request in peer.requests if "task_result" in request.types]
    assert upload.connection == 2
    assert loads(upload.events[0]["result_pickle"], label="r") == value
    assert runs.cancelled == []


def test_a_large_result_is_sent_again(peer: Peer, runs: Runs) -> None:
    answers = [Answer(503), Answer(instead="reset"), TAKEN]
    peer.answer = lambda request: answers.pop(0)
    value = os.urandom(2 * LARGE)
    report = runs.open()
    report.put(event("task_started", host="h"))
    report.put(result(value))
    arrives(report)
    assert peer.of("r") == ["task_result"] * 3
    assert all(
        loads(e["result_pickle"], label="r") == value and e["host"] == "h" for e in peer.events
    )


def test_a_large_result_that_is_refused_before_it_is_read(peer: Peer, runs: Runs) -> None:
    peer.refuse_body = Answer(413)
    report = runs.open()
    report.put(result(os.urandom(20 * 1024 * 1024)))
    failed = peer.end("r")
    arrives(report)
    assert failed["type"] == "task_error" and "'max_message_bytes'" in failed["error"]["message"]


def test_heartbeats_go_on_while_a_large_result_is_on_its_way(peer: Peer, runs: Runs) -> None:
    taken = threading.Event()

    def slow(request: Request) -> Answer:
        if "task_result" in request.types:
            taken.wait(10)
        return TAKEN

    peer.answer = slow
    report = runs.started(heartbeat_seconds=0.05)
    report.put(result(os.urandom(2 * LARGE)))
    peer.until(lambda: peer.of("r").count("heartbeat") >= 3)
    taken.set()
    arrives(report)
    count = peer.of("r").count("heartbeat")
    time.sleep(0.2)
    assert peer.of("r").count("heartbeat") <= count + 1
    assert peer.of("r").count("task_result") == 1


def test_a_receiver_that_has_no_room_is_waited_for(
    peer: Peer, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "STALL_SECONDS", 0.05)
    peer.answer = lambda request: Answer(wait=1) if "task_result" in request.types else TAKEN
    report = runs.started(heartbeat_seconds=0.05)
    report.put(result(os.urandom(2 * LARGE)))
    monkeypatch.setattr(sender, "MAX_STALLS", 1000)
    arrives(report)
    assert peer.of("r").count("task_result") == 1


def test_large_results_of_several_runs(peer: Peer, runs: Runs) -> None:
    values = {f"r{number}": os.urandom(2 * LARGE) for number in range(10)}
    for run_id, value in values.items():
        runs.open(run_id).put(result(value, run_id))
    for report in runs.reports:
        arrives(report)
    assert {e["run_id"]: loads(e["result_pickle"], label="r") for e in peer.events} == values


# --- signatures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 2 * LARGE])
def test_requests_are_signed(peer: Peer, runs: Runs, size: int) -> None:
    config: SecurityConfig = {"type": "signed", "secret": "only for this"}
    verifier = NetworkExecutorSecurity.from_config(config)
    refused: list[PermissionError] = []

    def verify(request: Request) -> Answer:
        try:
            verifier.verify_headers(
                transport="http", target=request.target, body=request.body, headers=request.headers
            )
        except PermissionError as error:
            refused.append(error)
            return Answer(401)
        return (
            Answer(503) if len(peer.requests) == 1 else TAKEN
        )  # what is sent again has another nonce

    peer.answer = verify
    report = runs.open(security=NetworkExecutorSecurity.from_config(config))
    report.put(result(os.urandom(size)))
    arrives(report)
    assert refused == [] and len(peer.requests) == 2


# --- forks ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(peer: Peer, runs: Runs) -> None:
    report = runs.started()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            report.put(result(1))  # the parent's: it has no way here
            mine = Runs(peer).open("child")
            mine.put(result(os.getpid(), "child"))
            outcome = mine.wait(10)
            status = int(outcome is None or outcome.error is not None)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert loads(peer.end("child")["result_pickle"], label="r") == pid
    report.put(result(2))
    arrives(report)
    assert loads(peer.end("r")["result_pickle"], label="r") == 2
    workers = {
        e["run_id"]: request.headers["x-wove-worker"]
        for request in peer.requests
        for e in request.events
    }
    assert workers["r"] != workers["child"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_connection_open(peer: Peer, runs: Runs) -> None:
    report = runs.open()
    report.put(result(1))
    arrives(report)
    pid = os.fork()
    if not pid:
        time.sleep(30)
        os._exit(0)
    try:
        sender.close(10)
        peer.until(lambda: not peer.connections)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_pickles_are_not_kept_beside_what_is_sent(peer: Peer, runs: Runs) -> None:
    peer.answer = lambda request: Answer(503)
    report = runs.open()
    report.put(result(os.urandom(2 * LARGE)))
    peer.until(lambda: len(peer.requests) == 2)
    assert report.run_events.end is not None
    assert not any(isinstance(value, Pickled) for value in report.run_events.end.values())
    peer.answer = lambda request: TAKEN
    arrives(report)
    assert report.run_events.state is RunState.SETTLED
