"""A terminal to run a user's script in, and what a person would see on it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import textwrap
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|\x1b([78D])|([\r\n\t])|([^\x00-\x1f\x7f])")


class Terminal:
    """As much of a VT100 as is needed; anything else that is written to it is an error."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.history: list[str] = []
        self.cells = [[""] * columns for _ in range(lines)]
        self.row = self.column = 0
        self.saved = (0, 0)
        self.wrapped = 0

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            assert token is not None, (
                f"the terminal does not know {text[position : position + 12]!r}"
            )
            position = token.end()
            arguments, letter, plain, control, char = token.groups()
            if char is not None:
                self._put(char)
            elif control == "\r":
                self.column = 0
            elif control == "\n" or plain == "D":
                self._down()
            elif plain == "7":
                self.saved = (self.row, self.column)
            elif plain == "8":
                self.row, self.column = self.saved
            elif letter == "A":
                self.row = max(0, self.row - int(arguments or 1))
            elif letter == "J":
                assert arguments in ("", "0")
                self.cells[self.row][self.column :] = [""] * (self.columns - self.column)
                for row in range(self.row + 1, self.lines):
                    self.cells[row] = [""] * self.columns
            else:
                assert letter == "m", f"the terminal does not know {token[0]!r}"

    def _put(self, char: str) -> None:
        width = (
            2
            if unicodedata.east_asian_width(char) in "WF"
            else 0
            if unicodedata.combining(char)
            else 1
        )
        if self.column + width > self.columns:
            self.column = 0
            self.wrapped += 1
            self._down()
        if width:
            self.cells[self.row][self.column] = char
            for beside in range(1, width):
                self.cells[self.row][self.column + beside] = "\0"
        self.column += width

    def _down(self) -> None:
        if self.row < self.lines - 1:
            self.row += 1
            return
        self.history.append(_text(self.cells.pop(0)))
        self.cells.append([""] * self.columns)

    def screen(self) -> list[str]:
        """What can be seen, without the empty lines at the end."""
        lines = [_text(cells) for cells in self.cells]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def _text(cells: list[str]) -> str:
    return "".join(cell or " " for cell in cells).replace("\0", "").rstrip()


@dataclass(slots=True)
class Seen:
    """What a script did to a terminal.

    Attributes:
        terminal: As it was in the end.
        frames: What could be seen on it, each time something had been written.
        raw: All that was written.
        returncode: How the script ended.
    """

    terminal: Terminal
    frames: list[list[str]] = field(default_factory=list[list[str]])
    raw: str = ""
    returncode: int = 0

    @property
    def lines(self) -> list[str]:
        """All lines there are in the end, also those that have scrolled away."""
        return [*self.terminal.history, *self.terminal.screen()]


def run_in_terminal(
    source: str,
    *,
    cwd: Path,
    columns: int = 80,
    lines: int = 24,
    env: Mapping[str, str] | None = None,
    timeout: float = 30.0,
) -> Seen:
    """Run *source* with a terminal of its own as stdin, stdout and stderr."""
    path = cwd / "script.py"
    path.write_text(textwrap.dedent(source))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (lines, columns))
    environ = {
        **os.environ,
        "TERM": "xterm",
        "PYTHONUTF8": "1",
        "PYTHONFAULTHANDLER": "1",
        **(env or {}),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path)],
            cwd=cwd,
            env=environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    seen = Seen(Terminal(columns, lines))
    deadline = time.monotonic() + timeout
    os.set_blocking(ours, False)
    rest = b""
    try:
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    process.kill()
                    raise AssertionError(
                        f"the script did not end within {timeout:g} s\n{seen.raw}"
                    ) from None
                time.sleep(0.005)
                continue
            except OSError:  # the other end is closed
                break
            if not data:
                break
            # Not in the middle of a character, nor of what moves the cursor.
            data = rest + data
            cut = len(data)
            tail = data.rfind(b"\x1b", max(0, cut - 8))
            if tail >= 0 and not _TOKEN.match(data[tail:].decode("latin-1")):
                cut = tail
            while cut and data[cut - 1] >= 0x80:
                try:
                    data[:cut].decode()
                    break
                except UnicodeDecodeError:
                    cut -= 1
            data, rest = data[:cut], data[cut:]
            text = data.decode(errors="replace")
            seen.raw += text
            seen.terminal.feed(text)
            seen.frames.append(seen.terminal.screen())
        seen.returncode = process.wait(5)
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    return seen
