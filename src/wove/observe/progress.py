"""``weave(progress=True)``: what each task is doing, shown on stderr while it does it.

One thread looks at the run about ten times a second, and is gone when the weave has ended. On a
terminal a line a task is redrawn in place; in a notebook, an output; anywhere else, what ends gets
one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from html import escape
from time import perf_counter, thread_time
from typing import Any, Protocol, TextIO
from uuid import uuid4

from wove.observe.sampling import ENDED, Row, RunView, Sampler
from wove.observe.screen import screen_of, send
from wove.observe.wording import ASCII, FANCY, Style, duration, live_lines, plain_line, summary

__all__ = ["Progress"]

_log = logging.getLogger("wove")

LOOK_SECONDS = 0.1
"""How often the run is looked at, while that takes no time worth mentioning."""

LOOK_SHARE = 0.02
"""The share of a core that looking may take; a run with very many tasks is looked at less often."""

LOOK_SECONDS_MOST = 2.0
NOTEBOOK_SECONDS = 0.3
NOTEBOOK_LINES = 30

SUMMARY_SECONDS = 10.0
"""How often a map that runs is mentioned in a log."""

PATIENCE_SECONDS = 1.0
"""How long the end of a weave waits for the last look; what it is written to may be stuck."""


class _Form(Protocol):
    """A way to show rows."""

    seconds: float

    def show(self, rows: list[Row]) -> None:
        """The weave runs, and stands like this."""

    def end(self, rows: list[Row]) -> None:
        """It has ended, like this."""

    def abandon(self) -> None:
        """Showing has failed: leave nothing behind that could disturb."""


class Progress:
    """Shows how *run* gets on, from now until `close`. Never raises.

    Args:
        run: The run, which has not begun yet.
    """

    def __init__(self, run: RunView) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

        try:
            form = _form()
            if form is None:
                return
            sampler = Sampler(run)
            # In the caller's context: a notebook knows by it which cell an output belongs to.
            context = run.context.copy()
            # Not from a pool: it runs as long as the weave does, and `close` joins it.
            thread = threading.Thread(
                target=context.run,
                args=(self._work, sampler, form),
                name="wove-progress",
                daemon=True,
            )
            thread.start()
            self._thread = thread
        except Exception as error:
            _told(error)

    def _work(self, sampler: Sampler, form: _Form) -> None:
        try:
            wait = form.seconds
            while not self._over.wait(wait):
                began = thread_time()
                form.show(sampler.rows())
                wait = min(
                    max(form.seconds, (thread_time() - began) / LOOK_SHARE), LOOK_SECONDS_MOST
                )
            form.end(sampler.rows())
        except Exception as error:  # a display is not worth a weave
            with contextlib.suppress(Exception):
                form.abandon()
            _told(error)

    def close(self) -> None:
        """The run has ended: show that, and nothing after it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)

    async def aclose(self) -> None:
        """`close`, without holding up the loop."""
        self._over.set()
        deadline = perf_counter() + PATIENCE_SECONDS
        wait = 0.0005
        while self._thread is not None and self._thread.is_alive() and perf_counter() < deadline:
            await asyncio.sleep(wait)
            wait = min(2 * wait, 0.02)


def _told(error: Exception) -> None:
    with contextlib.suppress(Exception):  # the log may go where the display could not
        _log.warning("the progress of a weave is not shown any further: %r", error)


# ---------------------------------------------------------------------- where to


def _form() -> _Form | None:
    notebook = _notebook()
    if notebook is not None:
        return notebook
    stream: TextIO | None = sys.stderr
    if stream is None or stream.closed:
        return None
    if _is_terminal(stream):
        return _Live(stream)
    return _Plain(stream)


def _is_terminal(stream: TextIO) -> bool:
    try:
        if not stream.isatty() or os.environ.get("TERM") == "dumb":
            return False
    except Exception:  # a stream of the user's
        return False
    return not _is_detached(stream)


def _is_detached(stream: TextIO) -> bool:
    """Whether this process has left the session whose terminal *stream* is; somebody else draws there."""
    try:
        if os.getsid(0) != os.getpid():
            return False
        os.tcgetpgrp(stream.fileno())
    except (OSError, ValueError):
        return True
    except AttributeError:  # no such thing on this system
        return False

    return False


def _notebook() -> _Notebook | None:
    if "ipykernel" not in sys.modules:
        return None
    try:
        shell = sys.modules["IPython"].get_ipython()
        module: Any = sys.modules["IPython.display"]
        if shell is None or getattr(shell, "kernel", None) is None:
            return None
        return _Notebook(module.display, module.update_display)
    except Exception:  # an IPython that is not like this
        return None


# ---------------------------------------------------------------------- the forms


class _Plain:
    """A log: one line when a task ends, and now and then one about a map that takes long."""

    seconds = LOOK_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = perf_counter()
        self._told: set[str] = set()
        self._next: dict[str, float] = {}

    def show(self, rows: list[Row]) -> None:
        now = perf_counter()
        ended = [row for row in rows if row.state in ENDED and row.name not in self._told]
        self._told.update(row.name for row in ended)
        lines = [
            plain_line(row)
            for row in sorted(ended, key=lambda row: row.ended)
            if row.state != "skipped"
        ]

        for row in rows:
            if (row.mapped or row.progress is not None) and row.state == "running":
                due = self._next.setdefault(row.name, now - row.seconds + SUMMARY_SECONDS)
                if now >= due:
                    self._next[row.name] = now + SUMMARY_SECONDS
                    lines.append(plain_line(row))

        self._write(lines)

    def end(self, rows: list[Row]) -> None:
        self.show(rows)
        if len(rows) > 1:
            self._write(
                [
                    f"wove: {summary(rows)} of {len(rows):,} tasks, {duration(perf_counter() - self._began)}"
                ]
            )

    def abandon(self) -> None:
        pass

    def _write(self, lines: list[str]) -> None:
        if lines:
            send(self._stream, "".join(f"{line}\n" for line in lines))


class _Live:
    """A terminal: a line a task, redrawn in place, as far as there is room."""

    seconds = LOOK_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._screen = screen_of(stream)
        self._style = _style(stream)

    def show(self, rows: list[Row]) -> None:
        self._screen.show(self, self._lines(rows))

    def end(self, rows: list[Row]) -> None:
        self._screen.leave(self, self._lines(rows))

    def abandon(self) -> None:
        self._screen.abandon(self)

    def _lines(self, rows: list[Row]) -> list[str]:
        columns, most = self._screen.room()
        return live_lines(rows, columns, most, self._style)


def _style(stream: TextIO) -> Style:
    try:
        "".join([*FANCY.signs.values(), FANCY.full, FANCY.empty, FANCY.cut]).encode(stream.encoding)
        style = FANCY
    except (UnicodeError, LookupError, TypeError, AttributeError):
        style = ASCII
    colored = not os.environ.get("NO_COLOR")  # https://no-color.org
    return Style(style.signs, style.full, style.empty, style.cut, colored)


class _Notebook:
    """A notebook: one output, updated."""

    seconds = NOTEBOOK_SECONDS

    def __init__(self, display: Any, update: Any) -> None:
        self._display = display
        self._update = update
        self._id = f"wove-{uuid4().hex}"
        self._shown = False

    def show(self, rows: list[Row]) -> None:
        text = "\n".join(live_lines(rows, 100, NOTEBOOK_LINES, FANCY))
        data = {
            "text/plain": text,
            "text/html": f'<pre style="line-height:1.3">{escape(text)}</pre>',
        }
        show = self._update if self._shown else self._display
        show(data, raw=True, display_id=self._id)
        self._shown = True

    def end(self, rows: list[Row]) -> None:
        self.show(rows)

    def abandon(self) -> None:
        pass
