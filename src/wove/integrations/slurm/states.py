"""The states of Slurm's jobs, as ``squeue`` and ``sacct`` print them, and what they mean for a run. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wove.integrations.base import JobStatus
from wove.integrations.common.exit_codes import meaning

__all__ = [
    "COMES_AGAIN",
    "ENDED",
    "SACCT_FIELDS",
    "SINFO_FORMAT",
    "SQUEUE_FIELDS",
    "Node",
    "Row",
    "read_sacct",
    "read_sinfo",
    "read_squeue",
    "status_of",
    "stranded",
]

SQUEUE_FIELDS: Final = "jobarrayid:@,state:@,exit_code:@,requeue:@,partition:@,nodelist:@,reason:@"
"""For ``squeue --Format``. Each field is followed by @, which the shell behind an ssh does not change."""

SACCT_FIELDS: Final = "JobIDRaw,State,ExitCode,Partition,NodeList,Reason"
SINFO_FORMAT: Final = "%R@%N@%T@%E"
"""Partition, node, state and reason, for ``sinfo --Node``."""

ENDED: Final = {
    "COMPLETED": "finished",
    "FAILED": "lost",
    "CANCELLED": "lost",
    "TIMEOUT": "lost",
    "OUT_OF_MEMORY": "lost",
    "NODE_FAIL": "lost",
    "PREEMPTED": "lost",
    "BOOT_FAIL": "lost",
    "DEADLINE": "lost",
    "REVOKED": "lost",
    "LAUNCH_FAILED": "lost",
    "RECONFIG_FAIL": "lost",
}
"""States in which a job is over (slurm.schedmd.com/job_state_codes.html), and the states of their `JobStatus`."""

COMES_AGAIN: Final = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""States after which Slurm queues a job again, if it may be requeued."""

MEANINGS: Final = {
    "CANCELLED": "cancelled, and not by Wove",
    "TIMEOUT": "its time limit is over: see 'time' of sbatch_options",
    "OUT_OF_MEMORY": "it used more memory than it was given: see 'mem' of sbatch_options",
    "NODE_FAIL": "its node failed or was taken down",
    "PREEMPTED": "another job took its place",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "it could not end before its deadline",
}

NEVER: Final = {
    "DependencyNeverSatisfied": "what it depends on failed",
    "InvalidAccount": "there is no such account",
    "InvalidQOS": "there is no such QOS",
    "JobHoldMaxRequeue": "it failed to start too often, and is held",
    "launch_failed_requeued_held": "its node could not start it, and it is held",
    "launch_failure_limit_exceeded_requeued_held": "no node could start it, and it is held",
}
"""Reasons why a job that waits does so for ever (slurm.schedmd.com/job_reason_codes.html)."""

NEVER_THERE: Final = {
    "AccountNotAllowed": "its account may not use the partition",
    "BadConstraints": "no node of the partition has what it asks for",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives",
    "PartitionTimeLimit": "its time limit is longer than the partition's",
    "QOSNotAllowed": "its QOS may not be used there",
}
"""Reasons why a job waits for ever if it has no other partition to wait for."""

USUAL: Final = (
    "",
    "BeginTime",
    "Dependency",
    "Licenses",
    "None",
    "Priority",
    "Reservation",
    "Resources",
)
LIMITS: Final = ("Assoc", "Max", "QOS")
"""Reasons that pass by themselves, and the beginnings of those that are limits on running jobs."""


MAX_NODES: Final = 3
"""Maximum number of nodes that are named in a message."""

OUT: Final = ("down", "drain", "error", "fail")
"""The beginnings of states of nodes that take no more jobs until an administrator acts (sinfo(1), NODE STATE CODES)."""


class Node(NamedTuple):
    """A node, as Slurm shows it.

    Attributes:
        name: Its name.
        state: Such as ``"idle"`` or ``"drained"``.
        reason: The administrator's reason for taking it out; empty if it is in.
    """

    name: str
    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is {self.state}{self.reason and f' ({self.reason})'}"


class Row(NamedTuple):
    """A job, as Slurm shows it.

    Attributes:
        job: Its id.
        cluster: The name of its cluster, if several were asked; otherwise empty.
        state: Such as ``"RUNNING"``.
        by: The user who cancelled it, if Slurm says so.
        status: Its exit status, as of a process: negative for a signal; 0 while there is none.
        requeues: Whether Slurm may put it in the queue again.
        partition: Its partition, or several, with commas.
        nodes: The nodes on which it runs or ran; empty: it never had one.
        reason: Slurm's code for why it waits or failed.
    """

    job: str
    cluster: str
    state: str
    by: str
    status: int
    requeues: bool
    partition: str
    nodes: str
    reason: str

    @property
    def never(self) -> str | None:
        """Why it waits for ever; ``None``: it does not."""
        if self.state not in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return None
        name = self.reason.replace(" ", "_")
        return NEVER.get(name) or (None if "," in self.partition else NEVER_THERE.get(name))

    @property
    def worries(self) -> bool:
        """Whether it waits for something that does not pass by itself."""
        return (
            self.state == "PENDING"
            and self.reason not in USUAL
            and not self.reason.startswith(LIMITS)
        )

    @property
    def wants_nodes(self) -> bool:
        """Whether it waits for nodes to come back, and not only for other jobs to leave them."""
        return self.worries and "node" in self.reason.lower()


def read_squeue(text: str) -> Iterator[Row]:
    """Yield the rows of ``squeue --noheader --Format`` with `SQUEUE_FIELDS`."""
    cluster = ""

    for line in text.splitlines():
        if line.startswith("CLUSTER: "):
            cluster = line.removeprefix("CLUSTER: ").strip()
            continue
        fields = [field.strip() for field in line.rstrip().removesuffix("@").split("@", 6)]
        if len(fields) < 7:
            continue
        job, state, code, requeues, partition, nodes = fields[:6]
        yield Row(
            job, cluster, state, "", _status(code), requeues == "1", partition, nodes, fields[6]
        )


def read_sacct(text: str) -> Iterator[Row]:
    """Yield the rows of ``sacct --noheader --parsable2 --format`` with `SACCT_FIELDS`."""
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) < 6:
            continue
        job, state, code, partition, nodes, reason = fields[:6]
        state, _, by = state.partition(" ")  # "CANCELLED by 1000"
        nodes = "" if nodes == "None assigned" else nodes
        yield Row(
            job,
            "",
            state,
            by.removeprefix("by ").strip(),
            _status(code),
            False,
            partition,
            nodes,
            reason,
        )


def read_sinfo(text: str) -> dict[str, list[Node]]:
    """Return the nodes of each partition, from ``sinfo --noheader --Node --format`` with `SINFO_FORMAT`."""
    found: dict[str, list[Node]] = {}

    for line in text.splitlines():
        fields = [field.strip() for field in line.split("@", 3)]
        if len(fields) == 4:
            partition, name, state, reason = fields
            found.setdefault(partition, []).append(
                Node(name, state, "" if reason == "none" else reason)
            )

    return found


def stranded(row: Row, partitions: Mapping[str, Sequence[Node]]) -> JobStatus | None:
    """Return the status of a waiting job if no node of its partitions takes jobs; ``None``: one does.

    Args:
        row: The job's row.
        partitions: The nodes by partition.
    """
    named = row.partition.split(",")
    nodes = [node for name in named for node in partitions.get(name, ())]
    if not all(partitions.get(name) for name in named) or not all(
        node.state.startswith(OUT) for node in nodes
    ):
        return None

    some = "; ".join(map(str, nodes[:MAX_NODES])) + ("; ..." if len(nodes) > MAX_NODES else "")
    return JobStatus(
        "lost",
        f"job {row.job} of Slurm waits for ever ({row.reason}): no node takes jobs there: {some}",
    )


def _status(code: str) -> int:
    """Return an exit status from what wait(2) gives (``"1792"``), or from status and signal (``"7:0"``)."""
    exited, colon, signalled = code.partition(":")

    try:
        number = int(exited)
        if colon:
            return -int(signalled) if int(signalled) else number
    except ValueError:
        return 0

    return -(number & 0x7F) if number & 0x7F else number >> 8


def status_of(row: Row, said: str = "") -> JobStatus | None:
    """Return the status of a job that is over or waits for ever; ``None``: it is neither.

    Args:
        row: The job's row.
        said: A sentence about its output, if that is known.
    """
    if (why := row.never) is not None:
        return JobStatus("lost", f"job {row.job} of Slurm waits for ever ({row.reason}): {why}")
    end = ENDED.get(row.state)
    if end is None:
        return None
    facts = (
        row.state,
        row.reason if row.reason not in USUAL else "",
        _exit(row.status),
        f"by user {row.by}" if row.by else "",
        f"on {row.nodes}" if row.nodes else "before it had a node",
    )
    text = f"job {row.job} of Slurm ended: {', '.join(filter(None, facts))}"
    if end == "finished":
        return JobStatus("finished", text)
    cause = MEANINGS.get(row.state) or (_meaning(row.status) if row.state == "FAILED" else None)
    sentences = [each for each in (text, cause, said) if each]
    return JobStatus("lost", " ".join(_ended_sentence(each) for each in sentences).rstrip("."))


def _ended_sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _meaning(status: int) -> str | None:
    if status == -signal.SIGKILL:
        return "killed from outside: often because it used more memory than it was given"
    return meaning(status)


def _exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}" if status else ""
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
