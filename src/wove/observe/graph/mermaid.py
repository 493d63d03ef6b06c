"""A graph as Mermaid text: https://mermaid.js.org/syntax/flowchart.html."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wove.observe.graph import wording
from wove.observe.sampling import Row

__all__ = ["mermaid"]

# Readable on a light page and on a dark one: a fill of its own, and text for that fill.
_CLASSES: Final = {
    "waiting": "fill:#e4e7ec,stroke:#7b8494,color:#1b1f26,stroke-dasharray:4 3",
    "running": "fill:#cfe0ff,stroke:#1c5fd0,color:#0b2a66,stroke-width:3px",
    "done": "fill:#cdeedd,stroke:#1f8a5b,color:#0d3d28",
    "failed": "fill:#ffd6d6,stroke:#c01c28,color:#5f0a11,stroke-width:3px",
    "cancelled": "fill:#f3e6d0,stroke:#8a6d3b,color:#3f2f12,stroke-dasharray:2 2",
}


def mermaid(rows: Sequence[Row], needs: Sequence[Sequence[int]], down: bool) -> str:
    """Return the text of a flowchart.

    Args:
        rows: The tasks.
        needs: For each, the indices of those that it needs.
        down: Whether it runs down the page, and not to the right.
    """
    lines = [f"flowchart {'TD' if down else 'LR'}"]

    for number, row in enumerate(rows):
        label = "<br/>".join(
            _escaped(line)
            for line in (wording.heading(row), wording.figures(row), wording.where(row))
            if line
        )
        opening, closing = ("[[", "]]") if row.mapped else ("[", "]")
        lines.append(f'    t{number}{opening}"{label}"{closing}:::{_class(row)}')

    lines += [
        f"    t{need} --> t{number}"
        for number, needed in enumerate(needs)
        for need in dict.fromkeys(needed)
    ]
    used = {_class(row) for row in rows}
    lines += [f"    classDef {name} {style}" for name, style in _CLASSES.items() if name in used]
    return "\n".join(lines) + "\n"


def _class(row: Row) -> str:
    return "cancelled" if row.state == "skipped" else row.state


def _escaped(text: str) -> str:
    """Return *text* so that Mermaid reads it as a label: what could mean more to it goes by its number."""
    return "".join(
        char if char.isalnum() or char in " _.,:-·○●✓✗–" else f"#{ord(char)};" for char in text
    )
