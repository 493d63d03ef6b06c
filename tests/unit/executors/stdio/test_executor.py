"""The pool of worker processes: starts, ends, dispatch, and what goes wrong in between."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.delivery.puppet import drive, eventually, request, transmitted

import wove
from wove import weave
from wove.delivery import Call, DeliveryClient
from wove.errors import DeliveryError, EnvironmentExecutionError, WorkerLostError
from wove.settings.model import Environment

pytest.importorskip("cloudpickle")
pytestmark = pytest.mark.usefixtures("no_leaks")


def stdio(**config: Any) -> Environment:
    return Environment("pool", "stdio", config)


def python(source: str) -> Environment:
    """A worker that is this Python program."""
    return stdio(command=[sys.executable, "-c", source])


def echo(value: Any = 1) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def rest(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def compute(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def run(
    scope: DeliveryClient,
    environment: Environment,
    fn: Callable[..., Any] | Call = echo,
    **args: Any,
) -> Any:
    return await scope.run(request(environment, fn, args))


# ----------------------------------------------------------------------------------------- starts and ends


def test_processes_are_kept_for_the_next_weave() -> None:
    environment = stdio(processes=1)
    pids = [drive(lambda scope: run(scope, environment, pid)) for _ in range(3)]
    assert len(set(pids)) == 1
    assert pids[0] != os.getpid()
    wove.shutdown()
    assert not alive(pids[0])
    wove.shutdown()
    assert drive(lambda scope: run(scope, environment, pid)) not in pids


def test_computing_runs_use_all_processes() -> None:
    environment = stdio(processes=3)

    async def main(scope: DeliveryClient) -> list[int]:
        return await asyncio.gather(
            *(run(scope, environment, compute, seconds=0.2) for _ in range(6))
        )

    assert len(set(drive(main))) == 3


def test_waiting_runs_run_at_once_on_few_processes() -> None:
    environment = stdio(processes=2)

    def meet(folder: str, count: int) -> int:
        import tempfile

        tempfile.mkstemp(dir=folder)
        deadline = time.monotonic() + 30
        while len(os.listdir(folder)) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(os.listdir(folder))

    async def main(scope: DeliveryClient, folder: str) -> list[int]:
        call = Call(meet, "meet")
        return await asyncio.gather(
            *(run(scope, environment, call, folder=folder, count=32) for _ in range(32))
        )

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert drive(lambda scope: main(scope, folder)) == [32] * 32


def test_a_run_that_waits_for_one_that_has_no_room_gets_it_room() -> None:
    environment = stdio(processes=1)

    def spin_until(path: str) -> str:
        while not os.path.exists(path):  # computes all the time: never looks as if it waited
            pass
        return "seen"

    def create(path: str) -> str:
        with open(path, "w"):
            return "created"

    async def main(scope: DeliveryClient, path: str) -> list[str]:
        first = asyncio.create_task(run(scope, environment, spin_until, path=path))
        await transmitted(scope, 1)
        return await asyncio.gather(first, run(scope, environment, create, path=path))

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert drive(lambda scope: main(scope, f"{folder}/there")) == ["seen", "created"]


def test_the_worker_sees_directory_variables_and_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = stdio(processes=1)

    def look() -> tuple[str, str | None, int]:
        return os.getcwd(), os.environ.get("SEEN_BY_TASKS"), os.getpid()

    here, before, first = drive(lambda scope: run(scope, environment, look))
    assert (here, before) == (os.getcwd(), None)
    monkeypatch.chdir(tmp_path)
    there, _, second = drive(lambda scope: run(scope, environment, look))
    assert there == str(tmp_path)
    monkeypatch.setenv("SEEN_BY_TASKS", "yes")
    _, after, third = drive(lambda scope: run(scope, environment, look))
    assert after == "yes"
    assert len({first, second, third}) == 3
    (tmp_path / "only_here.py").write_text("VALUE = 8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def use() -> int:
        import only_here  # type: ignore[import-not-found]

        return only_here.VALUE

    assert drive(lambda scope: run(scope, environment, use)) == 8


def test_a_replaced_pool_finishes_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = stdio(processes=1)

    async def main(scope: DeliveryClient) -> None:
        old = asyncio.create_task(run(scope, environment, rest, seconds=0.5))
        await transmitted(scope, 1)
        monkeypatch.chdir(tmp_path)
        new = DeliveryClient(asyncio.get_running_loop())
        assert await run(new, environment, os.getcwd) == str(tmp_path)
        await new.aclose()
        old_pid = await old
        assert (
            await run(scope, environment, pid) == old_pid
        )  # the weave goes on with what it began with
        await scope.aclose()
        await eventually(lambda: not alive(old_pid))

    drive(main)


def test_a_changed_configuration_is_another_pool() -> None:
    first = drive(lambda scope: run(scope, stdio(processes=1), pid))
    same = drive(lambda scope: run(scope, stdio(processes=1), pid))
    other = drive(lambda scope: run(scope, stdio(processes=1, terminate_on_cancel=False), pid))
    assert first == same != other

    async def gone(_: DeliveryClient) -> None:
        await eventually(lambda: not alive(first))

    drive(gone)


# --------------------------------------------------------------------------------------- what goes wrong


def test_a_crash_costs_its_own_runs_only() -> None:
    environment = stdio(processes=2)

    def crash() -> None:
        import sys

        print("last words", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)

    async def main(scope: DeliveryClient) -> None:
        other = asyncio.create_task(run(scope, environment, compute, seconds=0.5))
        await transmitted(scope, 1)
        with pytest.raises(
            WorkerLostError, match=r"task 'crash' was lost: worker process \d+ .*exit status 3"
        ) as caught:
            await run(scope, environment, crash)
        assert "last words" in str(caught.value)
        assert alive(await other)

    drive(main)


def test_a_killed_worker_is_lost_at_once_even_if_its_children_hold_the_pipes() -> None:
    environment = stdio(processes=1)

    def fork_and_wait(path: str) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        with open(path, "w") as file:
            file.write(f"{os.getpid()} {child}")
        os.rename(path, path + ".ready")
        time.sleep(60)

    async def main(scope: DeliveryClient, path: Path) -> None:
        lost = asyncio.create_task(run(scope, environment, fork_and_wait, path=str(path)))
        ready = Path(f"{path}.ready")
        await eventually(ready.exists)
        worker, child = map(int, ready.read_text().split())
        try:
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(WorkerLostError, match="SIGKILL"):
                await asyncio.wait_for(lost, 20)
        finally:
            os.kill(child, signal.SIGKILL)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        drive(lambda scope: main(scope, Path(folder, "pids")))


@pytest.mark.parametrize("command", [["/does/not/exist"], "/does/not/exist --at all", ["\0"]])
def test_a_command_that_is_not_there(command: Any) -> None:
    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(
            DeliveryError, match=r"environment 'pool': its worker cannot be started"
        ):
            await run(scope, stdio(command=command))

    drive(main)


def test_a_worker_that_ends_at_once_is_not_started_for_ever(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    environment = python(
        f"open({str(starts)!r}, 'a').write('x'); raise SystemExit('no module named nonsense')"
    )

    async def main(scope: DeliveryClient) -> list[Any]:
        runs = (run(scope, environment) for _ in range(200))
        return await asyncio.gather(*runs, return_exceptions=True)

    for error in drive(main):
        assert isinstance(error, WorkerLostError)
        assert "exit status 1 before it answered anything" in str(error)
        assert "no module named nonsense" in str(error)
    assert len(starts.read_text()) <= 5


def test_a_pool_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wove").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))

    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(DeliveryError, match="cannot be started"):
            await run(scope, stdio())

    drive(main)


def test_lines_that_are_no_frames_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    environment = python(
        """if True:
        import base64, json, pickle, sys
        print("hello, I am a worker", flush=True)
        sys.stdout.buffer.write(bytes(range(256)).replace(b"\\n", b"") + b"\\n\\n")
        print("[1, 2]")
        print("{}")
        for line in sys.stdin:
            frame = json.loads(line)
            if frame["type"] == "run_task":
                event = {"type": "task_result", "run_id": frame["run_id"]}
                event["result_pickle"] = base64.b64encode(pickle.dumps("result")).decode()
                print(json.dumps(event), flush=True)
        """
    )
    assert drive(lambda scope: run(scope, environment)) == "result"
    assert "hello, I am a worker" in caplog.text
    assert caplog.text.count("not a frame") >= 3


@pytest.mark.parametrize(
    "field",
    [
        '"result_pickle": "%%%"',
        '"result_pickle": 7',
        '"result_pickle": "AAAA"',
        '"result_pickle": "',
        "",
    ],
)
def test_an_event_that_cannot_be_read_ends_its_run(field: str) -> None:
    environment = python(
        f"""if True:
        import json, sys
        for line in sys.stdin:
            frame = json.loads(line)
            if frame["type"] == "run_task":
                print('{{"type": "task_result", "run_id": "' + frame["run_id"] + '", {field}}}', flush=True)
        """
    )

    async def main(scope: DeliveryClient) -> None:
        with pytest.raises((EnvironmentExecutionError, TypeError), match="echo|run"):
            await run(scope, environment)

    drive(main)


def test_json_results_of_workers_in_other_languages() -> None:
    environment = python(
        """if True:
        import json, sys
        for line in sys.stdin:
            frame = json.loads(line)
            if frame["type"] == "run_task":
                event = {"type": "task_result", "run_id": frame["run_id"], "extra": 1}
                event["result"] = {"rows": [1, None]}
                print(json.dumps({"events": [event]}).replace("/", "\\\\/"), flush=True)
        """
    )
    assert drive(lambda scope: run(scope, environment)) == {"rows": [1, None]}


def test_what_tasks_print_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def chatter() -> str:
        import subprocess

        print("printed")
        os.write(1, b"written\n")
        subprocess.run(["echo", "echoed"], check=True)
        print("complained", file=sys.stderr)
        return "result"

    assert drive(lambda scope: run(scope, stdio(processes=1), chatter)) == "result"
    wove.shutdown()
    out, err = capfd.readouterr()
    assert out == ""
    assert {"printed", "written", "echoed", "complained"} <= set(err.split())


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"proceses": 2}, ValueError, "Did you mean 'processes'"),
        ({"processes": 0}, ValueError, "'processes' must be"),
        ({"processes": True}, TypeError, "'processes' must be a whole number"),
        ({"processes": 1, "min_processes": 2}, ValueError, r"'min_processes' \(2\) is more than"),
        ({"idle_seconds": 0}, ValueError, "'idle_seconds'"),
        ({"launcher": ""}, ValueError, "'launcher' is empty"),
        ({"python": "python3", "command": "worker"}, ValueError, "leave one of them out"),
        ({"command": 7}, TypeError, "'command' must be a list or a text"),
        ({"command": []}, ValueError, "'command' is empty"),
        ({"terminate_on_cancel": "no"}, TypeError, "'terminate_on_cancel'"),
    ],
)
def test_wrong_configuration_is_named(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(error, match=message):
            await run(scope, stdio(**config))

    drive(main)


# ---------------------------------------------------------------------------------------------------- cancel


def block(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    os.rename(path, path + ".ready")
    time.sleep(60)


async def blocked(path: Path) -> int:
    ready = Path(f"{path}.ready")
    await eventually(ready.exists)
    return int(ready.read_text())


def test_a_blocked_process_ends_only_when_it_hurts_nobody(tmp_path: Path) -> None:
    environment = stdio(
        command=[sys.executable, "-m", "wove.stdio_worker"]
    )  # all runs in one process

    async def main(scope: DeliveryClient) -> None:
        other = asyncio.create_task(run(scope, environment, rest, seconds=2.0))
        victim = asyncio.create_task(run(scope, environment, block, path=str(tmp_path / "a")))
        worker = await blocked(tmp_path / "a")
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        fresh = await run(scope, environment, pid)
        assert fresh != worker  # it takes no new ones
        assert await other == worker  # and its other run is not disturbed
        await eventually(lambda: not alive(worker))

    drive(main)


def test_a_blocked_process_may_be_left_alone(tmp_path: Path) -> None:
    environment = stdio(processes=1, terminate_on_cancel=False)

    async def main(scope: DeliveryClient) -> None:
        victim = asyncio.create_task(run(scope, environment, block, path=str(tmp_path / "a")))
        worker = await blocked(tmp_path / "a")
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        assert await run(scope, environment, pid) == worker

    drive(main)


def test_a_cancelled_python_loop_is_interrupted_and_its_process_kept(tmp_path: Path) -> None:
    environment = stdio(processes=1)

    def spin(path: str) -> None:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        os.rename(path, path + ".ready")
        while True:
            pass

    async def main(scope: DeliveryClient) -> None:
        victim = asyncio.create_task(run(scope, environment, spin, path=str(tmp_path / "a")))
        worker = await blocked(tmp_path / "a")
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        assert await run(scope, environment, pid) == worker

    drive(main)


def test_a_run_that_is_cancelled_in_the_queue_never_runs(tmp_path: Path) -> None:
    environment = stdio(processes=1)
    path = tmp_path / "ran"

    async def main(scope: DeliveryClient) -> None:
        busy = asyncio.create_task(run(scope, environment, compute, seconds=0.3))
        await transmitted(scope, 1)
        waiting = [
            asyncio.create_task(run(scope, environment, block, path=str(path))) for _ in range(3)
        ]
        await transmitted(scope, 4)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await busy
        assert await run(scope, environment) == 1

    drive(main)
    assert not path.exists()


# ----------------------------------------------------------------------------------------------- large values


def test_a_large_value_holds_up_nobody() -> None:
    environment = stdio(processes=2)
    data = bytes(100 << 20)
    beats: list[float] = []
    stop = threading.Event()

    async def tick() -> None:
        while not stop.is_set():
            beats.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def main(scope: DeliveryClient) -> None:
        ticking = asyncio.create_task(tick())
        watched = asyncio.create_task(
            scope.run(request(environment, rest, {"seconds": 1.0}, heartbeat_seconds=2.0))
        )
        size = await run(scope, environment, lambda value: len(value), value=data)
        assert size == len(data)
        back = await run(scope, environment, lambda size: bytes(size), size=50 << 20)
        assert len(back) == 50 << 20
        await watched
        stop.set()
        await ticking

    drive(main)
    # No number of milliseconds: the machine may be busy. But the loop that user code runs on has gone on.
    assert len(beats) > 20


def test_a_large_callable_is_sent_once_to_each_process(tmp_path: Path) -> None:
    environment = stdio(processes=1)
    table = list(range(200_000))
    call = Call(lambda index: table[index], "lookup")

    async def main(scope: DeliveryClient) -> list[int]:
        return await asyncio.gather(
            *(run(scope, environment, call, index=index) for index in range(200))
        )

    assert drive(main) == list(range(200))


# ------------------------------------------------------------------------------------------------- shutdown


def test_shutdown_ends_runs_in_flight(tmp_path: Path) -> None:
    environment = stdio(processes=1)

    async def main(scope: DeliveryClient) -> None:
        victim = asyncio.create_task(run(scope, environment, block, path=str(tmp_path / "a")))
        worker = await blocked(tmp_path / "a")
        queued = asyncio.create_task(run(scope, environment))
        await transmitted(scope, 2)
        wove.shutdown()  # blocks this loop, for a bounded time
        wove.shutdown()
        for task in (victim, queued):
            with pytest.raises(WorkerLostError, match="shutdown"):
                await task
        assert not alive(worker)
        assert await run(scope, environment) == 1  # starts anew

    drive(main)


def test_shutdown_from_another_thread_and_from_the_portal(tmp_path: Path) -> None:
    environment = stdio(processes=1)

    async def main(scope: DeliveryClient) -> None:
        for number in range(3):
            path = tmp_path / str(number)
            victim = asyncio.create_task(run(scope, environment, block, path=str(path)))
            await blocked(path)
            threads = [threading.Thread(target=wove.shutdown) for _ in range(3)]
            for thread in threads:
                thread.start()
            with pytest.raises(WorkerLostError):
                await victim
            for thread in threads:
                thread.join()

    drive(main)


def test_nothing_is_left_after_many_weaves() -> None:
    environment = stdio(processes=2)

    async def main(scope: DeliveryClient) -> Any:
        return await asyncio.gather(*(run(scope, environment, value=number) for number in range(5)))

    for _ in range(50):
        assert drive(main) == list(range(5))
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("wove-background-loop") == 1
    assert len(names) < 15
    wove.shutdown()
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("wove-background-loop")
    ]


def test_weaves_that_start_while_others_shut_down() -> None:
    environment = stdio(processes=1)
    stop = threading.Event()
    done = [0]

    def weave() -> None:
        while not stop.is_set():
            try:
                assert drive(lambda scope: run(scope, environment, value=3)) == 3
                done[0] += 1
            except WorkerLostError:
                pass

    threads = [threading.Thread(target=weave) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        time.sleep(0.05)
        wove.shutdown()
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wove")
    drive(lambda scope: run(scope, stdio(processes=1)))
    wove.shutdown()
    assert "started worker process" in caplog.text
    assert "environment 'pool' started" in caplog.text
    assert "environment 'pool' stopped" in caplog.text


# --- crashes ----------------------------------------------------------------------------------------------


def test_a_crash_is_told_of_the_item_that_was_running_and_no_other_is_lost(
    tmp_path: Path,
) -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 2}}})
    marks = tmp_path / "marks"
    marks.mkdir()
    folder = str(marks)
    with weave(error_mode="continue", folder=folder) as w:

        @w.do(range(12), environment="pool")
        def step(i: int, folder: str) -> int:
            with open(os.path.join(folder, str(i)), "a") as file:
                file.write("begun\n")
            if i == 4:
                os.abort()
            return i

    begun = {int(path.name): path.read_text() for path in marks.iterdir()}
    lost = {failure.item for failure in w.result.failures}
    # The call of one item may have begun, and not come to its first line.
    assert 4 in lost and len(lost - set(begun)) <= 1, (lost, begun)
    # An item that was killed between opening and closing its file has left it empty.
    assert all(text in ("", "begun\n") for text in begun.values()), begun
    (crash,) = (failure for failure in w.result.failures if failure.item == 4)
    assert "SIGABRT" in str(crash.exception)
    assert "Fatal Python error: Aborted" in str(crash.exception) and "in step" in str(
        crash.exception
    )


@pytest.mark.parametrize("attempt", range(3))
def test_the_first_error_after_a_crash_names_its_item(attempt: int) -> None:
    del attempt
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 2}}})
    with weave(error_mode="return") as w:

        @w.do(range(12), environment="pool")
        def step(i: int) -> int:
            if i == 4:
                os.abort()
            return i

    assert w.result.exception is not None
    assert w.result.exception.__notes__[0].startswith("in task 'step', item 4")


class Unpickled:
    """An argument that calls *fn* with *path* where it is rebuilt, and is what that returns."""

    def __init__(self, fn: Callable[[str], Any], path: str) -> None:
        self.parts = fn, (path,)

    def __reduce__(self) -> Any:
        return self.parts


def hang_once(path: str) -> int:
    if not os.path.exists(path):
        open(path, "w").close()
        time.sleep(600)
    return 1


def be_killed(path: str) -> None:
    with open(path, "a") as file:
        file.write("killed\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_is_being_unpickled_survives_the_crash_of_another(tmp_path: Path) -> None:
    environment, path = stdio(processes=1), tmp_path / "unpickling"

    def crash(path: str) -> None:
        os.abort()

    async def main(scope: DeliveryClient) -> Any:
        survivor = asyncio.create_task(
            run(scope, environment, echo, value=Unpickled(hang_once, str(path)))
        )
        await eventually(path.exists)
        with pytest.raises(WorkerLostError, match="SIGABRT"):
            await run(scope, environment, crash, path=str(path))
        return await survivor

    assert drive(main) == 1


def test_a_run_that_kills_processes_before_it_begins_is_lost(tmp_path: Path) -> None:
    environment, path = stdio(processes=1), tmp_path / "killed"

    async def main(scope: DeliveryClient) -> None:
        other = asyncio.create_task(run(scope, environment, rest, seconds=600.0))
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            await run(scope, environment, echo, value=Unpickled(be_killed, str(path)))
        with pytest.raises(WorkerLostError):
            await other

    drive(main)
    assert len(path.read_text().splitlines()) <= 2


def test_a_module_path_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    long = [f"/nowhere/{'x' * 60}/{number}" for number in range(4_000)]
    monkeypatch.setattr(sys, "path", [*sys.path, *long])
    wove.config(environments={"long": {"executor": "stdio", "executor_config": {"processes": 1}}})
    with weave() as w:

        @w.do(environment="long")
        def last() -> str:
            return sys.path[-1]

    assert w.result.last == long[-1]


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    wove.config(environments={"frozen": {"executor": "stdio"}})
    with pytest.raises(wove.DeliveryError, match="executor_config 'python'"), weave() as w:

        @w.do(environment="frozen")
        def one() -> int:
            return 1


def test_an_end_that_is_too_large_for_the_workers_memory_still_ends_the_run() -> None:
    wove.config(environments={"small": {"executor": "stdio", "executor_config": {"processes": 1}}})
    with pytest.raises(Exception, match="MemoryError|memory"), weave() as w:

        @w.do(environment="small", timeout=60)
        def big() -> bytes:
            import re
            import resource

            value = bytes(200 * 2**20)
            with open("/proc/self/status") as file:
                found = re.search(r"VmSize:\s+(\d+)", file.read())
            assert found
            used = int(found[1]) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
            return value


# --- shared arguments -------------------------------------------------------------------------------------


def test_what_the_items_share_travels_once_for_each_process() -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    table = bytes(range(256)) * 8_000  # 2 MB
    with weave(table=table) as w:

        @w.do(range(10), environment="pool")
        def look(i: int, table: bytes) -> tuple[int, int]:
            return table[i], len(table)

    assert w.result.look == [(i, len(table)) for i in range(10)]
    sent = sum(record.bytes_in + record.bytes_out for record in w.result.run_records)
    assert sent < 3 * len(table)


def test_items_of_their_own_are_not_taken_for_shared() -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 2}}})
    same, other = bytes(100_000), bytes(200_000)
    with weave(items=[same, same, other, same, other], table=bytes(150_000)) as w:

        @w.do("items", environment="pool")
        def length(item: bytes, table: bytes) -> tuple[int, int]:
            return len(item), len(table)

    assert w.result.length == [
        (size, 150_000) for size in (100_000, 100_000, 200_000, 100_000, 200_000)
    ]


def test_many_maps_with_large_shared_arguments_one_after_the_other() -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    for number in range(12):  # more than a worker keeps
        with weave(table=[bytes(100_000), number]) as w:

            @w.do(range(3), environment="pool")
            def look(i: int, table: list[Any]) -> int:
                return i + int(table[1])

        assert w.result.look == [number, number + 1, number + 2]
