"""Whether something is left behind: threads, file descriptors, child processes, temporary files."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What this process holds at one moment."""

    threads: frozenset[tuple[int | None, str]]
    descriptors: frozenset[str]
    children: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            frozenset((thread.ident, thread.name) for thread in threading.enumerate()),
            frozenset(_descriptors()),
            frozenset(_children()),
        )

    def beyond(self, before: Snapshot) -> dict[str, list[str]]:
        """What is there now and was not there *before*; empty when nothing is."""
        found = {
            "threads": sorted(name for _, name in self.threads - before.threads),
            "file descriptors": _more(self.descriptors, before.descriptors),
            "child processes": sorted(self.children - before.children),
        }
        return {kind: names for kind, names in found.items() if names}


def _descriptors() -> Iterator[str]:
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    for entry in list(folder.iterdir()):
        try:
            yield f"{entry.name} -> {entry.readlink()}"
        except OSError:  # the one that listed the folder
            continue


def _more(now: frozenset[str], before: frozenset[str]) -> list[str]:
    """The descriptors of *now* that *before* has not. What the kernel gives no name of its own (``anon_inode:``) is
    counted by its kind: at a fork, gRPC closes its eventfd and makes another."""
    kinds = Counter(_kind(each) for each in before)
    return sorted(each for each in now - before if (Counter(map(_kind, now)) - kinds)[_kind(each)])


def _kind(descriptor: str) -> str:
    target = descriptor.partition(" -> ")[2]
    return target if target.startswith("anon_inode:") else descriptor


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for pid in children:
            try:
                yield f"{pid} {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ').strip() or '(ended)'}"
            except OSError:
                continue


@contextmanager
def leak_check(
    temporary: Path,
    grace: float = 20.0,
    *,
    leaves: str | None = None,
    caplog: pytest.LogCaptureFixture | None = None,
) -> Iterator[None]:
    """Fail when the block leaves something behind that is still there after `wove.shutdown()` and *grace* seconds.

    *temporary* is where temporary files go meanwhile; it must be empty in the end. Descriptors that *leaves* matches,
    a regular expression, may be left. The test's records in *caplog* are let go of: they hold errors, those hold
    frames, and frames hold whatever was in use there.
    """
    import wove
    from wove.concurrency import thread_pool

    # What Wove keeps by design is there before, or does not stay for long: one loop per thread, and idle threads.
    idle_seconds, thread_pool.IDLE_SECONDS = thread_pool.IDLE_SECONDS, 0.05
    with wove.weave() as warm:

        @warm.do
        async def nothing() -> None:
            pass

    wove.shutdown()
    temporary.mkdir(exist_ok=True)
    previous, tempfile.tempdir = tempfile.tempdir, str(temporary)
    variable = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    try:
        gc.collect()
        before = Snapshot.take()
        yield
        wove.shutdown()
        if caplog is not None:
            caplog.get_records("call").clear()
        deadline = time.monotonic() + grace
        while True:
            gc.collect()
            left = Snapshot.take().beyond(before)
            if leaves is not None and "file descriptors" in left:
                left["file descriptors"] = [
                    each for each in left["file descriptors"] if not re.search(leaves, each)
                ]
                left = {kind: names for kind, names in left.items() if names}
            if files := sorted(path.name for path in temporary.iterdir()):
                left["temporary files"] = files
            if not left:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"left behind: {left}", pytrace=False)
            time.sleep(0.02)
    finally:
        thread_pool.IDLE_SECONDS = idle_seconds
        tempfile.tempdir = previous
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable


@pytest.fixture
def no_leaks(tmp_path: Path) -> Iterator[None]:
    """The test must leave no thread, descriptor, child process or temporary file behind."""
    with leak_check(tmp_path / "temporary"):
        yield
