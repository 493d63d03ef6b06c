"""Keep one command running, as a service manager would: ``keeper.py STATUS LOG RESTART COMMAND...``.

A process of its own, so that whoever started it sees one child that stays the same however often the command dies. It
writes what is running to the file STATUS (JSON, replaced in one step), appends what the command says to LOG, and ends,
with the command, on SIGTERM or when its stdin closes: that is, however its parent ends. RESTART is ``restart`` or
``once``.

Standard library only, and run with ``-I``: it must not depend on what it keeps.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 45.0
"""Seconds that the command has to end after SIGTERM; longer than a service takes to drain."""

GRACE = 5.0
"""Seconds that its own processes have to notice that it is gone."""


class Keeper:
    """One command, run again when it ends if *restart* says so.

    Args:
        status: Path of the file to keep up to date: ``pid`` and first ``line`` of what runs (``None``: nothing, not
            yet), the ``offset`` at which its part of the log begins, how many ``starts`` there were, the exit statuses
            of those that ``ended``, and the processes ``left`` behind.
        log: Path of the file for everything that the command says.
        restart: Whether to run it again when it ends.
        command: Program and arguments.
        stops: Descriptors; when one of them can be read, the command is ended.
    """

    def __init__(
        self, status: str, log: str, restart: bool, command: list[str], stops: list[int]
    ) -> None:
        self.path, self.restart, self.command, self.stops = status, restart, command, stops
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self.status: dict[str, Any] = {
            "pid": None,
            "line": None,
            "offset": 0,
            "starts": 0,
            "ended": [],
            "left": [],
        }

    def tell(self, **changed: Any) -> None:
        self.status.update(changed)
        Path(f"{self.path}.new").write_text(json.dumps(self.status))
        os.replace(f"{self.path}.new", self.path)

    def run(self) -> None:
        stopped, sessions = False, set[int]()
        while True:
            began, offset = time.monotonic(), os.fstat(self.log).st_size
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,
            )
            assert process.stdout is not None
            sessions.add(process.pid)
            self.tell(pid=process.pid, line=None, offset=offset, starts=self.status["starts"] + 1)
            stopped = self.watch(process, process.stdout.fileno())
            if stopped:
                self.end(process)
            process.stdout.close()
            self.tell(pid=None, line=None, ended=[*self.status["ended"], process.wait()])
            if stopped or not self.restart:
                self.tell(left=end_sessions(sessions))
                return
            # What cannot start at all is not to be started a thousand times a second.
            time.sleep(max(0.0, 0.05 - (time.monotonic() - began)))

    def watch(self, process: subprocess.Popen[bytes], output: int) -> bool:
        """Read what *process* says until it ends (False), or until it is to be stopped (True)."""
        said, wanted = b"", [output, *self.stops]
        while True:
            # A look now and then: its output may close before it ends, or be held open by a process of its own after.
            ready, _, _ = select.select(wanted, [], [], 0.02)
            if output in ready:
                piece = os.read(output, 65536)
                os.write(self.log, piece)
                said += piece
                if not piece:
                    wanted.remove(output)
                elif b"\n" in said and self.status["line"] is None:
                    self.tell(line=said.partition(b"\n")[0].decode())
            if any(stop in ready for stop in self.stops):
                return True
            if process.poll() is not None:
                return False

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def end_sessions(sessions: set[int]) -> list[str]:
    """Kill, and name, what is still there of *sessions* when it had time to end."""
    deadline = time.monotonic() + GRACE
    while (left := members(sessions)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return list(left.values())


def members(sessions: set[int]) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After "pid (comm)": state, ppid, pgrp, session. The name may hold spaces and brackets.
            name, _, rest = entry.read_text().rpartition(")")
            state, _, _, owner = rest.split()[:4]
        except (OSError, ValueError):
            continue
        if int(owner) in sessions and state not in "ZX":
            found[int(entry.parent.name)] = f"{name})"
    return found


def main() -> None:
    status, log, restart, *command = sys.argv[1:]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests; they stop this
    Keeper(status, log, restart == "restart", command, [0, reader]).run()


if __name__ == "__main__":
    main()
