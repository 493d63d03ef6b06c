"""Ends of the process, forks, and parents that die: whole scripts, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.kept import gone
from tests.support.scripts import Finished

pytest.importorskip("cloudpickle")

PRELUDE = """
import asyncio, os, signal, sys, threading, time
from wove.delivery import Call, Request, DeliveryClient, shutdown
from wove.graph.options import DeliveryPolicy
from wove.settings.model import Environment
from wove.settings.resolution import TaskSettings

environment = Environment("scripts", "stdio", {"processes": 2})

def request(fn, **args):
    return Request(Call(fn, fn.__name__), args, TaskSettings(environment=environment))

async def within(scope, fn, **args):
    return await scope.run(request(fn, **args))

async def weave(fn, times=1, **args):
    scope = DeliveryClient(asyncio.get_running_loop())
    try:
        return await asyncio.gather(*(within(scope, fn, **args) for _ in range(times)))
    finally:
        await scope.aclose()

def run(fn, times=1, **args):
    return asyncio.run(weave(fn, times, **args))

def pid():
    import os
    return os.getpid()

def block(seconds=60, path=None):
    import os, time
    if path:
        with open(path + str(os.getpid()), "w"):
            pass
    time.sleep(seconds)
    return "slept"

def spin(path):
    import os
    with open(path + str(os.getpid()), "w"):
        pass
    while True:
        pass
"""

Script = Callable[..., Finished]


def clean(finished: Finished) -> None:
    assert finished.complaints == [], finished.stderr
    assert finished.orphans == ()


def test_a_script_ends_cleanly(script: Script) -> None:
    clean(script(PRELUDE + "print(run(pid, 4) != [])"))


def test_sys_exit(script: Script) -> None:
    finished = script(PRELUDE + "run(pid); sys.exit(7)", check=False)
    assert finished.returncode == 7
    clean(finished)


def test_an_end_while_runs_are_in_flight(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
from wove.errors import WorkerLostError

def lose():
    try:
        run(block)
    except WorkerLostError as error:
        print(error)

threading.Thread(target=lose, daemon=True).start()
time.sleep(0.5)
"""
    )
    clean(finished)
    assert finished.stdout == "the interpreter ended while this run was in flight\n"


def test_threads_that_are_still_at_work_keep_their_portal(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
def late():
    for _ in range(3):
        print(run(block, seconds=0.2))

threading.Thread(target=late).start()
run(pid)
"""
    )
    clean(finished)
    assert finished.stdout.split() == ["['slept']"] * 3


def test_ctrl_c(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
async def interrupted():
    asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGINT)
    await weave(block)

try:
    asyncio.run(interrupted())
except KeyboardInterrupt:
    print("interrupted")
print(run(pid) != [])
"""
    )
    clean(finished)
    assert finished.stdout.split() == ["interrupted", "True"]


def test_use_after_shutdown_and_at_exit(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
import atexit
from wove.errors import DeliveryError

def late():
    try:
        print("at exit", run(pid) != [])
    except DeliveryError as error:  # some versions of Python start no threads that late
        print("at exit", "interpreter is ending" in str(error))

atexit.register(late)
first = run(pid)
shutdown(); shutdown()
assert run(pid) != first
"""
    )
    clean(finished)
    assert finished.stdout == "at exit True\n"


def test_a_forked_child_has_sessions_of_its_own(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
mine = set(run(block, 2, seconds=0.1) and run(pid, 8))
child = os.fork()
if child == 0:
    theirs = set(run(pid, 8))
    assert not theirs & mine, (theirs, mine)
    sys.exit(5)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
again = set(run(pid, 8))
assert again & mine, (again, mine)
print("fine")
"""
    )
    clean(finished)
    assert finished.stdout == "fine\n"


def test_a_fork_in_the_middle_of_things(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
def busy():
    for _ in range(20):
        run(pid, 20)

threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for number in range(6):
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        signal.alarm(25)
        if number % 2:
            run(pid, 4)
        os._exit(0) if number % 3 else sys.exit(0)
    children.append(child)
for child in children:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
for thread in threads:
    thread.join()
print("fine")
""",
        # Python 3.12 and later warn of a fork in a process with threads; that is what is tried here.
        flags=("-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    assert finished.stdout == "fine\n"
    clean(finished)


def test_a_fork_while_the_first_run_is_prepared(script: Script) -> None:
    """What Wove imports in a thread takes long here: a module that is half imported in a child never gets there."""
    finished = script(
        PRELUDE
        + """
parent = os.getpid()

class Slow:
    def find_spec(self, name, path, target=None):
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            time.sleep(0.03)

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=run, args=(pid,))
thread.start()
children = []
while thread.is_alive() and len(children) < 12:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        run(pid)
        os._exit(0)
    children.append(child)
    time.sleep(0.03)
for child in children:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
thread.join()
print("fine")
""",
        flags=("-W", "error", "-W", "ignore:This process:DeprecationWarning"),
        timeout=90,
    )
    assert finished.stdout == "fine\n"
    clean(finished)


def test_a_forked_child_does_not_keep_the_workers_alive(script: Script, tmp_path: Path) -> None:
    finished = script(
        PRELUDE
        + """
[worker] = run(pid)
child = os.fork()
if child == 0:
    time.sleep(20)
    os._exit(0)
shutdown()
try:
    os.kill(worker, 0)
except ProcessLookupError:
    print("ended")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    )
    clean(finished)
    assert finished.stdout == "ended\n"


def test_multiprocessing_children(script: Script) -> None:
    finished = script(
        PRELUDE
        + """
import multiprocessing

def child(queue):
    queue.put(run(pid, 4))

if __name__ == "__main__":
    mine = run(pid, 4)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    theirs = queue.get(timeout=20)
    process.join()
    assert process.exitcode == 0
    assert not set(mine) & set(theirs)
    print("fine")
""",
        flags=("-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    clean(finished)
    assert finished.stdout == "fine\n"


@pytest.mark.parametrize("task", ["block", "spin"])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, task: str) -> None:
    source = PRELUDE + f"run({task}, 2, path={str(tmp_path / 'pid-')!r})"
    parent = subprocess.Popen([sys.executable, "-c", source])
    try:
        workers = wait_for(
            lambda: found if len(found := list(tmp_path.glob("pid-*"))) == 2 else None
        )
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pids = [int(path.name.removeprefix("pid-")) for path in workers]
    wait_for(lambda: all(map(gone, pids)))


def wait_for(condition: Callable[[], Any], seconds: float = 25.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.02)
    return value


def test_dev_mode_has_nothing_to_say(script: Script) -> None:
    finished = script(
        PRELUDE + "run(pid, 4); shutdown(); run(pid)", flags=("-X", "dev", "-W", "error")
    )
    clean(finished)


def test_the_environment_of_this_process_is_left_alone() -> None:
    assert "WOVE_STDIO_BOOT" not in os.environ
