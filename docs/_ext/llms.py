"""Write ``llms.txt``, a list of the pages, and ``llms-full.txt``, their text, beside the built site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SUMMARY = (
    "Inline task orchestration for Python: tasks are declared inside a `with` block, "
    "and run where they belong."
)


def write(app: Sphinx, error: Exception | None) -> None:
    """Write both files, in the order of the navigation."""
    if error is not None or app.builder.format != "html":
        return
    names = [name for name in _in_order(app, app.config.root_doc) if name != "changelog"]
    titles = {name: app.env.titles[name].astext() for name in names}
    out = Path(app.outdir)
    lines = [f"- [{titles[name]}]({name}.html)" for name in names]
    out.joinpath("llms.txt").write_text(
        f"# Wove {app.config.release}\n\n> {SUMMARY}\n\n## Pages\n\n" + "\n".join(lines) + "\n"
    )
    texts = [Path(app.env.doc2path(name)).read_text() for name in names]
    out.joinpath("llms-full.txt").write_text("\n\n".join(map(_without_navigation, texts)))


def _in_order(app: Sphinx, name: str) -> list[str]:
    found = [name]
    for child in app.env.toctree_includes.get(name, ()):
        found += _in_order(app, child)
    return found


def _without_navigation(text: str) -> str:
    return re.sub(r"^```\{toctree\}.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
