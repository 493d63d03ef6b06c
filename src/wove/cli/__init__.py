"""The command ``wove``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main", "make_parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Those after the command's name; ``None``: those of this process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong arguments.
    """
    chosen = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    status: int = chosen.run(chosen)
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line. What it returns has ``run``, to be called with it."""
    from wove import __version__
    from wove.cli import env, worker

    parser = argparse.ArgumentParser(
        prog="wove", description="Inline task orchestration for Python."
    )
    parser.add_argument("--version", action="version", version=f"wove {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (env, worker):
        command.add_parser(commands.add_parser)
    return parser
