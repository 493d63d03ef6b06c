"""Round trips, failures, limits and losses, the same over every executor."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.links import Bench, Link
from wove.delivery import Call, DeliveryClient
from wove.errors import (
    DeliveryOrphanedError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    SerializationError,
    WorkerLostError,
)


class Unfair(Exception):
    """An error of the user's own."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(left, right)
        self.left = left


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.005)
    return value


async def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come about"
        await asyncio.sleep(0.005)
    return value


def needs(link: Link, ability: str) -> None:
    if not getattr(link, ability):
        pytest.skip(f"{link} has no {ability!r}: see tests/contract/links.py")


# Tasks. By value or by reference, as users' own are.


def add(left: int, right: int = 1) -> int:
    return left + right


async def add_later(left: int) -> int:
    await asyncio.sleep(0.001)
    return left + 1


def fail(left: int) -> None:
    raise Unfair(left, 2)


def mark(path: str, line: str = "x") -> str:
    with open(path, "a") as file:
        file.write(line + "\n")
    return line


def mark_and_wait(path: str, until: str) -> str:
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + 30
    while not os.path.exists(until) and time.monotonic() < deadline:
        time.sleep(0.005)
    return "done"


async def sleep_and_tell(path: str, told: str) -> None:
    with open(path, "a") as file:
        file.write("started\n")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        with open(told, "a") as file:
            file.write("cancelled\n")
        raise


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --------------------------------------------------------------------------------------------- round trips


def test_round_trip(bench: Bench) -> None:
    async def main(scope: DeliveryClient) -> None:
        assert await scope.run(bench.request(add, {"left": 1})) == 2
        assert await scope.run(bench.request(add_later, {"left": 1})) == 2
        assert await scope.run(bench.request(lambda: {"a": [1, (2, None)], "b": "ü"})) == {
            "a": [1, (2, None)],
            "b": "ü",
        }

    bench.drive(main)
    assert all(record.run_id and len(record.run_id) <= 48 for record in bench.records)
    assert len({record.run_id for record in bench.records}) == 3


def test_the_record_says_where_it_ran(bench: Bench) -> None:
    needs(bench.link, "pickles")

    async def main(scope: DeliveryClient) -> int:
        return await scope.run(bench.request(lambda: __import__("os").getpid()))

    pid = bench.drive(main)
    [record] = bench.records
    assert pid != os.getpid()
    assert record.pid in (pid, None)  # a plain worker does not say
    assert record.bytes_out > 0
    assert record.bytes_in > 0


def test_many_runs_of_one_callable_keep_apart(bench: Bench) -> None:
    async def main(scope: DeliveryClient) -> list[int]:
        call = Call(add, "add")
        return await asyncio.gather(
            *(scope.run(bench.request(call, {"left": n, "right": n})) for n in range(300))
        )

    assert bench.drive(main) == [2 * n for n in range(300)]


def test_a_large_value_goes_out_and_back(bench: Bench) -> None:
    data = os.urandom(1 << 20) * 20

    async def main(scope: DeliveryClient) -> Any:
        small = [scope.run(bench.request(add, {"left": n})) for n in range(20)]
        large = scope.run(bench.request(lambda data: (len(data), data[::-1]), {"data": data}))
        return (await asyncio.gather(large, *small))[0]

    size, back = bench.drive(main)
    assert size == len(data)
    assert back == data[::-1]


def test_two_threads_at_once(bench: Bench) -> None:
    needs(bench.link, "across_threads")
    seen: dict[int, list[int]] = {}

    def weave(number: int) -> None:
        async def main(scope: DeliveryClient) -> list[int]:
            return await asyncio.gather(
                *(scope.run(bench.request(add, {"left": number, "right": n})) for n in range(50))
            )

        seen[number] = bench.drive(main)

    threads = [threading.Thread(target=weave, args=(number,)) for number in (100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: [number + n for n in range(50)] for number in (100, 200, 300)}


def test_one_scope_after_the_other(bench: Bench) -> None:
    async def main(scope: DeliveryClient) -> int:
        return await scope.run(bench.request(add, {"left": 1}))

    assert [bench.drive(main) for _ in range(5)] == [2] * 5


# ------------------------------------------------------------------------------------------------ failures


def test_an_exception_keeps_type_and_remote_traceback(bench: Bench) -> None:
    async def main(scope: DeliveryClient) -> None:
        await scope.run(bench.request(fail, {"left": 7}))

    with pytest.raises(Unfair) as caught:
        bench.drive(main)
    assert caught.value.left == 7
    if bench.link.pickles:
        assert "in fail" in str(caught.value.__cause__)


def test_an_exception_that_cannot_travel_still_says_what_it_was(bench: Bench) -> None:
    needs(bench.link, "pickles")

    def fail_badly() -> None:
        error = ValueError("no way")
        error.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
        raise error

    async def main(scope: DeliveryClient) -> None:
        await scope.run(bench.request(fail_badly))

    with pytest.raises((ValueError, EnvironmentExecutionError), match="no way") as caught:
        bench.drive(main)
    if (
        bench.link.name == "stdio-plain-worker"
    ):  # written by somebody else, it sends the report alone
        assert isinstance(caught.value, EnvironmentExecutionError)
        assert caught.value.payload["kind"] == "ValueError"
        assert caught.value.payload["source"] == "task"
    else:
        assert type(caught.value) is ValueError
        assert "without what cannot be pickled of it: lock (lock)" in caught.value.__notes__


def test_what_cannot_be_pickled_is_named(bench: Bench) -> None:
    needs(bench.link, "pickles")

    async def arguments(scope: DeliveryClient) -> None:
        await scope.run(bench.request(add, {"left": threading.Lock()}))

    async def function(scope: DeliveryClient) -> None:
        lock = threading.Lock()
        call = Call(lambda: lock, "locked")
        results = await asyncio.gather(
            *(scope.run(bench.request(call)) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, SerializationError) for result in results)
        raise results[0]  # type: ignore[misc]

    with pytest.raises(SerializationError, match="arguments of task 'add'.*left"):
        bench.drive(arguments)
    with pytest.raises(SerializationError, match="function of task 'locked'"):
        bench.drive(function)


# -------------------------------------------------------------------------------------------------- cancel


def test_a_cancel_reaches_a_coroutine(bench: Bench, tmp_path: Path) -> None:
    needs(bench.link, "cancels")
    started, told = tmp_path / "started", tmp_path / "told"

    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(
            scope.run(bench.request(sleep_and_tell, {"path": str(started), "told": str(told)}))
        )
        await eventually(started.exists)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert await scope.run(bench.request(add, {"left": 1})) == 2

    bench.drive(main)
    wait_for(told.exists)


def test_require_ack_waits_for_the_end(bench: Bench, tmp_path: Path) -> None:
    needs(bench.link, "cancels")
    started, told = tmp_path / "started", tmp_path / "told"

    async def main(scope: DeliveryClient) -> None:
        request = bench.request(
            sleep_and_tell, {"path": str(started), "told": str(told)}, cancel_mode="require_ack"
        )
        run = asyncio.create_task(scope.run(request))
        await eventually(started.exists)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert lines(told) == ["cancelled"]

    bench.drive(main)


def test_a_cancelled_sync_task_that_blocks_does_not_hold_up_others(
    bench: Bench, tmp_path: Path
) -> None:
    needs(bench.link, "interrupts")
    started, never = tmp_path / "started", tmp_path / "never"

    def block(path: str) -> None:
        import os
        import time

        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)

    async def main(scope: DeliveryClient) -> None:
        run = asyncio.create_task(scope.run(bench.request(block, {"path": str(started)})))
        await eventually(lambda: lines(started))
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        results = await asyncio.gather(
            *(scope.run(bench.request(add, {"left": n})) for n in range(10))
        )
        assert results == [n + 1 for n in range(10)]

        def gone() -> bool:
            try:
                os.kill(int(lines(started)[0]), 0)
            except ProcessLookupError:
                return True
            return False

        await eventually(gone)

    bench.drive(main)
    assert not never.exists()


def test_a_run_whose_own_time_is_over_is_cancelled_whatever_the_policy(
    bench: Bench, tmp_path: Path
) -> None:
    needs(bench.link, "cancels")
    started, told = tmp_path / "started", tmp_path / "told"

    async def main(scope: DeliveryClient) -> None:
        request = bench.request(
            sleep_and_tell,
            {"path": str(started), "told": str(told)},
            attempt_timeout=60,
            orphan_policy="detach",
        )
        run = asyncio.create_task(scope.run(request))
        await eventually(started.exists)
        request.expired = True
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await eventually(told.exists)

    bench.drive(main)


# -------------------------------------------------------------------------------------------------- limits


def test_delivery_timeout(bench: Bench, tmp_path: Path) -> None:
    until = tmp_path / "until"

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(tmp_path / "started"), "until": str(until)}
        with pytest.raises(
            DeliveryTimeoutError, match=r"task 'mark_and_wait'.*delivery_timeout"
        ) as caught:
            await scope.run(bench.request(mark_and_wait, args, timeout=0.3))
        assert isinstance(caught.value, TimeoutError)
        assert await scope.run(bench.request(add, {"left": 1})) == 2

    bench.drive(main)
    until.touch()


def test_heartbeats_keep_a_blocking_run_alive(bench: Bench) -> None:
    needs(bench.link, "beats")

    async def main(scope: DeliveryClient) -> str:
        def block() -> str:
            import time

            time.sleep(2.0)
            return "done"

        return await scope.run(bench.request(block, heartbeat_seconds=0.75))

    assert bench.drive(main) == "done"


def test_silence_counts_as_a_dead_worker(bench: Bench, tmp_path: Path) -> None:
    if bench.link.beats:
        pytest.skip("its worker beats; tests/unit/delivery has one that stops")

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(tmp_path / "started"), "until": str(tmp_path / "until")}
        with pytest.raises(DeliveryTimeoutError, match="no sign of life"):
            await scope.run(bench.request(mark_and_wait, args, heartbeat_seconds=0.3))

    bench.drive(main)


def test_max_in_flight(bench: Bench, tmp_path: Path) -> None:
    def busy(folder: str, number: int) -> int:
        import os
        import time

        path = os.path.join(folder, str(number))
        with open(path, "w"):
            pass
        most = 0
        for _ in range(5):
            most = max(most, len(os.listdir(folder)))
            time.sleep(0.002)
        os.unlink(path)
        return most

    async def main(scope: DeliveryClient) -> list[int]:
        call = Call(busy, "busy")
        return await asyncio.gather(
            *(
                scope.run(
                    bench.request(call, {"folder": str(folder), "number": n}, max_in_flight=2)
                )
                for n in range(20)
            )
        )

    folder = tmp_path / "busy"
    folder.mkdir()
    assert max(bench.drive(main)) <= 2


# ----------------------------------------------------------------------------------------------------- keys


def test_runs_with_one_key_are_one_run(bench: Bench, tmp_path: Path) -> None:
    path, until = tmp_path / "path", tmp_path / "until"

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(path), "until": str(until)}
        runs = [
            asyncio.create_task(
                scope.run(bench.request(mark_and_wait, args, idempotency_key="once-{path}"))
            )
            for _ in range(5)
        ]
        await eventually(lambda: lines(path))
        runs[0].cancel()  # the first one submitted it; the others still want it
        with pytest.raises(asyncio.CancelledError):
            await runs[0]
        until.touch()
        assert await asyncio.gather(*runs[1:]) == ["done"] * 4
        assert len(lines(path)) == 1
        assert (
            await scope.run(bench.request(mark_and_wait, args, idempotency_key="once-{path}"))
            == "done"
        )
        # Here it is one run as long as it is in flight; a worker may know it for longer.
        assert len(lines(path)) == (1 if bench.link.remembers else 2)

    bench.drive(main)


def test_runs_with_one_key_share_the_error(bench: Bench) -> None:
    async def main(scope: DeliveryClient) -> list[Any]:
        requests = (
            bench.request(fail, {"left": 3}, idempotency_key=lambda left: f"k{left}")
            for _ in range(3)
        )
        return await asyncio.gather(*map(scope.run, requests), return_exceptions=True)

    assert [type(error) for error in bench.drive(main)] == [Unfair] * 3


# ------------------------------------------------------------------------------------------------- orphans


@pytest.mark.parametrize("policy", ["cancel", "requeue", "fail", "detach"])
def test_the_orphan_policy_when_the_weave_stops(bench: Bench, tmp_path: Path, policy: str) -> None:
    needs(bench.link, "cancels")
    if policy == "detach" and not bench.link.across_threads:
        pytest.skip("it ends with its weave, and with it what it runs")
    started, told = tmp_path / "started", tmp_path / "told"

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(started), "told": str(told)}
        run = asyncio.create_task(
            scope.run(bench.request(sleep_and_tell, args, orphan_policy=policy))
        )
        await eventually(started.exists)
        run.cancel()
        expected = DeliveryOrphanedError if policy in ("fail", "detach") else asyncio.CancelledError
        with pytest.raises(expected):
            await run
        if policy == "detach":
            assert await scope.run(bench.request(add, {"left": 1})) == 2
            assert not told.exists()
        else:
            await eventually(told.exists)

    bench.drive(main)


def kill_worker(path: str, times: int) -> str:
    import os
    import signal

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(path) as file:
        if len(file.readlines()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@pytest.mark.parametrize("policy", ["cancel", "fail", "detach"])
def test_a_lost_worker_ends_its_run(bench: Bench, tmp_path: Path, policy: str) -> None:
    needs(bench.link, "loses")

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(tmp_path / "pids"), "times": 100}
        death = "SIGKILL" if bench.link.names_signals else ""
        with pytest.raises(WorkerLostError, match=f"task 'kill_worker'.*{death}"):
            await scope.run(bench.request(kill_worker, args, orphan_policy=policy))
        assert len(lines(tmp_path / "pids")) == 1
        assert await scope.run(bench.request(add, {"left": 1})) == 2

    bench.drive(main)


def test_a_lost_run_is_submitted_again(bench: Bench, tmp_path: Path) -> None:
    needs(bench.link, "loses")

    async def main(scope: DeliveryClient) -> str:
        args = {"path": str(tmp_path / "pids"), "times": 2}
        return await scope.run(bench.request(kill_worker, args, orphan_policy="requeue"))

    assert bench.drive(main) == "survived"
    assert len(set(lines(tmp_path / "pids"))) == 3


def test_a_run_that_kills_every_worker_is_not_submitted_for_ever(
    bench: Bench, tmp_path: Path
) -> None:
    needs(bench.link, "loses")

    async def main(scope: DeliveryClient) -> None:
        args = {"path": str(tmp_path / "pids"), "times": 1000}
        with pytest.raises(WorkerLostError):
            await scope.run(bench.request(kill_worker, args, orphan_policy="requeue"))

    bench.drive(main)
    assert 2 <= len(lines(tmp_path / "pids")) <= 10
