"""The command ``wove``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

__all__ = ["main", "make_parser"]

EXAMPLES: Final = """\
examples:
  wove run myapp.reports:Report month=May    run the tasks of a Weave class
  wove graph myapp.reports:Report -o a.svg   draw them
  wove env                                   which configuration holds, and why
  wove doctor reports                        why does this environment not work?
  wove worker http --bind 127.0.0.1:8800     a worker service
  wove COMMAND --help                        options and examples of one command

exit status: 0 success; 1 something failed; 2 wrong arguments or configuration; 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Those after the command's name; ``None``: those of this process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong arguments or configuration, 130 for Ctrl-C.
    """
    from wove.cli.terminal import INTERRUPTED, SUCCESS

    chosen = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the exit would flush and fail
        return SUCCESS

    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line. Its result has ``run``, to be called with it."""
    from wove import __version__
    from wove.cli import cache, completion, doctor, env, graph, run, worker

    parser = argparse.ArgumentParser(
        prog="wove",
        description="Inline task orchestration for Python.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wove {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, graph, env, doctor, worker, cache, completion):
        command.add_parser(commands.add_parser)
    return parser
