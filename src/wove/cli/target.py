"""``module:Class`` and ``key=value`` on the command line: the weave that they name."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wove.cli.configuring import import_from_here

if TYPE_CHECKING:
    from wove.workflow import Weave

__all__ = ["TargetError", "add_target", "load_class", "values_of"]


class TargetError(ValueError):
    """The arguments of the command name no weave."""


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the class and its initial values to the arguments of *parser*."""
    parser.add_argument(
        "target",
        metavar="MODULE:CLASS",
        help="the Weave class; MODULE may also be the path of a .py file",
    )
    parser.add_argument(
        "values",
        nargs="*",
        metavar="KEY=VALUE",
        help="initial values; a value is JSON where it can be, otherwise text",
    )


def load_class(target: str) -> type[Weave]:
    """Import the `Weave` class that *target* names.

    Raises:
        TargetError: There is no such module or class.
        Exception: Whatever the module raises while it is imported.
    """
    from wove.workflow import Weave

    module_name, _, name = target.partition(":")
    module = importlib.import_module(_importable(module_name))
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Weave) and value is not Weave
    }

    if name in classes:
        return classes[name]
    known = ", ".join(f"{module_name}:{key}" for key in classes) or "it has none"
    label = (
        f"{name!r} is not a Weave class of {module_name}" if name else f"{target} names no class"
    )
    raise TargetError(f"{label}. Weave classes there: {known}")


def _importable(name: str) -> str:
    """Return the name under which the module *name*, or the file of that path, can be imported."""
    import_from_here()
    if name.endswith(".py"):
        folder, file = os.path.split(os.path.abspath(name))
        if not os.path.isfile(name):
            raise TargetError(f"there is no file {name!r}")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return file.removesuffix(".py")

    try:
        found = bool(name) and importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # a parent package is missing, or it has no spec
        found = name in sys.modules
    if not found:
        raise TargetError(
            f"there is no module {name!r}. Modules are looked for in {os.getcwd()} and on sys.path"
        )
    return name


def values_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the initial values that ``key=value`` arguments stand for.

    Raises:
        TargetError: One has no ``=``, a name that no parameter can have, or a name that was given before.
    """
    from wove.settings.sources import value_of_text

    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise TargetError(f"{pair!r} is not KEY=VALUE, where KEY is the name of a parameter")
        if name in values:
            raise TargetError(f"{name} is given twice")
        values[name] = value_of_text(text)

    return values
