"""``wove env``: the configuration that holds, and where each of its values was set."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from typing import Any, Final

from wove.cli.configuring import add_configuration, configure
from wove.cli.terminal import WRONG_USE, fail, new_command

__all__ = ["add_parser"]

EXAMPLES: Final = """\
examples:
  wove env                        files and WOVE_* variables
  wove env --import myapp.tasks   also the calls of wove.config in that module
  wove env --json                 for programs

Later sources win: wove.toml, [tool.wove] in pyproject.toml, WOVE_* variables, calls of wove.config.
Secrets are shown as ***."""


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``env`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "env",
        help="show the configuration and where each value was set",
        description="Show the configuration of this folder, and where each of its values was set.",
        examples=EXAMPLES,
    )
    add_configuration(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    try:
        configure(chosen)
        report = _report()
    except Exception as error:  # also what a module of the user raises while it is imported
        return fail("wove env", error, WRONG_USE)

    text = json.dumps(report, indent=2) if chosen.json else _as_text(report)
    print(text)  # noqa: T201
    return 0


def _report() -> dict[str, Any]:
    """Return all settings, each as its ``value`` and its ``origin``, without secrets."""
    from wove import __version__
    from wove.graph.options import OPTIONS
    from wove.settings import current
    from wove.settings.masking import masked

    configuration = current()
    default = configuration.default_environment
    defaults: dict[str, Any] = {
        "default_environment": _entry(default, "default_environment", configuration.origins)
    }
    for name, option in OPTIONS.items():
        if "config" in option.scopes:
            value = configuration.defaults.get(name, option.default)
            defaults[name] = _entry(_plain(value), name, configuration.origins)

    environments: dict[str, Any] = {}
    for environment in configuration.environments.values():
        origins = environment.origins
        rows = {"executor": _entry(masked("executor", environment.executor), "executor", origins)}
        for key, value in environment.executor_config.items():
            name = f"executor_config.{key}"
            rows[name] = _entry(masked(key, value), name, origins)
        for name, value in environment.defaults.items():
            rows[name] = _entry(_plain(value), name, origins)
        environments[environment.name] = rows

    return {
        "wove": __version__,
        "python": platform.python_version(),
        "defaults": defaults,
        "environments": environments,
    }


def _entry(value: object, name: str, origins: Mapping[str, str]) -> dict[str, object]:
    return {"value": value, "origin": origins.get(name, "built-in")}


def _plain(value: object) -> object:
    """Return the value of an option as JSON knows it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):  # exception types
        return [kind.__qualname__ for kind in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return getattr(value, "__qualname__", f"<{type(value).__name__}>")


def _as_text(report: Mapping[str, Any]) -> str:
    blocks: dict[str, Mapping[str, Any]] = {"defaults": report["defaults"]}
    blocks |= {f"environment {name}": rows for name, rows in report["environments"].items()}
    lines = [f"wove {report['wove']}, Python {report['python']}"]

    for title, rows in blocks.items():
        lines += ["", title]
        for name, row in rows.items():
            value = json.dumps(row["value"], ensure_ascii=False)
            lines.append(f"  {name:<30} {value:<32} {row['origin']}".rstrip())

    return "\n".join(lines)
