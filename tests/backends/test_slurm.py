"""Weaves on a real Slurm: what is special to it. What all backends have in common is in tests/contract."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up, sleep_and_tell
from tests.contract.test_contract import eventually, lines
from tests.support.elsewhere import ways
from tests.support.kept import ROOT
from tests.support.leaks import leak_check
from tests.support.servers import Servers
from tests.support.servers.slurm import Slurm
from wove import DeliveryTimeoutError, WorkerLostError, weave
from wove.errors import DeliveryError, MissingDependencyError
from wove.integrations.slurm import adapter, client, job_script

pytestmark = pytest.mark.backend("slurm")

Configure = Callable[..., None]

PATIENCE = 20.0
"""Seconds for what takes one interval of 2 s and a moment, on a machine that does other things."""


@pytest.fixture
def slurm(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster, for our commands as well; without jobs."""
    cluster = servers.slurm
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    yield cluster
    if jobs := cluster.jobs():
        cluster.run("scancel", *jobs)
    cluster.controller.until(lambda: not cluster.jobs(), "has no jobs")


@pytest.fixture
def configure(
    slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "jobs"."""

    def configure(**config: Any) -> None:
        wove.config(environments={"jobs": {"executor": "slurm", "executor_config": config}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("jobs")


def wrapped(folder: Path, command: str, text: str) -> str:
    """A script named *command* that does what *text* says, and then what the real one does."""
    path = folder / command
    path.write_text(f'#!/bin/sh\n{text}\nexec {command} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def occupy(slurm: Slurm, tmp_path: Path) -> None:
    """Have something else take both CPUs."""
    script = tmp_path / "occupy.sh"
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    for _ in range(2):
        slurm.run("sbatch", "--output=/dev/null", str(script))
    slurm.controller.until(
        lambda: slurm.run("squeue", "-h", "-t", "R").count("\n") == 2, "runs both"
    )


# ----------------------------------------------------------------------------------------------- what a job is


def environment() -> dict[str, str]:
    return dict(os.environ)


def test_what_a_job_gets_of_the_environment(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    monkeypatch.setenv("SHOP_A", "1, 2")
    monkeypatch.setenv("SHOP_B", "3")
    # As in a job that submits another one.
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "7")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    configure(export=["SHOP_*", "OMP_NUM_THREADS=4"])
    found = there_is(environment)
    assert found["SHOP_A"] == "1, 2" and found["SHOP_B"] == "3" and found["OMP_NUM_THREADS"] == "4"
    assert found["PATH"] == os.environ["PATH"] and found["SLURM_JOB_ID"] != "7"
    assert "SECRET_OF_MINE" not in found and "SLURM_MEM_PER_NODE" not in found
    configure(export="ALL")
    assert there_is(environment)["SECRET_OF_MINE"] == "hunter2"


def test_a_job_that_sbatch_disowned_is_found(configure: Configure, tmp_path: Path) -> None:
    """The controller was too busy to answer, and took the job all the same, a moment later."""
    first, marks = tmp_path / "first", tmp_path / "marks"
    busy = "Batch job submission failed: Socket timed out on send/recv operation"
    sbatch = wrapped(
        tmp_path,
        "sbatch",
        f'if [ ! -e {first} ]; then : > {first}; sbatch --begin=now+2 "$@" > /dev/null\n'
        f"echo 'sbatch: error: {busy}' >&2; exit 1; fi",
    )
    configure(sbatch=sbatch)

    def charge(marks: str) -> str:
        with open(marks, "a") as file:
            file.write("begun ")
        return "charged"

    with weave(marks=str(marks)) as w:
        w.do(environment="jobs", retries=1)(charge)
    assert w.result.final == "charged" and marks.read_text() == "begun "


def test_a_login_environment(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOP_A", "1")
    path = shlex.quote(os.environ["PYTHONPATH"])
    worker = tmp_path / "worker.sh"
    worker.write_text(
        f"#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} -m wove.backend_worker\n"
    )
    configure(export="NONE", command=["/bin/sh", worker])
    found = there_is(environment)
    assert "SHOP_A" not in found and "HOME" in found


def test_where_the_payload_is_and_where_not(
    configure: Configure, slurm: Slurm, tmp_path: Path
) -> None:
    async def main() -> None:
        configure(callback_token="token-of-this-test")
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        [pid] = await eventually(lambda: lines(tmp_path / "pids"))
        job = Path(f"/proc/{pid}")
        assert (
            b"token-of-this-test"
            not in (job / "cmdline").read_bytes() + (job / "environ").read_bytes()
        )
        assert "token-of-this-test" not in slurm.run("scontrol", "show", "job")
        [number] = slurm.jobs()
        assert "token-of-this-test" in slurm.run("scontrol", "write", "batch_script", number, "-")
        name = slurm.run("squeue", "-h", "-o", "%j").strip()
        assert name.startswith("wove-block-")
        (tmp_path / "until").touch()
        assert await running == "done"

    before = set(Path.cwd().iterdir())
    asyncio.run(main())
    assert set(Path.cwd().iterdir()) == before


def test_options_of_jobs(configure: Configure, slurm: Slurm) -> None:
    configure(
        sbatch_options={
            "comment": 'all of "it", at once',
            "t": 7,
            "nice": True,
            "exclusive": False,
            "mem": "100M",
        },
        job_name_prefix="shop.",
    )
    assert there_is(add_one, item=1) == 2
    shown = slurm.run("scontrol", "-o", "show", "job").splitlines()[-1]
    assert (
        'Comment=all of "it", at once ' in shown
        and "TimeLimit=00:07:00" in shown
        and "JobName=shop.add_one-" in shown
    )


def test_resources_of_tasks(configure: Configure, slurm: Slurm) -> None:
    def shown() -> str:
        return slurm.run("scontrol", "-o", "show", "job").splitlines()[-1]

    asked = {"resources": {"cpus": 0.5, "memory": "90MiB", "time": "150s"}}
    assert there_is(add_one, item=1, options=asked) == 2
    assert "MinMemoryNode=90M" in shown() and "TimeLimit=00:03:00" in shown()
    assert "CPUs/Task=1" in shown()

    configure(sbatch_options={"mem": "95M", "t": 7})
    assert there_is(add_one, item=1, options=asked) == 2
    assert "MinMemoryNode=95M" in shown() and "TimeLimit=00:07:00" in shown(), "they stand"


def test_a_timeout_is_a_wall_time_with_a_margin(configure: Configure, slurm: Slurm) -> None:
    configure(callback_retry_seconds=60)
    assert there_is(add_one, item=1, options={"timeout": 600}) == 2
    assert "TimeLimit=00:12:00" in slurm.run("scontrol", "-o", "show", "job").splitlines()[-1]


@pytest.mark.parametrize("kind", ["list", "text"])
def test_commands_of_ones_own(configure: Configure, tmp_path: Path, kind: str) -> None:
    told = tmp_path / "told"
    sbatch = wrapped(tmp_path, "sbatch", f'echo "$@" >> {told}')
    python = f"{sys.executable} -X utf8 -m wove.backend_worker"
    if kind == "text":
        configure(sbatch=f"{sbatch} --comment='a b'", command=python)
    else:
        configure(sbatch=[sbatch, "--comment=a b"], command=python.split())
    assert there_is(lambda: sys.flags.utf8_mode) == 1
    [line] = lines(told)
    assert line.startswith("--comment=a b --parsable --no-requeue --export=ALL --job-name=wove-")


def test_a_command_that_submits(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    submit = tmp_path / "submit"
    submit.write_text('#!/bin/sh\necho "checking quota"\nexec sbatch --mem=99M\n')
    submit.chmod(0o700)
    configure(submit=str(submit), sbatch_options={"comment": "a b"})
    assert there_is(add_one, item=1) == 2
    shown = slurm.run("scontrol", "-o", "show", "job").splitlines()[-1]
    assert "Comment=a b " in shown and "MinMemoryNode=99M" in shown and "Requeue=0" in shown
    assert "StdOut=/dev/null" in shown and "JobName=wove-add_one-" in shown


def test_a_function_that_submits(configure: Configure, slurm: Slurm) -> None:
    import subprocess

    seen: list[str] = []

    def submit(payload: dict[str, Any], frame: dict[str, Any]) -> int:
        seen.append(payload["task_name"])
        script = job_script(payload, options=["--output=/dev/null", "--job-name=mine"])
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    configure(submit=submit)
    assert there_is(add_one, item=1) == 2
    assert seen == ["add_one"]
    configure(submit=lambda payload, frame: "well")
    with pytest.raises(DeliveryError, match=r"'submit' did not say which job.*not 'well'"):
        there_is(add_one, item=1)


# --------------------------------------------------------------------------------------- nothing is submitted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nope"}, r"invalid partition.*'partition' of sbatch_options"),
        ({"mem": "100G"}, r"Memory specification can not be satisfied.*'mem'"),
        ({"gres": "gpu:1"}, r"Invalid generic resource.*'gres'"),
        (["--no-such-option"], r"unrecognized option '--no-such-option'.*sbatch_options"),
    ],
)
def test_what_slurm_does_not_take(
    configure: Configure, slurm: Slurm, options: Any, words: str
) -> None:
    configure(sbatch_options=options)
    with pytest.raises(
        DeliveryError, match=f"environment 'jobs': sbatch did not take the job: .*{words}"
    ):
        there_is(add_one, item=1)
    assert slurm.jobs() == []


def test_a_payload_that_cannot_fit(configure: Configure, slurm: Slurm) -> None:
    options = {"delivery_idempotency_key": lambda item: "k" * 5_000_000}
    with pytest.raises(
        DeliveryError, match=r"has 50\d{5} bytes, and Slurm takes 4194304.*delivery_idempotency_key"
    ):
        there_is(add_one, item=1, options=options)


@pytest.mark.parametrize("key", ["sbatch", "scancel", "squeue", "submit"])
def test_a_command_that_is_not_there(configure: Configure, key: str) -> None:
    configure(**{key: "/opt/no-slurm/bin/it --x"})
    with pytest.raises(
        MissingDependencyError, match=rf"'/opt/no-slurm/bin/it' \(executor_config '{key}'\).*PATH"
    ):
        there_is(add_one, item=1)


def test_no_controller(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slurm: Slurm
) -> None:
    elsewhere = tmp_path / "slurm.conf"
    text = slurm.configuration.read_text()
    elsewhere.write_text(
        "".join(f"{line}\n" for line in text.splitlines() if "Port=" not in line)
        + "SlurmctldPort=1\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(elsewhere))
    with pytest.raises(DeliveryError, match=r"squeue does not answer: .*scontrol ping"):
        there_is(add_one, item=1)


# ------------------------------------------------------------------------------------------------- jobs that end


def while_it_runs(tmp_path: Path, do: Callable[[], object], seconds: float = PATIENCE) -> str:
    """What is said of a run that is lost because of *do*."""

    async def main() -> str:
        running = begin(sleep_and_tell, path=str(tmp_path / "pids"), told=str(tmp_path / "told"))
        await eventually(lambda: lines(tmp_path / "pids"))
        await asyncio.to_thread(do)
        with pytest.raises(WorkerLostError) as caught:
            await asyncio.wait_for(running, seconds)
        return str(caught.value)

    return asyncio.run(main())


def test_scancel_from_outside(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    error = while_it_runs(tmp_path, lambda: slurm.run("scancel", *slurm.jobs()))
    assert (
        f"Slurm ended: CANCELLED, exit status 143, on {slurm.host}. cancelled, and not by Wove"
        in error
    )
    assert lines(tmp_path / "told") == ["cancelled"]  # SIGTERM is heard in the task


def test_scancel_of_a_job_that_waits(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    occupy(slurm, tmp_path)

    async def main() -> None:
        waiting = begin(count_up, path=str(tmp_path / "path"))
        await eventually(lambda: len(slurm.jobs()) == 3)
        slurm.run("scancel", "--state=PENDING", *slurm.jobs())
        with pytest.raises(
            WorkerLostError, match=r"job \d+ of Slurm ended: CANCELLED, before it had a node"
        ):
            await asyncio.wait_for(waiting, PATIENCE)

    asyncio.run(main())


@pytest.mark.timeout(120)
def test_the_time_limit(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    def do() -> None:
        # A limit is a minute at least; an end can be at any time. Slurm looks every half minute.
        slurm.run("scontrol", "update", f"jobid={slurm.jobs()[0]}", "EndTime=now")

    error = while_it_runs(tmp_path, do, 60.0)
    assert (
        f"Slurm ended: TIMEOUT, TimeLimit, exit status 143, on {slurm.host}. its time limit is over"
        in error
    )


def test_too_much_memory(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    configure(sbatch_options={"mem": "100M"}, output=str(tmp_path / "job-%j-%x.txt"))

    def fill(seconds: float) -> None:
        content = bytearray(400 << 20)
        time.sleep(seconds)
        del content

    with pytest.raises(WorkerLostError) as caught:
        there_is(fill, seconds=20.0)
    # With cgroups it would be OUT_OF_MEMORY.
    assert "FAILED, JobLaunchFailure, signal SIGKILL" in str(caught.value)
    assert re.search(
        r"it said: slurmstepd.*: error: .*xceeded (job )?memory limit", str(caught.value)
    )


def test_a_node_that_is_taken_down(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    error = while_it_runs(tmp_path, slurm.lose_the_node)
    assert (
        "Slurm ended: NODE_FAIL, NodeDown" in error and "its node failed or was taken down" in error
    )


def test_a_lost_node_and_a_run_that_is_submitted_again(
    configure: Configure, slurm: Slurm, tmp_path: Path
) -> None:
    async def main() -> None:
        options = {"delivery_orphan_policy": "requeue", "delivery_idempotency_key": "k"}
        running = begin(
            block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"), options=options
        )
        await eventually(lambda: lines(tmp_path / "pids"))
        slurm.lose_the_node()
        await eventually(lambda: len(lines(tmp_path / "pids")) == 2, PATIENCE)
        (tmp_path / "until").touch()
        assert await running == "done"
        names = slurm.run("squeue", "-h", "--states=all", "-o", "%j").split()
        assert sum(name.startswith("wove-key-") for name in names) >= 2

    asyncio.run(main())


def test_a_node_that_is_drained(
    configure: Configure, slurm: Slurm, tmp_path: Path, caplog: Any
) -> None:
    """What runs there goes on to its end, as Slurm does it; what no other node can take ends with the reason."""

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        slurm.run("scontrol", "update", f"nodename={slurm.host}", "state=drain", "reason=test")
        try:
            with pytest.raises(
                WorkerLostError,
                match=r"for ever .*no node takes jobs there: \S+ is drain\w+ \(test\)",
            ):
                await there_will_be(add_one, item=1)
            assert "of Slurm waits: " in caplog.text
            await eventually(
                lambda: len(slurm.jobs()) == 1
            )  # it does not run for nobody when the node is back
            (tmp_path / "until").touch()
            assert await running == "done"
        finally:
            slurm.run("scontrol", "update", f"nodename={slurm.host}", "state=resume")
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())


def test_a_job_that_waits_for_what_never_comes(
    configure: Configure, slurm: Slurm, tmp_path: Path
) -> None:
    script = tmp_path / "fails.sh"
    script.write_text("#!/bin/sh\nexit 7\n")
    failed = slurm.run("sbatch", "--parsable", "--output=/dev/null", str(script)).strip()
    configure(sbatch_options={"dependency": f"afterok:{failed}"})
    with pytest.raises(
        WorkerLostError,
        match=r"waits for ever \(DependencyNeverSatisfied\): what it depends on failed",
    ):
        there_is(add_one, item=1)
    assert slurm.jobs() == []


# -------------------------------------------------------------------------------------- workers that cannot work


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/python -m wove.backend_worker", "exit status 127.* its command was not found"),
        (
            f"{sys.executable} -I -S -m wove.backend_worker",
            "exit status 1, .* is Wove installed there",
        ),
        ("true", "has ended.*COMPLETED.*did not hand the payload"),
    ],
)
def test_a_command_that_is_no_worker(configure: Configure, command: str, words: str) -> None:
    configure(command=command)
    with pytest.raises(WorkerLostError, match=words):
        there_is(add_one, item=1)


def test_a_worker_that_refuses_the_payload(configure: Configure, tmp_path: Path) -> None:
    security = {"type": "signed", "secret": "ours"}
    configure(security=security, export=["WOVE_WORKER_SECRET=theirs"])
    with pytest.raises(
        WorkerLostError, match=r"exit status 77, .*PermissionError: its worker refused the payload"
    ):
        there_is(add_one, item=1)
    configure(
        security=security, export=["WOVE_WORKER_SECRET=theirs"], output=str(tmp_path / "%j.txt")
    )
    with pytest.raises(
        WorkerLostError, match=r"it said: wove.backend_worker: the signature of the payload"
    ):
        there_is(add_one, item=1)


def test_a_worker_that_cannot_report(configure: Configure) -> None:
    configure(callback_url="http://127.0.0.1:9/wove/events/{token}", callback_retry_seconds=0.5)
    with pytest.raises(
        WorkerLostError, match="exit status 69, .*could not report how the task ended"
    ):
        there_is(add_one, item=1)


# ------------------------------------------------------------------------------------------------------- cancels


def test_many_jobs_that_wait(configure: Configure, slurm: Slurm, tmp_path: Path) -> None:
    """Of 200 jobs, one question asks about all, and one command cancels all."""
    asked, told = tmp_path / "asked", tmp_path / "told"
    squeue = wrapped(tmp_path, "squeue", f"echo asked >> {asked}")
    scancel = wrapped(tmp_path, "scancel", f'echo "$#" >> {told}')
    configure(squeue=squeue, scancel=scancel)
    occupy(slurm, tmp_path)

    async def main() -> None:
        async def weave_all() -> None:
            async with weave() as w:
                w.do(range(200), environment="jobs")(add_one)

        began = time.monotonic()
        running = asyncio.create_task(weave_all())
        await eventually(lambda: len(slurm.jobs()) == 202, 60.0)
        await asyncio.sleep(5.0)
        assert 1 <= len(lines(asked)) <= 5 + (time.monotonic() - began) / 60 * 15
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: len(slurm.jobs()) == 2)

    asyncio.run(main())
    assert sum(map(int, lines(told))) == 200 and len(lines(told)) < 20


def test_a_cancel_in_the_queue_that_is_to_be_acknowledged(
    configure: Configure, slurm: Slurm, tmp_path: Path
) -> None:
    occupy(slurm, tmp_path)
    options = {"delivery_timeout": 2.0, "delivery_cancel_mode": "require_ack"}
    began = time.monotonic()
    with pytest.raises(DeliveryTimeoutError):
        there_is(add_one, item=1, options=options)
    assert time.monotonic() - began < 29.0  # and not the half minute after which it is given up
    assert len(slurm.jobs()) == 2


# -------------------------------------------------------------------------------------- a controller that is away


def test_a_controller_that_does_not_answer(
    configure: Configure, slurm: Slurm, tmp_path: Path
) -> None:
    """What runs ends as it should; what is to be submitted is an error, in time, and the loop goes on."""
    configure(submit_patience_seconds=1)

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        os.kill(slurm.controller.pid, signal.SIGSTOP)
        try:
            with pytest.MonkeyPatch.context() as hurried:
                hurried.setattr(adapter, "SUBMIT_SECONDS", 2.0)
                hurried.setattr(client, "QUERY_SECONDS", 2.0)
                with pytest.raises(
                    DeliveryError, match=r"sbatch did not answer within 2 s.*scontrol ping"
                ):
                    await there_will_be(add_one, item=1)
                (tmp_path / "until").touch()
                assert await asyncio.wait_for(running, PATIENCE) == "done"
        finally:
            os.kill(slurm.controller.pid, signal.SIGCONT)
        assert await there_will_be(add_one, item=1) == 2

    asyncio.run(main())


# ------------------------------------------------------------------------- processes that stay: stdio behind srun


SRUN = "srun --ntasks=1 --mem=300M --quiet"


def pilots(**config: Any) -> None:
    wove.config(
        environments={
            "pilots": {"executor": "stdio", "executor_config": {"launcher": SRUN, **config}}
        }
    )


def in_job(number: int) -> tuple[int, str]:
    return number, os.environ["SLURM_JOB_ID"]


def over(count: int) -> list[tuple[int, str]]:
    """Return what *count* small tasks found, on processes that srun has started."""
    with weave() as w:
        w.do(range(count), environment="pilots")(in_job)
    return list(w.result.final)


def test_few_jobs_run_many_small_tasks(slurm: Slurm) -> None:
    pilots(processes=2)
    found = over(200)
    assert [number for number, _ in found] == list(range(200))
    jobs = {job for _, job in found}
    assert len(jobs) <= 2
    assert {job for _, job in over(20)} <= set(slurm.jobs())  # they stay for the next weave
    wove.shutdown()
    slurm.controller.until(lambda: not slurm.jobs(), "has no jobs")


def test_a_pilot_that_waits_in_the_queue_holds_up_nothing(slurm: Slurm, tmp_path: Path) -> None:
    """Of three processes, two have a CPU. The third one is withdrawn with the pool."""
    pilots(processes=3)

    with weave() as w:

        @w.do(range(3), environment="pilots")
        def meet(item: int) -> str:
            (tmp_path / str(item)).touch()
            deadline = time.monotonic() + 60
            while len(os.listdir(tmp_path)) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            return os.environ["SLURM_JOB_ID"]

    assert len(set(w.result.meet)) <= 2
    wove.shutdown()
    slurm.controller.until(lambda: not slurm.jobs(), "has no jobs")


def test_a_pilot_that_is_cancelled_is_replaced(slurm: Slurm) -> None:
    pilots(processes=1)
    ((_, job),) = over(1)
    slurm.run("scancel", "--signal=KILL", job)
    slurm.controller.until(lambda: job not in slurm.jobs(), "has ended the job")
    with weave() as w:
        w.do([1], environment="pilots", retries=1, retry_on=WorkerLostError)(in_job)
    ((_, other),) = w.result.final
    assert other != job


def test_the_jobs_end_with_a_weave_that_is_killed(slurm: Slurm) -> None:
    program = textwrap.dedent(
        f"""
        import time, wove
        wove.config(environments={{"pilots": {{"executor": "stdio", "executor_config": {{"launcher": {SRUN!r}}}}}}})
        with wove.weave() as w:
            w.do([1], environment="pilots")(str)
        print("there", flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            assert slurm.jobs()
        finally:
            process.kill()
    slurm.controller.until(lambda: not slurm.jobs(), "has no jobs")
