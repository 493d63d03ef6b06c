"""Lines at the bottom of a terminal that are redrawn in place, while others go on writing to it.

The cursor always stays where the program's own output left it, and the lines are painted below
it. So whatever is written, by whomever, lands above them, and the next painting begins with
erasing everything after the cursor: nothing has to be counted, and a terminal that is resized, or
a subprocess that writes to it too, does no harm for longer than until then.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from wove.concurrency import forks

__all__ = ["Screen", "screen_of", "send"]

ERASE = "\x1b[J"
DOWN = "\x1bD"  # as a line feed, but in the same column
SAVE, RESTORE, PLAIN = "\x1b7", "\x1b8", "\x1b[0m"

WRITE_SECONDS = 1.0
"""How long a stream that does not block may refuse to take what is written."""


def send(stream: TextIO, text: str) -> None:
    """Write *text* at once.

    Past the buffer of *stream* where it has one: a thread that is stuck in writing must not own the
    lock of that buffer when the interpreter ends.
    """
    if type(stream) is not io.TextIOWrapper:
        stream.write(text)
        stream.flush()
        return

    stream.flush()
    descriptor = stream.fileno()
    left = memoryview(text.encode(stream.encoding, "replace"))
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            if not select.select([], [descriptor], [], WRITE_SECONDS)[1]:
                return


class _Taken:
    """A stream whose output goes above the lines at once, and not over them until they are painted again.

    It stays the same object, because many a logging handler holds on to it. As before, what is no
    whole line yet waits, for the rest of the line or to be flushed; but for each thread apart: now
    that to write takes longer, lines of several threads would often run into each other.
    """

    MOST = 8192

    def __init__(self, stream: io.TextIOWrapper, put: Callable[[_Taken, str], object]) -> None:
        self.stream = stream
        self.write = stream.write
        self.flush = stream.flush
        self._put = put
        self._begun: dict[int, tuple[str, int]] = {}
        self._round = 0
        self._own = {"write": self._write, "flush": self._flush}
        self._given_back = False
        vars(stream).update(self._own)

    def _write(self, text: str) -> int:
        if self._given_back:  # somebody has kept the method
            return self.write(text)
        thread = threading.get_ident()
        before, since = self._begun.pop(thread, ("", self._round))
        begun = before + text
        if "\n" in text or "\r" in text or len(begun) > self.MOST:
            self._put(self, begun)
        else:
            self._begun[thread] = begun, since

        return len(text)

    def _flush(self) -> None:
        begun = self._begin(threading.get_ident())
        if begun:
            self._put(self, begun)
        self.flush()

    def _begin(self, thread: int) -> str:
        return self._begun.pop(thread, ("", 0))[0]

    def look(self) -> None:
        """A stream that waits for no end of a line: let out what has been waiting since the last look."""
        self._round += 1
        if self.stream.write_through:
            for thread, (_, since) in self._begun.copy().items():
                if since < self._round - 1:
                    self._put(self, self._begin(thread))

    def let_out(self) -> None:
        """Write what waits."""
        for thread in self._begun.copy():
            self._put(self, self._begin(thread))

    def give_back(self) -> None:
        """Have the stream as it was."""
        self._given_back = True
        for name, method in self._own.items():
            if vars(self.stream).get(name) == method:
                del vars(self.stream)[name]


class Screen:
    """The bottom of the terminal behind *stream*. May be used from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        # The same thread may come twice: a signal handler or a finalizer may print.
        self._lock = threading.RLock()
        self._panels: dict[object, list[str]] = {}
        self._painted = False
        self._in_line = False
        self._taken: list[_Taken] = []

    def room(self) -> tuple[int, int]:
        """How many columns each line, and how many lines each user of the screen may have."""
        try:
            columns, lines = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError):
            columns = lines = 0
        # One column less than there is: a full line would wrap on some terminals. One line is the cursor's.
        return (columns or 80) - 1, max(1, ((lines or 24) - 2) // max(1, len(self._panels)))

    def show(self, owner: object, lines: Sequence[str]) -> None:
        """Show *lines* in place of those that *owner* showed before."""
        with self._lock:
            if not self._panels:
                self._take_streams()
            self._panels[owner] = list(lines)
            for taken in self._taken:
                taken.look()
            self._paint()

    def leave(self, owner: object, lines: Sequence[str]) -> None:
        """Leave *lines* on the terminal for good, as ordinary output; *owner* shows nothing any more."""
        with self._lock:
            self._panels.pop(owner, None)
            if not self._panels:
                self._give_streams_back()
            begin = "\r\n" if self._in_line else ""
            erase = ERASE if self._painted else ""
            self._painted = self._in_line = False
            send(self.stream, erase + begin + "".join(f"{line}\r\n" for line in lines))
            self._paint()

    def abandon(self, owner: object) -> None:
        """*owner* has failed, perhaps because of this screen; it shows nothing any more."""
        with self._lock:
            self._panels.pop(owner, None)
            if not self._panels:
                self._painted = False  # from now on it is only written
                self._give_streams_back()

    def reset_after_fork(self) -> None:
        """This is the child of a fork: the displays are the parent's."""
        # Not the old lock: a thread that is not there any more may hold it.
        self._lock = threading.RLock()
        self._painted = False
        self._panels.clear()
        for taken in self._taken:
            taken.give_back()
        self._taken.clear()

    def _paint(self) -> None:
        lines = [line for panel in self._panels.values() for line in panel]
        if not lines or not _in_foreground(self.stream):
            self._painted = False
            return

        # First make room below the cursor, which may scroll; only then is its place worth saving.
        room = DOWN * len(lines) + f"\x1b[{len(lines)}A"
        below = "".join(f"\r\n{line}" for line in lines)
        send(self.stream, f"{ERASE}{room}{SAVE}{PLAIN}{below}{RESTORE}")
        self._painted = True

    def _take_streams(self) -> None:
        for stream in dict.fromkeys((self.stream, sys.stderr, sys.stdout)):
            if type(stream) is io.TextIOWrapper and "write" not in vars(stream):
                with contextlib.suppress(Exception):
                    if stream.isatty():
                        self._taken.append(_Taken(stream, self._put))

    def _give_streams_back(self) -> None:
        for taken in self._taken:
            self._quietly(taken.let_out)
            taken.give_back()
        self._taken.clear()

    def _put(self, taken: _Taken, text: str) -> None:
        """Write *text* above the lines."""
        with self._lock:
            if self._painted:
                self._quietly(lambda: send(self.stream, ERASE))
            taken.write(text)
            taken.flush()
            if text:
                self._in_line = not text.endswith("\n")
            if self._painted:
                self._quietly(self._paint)

    def _quietly(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except Exception:  # who prints has nothing to do with it; the display will notice by itself
            self._painted = False

    @property
    def used(self) -> bool:
        """Whether anybody shows lines."""
        return bool(self._panels)


def _in_foreground(stream: TextIO) -> bool:
    """Whether the terminal is ours to draw on: not that of a shell which has put us into the background."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return True  # not our controlling terminal, but one all the same


_screens: list[Screen] = []
_guard = threading.Lock()


def screen_of(stream: TextIO) -> Screen:
    """The screen behind *stream*: the same one for all weaves that show their progress at once."""
    with _guard:
        _screens[:] = [screen for screen in _screens if screen.used or screen.stream is stream]
        for screen in _screens:
            if screen.stream is stream:
                return screen
        _screens.append(Screen(stream))
        return _screens[-1]


def reset_after_fork() -> None:
    """The displays stay in the parent, and a lock that one of them held would never be released here."""
    global _guard
    _guard = threading.Lock()
    for screen in _screens:
        screen.reset_after_fork()
    _screens.clear()


forks.after_in_child(forks.Phase.CACHES, reset_after_fork)
