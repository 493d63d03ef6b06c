"""The registry of hooks for `os.fork`: their order, what is held meanwhile, and what a child must not inherit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import wove

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def run(body: str) -> list[str]:
    """The lines that a script of its own prints; a process that has tests' threads is not to be forked."""
    script = """
        import os, sys, threading
        from wove.concurrency import forks
        from wove.concurrency.forks import Phase

        def say(*words):
            os.write(1, (" ".join(map(str, words)) + "\\n").encode())

        def fork():
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
            return child
    """
    text = textwrap.dedent(script) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hooks_run_by_phase_and_not_in_the_order_of_their_registration() -> None:
    assert run("""
        for phase in (Phase.CLIENTS, Phase.LOCKS, Phase.CACHES, Phase.THREADS, Phase.LOOPS):
            forks.before(phase, lambda phase=phase: say("before", phase.name))
            forks.after_in_child(phase, lambda phase=phase: say("child", phase.name))
        if not fork():
            os._exit(0)
    """) == [
        *("before CLIENTS", "before CACHES", "before LOOPS", "before THREADS", "before LOCKS"),
        *("child LOCKS", "child THREADS", "child LOOPS", "child CACHES", "child CLIENTS"),
    ]


def test_the_hooks_of_one_phase_keep_their_order_and_the_parent_has_its_own() -> None:
    lines = run("""
        for number in range(3):
            forks.after_in_child(Phase.CACHES, lambda number=number: say("child", number))
        forks.after_in_parent(Phase.CACHES, lambda: say("parent"))
        if not fork():
            os._exit(0)
    """)
    lines.remove("parent")  # the two processes print at the same time
    assert lines == ["child 0", "child 1", "child 2"]


def test_a_hook_that_fails_is_reported_and_costs_no_other_its_turn() -> None:
    lines = run("""
        forks.after_in_child(Phase.LOCKS, lambda: 1 / 0)
        forks.after_in_child(Phase.CLIENTS, lambda: say("reset"))
        reported = []
        sys.unraisablehook = lambda unraisable: reported.append(repr(unraisable.exc_value))
        if not fork():
            say(*reported)
            os._exit(0)
    """)
    assert lines[0] == "reset"
    assert "hooks of a fork failed" in lines[1] and "division by zero" in lines[1]


def test_a_held_lock_is_free_again_on_both_sides_and_held_during_the_fork() -> None:
    assert run("""
        lock = threading.Lock()
        forks.hold(lock)
        forks.after_in_child(Phase.LOCKS, lambda: say("child's hook", lock.locked()))
        if not fork():
            say("child", lock.acquire(timeout=1), forks.importing.acquire(timeout=1))
            os._exit(0)
        say("parent", lock.acquire(timeout=1), forks.importing.acquire(timeout=1))
    """) == ["child's hook False", "child True True", "parent True True"]


def test_a_fork_waits_for_who_holds_a_lock() -> None:
    assert run("""
        lock, inside = threading.Lock(), threading.Event()
        forks.hold(lock)
        forks.before(Phase.LOCKS, inside.set)  # the last hook before the locks are acquired
        state = []

        def change():
            with lock:
                state.append("half")
                started.set()
                inside.wait(30)
                state.append("whole")

        started = threading.Event()
        thread = threading.Thread(target=change)
        thread.start()
        started.wait(30)
        if not fork():
            say(*state)
            os._exit(0)
        thread.join()
    """) == ["half whole"]


def test_what_comes_before_foreign_hooks_comes_before_every_phase() -> None:
    assert run("""
        forks.before(Phase.CLIENTS, lambda: say("ours"))
        os.register_at_fork(before=lambda: say("theirs"))
        forks.before_foreign_hooks(lambda: say("first"))
        if not fork():
            os._exit(0)
    """) == ["first", "theirs", "ours"]


def test_a_child_closes_what_is_tracked_and_blanks_what_is_to_be_blanked() -> None:
    assert run("""
        tracked, blanked, left, given_back = (os.open(os.devnull, os.O_RDONLY) for _ in range(4))
        file, end = os.pipe()
        os.write(end, b"text")
        forks.track(tracked, left, given_back)
        forks.blank(file)
        forks.untrack(left)
        forks.release(given_back, -1)
        closed = lambda descriptor: not os.path.exists(f"/proc/self/fd/{descriptor}")
        if not fork():
            say("child", closed(tracked), closed(left), closed(given_back), os.read(file, 4))
            os._exit(0)
        say("parent", closed(tracked), closed(left), closed(given_back), os.read(file, 4))
    """) == ["child True False True b''", "parent False False True b'text'"]


def test_every_module_registers_here() -> None:
    root = Path(wove.__file__).parent
    found = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "os.register_at_fork(" in path.read_text(encoding="utf-8")
    ]
    assert found == [os.path.join("concurrency", "forks.py")]
