"""The delivery policy, event by event."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from tests.unit.delivery.puppet import Puppet, SharedPuppet, drive, eventually, request

from wove.delivery import DeliveryClient
from wove.delivery.in_flight import limiter_of
from wove.delivery.keys import shared
from wove.delivery.runs import MAX_REQUEUES
from wove.errors import (
    DeliveryError,
    DeliveryOrphanedError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    WorkerLostError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(params=[Puppet, SharedPuppet], ids=["own", "shared"])
def puppet(request: pytest.FixtureRequest) -> Puppet:
    return request.param()


@pytest.fixture(autouse=True)
def _nothing_is_held() -> Any:
    yield
    assert limiter_of("puppets").in_use == 0
    assert len(shared) == 0


def answer(puppet: Puppet, value: Any = 5, run: int = -1) -> None:
    puppet.say(puppet.event("task_result", run, result=value))


async def cancelled(run: asyncio.Task[Any]) -> None:
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


# ---------------------------------------------------------------------------------------------- the frames


def test_the_frame_of_a_run(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        wanted = request(
            puppet,
            args={"left": 2},
            attempt_timeout=50,
            timeout=9,
            heartbeat_seconds=3,
            idempotency_key="k{left}",
        )
        run = asyncio.create_task(scope.run(wanted))
        await puppet.sending(1)
        answer(puppet)
        await run

    drive(main)
    [frame] = puppet.runs
    assert frame["task_id"] == "add"
    assert frame["callable"](**frame["args"]) == 3
    assert frame["deadline"] == 50
    assert frame["delivery"] == {
        "delivery_timeout": 9,
        "delivery_heartbeat_seconds": 3,
        "delivery_idempotency_key": "k2",
        "delivery_cancel_mode": "best_effort",
        "delivery_orphan_policy": "cancel",
        "delivery_reconnect_seconds": 60.0,
    }
    assert set(frame["run_id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_started_once_and_stopped_once(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        assert puppet.calls == []
        runs = [asyncio.create_task(scope.run(request(puppet))) for _ in range(3)]
        await puppet.sending(3)
        for number in range(3):
            answer(puppet, number, number)
        assert await asyncio.gather(*runs) == [0, 1, 2]

    drive(main)
    import wove

    wove.shutdown()
    assert puppet.calls == ["start", "stop"]


# ------------------------------------------------------------------------------------- exactly one ending


def test_the_first_terminal_event_counts(puppet: Puppet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wove")

    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        first = puppet.event("task_result", result="first")
        puppet.say([first, first, puppet.event("task_error", exception=ValueError())], first)
        assert await run == "first"
        other = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(2)
        puppet.say({"type": "task_result", "run_id": "nobody", "result": 1})
        answer(puppet, "second")
        assert await other == "second"

    drive(main)
    assert caplog.text.count("not awaited") == 4


def test_a_result_may_be_none_or_an_exception(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        for value in (None, KeyError("a value"), StopIteration()):
            count = len(puppet.runs)
            run = asyncio.create_task(scope.run(request(puppet)))
            await puppet.sending(count + 1)
            answer(puppet, value)
            assert await run is value

    drive(main)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "task_result"}, "without a result"),
        ({"type": "bogus"}, "unknown type 'bogus'"),
        ({"type": ["unhashable"]}, "unknown type"),
        ({}, "unknown type None"),
        ({"type": "task_error"}, "did not say why"),
        (
            {"type": "task_error", "error": {"kind": "OOM", "message": "no memory"}},
            "OOM: no memory",
        ),
        ({"type": "task_error", "exception": "just text"}, "just text"),
    ],
)
def test_what_is_wrong_with_an_event_ends_its_run(
    puppet: Puppet, event: dict[str, Any], message: str
) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        puppet.say({"run_id": puppet.runs[0]["run_id"], **event})
        with pytest.raises(EnvironmentExecutionError, match=message):
            await run

    drive(main)


@pytest.mark.parametrize(
    "garbage", [None, 7, "text", {"run_id": ["x"]}, [], [None, 3], {"type": "task_started"}]
)
def test_garbage_from_recv_is_skipped(puppet: Puppet, garbage: Any) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        puppet.say(garbage)
        answer(puppet)
        assert await run == 5

    drive(main)


def test_nothing_but_garbage_is_the_end_of_the_executor(puppet: Puppet) -> None:
    async def nonsense() -> Any:
        return None

    async def main(scope: DeliveryClient) -> None:
        puppet.recv = nonsense  # type: ignore[method-assign]
        with pytest.raises(WorkerLostError, match="not an event"):
            await scope.run(request(puppet))

    drive(main)


def test_a_cancel_that_nobody_asked_for(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        puppet.say(puppet.event("task_cancelled"))
        with pytest.raises(DeliveryOrphanedError, match="not by its weave"):
            await run

    drive(main)


# --------------------------------------------------------------------------------------------------- loss


def test_recv_fails(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        runs = [asyncio.create_task(scope.run(request(puppet))) for _ in range(3)]
        await puppet.sending(3)
        puppet.say(OSError("cable cut"))
        for run in runs:
            with pytest.raises(WorkerLostError, match="cable cut"):
                await run
        again = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(4)
        answer(puppet)
        assert await again == 5

    drive(main)
    assert puppet.calls[:3] == ["start", "stop", "start"]


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3), StopAsyncIteration()]
)
def test_recv_fails_in_strange_ways(puppet: Puppet, error: BaseException) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        puppet.say(error)
        with pytest.raises(WorkerLostError):
            await run

    drive(main)


def test_requeue_after_a_loss_of_the_receiver(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(
            scope.run(request(puppet, orphan_policy="requeue", idempotency_key="k"))
        )
        await puppet.sending(1)
        puppet.say(OSError("cable cut"))
        await puppet.sending(2)
        puppet.say(
            puppet.event("task_result", 0, result="late")
        )  # of the lost one: nobody waits for it
        answer(puppet, "again")
        assert await run == "again"

    drive(main)
    first, second = puppet.runs
    assert first["run_id"] != second["run_id"]
    assert first["delivery"] == second["delivery"]


def test_requeue_has_an_end(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, orphan_policy="requeue")))
        for count in range(1, MAX_REQUEUES + 2):
            await puppet.sending(count)
            puppet.say(puppet.event("task_error", exception=WorkerLostError(f"loss {count}")))
        with pytest.raises(WorkerLostError, match=f"loss {MAX_REQUEUES + 1}"):
            await run

    drive(main)


def test_requeue_keeps_the_slot(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        policy = {"orphan_policy": "requeue", "max_in_flight": 1}
        first = asyncio.create_task(scope.run(request(puppet, **policy)))
        await puppet.sending(1)
        second = asyncio.create_task(scope.run(request(puppet, **policy)))
        puppet.say(puppet.event("task_error", exception=WorkerLostError("lost")))
        await puppet.sending(2)
        answer(puppet, "first")
        assert await first == "first"
        await puppet.sending(3)
        answer(puppet, "second")
        assert await second == "second"

    drive(main)


# ------------------------------------------------------------------------------------------------- limits


def test_delivery_timeout_runs_from_the_hand_over(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        first = asyncio.create_task(scope.run(request(puppet, max_in_flight=1)))
        await puppet.sending(1)
        second = asyncio.create_task(scope.run(request(puppet, max_in_flight=1, timeout=0.2)))
        await asyncio.sleep(0.4)  # longer than its timeout, and it has not been handed over
        assert not second.done()
        answer(puppet)
        await first
        with pytest.raises(DeliveryTimeoutError, match=r"within 0\.2 s of being sent"):
            await second
        await eventually(lambda: puppet.cancels == [puppet.runs[1]["run_id"]])

    drive(main)


def test_the_heartbeat_window_starts_with_the_run(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, heartbeat_seconds=0.3)))
        await puppet.sending(1)
        await asyncio.sleep(0.5)  # queued; it cannot beat
        puppet.say(puppet.event("task_started"))
        for _ in range(10):
            await asyncio.sleep(0.06)
            puppet.say(puppet.event("heartbeat"))
        assert not run.done()
        with pytest.raises(DeliveryTimeoutError, match=r"no sign of life for 0\.3 s") as caught:
            await run
        assert puppet.runs[0]["run_id"] in str(caught.value)
        await eventually(lambda: puppet.cancels == [puppet.runs[0]["run_id"]])

    drive(main)


def test_a_loop_that_was_held_up_reads_what_waits_before_it_takes_a_worker_for_dead(
    puppet: Puppet,
) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, heartbeat_seconds=0.3)))
        await puppet.sending(1)
        puppet.say(puppet.event("task_started"))

        def read(steps: int) -> None:  # takes the loop a few steps, as a socket or a pipe does
            if steps:
                puppet.loop.call_soon(read, steps - 1)
            else:
                puppet.say(puppet.event("heartbeat"))

        for _ in range(2):
            puppet.loop.call_soon_threadsafe(time.sleep, 0.5)
            puppet.loop.call_soon_threadsafe(read, 5)
            await asyncio.sleep(0.6)
        answer(puppet, "alive")
        assert await run == "alive"

    drive(main)


def test_silence_is_a_loss_for_requeue(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(
            scope.run(request(puppet, heartbeat_seconds=0.1, orphan_policy="requeue"))
        )
        await puppet.sending(1)
        puppet.say(puppet.event("task_started"))
        await puppet.sending(2)
        await eventually(lambda: puppet.cancels == [puppet.runs[0]["run_id"]])
        answer(puppet, "again")
        assert await run == "again"

    drive(main)


# ------------------------------------------------------------------------------------------------- cancel


def test_cancel_is_sent_and_not_waited_for(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        await cancelled(run)
        await eventually(lambda: puppet.cancels)
        frame = puppet.sent[-1]
        assert frame == {
            "type": "cancel_task",
            "run_id": puppet.runs[0]["run_id"],
            "task_id": "add",
            "delivery_cancel_mode": "best_effort",
            "delivery_orphan_policy": "cancel",
        }

    drive(main)


def test_a_cancel_of_a_weave_that_ends_is_sent(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        await cancelled(run)

    drive(main)
    import wove

    wove.shutdown()
    assert puppet.cancels == [puppet.runs[0]["run_id"]]


@pytest.mark.parametrize("event", ["task_cancelled", "task_result", "task_error", "lost"])
def test_require_ack_waits_for_any_end(puppet: Puppet, event: str) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, cancel_mode="require_ack")))
        await puppet.sending(1)
        run.cancel()
        await eventually(lambda: puppet.cancels)
        await asyncio.sleep(0.05)
        assert not run.done()
        if event == "lost":
            puppet.say(OSError("cable cut"))
        else:
            puppet.say(puppet.event(event, result=1, exception=ValueError()))
        with pytest.raises(asyncio.CancelledError):
            await run

    drive(main)


def test_require_ack_is_bounded(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        wanted = request(puppet, cancel_mode="require_ack", config={"cancel_ack_timeout": 0.1})
        run = asyncio.create_task(scope.run(wanted))
        await puppet.sending(1)
        run.cancel()
        with pytest.raises(
            DeliveryTimeoutError, match=r"did not acknowledge that within 0\.1 s"
        ) as caught:
            await run
        assert puppet.runs[0]["run_id"] in str(caught.value)

    drive(main)


def test_require_ack_holds_after_a_timeout_too(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(
            scope.run(request(puppet, cancel_mode="require_ack", timeout=0.05))
        )
        await puppet.sending(1)
        await eventually(lambda: puppet.cancels)
        assert not run.done()
        answer(puppet)
        with pytest.raises(DeliveryTimeoutError, match="delivery_timeout"):
            await run

    drive(main)


def test_a_second_cancel_ends_the_wait(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, cancel_mode="require_ack")))
        await puppet.sending(1)
        run.cancel()
        await eventually(lambda: puppet.cancels)
        await cancelled(run)
        answer(puppet)

    drive(main)


def test_cancel_before_anything_was_sent(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        holder = asyncio.create_task(scope.run(request(puppet, max_in_flight=1)))
        await puppet.sending(1)
        for policy in ("cancel", "fail", "requeue", "detach"):
            waiting = asyncio.create_task(
                scope.run(
                    request(
                        puppet, max_in_flight=1, orphan_policy=policy, cancel_mode="require_ack"
                    )
                )
            )
            await asyncio.sleep(0.02)
            await cancelled(waiting)  # there is no orphan: it was never handed over
        at_once = asyncio.create_task(scope.run(request(puppet)))
        await asyncio.sleep(0)
        await cancelled(at_once)
        answer(puppet, run=0)
        assert await holder == 5
        before = len(puppet.runs)
        last = asyncio.create_task(scope.run(request(puppet, max_in_flight=1)))
        await puppet.sending(before + 1)
        answer(puppet)
        assert await last == 5

    drive(main)


def test_cancel_during_the_start(puppet: Puppet) -> None:
    async def slow(_: int) -> None:
        await asyncio.sleep(60)

    async def main(scope: DeliveryClient) -> None:
        puppet.on_start = slow
        run = asyncio.create_task(scope.run(request(puppet)))
        await eventually(lambda: puppet.calls)
        await cancelled(run)

    drive(main)
    assert puppet.runs == []


def test_detach_leaves_it_running_and_a_later_weave_may_join(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        wanted = request(puppet, orphan_policy="detach", idempotency_key="k", max_in_flight=1)
        run = asyncio.create_task(scope.run(wanted))
        await puppet.sending(1)
        run.cancel()
        with pytest.raises(DeliveryOrphanedError, match="left running"):
            await run
        assert puppet.cancels == []
        joined = asyncio.create_task(scope.run(wanted))
        await asyncio.sleep(0.02)
        answer(puppet, "joined")
        assert await joined == "joined"
        assert len(puppet.runs) == 1

    drive(main)


def test_a_detached_run_is_not_cancelled_by_its_timeout(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, orphan_policy="detach", timeout=0.1)))
        await puppet.sending(1)
        run.cancel()
        with pytest.raises(DeliveryOrphanedError):
            await run
        await eventually(lambda: limiter_of("puppets").in_use == 0)
        assert puppet.cancels == []

    drive(main)


def test_fail_cancels_and_says_so(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet, orphan_policy="fail")))
        await puppet.sending(1)
        run.cancel()
        with pytest.raises(DeliveryOrphanedError, match="was cancelled, because its weave stopped"):
            await run
        await eventually(lambda: puppet.cancels == [puppet.runs[0]["run_id"]])

    drive(main)


# --------------------------------------------------------------------------------------------------- send


def test_send_fails(puppet: Puppet) -> None:
    async def refuse(frame: Any) -> None:
        raise ConnectionRefusedError("nobody there")

    async def main(scope: DeliveryClient) -> None:
        puppet.on_send = refuse
        with pytest.raises(ConnectionRefusedError, match="nobody there") as caught:
            await scope.run(request(puppet))
        assert "raised by send()" in caught.value.__notes__[0]
        puppet.on_send = None
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(2)
        answer(puppet)
        assert await run == 5

    drive(main)


def test_send_hangs(puppet: Puppet) -> None:
    async def hang(frame: Any) -> None:
        await asyncio.sleep(60)

    async def main(scope: DeliveryClient) -> None:
        puppet.on_send = hang
        with pytest.raises(DeliveryTimeoutError, match="send_timeout"):
            await scope.run(request(puppet, config={"send_timeout": 0.1}))

    drive(main)


def test_an_answer_may_come_before_send_returns(puppet: Puppet) -> None:
    async def answer_first(frame: Any) -> None:
        answer(puppet)
        await asyncio.sleep(0.2)
        raise RuntimeError("too late to matter")

    async def main(scope: DeliveryClient) -> None:
        puppet.on_send = answer_first
        assert await scope.run(request(puppet)) == 5

    drive(main)


def test_a_cancel_does_not_overtake_its_run(puppet: Puppet) -> None:
    seen: list[str] = []

    async def slow(frame: Any) -> None:
        if frame["type"] == "run_task":
            await asyncio.sleep(0.2)
        seen.append(frame["type"])

    async def main(scope: DeliveryClient) -> None:
        puppet.on_send = slow
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        await cancelled(run)

    drive(main)
    import wove

    wove.shutdown()
    assert seen == ["run_task", "cancel_task"]


# -------------------------------------------------------------------------------------------- start and stop


def test_start_fails_and_the_next_run_tries_again(puppet: Puppet) -> None:
    failing = True

    async def fail_at_first(_: int) -> None:
        if failing:
            raise LookupError("no address")

    async def main(scope: DeliveryClient) -> None:
        nonlocal failing
        puppet.on_start = fail_at_first
        runs = await asyncio.gather(
            *(scope.run(request(puppet)) for _ in range(3)), return_exceptions=True
        )
        assert [str(error) for error in runs] == ["no address"] * 3
        failing = False
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        answer(puppet)
        assert await run == 5

    drive(main)
    import wove

    wove.shutdown()
    assert puppet.calls.count("stop") == 1  # one that did not start is not stopped


@pytest.mark.parametrize("stubborn", [False, True])
def test_start_hangs(puppet: Puppet, stubborn: bool) -> None:
    async def hang(_: int) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            if not stubborn:
                raise
            await asyncio.sleep(2)

    async def main(scope: DeliveryClient) -> None:
        puppet.on_start = hang
        with pytest.raises(DeliveryTimeoutError, match=r"'puppets' did not start within 0\.1 s"):
            await scope.run(request(puppet, config={"start_timeout": 0.1}))

    drive(main)


@pytest.mark.parametrize("failing", [False, True])
def test_stop_that_does_not_stop(
    puppet: Puppet, failing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def stop() -> None:
        if failing:
            raise RuntimeError("will not")
        await asyncio.sleep(60)

    async def main(scope: DeliveryClient) -> None:
        puppet.on_stop = stop
        run = asyncio.create_task(scope.run(request(puppet, config={"stop_timeout": 0.1})))
        await puppet.sending(1)
        answer(puppet)
        assert await run == 5

    drive(main)
    import wove

    wove.shutdown()
    assert ("will not" if failing else "did not stop within 0.1 s") in caplog.text


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"start_timeout": "x"}, TypeError),
        ({"stop_timeout": 0}, ValueError),
        ({"send_timeout": True}, TypeError),
    ],
)
def test_wrong_limits_are_named(
    puppet: Puppet, config: dict[str, Any], error: type[Exception]
) -> None:
    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(error, match=next(iter(config))):
            await scope.run(request(puppet, config=config))

    drive(main)


# --------------------------------------------------------------------------------------------------- keys


def test_an_unknown_field_is_named(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(ValueError, match=r"task 'add'.*\{lefd\}.*Did you mean 'left'"):
            await scope.run(
                request(puppet, args={"left": 1, "right": 2}, idempotency_key="k-{lefd}")
            )

    drive(main)
    assert puppet.calls == []


def test_keys_of_other_environments_are_others(puppet: Puppet) -> None:
    other = type(puppet)()

    async def main(scope: DeliveryClient) -> None:
        runs = [
            asyncio.create_task(scope.run(request(puppet, idempotency_key="k"))),
            asyncio.create_task(scope.run(request(other, name="others", idempotency_key="k"))),
        ]
        await puppet.sending(1)
        await other.sending(1)
        answer(puppet, "one")
        answer(other, "two")
        assert await asyncio.gather(*runs) == ["one", "two"]

    drive(main)


def test_the_last_one_who_leaves_cancels(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        runs = [
            asyncio.create_task(scope.run(request(puppet, idempotency_key="k"))) for _ in range(3)
        ]
        await puppet.sending(1)
        await asyncio.sleep(0.05)
        await cancelled(runs[1])
        await cancelled(runs[0])
        assert puppet.cancels == []
        await cancelled(runs[2])
        await eventually(lambda: puppet.cancels)
        assert len(puppet.runs) == 1

    drive(main)


def test_a_shared_run_waits_for_one_slot(puppet: Puppet) -> None:
    async def main(scope: DeliveryClient) -> None:
        holder = asyncio.create_task(scope.run(request(puppet, max_in_flight=1)))
        await puppet.sending(1)
        runs = [
            asyncio.create_task(scope.run(request(puppet, idempotency_key="k", max_in_flight=1)))
            for _ in range(3)
        ]
        await asyncio.sleep(0.02)
        await cancelled(runs[0])  # the one that submitted it; it is not lost for the others
        answer(puppet)
        await holder
        await puppet.sending(2)
        answer(puppet, "shared")
        assert await asyncio.gather(*runs[1:]) == ["shared"] * 2

    drive(main)


# ----------------------------------------------------------------------------------------- shared instances


def test_an_instance_is_shared_by_weaves_of_one_loop() -> None:
    puppet = Puppet()

    async def weave(number: int) -> int:
        from wove.delivery import DeliveryClient

        scope = DeliveryClient(asyncio.get_running_loop())
        try:
            return await scope.run(request(puppet, args={"left": number}))
        finally:
            await scope.aclose()

    async def main() -> None:
        weaves = [asyncio.create_task(weave(number)) for number in range(3)]
        await puppet.sending(3)
        for number in range(3):
            answer(puppet, puppet.runs[number]["args"]["left"], number)
        assert await asyncio.gather(*weaves) == [0, 1, 2]
        last = asyncio.create_task(weave(3))
        await puppet.sending(4)
        answer(puppet, 3)
        assert await last == 3

    asyncio.run(main())
    assert puppet.calls == ["start", "stop"] * 2


def test_an_instance_serves_one_loop_at_a_time() -> None:
    puppet = Puppet()

    async def other(scope: DeliveryClient) -> None:
        with pytest.raises(DeliveryError, match=r"on another loop.*scope = 'process'"):
            await scope.run(request(puppet))

    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(request(puppet)))
        await puppet.sending(1)
        await asyncio.to_thread(drive, other)
        answer(puppet)
        assert await run == 5

    drive(main)
