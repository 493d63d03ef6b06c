"""A worker process whose pipes threads read and write: for systems whose event loop watches sockets only (Windows).

::

    loop                          threads, one for each pipe
    write, close_stdin  ------->  queue -> stdin
    lines, stderr       <-------  stdout, stderr

What `WorkerProcess` does without threads is done there. Written for Windows, and run by the tests on Linux.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import IO, Final

from wove.executors.stdio.process import POLL_SECONDS, READ_BYTES, Listener, WorkerProcess

__all__ = ["ThreadWorkerProcess"]

STDIN, STDOUT, STDERR = 0, 1, 2
"""Stand for the pipes among those that are open. Their descriptors belong to the threads."""

NEW_GROUP: Final = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
"""Keeps a Ctrl-C in the terminal from the process."""


class ThreadWorkerProcess(WorkerProcess):
    """As `WorkerProcess`, but for what the system lacks: a kill does not reach what the worker has started itself, and
    the worker inherits no descriptors, so that it takes what it starts with from its stdin."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: str | None,
        environ: Mapping[str, str],
        listener: Listener,
        *,
        linger_seconds: float = 1.0,
    ) -> None:
        self._set_state(listener, linger_seconds)
        self._popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=dict(environ),
            creationflags=NEW_GROUP,
        )
        self.pid = self._popen.pid
        self._owner = os.getpid()
        self._stdin, self._stdout, self._stderr = STDIN, STDOUT, STDERR
        self._open = {STDIN, STDOUT, STDERR}
        self._outgoing: SimpleQueue[list[bytes | memoryview] | None] = SimpleQueue()
        self._linger_until: float | None = None

        popen = self._popen
        self._start_thread(self._write_all, popen.stdin)
        self._start_thread(self._read_all, popen.stdout, self._on_stdout)
        self._start_thread(self._read_all, popen.stderr, self._on_stderr)
        self._check_end()

    def _start_thread(self, work: Callable[..., object], *args: object) -> None:
        # A daemon: a process that the worker has started may hold the pipe open for long.
        threading.Thread(target=work, args=args, name=f"wove-pipe-{self.pid}", daemon=True).start()

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(callback, *args)

    # ------------------------------------------------------------------ in threads

    def _read_all(self, pipe: IO[bytes], on_data: Callable[[bytes], object]) -> None:
        with pipe:
            while True:
                try:
                    data = pipe.read(READ_BYTES)
                except (OSError, MemoryError):
                    data = b""
                self._post(on_data, data)
                if not data:
                    return

    def _write_all(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:  # closing a pipe that nobody reads may fail, too
            while (chunks := self._outgoing.get()) is not None:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        written = pipe.write(view)
                        view = view[written:]
                        self._post(self._on_written, written)

    # ------------------------------------------------------------------ on the loop

    def _flush(self) -> None:
        self._writing = False
        if self._stdin not in self._open:
            return
        chunks = list(self._unwritten)
        self._unwritten.clear()
        self._outgoing.put(chunks)
        if self._closing_stdin:
            self._close(self._stdin)

    def _on_written(self, count: int) -> None:
        self.backlog -= count

    def _on_stdout(self, data: bytes) -> None:
        if STDOUT not in self._open:
            return
        lines: list[list[bytes]] = []
        if data:
            self._split(data, lines)
        else:
            self._stdout_ended(lines)
            self._check_end()
        if lines:
            self._listener.lines(self, lines)

    def _on_stderr(self, data: bytes) -> None:
        if data:
            self._keep_stderr(data)
        else:
            self._close(STDERR)
            self._check_end()

    def _check_end(self) -> None:
        """Look whether it has ended, and all that it wrote has been read."""
        if self._poll is not None:
            self._poll.cancel()
        if self.ended:
            return
        now = self._loop.time()
        if self._popen.poll() is not None and self._linger_until is None:
            self._linger_until = now + self._linger_seconds

        reading = self._open & {STDOUT, STDERR}
        if self._linger_until is None or (reading and now < self._linger_until):
            self._poll = self._loop.call_later(POLL_SECONDS, self._check_end)
            return

        self.ended = True
        self.close()
        self._listener.ended(self)

    def kill(self) -> None:
        if self._popen.returncode is None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._popen.kill()

    def terminate(self, seconds: float) -> None:
        self._close(self._stdin)
        if self._popen.returncode is None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._popen.terminate()
        self._loop.call_later(seconds, self.kill)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.discard(descriptor)
            if descriptor == STDIN:
                self._outgoing.put(None)
