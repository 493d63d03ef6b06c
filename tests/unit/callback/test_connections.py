"""What goes over one connection, how long it is kept, and how much memory all of them may take."""

from __future__ import annotations

import json
import socket
import time
from itertools import pairwise

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

from wove.callback import receiver as receivers, server
from wove.callback.receiver import Receiver, Route


def receiver_of(route: Route) -> Receiver:
    (found,) = [each for each in receivers._receivers.values() if each.port == route.port]
    return found


def large(run_id: str, size: int) -> bytes:
    return json.dumps(result(run_id, "A" * size)).encode()


def test_a_connection_is_kept(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        for number in range(20):
            assert wire.post(beat(f"r{number}")).status == 204
    assert [run for _, run in subscriber.taken] == [f"r{number}" for number in range(20)]


def test_small_answers_do_not_wait_for_each_other(receiving_loop: Receiving) -> None:
    """With Nagle's algorithm the second of two small answers would wait for the acknowledgement of the first: 40 ms."""
    route = receiving_loop.open(RecordingSubscriber())
    with Wire(route) as wire:
        assert wire.post(beat("r1")).status == 204
        (connection,) = receiver_of(route)._connections
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_requests_in_a_row_are_answered_in_their_order(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        raw = b""
        for number in range(300):  # more than are worked on in one go
            body = json.dumps(beat(f"{'r' if number % 3 else 'x'}{number}")).encode()
            raw += wire.head("POST", wire.path, {"Content-Length": str(len(body))}) + body
        wire.send(raw)
        assert [wire.answer().status for _ in range(300)] == [
            204 if number % 3 else 410 for number in range(300)
        ]
    assert len(subscriber.taken) == 200


def test_a_large_body_does_not_let_the_next_request_overtake(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        body, after = large("r1", 4_000_000), json.dumps(beat("r2")).encode()
        wire.send(wire.head("POST", wire.path, {"Content-Length": str(len(body))}) + body)
        wire.send(wire.head("POST", wire.path, {"Content-Length": str(len(after))}) + after)
        assert [wire.answer().status, wire.answer().status] == [204, 204]
    assert subscriber.taken == [("task_result", "r1"), ("heartbeat", "r2")]
    assert subscriber.events[0]["result_pickle"].size == 3_000_000


def test_byte_by_byte(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        body = json.dumps(beat("r1")).encode()
        raw = wire.head("POST", wire.path, {"Content-Length": str(len(body))}) + body
        for byte in raw + raw:
            wire.send(bytes([byte]))
        assert [wire.answer().status, wire.answer().status] == [204, 204]


def test_chunks(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        for body in (json.dumps(beat("r1")).encode(), large("r2", 1_000_000)):
            edges = [0, 1, 5, len(body) // 2, len(body)]
            raw = b"".join(
                b"%x;x=y\r\n%b\r\n" % (end - at, body[at:end]) for at, end in pairwise(edges)
            )
            wire.send(
                wire.head("POST", wire.path, {"Transfer-Encoding": "chunked"})
                + raw
                + b"0\r\nT: x\r\n\r\n"
            )
            assert wire.answer().status == 204
        assert wire.post(beat("r3")).status == 204
    assert [run for _, run in subscriber.taken] == ["r1", "r2", "r3"]


@pytest.mark.parametrize("size", [100, 200_000])
def test_expect_100_continue(receiving_loop: Receiving, size: int) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        body = large("r1", size)
        wire.send(
            wire.head(
                "POST", wire.path, {"Content-Length": str(len(body)), "Expect": "100-Continue"}
            )
        )
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == 204
        # Whoever does not wait is not told.
        fields = {"Content-Length": str(len(body)), "Expect": "100-continue"}
        if size == 100:
            wire.send(wire.head("POST", wire.path, fields) + body)
            assert wire.answer().status == 204


def test_expect_and_a_refusal(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        wire.send(
            wire.head("POST", wire.path + "x", {"Content-Length": "10", "Expect": "100-continue"})
        )
        answer = wire.answer()
        assert (answer.status, answer.fields["connection"]) == (404, "close")
        assert wire.ended()


def test_http_1_0(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    body = json.dumps(beat("r1")).encode()
    with Wire(route) as wire:
        answer = wire.request(body=body, version="1.0")
        assert (answer.status, answer.fields["connection"]) == (204, "close")
        assert wire.ended()
    with Wire(route) as wire:
        answer = wire.request(body=body, version="1.0", Connection="keep-alive")
        assert (answer.status, answer.fields["connection"]) == (204, "keep-alive")
        assert wire.request(body=body, Connection="close").fields["connection"] == "close"
        assert wire.ended()
    assert len(subscriber.taken) == 3


def test_who_says_that_nothing_more_comes_still_gets_the_answers(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        for body in (json.dumps(beat("r1")).encode(), large("r2", 500_000)):
            wire.send(wire.head("POST", wire.path, {"Content-Length": str(len(body))}) + body)
        wire.sock.shutdown(socket.SHUT_WR)
        assert [wire.answer().status, wire.answer().status] == [204, 204]
        assert wire.ended()


def test_a_body_that_is_cut_off_is_not_taken(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    found = receiver_of(route)
    with Wire(route) as wire:
        wire.send(wire.head("POST", wire.path, {"Content-Length": "100000"}) + b"x" * 70_000)
        eventually(lambda: found.large.in_use)
    eventually(lambda: not found._connections)
    assert found.large.in_use == found.small.in_use == 0 and subscriber.taken == []


# ------------------------------------------------------------------ time


def test_heads_that_trickle_are_given_up(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.1)
    route = receiving_loop.open(RecordingSubscriber())
    with Wire(route) as silent, Wire(route) as slow:
        slow.send(b"POST /wove/ev")
        answer = slow.answer()
        assert answer.status == 408 and "too slowly" in answer.text
        assert slow.ended() and silent.ended()


def test_bodies_that_trickle_are_given_up(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)
    route = receiving_loop.open(RecordingSubscriber())
    found = receiver_of(route)
    with Wire(route) as wire:
        wire.send(wire.head("POST", wire.path, {"Content-Length": "100000"}) + b"x")
        assert wire.answer().status == 408
        assert found.large.in_use == 0
        assert wire.ended()


def test_a_refused_body_that_does_not_come_ends_the_connection(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        wire.send(wire.head("POST", wire.path + "x", {"Content-Length": "100"}) + b"x")
        assert wire.answer().status == 404
        assert wire.ended()


def test_idle_connections_are_closed_unless_runs_go_on(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    with Wire(route) as idle, Wire(route) as busy:
        assert busy.post(started("r1"), X_Wove_Worker="w").status == 204
        assert idle.post(beat("r2")).status == 204
        assert idle.ended()
        time.sleep(0.2)  # no condition tells that something does not happen
        assert busy.post(result("r1")).status == 204
        assert busy.ended()


def test_after_a_refusal_who_goes_on_is_not_listened_to_for_long(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.1)
    route = receiving_loop.open(RecordingSubscriber(), most=1000)
    with Wire(route) as wire:
        wire.send(wire.head("POST", wire.path, {"Content-Length": "1000000"}))
        assert wire.answer().status == 413
        assert wire.sock.recv(10) == b""

        def refused() -> bool:
            try:
                wire.send(b"x")
            except OSError:
                return True
            return False

        eventually(refused)


# ------------------------------------------------------------------ crowds


def test_strangers_make_room_for_those_who_come_after(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "MAX_STRANGERS", 10)
    route = receiving_loop.open(RecordingSubscriber())
    known = Wire(route)
    assert known.post(beat("r1")).status == 204
    strangers = [Wire(route) for _ in range(30)]
    assert all(wire.ended() for wire in strangers[:20])
    with Wire(route) as another:
        assert another.post(beat("r2")).status == 204
    assert known.post(beat("r1")).status == 204
    for wire in (known, *strangers):
        wire.sock.close()


def test_all_connections_stay_below_the_limit_of_descriptors(
    receiving_loop: Receiving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receivers, "max_connections", lambda: 3)
    route = receiving_loop.open(RecordingSubscriber())
    known = [Wire(route) for _ in range(3)]
    for number, wire in enumerate(known):
        assert wire.post(beat(f"r{number}")).status == 204
    for _ in range(3):
        with Wire(route) as another:
            assert another.ended()
    known[0].sock.close()
    eventually(lambda: len(receiver_of(route)._connections) == 2)
    with Wire(route) as another:
        assert another.post(beat("r3")).status == 204
    for wire in known:
        wire.sock.close()
    lines = [each.getMessage() for each in caplog.records if "connections" in each.getMessage()]
    assert len(lines) == 1 and lines[0].startswith("callback receiver: more than 3 connections")


def test_bodies_wait_until_there_is_room(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    most = 1_000_000
    route = receiving_loop.open(subscriber, most=most)
    found = receiver_of(route)
    body, other = large("r1", 700_000), large("r2", 600_000)
    with Wire(route) as first, Wire(route) as second, Wire(route) as third:
        first.send(first.head("POST", first.path, {"Content-Length": str(len(body))}) + body[:-1])
        eventually(lambda: found.large.in_use == len(body))
        second.send(
            second.head(
                "POST", second.path, {"Content-Length": str(len(other)), "Expect": "100-continue"}
            )
        )
        assert third.post(beat("r3")).status == 204, "a sign of life does not wait"
        assert found.large.in_use == len(body)
        first.send(body[-1:])
        assert first.answer().status == 204
        assert second.answer().status == 100
        second.send(other)
        assert second.answer().status == 204
    assert subscriber.taken == [("heartbeat", "r3"), ("task_result", "r1"), ("task_result", "r2")]
    eventually(lambda: found.large.in_use == 0)


def test_who_leaves_while_waiting_for_room_holds_up_nobody(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber, most=1_000_000)
    found = receiver_of(route)
    body = large("r1", 700_000)
    with Wire(route) as first, Wire(route) as last:
        first.send(first.head("POST", first.path, {"Content-Length": str(len(body))}) + body[:-1])
        eventually(lambda: found.large.in_use == len(body))
        with Wire(route) as leaves:
            leaves.send(
                leaves.head("POST", leaves.path, {"Content-Length": str(len(body))})
                + body[:200_000]
            )
            eventually(lambda: found.large._queue)
        last.send(last.head("POST", last.path, {"Content-Length": str(len(body))}) + body)
        first.send(body[-1:])
        assert first.answer().status == 204
        assert last.answer().status == 204
    eventually(lambda: found.large.in_use == 0)


def test_a_chunked_body_takes_room_once_it_is_not_small(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber, most=10_000_000)
    found = receiver_of(route)
    body = large("r1", 1_000_000)
    with Wire(route) as wire:
        wire.send(
            wire.head("POST", wire.path, {"Transfer-Encoding": "chunked"})
            + b"%x\r\n" % len(body)
            + body[:1000]
        )
        eventually(lambda: found.small.in_use)
        wire.send(body[1000:])
        eventually(lambda: found.large.in_use == 10_000_000)
        wire.send(b"\r\n0\r\n\r\n")
        assert wire.answer().status == 204
    assert found.large.in_use == found.small.in_use == 0


def test_many_workers_at_once(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    wires = [Wire(route) for _ in range(200)]
    for number, wire in enumerate(wires):
        body = json.dumps([started(f"r{number}"), result(f"r{number}")]).encode()
        wire.send(wire.head("POST", wire.path, {"Content-Length": str(len(body))}) + body)
    assert {wire.answer().status for wire in wires} == {204}
    for wire in wires:
        wire.sock.close()
    assert len(subscriber.taken) == 400


def test_who_reads_no_answers_is_not_read_either(receiving_loop: Receiving) -> None:
    """Answers that nobody takes pile up neither here nor for ever."""
    route = receiving_loop.open(RecordingSubscriber())
    found = receiver_of(route)
    with Wire(route) as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.sock.settimeout(0.5)
        raw = wire.head("GET", wire.path, {}) * 1000
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                wire.send(raw)
                sent += len(raw)
        (connection,) = found._connections
        assert connection._transport.get_write_buffer_size() < 2_000_000
