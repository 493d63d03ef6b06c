"""What each request is answered, and which events are taken."""

from __future__ import annotations

import contextlib
import http.client
import json
import pickle
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.receiving import (
    SIGNED,
    Receiving,
    RecordingSubscriber,
    Wire,
    beat,
    eventually,
    result,
    started,
)

from wove.callback.receiver import RunStatus
from wove.protocol.pickling import Pickled
from wove.protocol.signing import digest
from wove.security import NetworkExecutorSecurity


@pytest.mark.parametrize(
    "form", [lambda e: e[0], lambda e: e, lambda e: {"events": e}], ids=["one", "list", "events"]
)
def test_events_are_taken_in_their_order(receiving_loop: Receiving, form: object) -> None:
    subscriber = RecordingSubscriber()
    events = [started("r1"), result("r1")]
    shaped = form(events)  # type: ignore[operator]
    with Wire(receiving_loop.open(subscriber)) as wire:
        answer = wire.post(shaped)
        assert answer == (204, {}, b"")
        assert wire.post(beat("r2")).status == 204
    assert subscriber.taken[0] == ("task_started", "r1") and subscriber.taken[-1] == (
        "heartbeat",
        "r2",
    )
    if shaped is not events[0]:
        assert subscriber.taken[1] == ("task_result", "r1")
        found = subscriber.events[1]["result_pickle"]
        assert isinstance(found, Pickled) and b"".join(found.chunks) == b"N."


def test_runs_of_every_standing(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber(
        cancelled=RunStatus.CANCELLED, ended=RunStatus.ENDED, stopped=RunStatus.STOPPED
    )
    with Wire(receiving_loop.open(subscriber)) as wire:
        assert wire.post(result("ended")).status == 204, "a duplicate is as good as the first"
        assert wire.post(beat("ended")).status == 410, "who still works on it is to stop"
        gone = wire.post(beat("cancelled"))
        assert gone.status == 410 and "Nobody waits" in gone.text
        assert gone.fields["x-wove-cancelled"] == "cancelled"
        assert wire.post(result("x")).status == 410
        for event in beat("stopped"), result("stopped"):
            stopped = wire.post(event)
            assert (stopped.status, stopped.fields["x-wove-cancelled"]) == (410, "stopped")
        assert subscriber.taken == []
        assert wire.post(result("cancelled")).status == 204
        assert subscriber.taken == [("task_result", "cancelled")]
        mixed = wire.post([beat("r1"), beat("cancelled"), beat("x"), result("ended"), beat("x")])
        assert (mixed.status, mixed.fields) == (
            204,
            {"x-wove-gone": "cancelled,x", "x-wove-cancelled": "cancelled"},
        )
        assert wire.post([beat("cancelled"), result("cancelled")]).fields == {}
        assert wire.post([]).status == 204


def test_of_a_run_that_another_worker_has_only_a_result_is_taken(receiving_loop: Receiving) -> None:
    class First(RecordingSubscriber):
        def status(self, run_id: str, worker: str) -> RunStatus:
            return RunStatus.AWAITED if worker == "first" else RunStatus.ELSEWHERE

    subscriber = First()
    route = receiving_loop.open(subscriber)
    with Wire(route) as first, Wire(route) as second:
        assert first.post(started("r1"), X_Wove_Worker="first").status == 204
        for kind in ("task_started", "heartbeat", "task_cancelled", "task_error"):
            refused = second.post(
                {"type": kind, "run_id": "r1", "task_id": "t"}, X_Wove_Worker="second"
            )
            assert (refused.status, refused.fields["x-wove-cancelled"]) == (410, "r1")
        assert subscriber.taken == [("task_started", "r1")] and subscriber.lost == []
        assert second.post(result("r1"), X_Wove_Worker="second").status == 204
    assert subscriber.taken[-1] == ("task_result", "r1")


def test_the_list_of_what_is_gone_cannot_break_the_head(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        answer = wire.post(
            [
                beat("r1"),
                *(beat(name) for name in ["a\r\nX-Evil: 1", "a,b", "ü", "x" * 999, "good"]),
            ]
        )
        assert (answer.status, answer.fields) == (204, {"x-wove-gone": "good"})
        answer = wire.post([beat("r1"), *(beat(f"x{n}") for n in range(5000))])
        assert len(answer.fields["x-wove-gone"]) < 4100
        assert answer.fields["x-wove-gone"].startswith("x0,x1,x2")


@pytest.mark.parametrize(
    "path",
    ["/", "*", "/wove/events", "/wove/events/", "/wove/events/wrong", "/wove/events/t/x", "/wove/events/t%20",
     "/wove/events/tt", "/wove/events/T", "/wove/events/é"],
)  # fmt: skip
def test_404_for_every_other_path_and_token(receiving_loop: Receiving, path: str) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber, token="t")) as wire:
        answer = wire.request(body=json.dumps(beat("r1")).encode(), path=path)
        assert answer.status in (400, 404)
        assert (answer.status == 400) == ("é" in path)  # which is not HTTP
        assert "t" not in answer.text.split()
    assert subscriber.taken == []


def test_what_a_proxy_puts_in_front_and_behind_is_no_matter(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber(), token="t")) as wire:
        for path in (
            "/in/front/wove/events/t",
            "/wove/events/t/",
            "/wove/events/t?x=1",
            "http://web:1/wove/events/t",
        ):
            assert wire.request(body=json.dumps(beat("r1")).encode(), path=path).status == 204


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "DELETE"])
def test_405_says_what_is_allowed(receiving_loop: Receiving, method: str) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        answer = wire.request(method)
        assert (answer.status, answer.fields["allow"]) == (405, "POST")
        answer = wire.request("POST" if method == "GET" else method, path=f"{wire.path}/claims/c")
        assert (answer.status, answer.fields["allow"]) == (405, "GET")
        assert wire.request(method, path=f"{wire.path}x").status == 404, "strangers are not told"
        assert wire.post(beat("r1")).status == 204


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"1", b'"x"', b"null", b"[1]", b"\xff", b"{}", b'{"type":"heartbeat"}', b'{"run_id":"x"}',
     b'{"type":"run_task","run_id":"x"}', b'{"type":"heartbeat","run_id":5}', b'{"events":5}', b"[[]]",
     b'{"type":"task_result","run_id":"x","result_pickle":5}', b"[" * 50_000, b'{"type":[],"run_id":"x"}',
     b'{"type":"task_result","run_id":"x","result_pickle":"A"}', b'{"type":"heartbeat","run_id":"x"} x'],
)  # fmt: skip
def test_400_for_what_are_no_events(receiving_loop: Receiving, body: bytes) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        answer = wire.request(body=body)
        assert answer.status == 400 and answer.text.startswith("These are not events: ")
        assert len(answer.text.splitlines()) == 1 and len(answer.body) < 2100
        assert wire.post(beat("r1")).status == 204, "the connection is good for more"
    assert subscriber.taken == [("heartbeat", "r1")]


def test_only_pickles_may_be_large(receiving_loop: Receiving) -> None:
    """Ten megabytes of empty lists would be two hundred of memory."""
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        answer = wire.request(body=b"[" + b"[]," * 3_500_000 + b"[]]")
        assert answer.status == 400 and "more than 8388608 bytes beside its pickles" in answer.text
        assert wire.post(result("r1", "A" * 16_000_000)).status == 204


@pytest.mark.parametrize(
    "event",
    [
        {"type": "surprise", "run_id": "r2"},
        {"type": "task_result", "run_id": "r2", "result_pickle": "A"},
    ],
)
def test_what_cannot_be_used_ends_its_run(receiving_loop: Receiving, event: dict[str, str]) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber)) as wire:
        assert wire.post([beat("r1"), event]).status == 400
    assert subscriber.taken == [("task_error", "r2")]
    error = subscriber.events[0]["error"]
    assert error["source"] == "transport" and "is not an event" in error["message"]


def test_413_is_decided_by_the_head(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber(), most=100_000)) as wire:
        wire.send(wire.head("POST", wire.path, {"Content-Length": "100001"}))
        answer = wire.answer()
        assert answer.status == 413 and "more than 100000 bytes" in answer.text
        assert answer.fields["connection"] == "close"
        wire.send(b"x" * 50_000)  # it is read and dropped: no reset takes the answer away
        assert wire.ended()


def test_413_for_chunks_that_go_on_and_on(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber(), most=100_000)) as wire:
        wire.send(wire.head("POST", wire.path, {"Transfer-Encoding": "chunked"}))
        wire.send(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n" + b"ffff\r\n")
        assert wire.answer().status == 413


def test_a_small_body_that_is_too_large_is_skipped(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber(), most=100)) as wire:
        assert wire.request(body=b"x" * 101).status == 413
        assert wire.post(beat("r1")).status == 204


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_bad_heads(receiving_loop: Receiving, raw: bytes, status: int) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        wire.send(raw)
        answer = wire.answer()
        assert (answer.status, answer.fields["connection"]) == (status, "close")
        assert wire.ended()


def test_a_bad_chunk_is_400(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        wire.send(wire.head("POST", wire.path, {"Transfer-Encoding": "chunked"}) + b"zz\r\n")
        assert wire.answer().status == 400


def test_417_for_other_expectations(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber())) as wire:
        assert wire.request(body=b"{}", Expect="miracles").status == 417


# ------------------------------------------------------------------ security


def test_signed_events_are_taken_once(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber, security=SIGNED)) as wire:
        assert wire.signed(beat("r1")).status == 204
        body = json.dumps(beat("r1")).encode()
        headers = NetworkExecutorSecurity.from_config(SIGNED).headers_for(
            transport="http", target=wire.path, body=body
        )
        assert wire.request(body=body, **headers).status == 204
        replayed = wire.request(body=body, **headers)
        assert replayed.status == 403 and "no request is accepted twice" in replayed.text
    assert subscriber.taken == [("heartbeat", "r1")] * 2


def test_strangers_are_refused_before_their_body_is_read(receiving_loop: Receiving) -> None:
    with Wire(receiving_loop.open(RecordingSubscriber(), security=SIGNED)) as wire:
        wire.send(wire.head("POST", wire.path, {"Content-Length": "400000000"}))
        answer = wire.answer()
        assert (answer.status, answer.fields["www-authenticate"]) == (401, "Wove")
        assert answer.fields["connection"] == "close"


def test_a_stranger_s_large_body_takes_no_room_of_a_worker_s(receiving_loop: Receiving) -> None:
    """He has the token, and no secret; the worker's head authenticates its body."""
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber, security=SIGNED)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stranger = stack.enter_context(Wire(route))
            fields = {
                "Content-Length": str(1 << 29),
                "X-Wove-Key": "default",
                "X-Wove-Timestamp": str(int(time.time())),
                "X-Wove-Nonce": "a",
                "X-Wove-Signature": f"v1={'0' * 64}",
            }
            stranger.send(stranger.head("POST", stranger.path, fields) + b"x" * 5000)
        worker = stack.enter_context(Wire(route))
        body = json.dumps(result("r1", "x" * (1 << 20))).encode()
        assert worker.signed(None, body=body, X_Wove_Body_Digest=digest(body)).status == 204
    assert subscriber.taken == [("task_result", "r1")]


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_announced_digest_is_that_of_the_body(receiving_loop: Receiving, size: int) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber, security=SIGNED)
    body, other = (json.dumps(result("r1", letter * size)).encode() for letter in "xy")
    with Wire(route) as wire:
        answer = wire.signed(None, body=body, X_Wove_Body_Digest=digest(other))
        assert answer.status == 403, "what is announced is not what is signed"
    signed = NetworkExecutorSecurity.from_config(SIGNED).headers_for(
        transport="http", target=urlsplit(route.url).path, body=body
    )
    with Wire(route) as wire:
        answer = wire.request(body=other, **{**signed, "X-Wove-Body-Digest": digest(body)})
        assert answer.status == 403, "what comes is not what is announced"
    assert subscriber.taken == []


def test_line_breaks_of_a_stranger_are_escaped_in_the_log(
    receiving_loop: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(RecordingSubscriber):
        def receive(self, event: dict[str, Any], worker: str) -> None:
            raise RuntimeError(event["task_id"])

    with Wire(receiving_loop.open(Failing())) as wire:
        forged = {**started("r1"), "task_id": "t\nERROR forged: \x1b[31m\u2028x"}
        assert wire.post(forged).status == 500
    (record,) = [record for record in caplog.records if "could not be taken" in record.getMessage()]
    assert "t\\nERROR forged: \\x1b[31m\\u2028x" in record.getMessage()


@pytest.mark.parametrize("wrong", ["another secret", "another body", "another path", "garbage"])
def test_403_for_a_signature_that_is_not_right(receiving_loop: Receiving, wrong: str) -> None:
    subscriber = RecordingSubscriber()
    with Wire(receiving_loop.open(subscriber, security=SIGNED)) as wire:
        body = json.dumps(beat("r1")).encode()
        security = {**SIGNED, "secret": "guessed"} if wrong == "another secret" else SIGNED
        headers = NetworkExecutorSecurity.from_config(security).headers_for(
            transport="http",
            target=wire.path + ("x" if wrong == "another path" else ""),
            body=body + (b" " if wrong == "another body" else b""),
        )
        if wrong == "garbage":
            headers["X-Wove-Signature"] = "v1=garbage"
        answer = wire.request(body=body, **headers)
        assert answer.status == 403
        said = "not the one" if wrong == "another body" else "both sides need the same"
        assert said in answer.text
    assert subscriber.taken == []


def test_a_bearer_token(receiving_loop: Receiving) -> None:
    security = {"type": "bearer", "token": "guess-me"}
    with Wire(receiving_loop.open(RecordingSubscriber(), security=security)) as wire:
        assert wire.signed(beat("r1"), security).status == 204
        answer = wire.post(beat("r1"))
        assert (answer.status, answer.fields["www-authenticate"]) == (401, "Bearer")
        assert wire.post(beat("r1"), Authorization="Bearer wrong").status == 403


@pytest.mark.parametrize("security", [None, SIGNED], ids=["open", "signed"])
def test_nothing_is_unpickled_here(
    receiving_loop: Receiving, security: object, tmp_path: Path
) -> None:
    class Mark:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(tmp_path / "unpickled"), "w")

    import base64

    bomb = base64.b64encode(pickle.dumps(Mark())).decode()
    subscriber = RecordingSubscriber()
    events = [
        {**result(run_id), "result_pickle": bomb, "exception_pickle": bomb}
        for run_id in ("r1", "x")
    ]
    with Wire(receiving_loop.open(subscriber, security=security)) as wire:
        if security is not None:
            assert wire.post(events).status == 401
        assert wire.signed(events).status == 204
    assert not (tmp_path / "unpickled").exists() and len(subscriber.events) == 1


# ------------------------------------------------------------------ others' faults


def test_a_party_that_fails_is_an_error_in_the_log(
    receiving_loop: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(RecordingSubscriber):
        def receive(self, event: dict[str, object], worker: str) -> None:
            raise RuntimeError("not today")

    with Wire(receiving_loop.open(Failing())) as wire:
        assert wire.post(beat("r1")).status == 500
        assert wire.post(beat("r1")).status == 500
    assert "events could not be taken: RuntimeError: not today" in caplog.text


def test_the_log_warns_once_and_never_shows_a_token(
    receiving_loop: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    route = receiving_loop.open(RecordingSubscriber(), token="hidden-token", security=SIGNED)
    with Wire(route) as wire:
        for _ in range(5):
            wire.post(beat("r1"))
            wire.request(path="/wove/events/hidden-tokem")
    eventually(lambda: len([r for r in caplog.records if r.levelname == "WARNING"]) == 2)
    assert "environment 'reports': the header X-Wove-Key is missing" in caplog.text
    assert "hidden" not in caplog.text


def test_the_standard_library_posts(receiving_loop: Receiving) -> None:
    subscriber = RecordingSubscriber()
    route = receiving_loop.open(subscriber)
    connection = http.client.HTTPConnection("127.0.0.1", route.port, timeout=20)
    path = urlsplit(route.url).path
    chunks = [b'{"type":"heartbeat",', b'"run_id":"r2"}']
    connection.request("POST", path, json.dumps(beat("r1")))
    assert connection.getresponse().read() == b""
    connection.request(
        "POST", path, iter(chunks), headers={"Transfer-Encoding": "chunked"}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (204, b"")
    connection.close()
    assert [run for _, run in subscriber.taken] == ["r1", "r2"]
