"""One worker process: its pipes, read and written without ever blocking the loop, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import relay
from wove.executors.stdio import resource_tracker

__all__ = ["WATCHES_PIPES", "Listener", "WorkerProcess", "describe_exit", "interpreter_flags"]

WATCHES_PIPES: Final = hasattr(os, "killpg")
"""Whether event loops can watch pipes, and processes inherit descriptors. Otherwise threads do the work:
`process_by_threads`."""

PIPE_BYTES: Final = 1024 * 1024
"""Asked of the kernel for each pipe; the default of Linux is 64 KiB, its limit for users 1 MiB."""

READ_BYTES: Final = 256 * 1024
"""Read at a time, so that one process with much to say does not keep the loop."""

WRITE_CHUNKS: Final = 256
"""Written at a time; the system's limit is 1024 (IOV_MAX)."""

STDERR_TAIL: Final = 4096
"""Number of last bytes on stderr that are kept for the message about an unexpected end."""

CRASH_TAIL: Final = 32 * 1024
"""Number of last bytes on stderr that are searched for the stack of a crash, among those of all threads."""

POLL_SECONDS: Final = 0.1
"""How often the end of a process is looked for, where the system cannot tell it (no pidfd)."""


_CRASHED: Final = re.compile(
    rb"Fatal Python error: (?P<kind>[^\n]*)\n.*?Current thread 0x(?P<thread>[0-9a-f]+)[^\n]*\n"
    rb"(?P<stack>(?:  [^\n]*\n)*)",
    re.DOTALL,
)


class Listener:
    """Receiver of what happens to a worker process. All calls come on the loop."""

    def lines(self, process: WorkerProcess, lines: list[list[bytes]]) -> None:
        """Called with complete lines of its stdout, each in chunks and without its line break."""
        raise NotImplementedError

    def ended(self, process: WorkerProcess) -> None:
        """Called when it has ended, and everything that it wrote has been seen."""
        raise NotImplementedError


class WorkerProcess:
    """A process that reads lines on stdin and writes lines on stdout.

    Its stderr goes to this process's stderr. It has a process group of its own: a Ctrl-C in the terminal
    is this process's to handle, and a kill reaches what the worker has started itself.

    Args:
        command: Program and arguments.
        cwd: Working directory; ``None`` for this process's.
        environ: Environment variables.
        listener: Is told what happens.
        inherits: Descriptors that the process gets, under the same numbers. They stay open here.
        linger_seconds: How long the process may stay after it has closed its stdout.
        tracker: The read end of a pipe with messages for the resource tracker, which this object closes; -1: none.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: str | None,
        environ: Mapping[str, str],
        listener: Listener,
        *,
        inherits: Sequence[int] = (),
        linger_seconds: float = 1.0,
        tracker: int = -1,
    ) -> None:
        self._set_state(listener, linger_seconds)
        self._tracker = tracker
        theirs: list[int] = []

        try:
            if tracker >= 0:
                self._open.add(tracker)
                forks.track(tracker)
                os.set_blocking(tracker, False)
            for mine_reads in (False, True, True):
                read_end, write_end = os.pipe()
                mine, their = (read_end, write_end) if mine_reads else (write_end, read_end)
                self._open.add(mine)
                theirs.append(their)
                os.set_blocking(mine, False)
                _enlarge(mine)
                forks.track(mine)
                if not mine_reads:
                    self._stdin = mine
                elif len(theirs) == 2:
                    self._stdout = mine
                else:
                    self._stderr = mine
            self._popen = subprocess.Popen(
                list(command),
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                cwd=cwd,
                env=dict(environ),
                process_group=0,
                pass_fds=tuple(inherits),
            )
        except BaseException:
            forks.release(*self._open)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

        self.pid = self._popen.pid
        self._owner = os.getpid()
        self._loop.add_reader(self._stdout, self._readable)
        self._loop.add_reader(self._stderr, self._stderr_readable)
        if tracker >= 0:
            self._loop.add_reader(tracker, self._tracker_readable)
        self._pidfd = _pidfd(self.pid)

        if self._pidfd >= 0:
            self._open.add(self._pidfd)
            forks.track(self._pidfd)
            self._loop.add_reader(self._pidfd, self._check_end)
        else:
            self._check_end()

    def _set_state(self, listener: Listener, linger_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._linger_seconds = linger_seconds
        self._unwritten: deque[bytes | memoryview] = deque()
        self.backlog = 0
        self._writing = False
        self._line: list[bytes] = []
        self._tail = b""
        self._closing_stdin = False
        self._poll: asyncio.TimerHandle | None = None
        self._tracker = -1
        self._tracker_rest = b""
        self._open: set[int] = set()
        self.ended = False
        self.read_error = ""  # why nothing more of it can be read

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen.returncode`."""
        return self._popen.returncode

    @property
    def stderr_tail(self) -> str:
        """Return the last lines that it wrote to stderr."""
        tail = self._tail
        if (found := _CRASHED.search(tail)) is not None:  # not the stacks of all other threads
            stack = b"Fatal Python error: %b\n%b" % (found["kind"], found["stack"])
            return "\n".join(stack.decode("utf-8", "replace").splitlines()[:20])
        text = tail[-STDERR_TAIL:].decode("utf-8", "replace").strip()
        return "\n".join(text.splitlines()[-20:])

    @property
    def crashed_thread(self) -> int | None:
        """Return the identity of the thread that crashed, where Python's `faulthandler` could say it."""
        if (found := _CRASHED.search(self._tail)) is None:
            return None
        return int(found["thread"], 16)

    # ------------------------------------------------------------------ to the process

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write *chunks* and a line break, now or as soon as the process reads."""
        if self._stdin not in self._open:
            return
        self._unwritten.extend(chunks)
        self._unwritten.append(b"\n")
        self.backlog += sum(map(len, chunks)) + 1
        if not self._writing:
            # At the end of this turn of the loop: what else is written in it goes out with it.
            self._writing = True
            self._loop.call_soon(self._flush)

    def close_stdin(self) -> None:
        """Tell the process that nothing more comes, after what has been written."""
        self._closing_stdin = True
        if not self._writing:
            self._close(self._stdin)

    def _flush(self) -> None:
        descriptor = self._stdin
        if descriptor not in self._open:
            return
        unwritten = self._unwritten
        budget = PIPE_BYTES
        while unwritten and budget > 0:
            try:
                written = os.writev(descriptor, list(islice(unwritten, WRITE_CHUNKS)))
            except BlockingIOError:
                break
            except OSError:  # it does not read any more; that it has ended is told elsewhere
                unwritten.clear()
                self.backlog = 0
                self._close(descriptor)
                return
            self.backlog -= written
            budget -= written
            while written:
                first = unwritten.popleft()
                if len(first) > written:
                    unwritten.appendleft(memoryview(first)[written:])
                    break
                written -= len(first)

        if unwritten:
            self._loop.add_writer(descriptor, self._flush)
            return

        self._writing = False
        self._loop.remove_writer(descriptor)
        if self._closing_stdin:
            self._close(descriptor)

    def kill(self) -> None:
        """End the process, and what it has started, at once."""
        self._signal(signal.SIGKILL)

    def terminate(self, seconds: float) -> None:
        """Close stdin and ask the process to end (SIGTERM); after *seconds*, end it."""
        self._close(self._stdin)
        self._signal(signal.SIGTERM)
        self._loop.call_later(seconds, self.kill)

    def _signal(self, number: signal.Signals) -> None:
        if self._popen.returncode is None and os.getpid() == self._owner:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    # ------------------------------------------------------------------ from the process

    def _readable(self) -> None:
        lines: list[list[bytes]] = []
        # First: the end of a run must not overtake the segments that it has registered.
        self._tracker_readable()

        try:
            going_on = self._read_lines(lines)
        except MemoryError:
            self._line.clear()  # gives some back
            going_on, self.read_error = (
                False,
                "this process had not enough memory to read its answer",
            )

        if not going_on:
            self._stdout_ended(lines)
        if lines:
            self._listener.lines(self, lines)

    def _stdout_ended(self, lines: list[list[bytes]]) -> None:
        self._close(self._stdout)
        if self._line:
            lines.append(self._line)
            self._line = []
        # A worker that cannot answer any more is of no use, even if it still runs.
        self._loop.call_later(self._linger_seconds, self.kill)

    def _read_lines(self, lines: list[list[bytes]]) -> bool:
        """Read once and add what lines are complete; False at the end of the stream."""
        try:
            data = os.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False

        if not data:
            return False
        self._split(data, lines)
        return True

    def _split(self, data: bytes, lines: list[list[bytes]]) -> None:
        """Add what lines are complete with *data*."""
        parts = data.split(b"\n")
        if len(parts) == 1:
            self._line.append(data)
            return

        self._line.append(parts[0])
        lines.append(self._line)
        lines.extend([part] for part in parts[1:-1])
        self._line = [parts[-1]] if parts[-1] else []

    def _tracker_readable(self) -> None:
        if self._tracker not in self._open:
            return
        try:
            data = os.read(self._tracker, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""

        if data:
            self._tracker_rest = resource_tracker.forward(self._tracker_rest + data)
        else:
            self._close(self._tracker)

    def _stderr_readable(self) -> None:
        try:
            data = os.read(self._stderr, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""

        if data:
            self._keep_stderr(data)
        else:
            self._close(self._stderr)

    def _keep_stderr(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-CRASH_TAIL:]
        relay.submit(_print, data)

    # ------------------------------------------------------------------ its end

    def _check_end(self) -> None:
        if self._popen.poll() is None:
            if self._pidfd < 0:
                self._poll = self._loop.call_later(POLL_SECONDS, self._check_end)
            return

        if self.ended:
            return
        self.ended = True
        # It has written what it wrote: it is all in the pipes now. What it started may hold them open for
        # long, so their end is not waited for.
        lines: list[list[bytes]] = []
        self._tracker_readable()
        while self._stdout in self._open and _has_data(self._stdout):
            if not self._read_lines(lines):
                break

        while self._stderr in self._open and _has_data(self._stderr):
            self._stderr_readable()
        self.close()
        if lines:
            self._listener.lines(self, lines)
        self._listener.ended(self)

    def close(self) -> None:
        """Close all that is open here. The process is not touched."""
        for descriptor in list(self._open):
            self._close(descriptor)
        if self._poll is not None:
            self._poll.cancel()

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.discard(descriptor)
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            forks.release(descriptor)


def interpreter_flags() -> list[str]:
    """Return the options this interpreter was started with (-X, -W, -O, ...), as multiprocessing hands them on."""
    return cast("list[str]", subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def describe_exit(returncode: int | None) -> str:
    """Return ``"exit status 3"`` or ``"signal SIGKILL"``, with a hint where there is a usual reason."""
    if returncode is None:
        return "an unknown status"
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)

    hint = " (from outside: often because memory ran out)" if -returncode == signal.SIGKILL else ""
    return f"signal {name}{hint}"


def _print(data: bytes) -> None:
    stream = sys.stderr
    try:
        stream.write(data.decode("utf-8", "replace"))
        stream.flush()
    except Exception:  # no stderr, or a closed one: it cannot be said anywhere
        pass


def _has_data(descriptor: int) -> bool:
    import select

    if hasattr(select, "poll"):  # select() takes no descriptor above 1023
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return any(mask & select.POLLIN for _, mask in poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


def _enlarge(descriptor: int) -> None:
    import fcntl  # here, because Windows has none, and no pipes that come here

    command = getattr(fcntl, "F_SETPIPE_SZ", None)
    if command is not None:
        with contextlib.suppress(OSError):  # the user's limit for all pipes together is reached
            fcntl.fcntl(descriptor, command, PIPE_BYTES)


def _pidfd(pid: int) -> int:
    opener: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    if opener is None:
        return -1
    try:
        return opener(pid)
    except OSError:  # a kernel without it, or a sandbox that does not allow it
        return -1
