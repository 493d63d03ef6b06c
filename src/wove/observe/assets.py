"""The files of the pages, and what their content security policies say of them."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

__all__ = ["digest", "read"]


def read(package: str, name: str) -> str:
    """Return the text of the file *name* that *package* ships."""
    return files(package).joinpath(name).read_text("utf-8")


def digest(text: str) -> str:
    """Return the source that allows exactly the script or style *text* in a content security policy."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
