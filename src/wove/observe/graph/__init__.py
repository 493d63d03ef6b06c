"""The graph of a weave, with what each task is doing: as Mermaid text, as SVG, and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from wove.observe.graph import mermaid, svg, wording
from wove.observe.graph.layout import Layout, lay_out
from wove.observe.sampling import Row

__all__ = ["Graph"]


class Graph:
    """The tasks of a weave, as they stand at one moment, and who needs whom. `wove.weave.graph` makes one.

    A map is one node, with the number of its items. In a notebook the graph shows itself.

    Args:
        rows: The tasks.
        needs: For each, the indices of those that it needs.

    Example:
        >>> print(w.graph.mermaid)
        flowchart TD
        ...
    """

    def __init__(self, rows: Sequence[Row], needs: Sequence[Sequence[int]]) -> None:
        self._rows = tuple(rows)
        self._needs = tuple(map(tuple, needs))

    @cached_property
    def _layout(self) -> Layout:
        return lay_out(self._needs)

    @property
    def _down(self) -> bool:
        # Wide graphs would leave the page at its side; there a page cannot be scrolled as easily.
        return self._layout.width <= max(5, self._layout.layers)

    @property
    def states(self) -> dict[str, str]:
        """Return the state of each task: ``"waiting"``, ``"running"``, ``"done"``, ``"failed"``, ``"cancelled"``, or
        ``"skipped"``, for one that was never begun."""
        return {row.name: row.state for row in self._rows}

    @cached_property
    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart, which GitHub, GitLab and many documentation tools draw."""
        return mermaid.mermaid(self._rows, self._needs, self._down)

    @cached_property
    def svg(self) -> str:
        """The graph as one ``svg`` element. Light or dark, as the reader's system is."""
        return svg.svg(self._rows, self._layout, self._down)

    def __str__(self) -> str:
        """Return a line for each task."""
        return "\n".join(
            f"{wording.SIGNS[row.state]} {wording.sentence(row)}" for row in self._rows
        )

    def __repr__(self) -> str:
        return f"<Graph of {len(self._rows):,} task(s)>"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow:auto">{self.svg}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.mimebundle()

    def mimebundle(self) -> dict[str, str]:
        """Return what a notebook shows for the graph, by MIME type."""
        return {"text/plain": str(self), "text/html": self._repr_html_(), "image/svg+xml": self.svg}
