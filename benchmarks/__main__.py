"""The command line: ``python -m benchmarks [NAME ...] [--list] [--rounds N] [--json FILE] [--against FILE]``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .harness import BENCHMARKS, MIN_ROUNDS, Outcome, run
from .report import comparison, details, heading, read_scores, summary, write_json

# In the order they run in.
TOPICS = (
    "imports",
    "blocks",
    "maps",
    "pipelines",
    "memory",
    "cache",
    "graphs",
    "failures",
    "stdio",
    "gaps",
    "signing",
    "network",
    "backends",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for. The exit status says that it ran, not that every target was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a benchmark, or the start of its name"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of every figure (default: its own)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="compare with what an earlier --json has written",
    )
    options = parser.parse_args(arguments)
    for topic in TOPICS:
        importlib.import_module(f"benchmarks.{topic}")
    if options.list:
        for name, function in BENCHMARKS.items():
            print(f"{name:<14} {(function.__doc__ or '').splitlines()[0]}")
        return 0
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.rounds is not None and options.rounds < MIN_ROUNDS:
        print(f"note: fewer than {MIN_ROUNDS} rounds say little", file=sys.stderr)
    selected = [
        name for name in BENCHMARKS if not options.names or name.startswith(tuple(options.names))
    ]
    for wanted in options.names:
        if not any(name.startswith(wanted) for name in selected):
            parser.error(f"no benchmark is called {wanted!r}; there are: {', '.join(BENCHMARKS)}")
    earlier = read_scores(options.against) if options.against else {}
    # Fresh processes find bytecode, as they do where a package is installed.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    outcomes = _measure(selected, options.rounds)
    print(summary(outcomes))
    if options.against:
        print(comparison(outcomes, earlier))
    if options.json:
        write_json(outcomes, options.json)
    return 0


def _measure(selected: Sequence[str], rounds: int | None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for outcome in run(selected, rounds):
        if not outcomes or outcomes[-1].benchmark != outcome.benchmark:
            print(heading(outcome.benchmark))
        print(details(outcome), flush=True)
        outcomes.append(outcome)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
