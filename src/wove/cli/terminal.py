"""The common part of all commands: parsers, exit statuses, and messages on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["FAILED", "INTERRUPTED", "SUCCESS", "WRONG_USE", "fail", "new_command"]

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


def new_command(
    new: Callable[..., argparse.ArgumentParser],
    name: str,
    *,
    help: str,  # noqa: A002  # as argparse calls it
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Return the parser of a new command, whose help ends with *examples*; *new* is the ``add_parser`` of argparse."""
    return new(
        name,
        help=help,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
