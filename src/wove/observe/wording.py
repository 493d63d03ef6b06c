"""Rows in words: a line of a terminal, a line of a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import category, combining, east_asian_width

from wove.observe.reports import Report
from wove.observe.sampling import ENDED, Row

__all__ = [
    "ASCII",
    "FANCY",
    "Style",
    "chosen",
    "duration",
    "fit",
    "live_lines",
    "plain_line",
    "progress_text",
    "summary",
]

NAME_COLUMNS = 28
BAR_COLUMNS = 20
LOG_COLUMNS = 500


@dataclass(frozen=True, slots=True)
class Style:
    """The signs a display is made of."""

    signs: dict[str, str]
    full: str
    empty: str
    cut: str
    colored: bool = False


FANCY = Style(
    {"waiting": "·", "running": "●", "done": "✓", "failed": "✗", "cancelled": "-", "skipped": "-"},
    "█",
    "░",
    "…",
)
ASCII = Style(
    {"waiting": ".", "running": "*", "done": "+", "failed": "x", "cancelled": "-", "skipped": "-"},
    "#",
    ".",
    "~",
)

_COLORS = {
    "running": "36",
    "done": "32",
    "failed": "31",
    "cancelled": "33",
    "waiting": "2",
    "skipped": "2",
}


def duration(seconds: float) -> str:
    """*seconds* as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _columns(char: str) -> int:
    if combining(char) or category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def fit(text: str, columns: int, cut: str, *, pad: bool = False) -> str:
    """*text* in at most *columns* columns of a terminal, harmless, with *cut* where something is missing."""
    if text.isascii() and text.isprintable():
        if len(text) > columns:
            text = text[: max(0, columns - 1)] + cut[:columns]
        return text.ljust(columns) if pad else text

    text = "".join(char if char.isprintable() or category(char) == "Cf" else "?" for char in text)
    used = sum(map(_columns, text))
    if used > columns:
        kept, used = "", 0
        for char in text:
            if used + _columns(char) > columns - 1:
                break
            kept += char
            used += _columns(char)
        text = kept + cut[:columns]
        used += len(cut[:columns])

    return text + " " * (columns - used) if pad else text


def chosen(rows: Sequence[Row], most: int) -> list[Row]:
    """At most *most* of *rows*: all in order, or else what runs, then what ended last, then what waits."""
    if len(rows) <= most:
        return list(rows)
    ended = sorted((row for row in rows if row.ended), key=lambda row: row.ended, reverse=True)
    order = [row for row in rows if row.state == "running"]
    order += ended
    order += [row for row in rows if row.state == "waiting"]
    order += [row for row in rows if row.state in ENDED and not row.ended]
    return order[:most]


def live_lines(rows: Sequence[Row], columns: int, most: int, style: Style) -> list[str]:
    """The lines of a display that is redrawn, *most* of them at most, none wider than *columns*."""
    if not rows:
        return []
    shown = chosen(rows, most if len(rows) <= most else max(0, most - 1))
    width = min(
        NAME_COLUMNS,
        max((sum(map(_columns, row.name)) for row in shown), default=0),
        max(4, columns // 3),
    )
    lines = [_live_line(row, width, columns, style) for row in shown]
    if len(shown) < len(rows):
        lines.append(fit(f"  +{len(rows) - len(shown)} more: {summary(rows)}", columns, style.cut))
    return lines


def _live_line(row: Row, width: int, columns: int, style: Style) -> str:
    parts = [fit(row.name, width, style.cut, pad=True)]

    if row.mapped and row.state not in ("waiting", "skipped"):
        room = min(BAR_COLUMNS, columns - width - 40)
        if row.total is not None and room >= 5:
            filled = room if row.items >= row.total else room * row.items // row.total
            parts.append(style.full * filled + style.empty * (room - filled))
        parts.append(_count(row))
    elif row.state == "running" and row.progress is not None:
        done, total = row.progress.done, row.progress.total
        room = min(BAR_COLUMNS, columns - width - 40)
        if done is not None and total and room >= 5:
            filled = int(room * min(1.0, done / total))
            parts.append(style.full * filled + style.empty * (room - filled))

    parts += _rate(row) + _progress(row) + _state(row) + _rest(row)
    if row.state == "running" and row.total and row.rate > 0 and row.items < row.total:
        parts.append(f"eta {duration((row.total - row.items) / row.rate)}")
    sign = style.signs[row.state]
    text = fit("  ".join(parts), max(0, columns - 2), style.cut)
    if style.colored:
        sign = f"\x1b[{_COLORS[row.state]}m{sign}\x1b[0m"
    return f"{sign} {text}".rstrip() if columns > 2 else style.signs[row.state][:columns]


def _count(row: Row, between: str = "/") -> str:
    if row.total is None or (row.state in ENDED and row.items == row.total):
        return f"{row.items:,}"
    return f"{row.items:,}{between}{row.total:,}"


def _rate(row: Row) -> list[str]:
    if not row.mapped or row.rate <= 0:
        return []
    return [f"{row.rate:,.0f}/s" if row.rate >= 10 else f"{row.rate:.2g}/s"]


def progress_text(report: Report) -> str:
    """Return what a task has reported, in one line: ``item 3: 45/100 page 45``."""
    amount = "" if report.done is None else f"{report.done:,.6g}"
    if report.total is not None:
        amount = f"{amount or '?'}/{report.total:,.6g}"
    text = " ".join(filter(None, (amount, report.note)))
    return text if report.item is None else f"item {report.item}: {text}"


def _progress(row: Row) -> list[str]:
    if row.progress is None or row.state != "running":
        return []
    return [progress_text(row.progress)]


def _state(row: Row) -> list[str]:
    """The state, where the sign of the line does not say all about it."""
    match row.state:
        case "waiting":
            return ["waits"]
        case "skipped":
            return ["not run"]
        case "failed" if row.error:
            return [f"failed: {row.error}"]
        case "failed" | "cancelled":
            return [row.state]
        case _:
            return []


def _rest(row: Row) -> list[str]:
    parts: list[str] = []
    if row.failed and row.mapped:
        parts.append(f"{row.failed:,} failed")
    if row.retries:
        parts.append(f"{row.retries:,} {'retry' if row.retries == 1 else 'retries'}")
    if row.environment != "default":
        parts.append(f"in {row.environment}")
    if row.state not in ("waiting", "skipped"):
        parts.append(duration(row.seconds))
    return parts


def plain_line(row: Row) -> str:
    """A line of a log about a task that has ended, or about a map that runs."""
    parts: list[str] = []

    if row.mapped:
        count = _count(row, " of ")
        share = (
            f" ({100 * row.items // row.total}%)" if row.state == "running" and row.total else ""
        )
        parts.append(f"{count} {'item' if count == '1' else 'items'}{share}")

    parts += _rate(row) + _progress(row) + _rest(row)
    state = f"failed with {row.error}" if row.state == "failed" and row.error else row.state
    return fit(f"wove: {row.name} {state}: {', '.join(parts)}", LOG_COLUMNS, "~")


def summary(rows: Iterable[Row]) -> str:
    """How many of *rows* are in which state."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    said = {"skipped": "not run"}
    order = ("running", "done", "failed", "cancelled", "waiting", "skipped")
    return ", ".join(
        f"{counts[state]:,} {said.get(state, state)}" for state in order if state in counts
    )
