"""Weaves on a real Ray cluster: what is special to it. What all backends have in common is in tests/contract.

In scripts, each with a connection to the cluster of its own: a process that was connected once keeps some of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kept import ROOT
from tests.support.scripts import Finished, run_script
from tests.support.servers import Servers, ray as support
from tests.support.servers.ray import ENVIRON

pytestmark = [pytest.mark.backend("ray"), pytest.mark.timeout(180)]

BEGIN = """
import asyncio, os, pathlib, signal, sys, time
import wove
from wove import weave, WorkerLostError, DeliveryTimeoutError
from wove.errors import DeliveryError
from tests.contract.backend_tasks import *
from wove.testing.tasks import reverse, sleep
from tests.support.kept import gone

ADDRESS = {address!r}

def here(name):
    return os.path.join(os.getcwd(), name)    # workers have a folder of their own

def configure(**config):
    wove.config(environments={{"cluster": {{"executor": "ray", "executor_config": config}}}})

def there_is(fn, options={{}}, **values):
    with weave(**values) as w:
        w.do(environment="cluster", **options)(fn)
    return w.result.final

def until(look, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.01)
    return found

async def block_until_killed(pids):
    # kills these processes, and the task's own, once it has begun
    async with weave(path=here("begun"), until=here("never")) as w:
        w.do(environment="cluster")(block)
        async def stop():
            begun = pathlib.Path("begun")
            await asyncio.to_thread(until, lambda: begun.exists() and begun.read_text().strip())
            for pid in [*pids.split(), *begun.read_text().split()]:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        stopping = asyncio.create_task(stop())

def raised(kind, call, *args, **values):
    try:
        call(*args, **values)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")
"""

Ran = Callable[..., Finished]


@pytest.fixture
def ran(servers: Servers, tmp_path: Path) -> Ran:
    """Runs a script with the beginning above, in a folder of its own."""

    def ran(source: str, address: str | None = None, **env: str) -> Finished:
        begin = BEGIN.format(address=address or servers.ray.address)
        path = tmp_path / "script.py"
        path.write_text(begin + source)
        places = f"{ROOT}:{Path(sys.modules['wove'].__file__ or '').parents[1]}"
        return run_script(
            path, cwd=tmp_path, timeout=150, env={**ENVIRON, "PYTHONPATH": places, **env}
        )

    return ran


def test_wove_connects_and_disconnects(ran: Ran) -> None:
    done = ran("""
configure(address=ADDRESS)
with weave() as w:
    w.do(range(20), environment="cluster")(add_one)
assert w.result.add_one == list(range(1, 21))
import ray
assert ray.is_initialized()
wove.shutdown()
assert not ray.is_initialized()
assert there_is(add_one, item=1) == 2          # and connects again
""")
    assert done.complaints == []


def test_the_process_ends_without_a_word(ran: Ran) -> None:
    done = ran("configure(address=ADDRESS)\nassert there_is(print, {}) is None")
    assert (done.stdout, done.complaints) == ("", [])


def test_ray_as_the_user_has_initialised_it(ran: Ran) -> None:
    ran("""
import ray
configure(init=False)
assert "Ray is not initialised in this process" in raised(DeliveryError, there_is, add_one, item=1)
ray.init(ADDRESS, log_to_driver=False, namespace="mine")
job = ray.get_runtime_context().get_job_id()
for config in ({"init": False}, {"address": ADDRESS}, {}):
    configure(**config)
    assert there_is(add_one, item=1) == 2
    wove.shutdown()
    assert ray.is_initialized() and ray.get_runtime_context().get_job_id() == job
configure(address="127.0.0.1:1")
assert "connected to the Ray cluster at" in raised(ValueError, there_is, add_one, item=1)

# Shut down meanwhile: what runs is lost, and what comes after it connects anew.
configure(address=ADDRESS)
async def main():
    async with weave(path=here("begun"), until=here("never")) as w:
        w.do(environment="cluster")(block)
        async def stop():
            await asyncio.to_thread(until, lambda: os.path.exists("begun"))
            await asyncio.to_thread(ray.shutdown)
        stopping = asyncio.create_task(stop())
print(raised(WorkerLostError, asyncio.run, main()))
assert there_is(add_one, item=1) == 2
""")


def test_environments_share_one_connection(ran: Ran) -> None:
    ran("""
import logging
from wove.integrations.ray import client

ray = client.load()
quiet = {"log_to_driver": False, "logging_level": logging.ERROR}

# The last environment that leaves ends it.
client.connect(1, ADDRESS, {}, label="one")
client.connect(2, ADDRESS, {}, label="two")
client.leave(1)
assert ray.is_initialized()
client.leave(2)
assert not ray.is_initialized()

# A connection that others have ended is made again.
client.connect(1, ADDRESS, {}, label="one")
ray.shutdown()
client.connect(1, ADDRESS, {}, label="one")
assert ray.is_initialized()

# One that the user has made after that belongs to the user.
ray.shutdown()
ray.init(ADDRESS, **quiet)
client.connect(2, ADDRESS, {}, label="two")
client.leave(2)
client.leave(1)
assert ray.is_initialized()
text = raised(ValueError, client.connect, 3, "127.0.0.1:1", {}, label="three")
assert "three: executor_config 'address' is '127.0.0.1:1', and this process is connected" in text

ray.shutdown()
text = raised(DeliveryError, client.connect, 4, None, None, label="four")
assert "four: Ray is not initialised in this process" in text
text = raised(ValueError, client.connect, 4, ADDRESS, {"no_such": 1}, label="four")
assert "ray.init does not take these init_options" in text and "no_such" in text
client.leave(4)
""")


def test_ray_is_shut_down_while_runs_end(ran: Ran) -> None:
    """Ray ends the process if anybody lets go of a reference meanwhile."""
    ran("""
import threading
from wove.integrations.ray.client import Submission
configure(address=ADDRESS)
assert there_is(add_one, item=1) == 2
import ray
job = ray.get_runtime_context().get_job_id()
submissions = [Submission(ray.put(item), job) for item in range(3_000)]
def let_go():
    until(lambda: not ray.is_initialized())
    while submissions:
        submissions.pop()
        time.sleep(0.0002)
thread = threading.Thread(target=let_go)
thread.start()
ray.shutdown()
thread.join()
assert there_is(add_one, item=1) == 2
""")


def test_a_loop_is_not_held_up(ran: Ran) -> None:
    ran("""
configure(address=ADDRESS)
async def main():
    beats = 0
    async def beat():
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.01)
    beating = asyncio.create_task(beat())
    async with weave(seconds=1.0) as w:
        w.do(environment="cluster")(sleep)
    assert w.result.final == "done" and beats > 20, beats
asyncio.run(main())
""")


def test_options_of_tasks(ran: Ran) -> None:
    ran("""
configure(address=ADDRESS, remote_options={"num_cpus": 2, "runtime_env": {"env_vars": {"MINE": "yes"}}})
assert there_is(lambda: os.environ.get("MINE")) == "yes"
wove.shutdown()
configure(address=ADDRESS, remote_options={"num_cpu": 2})
assert "ray.remote does not take these remote_options" in raised(ValueError, there_is, add_one, item=1)
configure(address=ADDRESS, init_options={"no_such_option": 2})
assert "ray.init does not take these init_options" in raised(ValueError, there_is, add_one, item=1)
""")


def test_resources_of_tasks(ran: Ran) -> None:
    ran("""
def assigned():
    import ray
    return ray.get_runtime_context().get_assigned_resources()

configure(address=ADDRESS)
found = there_is(assigned, {"resources": {"cpus": 0.5, "memory": "10MB"}})
assert (found["CPU"], found["memory"]) == (0.5, 10_000_000), found
wove.shutdown()
configure(address=ADDRESS, remote_options={"num_cpus": 0.25})
assert there_is(assigned, {"resources": {"cpus": 0.5}})["CPU"] == 0.25
assert "cannot ask for disk" in raised(ValueError, there_is, assigned, {"resources": {"disk": 1}})
""")


def test_the_function_is_exported_once(ran: Ran) -> None:
    ran("""
from ray._private.function_manager import FunctionActorManager

exported, export = [], FunctionActorManager.export
def noted(self, function):
    exported.append(function)
    return export(self, function)
FunctionActorManager.export = noted

configure(address=ADDRESS)
for _ in range(2):
    with weave() as w:
        w.do(range(20), environment="cluster")(add_one)
    assert w.result.add_one == list(range(1, 21))
assert len(exported) == 1, exported
""")


def test_payloads_that_are_signed(ran: Ran) -> None:
    ran("""
def signed(secret):
    theirs = {"runtime_env": {"env_vars": {"WOVE_WORKER_SECRET": "one secret for us"}}}
    configure(address=ADDRESS, security={"type": "signed", "secret": secret}, remote_options=theirs)

signed("one secret for us")
assert there_is(add_one, item=1) == 2
signed("another secret")
words = raised(WorkerLostError, there_is, add_one, item=1)
assert "PermissionError" in words and "sign" in words, words
""")


def test_a_worker_that_dies(ran: Ran) -> None:
    ran("""
configure(address=ADDRESS)
words = raised(WorkerLostError, there_is, die, path=here("deaths"), times=100)
assert "WorkerCrashedError: The worker died unexpectedly" in words, words
assert len(pathlib.Path("deaths").read_text().split()) == 1              # max_retries=0
assert there_is(die, {"delivery_orphan_policy": "requeue"}, path=here("again"), times=1) == "survived"
wove.shutdown()
configure(address=ADDRESS, remote_options={"max_retries": 2})
assert there_is(die, path=here("retried"), times=2) == "survived"  # Ray starts it again
assert len(pathlib.Path("retried").read_text().split()) == 3
""")


def test_cancels(ran: Ran) -> None:
    ran("""
def hang(path):
    import ctypes
    count_up(path)
    ctypes.PyDLL(None).sleep(100)      # nothing inside of the process can stop it

configure(address=ADDRESS, force_cancel=True, remote_options={"num_cpus": 2})

async def main():
    async def there_will_be(fn, options={}, **values):
        async with weave(**values) as w:
            w.do(environment="cluster", **options)(fn)
        return w.result.final
    held = asyncio.create_task(there_will_be(hang, path=here("hanging")))
    await asyncio.to_thread(until, lambda: os.path.exists("hanging") and pathlib.Path("hanging").read_text().strip())
    # One that waits for it is taken back for certain.
    began = time.monotonic()
    try:
        await there_will_be(
            count_up, {"delivery_timeout": 0.5, "delivery_cancel_mode": "require_ack"}, path=here("never")
        )
    except DeliveryTimeoutError:
        assert time.monotonic() - began < 20
    held.cancel()
    await asyncio.wait([held])
    pid = int(pathlib.Path("hanging").read_text())
    await asyncio.to_thread(until, lambda: gone(pid))
    assert await there_will_be(add_one, item=1) == 2
    assert not os.path.exists("never")
asyncio.run(main())
""")


def test_memory_runs_out(ran: Ran, tmp_path: Path) -> None:
    with support.running(
        tmp_path / "own", environ={"RAY_memory_usage_threshold": "0.001"}
    ) as cluster:
        ran(
            """
configure(address=ADDRESS)
words = raised(WorkerLostError, there_is, sleep, seconds=100.0)
assert "task 'sleep' was lost: OutOfMemoryError: " in words and "running low on memory" in words, words
""",
            address=cluster.address,
        )


def test_a_node_that_leaves(ran: Ran, tmp_path: Path) -> None:
    with (
        support.running(tmp_path / "own") as cluster,
        cluster.node(tmp_path / "leaves", "--resources", '{"there": 1}') as node,
    ):
        pids = " ".join(map(str, node.processes()))
        ran(
            f"""
configure(address=ADDRESS, remote_options={{"resources": {{"there": 1}}}})
words = raised(WorkerLostError, asyncio.run, block_until_killed({pids!r}))
assert "NodeDiedError: Task failed because the node it was running on is dead" in words, words
""",
            address=cluster.address,
        )


def test_the_only_node_that_leaves(ran: Ran, tmp_path: Path) -> None:
    """Its processes are killed all together, as with a machine that loses its power."""
    with support.running(tmp_path / "own") as cluster:
        pids = " ".join(map(str, cluster.kept.processes()))
        done = ran(
            f"""
configure(address=ADDRESS)
print(raised(WorkerLostError, asyncio.run, block_until_killed({pids!r})))
os._exit(0)                 # Ray's own threads would wait for the cluster
""",
            address=cluster.address,
        )
    assert "task 'block' was lost: " in done.stdout


def test_a_forked_child_is_told_what_is_wrong(ran: Ran) -> None:
    ran("""
configure(address=ADDRESS)
assert there_is(add_one, item=1) == 2
child = os.fork()
if child == 0:
    words = raised(DeliveryError, there_is, add_one, item=1)
    os._exit("was forked from one that was connected to Ray" not in words)
assert os.waitpid(child, 0)[1] == 0
assert there_is(add_one, item=1) == 2
""")


def test_fifty_megabytes_there_and_back(ran: Ran) -> None:
    ran("""
configure(address=ADDRESS)
content = os.urandom(1 << 20) * 50
assert there_is(reverse, content=content) == content[::-1]
""")
