"""`weave(progress=True)`, as a person sees it: on a terminal, in a log, in a notebook."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.forms import FORMS, attempt, run, soon
from tests.support.measures import least_within
from tests.support.terminal import Seen, run_in_terminal

from wove import weave
from wove.observe import progress, sampling
from wove.observe.sampling import Row
from wove.observe.wording import ASCII, FANCY, chosen, duration, fit, live_lines, plain_line


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wove-progress"]


@pytest.fixture
def terminal(tmp_path: Path) -> Callable[..., Seen]:
    def run(source: str, **options: Any) -> Seen:
        seen = run_in_terminal(source, cwd=tmp_path, **options)
        assert seen.returncode == 0, seen.raw
        return seen

    return run


# ---------------------------------------------------------------------- the option


@pytest.mark.parametrize("value", [1, "yes", 0.5, []])
def test_it_is_a_bool_or_none(value: Any) -> None:
    with pytest.raises(TypeError, match="progress must be True, False or None"):
        weave(progress=value)


@pytest.mark.parametrize("value", [False, None])
def test_without_it_nothing_is_started_nor_loaded(
    value: bool | None, script: Callable[..., Any]
) -> None:
    done = script(f"""
        import sys, threading
        from wove import weave
        with weave(progress={value}) as w:
            @w.do
            async def names():
                return [thread.name for thread in threading.enumerate()]
        print(w.result.names, [name for name in sys.modules if name.startswith("wove.observe")])
    """)
    assert done.stdout == (
        "['MainThread'] ['wove.observe', 'wove.observe.events', 'wove.observe.reports', "
        "'wove.observe.tracing']\n"
    )
    assert done.stderr == ""


# ---------------------------------------------------------------------- a log


@pytest.mark.parametrize("form", FORMS)
def test_in_a_log_each_task_that_ends_is_a_line(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def declare(w: weave) -> None:
        @w.do
        def numbers() -> list[int]:
            return [1, 2, 3]

        @w.do("numbers")
        async def doubled(n: int) -> int:
            return 2 * n

        @w.do
        def total(doubled: list[int]) -> int:
            time.sleep(0.15)  # longer than between two looks
            return sum(doubled)

    assert run(form, declare, progress=True).total == 12
    assert watchers() == []
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [
        " numbers done",
        " doubled done",
        " total done",
        lines[3][5:],
    ]
    assert lines[1].startswith("wove: doubled done: 3 items, ")
    assert lines[3].startswith("wove: 3 done of 3 tasks, ")


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_is_shown_and_raised(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    under_way = threading.Event()

    def declare(w: weave) -> None:
        @w.do
        def bad() -> None:
            assert under_way.wait(20)
            raise LookupError("no")

        @w.do
        def never(bad: None) -> None:
            pass

        @w.do
        async def slow() -> None:
            under_way.set()
            await asyncio.sleep(30)

    assert isinstance(attempt(form, declare, progress=True).error, LookupError)
    assert watchers() == []
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("wove: bad failed with LookupError: ") for line in lines)
    assert any(line.startswith("wove: slow cancelled: ") for line in lines)
    assert (
        lines[-1].startswith("wove: 2 failed, 1 cancelled of 3")
        or "1 failed, 1 cancelled, 1 not run" in lines[-1]
    )
    assert not any("never" in line for line in lines)


def test_failures_retries_and_environment_of_a_map(capsys: pytest.CaptureFixture[str]) -> None:
    import wove

    wove.config(environments={"here": {"executor": "local"}})
    tried: set[int] = set()
    with weave(progress=True, error_mode="continue") as w:

        @w.do(range(40), workers=4, retries=1, environment="here")
        def item(n: int) -> int:
            if n % 10 == 0 and (n == 30 or n not in tried):
                tried.add(n)
                raise ValueError(n)
            return n

    assert isinstance(w.result.item, ValueError)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wove: item failed with ValueError: 40 items, ")
    assert "/s, 1 failed, 4 retries, in here, " in line


def test_a_long_map_is_mentioned_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SUMMARY_SECONDS", 0.2)
    with weave(progress=True) as w:

        @w.do(range(40), workers=2)
        def counted(n: int) -> None:
            time.sleep(0.05)

        @w.do((n for n in range(40)), workers=2)
        async def uncounted(n: int) -> None:
            await asyncio.sleep(0.05)

    lines = capsys.readouterr().err.splitlines()
    counted_lines = [line for line in lines if line.startswith("wove: counted running: ")]
    assert 2 <= len(counted_lines) <= 1 + w.result.timings["counted"] / 0.2
    assert all(" of 40 items (" in line and "%), " in line for line in counted_lines)
    uncounted_lines = [line for line in lines if line.startswith("wove: uncounted running: ")]
    assert uncounted_lines and not any("%" in line for line in uncounted_lines)
    assert "wove: uncounted done: 40 items, " in "\n".join(lines)


def test_in_the_background(capsys: pytest.CaptureFixture[str]) -> None:
    go = threading.Event()
    with weave(progress=True, background=True) as w:

        @w.do
        def waiting() -> None:
            go.wait(20)

    soon(watchers)
    go.set()
    assert w.wait(20)
    assert watchers() == []
    assert capsys.readouterr().err.startswith("wove: waiting done: ")


@pytest.mark.backend("stdio")
def test_in_a_detached_process(script: Callable[..., Any]) -> None:
    done = script("""
        from wove import weave
        with weave(progress=True, background=True, fork=True) as w:
            @w.do([1, 2, 3])
            def item(n):
                return n
        assert w.wait(20)
    """)
    assert done.stderr.startswith("wove: item done: 3 items, ")


def test_a_script_in_a_pipe(script: Callable[..., Any]) -> None:
    done = script("""
        from wove import weave
        with weave(progress=True) as w:
            @w.do
            def one():
                print("printed")
                return 1
    """)
    assert done.stdout == "printed\n"
    assert done.stderr.startswith("wove: one done: ")
    assert "\x1b" not in done.stderr


# ---------------------------------------------------------------------- what can go wrong


def _weave() -> int:
    with weave(progress=True) as w:

        @w.do
        def one() -> int:
            time.sleep(0.15)
            return 1

    return int(w.result.one)


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("broken")


def test_no_stderr_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert _weave() == 1


def test_a_closed_stderr(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert _weave() == 1
    assert caplog.records == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_that_fails_is_said_once(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = _Broken()
    monkeypatch.setattr(broken, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", broken)
    assert _weave() == 1
    (record,) = caplog.records
    assert record.name == "wove" and record.levelno == logging.WARNING
    assert "broken" in record.getMessage()
    assert watchers() == []


def test_a_look_that_fails_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("it changed")

    monkeypatch.setattr(sampling.Sampler, "rows", fail)
    assert _weave() == 1
    assert ["it changed" in record.getMessage() for record in caplog.records] == [True]


def test_no_thread_to_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("wove.observe.progress.threading.Thread", fail)
    with weave(progress=True) as w:

        @w.do
        async def one() -> int:
            return 1

    assert w.result.one == 1
    assert ["can't start" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_stderr_that_takes_nothing(form: str, script: Callable[..., Any]) -> None:
    """A pipe that nobody reads from: the weave ends all the same, and so does the script."""
    done = script(f"""
        import asyncio, fcntl, os, sys, time
        from wove import weave

        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            while True:
                os.write(writing, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writing, True)
        sys.stderr = open(writing, "w", closefd=False)

        def declare(w):
            @w.do
            def one():
                return 1

        async def main():
            ticks = 0
            async def tick():
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.05)
                    ticks += 1
            ticking = asyncio.create_task(tick())
            async with weave(progress=True) as w:
                declare(w)
            ticking.cancel()
            assert ticks > 5, ticks
            return w

        began = time.monotonic()
        if {form!r} == "with":
            with weave(progress=True) as w:
                declare(w)
        else:
            w = asyncio.run(main())
        assert w.result.one == 1
        print(time.monotonic() - began)
        sys.stderr = sys.__stderr__
    """)
    assert 0.5 < float(done.stdout) < 5


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        assert _weave() == 1


def test_it_costs_nothing_to_speak_of(capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(shown: bool) -> float:
        began = time.perf_counter()
        with weave(progress=shown) as w:

            @w.do(range(100_000), workers=8)
            def item(n: int) -> int:
                return n

        assert len(w.result.item) == 100_000
        return time.perf_counter() - began

    least_within(
        lambda: seconds(True), lambda: seconds(False), lambda without: 1.3 * without + 0.1, tries=12
    )


# ---------------------------------------------------------------------- a terminal


SCRIPT = """
    import logging, sys, time
    from wove import weave

    logging.basicConfig(format="%(message)s", level="INFO")
    failed = set()

    with weave(progress=True) as w:
        @w.do
        def numbers():
            time.sleep(0.25)
            return list(range(40))

        @w.do("numbers", workers=4, retries=1)
        def item(n):
            time.sleep(0.06)
            if n % 10 == 0 and n not in failed:
                failed.add(n)
                raise ValueError(n)
            print("printed", n)
            logging.info("logged %d", n)
            sys.stdout.write(f"in{n} ")
            print("pieces", n, file=sys.stderr)
            return n

        @w.do((n for n in range(4)))
        async def uncounted(n):
            pass

        @w.do
        def total(item):
            return sum(item)

    print(w.result.total)
"""


def test_on_a_terminal_it_is_redrawn_in_place(terminal: Callable[..., Seen]) -> None:
    seen = terminal(SCRIPT)
    frames = ["\n".join(frame) for frame in seen.frames]
    assert any("● numbers" in frame and "· item       waits" in frame for frame in frames)
    running = [line for frame in seen.frames for line in frame if line.startswith("● item")]
    assert any(
        "█░" in line and "/40  " in line and "/s  " in line and " retr" in line for line in running
    )
    assert any("eta 0." in line for line in running)
    assert any("✓ numbers" in frame and "● item" in frame for frame in frames)
    *_, numbers, item, uncounted, total, result = seen.lines
    assert numbers.startswith("✓ numbers    0.")
    assert item.startswith("✓ item       ████████████████████  40  ") and "  4 retries  " in item
    assert uncounted.startswith("✓ uncounted  ████████████████████  4  ")
    assert total.startswith("✓ total")
    assert result == "780"
    assert seen.terminal.column == 0


def test_what_tasks_print_meanwhile_is_not_garbled(terminal: Callable[..., Seen]) -> None:
    seen = terminal(SCRIPT)
    for n in range(40):
        assert any(line.endswith(f"printed {n}") for line in seen.lines), n
        assert any(line.endswith(f"logged {n}") for line in seen.lines), n
        assert any(f"pieces {n}" in line and "█" not in line for line in seen.lines), n
    assert sum("█" in line for line in seen.lines) == 2, (
        "each line of the display is there once, in the end"
    )
    assert seen.terminal.wrapped == 0


def test_the_streams_are_as_before_afterwards(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        import sys, time
        from wove import weave
        before = sys.stdout, sys.stderr
        with weave(progress=True) as w:
            @w.do
            def kept():
                time.sleep(0.3)
                assert "write" in vars(sys.stdout) and "write" in vars(sys.stderr)
                return sys.stdout.write
        assert (sys.stdout, sys.stderr) == before
        assert "write" not in vars(sys.stdout) and "write" not in vars(sys.stderr)
        w.result.kept("still fine\\n")
    """)
    assert seen.lines[-1] == "still fine"
    assert len(seen.lines) == 2


@pytest.mark.parametrize("how", ["flushed", "unbuffered"])
def test_a_line_that_is_not_ended_yet_stays(how: str, terminal: Callable[..., Seen]) -> None:
    seen = terminal(
        f"""
        import sys, time
        from wove import weave
        with weave(progress=True) as w:
            @w.do
            def dots():
                for _ in range(20):
                    print(".", end="", flush={how == "flushed"})
                    time.sleep(0.03)
        """,
        env={"PYTHONUNBUFFERED": "1" if how == "unbuffered" else ""},
    )
    dots, shown = seen.lines
    assert dots == "." * 20
    assert shown.startswith("✓ dots")
    assert any(
        frame[0].startswith("....") and frame[1].startswith("● dots")
        for frame in seen.frames
        if len(frame) > 1
    )


def test_subprocesses_write_to_the_terminal_too(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        import subprocess, sys, time
        from wove import weave
        with weave(progress=True) as w:
            @w.do
            def echo():
                for n in range(5):
                    time.sleep(0.15)
                    subprocess.run(["echo", f"said {n}"], check=True)
                time.sleep(0.15)
    """)
    assert seen.lines[:5] == [f"said {n}" for n in range(5)]
    assert len(seen.lines) == 6


def test_no_more_lines_than_there_is_room_for(terminal: Callable[..., Seen]) -> None:
    seen = terminal(
        """
        import time
        from wove import weave
        with weave(progress=True, max_workers=2) as w:
            def declare(n):
                def task():
                    time.sleep(0.03)
                task.__name__ = f"task{n}"
                w.do(task)
            for n in range(40):
                declare(n)
            @w.do
            def last(task39):
                time.sleep(0.3)
        """,
        lines=10,
    )
    assert seen.terminal.history == []
    assert all(len(frame) <= 10 for frame in seen.frames)
    assert any("● last" in frame[1] for frame in seen.frames if len(frame) > 1), (
        "what runs comes first"
    )
    assert "more: 41 done" in seen.lines[-1]
    assert len(seen.lines) == 8


@pytest.mark.parametrize("columns", [12, 30, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, terminal: Callable[..., Seen]) -> None:
    seen = terminal(
        """
        import time, wove
        from wove import weave
        wove.config(environments={"日本\\x1b[31m\\n語": {"executor": "local"}})
        with weave(progress=True) as w:
            @w.do(range(20), workers=2, environment="日本\\x1b[31m\\n語")
            def 日本語の長い名前の仕事(n):
                time.sleep(0.03)
            @w.do
            def a_name_that_is_rather_long_for_a_line_of_a_terminal(日本語の長い名前の仕事):
                time.sleep(0.15)
        """,
        columns=columns,
    )
    assert seen.terminal.wrapped == 0
    assert len(seen.lines) == 2
    if columns == 200:
        assert "日本語の長い名前の仕事" in seen.lines[0] and "in 日本?[31m?語" in seen.lines[0]


def test_a_terminal_that_only_knows_ascii(terminal: Callable[..., Seen]) -> None:
    seen = terminal(
        """
        import time
        from wove import weave
        with weave(progress=True) as w:
            @w.do(range(10), workers=2)
            def item(n):
                time.sleep(0.1)
        """,
        env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"},
    )
    assert any("* item  ##" in line for frame in seen.frames for line in frame)
    assert seen.raw.isascii()
    assert "m" not in seen.raw.replace("item", "").replace("\x1b[0m", "")


@pytest.mark.parametrize("why", ["dumb", "detached"])
def test_a_terminal_that_is_not_drawn_on(why: str, terminal: Callable[..., Seen]) -> None:
    seen = terminal(
        f"""
        import os, time
        from wove import weave
        if {why!r} == "detached":
            os.setsid()
        with weave(progress=True) as w:
            @w.do
            def one():
                time.sleep(0.2)
        """,
        env={"TERM": "dumb" if why == "dumb" else "xterm"},
    )
    assert "\x1b" not in seen.raw
    assert seen.raw.startswith("wove: one done: ")


@pytest.mark.backend("stdio")
def test_a_detached_process_does_not_draw_on_our_terminal(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        from wove import weave
        with weave(progress=True, background=True, fork=True) as w:
            @w.do
            def one():
                pass
        assert w.wait(20)
    """)
    assert "\x1b" not in seen.raw
    assert seen.raw.startswith("wove: one done: ")


def test_in_the_foreground_only(terminal: Callable[..., Seen]) -> None:
    """Put into the background by a shell, a script does not draw on the shell's terminal."""
    seen = terminal("""
        import os, signal, time
        from wove import weave
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.setsid()
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # now it is our controlling terminal
        others = os.fork()
        if not others:
            time.sleep(20)
            os._exit(0)
        os.setpgid(others, others)
        with weave(progress=True) as w:
            @w.do
            def before():
                time.sleep(0.4)
                os.tcsetpgrp(0, others)
            @w.do
            def away(before):
                time.sleep(0.4)
                print("--")
                time.sleep(0.4)
            @w.do
            def back(away):
                os.tcsetpgrp(0, os.getpgrp())
                time.sleep(0.4)
        os.kill(others, 9)
        os.waitpid(others, 0)
    """)
    running = {line.split()[1] for frame in seen.frames for line in frame if line.startswith("●")}
    assert running == {"before", "back"}
    assert "--" in seen.lines


def test_weaves_in_weaves_and_at_once_share_the_terminal(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        import threading, time
        from wove import weave
        both = threading.Barrier(2)
        with weave(progress=True) as w:
            @w.do([1.5, 2.5])
            def outer(seconds):
                with weave(progress=True) as v:
                    @v.do
                    def inner():
                        both.wait(30)
                        time.sleep(seconds)
                    @v.do
                    def said(inner):
                        print("said", seconds)
    """)
    shared = ["", "● outer", "● inner", "· said", "● inner", "· said"]
    assert any([line[:7].rstrip() for line in frame] == shared for frame in seen.frames)
    assert [line.split("  ")[0] for line in seen.lines] == [
        "said 1.5", "✓ inner", "✓ said", "said 2.5", "✓ inner", "✓ said", "✓ outer"
    ]  # fmt: skip


def test_a_fork_inside_a_task(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        import os, time, warnings
        from wove import weave
        warnings.simplefilter("ignore")  # about forking a process that has threads
        with weave(progress=True) as w:
            @w.do
            def parent():
                for n in range(10):
                    time.sleep(0.03)
                    child = os.fork()
                    if not child:
                        print("child", n)
                        with weave(progress=True) as v:
                            @v.do
                            async def quick():
                                pass
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
    """)
    for n in range(10):
        assert any(f"child {n}" in line for line in seen.lines)
    assert seen.lines[-1].startswith("✓ parent")


def test_an_interrupt_leaves_the_terminal_in_order(terminal: Callable[..., Seen]) -> None:
    seen = terminal("""
        import os, signal, threading, time
        from wove import weave
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            with weave(progress=True) as w:
                @w.do
                def stuck():
                    time.sleep(1)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    stuck, interrupted = seen.lines
    assert stuck.startswith("- stuck  cancelled  0.")
    assert interrupted == "interrupted"


# ---------------------------------------------------------------------- a notebook


class _Notebook:
    """What a kernel's IPython looks like, as far as it is looked at."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, dict[str, str], str]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw
        self.shown.append(("display", data, display_id))

    def update_display(self, data: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw
        self.shown.append(("update", data, display_id))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> _Notebook:
    book = _Notebook()
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", book)
    return book


def test_in_a_notebook_one_output_is_updated(
    notebook: _Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cell() -> None:
        with weave(progress=True) as w:

            @w.do(range(8), workers=1)
            def item(n: int) -> None:
                time.sleep(0.1)

    asyncio.run(cell())
    assert capsys.readouterr().err == ""
    assert [kind for kind, _, _ in notebook.shown][:2] == ["display", "update"]
    assert {kind for kind, _, _ in notebook.shown[1:]} == {"update"}
    assert len({identity for _, _, identity in notebook.shown}) == 1
    assert "/8" in notebook.shown[0][1]["text/plain"]
    last = notebook.shown[-1][1]
    assert last["text/plain"].startswith("✓ item  ████████████████████  8  ")
    assert last["text/html"] == f'<pre style="line-height:1.3">{last["text/plain"]}</pre>'


def test_a_notebook_without_a_display_gets_lines(
    notebook: _Notebook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "IPython.display")
    assert _weave() == 1
    assert capsys.readouterr().err.startswith("wove: one done: ")


# ---------------------------------------------------------------------- in words


def test_durations() -> None:
    said = [duration(seconds) for seconds in (0, 0.04, 9.99, 59.9, 60, 125, 3599, 3600, 100_000)]
    assert said[:5] == ["0.0 s", "0.0 s", "10.0 s", "59.9 s", "1 min 00 s"]
    assert said[5:] == ["2 min 05 s", "59 min 59 s", "1 h 00 min", "27 h 46 min"]


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        ("longer", 1, "…"),
        ("longer", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301te\u0301", 3, "e\u0301te\u0301"),
        ("a\nb\x1b[1m", 9, "a?b?[1m"),
    ],
)
def test_texts_fit(text: str, columns: int, shown: str) -> None:
    assert fit(text, columns, "…") == shown


def test_padded_to_columns_not_to_characters() -> None:
    assert fit("日本", 6, "…", pad=True) == "日本  "
    assert fit("ab", 6, "…", pad=True) == "ab    "


def test_what_runs_comes_first_then_what_ended_last() -> None:
    rows = [
        Row("waits", "waiting"),
        Row("old", "done", ended=1.0),
        Row("skipped", "skipped"),
        Row("new", "failed", ended=2.0),
        Row("runs", "running"),
    ]
    assert chosen(rows, 5) == rows
    assert [row.name for row in chosen(rows, 4)] == ["runs", "new", "old", "waits"]
    lines = live_lines(rows, 60, 3, ASCII)
    assert lines == [
        "* runs  0.0 s",
        "x new   failed  0.0 s",
        "  +3 more: 1 running, 1 done, 1 failed, 1 waiting, 1 not run",
    ]
    assert live_lines(rows, 60, 1, ASCII)[0].startswith("  +5 more: ")
    assert live_lines([], 60, 1, ASCII) == []


@pytest.mark.parametrize("columns", range(12))
def test_however_narrow(columns: int) -> None:
    row = Row("name", "running", mapped=True, items=1, total=2, rate=3.0)
    assert all(len(line) <= columns for line in live_lines([row], columns, 5, FANCY))


def test_lines_of_a_log() -> None:
    row = Row(
        "pdf",
        "running",
        seconds=61,
        mapped=True,
        items=4200,
        total=10_000,
        rate=81.26,
        retries=1,
        failed=2,
    )
    assert plain_line(row) == (
        "wove: pdf running: 4,200 of 10,000 items (42%), 81/s, 2 failed, 1 retry, 1 min 01 s"
    )
    assert plain_line(Row("one", "done", seconds=1.0)) == "wove: one done: 1.0 s"
    assert plain_line(Row("one", "cancelled", seconds=1.0)) == "wove: one cancelled: 1.0 s"
    assert (
        plain_line(Row("one", "done", mapped=True, items=1, total=1))
        == "wove: one done: 1 item, 0.0 s"
    )
    row = Row(
        "pdf",
        "failed",
        seconds=1,
        mapped=True,
        items=3,
        total=5,
        failed=1,
        error="ValueError",
        environment="farm",
    )
    assert (
        plain_line(row)
        == "wove: pdf failed with ValueError: 3 of 5 items, 1 failed, in farm, 1.0 s"
    )


def test_what_is_looked_at_while_it_grows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at all the time, from another thread, nothing is raised and nothing counted twice."""
    monkeypatch.setattr(progress._Plain, "seconds", 0.0)
    monkeypatch.setattr(progress, "LOOK_SHARE", 1.0)
    rows: list[Row] = []
    real = sampling.Sampler.rows

    def look(self: Any) -> list[Row]:
        found = real(self)
        rows.append(found[0])
        return found

    monkeypatch.setattr(sampling.Sampler, "rows", look)
    with weave(progress=True) as w:

        @w.do(range(20_000), workers=4)
        def item(n: int) -> int:
            return n

        @w.do(range(5_000))
        async def other(n: int) -> None:
            await asyncio.sleep(0.001 * (n % 5))

    counts = [row.items for row in rows]
    assert counts == sorted(counts)
    assert counts[-1] == 20_000
    assert len(set(counts)) > 3
    assert {row.total for row in rows if row.state != "waiting"} == {20_000}
    assert "wove: other done: 5,000 items, " in capsys.readouterr().err
