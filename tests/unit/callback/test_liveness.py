"""Whose end is noticed by the end of a connection."""

from __future__ import annotations

import socket
import struct

import pytest
from tests.support.receiving import (
    Receiving,
    RecordingSubscriber,
    Wire,
    beat,
    eventually,
    result,
    started,
)

from wove.callback import server
from wove.callback.receiver import RunStatus

WORKER = {"X_Wove_Worker": "host/17/abc"}


def quiet(receiving_loop: Receiving, subscriber: RecordingSubscriber) -> None:
    """Everything that came before has been dealt with: a connection that begins later has ended, and was noticed."""
    seen = len(subscriber.lost)
    with Wire(receiving_loop.routes[-1]) as wire:
        assert wire.post(started("r-last"), X_Wove_Worker="last").status == 204
    eventually(lambda: len(subscriber.lost) > seen and subscriber.lost[-1] == (["r-last"], "last"))
    subscriber.lost.pop()


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_worker_that_ends_takes_its_runs_along(receiving_loop: Receiving, how: str) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        wire.post(started("r1"), **WORKER)
        wire.post(
            [beat("r2"), started("r3"), {"type": "log", "run_id": "r4", "message": "x"}], **WORKER
        )
        wire.post(result("r3"), **WORKER)
        assert subscriber.lost == []
        if how == "reset":
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert eventually(lambda: subscriber.lost) == [(["r1", "r2", "r4"], "host/17/abc")]


def test_a_run_that_was_cancelled_or_is_unknown(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        wire.post(started("r1"), **WORKER)
        subscriber.statuses["r1"] = RunStatus.CANCELLED
        assert wire.post([beat("r1"), beat("x")], **WORKER).status == 410
    assert eventually(lambda: subscriber.lost) == [
        (["r1"], "host/17/abc")
    ]  # its end is still of interest


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**WORKER, "Via": "1.1 front"},
        {**WORKER, "X_Forwarded_For": "::1"},
        {**WORKER, "Forwarded": "x"},
    ],
)
def test_a_connection_that_is_not_a_workers_own_tells_nothing(
    receiving_loop: Receiving, fields: dict[str, str]
) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        wire.post(started("r1"), **fields)
    quiet(receiving_loop, subscriber)
    assert subscriber.lost == []


def test_two_workers_on_one_connection_are_behind_a_proxy(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        wire.post(started("r1"), **WORKER)
        wire.post(started("r2"), X_Wove_Worker="another")
    quiet(receiving_loop, subscriber)
    assert subscriber.lost == []


def test_a_worker_that_connects_anew_is_not_gone(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    with Wire(route) as second:
        with Wire(route) as first:
            first.post([started("r1"), started("r2")], **WORKER)
            second.post(beat("r1"), **WORKER)
        assert eventually(lambda: subscriber.lost) == [(["r2"], "host/17/abc")]


def test_the_end_may_come_over_another_connection(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    with Wire(route) as first, Wire(route) as second:
        first.post(started("r1"), **WORKER)
        second.post(result("r1"))
    quiet(receiving_loop, subscriber)
    assert subscriber.lost == []


def test_each_party_hears_of_its_own(receiving_loop: Receiving) -> None:
    first, second = (
        RecordingSubscriber(r1=RunStatus.UNKNOWN),
        RecordingSubscriber(r2=RunStatus.UNKNOWN),
    )
    receiving_loop.open(first, token="t")
    with Wire(receiving_loop.open(second, token="t")) as wire:
        assert wire.post([started("r1"), started("r2")], **WORKER).fields == {}
        assert (first.taken, second.taken) == ([("task_started", "r2")], [("task_started", "r1")])
    eventually(lambda: first.lost and second.lost)
    assert (first.lost, second.lost) == ([(["r2"], "host/17/abc")], [(["r1"], "host/17/abc")])


def test_closing_is_nobodys_end(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    with Wire(route) as wire:
        wire.post(started("r1"), **WORKER)
        receiving_loop.call(route.close())
        assert wire.ended()
    assert subscriber.lost == []


def test_an_end_that_the_worker_s_system_makes_is_told_from_others(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    with Wire(route) as wire:
        wire.post(started("r1"), X_Wove_Worker="host/17/abc")
    eventually(lambda: subscriber.ends)
    assert subscriber.ends.pop().by_peer

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.05)
    with Wire(route) as wire:
        wire.post(started("r2"), X_Wove_Worker="host/17/abc")
        wire.send(b"P")  # and no more: the receiver gives the connection up
        eventually(lambda: subscriber.ends)
    assert not subscriber.ends.pop().by_peer
