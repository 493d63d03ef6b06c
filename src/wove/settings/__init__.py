"""``wove.config``: what a process was told about environments and defaults."""

from __future__ import annotations

from wove.settings.model import BUILT_IN, Configuration

__all__ = ["current", "install"]

_current: Configuration = BUILT_IN


def current() -> Configuration:
    """The configuration that holds now: an immutable snapshot."""
    return _current


def install(configuration: Configuration) -> None:
    """Put *configuration* in place of the current one, whole."""
    global _current  # noqa: PLW0603 - the one piece of process-wide state, swapped whole
    _current = configuration
