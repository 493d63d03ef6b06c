"""When and where each run of a weave took place: as a page, and as a Chrome trace.

The page draws on a canvas by itself, with ``timeline.js``. Measured with 100,000 runs in
headless Chromium, a custom series of ECharts 6.1 (1.1 MB) takes 6.7 s to open, and has to be given rectangles
that somebody else has aggregated to be quicker; uPlot draws series, not intervals in lanes; vis-timeline makes
an element of the document for each run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Final

from wove.observe.assets import digest, read
from wove.observe.timeline.chrome import events
from wove.observe.timeline.encoding import encode
from wove.observe.timeline.model import ItemColumns, Model, RecordView, build

__all__ = ["SUFFIXES", "Timeline", "check_path", "page"]

SUFFIXES: Final = (".html", ".json")
"""The suffixes of files that a timeline can be saved as: the page, and the Chrome trace."""


class Timeline:
    """When and where each run of a weave took place. `wove.weave.timeline` makes one.

    In a notebook it shows itself.

    Args:
        records: The runs.
        title: What the page is called.
        columns: Items of maps, instead of a record for each.

    Example:
        >>> w.timeline().save("run.html")
        PosixPath('run.html')
    """

    def __init__(
        self,
        records: Iterable[RecordView],
        title: str = "wove",
        columns: Sequence[ItemColumns] = (),
    ) -> None:
        self._records = tuple(records)
        self._columns = columns
        self._title = title

    @cached_property
    def _model(self) -> Model:
        return build(self._records, columns=self._columns)

    @cached_property
    def data(self) -> str:
        """The runs as the page carries them, compressed."""
        return encode(self._model, title=self._title)

    @cached_property
    def html(self) -> str:
        """The page, in one piece: a browser needs no network to show it."""
        return page(self.data, self._title)

    def chrome_trace(self) -> dict[str, Any]:
        """Return the runs in Chrome's trace format, for https://ui.perfetto.dev and ``chrome://tracing``.

        The trace is plain data for `json.dump`. A process is an environment there, a thread a worker.
        """
        return {
            "traceEvents": list(events(self._model)),
            "displayTimeUnit": "ms",
            "otherData": {"title": self._title, "origin_seconds": self._model.origin},
        }

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page (``.html``) or the Chrome trace (``.json``) to *path*, and return that.

        Raises:
            ValueError: *path* ends in neither.
            OSError: It cannot be written.
        """
        path = check_path(path, "path")
        if path.suffix.lower() == ".html":
            text = self.html
        else:
            text = json.dumps(self.chrome_trace(), separators=(",", ":"))

        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path

    def __len__(self) -> int:
        """Return how many runs there are."""
        return len(self._records) + sum(len(items.started) for items in self._columns)

    def __repr__(self) -> str:
        return f"<Timeline of {len(self):,} run(s)>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="Timeline" srcdoc="{escape(self.html)}" sandbox="allow-scripts" '
            'style="width:100%;height:480px;border:1px solid #8884;border-radius:6px"></iframe>'
        )


def page(data: str, title: str) -> str:
    """Return the page that shows *data*.

    Args:
        data: `Timeline.data`.
        title: What the page is called.
    """
    script, style = read(__name__, "timeline.js"), read(__name__, "timeline.css")
    # Nothing in the data can become part of the page, and nothing but this script can run in it.
    policy = f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}"
    text = read(__name__, "timeline.html")

    for name, part in (
        ("policy", escape(policy)),
        ("title", escape(title)),
        ("style", style),
        ("script", script),
        ("data", data),
    ):
        text = text.replace(f"<!--{name}-->", part)

    return text


def check_path(path: str | PathLike[str], name: str) -> Path:
    """Return *path* as one that `Timeline.save` takes.

    Args:
        path: The path.
        name: What the message calls it.

    Raises:
        ValueError: It ends in none of `SUFFIXES`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{name} must end in .html (a page) or .json (a Chrome trace), not {str(path)!r}"
        )

    return path
