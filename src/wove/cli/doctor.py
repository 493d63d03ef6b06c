"""``wove doctor [ENVIRONMENT]``: why an environment does not work, and what mends it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from wove.cli.configuring import add_configuration, configure
from wove.cli.terminal import FAILED, SUCCESS, WRONG_USE, fail, new_command

if TYPE_CHECKING:
    from wove.diagnosis import Finding

__all__ = ["add_parser"]

EXAMPLES: Final = """\
examples:
  wove doctor                                  all environments
  wove doctor reports                          one of them
  wove doctor reports --module myapp.tasks     can its workers import this module?
  wove doctor reports --import myapp.settings  that is where wove.config is called
  wove doctor reports --json                   for programs; also as a health check

A probe goes through the executor as a task would. Start a worker before you examine its environment.
exit status: 0 nothing is broken (warnings are possible); 1 a check failed; 2 the configuration is wrong."""

SIGNS: Final = {"ok": "✓", "warning": "!", "failed": "✗"}
PLAIN_SIGNS: Final = {"ok": "ok", "warning": "warning", "failed": "FAILED"}
COLOURS: Final = {"ok": "32", "warning": "33", "failed": "31"}
"""SGR codes (ECMA-48, 8.3.117): green, yellow, red."""


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "doctor",
        help="find out why an environment does not work",
        description="Examine environments: packages, addresses, workers, versions, clocks, secrets, payloads.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("environment", nargs="?", metavar="ENVIRONMENT", help="its name (default: all of them)")
    add_configuration(parser)
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds for one probe (30)")
    add(
        "--payload-bytes",
        type=int,
        default=8 * 1024 * 1024,
        metavar="N",
        help="the largest payload to send there and back (8388608)",
    )
    add(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="a module that the workers must be able to import; may be repeated",
    )
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    from wove.diagnosis import doctor

    try:
        configure(chosen)
        findings = doctor(
            chosen.environment,
            timeout=chosen.timeout,
            payload_bytes=chosen.payload_bytes,
            modules=chosen.module,
        )
    except Exception as error:  # also what a module of the user raises while it is imported
        return fail("wove doctor", error, WRONG_USE)

    if chosen.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))  # noqa: T201
    else:
        print(_as_text(findings))  # noqa: T201
    return SUCCESS if all(finding.ok for finding in findings) else FAILED


def _as_text(findings: Sequence[Finding]) -> str:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    title = None

    for finding in findings:
        if finding.environment != title:
            title = finding.environment
            lines += [""] * bool(lines) + [f"environment {title}" if title else "installation"]
        sign = (SIGNS if coloured else PLAIN_SIGNS)[finding.status]
        if coloured:
            sign = f"\x1b[{COLOURS[finding.status]}m{sign}\x1b[0m"
        lines.append(f"  {sign} {finding.check}: {finding.message}")
        if finding.remedy:
            lines.append(f"      to mend it: {finding.remedy}")

    broken = sum(not finding.ok for finding in findings)
    return "\n".join([*lines, "", f"{broken} of {len(findings)} checks failed"])
