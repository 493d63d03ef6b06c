"""Slurm's commands: each is run to its end, in a limited time."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final, NamedTuple

from wove.errors import DeliveryError, MissingDependencyError

__all__ = ["Done", "NoAnswerError", "check_program", "last_line", "run", "sibling"]

MAX_CHARACTERS: Final = 1000
"""Maximum number of characters of a command's output in a message."""


TAIL_BYTES: Final = 2000
TAIL_CHARACTERS: Final = 500
"""Number of characters of a job's output that are read, and of its last line that are quoted."""


class NoAnswerError(DeliveryError):
    """A command was killed because it took too long; whether it has done its work is not known."""


class Done(NamedTuple):
    """The output of a command that has ended.

    Attributes:
        status: Its exit status.
        stdout: What it printed.
        stderr: And complained.
    """

    status: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """Its complaint in one line, as it is put into messages."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        text = "; ".join(
            line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line
        )
        return text[:MAX_CHARACTERS] or f"exit status {self.status}, without a word"


def run(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str],
    content: bytes = b"",
    label: str,
) -> Done:
    """Run *command* to its end.

    Args:
        command: Program and arguments.
        seconds: How long it may take. Then it is killed, with what it has started.
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
            # A Ctrl-C is for the weave, which then has jobs to cancel.
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

    return Done(
        process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _named(command: Sequence[str]) -> str:
    words = [word for word in command if not word.startswith("-")]
    return shlex.join(words[:4])


def check_program(command: Sequence[str], key: str, *, label: str) -> None:
    """See that there is such a program.

    Raises:
        MissingDependencyError: There is none; the message says which key of ``executor_config`` would name it.
    """
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"{label}: the slurm executor needs the command {command[0]!r} (executor_config {key!r}), and there is "
            "none on the PATH. Weave on a host with Slurm's client commands (package slurm-client), load their "
            "module, or give the full path"
        )


def sibling(command: Sequence[str], name: str) -> tuple[str, ...]:
    """How *name* is called where *command* is a call of another one of Slurm's commands.

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
            if position == 0 and shutil.which(beside) is None:  # a wrapper of the user's own
                beside = name
            return (*command[:position], beside)

    return (name,)


def last_line(path: str) -> str:
    """The last line of the file at *path* that is not blank, or what fits into a message of it; empty without one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except (OSError, ValueError):
        return ""

    return next((line.strip()[-TAIL_CHARACTERS:] for line in reversed(lines) if line.strip()), "")
