"""A worker process that talks over its stdin and stdout: one JSON frame a line.

Both sides of starting one stand here: what the parent gives it (:func:`child_environment`, :func:`boot_record`),
and what the worker makes of it (:func:`main`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import logging
import os
import select
import signal
import site
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from wove.concurrency import forks
from wove.errors import EnvironmentExecutionError
from wove.protocol import codec
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, READY, FrameError
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.pickling import declare_one_machine
from wove.worker import log_levels
from wove.worker.multiprocessing_child import adopt
from wove.worker.run_marks import RunMarks

if TYPE_CHECKING:
    from wove.worker.runner import Runner

__all__ = [
    "BOOT_VARIABLE",
    "LAUNCHED_FLAG",
    "REPORT_LOAD_FLAG",
    "boot_record",
    "child_environment",
    "main",
    "source_root",
]

_log = logging.getLogger("wove.worker")

#: The number of the descriptor from which a worker reads what it starts with: see `boot_record`.
BOOT_VARIABLE: Final = "WOVE_STDIO_BOOT"

#: Argument of the worker: emit the ``blocked`` heartbeats of :class:`~wove.worker.runner.Runner`.
REPORT_LOAD_FLAG: Final = "--report-load"

#: Argument of the worker: a launcher has started it, maybe on another machine. It reads what it starts with from the
#: first line of stdin, answers with `READY`, and ends when stdin does, whoever its parent is.
LAUNCHED_FLAG: Final = "--launched"

_PARENT_CHECK_MILLISECONDS: Final = 1000
_STOP_SECONDS: Final = 1.0  # for tasks to unwind once nobody waits for them any more
_EXIT_SECONDS: Final = 5  # for the exit handlers of the user's modules
_READ_BYTES: Final = 64 * 1024  # a pipe holds no more by default
_READ_MORE_BYTES: Final = 1024 * 1024  # in the middle of a long line


# --- the parent's side ------------------------------------------------------------------------------------


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for a worker that is to import ``wove``.

    It finds ``wove`` through ``PYTHONPATH``, where it is not installed. Start it with ``-P``, so that no ``json.py``
    in its working directory comes before Python's own.

    Args:
        environ: The environment variables that the task is to see.
    """
    environment = dict(environ)
    root = source_root()
    if root not in map(os.path.realpath, site.getsitepackages()):  # it looks there anyway
        paths = filter(None, (root, environ.get("PYTHONPATH")))
        environment["PYTHONPATH"] = os.pathsep.join(paths)

    return environment


def source_root() -> str:
    """Return the folder from which this process has imported ``wove``."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def boot_record(environ: Mapping[str, str], sys_path: Sequence[object] | None) -> dict[str, Any]:
    """Return the boot record of a worker, for the file that `BOOT_VARIABLE` names: it may be too long for a variable.

    The worker takes over *sys_path* and the log levels of this process. It puts ``PYTHONPATH`` back to what it was, so
    that the task sees what its weave saw.

    Args:
        environ: The environment variables that the task is to see.
        sys_path: Usually ``sys.path``; ``None``: the worker keeps its own.
    """
    return {
        "logging": log_levels.current(),
        "sys_path": None if sys_path is None else [e for e in sys_path if isinstance(e, str)],
        "pythonpath": environ.get("PYTHONPATH"),
    }


# --- the worker's side ------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve frames from stdin until it ends, ``shutdown`` comes, or the parent is gone.

    Args:
        arguments: `REPORT_LOAD_FLAG` and `LAUNCHED_FLAG`, or nothing; ``None``: those of the command line.
    """
    from wove.worker.runner import Runner  # here, because the parent reads this file too

    arguments = sys.argv[1:] if arguments is None else arguments
    launched = LAUNCHED_FLAG in arguments
    marks: RunMarks | None = None
    if not launched:
        declare_one_machine()
        marks = _take_over(os.environ)
    commands, events = _claim_stdio()
    parent = None if launched else os.getppid()
    _reset_signals()
    enough, wake = os.pipe()
    forks.track(commands, events, enough, wake)
    forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
    with contextlib.suppress(ImportError):
        importlib.import_module(
            "cloudpickle"
        )  # while the parent still pickles; a run says so if it is missing

    with contextlib.suppress(Exception):  # no stderr: then nobody reads it either
        # Says where a crash was: to the user, and to the parent, which tells from it whose run it was.
        faulthandler.enable()

    outbox = _Outbox(events, wake)
    runner = Runner(outbox.put, report_load=REPORT_LOAD_FLAG in arguments, marks=marks)

    lines = _lines(commands, enough, parent)
    if launched and (boot := next(lines, None)) is not None:
        _adopt(json.loads(b"".join(boot)))
        outbox.put({"type": READY})

    for line in lines:
        try:
            if _handle(line, runner):
                # Not here: cancels must still be heard, and the end of the parent noticed. And not in
                # the pool of tasks: those may fill it, and this waits for all of them.
                threading.Thread(target=_drain, args=(runner, wake), daemon=True).start()
        except Exception as error:
            _report_garbage(outbox, error)

    runner.close(_STOP_SECONDS)
    outbox.close(_STOP_SECONDS)
    _exit_in_time()


def _leave_it_to_the_parent(number: int, frame: object) -> None:
    del number, frame


def _drain(runner: Runner, wake: int) -> None:
    runner.drain()
    os.write(wake, b"!")


def _take_over(environ: MutableMapping[str, str]) -> RunMarks | None:
    """Import from where the parent imports, and hide from the task how that came about."""
    number = environ.pop(BOOT_VARIABLE, None)
    if number is None:
        return None  # started by hand, or by a command of the user's own
    with open(int(number), "rb") as file:
        boot = json.load(file)

    _adopt(boot)
    if boot["pythonpath"] is None:
        environ.pop("PYTHONPATH", None)
    else:
        environ["PYTHONPATH"] = boot["pythonpath"]

    descriptor = boot.get("marks")
    if descriptor is None:
        return None
    adopt(boot["tracker"], bytes.fromhex(boot["authentication_key"]))
    marks = RunMarks(descriptor)
    os.close(descriptor)
    return marks


def _adopt(boot: Mapping[str, Any]) -> None:
    """Import from where the sender does, unless this is another interpreter, and log what it logs."""
    if boot["sys_path"] is not None:
        sys.path[:] = boot["sys_path"]
    log_levels.adopt(boot["logging"])


def _reset_signals() -> None:
    """Undo what a process inherits from the thread that has started it."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # The system would then discard the exit statuses of the programs that tasks start.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Ctrl-C goes to every process of the terminal; the parent decides what it means for the tasks. A handler
    # and not SIG_IGN, because programs that tasks start would inherit that.
    signal.signal(signal.SIGINT, _leave_it_to_the_parent)


def _claim_stdio() -> tuple[int, int]:
    """Private descriptors for the frames; what tasks read is empty, and what they print goes to stderr."""
    commands, events = os.dup(0), os.dup(1)  # not inherited by programs that tasks start
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr
        os.dup2(nothing, 1)

    os.close(nothing)
    if sys.platform != "win32":  # where pipes block anyway
        os.set_blocking(commands, True)
        os.set_blocking(events, True)
    if (
        reconfigure := getattr(sys.stdout, "reconfigure", None)
    ) is not None:  # stdout itself may be None
        reconfigure(line_buffering=True)  # in step with what goes to stderr

    return commands, events


def reset_after_fork() -> None:
    """Let Ctrl-C interrupt a process that a task has forked, as usual."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _lines(commands: int, enough: int, parent: int | None) -> Iterator[list[bytes]]:
    """Yield the lines of the input, each in chunks, until it ends, *enough* is readable, or the parent is gone.

    The end of the input is not a sure sign of the last: another process may hold the pipe open.

    Args:
        commands: The descriptor of the input.
        enough: A descriptor that ends the input.
        parent: Process id of the parent; ``None``: the parent may go.
    """
    poll = select.poll() if hasattr(select, "poll") else None
    if poll is not None:
        poll.register(commands, select.POLLIN)
        poll.register(enough, select.POLLIN)

    line: list[bytes] = []

    while True:
        while poll is not None:
            ready = poll.poll(_PARENT_CHECK_MILLISECONDS)
            if any(descriptor == enough for descriptor, _ in ready) or (
                not ready and parent is not None and os.getppid() != parent
            ):
                return
            if ready:
                break
        data = os.read(commands, _READ_MORE_BYTES if line else _READ_BYTES)
        if not data:
            return
        first, *others = data.split(b"\n")
        if first:
            line.append(first)
        for following in others:
            if line:
                yield line
            line = [following] if following else []


def _handle(line: list[bytes], runner: Runner) -> bool:
    """Hand the frames of a line to the runner. True if one of them is a ``shutdown``."""
    if len(line) == 1 and not line[0].strip():
        return False
    frames = codec.decode(line)
    line.clear()  # it may be large, and the next one may be long in coming

    for frame in frames:
        kind = frame.get("type")
        if kind == "run_task":
            runner.submit(frame)
        elif kind == "cancel_task":
            runner.cancel(frame)
        elif kind == "shutdown":
            return True
        else:
            raise FrameError(f"{kind!r} is not a type of command", frame.get("run_id"))

    return False


def _report_garbage(outbox: _Outbox, error: Exception) -> None:
    _log.error("a line on stdin was skipped: %s", error)
    run_id = getattr(error, "run_id", None)
    if isinstance(run_id, str):
        refusal = EnvironmentExecutionError(f"the worker could not read the frame: {error}")
        fields = from_exception(refusal, task="?", source="transport")
        outbox.put({"type": "task_error", "run_id": run_id, **fields, "python": PYTHON})


def _exit_in_time() -> None:
    """End with the interpreter's usual clean-up, or without it if that hangs."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_EXIT_SECONDS)


class _Outbox:
    """Writes events, in a thread of its own, which takes along whatever has come up meanwhile.

    The thread gets the interpreter lock when a task waits or has computed for some milliseconds. So the
    events of many tiny tasks go out in one write, and that of a single one at once.

    Args:
        descriptor: Where it writes.
        wake: Gets a byte when nobody reads there any more, for the main thread to end the process.
    """

    def __init__(self, descriptor: int, wake: int) -> None:
        self._descriptor = descriptor
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._gate = threading.Lock()
        self._gate.acquire()
        self._asleep = True
        self._closed = False
        # Not from a pool: it writes until `close`, which joins it.
        self._thread = threading.Thread(target=self._run, name="wove-worker-output", daemon=True)
        self._thread.start()

    def put(self, event: dict[str, Any]) -> None:
        """Send *event* soon. Never blocks."""
        chunks = codec.encode(event)
        chunks.append(b"\n")
        with self._lock:
            self._waiting += chunks
            wake, self._asleep = self._asleep, False

        if wake:
            self._gate.release()

    def close(self, timeout: float) -> None:
        """Send what is left, for at most *timeout* seconds."""
        with self._lock:
            self._closed = True
            wake, self._asleep = self._asleep, False
        if wake:
            self._gate.release()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._gate.acquire()
            while True:
                with self._lock:
                    chunks, self._waiting = self._waiting, []
                    if not chunks:
                        self._asleep = not self._closed
                        break
                try:
                    self._write(chunks)
                except OSError as error:
                    _log.debug("cannot write to the parent: %s", error)
                    os.write(self._wake, b"!")
                    return
            if self._closed:
                return

    def _write(self, chunks: list[bytes]) -> None:
        small: list[bytes] = []
        size = 0

        for chunk in chunks:
            small.append(chunk)
            size += len(chunk)
            if size >= INLINE_BYTES:
                self._write_all(small)
                small, size = [], 0

        self._write_all(small)

    def _write_all(self, chunks: list[bytes]) -> None:
        view = memoryview(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        while view:
            view = view[os.write(self._descriptor, view) :]
