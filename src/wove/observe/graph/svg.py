"""A graph as SVG, which needs nothing but a browser: light and dark, and readable without colors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Final

from wove.observe.graph import wording
from wove.observe.graph.layout import Layout
from wove.observe.sampling import Row
from wove.observe.wording import summary

__all__ = ["svg"]

WIDTH: Final = 196
HEIGHT: Final = 62
GAP: Final = 26
"""Between tasks of one layer."""
LAYER_GAP: Final = 46
MARGIN: Final = 12
NAME_COLUMNS: Final = 24
TEXT_COLUMNS: Final = 30

_STYLE: Final = (
    """
.wove-graph{--card:#fff;--text:#1b1f26;--faint:#5a6372;--waiting:#7b8494;--running:#1c5fd0;--done:#1f8a5b;
--failed:#c01c28;--cancelled:#8a6d3b;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
@media (prefers-color-scheme:dark){.wove-graph{--card:#1d2128;--text:#e6e9ee;--faint:#a7b0bd;--waiting:#8d97a6;
--running:#7db0ff;--done:#4cc38a;--failed:#ff7b80;--cancelled:#d6ab63}}
.wove-graph .card{fill:var(--card);stroke-width:1.5}
.wove-graph .name{fill:var(--text);font-size:14px;font-weight:600}
.wove-graph .text{fill:var(--faint);font-size:12px}
.wove-graph .line{fill:none;stroke:#8792a3;stroke-width:1.5}
.wove-graph .head{fill:#8792a3}
.wove-graph .backwards{stroke:var(--failed);stroke-dasharray:5 4}
.wove-graph .bar{opacity:.22}
"""
    + "".join(
        f".wove-graph .{state} .edge{{stroke:var(--{state})}}.wove-graph .{state} .sign{{fill:var(--{state})}}"
        for state in ("waiting", "running", "done", "failed", "cancelled")
    )
    + """
.wove-graph .waiting .edge{stroke-dasharray:5 3}
.wove-graph .cancelled .edge{stroke-dasharray:2 2}
.wove-graph .running .edge,.wove-graph .failed .edge{stroke-width:2.5}
"""
)

_FITS: Final = 'style="max-width:100%;height:auto"'

_HEAD: Final = (
    '<defs><marker id="wove-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
)


def svg(rows: Sequence[Row], layout: Layout, down: bool) -> str:
    """Return the picture, as one ``svg`` element.

    Args:
        rows: The tasks.
        layout: Where they are.
        down: Whether the layers lie below each other, and not beside each other.
    """
    across = (WIDTH if down else HEIGHT) + GAP
    along = (HEIGHT if down else WIDTH) + LAYER_GAP

    def point(layer: int, middle: float) -> tuple[float, float]:
        """Return the middle of a task."""
        beside, ahead = middle * across - GAP / 2, layer * along
        if down:
            return MARGIN + beside, MARGIN + ahead + HEIGHT / 2
        return MARGIN + ahead + WIDTH / 2, MARGIN + beside

    breadth, length = layout.width * across - GAP, layout.layers * along - LAYER_GAP
    width, height = (breadth, length) if down else (length, breadth)
    width, height = max(width, 0) + 2 * MARGIN + 6, max(height, 0) + 2 * MARGIN + 6
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wove-graph" role="img" {size} {_FITS}>',
        f"<title>{_text(f'Weave of {len(rows)} tasks: {summary(rows)}' if rows else 'Weave without tasks')}</title>",
        f"<desc>{_text('. '.join(wording.sentence(row) for row in rows))}</desc>",
        f"<style>{_STYLE}</style>",
        _HEAD,
    ]
    for edge, places in layout.lines.items():
        kind = " backwards" if edge in layout.backwards else ""
        path = _path([point(*place) for place in places], down)
        parts.append(f'<path class="line{kind}" marker-end="url(#wove-head)" d="{path}"/>')

    for row, place in zip(rows, layout.places, strict=True):
        parts.extend(_card(row, *point(*place)))
    parts.append("</svg>")
    return "\n".join(parts)


def _path(points: list[tuple[float, float]], down: bool) -> str:
    """Return a curve through *points*, from the border of the first task to that of the last."""
    (x, y), *middle, (end_x, end_y) = points
    if down:
        places = [(x, y + HEIGHT / 2), *middle, (end_x, end_y - HEIGHT / 2 - 2)]
    else:
        places = [(x + WIDTH / 2, y), *middle, (end_x - WIDTH / 2 - 2, end_y)]

    text = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]

    for (x0, y0), (x1, y1) in pairwise(places):
        half_x, half_y = (x0 + x1) / 2, (y0 + y1) / 2
        if down:
            text.append(f"C{x0:.1f} {half_y:.1f} {x1:.1f} {half_y:.1f} {x1:.1f} {y1:.1f}")
        else:
            text.append(f"C{half_x:.1f} {y0:.1f} {half_x:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")

    return "".join(text)


def _card(row: Row, x: float, y: float) -> Iterator[str]:
    left, top = x - WIDTH / 2, y - HEIGHT / 2
    state = "cancelled" if row.state == "skipped" else row.state
    box = f'width="{WIDTH}" height="{HEIGHT}" rx="8"'
    yield f'<g class="{state}"><title>{_text(wording.sentence(row))}</title>'
    if row.mapped:  # more than one run: a pile of cards
        yield f'<rect class="card edge" x="{left + 5:.1f}" y="{top + 5:.1f}" {box}/>'
    yield f'<rect class="card edge" x="{left:.1f}" y="{top:.1f}" {box}/>'

    if row.mapped and row.total:
        share = min(1.0, row.items / row.total)
        yield (
            f'<rect class="bar sign" x="{left + 2:.1f}" y="{top + 2:.1f}" rx="6" '
            f'width="{(WIDTH - 4) * share:.1f}" height="{HEIGHT - 4}"/>'
        )

    yield f'<text class="name sign" x="{left + 10:.1f}" y="{top + 21:.1f}">{_text(wording.SIGNS[row.state])}</text>'
    yield f'<text class="name" x="{left + 27:.1f}" y="{top + 21:.1f}">{_text(_cut(row.name, NAME_COLUMNS))}</text>'

    for line, offset in ((wording.figures(row), 38), (wording.where(row), 53)):
        if line:
            yield (
                f'<text class="text" x="{left + 10:.1f}" y="{top + offset:.1f}">'
                f"{_text(_cut(line, TEXT_COLUMNS))}</text>"
            )

    yield "</g>"


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _text(text: str) -> str:
    """Return *text* for XML, without the characters that XML cannot have."""
    return escape("".join(char if char.isprintable() else " " for char in text))
