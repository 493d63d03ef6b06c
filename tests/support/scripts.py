"""Run a user's script in a process of its own, as a user would, and look at what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

MAY_BLOCK_LOOP = ("-W", "error", "-W", "ignore:a plain `with weave()` inside a running event loop")
"""Flags for a script that blocks its own event loop, of which a `WoveWarning` tells; other warnings are errors."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a script ended.

    Attributes:
        returncode: As from `subprocess`: negative for a signal.
        stdout: All it printed.
        stderr: All it complained about.
        seconds: Wall-clock time from start to end.
        orphans: Process ids of its session that outlived it by more than `GRACE` seconds (they have been killed).
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    orphans: tuple[int, ...]

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr, but for what development mode says of anything that is slow on a loop."""
        return [line for line in self.stderr.splitlines() if not line.startswith("Executing <")]


needs_threads_at_the_end = pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 2),
    reason="3.12.0 and 3.12.1 start no thread once the main thread has ended (gh-113964)",
)
"""For scripts whose background work is to go on after their last line."""

GRACE = 3.0  # seconds that children may take to notice that their parent is gone


def _alive_in_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After "pid (comm)": state, ppid, pgrp, session. The name may hold spaces and brackets.
            state, _, _, owner = entry.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(owner) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def run_script(
    source: str | Path,
    *args: str,
    cwd: Path,
    timeout: float = 30.0,
    env: Mapping[str, str | None] | None = None,
    flags: Sequence[str] = ("-W", "error"),
    check: bool = True,
    python: str = sys.executable,
    inside: Sequence[str] = (),
) -> Finished:
    """Run *source* (text, or the path of a file) as ``script.py`` in *cwd*, in a session of its own.

    Args:
        source: The script's text (dedented first), or a path.
        args: Its arguments.
        cwd: Its working directory, where its output and the script itself are put.
        timeout: Seconds. A script that takes longer prints the stacks of all its threads and fails the test.
        env: Variables to set; ``None`` removes one.
        flags: Flags of the interpreter. The default makes warnings errors.
        check: Fail the test on an exit status other than 0, or when processes outlive the script.
        python: Which interpreter.
        inside: What to put before the command, such as ``ip netns exec NAME``.
    """
    path = source if isinstance(source, Path) else cwd / "script.py"
    if not isinstance(source, Path):
        path.write_text(textwrap.dedent(source))
    changed = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
    environ = {name: value for name, value in changed.items() if value is not None}
    # Files, not pipes: a process that outlives the script would hold a pipe open.
    out, err = cwd / ".stdout", cwd / ".stderr"
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*inside, python, *flags, str(path), *args],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        finally:
            overdue = process.returncode is None
            orphans = _settle(process, 0 if overdue else GRACE)
    result = Finished(
        process.returncode,
        out.read_text(errors="replace"),
        err.read_text(errors="replace"),
        time.monotonic() - began,
        orphans,
    )
    told = f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    if overdue:
        pytest.fail(f"{path.name} did not end within {timeout:g} s\n{told}", pytrace=False)
    if check and result.returncode:
        pytest.fail(f"{path.name} ended with {result.returncode}\n{told}", pytrace=False)
    if check and orphans:
        pytest.fail(f"{path.name} left processes behind: {orphans}\n{told}", pytrace=False)
    return result


def _settle(process: subprocess.Popen[bytes], grace: float) -> tuple[int, ...]:
    """Wait for the rest of the session to end; kill and return what has not within *grace* seconds."""
    if process.returncode is None:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    deadline = time.monotonic() + grace
    while (rest := _alive_in_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in rest:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return tuple(rest)


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the scripts that the tests start."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Finished]:
    """`run_script` in a fresh folder: ``script("print(1)").stdout``."""

    def run(source: str | Path, *args: str, **options: object) -> Finished:
        return run_script(source, *args, **{"cwd": tmp_path, **options})  # type: ignore[arg-type]

    return run
