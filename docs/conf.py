"""Sphinx: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import wove

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Wove"
author = "The Wove maintainers"
release = version = wove.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "llms",
]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"Wove {release}"
html_static_path = ["_static"]
html_css_files = ["wove.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False

# A single backtick in a docstring is code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
