"""Events of workers that run payloads in ways of their own."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from tests.support.callback_peer import TAKEN, Answer, Peer, make_payload

import wove
from wove.backend import (
    build_backend_payload,
    post_event,
    run_backend_payload,
    run_backend_payload_async,
)
from wove.errors import DeliveryError, SerializationError
from wove.integrations.worker import arun, run
from wove.protocol import payload
from wove.protocol.faults import to_exception
from wove.protocol.frames import FrameError
from wove.protocol.pickling import loads
from wove.security import NetworkExecutorSecurity


def test_the_documented_names() -> None:
    assert (run_backend_payload, run_backend_payload_async) == (run, arun)
    assert build_backend_payload is payload.build
    assert wove.backend.post_event is post_event


def test_events_of_a_custom_worker(peer: Peer) -> None:
    built = make_payload(peer, lambda: 1)
    names = {"run_id": built["run_id"], "task_id": built["task_id"]}
    assert post_event(built["callback_url"], {"type": "task_started", **names})
    assert post_event(
        built["callback_url"], {"type": "task_result", **names, "result": {"answer": 42}}
    )
    assert peer.of(built["run_id"]) == ["task_started", "task_result"]
    assert loads(peer.end(built["run_id"])["result_pickle"], label="r") == {"answer": 42}
    assert "result" not in peer.events[-1] and "x-wove-worker" not in peer.requests[-1].headers


def test_an_exception(peer: Peer) -> None:
    event: dict[str, Any] = {"type": "task_error", "run_id": "r", "exception": KeyError("which")}
    post_event(peer.url, event)
    failed = to_exception(peer.end("r"), task="pdf")
    assert isinstance(failed, KeyError) and failed.args == ("which",)


def test_an_error_in_plain_json(peer: Peer) -> None:
    post_event(
        peer.url,
        {"type": "task_error", "run_id": "r", "error": {"kind": "Broken", "message": "it is"}},
    )
    assert str(to_exception(peer.end("r"), task="pdf")) == "task 'pdf' failed: Broken: it is"


def test_what_is_no_event(peer: Peer) -> None:
    with pytest.raises(FrameError, match="an event without a run_id"):
        post_event(peer.url, {"type": "task_result"})
    with pytest.raises(FrameError, match="is not a type of event"):
        post_event(peer.url, {"type": "task_finished", "run_id": "r"})
    with pytest.raises(SerializationError, match="cannot pickle the result of task 'pdf'"):
        post_event(
            peer.url,
            {"type": "task_result", "run_id": "r", "task_id": "pdf", "result": threading.Lock()},
        )
    with pytest.raises(ValueError, match="is not an http:// or https:// URL"):
        post_event("nowhere", {"type": "heartbeat", "run_id": "r"})
    assert peer.opened == 0


def test_whether_anybody_waits(peer: Peer) -> None:
    peer.answer = lambda request: Answer(410)
    assert not post_event(peer.url, {"type": "heartbeat", "run_id": "r"})
    peer.answer = lambda request: Answer(headers={"X-Wove-Gone": "other, r"})
    assert not post_event(peer.url, {"type": "heartbeat", "run_id": "r"})


def test_it_is_signed(peer: Peer) -> None:
    config = {"type": "signed", "secret": "only for this"}
    post_event(peer.url, {"type": "heartbeat", "run_id": "r"}, security=config)
    (request,) = peer.requests
    NetworkExecutorSecurity.from_config(config).verify_headers(
        transport="http", target=request.target, body=request.body, headers=request.headers
    )


def test_refusals_and_silence(peer: Peer) -> None:
    event = {"type": "heartbeat", "run_id": "r"}
    peer.answer = lambda request: Answer(404)
    with pytest.raises(DeliveryError) as caught:
        post_event(peer.url, event, retry_seconds=60)
    assert str(caught.value) == (
        f"the heartbeat of run r did not get through: http://127.0.0.1:{peer.port} answered 404 x. "
        "Is its callback_url one of Wove's, with the right token?"
    )
    peer.answer = lambda request: Answer(instead="hang")
    with pytest.raises(DeliveryError, match="timed out"):
        post_event(peer.url, event, timeout=0.1)
    peer.stop()
    with pytest.raises(
        DeliveryError, match=r"did not get through within 0\.3 s: .*Connection refused"
    ):
        post_event(peer.url, event, retry_seconds=0.3)


def test_it_tries_again(peer: Peer) -> None:
    answers = [Answer(503), Answer(instead="reset"), TAKEN]
    peer.answer = lambda request: answers.pop(0)
    assert post_event(peer.url, {"type": "heartbeat", "run_id": "r"}, retry_seconds=10)
    peer.stop()
    back = threading.Thread(target=lambda: (time.sleep(0.5), peer.start()))
    back.start()
    peer.answer = lambda request: TAKEN
    assert post_event(peer.url, {"type": "heartbeat", "run_id": "r"}, retry_seconds=20)
    back.join()
