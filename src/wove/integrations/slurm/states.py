"""The states of Slurm's jobs, by the columns of ``squeue`` and ``sacct``, and what they mean for a run. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wove.integrations.base import JobStatus
from wove.integrations.common.statuses import meaning

__all__ = [
    "COMES_AGAIN",
    "ENDED",
    "SACCT_FIELDS",
    "SINFO_FORMAT",
    "SQUEUE_FIELDS",
    "Node",
    "Row",
    "fate_of",
    "read_sacct",
    "read_sinfo",
    "read_squeue",
    "stranded",
]

SQUEUE_FIELDS: Final = "jobarrayid:@,state:@,exit_code:@,requeue:@,partition:@,nodelist:@,reason:@"
"""For ``squeue --Format``: each has an @ behind it, which a shell leaves alone that ssh starts."""

SACCT_FIELDS: Final = "JobIDRaw,State,ExitCode,Partition,NodeList,Reason"
SINFO_FORMAT: Final = "%R@%N@%T@%E"
"""Partition, node, state and why, for ``sinfo --Node``."""

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
"""States in which a job is over (slurm.schedmd.com/job_state_codes.html). All others are on the way."""

COMES_AGAIN: Final = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""After these, Slurm puts a job in the queue again that may be requeued."""

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
"""And those for which it does so if it has no other partition to wait for."""

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
"""Reasons to wait that pass, and what those begin with that are limits of how much may run at a time."""


MAX_NODES: Final = 3
"""Maximum number of nodes that are named in a message."""

OUT: Final = ("down", "drain", "error", "fail")
"""The beginnings of states of nodes that take no more jobs until an administrator acts (sinfo(1), NODE STATE CODES)."""


class Node(NamedTuple):
    """A node, as Slurm shows it.

    Attributes:
        name: Its name.
        state: Such as ``"idle"`` or ``"drained"``.
        reason: Why somebody has taken it out; else empty.
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
        cluster: The name above it, where several were asked; else empty.
        state: Such as ``"RUNNING"``.
        by: Who cancelled it, if that is said.
        status: Its exit status, as of a process: negative for a signal; 0 as long as there is none.
        requeues: Whether Slurm may put it in the queue again.
        partition: Its partition, or several, with commas.
        nodes: Where it runs or ran; empty: it never had a node.
        reason: Why it waits or failed, in one of Slurm's words.
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
        """Why it never begins; ``None``: it may."""
        if self.state not in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return None
        name = self.reason.replace(" ", "_")
        return NEVER.get(name) or (None if "," in self.partition else NEVER_THERE.get(name))

    @property
    def worries(self) -> bool:
        """It waits for what somebody has to do something about."""
        return (
            self.state == "PENDING"
            and self.reason not in USUAL
            and not self.reason.startswith(LIMITS)
        )

    @property
    def wants_nodes(self) -> bool:
        """Return whether it waits for nodes, and not only for others to leave them."""
        return self.worries and "node" in self.reason.lower()


def read_squeue(text: str) -> Iterator[Row]:
    """The rows of ``squeue --noheader --Format`` with `SQUEUE_FIELDS`."""
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
    """The rows of ``sacct --noheader --parsable2 --format`` with `SACCT_FIELDS`."""
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
    """The nodes of each partition, from ``sinfo --noheader --Node --format`` with `SINFO_FORMAT`."""
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
    """That the job waits in vain, if no node of its partitions takes jobs.

    Args:
        row: Of the job.
        partitions: Their nodes.
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
        f"job {row.job} of Slurm waits in vain ({row.reason}): no node takes jobs there: {some}",
    )


def _status(code: str) -> int:
    """An exit status: of what wait(2) gives (``1792``), or of ``7:0`` (status and signal)."""
    exited, colon, signalled = code.partition(":")

    try:
        number = int(exited)
        if colon:
            return -int(signalled) if int(signalled) else number
    except ValueError:
        return 0

    return -(number & 0x7F) if number & 0x7F else number >> 8


def fate_of(row: Row, said: str = "") -> JobStatus | None:
    """Return the end of the job, if it is over or never begins.

    Args:
        row: Of the job.
        said: A sentence about what it printed, if that is known.
    """
    if (why := row.never) is not None:
        return JobStatus("lost", f"job {row.job} of Slurm waits in vain ({row.reason}): {why}")
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
    words = f"job {row.job} of Slurm ended: {', '.join(filter(None, facts))}"
    if end == "finished":
        return JobStatus("finished", words)
    cause = MEANINGS.get(row.state) or (_meaning(row.status) if row.state == "FAILED" else None)
    sentences = [each for each in (words, cause, said) if each]
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
