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


@pytest.fixture(autouse=True)
def _end_of_threads() -> Iterator[None]:
    yield
    worker.close(10)


def waited(peer: Peer, began: Path, *, seconds: float = 5.0, **more: Any) -> dict[str, Any]:
    """A payload that was made so long ago."""
    payload = make_payload(peer, lambda path: open(path, "a").close(), path=str(began), **more)
    return {**payload, "sent_at": time.time() - seconds, "retry_seconds": 0.2}


def asked(payload: dict[str, Any], ask_after: float | None = 1.0) -> None:
    asyncio.run(arun(payload, ask_after=ask_after))


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
    assert [request.types for request in peer.requests] == [["heartbeat"], ["task_cancelled"]]


def test_only_its_end_is_of_interest(peer: Peer, tmp_path: Path) -> None:
    """It was cancelled, and that is to be acknowledged."""
    peer.answer = lambda request: TAKEN if TERMINAL & set(request.types) else GONE
    asked(waited(peer, tmp_path / "began"))
    assert not (tmp_path / "began").exists()
    assert peer.events[-1]["type"] == "task_cancelled"


def test_a_detached_run_goes_on_without_its_weave(peer: Peer, tmp_path: Path) -> None:
    peer.answer = lambda request: GONE
    payload = waited(peer, tmp_path / "began")
    asked({**payload, "delivery": {"delivery_orphan_policy": "detach"}})
    assert (tmp_path / "began").exists()


@pytest.mark.parametrize("trouble", [Answer(503), Answer(404), Answer(instead="close"), None])
def test_where_there_is_no_telling_it_is_begun(
    peer: Peer, tmp_path: Path, trouble: Answer | None
) -> None:
    if trouble is None:
        peer.stop()
    else:
        peer.answer = lambda request: trouble
    with pytest.raises(DeliveryError):
        asked(waited(peer, tmp_path / "began"))
    assert (tmp_path / "began").exists()


@pytest.mark.parametrize(("seconds", "ask_after"), [(0.0, 60.0), (5.0, None), (-5.0, 1.0)])
def test_nobody_is_asked(
    peer: Peer, tmp_path: Path, seconds: float, ask_after: float | None
) -> None:
    asked(waited(peer, tmp_path / "began", seconds=seconds), ask_after)
    assert (tmp_path / "began").exists()
    assert [request.types for request in peer.requests] == [["task_result"]]


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
