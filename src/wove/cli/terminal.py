"""What all commands share: exit statuses, and messages on stderr."""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["FAILED", "INTERRUPTED", "SUCCESS", "WRONG_USE", "fail"]

SUCCESS: Final = 0
FAILED: Final = 1
"""A task failed, a service could not listen, or `wove doctor` found a fault."""
WRONG_USE: Final = 2
"""Nothing was run: the arguments or the configuration are wrong. It is argparse's status, too."""
INTERRUPTED: Final = 130
"""Ctrl-C, as shells report it: 128 and the number of SIGINT."""


def fail(command: str, error: BaseException, status: int = FAILED) -> int:
    """Print why *command* ends, with the notes of the error, and return its exit status."""
    lines = [f"{command}: {str(error) or type(error).__name__}", *getattr(error, "__notes__", ())]
    sys.stderr.write("\n  ".join(lines) + "\n")
    return status
