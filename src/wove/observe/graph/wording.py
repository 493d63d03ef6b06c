"""A graph's words about a task: the same in Mermaid, in SVG, and for those who cannot see it."""

from __future__ import annotations

from typing import Final

from wove.observe.sampling import Row

__all__ = ["SIGNS", "figures", "heading", "sentence", "state", "where"]

SIGNS: Final = {
    "waiting": "○",
    "running": "●",
    "done": "✓",
    "failed": "✗",
    "cancelled": "–",
    "skipped": "–",
}


def state(row: Row) -> str:
    """Return the state, as people say it."""
    return "not run" if row.state == "skipped" else row.state


def heading(row: Row) -> str:
    """Return the sign of the state, and the name."""
    return f"{SIGNS[row.state]} {row.name}"


def figures(row: Row) -> str:
    """Return the state with what there is to count."""
    parts = [state(row)]
    if row.mapped:
        parts.append(_items(row))
    if row.failed and row.mapped:
        parts.append(f"{row.failed:,} failed")
    if row.seconds:
        parts.append(_duration(row.seconds))
    return " · ".join(filter(None, parts))


def where(row: Row) -> str:
    """Return where it runs, and what had to be tried again."""
    parts = [] if row.environment == "default" else [f"in {row.environment}"]
    if row.retries:
        parts.append(f"{row.retries:,} {'retry' if row.retries == 1 else 'retries'}")
    if row.error and row.state == "failed":
        parts.append(row.error)
    return " · ".join(parts)


def sentence(row: Row) -> str:
    """Return all about the task in one line."""
    return ", ".join(filter(None, [f"{row.name}: {figures(row)}", where(row)])).replace(" · ", ", ")


def _items(row: Row) -> str:
    if row.total is None:
        return f"{row.items:,} items" if row.items else "map"
    return f"{row.total:,} items" if row.items == row.total else f"{row.items:,} of {row.total:,}"


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s"
