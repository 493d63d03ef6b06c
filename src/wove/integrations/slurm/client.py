"""Slurm's commands, each run to its end in a limited time, and the queries that the adapter makes with them."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Final, NamedTuple

from wove.errors import DeliveryError, MissingDependencyError
from wove.integrations.slurm.options import environment_of_queries
from wove.integrations.slurm.remedies import with_remedy
from wove.integrations.slurm.states import (
    SACCT_FIELDS,
    SINFO_FORMAT,
    SQUEUE_FIELDS,
    Node,
    Row,
    read_sacct,
    read_sinfo,
    read_squeue,
)

__all__ = [
    "CommandResult",
    "NoAnswerError",
    "SlurmClient",
    "Submission",
    "check_program",
    "last_line",
    "run",
    "sibling",
]

logger = logging.getLogger("wove")

MAX_CHARACTERS: Final = 1000
"""Maximum number of characters of a command's output in a message."""


QUERY_SECONDS: Final = 30.0
"""How long a query may take."""

MAX_IDS: Final = 1000
"""Maximum number of jobs in one command line."""

TAIL_BYTES: Final = 2000
TAIL_CHARACTERS: Final = 500
"""How much of the end of a job's output is read, and how much of its last line is quoted."""


class NoAnswerError(DeliveryError):
    """A command was killed because it took too long. It may have had its effect or not."""


class CommandResult(NamedTuple):
    """The output of a command that has ended.

    Attributes:
        status: Its exit status.
        stdout: Its standard output.
        stderr: Its standard error.
    """

    status: int
    stdout: str
    stderr: str

    @property
    def error_text(self) -> str:
        """Its error output as one line, for messages."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        text = "; ".join(
            line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line
        )
        return text[:MAX_CHARACTERS] or f"exit status {self.status}, without a message"


def run(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str],
    content: bytes = b"",
    label: str,
) -> CommandResult:
    """Run *command* to its end.

    Args:
        command: Program and arguments.
        seconds: How long it may take. After that, it and its children are killed.
        environment: Its environment variables.
        content: Its standard input.
        label: What messages begin with.

    Raises:
        DeliveryError: It could not be started.
        NoAnswerError: It took longer.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C must not reach it: the weave handles it, and cancels its jobs with these commands.
            start_new_session=True,
        )
    except OSError as error:
        raise DeliveryError(f"{label}: {command[0]!r} cannot be started: {error}") from error

    with process:
        try:
            stdout, stderr = process.communicate(content, timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise NoAnswerError(
                f"{label}: {_named(command)} did not answer within {seconds:g} s. Does Slurm's controller answer "
                "(scontrol ping)?"
            ) from None
        except BaseException:
            _kill(process)
            raise

    return CommandResult(
        process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _named(command: Sequence[str]) -> str:
    words = [word for word in command if not word.startswith("-")]
    return shlex.join(words[:4])


def check_program(command: Sequence[str], key: str, *, label: str) -> None:
    """Check that the program of *command* exists.

    Raises:
        MissingDependencyError: It does not; the message names the *key* of ``executor_config`` for it.
    """
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"{label}: the slurm executor needs the command {command[0]!r} (executor_config {key!r}), and there is "
            "none on the PATH. Weave on a host with Slurm's client commands (package slurm-client), load their "
            "module, or give the full path"
        )


def sibling(command: Sequence[str], name: str) -> tuple[str, ...]:
    """Return how to call *name*, given how another one of Slurm's commands is called.

    Example:
        >>> sibling(["ssh", "login", "/opt/slurm/bin/sbatch", "--nice"], "squeue")
        ('ssh', 'login', '/opt/slurm/bin/squeue')
        >>> sibling(["submit-my-way"], "squeue")
        ('squeue',)
    """
    for position, word in enumerate(command):
        path = PurePath(word)
        if path.name in ("sbatch", "scancel"):
            beside = str(path.with_name(name)) if len(path.parts) > 1 else name
            if (
                position == 0 and shutil.which(beside) is None
            ):  # *command* is a wrapper of the user's
                beside = name
            return (*command[:position], beside)

    return (name,)


def last_line(path: str) -> str:
    """Return the last non-blank line of the file at *path*, shortened for a message; ``""``: there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except (OSError, ValueError):
        return ""

    return next((line.strip()[-TAIL_CHARACTERS:] for line in reversed(lines) if line.strip()), "")


class Submission(NamedTuple):
    """A job that was submitted.

    Attributes:
        job: Its id.
        cluster: The cluster that took it, if ``sbatch`` named one; otherwise empty.
        name: Its name; empty if it is not known.
    """

    job: str
    cluster: str
    name: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """Cluster and id, which identify its rows."""
        return self.cluster, self.job


class SlurmClient:
    """Asks Slurm about the user's jobs, and cancels them. May be used from several threads.

    Args:
        scancel: How ``scancel`` is called.
        squeue: How ``squeue`` is called.
        sacct: How ``sacct`` is called.
        sinfo: How ``sinfo`` is called.
        label: What messages begin with.

    Attributes:
        has_accounting: Whether ``sacct`` answers.
    """

    def __init__(
        self,
        scancel: Sequence[str],
        squeue: Sequence[str],
        sacct: Sequence[str],
        sinfo: Sequence[str],
        *,
        label: str,
    ) -> None:
        self._scancel = scancel
        self._squeue = squeue
        self._sacct = sacct
        self._sinfo = sinfo
        self._label = label
        self.has_accounting = shutil.which(sacct[0]) is not None

    def rows(self, clusters: Iterable[str]) -> dict[tuple[str, str], Row]:
        """Return the user's jobs, by cluster and id, including ended ones that the controller still knows.

        Args:
            clusters: The names of the clusters to ask; ``""``: the default one.

        Raises:
            DeliveryError: Slurm does not answer.
        """
        named = sorted(set(clusters) - {""})
        found: dict[tuple[str, str], Row] = {}

        for asked in ([""] if "" in clusters else []) + ([",".join(named)] if named else []):
            options = ("--noheader", "--me", "--states=all", f"--Format={SQUEUE_FIELDS}")
            result = self._ask((*self._squeue, *options, *_on(asked)))
            if result.status:
                raise DeliveryError(
                    f"{self._label}: {self._squeue[0]} does not answer: {with_remedy(result.error_text)}"
                )
            # The name of a cluster stands above its jobs, unless only one is asked.
            alone = asked if len(named) == 1 else ""
            found.update(
                {
                    (row.cluster or alone if asked else "", row.job): row
                    for row in read_squeue(result.stdout)
                }
            )

        return found

    def accounted(self, submissions: Sequence[Submission]) -> dict[tuple[str, str], Row]:
        """Return the accounting's rows of jobs, by cluster and id; an empty dict if there is no accounting.

        Raises:
            DeliveryError: ``sacct`` does not answer.
        """
        found: dict[tuple[str, str], Row] = {}
        if not self.has_accounting:
            return found

        for cluster, jobs in _by_cluster(submissions).items():
            for first in range(0, len(jobs), MAX_IDS):
                options = (
                    "--noheader",
                    "--parsable2",
                    "--allocations",
                    f"--format={SACCT_FIELDS}",
                    f"--jobs={','.join(jobs[first : first + MAX_IDS])}",
                )
                result = self._ask((*self._sacct, *options, *_on(cluster)))
                if result.status:
                    self.has_accounting = "disabled" not in result.error_text
                    logger.debug("%s: %s: %s", self._label, self._sacct[0], result.error_text)
                    return found
                found.update({(cluster, row.job): row for row in read_sacct(result.stdout)})

        return found

    def nodes(self, partitions: Iterable[str], cluster: str) -> dict[str, list[Node]]:
        """Return the nodes of some partitions of *cluster*, by partition; an empty dict without ``sinfo``.

        Raises:
            DeliveryError: ``sinfo`` does not answer.
        """
        if shutil.which(self._sinfo[0]) is None:
            return {}
        named = ",".join(sorted(set(partitions)))
        options = ("--noheader", "--Node", f"--partition={named}", f"--format={SINFO_FORMAT}")
        return read_sinfo(self._ask((*self._sinfo, *options, *_on(cluster))).stdout)

    def jobs_named(self, name: str) -> list[str] | None:
        """Return the ids of the user's jobs *name* that are not over; ``None``: Slurm does not answer."""
        options = ("--noheader", "--me", f"--name={name}", "--format=%A")
        try:
            result = self._ask((*self._squeue, *options))
        except DeliveryError:
            return None
        return None if result.status else result.stdout.split()

    def cancel(self, submissions: Sequence[Submission], seconds: float | None = None) -> None:
        """Cancel jobs: Slurm sends SIGTERM, and SIGKILL after its KillWait.

        Raises:
            DeliveryError: ``scancel`` refused, or did not end within *seconds* (`QUERY_SECONDS`).
        """
        for cluster, jobs in _by_cluster(submissions).items():
            for first in range(0, len(jobs), MAX_IDS):
                command = (*self._scancel, *_on(cluster), *jobs[first : first + MAX_IDS])
                result = self._ask(command, seconds)
                if result.status and "Invalid job id" not in result.error_text:  # that job is over
                    raise DeliveryError(
                        f"{self._label}: {command[0]} did not cancel: {result.error_text}"
                    )

    def _ask(self, command: Sequence[str], seconds: float | None = None) -> CommandResult:
        return run(
            command,
            seconds=seconds or QUERY_SECONDS,
            environment=environment_of_queries(),
            label=self._label,
        )


def _by_cluster(submissions: Iterable[Submission]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in submissions:
        found.setdefault(each.cluster, []).append(each.job)
    return found


def _on(cluster: str) -> tuple[str, ...]:
    return (f"--clusters={cluster}",) if cluster else ()
