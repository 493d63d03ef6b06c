"""Ctrl-C, signals and exits, in real processes: a weave ends promptly, says so, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.scripts import MAY_BLOCK_LOOP, Finished

LONG = 60
"""Seconds that nothing here may wait for."""

SOON = 20
"""Seconds after which something hangs."""


class Script:
    """A user's script that runs on; its lines are read as they come."""

    def __init__(self, source: str, folder: Path, flags: tuple[str, ...]) -> None:
        path = folder / "script.py"
        path.write_text(
            "import asyncio, signal, sys, threading, time\nfrom wove import *\n"
            + textwrap.dedent(source)
        )
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-u", *flags, str(path)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        )

    def line(self) -> str:
        """What it prints next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_its_wait(self) -> None:
        """Ctrl-C, once the main thread waits for something.

        Between Python's last look for signals and a system call that blocks there is a moment in which one is not seen
        until the call returns.
        """
        path = Path(f"/proc/{self.process.pid}/status")
        before, now = "", path.read_text()
        while "State:\tS" not in now or _switches(now) != _switches(before):
            time.sleep(0.01)
            before, now = now, path.read_text()
        self.interrupt()

    def end(self) -> tuple[int, list[str], str]:
        """Its exit status, the rest of what it printed, and its complaints."""
        assert self.process.stdout is not None
        overdue = threading.Timer(
            SOON, self.process.send_signal, [signal.SIGABRT]
        )  # faulthandler prints the stacks
        overdue.start()
        out = (
            self.process.stdout.read()
        )  # not communicate(), which knows nothing of what `line` has read ahead
        self.process.wait()
        overdue.cancel()
        if self.process.returncode == -signal.SIGABRT:
            self.errors.seek(0)
            pytest.fail(f"it goes on; stdout:\n{out}\nstderr:\n{self.errors.read()}", pytrace=False)
        self.errors.seek(0)
        # Development mode reports whatever takes 0.1 s on the loop, which on a busy machine is anything.
        errors = "".join(line for line in self.errors if not line.startswith("Executing <"))
        return self.process.returncode, out.splitlines(), errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.errors.close()


def _switches(status: str) -> list[str]:
    """How often a thread has given up or lost its processor, from its ``/proc/.../status``."""
    return [line for line in status.splitlines() if "ctxt_switches" in line]


Start = Callable[..., Script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    scripts: list[Script] = []

    def start(source: str, *flags: str) -> Script:
        scripts.append(Script(source, tmp_path, flags or ("-X", "dev", "-W", "error")))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()


def ended_by_interrupt(status: int, errors: str) -> None:
    """As Python ends on a KeyboardInterrupt that nobody catches, with nothing else to say."""
    assert status == -signal.SIGINT, errors
    last = [line for line in errors.splitlines() if not line.startswith(("in task", " "))][-1]
    assert last.startswith("KeyboardInterrupt"), errors
    assert "Traceback (most recent call last)" in errors
    for complaint in (
        "never retrieved",
        "never awaited",
        "was destroyed",
        "ResourceWarning",
        "ignored",
        "Fatal",
    ):
        assert complaint not in errors, errors


TASKS = {
    "a coroutine": """
        @w.do
        async def task():
            print("ready")
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned")
        """,
    "a blocked thread": """
        @w.do
        def task():
            print("ready")
            time.sleep(60)
        """,
    "mapped threads": """
        @w.do(range(100), workers=4)
        def task(item):
            if item == 3:
                print("ready")
            time.sleep(60)
        """,
    "mapped coroutines": """
        @w.do(range(100), workers=4)
        async def task(item):
            if item == 3:
                print("ready")
            await asyncio.sleep(60)
        """,
    "a thread and coroutines": """
        @w.do
        def blocks():
            time.sleep(60)

        @w.do
        async def task():
            print("ready")
            await asyncio.sleep(60)
        """,
    "a merge": """
        @w.do
        def task():
            merge(inner, [1, 2])

        async def inner(item):
            if item == 2:
                print("ready")
            await asyncio.sleep(60)
        """,
    "a weave in a thread": """
        @w.do
        def task():
            with weave() as inner:
                @inner.do
                def blocks():
                    time.sleep(60)
                @inner.do
                async def sleeps():
                    print("ready")
                    await asyncio.sleep(60)
        """,
    "a retry": """
        @w.do(retries=5, retry_delay=60)
        def task():
            print("ready")
            raise OSError
        """,
    "a paced map": """
        @w.do(range(5), limit_per_minute=1)
        def task(item):
            print("ready")
        """,
}

BLOCKS = {
    "with": """
def main():
    with weave() as w:
{tasks}
main()
""",
    "async with": """
async def main():
    async with weave() as w:
{tasks}
asyncio.run(main())
""",
    "with in a running loop": """
async def main():
    with weave() as w:
{tasks}
asyncio.run(main())
""",
}


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_ctrl_c(start: Start, block: str, tasks: str) -> None:
    body = textwrap.indent(textwrap.dedent(TASKS[tasks]), 8 * " ")
    # Not in development mode: asyncio's own debug mode complains about a block that blocks its loop.
    script = start(BLOCKS[block].format(tasks=body), *MAY_BLOCK_LOOP)
    assert script.line() == "ready"
    script.interrupt_its_wait()
    status, out, errors = script.end()
    ended_by_interrupt(status, errors)
    assert out == (["cleaned"] if tasks == "a coroutine" else [])


def test_a_second_ctrl_c_ends_a_coroutine_that_never_gives_the_loop_back(start: Start) -> None:
    script = start(
        """
        with weave() as w:
            @w.do
            async def busy():
                print("ready")
                while True:
                    pass
        """
    )
    assert script.line() == "ready"
    deadline = time.monotonic() + SOON
    while script.process.poll() is None and time.monotonic() < deadline:
        script.interrupt()
        time.sleep(0.2)
    status, _, errors = script.end()
    ended_by_interrupt(status, errors)
    assert "while True" in errors or "pass" in errors  # the traceback shows where it was


def test_a_second_ctrl_c_ends_a_coroutine_that_refuses_to_be_cancelled(start: Start) -> None:
    script = start(
        """
        with weave() as w:
            @w.do
            async def stubborn():
                print("ready")
                while True:
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        print("no")
        """,
        "-W",
        "error",
    )
    assert script.line() == "ready"
    script.interrupt_its_wait()
    assert script.line() == "no"
    deadline = time.monotonic() + SOON
    while script.process.poll() is None and time.monotonic() < deadline:
        script.interrupt()
        time.sleep(0.2)
    assert script.end()[0] == -signal.SIGINT


def test_ctrl_c_can_be_caught_and_the_next_weave_runs(start: Start) -> None:
    script = start(
        """
        told = []
        for block in range(3):
            try:
                with weave(on_done=told.append) as w:
                    @w.do
                    def blocks():
                        time.sleep(60)
                    @w.do
                    async def sleeps():
                        print("ready")
                        await asyncio.sleep(60)
            except KeyboardInterrupt as error:
                print("caught", w.result.cancelled, w.result.exception is error)
            with weave() as w:
                @w.do
                def sync_task(): return 1
                @w.do
                async def async_task(sync_task): return sync_task + 1
            print(*w.result)
        print(len(told), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    for _ in range(3):
        assert script.line() == "ready"
        script.interrupt_its_wait()
        assert script.line() == "caught ('blocks', 'sleeps') True"
        assert script.line() == "1 2"
    status, out, errors = script.end()
    assert (status, out, errors) == (0, ["3 True"], "")


@pytest.mark.parametrize("block", BLOCKS)
def test_the_handler_of_the_user_is_respected(start: Start, block: str) -> None:
    """One that returns ends nothing; one that raises ends the weave with that."""
    body = """
        signal.signal(signal.SIGINT, lambda *about: print("handled"))
        @w.do
        async def task():
            print("ready")
            await asyncio.sleep(0.3)
            print("went on")
    """
    script = start(BLOCKS[block].format(tasks=body), *MAY_BLOCK_LOOP)
    assert script.line() == "ready"
    script.interrupt()
    status, out, errors = script.end()
    assert (status, out, errors) == (0, ["handled", "went on"], "")


@pytest.mark.parametrize("loop", ["", "in a loop"])
@pytest.mark.parametrize(
    "task", ["def task(): time.sleep(60)", "async def task(): await asyncio.sleep(60)"]
)
def test_an_alarm_that_raises_ends_the_weave(
    script: Callable[..., Finished], task: str, loop: str
) -> None:
    found = script(
        f"""
        import asyncio, signal, time
        from wove import weave

        class Alarm(Exception): pass

        def ring(*about): raise Alarm("rang")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.2)

        def run():
            with weave() as w:
                @w.do
                {task}

        async def main():
            run()

        try:
            asyncio.run(main()) if {loop!r} else run()
        except Alarm as error:
            print(error)
        with weave() as w:
            @w.do
            def sync_task(): return 1
            @w.do
            async def async_task(sync_task): return sync_task + 1
        print(*w.result)
        """,
        flags=MAY_BLOCK_LOOP,
    )
    assert found.stdout == "rang\n1 2\n"
    assert not found.stderr


def test_sigterm_ends_a_weave_as_any_script(start: Start) -> None:
    script = start(
        """
        with weave() as w:
            @w.do
            def blocks():
                print("ready")
                time.sleep(60)
        """
    )
    assert script.line() == "ready"
    script.process.terminate()
    assert script.end()[0] == -signal.SIGTERM


def test_sigterm_turned_into_an_exit(start: Start) -> None:
    script = start(
        """
        signal.signal(signal.SIGTERM, lambda *about: sys.exit(7))
        with weave() as w:
            @w.do
            def blocks():
                time.sleep(60)
            @w.do
            async def sleeps():
                try:
                    # Once nothing goes on: the exit may come anywhere, also in a file that asyncio's debug mode reads.
                    asyncio.get_running_loop().call_later(0.2, print, "ready")
                    await asyncio.sleep(60)
                finally:
                    print("cleaned")
        """
    )
    assert script.line() == "ready"
    script.process.terminate()
    assert script.end() == (7, ["cleaned"], "")


# ------------------------------------------------------------------------------------------ exits


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("mapped", ["", "([1])"])
def test_sys_exit_in_a_task_ends_the_script_with_its_status(
    script: Callable[..., Finished], kind: str, mapped: str
) -> None:
    found = script(
        f"""
        import sys
        from wove import weave
        with weave() as w:
            @w.do{mapped}
            {kind} leave({"item" if mapped else ""}):
                sys.exit(7)
        print("not here")
        """,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (7, "", "")


@pytest.mark.parametrize("block", BLOCKS)
def test_sys_exit_in_every_block(start: Start, block: str) -> None:
    body = """
        @w.do
        def leave():
            sys.exit(7)
        @w.do
        async def sleeps():
            await asyncio.sleep(60)
    """
    script = start(BLOCKS[block].format(tasks=body), *MAY_BLOCK_LOOP)
    assert script.end() == (7, [], "")


def test_a_script_whose_weave_raised_fails_with_a_traceback_to_the_line(
    script: Callable[..., Finished],
) -> None:
    found = script(
        """
        from wove import weave
        def deep():
            raise LookupError("mine")
        with weave() as w:
            @w.do
            def fails():
                deep()
        """,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.count("Traceback") == 1
    assert found.stderr.rstrip().endswith("LookupError: mine\nin task 'fails'")
    assert "in deep" in found.stderr


def test_an_abandoned_thread_does_not_keep_the_interpreter(script: Callable[..., Finished]) -> None:
    found = script(
        """
        import time
        from wove import TaskTimeoutError, weave
        try:
            with weave() as w:
                @w.do(timeout=0.05)
                def blocks():
                    time.sleep(60)
        except TimeoutError:
            print("timed out")
        try:
            with weave() as w:
                @w.do([1, 2, 3])
                def all_block(item):
                    time.sleep(60)
                @w.do
                async def fails():
                    raise LookupError
        except LookupError:
            print("failed")
        """.replace("TaskTimeoutError, ", ""),
        flags=("-X", "dev", "-W", "error"),
    )
    assert found.stdout == "timed out\nfailed\n"
    assert not found.complaints
    assert found.seconds < LONG / 2
