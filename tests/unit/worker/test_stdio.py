"""Real worker processes, spoken to in plain JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.kept import gone

import wove
from wove.protocol import codec
from wove.protocol.faults import to_exception
from wove.protocol.frames import TERMINAL
from wove.protocol.pickling import dumps, loads
from wove.worker.run_marks import shared_file
from wove.worker.stdio import BOOT_VARIABLE, REPORT_LOAD_FLAG, boot_record, child_environment

COMMAND = [sys.executable, "-P", "-m", "wove.stdio_worker"]
ROOT = str(Path(wove.__file__).resolve().parents[1])


class Worker:
    """A worker process."""

    def __init__(self, *arguments: str, path: list[str] | None = None, **options: Any) -> None:
        theirs = options.pop("env", os.environ)
        boot = shared_file(
            json.dumps(boot_record(theirs, sys.path if path is None else path)).encode()
        )
        environ = {**child_environment(theirs), BOOT_VARIABLE: str(boot)}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            pass_fds=[boot],
            **options,
        )
        os.close(boot)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def write(self, *lines: bytes) -> None:
        for line in lines:
            self.stdin.write(line)
        self.stdin.flush()

    def send(self, function: Any, run_id: str = "r", /, fields: Any = (), **args: Any) -> None:
        frame = {
            "type": "run_task",
            "run_id": run_id,
            "task_id": "pdf",
            "callable_pickle": dumps(function, label="f"),
            "args_pickle": dumps(args, label="a"),
            **dict(fields),
        }
        self.write(*codec.encode(frame), b"\n")

    def event(self) -> dict[str, Any]:
        line = self.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read().decode()
        (event,) = codec.decode(line)
        return event

    def terminal(self) -> dict[str, Any]:
        while (event := self.event())["type"] not in TERMINAL:
            pass
        return event

    def outcome(self) -> Any:
        event = self.terminal()
        if event["type"] == "task_result":
            return loads(event["result_pickle"], label="r")
        return "cancelled" if event["type"] == "task_cancelled" else to_exception(event, task="pdf")

    def call(self, function: Any, /, **args: Any) -> Any:
        self.send(function, **args)
        return self.outcome()

    def end(self) -> str:
        """Close its stdin, wait for its end; what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=30)
        return errors.decode()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.process.stdout and worker.process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.process.kill()
    worker.process.wait()
    worker.process.stderr and worker.process.stderr.close()


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def test_a_task_there_and_back(worker: Worker) -> None:
    worker.send(lambda x: (x + 1, os.getpid()), x=1)
    assert worker.event() == {
        "type": "task_started",
        "run_id": "r",
        "task_id": "pdf",
        "host": os.uname().nodename,
        "pid": worker.process.pid,
    }
    assert worker.outcome() == (2, worker.process.pid)
    assert worker.end() == "" and worker.process.returncode == 0


def test_what_tasks_print_goes_to_stderr(worker: Worker) -> None:
    def chatter() -> str:
        print("printed")
        os.write(1, b"written\n")
        os.system("echo shouted")
        subprocess.run([sys.executable, "-c", "print('called')"], check=True)
        return sys.stdin.read() + input_of_a_child()

    def input_of_a_child() -> str:
        return subprocess.run(["cat"], capture_output=True, text=True, check=True).stdout

    assert worker.call(chatter) == ""
    assert worker.end().split() == ["printed", "written", "shouted", "called"]


def test_exits_of_tasks_do_not_end_the_worker(worker: Worker) -> None:
    assert type(worker.call(lambda: sys.exit(3))) is SystemExit
    assert worker.call(lambda: 5) == 5


def test_tasks_use_processes_and_loops(worker: Worker) -> None:
    def child(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.getppid() == pid
        return False

    def fork() -> int:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(abs, (-3,))

    def spawn() -> int:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(abs, (-4,))

    assert worker.call(fork) == 3
    assert worker.call(spawn) == 4
    assert worker.call(lambda: child(0)) is False


def test_a_process_that_a_task_forks_does_not_hold_the_pipes() -> None:
    worker = Worker()

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        return pid

    pid = worker.call(fork)
    try:
        worker.process.kill()
        assert worker.stdout.read() == b""  # the end, and not a minute's wait
    finally:
        os.kill(pid, signal.SIGKILL)
        worker.end()


def test_lines_that_are_no_frames_are_reported_and_skipped(worker: Worker) -> None:
    worker.write(b"\n", b"  \n", b"hello\n", b"\xff\xfe\n", b"[1, 2]\n", b'{"type": "dance"}\n')
    worker.write(b'{"type": "run_task", "run_id": "broken", "args_pickle": "A"\n')
    error = worker.terminal()
    assert error["run_id"] == "broken" and error["error"]["source"] == "transport"
    worker.write(b'{"type": "dance", "run_id": "odd"}\n')
    assert "'dance' is not a type of command" in str(worker.outcome())
    worker.write(b'{"type": "run_task", "run_id": "empty"}\n')
    assert "without its callable" in str(worker.outcome())
    assert worker.call(lambda: 5) == 5
    assert worker.end().count("a line on stdin was skipped") == 6


def test_many_frames_in_a_line_and_a_line_in_many_pieces(worker: Worker) -> None:
    frame = {"type": "run_task", "task_id": "pdf", "callable_pickle": dumps(lambda: 5, label="f")}
    frames = [b"".join(codec.encode({**frame, "run_id": str(i)})) for i in range(3)]
    line = b'{"events": [' + b", ".join(frames) + b"]}\r\n"
    for i in range(0, len(line), 11):
        worker.write(line[i : i + 11])
    assert [worker.outcome() for _ in range(3)] == [5, 5, 5]


def test_large_frames_both_ways(worker: Worker) -> None:
    data = os.urandom(1_000_000) * 20
    assert worker.call(lambda data: data[::-1], data=data) == data[::-1]


def test_cancel(worker: Worker) -> None:
    def spin() -> None:
        while True:
            time.sleep(0.001)

    worker.send(spin)
    assert worker.event()["type"] == "task_started"
    worker.write(
        b'{"type": "cancel_task", "run_id": "unknown"}\n{"type": "cancel_task", "run_id": "r"}\n'
    )
    assert worker.outcome() == "cancelled"


def test_shutdown_finishes_what_runs(worker: Worker, tmp_path: Path) -> None:
    flag = tmp_path / "go"

    def wait() -> int:
        while not flag.exists():
            time.sleep(0.005)
        return 7

    worker.send(wait)
    assert worker.event()["type"] == "task_started"
    worker.write(b'{"type": "shutdown"}\n')
    worker.send(lambda: 5, "late")
    assert "shutting down" in str(worker.outcome())
    flag.touch()
    assert worker.outcome() == 7
    assert worker.process.wait(30) == 0


def test_shutdown_with_nothing_to_do(worker: Worker) -> None:
    worker.write(b'{"type": "shutdown"}\n')
    assert worker.process.wait(30) == 0


def block() -> None:
    threading.Event().wait()


def test_the_end_of_its_input_ends_it_whatever_runs() -> None:
    worker = Worker()
    worker.send(lambda: threading.Event().wait(), "1")
    worker.send(
        lambda: threading.Thread(target=threading.Event().wait).start(), "2"
    )  # not a daemon
    worker.terminal()
    worker.end()
    assert worker.process.returncode is not None


def test_nobody_reads_any_more(worker: Worker) -> None:
    worker.stdout.close()
    worker.send(lambda: 5)
    assert worker.process.wait(30) == 0


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Also while another process holds its stdin open."""
    script = (
        "import os, subprocess, sys, time\n"
        "from wove.worker.stdio import child_environment\n"
        f"worker = subprocess.Popen({COMMAND!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,\n"
        "                          env=child_environment(os.environ))\n"
        "holder = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'],\n"
        "                          pass_fds=[worker.stdin.fileno(), worker.stdout.fileno()])\n"
        "worker.stdin.write(b'hello\\n'); worker.stdin.flush()\n"
        "print(worker.pid, holder.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    environ = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as parent:
        assert parent.stdout and parent.stderr
        worker, holder = map(int, parent.stdout.readline().split())
        try:
            assert b"skipped" in parent.stderr.readline()  # it serves
            parent.kill()
            until(lambda: gone(worker))
        finally:
            os.kill(holder, signal.SIGKILL)


def test_ctrl_c_is_left_to_the_parent(worker: Worker) -> None:
    assert worker.call(lambda: 1) == 1
    worker.process.send_signal(signal.SIGINT)
    assert worker.call(lambda: 5) == 5

    def interruptible() -> int:
        program = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=False
        ).returncode

    assert worker.call(interruptible) == -signal.SIGINT


def test_it_imports_what_its_parent_imports(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("ANSWER = 42\n")
    worker = Worker(path=[str(tmp_path), *sys.path], env={**os.environ, "PYTHONPATH": "/somewhere"})

    def look() -> tuple[object, ...]:
        import only_here  # type: ignore[import-not-found]

        return (
            only_here.ANSWER,
            sys.path[0],
            os.environ["PYTHONPATH"],
            "WOVE_STDIO_BOOT" in os.environ,
        )

    assert worker.call(look) == (42, str(tmp_path), "/somewhere", False)
    worker.end()


def test_no_pythonpath_stays_none() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    worker = Worker(env=environ)
    assert worker.call(lambda: os.environ.get("PYTHONPATH")) is None
    worker.end()


def test_modules_of_the_working_directory_do_not_get_in_its_way(tmp_path: Path) -> None:
    for name in ("json", "random", "threading", "pickle", "select", "cloudpickle"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    # A PYTHONPATH with "." in it would ask for them.
    worker = Worker(cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert worker.call(lambda: os.getcwd()) == str(tmp_path)
    worker.end()


def test_child_environment() -> None:
    environ = {"A": "1", "PYTHONPATH": "/x"}
    child = child_environment(environ)
    record = boot_record(environ, ["/a", "", Path("/not/text")])
    assert (record["sys_path"], record["pythonpath"]) == (["/a", ""], "/x")
    assert boot_record(environ, None)["sys_path"] is None
    assert child["A"] == "1" and child["PYTHONPATH"].split(os.pathsep)[-1] == "/x"
    assert environ == {"A": "1", "PYTHONPATH": "/x"}


def test_load_is_reported_if_asked_for() -> None:
    worker = Worker(REPORT_LOAD_FLAG)
    worker.send(block)
    assert worker.event()["type"] == "task_started"
    event = worker.event()
    assert (event["type"], event["blocked"], event["running"], event["run_id"]) == (
        "heartbeat",
        True,
        1,
        "r",
    )
    worker.end()


def test_importing_it_does_nothing(worker: Worker) -> None:
    code = (
        "import sys; import wove.stdio_worker; "
        "sys.exit(str([m for m in ('asyncio', 'cloudpickle', 'socket', 'wove.worker.runner') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (1, b"[]\n")
