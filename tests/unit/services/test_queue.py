from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.services.front import Client, Front, command, with_front

from wove.errors import EnvironmentExecutionError, TaskTimeoutError, WorkerLostError
from wove.services import queue as queue_module, queued_runs
from wove.services.options import service_options
from wove.services.queue import RunQueue


def wait_for(path: str) -> str:
    """A task that runs until a file is there."""
    while not os.path.exists(path):
        time.sleep(0.002)
    return path


def append(path: str, text: str) -> str:
    with open(path, "a") as file:
        file.write(text)
    return text


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.mark.parametrize("processes", [None, 2])
def test_a_run_ends_with_its_result(processes: int | None, no_leaks: None) -> None:
    async def main(front: Front) -> None:
        clients = [front.send(lambda x: x * 2, args={"x": n}) for n in range(50)]
        assert [await client.outcome() for client in clients] == [2 * n for n in range(50)]
        assert [event["type"] for event in clients[0].events] == ["task_started", "task_result"]
        assert (clients[0].events[0]["pid"] == os.getpid()) is (processes is None)

    with_front(main, processes=processes)


def test_a_coroutine_and_an_error() -> None:
    async def main(front: Front) -> None:
        async def later() -> str:
            import asyncio

            await asyncio.sleep(0.001)
            return "later"

        def fail() -> None:
            raise ValueError("no")

        assert await front.send(later).outcome() == "later"
        error = await front.send(fail).outcome()
        assert isinstance(error, ValueError) and str(error) == "no"

    with_front(main)


@pytest.mark.parametrize("processes", [None, 1])
def test_no_more_run_at_once_than_it_says(processes: int | None, gate: Path) -> None:
    async def main(front: Front) -> None:
        first = [front.send(wait_for, args={"path": str(gate)}) for _ in range(3)]
        for client in first[:2]:
            await client.started()
        assert front.queue.status() == {
            "status": "ready",
            "running": 2,
            "waiting": 1,
            "concurrency": 2,
        }
        assert first[2].events == []
        gate.touch()
        assert [await client.outcome() for client in first] == [str(gate)] * 3

    with_front(main, concurrency=2, processes=processes)


def test_more_than_may_wait_are_sent_away(gate: Path) -> None:
    async def main(front: Front) -> None:
        taken = [front.send(wait_for, args={"path": str(gate)}) for _ in range(3)]
        assert not front.queue.ready and front.queue.status()["status"] == "full"
        refused = front.send(wait_for, args={"path": str(gate)})
        assert refused.subscription.over and await refused.outcome() == "busy"
        assert refused.events[0]["error"]["retryable"] is True
        gate.touch()
        assert [await client.outcome() for client in taken] == [str(gate)] * 3
        assert front.queue.ready
        assert await front.send(lambda: 1).outcome() == 1

    with_front(main, concurrency=1, backlog=2)


def test_those_who_wait_may_not_hold_any_number_of_bytes(gate: Path) -> None:
    async def main(front: Front) -> None:
        front.send(wait_for, args={"path": str(gate)})
        waiting = [
            front.send(lambda data: len(data), args={"data": b"x" * 900_000}) for _ in range(3)
        ]
        assert await waiting[2].outcome() == "busy"
        assert not waiting[0].over and not waiting[1].over
        gate.touch()
        await asyncio.gather(waiting[0].outcome(), waiting[1].outcome())
        assert front.queue._waiting_bytes == 0

    with_front(main, concurrency=1, max_message_bytes=1_000_000)


def test_runs_begin_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    path = tmp_path / "order"

    async def main(front: Front) -> None:
        clients = [front.send(append, args={"path": str(path), "text": f"{n} "}) for n in range(30)]
        for client in clients:
            await client.outcome()
        assert path.read_text().split() == [str(n) for n in range(30)]

    with_front(main, concurrency=1)


def test_the_time_of_a_run_begins_when_its_turn_comes(gate: Path) -> None:
    async def main(front: Front) -> None:
        front.send(wait_for, args={"path": str(gate)})
        queued = front.send(lambda: 1, deadline=0.2)
        await asyncio.sleep(0.3)  # longer than it may take, once it has begun
        gate.touch()
        assert await queued.outcome() == 1

    with_front(main, concurrency=1)


def test_time_is_up_in_the_middle(gate: Path) -> None:
    async def main(front: Front) -> None:
        assert isinstance(
            await front.send(wait_for, args={"path": str(gate)}, deadline=0.1).outcome(),
            TaskTimeoutError,
        )

    with_front(main)


# --- cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 1])
def test_cancel_what_runs(processes: int | None, gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)})
        await client.started()
        front.cancel(client)
        assert await client.outcome() == "cancelled"
        assert await front.send(lambda: 1).outcome() == 1

    with_front(main, processes=processes)


def test_cancel_what_waits(gate: Path) -> None:
    async def main(front: Front) -> None:
        first = front.send(wait_for, args={"path": str(gate)})
        second, third = front.send(lambda: 2), front.send(lambda: 3)
        front.cancel(second)
        assert second.over and await second.outcome() == "cancelled"
        gate.touch()
        assert await first.outcome() == str(gate)
        assert await third.outcome() == 3

    with_front(main, concurrency=1)


def test_a_cancel_may_come_before_its_run() -> None:
    async def main(front: Front) -> None:
        front.queue.cancel({"run_id": "early", "task_id": "pdf"})
        client = front.send(lambda: 1, run_id="early")
        assert client.over and await client.outcome() == "cancelled"
        for number in range(5000):
            front.queue.cancel({"run_id": f"nobody-{number}", "task_id": "pdf"})
        assert len(front.queue._early_cancels) <= 1000

    with_front(main)


def test_a_cancel_that_comes_too_late_is_not_one_of_the_next_run_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client of somebody else's may call all its runs the same."""

    async def main(front: Front) -> None:
        for number in range(3):
            client = front.send(lambda number: number, args={"number": number}, run_id="same")
            assert await client.outcome() == number
            front.cancel(client)
        monkeypatch.setattr(queue_module, "EARLY_CANCEL_SECONDS", 0.05)
        front.queue.cancel({"run_id": "another", "task_id": "pdf"})
        await asyncio.sleep(0.1)
        assert await front.send(lambda: "ran", run_id="another").outcome() == "ran"
        for client in [front.send(lambda: 1) for _ in range(2000)]:
            assert await client.outcome() == 1
        assert len(front.queue._ended) <= 1000

    with_front(main, backlog=10_000)


def test_nobody_cancels_for_another(gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, owner="mine")
        front.cancel(client, owner="theirs")
        gate.touch()
        assert await client.outcome() == str(gate)

    with_front(main)


def test_two_senders_may_use_the_same_run_id(gate: Path) -> None:
    async def main(front: Front) -> None:
        clients = [
            front.send(wait_for, args={"path": str(gate)}, run_id="same", owner="a"),
            front.send(wait_for, args={"path": str(gate)}, run_id="same", owner="b"),
            front.send(lambda: "other", run_id="same", owner="a"),
        ]
        assert await clients[2].outcome() == "other"
        front.cancel(clients[1])
        assert await clients[1].outcome() == "cancelled"
        gate.touch()
        assert await clients[0].outcome() == str(gate)

    with_front(main)


# --- the client has gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"orphan": "fail"}])
def test_a_run_nobody_waits_for_is_cancelled(more: dict[str, Any], gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, **more)
        await client.started()
        front.queue.unsubscribe(client.subscription)
        front.queue.unsubscribe(client.subscription)
        async with asyncio.timeout(30):
            while front.queue.status()["running"]:
                await asyncio.sleep(0.005)
        assert not client.over

    with_front(main)


@pytest.mark.parametrize("more", [{"orphan": "detach"}, {"key": "k"}])
def test_some_go_on_by_themselves(more: dict[str, Any], gate: Path, tmp_path: Path) -> None:
    async def main(front: Front) -> None:
        done = tmp_path / "done"

        def task(gate: str, done: str) -> None:
            import pathlib
            import time

            while not pathlib.Path(gate).exists():
                time.sleep(0.002)
            pathlib.Path(done).touch()

        client = front.send(task, args={"gate": str(gate), "done": str(done)}, **more)
        front.queue.unsubscribe(client.subscription)
        gate.touch()
        async with asyncio.timeout(30):
            while front.queue.status()["running"]:
                await asyncio.sleep(0.005)
        assert done.exists()

    with_front(main)


def test_a_cancel_still_reaches_what_went_on(gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, key="k")
        await client.started()
        front.queue.unsubscribe(client.subscription)
        front.cancel(client)
        async with asyncio.timeout(30):
            while front.queue.status()["running"]:
                await asyncio.sleep(0.005)

    with_front(main)


# --- a client that comes back -----------------------------------------------------------------------------

RECONNECT = {"delivery": {"delivery_reconnect_seconds": 60}}


def resumed(front: Front, client: Client, owner: str = "") -> Client:
    frame = {"type": "resume_task", "run_id": client.run_id, "task_id": "pdf", "delivery": {}}
    return Client(front.queue, frame, owner)


def unknown(outcome: object) -> bool:
    return isinstance(outcome, EnvironmentExecutionError) and "does not know the run" in str(
        outcome
    )


def test_a_run_is_resumed_while_it_runs(gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, **RECONNECT)
        await client.started()
        front.queue.unsubscribe(client.subscription)
        back = resumed(front, client)
        assert [event["type"] for event in back.events] == ["task_started"]
        gate.touch()
        assert await back.outcome() == str(gate)
        assert not client.over

    with_front(main)


def test_a_client_may_come_back_before_its_loss_is_noticed(gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, **RECONNECT)
        back = resumed(front, client)
        front.queue.unsubscribe(client.subscription)
        gate.touch()
        assert await back.outcome() == str(gate)
        assert not client.over

    with_front(main)


def test_an_end_is_kept_until_it_is_acknowledged() -> None:
    async def main(front: Front) -> None:
        client = front.send(lambda: 1, **RECONNECT)
        assert await client.outcome() == 1
        assert await resumed(front, client).outcome() == 1
        assert unknown(await resumed(front, client, owner="another").outcome())
        assert await front.send(lambda: 2, received=[client.run_id]).outcome() == 2
        assert unknown(await resumed(front, client).outcome())

    with_front(main)


def test_a_run_that_waits_is_not_begun_before_its_client_is_back(gate: Path) -> None:
    async def main(front: Front) -> None:
        first = front.send(wait_for, args={"path": str(gate)}, **RECONNECT)
        await first.started()
        absent = front.send(lambda: "absent", **RECONNECT)
        front.queue.unsubscribe(absent.subscription)
        gate.touch()
        await first.outcome()
        # Those behind it are not held up.
        assert await front.send(lambda: "next").outcome() == "next"
        assert front.queue.status()["waiting"] == 1
        assert await resumed(front, absent).outcome() == "absent"

    with_front(main, concurrency=1)


def test_a_client_that_does_not_come_back_is_given_up(
    gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queued_runs, "HELD_SHARE", 0.001)

    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, **RECONNECT)
        await client.started()
        front.queue.unsubscribe(client.subscription)
        async with asyncio.timeout(30):
            while front.queue.status()["running"]:
                await asyncio.sleep(0.005)

    with_front(main)


def test_a_run_that_was_cancelled_is_not_resumed(gate: Path) -> None:
    async def main(front: Front) -> None:
        client = front.send(wait_for, args={"path": str(gate)}, **RECONNECT)
        await client.started()
        front.queue.unsubscribe(client.subscription)
        front.cancel(client)
        assert unknown(await resumed(front, client).outcome())

    with_front(main)


# --- the same run twice -----------------------------------------------------------------------------------


def test_a_key_is_run_once(tmp_path: Path, gate: Path) -> None:
    path = tmp_path / "log"

    def task(path: str, gate: str) -> str:
        import os
        import time

        with open(path, "a") as file:
            file.write("x")
        while not os.path.exists(gate):
            time.sleep(0.002)
        return "once"

    async def main(front: Front) -> None:
        args = {"path": str(path), "gate": str(gate)}
        first = front.send(task, args=args, key="k", task_id="pdf")
        await first.started()
        second = front.send(task, args=args, key="k", task_id="pdf")
        assert [event["type"] for event in second.events] == ["task_started"]
        others = [
            front.send(task, args=args, key="k", task_id="other"),
            front.send(task, args=args, key="other"),
            front.send(task, args=args, key="k", owner="other"),
            front.send(task, args=args),
        ]
        gate.touch()
        for client in (first, second, *others):
            assert await client.outcome() == "once"
        assert path.read_text() == "xxxxx"
        again = front.send(task, args=args, key="k")
        assert again.over and await again.outcome() == "once"
        assert path.read_text() == "xxxxx"

    with_front(main)


def test_errors_and_cancels_are_not_remembered(gate: Path) -> None:
    async def main(front: Front) -> None:
        def fail() -> None:
            raise ValueError

        assert isinstance(await front.send(fail, key="k").outcome(), ValueError)
        cancelled = front.send(wait_for, args={"path": str(gate)}, key="k")
        await cancelled.started()
        front.cancel(cancelled)
        fresh = front.send(lambda: "fresh", key="k")  # and does not join what is being cancelled
        assert await fresh.outcome() == "fresh"
        assert await cancelled.outcome() == "cancelled"

    with_front(main)


def test_one_of_two_gives_up(gate: Path) -> None:
    async def main(front: Front) -> None:
        first = front.send(wait_for, args={"path": str(gate)}, key="k")
        await first.started()
        second = front.send(wait_for, args={"path": str(gate)}, key="k")
        front.cancel(first)
        assert first.over and await first.outcome() == "cancelled"
        gate.touch()
        assert await second.outcome() == str(gate)

    with_front(main)


def test_those_who_share_a_run_are_bounded_and_forgotten(gate: Path) -> None:
    async def main(front: Front) -> None:
        first = front.send(wait_for, args={"path": str(gate)}, key="k")
        run = first.subscription.run
        assert run is not None
        for _ in range(100):
            front.queue.unsubscribe(front.send(wait_for, key="k").subscription)
        front.queue.unsubscribe(first.subscription)
        for _ in range(100):
            front.queue.unsubscribe(front.send(wait_for, key="k").subscription)
        assert len(run.known_as) <= 2 and len(front.queue._by_name) <= 2
        shared = [front.send(wait_for, key="k") for _ in range(12)]
        assert [client.over for client in shared] == [False] * 10 + [True] * 2
        assert await shared[-1].outcome() == "busy"
        gate.touch()
        assert [await client.outcome() for client in shared[:10]] == [str(gate)] * 10

    with_front(main, concurrency=4, backlog=6)


def test_what_waits_or_is_remembered_holds_no_large_texts() -> None:
    """They count by their pickles, so nothing else of theirs may be large."""
    long = "k" * 100_000
    frame = command(
        len,
        key=long,
        junk=[1] * 10_000,
        wove=long,
        delivery={"delivery_timeout": 5.0, "more": {"a": [long]}},
    )
    assert len(str({**frame, "callable_pickle": "", "args_pickle": ""})) < 1000
    assert frame["delivery"]["delivery_timeout"] == 5.0
    odd = command(len, **{f"field-{number}": 1 for number in range(100)})
    assert len(odd) < 70 and odd["run_id"] and odd["type"] == "run_task"
    other = command(len, key=long[1:])
    keys = [
        each["delivery"]["delivery_idempotency_key"]
        for each in (frame, other, command(len, key=long))
    ]
    assert keys[0] == keys[2] != keys[1]


def test_heartbeats_are_promised_to_those_only_who_get_them(gate: Path) -> None:
    async def main(front: Front) -> None:
        first = front.send(
            wait_for,
            args={"path": str(gate)},
            key="k",
            delivery={"delivery_heartbeat_seconds": 0.3},
        )
        await first.started()
        patient = front.send(
            wait_for, args={"path": str(gate)}, key="k", delivery={"delivery_heartbeat_seconds": 3}
        )
        nervous = front.send(
            wait_for,
            args={"path": str(gate)},
            key="k",
            delivery={"delivery_heartbeat_seconds": 0.1},
        )
        await first.until(lambda: first.events[-1]["type"] == "heartbeat")
        assert patient.events[0]["type"] == "task_started"
        assert all(event["type"] != "task_started" for event in nervous.events)
        gate.touch()
        assert await nervous.outcome() == await patient.outcome() == str(gate)

    with_front(main)


# --- the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 1])
def test_draining_lets_run_what_runs_and_hands_back_what_waits(
    processes: int | None, gate: Path, no_leaks: None
) -> None:
    async def main(front: Front) -> None:
        running = front.send(wait_for, args={"path": str(gate)})
        waiting = front.send(wait_for, args={"path": str(gate)})
        await running.started()
        drained = asyncio.create_task(front.queue.drain(60))
        assert await waiting.outcome() == "busy"
        assert not front.queue.ready and front.queue.status()["status"] == "draining"
        assert await front.send(lambda: 1).outcome() == "busy"
        gate.touch()
        assert await running.outcome() == str(gate)
        assert await drained is True

    with_front(main, concurrency=1, processes=processes)


def test_what_does_not_end_in_time_is_told_so(gate: Path) -> None:
    async def main(front: Front) -> None:
        running = front.send(wait_for, args={"path": str(gate)})
        await running.started()
        assert await front.queue.drain(0.05) is False
        error = await running.outcome()
        assert isinstance(error, EnvironmentExecutionError)
        assert error.payload["kind"] == "WorkerLostError" and error.payload["retryable"] is True
        gate.touch()

    with_front(main)


def test_draining_does_not_wait_for_what_nobody_waits_for(gate: Path) -> None:
    async def main(front: Front) -> None:
        def stuck(path: str) -> None:
            import contextlib
            import os
            import time

            while not os.path.exists(path):
                with contextlib.suppress(BaseException):
                    time.sleep(0.01)

        client = front.send(stuck, args={"path": str(gate)})
        await client.started()
        drained = asyncio.create_task(front.queue.drain(60))
        await asyncio.sleep(0)
        front.queue.unsubscribe(client.subscription)
        async with asyncio.timeout(30):
            assert await drained is True
        gate.touch()

    with_front(main)


def test_after_its_end_it_can_start_again() -> None:
    async def main(front: Front) -> None:
        assert await front.send(lambda: 1).outcome() == 1
        await front.queue.aclose()
        await front.queue.aclose()
        assert await front.send(lambda: 1).outcome() == "busy"
        await front.queue.start()
        assert front.queue.ready
        assert await front.send(lambda: 2).outcome() == 2

    with_front(main)


def test_one_loop_after_the_other(no_leaks: None) -> None:
    queue = RunQueue(service_options(security="none"))

    async def once(number: int) -> Any:
        from tests.unit.services.front import Client

        return await Client(queue, command(lambda x: x, args={"x": number})).outcome()

    assert [asyncio.run(once(number)) for number in range(3)] == [0, 1, 2]

    async def end() -> None:
        await queue.start()
        await queue.aclose()

    asyncio.run(end())


def test_two_loops_at_once_are_refused() -> None:
    async def main(front: Front) -> None:
        await front.send(lambda: 1).outcome()

        def elsewhere() -> None:
            async def take() -> None:
                front.send(lambda: 1)

            with pytest.raises(RuntimeError, match="one event loop"):
                asyncio.run(take())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    with_front(main)


@pytest.mark.timeout(120)
def test_a_worker_process_that_dies_loses_its_runs_and_no_others(gate: Path) -> None:
    async def main(front: Front) -> None:
        def die() -> None:
            import os

            os.abort()

        patient = front.send(wait_for, args={"path": str(gate)})
        await patient.started()
        error = await front.send(die).outcome()
        assert isinstance(error, WorkerLostError) and "SIGABRT" in str(error)
        gate.touch()
        assert await patient.outcome() == str(gate)

    with_front(main, processes=2)


def test_a_client_that_cannot_be_told_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main(front: Front) -> None:
        def broken(event: dict[str, Any]) -> None:
            raise RuntimeError("the wire is cut")

        front.queue.enqueue(command(lambda: 1), broken, peer="broken")
        assert await front.send(lambda: 2).outcome() == 2

    with_front(main)
    assert "the wire is cut" in caplog.text


def test_one_line_a_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wove.service")

    async def main(front: Front) -> None:
        def fail() -> None:
            raise KeyError("no")

        await front.send(lambda: 1, run_id="good").outcome()
        await front.send(fail, run_id="bad", task_id="a\nb").outcome()

    with_front(main)
    good, bad = [record.getMessage() for record in caplog.records if record.name == "wove.service"]
    assert good.startswith("run good task 'pdf' from test: ok, ") and "bytes in" in good
    assert bad.startswith("run bad task 'a\\nb' from test: error KeyError, ")
