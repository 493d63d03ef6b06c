"""The states of a run's events, without a sender."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wove.callback.delivery_queue import DeliveryQueue
from wove.callback.event_batch import EventBatch
from wove.callback.link import Destination
from wove.callback.reporter import RunReporter
from wove.callback.run_events import LARGE_BYTES, RunEvents, RunState
from wove.net.http1 import Head
from wove.protocol.pickling import dumps
from wove.security import NetworkExecutorSecurity

SECURITY = NetworkExecutorSecurity.from_config(None)
DESTINATION = Destination.parse("http://127.0.0.1:1/wove/events/a-token")
REFUSED = "cannot connect: refused"


class Run:
    """The events of one run, and what its reporter was told."""

    def __init__(self, *, detached: bool = False) -> None:
        self.begun = self.cancelled = 0
        self.report = RunReporter(
            "r",
            "pdf",
            DESTINATION,
            SECURITY,
            retry_seconds=60,
            heartbeat_seconds=5,
            detached=detached,
            cancel=self._cancel,
        )
        self.events: RunEvents = self.report.run_events
        self.queue = DeliveryQueue()

    def ask(self) -> None:
        self.report.ask(self._begin)
        self.queue.ask(self.events, 0.0)

    def end(self, size: int = 0) -> None:
        result = dumps(b"x" * size, label="v")
        self.queue.add(self.events, event("task_result", result_pickle=result), 0.0)

    def batch(self, now: float = 0.0) -> EventBatch:
        batch = self.queue.next_batch(now)
        assert batch is not None
        return batch

    def answer(self, status: int, *fields: tuple[str, str], now: float = 0.0) -> None:
        head = Head(1, status, "x", list(fields))
        self.queue.on_response(self.batch(now), head, b"", now, kept=True)

    def has(self, state: RunState) -> bool:
        return self.events.state is state

    def _begin(self) -> None:
        self.begun += 1

    def _cancel(self) -> None:
        self.cancelled += 1


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "run_id": "r", "task_id": "pdf", **fields}


def test_a_run_is_reported() -> None:
    run = Run()
    assert run.has(RunState.OPEN)
    run.end()
    assert run.has(RunState.ENDED)
    run.batch()
    assert run.has(RunState.REPORTING)


def test_a_batch_that_did_not_get_through_is_sent_again() -> None:
    run = Run()
    run.end()
    run.queue.put_back(run.batch())
    assert run.has(RunState.ENDED)
    run.answer(204)
    assert run.has(RunState.SETTLED) and not run.queue.alive


def test_a_run_that_is_awaited_begins() -> None:
    run = Run()
    run.ask()
    assert run.has(RunState.ASKING) and run.begun == 0
    run.answer(204)
    assert run.has(RunState.OPEN) and run.begun == 1


def test_a_run_that_nobody_waits_for_does_not_begin() -> None:
    run = Run()
    run.ask()
    run.answer(410)
    outcome = run.report.wait(0)
    assert outcome is not None and not outcome.awaited
    assert run.has(RunState.SETTLED) and run.begun == 0


def test_a_detached_run_begins_but_says_nothing_to_a_receiver_that_does_not_wait() -> None:
    run = Run(detached=True)
    run.ask()
    run.answer(410)
    assert run.has(RunState.SUPPRESSED) and run.begun == 1 and run.cancelled == 0
    run.queue.add(run.events, event("log", message="hello"), 0.0)
    assert run.queue.next_batch(0.0) is None


def test_a_detached_run_begins_where_the_receiver_cannot_be_asked() -> None:
    run = Run(detached=True)
    run.ask()
    run.queue.add_failures(run.queue.ready, REFUSED, 0.0, refused=True)
    assert run.has(RunState.OPEN) and run.begun == 1


def test_a_run_that_ends_while_its_receiver_is_asked_does_not_begin() -> None:
    run = Run()
    run.ask()
    batch = run.batch()
    run.end()
    assert run.has(RunState.ENDED)
    run.queue.on_response(batch, Head(1, 204, "x", []), b"", 0.0, kept=True)
    assert run.has(RunState.ENDED) and run.begun == 0


def test_the_end_of_a_suppressed_run_is_sent() -> None:
    run = Run()
    run.queue.add(run.events, event("heartbeat"), 0.0)
    run.answer(410)
    assert run.has(RunState.SUPPRESSED) and run.cancelled == 1
    run.end(LARGE_BYTES)
    assert run.has(RunState.ENDED) and run.events.heartbeat_due == math.inf
    assert run.queue.uploads == [run.events]


def test_an_end_that_is_too_large_is_replaced_once() -> None:
    run = Run()
    run.end(100)
    run.answer(413)
    assert run.has(RunState.ENDED) and run.events.shortened
    run.answer(413)
    assert run.has(RunState.SETTLED)


@pytest.mark.parametrize(("refused", "seconds"), [(True, 10.0), (False, 60.0)])
def test_the_end_is_given_up(refused: bool, seconds: float) -> None:
    run = Run()
    run.end()
    run.queue.add_failures(run.queue.ready, REFUSED, 0.0, refused=refused)
    assert run.events.deadline() == seconds
    run.queue.run_timers(seconds)
    outcome = run.report.wait(0)
    assert outcome is not None and outcome.error is not None
    assert f"could not be reported within {seconds:g} s: {REFUSED}" in str(outcome.error)


def test_a_settled_run_stays_settled() -> None:
    run = Run()
    run.end()
    run.answer(204)
    run.queue.register(run.events)
    run.queue.ask(run.events, 0.0)
    assert run.has(RunState.SETTLED) and not run.queue.alive
