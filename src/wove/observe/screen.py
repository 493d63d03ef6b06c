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


class Screen:
    """The bottom of the terminal behind *stream*. May be used from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        # The same thread may come twice: a signal handler or a finalizer may print.
        self._lock = threading.RLock()
        self._panels: dict[object, list[str]] = {}
        self._painted = False
        self._in_line = False
        self._taken: list[tuple[TextIO, Callable[[str], int]]] = []

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

    def abandon(self) -> None:
        """Forget everything: the display failed, or this is the child of a fork."""
        self._painted = False
        self._panels.clear()
        self._give_streams_back()
        self._lock = threading.RLock()

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

    # What the tasks print goes above the lines at once, and not over them until they are painted
    # again. The streams are not replaced, because many a logging handler holds on to one.

    def _take_streams(self) -> None:
        for stream in dict.fromkeys((self.stream, sys.stderr, sys.stdout)):
            if type(stream) is io.TextIOWrapper and "write" not in vars(stream):
                with contextlib.suppress(Exception):
                    if stream.isatty():
                        self._take(stream)

    def _take(self, stream: TextIO) -> None:
        write = stream.write

        def write_above(text: str) -> int:
            with self._lock:
                if not self._painted:
                    count = write(text)
                else:
                    self._quietly(lambda: send(self.stream, ERASE))
                    count = write(text)
                    stream.flush()
                    self._quietly(self._paint)
                if text:
                    self._in_line = not text.endswith("\n")
            return count

        vars(stream)["write"] = write_above
        self._taken.append((stream, write_above))

    def _quietly(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except Exception:  # who prints has nothing to do with it; the display will notice by itself
            self._painted = False

    def _give_streams_back(self) -> None:
        for stream, write_above in self._taken:
            with contextlib.suppress(Exception):
                if vars(stream).get("write") is write_above:
                    del vars(stream)["write"]
        self._taken.clear()

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


def _forget_screens() -> None:
    """The displays stay in the parent, and a lock that one of them held would never be released here."""
    global _guard
    _guard = threading.Lock()
    for screen in _screens:
        screen.abandon()
    _screens.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_screens)
