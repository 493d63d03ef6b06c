"""`run` and `arun`: what a backend's worker does with a payload, and what its weave hears of that."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.callback_peer import TAKEN, Answer, Peer, Request, make_payload, sign
from tests.support.receiving import eventually

from wove.errors import DeliveryError, SerializationError, TaskTimeoutError, WorkerLostError
from wove.integrations import worker
from wove.integrations.worker import arun, run
from wove.protocol import payload as payloads
from wove.protocol.faults import to_exception
from wove.protocol.frames import PYTHON, FrameError
from wove.protocol.pickling import Pickled, loads
from wove.security import NetworkExecutorSecurity, SecurityConfig

SIGNED: SecurityConfig = {"type": "signed", "secret": "only for this test of workers"}


@pytest.fixture(autouse=True)
def _end_of_threads() -> Iterator[None]:
    yield
    worker.close(10)


def value_of(peer: Peer, run_id: str) -> Any:
    """What a run came to, whichever way it ended."""
    event = peer.end(run_id)
    if event["type"] == "task_result":
        return loads(event["result_pickle"], label="the result")
    if event["type"] == "task_cancelled":
        return "cancelled"
    return to_exception(event, task="pdf")


def outcome(peer: Peer, payload: dict[str, Any], **options: Any) -> Any:
    run(payload, **options)
    return value_of(peer, payload["run_id"])


def source_of(peer: Peer, run_id: str) -> str:
    source: str = peer.end(run_id)["error"]["source"]
    return source


# --- it runs ----------------------------------------------------------------------------------------------


def test_a_sync_task(peer: Peer) -> None:
    assert outcome(peer, make_payload(peer, lambda number: number + 1, number=41)) == 42
    assert [request.types for request in peer.requests] == [["task_result"]]
    assert peer.events[0]["pid"] == os.getpid()


def test_a_coroutine_task(peer: Peer) -> None:
    async def task(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    assert outcome(peer, make_payload(peer, task, number=41)) == 42


def test_a_payload_is_also_taken_as_json(peer: Peer) -> None:
    payload = make_payload(peer, lambda: "text")
    run(json.dumps(payload))
    run(json.dumps(payload).encode())
    assert value_of(peer, payload["run_id"]) == "text"


def test_a_task_that_fails_is_for_its_weave(peer: Peer) -> None:
    def task() -> None:
        raise LookupError("no such account")

    failed = outcome(peer, make_payload(peer, task))
    assert isinstance(failed, LookupError) and str(failed) == "no such account"
    assert "in task" in str(failed.__cause__)


def test_a_task_may_weave_and_use_asyncio(peer: Peer) -> None:
    def task(number: int) -> Any:
        from wove import weave

        async def later() -> int:
            return number

        with weave(number=number) as w:

            @w.do
            async def double(number: int) -> int:
                return 2 * number

        return asyncio.run(later()), w.result.double

    assert outcome(peer, make_payload(peer, task, number=21)) == (21, 42)


def test_many_threads(peer: Peer) -> None:
    before = threading.active_count()
    made = [
        make_payload(peer, lambda number: number * number, number=number) for number in range(200)
    ]
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(run, made))
    assert [value_of(peer, one["run_id"]) for one in made] == [
        number * number for number in range(200)
    ]
    assert peer.opened == 1
    worker.close(10)
    eventually(lambda: threading.active_count() <= before + len(peer.connections) + 1)


def test_many_at_once_on_a_loop(peer: Peer) -> None:
    async def task(number: int) -> int:
        await asyncio.sleep(0.05)
        return number

    made = [make_payload(peer, task, number=number) for number in range(300)]

    async def all_of_them() -> None:
        await asyncio.gather(*(arun(one) for one in made))

    asyncio.run(all_of_them())
    assert [value_of(peer, one["run_id"]) for one in made] == list(range(300))
    assert len(peer.requests) < 150  # they share requests


def test_a_loop_is_not_held_up(peer: Peer) -> None:
    payload = make_payload(peer, lambda seconds: time.sleep(seconds), seconds=0.3)
    claimed = make_payload(
        peer, lambda data: len(data), data=b"x" * 10_000_000, claim=["args_pickle"]
    )

    async def count() -> int:
        ticks = 0
        runs = asyncio.gather(arun(payload), arun(claimed))
        while not runs.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await runs
        return ticks

    assert asyncio.run(count()) >= 10
    assert value_of(peer, claimed["run_id"]) == 10_000_000


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left_after_shutdown(peer: Peer) -> None:
    async def task() -> int:
        return 1

    assert outcome(peer, make_payload(peer, task, claim=["callable_pickle"])) == 1
    assert outcome(peer, make_payload(peer, lambda: "x" * 1_000_000)) == "x" * 1_000_000
    peer.close()


def test_after_shutdown_it_starts_anew(peer: Peer) -> None:
    import wove

    assert outcome(peer, make_payload(peer, lambda: 1)) == 1
    wove.shutdown()
    assert outcome(peer, make_payload(peer, lambda: 2)) == 2


def test_a_task_may_call_shutdown(peer: Peer) -> None:
    def task() -> str:
        import wove

        wove.shutdown()
        return "still here"

    assert outcome(peer, make_payload(peer, task)) == "still here"


# --- what cannot be run -----------------------------------------------------------------------------------


def test_another_python(peer: Peer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    payload = make_payload(peer, Marking(mark), fields={"python": "3.9"}, claim=["args_pickle"])
    failed = outcome(peer, payload)
    assert isinstance(failed, SerializationError)
    assert f"task 'pdf' was pickled by Python 3.9, and Python {PYTHON} received it" in str(failed)
    assert source_of(peer, payload["run_id"]) == "config"
    assert not mark.exists() and not [r for r in peer.requests if r.method == "GET"]


def test_a_module_that_is_not_there(peer: Peer) -> None:
    payload = make_payload(peer, lambda: 1)
    payload["callable_pickle"] = base64.b64encode(b"cnowhere.at_all\nfunction\n.").decode()
    failed = outcome(peer, payload)
    assert isinstance(failed, SerializationError)
    assert str(failed) == (
        "cannot rebuild the callable of task 'pdf': the module 'nowhere' cannot be imported there. Install it there, "
        "or make it importable (PYTHONPATH, working directory)."
    )
    assert source_of(peer, payload["run_id"]) == "config"


def test_a_result_that_cannot_be_pickled(peer: Peer) -> None:
    payload = make_payload(peer, lambda: {"lock": threading.Lock()})
    failed = outcome(peer, payload)
    assert isinstance(failed, SerializationError)
    assert "cannot pickle the result of task 'pdf': lock (_thread.lock)" in str(failed)


def test_a_payload_without_a_callable(peer: Peer) -> None:
    payload = make_payload(peer, lambda: 1)
    del payload["callable_pickle"]
    assert str(outcome(peer, payload)) == "the payload of task 'pdf' comes without its callable"
    assert source_of(peer, payload["run_id"]) == "transport"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"version": 2},
            "has version 2, and this worker knows version 1: bring Wove to the same version",
        ),
        ({"args_pickle": "abc"}, "is not base64"),
        ({"args_pickle": 7}, "is not base64"),
        ({"claims": [1]}, "cannot be read: [1]"),
    ],
)
def test_a_payload_that_cannot_be_read_is_reported(
    peer: Peer, changed: dict[str, Any], says: str
) -> None:
    payload = {**make_payload(peer, lambda: 1), **changed}
    assert says in str(outcome(peer, payload))
    assert source_of(peer, payload["run_id"]) == "transport"
    asyncio.run(arun(payload))
    assert peer.of(payload["run_id"]) == ["task_error"] * 2


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("nonsense", "the payload is not JSON"),
        ("[]", "a payload is a dict or its JSON, not list"),
        ({}, "a payload without a run_id"),
        ({"run_id": "r", "version": 1}, "has no callback_url that can be posted to: None"),
        ({"run_id": "r", "version": 1, "callback_url": "ftp://x/y"}, "has no callback_url"),
        ({"run_id": "r", "version": 1, "callback_url": "http://host/a b"}, "not a request target"),
        (
            {"run_id": "r", "version": 1, "callback_url": "http://host:port/"},
            "Port could not be cast",
        ),
    ],
)
def test_where_nobody_can_be_told_it_is_logged_and_raised(
    payload: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        run(payload)
    with pytest.raises(ValueError, match=re.escape(says)):
        asyncio.run(arun(payload))
    (first, _) = [record for record in caplog.records if record.name == "wove.worker"]
    assert first.levelno == logging.ERROR and says in first.getMessage()


def test_what_is_no_frame_is_a_frame_error() -> None:
    with pytest.raises(FrameError):
        run({})


# --- security ---------------------------------------------------------------------------------------------


class Marking:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self) -> None:
        pass

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_signed_payload(peer: Peer) -> None:
    payload = make_payload(
        peer, lambda data: len(data), data=b"x" * 100, security=SIGNED, claim=["args_pickle"]
    )
    verifier = NetworkExecutorSecurity.from_config(SIGNED)
    assert outcome(peer, payload, security=SIGNED) == 100
    assert [request.method for request in peer.requests] == ["GET", "POST"]
    for request in peer.requests:
        verifier.verify_headers(
            transport="http", target=request.target, body=request.body, headers=request.headers
        )


def test_the_secret_in_the_environment(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOVE_WORKER_SECRET", "only for this test of workers")
    assert outcome(peer, make_payload(peer, lambda: 1, security=SIGNED)) == 1
    assert "x-wove-signature" in peer.requests[0].headers
    with pytest.raises(
        PermissionError, match="the payload is not signed, and this worker takes signed ones only"
    ):
        run(make_payload(peer, lambda: 1))
    monkeypatch.setenv("WOVE_WORKER_SECRET", "another of the right length")
    with pytest.raises(
        PermissionError, match="the two sides have different secrets, or it was changed on its way"
    ):
        run(make_payload(peer, lambda: 1, security=SIGNED))
    monkeypatch.setenv("WOVE_WORKER_SECRET", "")
    with pytest.raises(ValueError, match="the environment variable WOVE_WORKER_SECRET is empty"):
        run(make_payload(peer, lambda: 2, security=SIGNED))
    monkeypatch.delenv("WOVE_WORKER_SECRET")
    assert outcome(peer, make_payload(peer, lambda: 2, security=SIGNED)) == 2


def test_a_payload_is_not_run_after_the_end_of_its_validity(peer: Peer, tmp_path: Path) -> None:
    payload = make_payload(peer, Marking(tmp_path / "mark"))
    payload["valid_until"] = time.time() - 60
    sign(payload, SIGNED)
    failed = outcome(peer, payload, security=SIGNED)
    assert "came 60 s after the end of its validity" in str(failed)
    assert "'payload_max_age'" in str(failed) and not (tmp_path / "mark").exists()


def test_a_valid_payload_is_run_if_its_weave_waits_for_it(peer: Peer) -> None:
    payload = make_payload(peer, lambda: 1)
    payload["valid_until"] = time.time() + 60
    sign(payload, SIGNED)
    assert outcome(peer, payload, security=SIGNED) == 1
    assert [request.types for request in peer.requests] == [["heartbeat"], ["task_result"]]


def test_a_copy_of_a_valid_payload_is_not_run(peer: Peer, tmp_path: Path) -> None:
    payload = make_payload(peer, Marking(tmp_path / "mark"))
    payload["valid_until"] = time.time() + 60
    sign(payload, SIGNED)
    peer.answer = lambda request: Answer(410)
    run(payload, security=SIGNED)
    assert [request.types for request in peer.requests] == [["heartbeat"]]
    assert not (tmp_path / "mark").exists()


def test_the_end_of_validity_is_signed(peer: Peer) -> None:
    payload = make_payload(peer, lambda: 1)
    payload["valid_until"] = time.time() - 60
    sign(payload, SIGNED)
    payload["valid_until"] += 1000
    with pytest.raises(PermissionError, match="it was changed on its way"):
        run(payload, security=SIGNED)


@pytest.mark.parametrize("made_by", ["images", None])
def test_the_payload_of_another_environment_is_refused(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, made_by: str | None
) -> None:
    monkeypatch.setenv("WOVE_WORKER_ENVIRONMENT", "reports, mails")
    payload = make_payload(peer, lambda: 1)
    if made_by is not None:
        payload["environment"] = made_by
    sign(payload, SIGNED)
    with pytest.raises(PermissionError, match="this worker takes those of 'reports, mails'"):
        run(payload, security=SIGNED)
    assert peer.requests == []
    payload["environment"] = "mails"
    sign(payload, SIGNED)
    assert outcome(peer, payload, security=SIGNED) == 1


@pytest.mark.parametrize("how", ["unsigned", "forged", "changed", "another key", "no dict"])
def test_what_is_not_rightly_signed_is_not_decoded(
    peer: Peer, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    mark = tmp_path / "mark"
    payload = make_payload(peer, Marking(mark), security=None if how == "unsigned" else SIGNED)
    if how == "forged":
        sign(payload, {"type": "signed", "secret": "guessed, and of the right length"})
    elif how == "changed":
        payload["callback_url"] += "x"
    elif how == "another key":
        payload["signature"]["key"] = "other"
    elif how == "no dict":
        payload["signature"] = "v1=" + "0" * 64
    with pytest.raises(PermissionError):
        run(payload, security=SIGNED)
    with pytest.raises(PermissionError):
        asyncio.run(arun(payload, security=SIGNED))
    assert not mark.exists() and peer.opened == 0
    assert "is refused: " in caplog.records[0].getMessage()
    run(payload)  # a worker without security takes it: the mark works
    assert mark.exists()


def test_nobody_is_told_of_a_payload_that_cannot_be_verified(peer: Peer) -> None:
    with pytest.raises(FrameError):
        run({**make_payload(peer, lambda: 1), "version": 2}, security=SIGNED)
    assert peer.opened == 0


def test_a_bearer_token_cannot_verify(peer: Peer) -> None:
    with pytest.raises(PermissionError, match="has a bearer token, which cannot verify a payload"):
        run(make_payload(peer, lambda: 1), security={"type": "bearer", "token": "t"})


def test_security_that_is_not_right(peer: Peer) -> None:
    with pytest.raises(ValueError, match="the security of this worker: 'type' must be"):
        run(make_payload(peer, lambda: 1), security={"type": "singed"})


def test_runs_with_the_same_secret_share_requests(peer: Peer) -> None:
    let_go = threading.Event()

    def slow(request: Request) -> Answer:
        let_go.wait(10)
        return TAKEN

    peer.answer = slow
    made = [make_payload(peer, lambda: 1, security=SIGNED) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        runs = [pool.submit(run, one, security=dict(SIGNED)) for one in made]  # type: ignore[arg-type]
        peer.until(lambda: peer.requests)
        time.sleep(0.2)
        let_go.set()
        for each in runs:
            each.result(20)
    assert len(peer.requests) <= 4


# --- claims -----------------------------------------------------------------------------------------------


def test_what_is_large_is_fetched(peer: Peer) -> None:
    data = os.urandom(3_000_000)
    payload = make_payload(
        peer,
        lambda data: data[::-1],
        data=data,
        claim=["callable_pickle", "args_pickle"],
        delivery={},
    )
    assert "args_pickle" not in payload
    assert outcome(peer, payload) == data[::-1]
    assert [
        request.target.rpartition("/")[0] for request in peer.requests if request.method == "GET"
    ] == ["/wove/events/a-token/claims"] * 2


def test_a_callable_is_fetched_once(peer: Peer) -> None:
    padding = os.urandom(100_000)
    made = [
        make_payload(
            peer, lambda number: (number, len(padding)), number=number, claim=["callable_pickle"]
        )
        for number in range(20)
    ]
    peer_claim = peer.claims
    assert len(peer_claim) == 1
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(run, made))
    assert [value_of(peer, one["run_id"]) for one in made] == [
        (number, 100_000) for number in range(20)
    ]
    assert len([request for request in peer.requests if request.method == "GET"]) == 1


def test_another_content_is_not_unpickled(peer: Peer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    payload = make_payload(peer, Marking(mark), claim=["callable_pickle"])
    honest = make_payload(peer, lambda: 1, claim=["callable_pickle"])
    (marked, good) = (one["claims"]["callable_pickle"] for one in (payload, honest))
    assert len(peer.claims[marked["id"]]) != good["size"]
    for content in (
        peer.claims[marked["id"]],
        peer.claims[good["id"]][:-1],
        peer.claims[good["id"]][:-1] + b"x",
    ):
        peer.claims[good["id"]] = content
        honest["run_id"] += "-more"
        failed = outcome(peer, honest)
        assert isinstance(failed, DeliveryError)
        assert str(failed).startswith(
            f"the callable of task 'pdf' did not get through: http://127.0.0.1:{peer.port}"
        )
        assert source_of(peer, honest["run_id"]) == "transport"
    assert "Nothing of it was unpickled" in str(failed) and good["sha256"] in str(failed)
    assert not mark.exists()


def test_a_claim_that_is_not_there(peer: Peer) -> None:
    payload = make_payload(peer, lambda data: 1, data=1, claim=["args_pickle"])
    peer.claims.clear()
    failed = outcome(peer, payload)
    assert isinstance(failed, DeliveryError)
    assert str(failed) == (
        f"the arguments of task 'pdf' did not get through: http://127.0.0.1:{peer.port} answered 410 x"
    )


def test_claims_are_waited_for(peer: Peer) -> None:
    payload = make_payload(peer, lambda data: data, data=1, claim=["args_pickle"])
    peer.stop()
    thread = threading.Thread(target=run, args=(payload,))
    thread.start()
    time.sleep(0.5)
    peer.start()
    assert value_of(peer, payload["run_id"]) == 1
    thread.join(20)


# --- time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [-1e6, 0, 100, None])
def test_the_deadline_does_not_depend_on_when_the_payload_was_sent(
    peer: Peer, apart: float | None
) -> None:
    def task() -> None:
        while True:
            time.sleep(0.01)

    payload = make_payload(peer, task, fields={"deadline": 0.2})
    if apart is None:
        del payload["sent_at"]
    else:
        payload["sent_at"] -= apart
    failed = outcome(peer, payload)
    assert isinstance(failed, TaskTimeoutError)
    assert "timed out: its worker stopped it after 0.2 s" in str(failed)


def test_a_deadline_counts_from_the_start_of_the_work(peer: Peer) -> None:
    payload = make_payload(peer, lambda: 7, fields={"deadline": 10})
    payload["sent_at"] -= 1e6
    assert outcome(peer, payload) == 7

    payload = make_payload(peer, lambda: time.sleep(5), fields={"deadline": 0.1})
    assert isinstance(outcome(peer, payload), TaskTimeoutError)


@pytest.mark.parametrize(("wanted", "beat"), [(0.3, None), (None, 0.1), (300, 0.1)])
def test_heartbeats(peer: Peer, wanted: float | None, beat: float | None) -> None:
    delivery = {} if wanted is None else {"delivery_heartbeat_seconds": wanted}
    payload = make_payload(peer, lambda: time.sleep(0.65), delivery=delivery)
    if beat is not None:
        payload["beat_seconds"] = beat
    run(payload)
    assert 4 <= peer.of(payload["run_id"]).count("heartbeat") <= 7


# --- cancels and interrupts -------------------------------------------------------------------------------


def patient() -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.01)


def cancelling(peer: Peer) -> None:
    """From the first heartbeat on, nobody waits."""
    peer.answer = lambda request: Answer(410) if "heartbeat" in request.types else TAKEN


def test_a_cancel_comes_as_the_answer_to_a_heartbeat(peer: Peer) -> None:
    cancelling(peer)
    payload = {**make_payload(peer, patient), "beat_seconds": 0.05}
    assert outcome(peer, payload) == "cancelled"


def test_a_coroutine_is_cancelled_so_too(peer: Peer) -> None:
    async def task() -> None:
        await asyncio.sleep(30)

    cancelling(peer)
    assert outcome(peer, {**make_payload(peer, task), "beat_seconds": 0.05}) == "cancelled"


def test_a_detached_run_is_not_cancelled(peer: Peer) -> None:
    cancelling(peer)
    delivery = {"delivery_orphan_policy": "detach"}
    payload = {
        **make_payload(peer, lambda: time.sleep(0.4), delivery=delivery),
        "beat_seconds": 0.05,
    }
    assert outcome(peer, payload) is None


def test_nobody_waits_any_more_is_no_failure_of_the_worker(peer: Peer) -> None:
    peer.answer = lambda request: Answer(410)
    payload = make_payload(peer, lambda: 1)
    run(payload)
    asyncio.run(arun(payload))
    assert peer.of(payload["run_id"]) == ["task_result"] * 2


def test_an_end_that_does_not_arrive_is_an_error_of_the_worker(peer: Peer) -> None:
    peer.answer = lambda request: Answer(404)
    payload = make_payload(peer, lambda: 1)
    with pytest.raises(DeliveryError, match="with the right token"):
        run(payload)
    with pytest.raises(DeliveryError, match="with the right token"):
        asyncio.run(arun(payload))


class SoftTimeLimit(Exception):
    pass


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals come in the main thread",
)
def test_a_signal_that_raises_interrupts(peer: Peer) -> None:
    def raise_it(*_: object) -> None:
        raise SoftTimeLimit("300 s")

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        payload = make_payload(peer, patient)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(SoftTimeLimit):
            run(payload)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lost = value_of(peer, payload["run_id"])
    assert isinstance(lost, WorkerLostError)
    assert (
        str(lost) == "task 'pdf': its worker was stopped in the middle of it (SoftTimeLimit: 300 s)"
    )
    assert (
        source_of(peer, payload["run_id"]) == "executor"
        and peer.end(payload["run_id"])["error"]["retryable"]
    )


def test_an_exception_that_another_thread_raises_interrupts(peer: Peer) -> None:
    import ctypes

    payload = make_payload(peer, patient)
    outcomes: list[BaseException] = []

    def work() -> None:
        try:
            run(payload)
        except SoftTimeLimit as error:
            outcomes.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    peer.until(lambda: "task_started" in peer.of(payload["run_id"]))
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SoftTimeLimit)
    )
    thread.join(20)
    assert len(outcomes) == 1 and isinstance(value_of(peer, payload["run_id"]), WorkerLostError)


def test_a_task_that_does_not_stop_is_left_to_itself(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.2)
    let_go = threading.Event()
    waits_for.append(let_go)
    payload = make_payload(peer, stubborn)

    async def main() -> None:
        running = asyncio.ensure_future(arun(payload))
        while "task_started" not in peer.of(payload["run_id"]):
            await asyncio.sleep(0.01)
        running.cancel("stopped")
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert isinstance(value_of(peer, payload["run_id"]), WorkerLostError)
    let_go.set()
    assert peer.of(payload["run_id"]).count("task_result") == 0


waits_for: list[threading.Event] = []


def stubborn() -> str:
    while True:
        try:
            if waits_for[-1].wait(30):
                return "done"
        except BaseException:
            continue


def test_arun_that_is_cancelled_cancels_the_run(peer: Peer) -> None:
    payload = make_payload(peer, patient)

    async def main() -> None:
        async with asyncio.timeout(0.2):
            await arun(payload)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert isinstance(value_of(peer, payload["run_id"]), WorkerLostError)


def test_arun_that_is_cancelled_while_it_fetches(peer: Peer) -> None:
    payload = make_payload(peer, patient, claim=["callable_pickle"])
    peer.claims_wait.clear()

    async def main() -> None:
        async with asyncio.timeout(0.2):
            await arun(payload)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert isinstance(value_of(peer, payload["run_id"]), WorkerLostError)
    peer.claims_wait.set()
    time.sleep(0.2)
    assert peer.of(payload["run_id"]) == ["task_error"]


# --- the same payload twice -------------------------------------------------------------------------------


def test_a_payload_that_is_here_twice_runs_once(peer: Peer, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")

    def task() -> str:
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.3)
        return "done"

    payload = make_payload(peer, task)

    async def main() -> None:
        await asyncio.gather(arun(payload), arun(payload), asyncio.to_thread(run, payload))

    asyncio.run(main())
    assert Path(path).read_text() == "x"
    assert peer.of(payload["run_id"]).count("task_result") == 1


# --- processes --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_after_a_run_runs_payloads(peer: Peer) -> None:
    async def task() -> int:
        return os.getpid()

    assert outcome(peer, make_payload(peer, task)) == os.getpid()
    made = [make_payload(peer, task), make_payload(peer, os.getpid)]
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for one in made:
                run(one)
            status = 0
        finally:
            os._exit(status)  # right after the run: it has been delivered
    assert os.waitpid(pid, 0)[1] == 0
    assert [value_of(peer, one["run_id"]) for one in made] == [pid, pid]
    assert outcome(peer, make_payload(peer, task)) == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_end_of_a_process_is_the_end_of_its_connection(peer: Peer) -> None:
    payload = make_payload(peer, patient)
    pid = os.fork()
    if not pid:
        run(payload)
    peer.until(lambda: "task_started" in peer.of(payload["run_id"]))
    time.sleep(0.2)
    assert len(peer.connections) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    peer.until(lambda: not peer.connections)


def test_pickles_are_not_needed_to_read_a_payload(peer: Peer) -> None:
    parsed = payloads.parse(make_payload(peer, lambda: 1))
    assert isinstance(parsed.frame["callable_pickle"], Pickled)


def test_a_broken_payload_does_not_end_a_run_of_the_same_id(peer: Peer) -> None:
    payload = make_payload(peer, lambda: time.sleep(0.4) or "done")
    thread = threading.Thread(target=run, args=(payload,))
    thread.start()
    peer.until(lambda: "task_started" in peer.of(payload["run_id"]))
    run({**payload, "version": 2})  # returns with the other
    assert value_of(peer, payload["run_id"]) == "done"
    thread.join(20)


def test_an_interrupt_of_a_call_that_only_waits_stops_nothing(peer: Peer) -> None:
    payload = make_payload(peer, lambda: time.sleep(0.5) or "done")

    async def main() -> None:
        first = asyncio.ensure_future(arun(payload))
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await arun(payload)
        await first

    asyncio.run(main())
    assert value_of(peer, payload["run_id"]) == "done"
