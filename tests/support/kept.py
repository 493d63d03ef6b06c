"""Commands that run beside the tests, each under a keeper: servers, services, workers.

    >>> with keep("redis", ["redis-server", "--port", "6399"], tmp_path / "redis") as server:
    ...     server.until(lambda: "Ready to accept" in server.log(), "accepts connections")

Whatever the tests do, and however they end, the command ends with them, and so does what it has started: see keeper.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from tests.support import keeper

__all__ = ["PATIENCE", "ROOT", "Kept", "free_port", "gone", "keep", "kill", "launch"]

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

PATIENCE = 120.0
"""Seconds that a command may take to get somewhere, on a machine that does other things."""

PROCESSES = 8
"""The most processes of a parallel run that have ports of their own."""


@dataclass
class Kept:
    """A command that runs (or ran).

    Attributes:
        name: What messages call it.
        folder: Of its own: its log, its keeper's notes.
        restarts: Whether its keeper starts it again when it ends.
        process: Its keeper.
    """

    name: str
    folder: Path
    restarts: bool
    process: subprocess.Popen[bytes] = field(repr=False)

    def status(self) -> dict[str, Any]:
        """What its keeper knows of it; see tests/support/keeper.py."""
        path = self.folder / "status"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def pid(self) -> int:
        """The process of the command itself. Waits for it, if it is just being started again."""
        return int(self.until(lambda: self.status().get("pid"), "has a process"))

    @property
    def starts(self) -> int:
        """How often it was started."""
        return int(self.status().get("starts", 0))

    def log(self) -> str:
        """All that it has said, on stdout and stderr."""
        return (self.folder / "log").read_text(errors="replace")

    def latest_log(self) -> str:
        """What it has said since it was started last."""
        with open(self.folder / "log", "rb") as file:
            file.seek(self.status().get("offset", 0))
            return file.read().decode(errors="replace")

    def until(self, look: Callable[[], T], what: str, *, patience: float = PATIENCE) -> T:
        """Wait until *look* returns something true, and return that. Fails, with the log, when the command has ended
        or *patience* seconds have passed."""
        deadline = time.monotonic() + patience
        while not (found := look()):
            over = self.process.poll() is not None or (
                self.status().get("ended") and not self.restarts
            )
            if over or time.monotonic() > deadline:
                why = f"has ended: {self.status()}" if over else f"took more than {patience} s"
                pytest.fail(
                    f"{self.name}, until it {what}: it {why}\n{self.log()[-5000:]}", pytrace=False
                )
            time.sleep(0.005)
        return found

    def processes(self) -> dict[int, str]:
        """The running processes of its session: the command's own, and what that has started."""
        pid = self.status().get("pid")
        return {} if pid is None else keeper.members({pid})

    def kill(self) -> None:
        """SIGKILL to the command's own process. What restarts comes again by itself; another is dead on return."""
        pid, starts = self.pid, self.starts
        kill(pid)
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())["pid"] == pid and status["starts"] == starts:
            assert time.monotonic() < deadline, f"{self.name} was killed, and is still there"
            time.sleep(0.005)

    def kill_all(self) -> None:
        """SIGKILL to the command and all its processes, the command's own first: no other is to be replaced."""
        others = self.processes()
        others.pop(self.pid, None)
        self.kill()
        for pid in others:
            kill(pid)

    def stop(self, *, now: bool = False) -> int:
        """End it: SIGTERM, and wait for its end. Fails when it leaves a process behind. Returns its exit status.

        Args:
            now: Kill it with all its processes instead, and accept what that leaves behind for the keeper to end.
        """
        before = self.processes() if now else {}
        if self.process.stdin is not None:
            self.process.stdin.close()
        for pid in before:
            kill(pid)
        self.process.wait()
        status = self.status()
        if status["left"] and not now:
            pytest.fail(f"{self.name} left processes behind: {status['left']}", pytrace=False)
        return int(status["ended"][-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    restarts: bool = False,
    environ: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
) -> subprocess.Popen[bytes]:
    """Start a keeper with *command*; `Kept` is made of it. Arguments as for `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").touch()
    variables: Mapping[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})}
    keep = [str(Path(__file__).with_name("keeper.py")), str(folder / "status"), str(folder / "log")]
    return subprocess.Popen(
        [sys.executable, "-I", *keep, "restart" if restarts else "once", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        # A Ctrl-C at the tests is not for what runs beside them: the tests stop it.
        start_new_session=True,
    )


def keep(
    name: str,
    command: Sequence[str],
    folder: Path,
    *,
    restarts: bool = False,
    environ: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
) -> Kept:
    """Start *command*, and see that it ends with the tests.

    Args:
        name: What messages call it.
        command: Program and arguments.
        folder: For its log and its keeper's notes; its own.
        restarts: Whether to start it again when it ends.
        environ: More environment variables; ``None`` takes one away.
        cwd: Where it runs.
    """
    return Kept(
        name, folder, restarts, launch(command, folder, restarts=restarts, environ=environ, cwd=cwd)
    )


def gone(pid: int) -> bool:
    """Whether the process has ended, even if nobody has asked for its exit status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends while it is read
        return True


def kill(pid: int) -> None:
    """SIGKILL to *pid*, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port where nobody listens, outside the range from which the system takes those of outgoing connections.

    Inside of it, another connection could take the port of a service that is just being restarted; even one *to* that
    port, which TCP then connects to itself. Each process of a parallel run has ports of its own, so that none is
    given away twice before somebody listens there.
    """
    low, high = 20_000, 32_000
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        high = min(high, first)
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.sample(range(low + process % PROCESSES, high, PROCESSES), 100):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return port
    raise OSError(f"no port between {low} and {high} is free")
