"""``wove graph MODULE:CLASS``: the tasks of a Weave class and who needs whom, without running anything."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wove.cli.configuring import add_configuration, configure
from wove.cli.target import TargetError, add_target, load_class, values_of
from wove.cli.terminal import SUCCESS, WRONG_USE, fail, new_command

__all__ = ["add_parser"]

COMMAND: Final = "wove graph"

EXAMPLES: Final = """\
examples:
  wove graph myapp.reports:Report                      Mermaid text on stdout
  wove graph myapp.reports:Report --format svg > a.svg
  wove graph flows/report.py:Report -o report.svg      the suffix says which format

exit status: 0 written; 2 there is no such class, or the configuration is wrong."""

FORMATS: Final = {".mmd": "mermaid", ".md": "mermaid", ".svg": "svg"}


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``graph`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "graph",
        help="draw the tasks of a Weave class",
        description="Draw the tasks of a Weave class and who needs whom. Nothing is run.",
        examples=EXAMPLES,
    )
    add_target(parser)
    add_configuration(parser)
    parser.add_argument("--format", choices=("mermaid", "svg"), help="mermaid by default")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to FILE instead of stdout")
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    from wove.block import weave

    try:
        configure(chosen)
        graph = weave(load_class(chosen.target), values=values_of(chosen.values)).graph
        text = graph.svg if _format(chosen) == "svg" else graph.mermaid
        if chosen.output is None:
            print(text)  # noqa: T201
        else:
            Path(chosen.output).write_text(text, encoding="utf-8")
    except (TargetError, NameError, OSError) as error:
        return fail(COMMAND, error, WRONG_USE)
    except Exception as error:  # the user's own modules may raise anything
        traceback.print_exception(error)
        return WRONG_USE

    return SUCCESS


def _format(chosen: argparse.Namespace) -> str:
    if chosen.format is not None:
        return str(chosen.format)
    if chosen.output is None:
        return "mermaid"

    suffix = Path(chosen.output).suffix
    if suffix not in FORMATS:
        raise TargetError(
            f"the suffix of {chosen.output!r} is none of {', '.join(FORMATS)}; say --format"
        )
    return FORMATS[suffix]
