"""Options of commands that say which configuration counts."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

__all__ = ["add_configuration", "configure", "import_from_here"]


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--import``."""
    parser.add_argument(
        "--config", metavar="FILE", help="load this file with wove.config, as wove_config.py"
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, for its calls of wove.config; may be repeated",
    )


def configure(chosen: argparse.Namespace) -> None:
    """Do what the options of `add_configuration` say.

    Raises:
        Exception: Whatever the file or a module raises.
    """
    import_from_here()
    for name in chosen.modules:
        importlib.import_module(name)
    if chosen.config is not None:
        from wove import config

        config(config_file=chosen.config)


def import_from_here() -> None:
    """Let imports find modules in the working directory, as ``python -m`` does."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
