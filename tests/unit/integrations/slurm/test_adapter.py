"""The configuration of the Slurm adapter, and what it makes of Slurm's words; commands are scripts, without a Slurm."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.kept import gone

from wove.errors import DeliveryError
from wove.integrations.base import JobStatus
from wove.integrations.common import withdrawals
from wove.integrations.common.exit_codes import REFUSED, UNREPORTED
from wove.integrations.slurm import adapter as slurm, client as slurm_client
from wove.integrations.slurm.adapter import SlurmAdapter, job_script
from wove.integrations.slurm.client import Submission
from wove.integrations.slurm.options import (
    directives,
    environment_of_queries,
    read_export,
    read_options,
)
from wove.integrations.slurm.states import (
    SQUEUE_FIELDS,
    Row,
    read_sacct,
    read_sinfo,
    read_squeue,
    status_of,
    stranded,
)

WHAT = "environment 'jobs'"


def configured(**config: Any) -> SlurmAdapter:
    adapter = SlurmAdapter("jobs", config)
    adapter.configure()
    return adapter


# ----------------------------------------------------------------------------------------------- configuration


def test_nothing_is_needed() -> None:
    adapter = configured()
    assert adapter._sbatch == ("sbatch",)
    assert adapter._command == (sys.executable, "-m", "wove.backend_worker")
    assert (adapter._prefix, adapter._output) == ("wove-", "/dev/null")


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"command": ""}, ValueError, r"'command' is empty"),
        ({"command": 7}, TypeError, r"'command' must be a list or a text, not 7"),
        ({"command": ["python", 7]}, TypeError, r"'command' must be a list of texts"),
        (
            {"command": "python 'x"},
            ValueError,
            r"'command' cannot be split into words: No closing quotation",
        ),
        ({"command": ["python", "a\nb"]}, ValueError, r"'command' holds a line break"),
        ({"sbatch": []}, ValueError, r"'sbatch' is empty"),
        ({"scancel": {}}, TypeError, r"'scancel' must be a list or a text"),
        (
            {"submit": "s", "sbatch": "b", "export": ["X"]},
            ValueError,
            r"'submit' takes the place of 'sbatch' and 'export'",
        ),
        (
            {"submit": print, "command": "python"},
            ValueError,
            r"'submit' takes the place of 'command'",
        ),
        ({"submit": 3}, TypeError, r"'submit' must be a list or a text"),
        ({"job_name_prefix": "a b"}, ValueError, r"'job_name_prefix' is made of letters"),
        ({"job_name_prefix": "x" * 61}, ValueError, r"'job_name_prefix' .*at most 60"),
        ({"output": "a\nb"}, ValueError, r"'output' holds a control character"),
        ({"sbatch_options": 3}, TypeError, r"'sbatch_options' must be a list or a text"),
        (
            {"sbatch_options": {"mem": ["1"]}},
            TypeError,
            r"'mem' must be a text, a number, True or None",
        ),
        (
            {"sbatch_options": {"--mem": "1"}},
            ValueError,
            r"option '--mem': names are those of sbatch, without hyphens",
        ),
        ({"sbatch_options": {"comment": "a\nb"}}, ValueError, r"'comment' holds a line break"),
        (
            {"sbatch_options": "gpu"},
            ValueError,
            r"'gpu' is neither an option of sbatch nor the value of one",
        ),
        ({"sbatch_options": "--mem=1 job.sh"}, ValueError, r"'job.sh' is neither an option"),
        ({"sbatch_options": {"array": "0-3"}}, ValueError, r"cannot set 'array': a run is one job"),
        ({"sbatch_options": ["-a0-3"]}, ValueError, r"cannot set 'a': a run is one job"),
        (
            {"sbatch_options": "--export=ALL"},
            ValueError,
            r"cannot set 'export': it has a key of its own, 'export'",
        ),
        (
            {"sbatch_options": {"requeue": True}},
            ValueError,
            r"cannot set 'requeue': .*delivery_orphan_policy",
        ),
        (
            {"sbatch_options": {"job_name": "x"}},
            ValueError,
            r"cannot set 'job-name': .*'job_name_prefix'",
        ),
        ({"export": 3}, TypeError, r"'export' must be a list of names"),
        ({"export": [3]}, TypeError, r"'export' must be a list of names, and 3 is not one"),
        ({"export": ["A B"]}, ValueError, r"'A B' is not a name of a variable"),
        ({"export": ["ALL", "X"]}, ValueError, r"'ALL' stands alone"),
        ({"export": ["X=a\0b"]}, ValueError, r"value of 'X' holds a NUL"),
    ],
)
def test_what_cannot_be(config: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"environment 'jobs': executor_config .*{words}"):
        configured(**config)


def test_no_value_of_a_variable_in_a_message() -> None:
    with pytest.raises(ValueError, match="A B") as caught:
        configured(export={"A B": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (None, ()),
        ({}, ()),
        (
            {"partition": "gpu", "cpus_per_task": 4, "x": None, "hold": False},
            ("--partition=gpu", "--cpus-per-task=4"),
        ),
        ({"exclusive": True, "t": 5, "O": True}, ("--exclusive", "-t5", "-O")),
        ("-p gpu --comment 'a b'", ("-p", "gpu", "--comment", "a b")),
        (["--mem=1G", "-N", "2"], ("--mem=1G", "-N", "2")),
    ],
)
def test_options(value: Any, arguments: tuple[str, ...]) -> None:
    assert read_options(value, label=WHAT) == arguments


def test_options_as_lines_of_a_script() -> None:
    lines = directives(["--partition=gpu", "-N", "2", '--comment=a "b" \\', "--exclusive"])
    assert lines.splitlines() == [
        "#SBATCH --partition=gpu",
        "#SBATCH -N 2",
        r'#SBATCH "--comment=a \"b\" \\"',
        "#SBATCH --exclusive",
    ]


def test_what_sbatch_gets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SBATCH_ACCOUNT",
        "SBATCH_WAIT",
        "SBATCH_EXPORT",
        "SLURM_JOB_ID",
        "SHOP_A",
        "SECRET",
        "LC_ALL",
    ):
        monkeypatch.setenv(name, "x")
    found = read_export(["SHOP_*", "A=1,2"], label=WHAT).environment()
    assert {"SBATCH_ACCOUNT", "SHOP_A", "LC_ALL", "PATH"} <= found.keys() and found["A"] == "1,2"
    assert not {"SBATCH_WAIT", "SBATCH_EXPORT", "SLURM_JOB_ID", "SECRET"} & found.keys()
    assert read_export("SECRET,A=1", label=WHAT).environment()["SECRET"] == "x"
    everything = read_export("ALL", label=WHAT)
    assert (
        everything.option == "ALL" and {"SECRET", "SLURM_JOB_ID"} <= everything.environment().keys()
    )
    assert "SBATCH_WAIT" not in everything.environment()
    assert read_export("NONE", label=WHAT).option == "NONE"


def test_what_others_filter_by_does_not_concern_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SCANCEL_INTERACTIVE", "SACCT_FORMAT", "SECRET"):
        monkeypatch.setenv(name, "x")
    found = environment_of_queries()
    assert "SECRET" in found and not any(
        name.startswith(("SQUEUE_", "SCANCEL_", "SACCT_")) for name in found
    )


# ------------------------------------------------------------------------------------------------------ scripts


def test_a_script_hands_over_its_payload_as_it_is(tmp_path: Path) -> None:
    payload = {
        "text": "ü $HOME `id` \\ ' \" \n WOVE_PAYLOAD\nWOVE_PAYLOAD",
        "more": "x" * 200_000,
        "😀": "\ud800",
    }
    reader = tmp_path / "a reader's.py"
    reader.write_text(
        "import json, os, sys\nprint(json.dumps([json.load(sys.stdin), os.getpid()]))\n"
    )
    script = job_script(payload, [sys.executable, str(reader)], options=["--mem=1"])
    assert script.isascii() and script.splitlines()[1] == "#SBATCH --mem=1"
    process = subprocess.Popen(
        ["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(script, timeout=30)
    assert json.loads(said) == [payload, process.pid]  # it is the process that Slurm watches


# ------------------------------------------------------------------------------------------------------- states


def fate(line: str, said: str = "") -> JobStatus | None:
    [row] = read_squeue(line + "\n")
    return status_of(row, said)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "7@FAILED@1792@0@main@n1@NonZeroExitCode@",
            "job 7 of Slurm ended: FAILED, NonZeroExitCode, exit status 7, on n1",
        ),
        (
            "7@FAILED@7:0@0@main@n1@NonZeroExitCode@",
            "job 7 of Slurm ended: FAILED, NonZeroExitCode, exit status 7, on n1",
        ),
        (
            "7@FAILED@9@0@main@n1@JobLaunchFailure@",
            "FAILED, JobLaunchFailure, signal SIGKILL, on n1. killed from outside",
        ),
        ("7@FAILED@0:9@0@main@n1@None@", "FAILED, signal SIGKILL, on n1. killed from outside"),
        (
            "7@CANCELLED@0@0@main@@Resources@",
            "CANCELLED, before it had a node. cancelled, and not by Wove",
        ),
        (
            "7@TIMEOUT@0:15@0@main@n1@TimeLimit@",
            "TIMEOUT, TimeLimit, signal SIGTERM, on n1. its time limit is over",
        ),
        (
            "7@OUT_OF_MEMORY@125@0@main@n1@OutOfMemory@",
            "OUT_OF_MEMORY, OutOfMemory, .*more memory than it was given",
        ),
        (
            "7@NODE_FAIL@0@0@main@n[1-2]@NodeDown@",
            r"NODE_FAIL, NodeDown, on n\[1-2\]. its node failed",
        ),
        (
            "7@PREEMPTED@15@0@main@n1@None@",
            "PREEMPTED, signal SIGTERM, on n1. another job took its place",
        ),
        ("7@BOOT_FAIL@0@0@main@n1@None@", "BOOT_FAIL, on n1. its node did not boot"),
        (
            "7@DEADLINE@0@0@main@@DeadLine@",
            "DEADLINE, DeadLine, before it had a node. it could not end before its deadline",
        ),
        (
            f"7@FAILED@{UNREPORTED << 8}@0@main@n1@NonZeroExitCode@",
            "its worker could not report how the task ended",
        ),
        (
            f"7@FAILED@{REFUSED << 8}@0@main@n1@NonZeroExitCode@",
            "PermissionError: its worker refused the payload",
        ),
        ("7@FAILED@nonsense@0@main@n1@@", "FAILED, on n1$"),
        (
            "7@PENDING@0@0@main@@DependencyNeverSatisfied@",
            "waits for ever .*what it depends on failed",
        ),
        (
            "7@PENDING@0@0@main@@launch failed requeued held@",
            "waits for ever .*its node could not start it",
        ),
        (
            "7@REQUEUE_HOLD@0@0@main@@JobHoldMaxRequeue@",
            "waits for ever .*failed to start too often",
        ),
        ("7@PENDING@0@0@main@@PartitionTimeLimit@", "waits for ever .*longer than the partition's"),
    ],
)
def test_states_that_end_a_run(line: str, words: str) -> None:
    import re

    found = fate(line)
    assert found is not None and found.state == "lost"
    assert re.search(words, found.reason), found.reason


@pytest.mark.parametrize(
    "line",
    [
        *(
            f"7@{state}@0@1@main@n1@None@"
            for state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STAGE_OUT")
        ),
        *(
            f"7@{state}@0@1@main@@Priority@"
            for state in ("PENDING", "REQUEUED", "REQUEUE_FED", "RESIZING", "NO_SUCH_STATE")
        ),
        "7@PENDING@0@0@main,gpu@@PartitionTimeLimit@",
        "7@PENDING@0@0@main@@JobHeldUser@",
    ],
)
def test_states_on_the_way(line: str) -> None:
    assert fate(line) is None


def test_what_it_said_is_the_last_word() -> None:
    found = fate("7@FAILED@256@0@main@n1@None@", "it said: No module named 'shop'")
    assert found is not None and found.reason == (
        "job 7 of Slurm ended: FAILED, exit status 1, on n1. its Python could not run wove.backend_worker: is Wove "
        "installed there? it said: No module named 'shop'"
    )
    assert fate("7@COMPLETED@0@0@main@n1@None@") == JobStatus(
        "finished", "job 7 of Slurm ended: COMPLETED, on n1"
    )


def test_rows() -> None:
    text = "CLUSTER: alpha\n1@RUNNING@0@1@a,b@n[1,3]@None@\n\nnonsense\n"
    text += "CLUSTER: beta\n1_3@PENDING@0@0@a@@odd@ reason@\n"
    one, two = read_squeue(text)
    assert (one.cluster, one.job, one.requeues, one.partition, one.nodes) == (
        "alpha",
        "1",
        True,
        "a,b",
        "n[1,3]",
    )
    assert (two.cluster, two.job, two.reason, two.worries) == ("beta", "1_3", "odd@ reason", True)
    [three] = read_sacct("12|CANCELLED by 1000|0:15|main|n1|None\n12.batch|x\n")
    assert (three.job, three.state, three.by, three.status, three.nodes) == (
        "12",
        "CANCELLED",
        "1000",
        -15,
        "n1",
    )
    assert [
        row.worries
        for row in read_squeue(
            "1@PENDING@0@0@a@@QOSMaxCpuPerUserLimit@\n2@PENDING@0@0@a@@JobHeldUser@\n"
        )
    ] == [
        False,
        True,
    ]


# ----------------------------------------------------------------------------------------------------- commands


def test_siblings(tmp_path: Path) -> None:
    assert slurm_client.sibling(["sbatch", "--nice"], "squeue") == ("squeue",)
    assert slurm_client.sibling([f"{tmp_path}/sbatch"], "squeue") == ("squeue",)
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").chmod(0o700)
    assert slurm_client.sibling([f"{tmp_path}/sbatch"], "squeue") == (f"{tmp_path}/squeue",)
    assert slurm_client.sibling(["ssh", "-q", "login", "sbatch", "-p", "x"], "sacct") == (
        "ssh",
        "-q",
        "login",
        "sacct",
    )
    assert slurm_client.sibling(["qsub"], "sacct") == ("sacct",)


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    line = ["/bin/sh", "-c", f"sleep 60 & echo $! > {path}; wait"]
    with pytest.raises(DeliveryError, match=r"jobs: .*sh.* did not answer within 0.5 s"):
        slurm_client.run(line, seconds=0.5, environment=os.environ, label="jobs")
    deadline = time.monotonic() + 10
    while not gone(int(path.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


SINFO = """\
batch@n1@drained*@Not responding
batch@n2@down@disk @ bay 3
gpu@n3@idle@none
"""


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        (
            "batch",
            "no node takes jobs there: n1 is drained* (Not responding); n2 is down (disk @ bay 3)",
        ),
        ("gpu", None),
        ("batch,gpu", None),
        ("batch,closed", None),  # of which nothing is known
    ],
)
def test_nodes_that_are_not_there(partition: str, words: str | None) -> None:
    row = Row(
        "17", "", "PENDING", "", 0, False, partition, "", "ReqNodeNotAvail, UnavailableNodes:n[1-2]"
    )
    assert row.wants_nodes
    fate = stranded(row, read_sinfo(SINFO))
    assert (fate and fate.reason.partition("): ")[2]) == words


# ------------------------------------------------------------------------------- several clusters, and accounting


class Cluster:
    """Commands that say what a test writes into files, and note what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "scancel", "squeue", "sacct"):
            path = folder / name
            path.write_text(
                f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n'
                f"cat {folder}/{name}.out 2>/dev/null\ncat {folder}/{name}.err >&2 2>/dev/null\n"
                f"exit $(cat {folder}/{name}.status 2>/dev/null || echo 0)\n"
            )
            path.chmod(0o700)

    def says(self, name: str, out: str = "", *, err: str = "", status: int = 0) -> None:
        for kind, text in (("out", out), ("err", err), ("status", str(status))):
            (self.folder / f"{name}.{kind}").write_text(text)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def adapter(cluster: Cluster) -> Iterator[SlurmAdapter]:
    adapter = configured(sbatch=str(cluster.folder / "sbatch"))
    with asyncio.Runner() as runner:
        runner.run(adapter.start())
        adapter.loop = runner  # type: ignore[attr-defined]
        yield adapter
        runner.run(adapter.close())


PAYLOAD = {"run_id": "r1", "task_name": "Täsk 1", "task_id": "Täsk 1"}
FRAME: dict[str, Any] = {"run_id": "r1", "task_id": "Täsk 1", "delivery": {}}


def watched(adapter: SlurmAdapter, **submissions: Submission) -> dict[str, JobStatus]:
    return adapter.loop.run(adapter.watch(submissions))  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("answer", "job", "place"),
    [
        ("17\n", "17", ""),
        ("17;beta\n", "17", "beta"),
        ("Submitted batch job 17\n", "17", ""),
        ("welcome\nSubmitted batch job 17 on cluster beta\n", "17", "beta"),
    ],
)
def test_what_sbatch_answers(
    adapter: SlurmAdapter, cluster: Cluster, answer: str, job: str, place: str
) -> None:
    cluster.says("sbatch", answer)
    submission = adapter.submit(PAYLOAD, FRAME)
    assert submission == (job, place, "wove-T-sk-1-r1")


BUSY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"


def eventually(adapter: SlurmAdapter, condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.02)

    adapter.loop.run(wait())  # type: ignore[attr-defined]


def test_a_job_that_was_taken_without_an_answer_is_adopted(
    adapter: SlurmAdapter, cluster: Cluster
) -> None:
    cluster.says("sbatch", err=BUSY, status=1)
    cluster.says("squeue", "17\n")
    assert adapter.submit(PAYLOAD, FRAME) == ("17", "", "wove-T-sk-1-r1")
    assert len(cluster.calls("sbatch")) == 1
    assert "--me --name=wove-T-sk-1-r1" in cluster.calls("squeue")[-1]


def test_a_controller_that_is_away_is_waited_for(
    adapter: SlurmAdapter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.05)
    adapter.submit_patience_seconds = 30.0
    away = cluster.folder / "away"
    away.touch()
    for name, words in (("sbatch", "18"), ("squeue", "")):
        (cluster.folder / name).write_text(
            f'#!/bin/sh\necho "$@" >> {cluster.folder}/{name}.calls\n'
            f'if [ -e {away} ]; then echo "{AWAY}" >&2; exit 1; fi\necho {words}\n'
        )
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(adapter.submit(PAYLOAD, FRAME)))
    thread.start()
    eventually(adapter, lambda: len(cluster.calls("sbatch")) >= 3)
    assert ended == []
    away.unlink()
    thread.join(20)
    assert ended == [("18", "", "wove-T-sk-1-r1")]


def test_a_job_that_is_taken_after_it_was_given_up_is_cancelled(
    adapter: SlurmAdapter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withdrawals, "INTERVAL_SECONDS", 0.05)
    cluster.says("sbatch", err=BUSY, status=1)
    with pytest.raises(DeliveryError, match="did not take the job: .*Socket timed out"):
        adapter.submit(PAYLOAD, FRAME)
    cluster.says("squeue", "17\n")
    eventually(adapter, lambda: cluster.calls("scancel") != [])
    assert cluster.calls("scancel")[0] == "17"
    cluster.says("squeue")
    eventually(adapter, lambda: not adapter._withdrawals.pending)


def test_a_job_that_is_refused_is_not_tried_again(adapter: SlurmAdapter, cluster: Cluster) -> None:
    adapter.submit_patience_seconds = 30.0
    cluster.says("sbatch", err="sbatch: error: invalid partition specified: nope", status=1)
    with pytest.raises(DeliveryError, match="invalid partition"):
        adapter.submit(PAYLOAD, FRAME)
    assert len(cluster.calls("sbatch")) == 1


def test_an_answer_without_a_job(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("sbatch", "all is well\n")
    with pytest.raises(
        DeliveryError, match=r"'sbatch' did not say which job it submitted.*not 'all is well'"
    ):
        adapter.submit(PAYLOAD, FRAME)


def test_the_name_of_a_job_with_a_key(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("sbatch", "17\n")
    submission = adapter.submit(PAYLOAD, {**FRAME, "delivery": {"delivery_idempotency_key": "k"}})
    assert submission.name.startswith("wove-key-")


def test_what_was_given_up_is_not_submitted(adapter: SlurmAdapter, cluster: Cluster) -> None:
    adapter.is_awaited = lambda run_id: False
    with pytest.raises(DeliveryError, match="run r1 was given up"):
        adapter.submit(PAYLOAD, FRAME)
    assert cluster.calls("sbatch") == []


def test_jobs_on_several_clusters(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says(
        "squeue",
        "CLUSTER: alpha\n7@RUNNING@0@0@main@n1@None@\nCLUSTER: beta\n7@TIMEOUT@15@0@main@n1@TimeLimit@\n",
    )
    fates = watched(adapter, a=Submission("7", "alpha"), b=Submission("7", "beta"))
    assert fates.keys() == {"b"} and "TIMEOUT" in fates["b"].reason
    assert cluster.calls("squeue")[-1].split() == [
        *(
            "--noheader",
            "--me",
            "--states=all",
            f"--Format={SQUEUE_FIELDS}",
            "--clusters=alpha,beta",
        )
    ]
    run = adapter.loop.run  # type: ignore[attr-defined]
    run(adapter.cancel("a", Submission("7", "alpha"), FRAME))
    run(adapter.cancel("c", Submission("8", ""), FRAME))
    assert cluster.calls("scancel") == ["--clusters=alpha 7", "8"]


def test_one_cluster_of_several_has_no_heading(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("squeue", "7@FAILED@256@0@main@n1@NonZeroExitCode@\n")
    assert watched(adapter, a=Submission("7", "beta"))["a"].state == "lost"


def test_a_cancel_that_is_certain(adapter: SlurmAdapter, cluster: Cluster) -> None:
    run = adapter.loop.run  # type: ignore[attr-defined]
    cluster.says("squeue", "7@CANCELLED@0@0@main@@Priority@\n8@CANCELLED@15@0@main@n1@None@\n")
    asked = {**FRAME, "delivery_cancel_mode": "require_ack"}
    assert run(adapter.cancel("a", Submission("7", ""), asked)) is True
    assert run(adapter.cancel("a", Submission("8", ""), asked)) is False
    assert run(adapter.cancel("a", Submission("9", ""), asked)) is False
    assert run(adapter.cancel("a", Submission("7", ""), FRAME)) is False
    assert run(adapter.cancel("a", None, asked)) is False


def test_a_cancel_that_is_refused(adapter: SlurmAdapter, cluster: Cluster) -> None:
    run = adapter.loop.run  # type: ignore[attr-defined]
    cluster.says(
        "scancel",
        err="scancel: error: Kill job error on job id 7: Invalid job id specified\n",
        status=1,
    )
    assert run(adapter.cancel("a", Submission("7", ""), FRAME)) is False
    cluster.says(
        "scancel",
        err="scancel: error: Kill job error on job id 7: Access/permission denied\n",
        status=1,
    )
    with pytest.raises(DeliveryError, match="did not cancel: .*permission denied"):
        run(adapter.cancel("a", Submission("7", ""), FRAME))


def test_forgotten_jobs_are_in_the_accounting(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("squeue", "")
    cluster.says(
        "sacct",
        "7|CANCELLED by 1000|0:15|main|n1|None\n8|COMPLETED|0:0|main|n1|None\n9|RUNNING|0:0|main|n1|None\n",
    )
    found = {name: Submission(name[1:], "") for name in ("j7", "j8", "j9", "j10")}
    fates = watched(adapter, **found)
    assert fates["j7"].reason.startswith(
        "job 7 of Slurm ended: CANCELLED, signal SIGTERM, by user 1000, on n1"
    )
    assert [fates[name].state for name in found] == ["lost", "finished", "missing", "missing"]
    [call] = cluster.calls("sacct")
    assert call.endswith("--jobs=7,8,9,10")


def test_without_accounting_it_is_not_asked_again(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("squeue", "")
    cluster.says("sacct", err="Slurm accounting storage is disabled\n", status=1)
    for _ in range(2):
        assert watched(adapter, a=Submission("7", ""))["a"] == JobStatus(
            "missing", "Slurm does not know job 7 any more"
        )
    assert len(cluster.calls("sacct")) == 1


def test_a_preempted_job_may_come_again(adapter: SlurmAdapter, cluster: Cluster) -> None:
    job = Submission("7", "")
    cluster.says("squeue", "7@PREEMPTED@15@1@main@n1@None@\n")
    assert watched(adapter, a=job) == {}
    cluster.says("squeue", "7@PENDING@15@1@main@@BeginTime@\n")
    assert watched(adapter, a=job) == {}
    cluster.says("squeue", "7@PREEMPTED@15@1@main@n1@None@\n")
    assert watched(adapter, a=job) == {}
    assert "PREEMPTED" in watched(adapter, a=job)["a"].reason
    cluster.says("squeue", "7@PREEMPTED@15@0@main@n1@None@\n")  # it does not
    assert "PREEMPTED" in watched(adapter, a=job)["a"].reason


def test_a_job_that_waits_in_vain_is_taken_away(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says("squeue", "7@PENDING@0@0@main@@JobHoldMaxRequeue@\n")
    assert watched(adapter, a=Submission("7", ""))["a"].state == "lost"
    assert cluster.calls("scancel") == ["7"]


def test_a_worry_is_a_warning_once(
    adapter: SlurmAdapter, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.says("squeue", "7@PENDING@0@0@main@@JobHeldUser@\n8@PENDING@0@0@main@@Priority@\n")
    with caplog.at_level(logging.WARNING, "wove"):
        for _ in range(2):
            assert watched(adapter, a=Submission("7", ""), b=Submission("8", "")) == {}
    assert caplog.messages == ["environment 'jobs': job 7 of Slurm waits: JobHeldUser"]


def test_a_queue_that_does_not_answer(adapter: SlurmAdapter, cluster: Cluster) -> None:
    cluster.says(
        "squeue",
        err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        status=1,
    )
    with pytest.raises(
        DeliveryError, match=r"squeue does not answer: .*connect failure.*scontrol ping"
    ):
        watched(adapter, a=Submission("7", ""))


def test_a_cancel_that_was_not_told_is_told_in_the_end(cluster: Cluster) -> None:
    adapter = configured(sbatch=str(cluster.folder / "sbatch"))

    async def main() -> None:
        await adapter.start()
        cancelling = asyncio.create_task(adapter.cancel("a", Submission("7", ""), FRAME))
        await asyncio.sleep(0)
        await adapter.close()
        cancelling.cancel()

    asyncio.run(main())
    assert "7" in cluster.calls("scancel")


def test_the_time_that_commands_have_is_within_what_they_are_given() -> None:
    assert slurm.SUBMIT_SECONDS < 60 and slurm_client.QUERY_SECONDS < 60  # send_timeout
