"""Worker processes behind a launcher: starts, growth, losses, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.delivery.puppet import drive, eventually
from tests.unit.executors.stdio.test_executor import alive, pid, run, stdio

import wove
from wove.delivery import DeliveryClient
from wove.errors import WorkerLostError
from wove.executors.stdio.executor import _plan

pytest.importorskip("cloudpickle")
pytestmark = pytest.mark.usefixtures("no_leaks")

if sys.platform != "linux":
    pytest.skip("launchers of Linux", allow_module_level=True)

LAUNCHERS: list[str | list[str]] = [
    "env 'GREETING=good morning'",
    ["setsid", "--wait"],
    "unshare --fork",
    f"nsenter --target {os.getpid()} --mount",
]


def usable(launcher: str | list[str]) -> str | list[str]:
    """Skip the test where *launcher* is not installed, or needs rights that this process lacks."""
    words = shlex.split(launcher) if isinstance(launcher, str) else launcher
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no command {words[0]!r}")
    if subprocess.run([*words, "true"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip(f"{words[0]} is not allowed here")
    return launcher


def parents() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def many(scope: DeliveryClient, environment: Any, count: int) -> list[int]:
    return await asyncio.gather(*(run(scope, environment, pid) for _ in range(count)))


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=["env", "setsid", "unshare", "nsenter"])
def test_many_small_runs_behind_a_launcher(launcher: str | list[str]) -> None:
    environment = stdio(launcher=usable(launcher), processes=2)
    pids = drive(lambda scope: many(scope, environment, 200))
    assert len(pids) == 200 and len(set(pids)) <= 2
    assert drive(lambda scope: run(scope, environment, pid)) in pids  # they stay
    wove.shutdown()
    deadline = time.monotonic() + 20
    while any(alive(each) for each in pids):
        assert time.monotonic() < deadline, "a worker stayed behind"
        time.sleep(0.01)


def test_the_launcher_is_what_runs_the_worker() -> None:
    def greeting() -> str | None:
        return os.environ.get("GREETING")

    environment = stdio(launcher=LAUNCHERS[0])
    assert drive(lambda scope: run(scope, environment, greeting)) == "good morning"


def test_a_worker_ends_when_its_launcher_is_killed() -> None:
    environment = stdio(launcher=usable(["setsid", "--wait"]), processes=1)

    async def main(scope: DeliveryClient) -> None:
        worker, launcher = await run(scope, environment, parents)
        assert launcher != os.getpid()
        os.kill(launcher, signal.SIGKILL)
        await eventually(lambda: not alive(worker))
        assert await run(scope, environment, pid) != worker  # it is replaced

    drive(main)


def test_a_run_is_lost_with_the_worker_that_has_it() -> None:
    environment = stdio(launcher="env", processes=1)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def main(scope: DeliveryClient) -> int:
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            await run(scope, environment, die)
        return await run(scope, environment, pid)

    assert drive(main) != os.getpid()


def test_a_queued_worker_holds_no_run_up(tmp_path: Path) -> None:
    """The first process starts at once, the others wait for as long as the weave lasts, as in a scheduler's queue."""
    launcher = script(
        tmp_path / "queue",
        f'if mkdir {tmp_path}/first 2>/dev/null; then exec "$@"; fi\n'
        f"echo $$ >> {tmp_path}/queued\nexec sleep 60",
    )
    environment = stdio(launcher=launcher, processes=3)
    pids = drive(lambda scope: many(scope, environment, 50))
    assert len(set(pids)) == 1
    wove.shutdown()
    queued = tmp_path / "queued"
    waiting = [int(line) for line in queued.read_text().split()] if queued.exists() else []
    assert not any(alive(each) for each in waiting)


def test_a_worker_that_joins_late_takes_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    launcher = script(
        tmp_path / "queue",
        f'if mkdir {tmp_path}/first 2>/dev/null; then exec "$@"; fi\n'
        f'while [ ! -e {go} ]; do sleep 0.02; done\nexec "$@"',
    )
    environment = stdio(launcher=launcher, processes=2)

    def hold(path: str) -> int:
        with open(f"{path}.pid", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{path}.pid", f"{path}.held")
        while not os.path.exists(path):
            time.sleep(0.005)
        return os.getpid()

    async def main(scope: DeliveryClient) -> None:
        end = tmp_path / "end"
        first = asyncio.create_task(run(scope, environment, hold, path=str(end)))
        await eventually(Path(f"{end}.held").exists)
        holder = int(Path(f"{end}.held").read_text())
        go.touch()
        async with asyncio.timeout(60):
            # The first process only waits, so it may take some until the second one is ready.
            while await run(scope, environment, pid) == holder:
                pass
        end.touch()
        assert await first == holder

    drive(main)


def test_a_launcher_that_fails_is_quoted(tmp_path: Path) -> None:
    launcher = script(tmp_path / "refuse", "echo no such partition >&2; exit 7")

    async def main(scope: DeliveryClient) -> None:
        with pytest.raises(WorkerLostError, match=r"exit status 7(?s:.*)no such partition"):
            await run(scope, stdio(launcher=launcher))

    drive(main)


@pytest.mark.parametrize(("python", "same"), [(None, True), ([sys.executable], False)])
def test_another_interpreter_keeps_its_path(
    python: Sequence[str] | None, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/of/this/process"])
    config = {} if python is None else {"python": python}

    def has_it() -> bool:
        import sys

        return "/of/this/process" in sys.path

    assert drive(lambda scope: run(scope, stdio(launcher="env", **config), has_it)) is same


def test_a_scheduler_may_take_its_time() -> None:
    assert _plan("pool", {"launcher": "srun"}, {}).start_seconds is None
    assert _plan("pool", {"launcher": "srun", "start_timeout": 9.0}, {}).start_seconds == 9.0
    assert _plan("pool", {}, {}).start_seconds == 60.0
    assert _plan("pool", {"launcher": "srun -n 1"}, {}).command[:3] == ["srun", "-n", "1"]
    plan = _plan("pool", {"launcher": "srun", "python": "python3.12 -I"}, {})
    assert plan.command[:3] == ["srun", "python3.12", "-I"]


@pytest.mark.parametrize("least", [0, 1])
def test_idle_processes_end_and_the_pool_grows_again(least: int, tmp_path: Path) -> None:
    environment = stdio(processes=3, min_processes=least, idle_seconds=0.05)

    def meet(folder: str) -> int:
        """Return when three processes hold a run. It computes, so that no process takes a second one."""
        open(os.path.join(folder, str(os.getpid())), "w").close()
        deadline = time.process_time() + 10
        while len(os.listdir(folder)) < 3 and time.process_time() < deadline:
            pass
        return os.getpid()

    async def main(scope: DeliveryClient) -> None:
        # A process that stays may take short runs beforehand, so the second round is for new processes only.
        for number in range(1 if least else 2):
            folder = tmp_path / str(number)
            folder.mkdir()
            pids = await asyncio.gather(
                *(run(scope, environment, meet, folder=str(folder)) for _ in range(3))
            )
            assert len(set(pids)) == 3
            await eventually(lambda pids=pids: sum(map(alive, pids)) == least)

    drive(main)
