"""Messages of commands on stderr."""

from __future__ import annotations

import sys

__all__ = ["fail"]


def fail(command: str, error: BaseException, status: int = 1) -> int:
    """Print why *command* ends, with the notes of the error, and return its exit status."""
    lines = [f"{command}: {str(error) or type(error).__name__}", *getattr(error, "__notes__", ())]
    sys.stderr.write("\n  ".join(lines) + "\n")
    return status
