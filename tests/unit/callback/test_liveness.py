"""Whose end is noticed by the end of a connection."""

from __future__ import annotations

import socket
import struct

import pytest
from tests.support.receiving import Receiving, Waiting, Wire, beat, eventually, result, started

from wove.callback.receiver import RunStatus

WORKER = {"X_Wove_Worker": "host/17/abc"}


def quiet(house: Receiving, party: Waiting) -> None:
    """Everything that came before has been dealt with: a connection that begins later has ended, and was noticed."""
    seen = len(party.lost)
    with Wire(house.routes[-1]) as wire:
        assert wire.post(started("r-last"), X_Wove_Worker="last").status == 204
    eventually(lambda: len(party.lost) > seen and party.lost[-1] == (["r-last"], "last"))
    party.lost.pop()


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_worker_that_ends_takes_its_runs_along(house: Receiving, how: str) -> None:
    party = Waiting()
    with Wire(house.open(party)) as wire:
        wire.post(started("r1"), **WORKER)
        wire.post(
            [beat("r2"), started("r3"), {"type": "log", "run_id": "r4", "message": "x"}], **WORKER
        )
        wire.post(result("r3"), **WORKER)
        assert party.lost == []
        if how == "reset":
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert eventually(lambda: party.lost) == [(["r1", "r2", "r4"], "host/17/abc")]


def test_a_run_that_was_cancelled_or_is_unknown(house: Receiving) -> None:
    party = Waiting()
    with Wire(house.open(party)) as wire:
        wire.post(started("r1"), **WORKER)
        party.standings["r1"] = RunStatus.CANCELLED
        assert wire.post([beat("r1"), beat("x")], **WORKER).status == 410
    assert eventually(lambda: party.lost) == [
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
    house: Receiving, fields: dict[str, str]
) -> None:
    party = Waiting()
    with Wire(house.open(party)) as wire:
        wire.post(started("r1"), **fields)
    quiet(house, party)
    assert party.lost == []


def test_two_workers_on_one_connection_are_behind_a_proxy(house: Receiving) -> None:
    party = Waiting()
    with Wire(house.open(party)) as wire:
        wire.post(started("r1"), **WORKER)
        wire.post(started("r2"), X_Wove_Worker="another")
    quiet(house, party)
    assert party.lost == []


def test_a_worker_that_connects_anew_is_not_gone(house: Receiving) -> None:
    party = Waiting()
    route = house.open(party)
    with Wire(route) as second:
        with Wire(route) as first:
            first.post([started("r1"), started("r2")], **WORKER)
            second.post(beat("r1"), **WORKER)
        assert eventually(lambda: party.lost) == [(["r2"], "host/17/abc")]


def test_the_end_may_come_over_another_connection(house: Receiving) -> None:
    party = Waiting()
    route = house.open(party)
    with Wire(route) as first, Wire(route) as second:
        first.post(started("r1"), **WORKER)
        second.post(result("r1"))
    quiet(house, party)
    assert party.lost == []


def test_each_party_hears_of_its_own(house: Receiving) -> None:
    first, second = Waiting(r1=RunStatus.UNKNOWN), Waiting(r2=RunStatus.UNKNOWN)
    house.open(first, token="t")
    with Wire(house.open(second, token="t")) as wire:
        assert wire.post([started("r1"), started("r2")], **WORKER).fields == {}
        assert (first.taken, second.taken) == ([("task_started", "r2")], [("task_started", "r1")])
    eventually(lambda: first.lost and second.lost)
    assert (first.lost, second.lost) == ([(["r2"], "host/17/abc")], [(["r1"], "host/17/abc")])


def test_closing_is_nobodys_end(house: Receiving) -> None:
    party = Waiting()
    route = house.open(party)
    with Wire(route) as wire:
        wire.post(started("r1"), **WORKER)
        house.call(route.close())
        assert wire.ended()
    assert party.lost == []
