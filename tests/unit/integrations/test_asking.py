"""Payloads that have waited for long: their worker asks first whether anybody still waits for the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.callback_peer import TAKEN, Answer, Peer, Request, make_payload

from wove.errors import DeliveryError
from wove.integrations import worker
from wove.integrations.worker import arun
from wove.protocol.frames import TERMINAL

GONE = Answer(410, body=b"nobody waits for it")
CANCELLED = Answer(410, headers={"X-Wove-Cancelled": "cancelled"}, body=b"it is to end")


@pytest.fixture(autouse=True)
def _end_of_threads() -> Iterator[None]:
    yield
    worker.close(10)


def waited(peer: Peer, began: Path, *, seconds: float = 5.0, **more: Any) -> dict[str, Any]:
    """A payload that was made so long ago."""
    payload = make_payload(peer, lambda path: open(path, "a").close(), path=str(began), **more)
    return {**payload, "sent_at": time.time() - seconds, "retry_seconds": 0.2}


def asked(payload: dict[str, Any], **options: Any) -> None:
    asyncio.run(arun(payload, **options))


def test_a_run_that_is_waited_for(peer: Peer, tmp_path: Path) -> None:
    began = tmp_path / "began"

    def answer(request: Request) -> Answer:
        if request.types == ["heartbeat"]:
            assert not began.exists()
        return TAKEN

    peer.answer = answer
    asked(waited(peer, began))
    assert began.exists()
    assert peer.requests[0].types == ["heartbeat"] and peer.events[-1]["type"] == "task_result"


def test_a_run_that_nobody_waits_for(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: GONE
    asked(waited(peer, tmp_path / "began"))
    assert not (tmp_path / "began").exists()
    assert [request.types for request in peer.requests] == [["heartbeat"]]


def test_only_its_end_is_of_interest(peer: Peer, tmp_path: Path) -> None:
    """It was cancelled, and that is to be acknowledged."""
    peer.answer = lambda request: TAKEN if TERMINAL & set(request.types) else CANCELLED
    asked(waited(peer, tmp_path / "began", run_id="cancelled"))
    assert not (tmp_path / "began").exists()
    assert peer.events[-1]["type"] == "task_cancelled"


def test_a_detached_run_goes_on_without_its_weave(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: GONE
    payload = waited(peer, tmp_path / "began")
    asked({**payload, "delivery": {"delivery_orphan_policy": "detach"}})
    assert (tmp_path / "began").exists()


def test_another_process_at_the_address(
    peer: Peer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer.answer = lambda request: Answer(404)
    asked(waited(peer, tmp_path / "began"))
    assert not (tmp_path / "began").exists()
    assert [request.types for request in peer.requests] == [["heartbeat"]]
    assert (
        "is not begun: its weave does not listen at that address: http://127.0.0.1:" in caplog.text
    )


def test_the_receiver_does_not_know_the_worker(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: Answer(403)
    with pytest.raises(DeliveryError, match="was not begun: .* Both sides need the same secret"):
        asked(waited(peer, tmp_path / "began"))
    assert not (tmp_path / "began").exists()


def test_a_refused_connection_means_that_nobody_waits(
    peer: Peer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first run is dropped after a moment, and the others of the same weave at once."""
    peer.stop()
    took: list[float] = []
    for number in range(3):
        start = time.monotonic()
        payload = waited(peer, tmp_path / "began", run_id=f"r{number}")
        asked({**payload, "retry_seconds": 60.0})
        took.append(time.monotonic() - start)
    assert not (tmp_path / "began").exists()
    assert took[0] > 1.0 > took[1] + took[2]
    assert caplog.text.count("is not begun: its weave is gone, or its callback_url is not") == 3


def test_a_large_payload_of_a_dead_weave_is_not_fetched(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: GONE
    asked(waited(peer, tmp_path / "began", claim=["args_pickle"]))
    assert [request.method for request in peer.requests] == ["POST"]


def test_a_large_payload_is_fetched_once_somebody_waits(peer: Peer, tmp_path: Path) -> None:
    asked(waited(peer, tmp_path / "began", claim=["args_pickle", "callable_pickle"]))
    assert (tmp_path / "began").exists()
    assert [request.method for request in peer.requests] == ["POST", "GET", "GET", "POST"]


@pytest.mark.parametrize("trouble", [Answer(503), Answer(502), Answer(instead="close")])
def test_a_receiver_that_does_not_answer_yet_is_asked_again(
    peer: Peer, tmp_path: Path, trouble: Answer
) -> None:
    peer.answer = lambda request: trouble if len(peer.requests) < 3 else TAKEN
    asked({**waited(peer, tmp_path / "began"), "retry_seconds": 30.0})
    assert (tmp_path / "began").exists()
    assert [request.types for request in peer.requests[:3]] == [["heartbeat"]] * 3


def test_a_receiver_that_never_answers(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: Answer(503)
    with pytest.raises(DeliveryError, match="could not be asked within 0.2 s: .* answered 503"):
        asked(waited(peer, tmp_path / "began"))
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("refused", [True, False])
def test_a_detached_run_is_begun_where_nobody_can_be_asked(
    peer: Peer, tmp_path: Path, refused: bool
) -> None:
    peer.answer = lambda request: Answer(503)
    if refused:
        peer.stop()
    payload = waited(peer, tmp_path / "began")
    with pytest.raises(DeliveryError, match="could not be reported"):
        asked({**payload, "delivery": {"delivery_orphan_policy": "detach"}})
    assert (tmp_path / "began").exists()


@pytest.mark.parametrize(
    ("seconds", "ask_after", "is_asked"),
    [(0.0, 60.0, False), (5.0, 1.0, True), (-5.0, 1.0, True), (0.0, 0.0, True)],
)
def test_who_asks(
    peer: Peer, tmp_path: Path, seconds: float, ask_after: float, is_asked: bool
) -> None:
    """A payload from the future is of another clock: it may be of any age."""
    asked(waited(peer, tmp_path / "began", seconds=seconds), ask_after=ask_after)
    assert (tmp_path / "began").exists()
    assert (peer.requests[0].types == ["heartbeat"]) is is_asked


def test_a_worker_that_is_stopped_while_it_asks(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: Answer(wait=0.5) if request.types == ["heartbeat"] else TAKEN

    async def main() -> None:
        running = asyncio.create_task(arun(waited(peer, tmp_path / "began"), ask_after=1.0))
        while not peer.requests:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert peer.events[-1]["type"] == "task_error"
    assert not (tmp_path / "began").exists()
