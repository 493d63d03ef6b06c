"""``wove run MODULE:CLASS KEY=VALUE``: one weave, its results as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from wove.cli.configuring import add_configuration, configure
from wove.cli.target import TargetError, add_target, load_class, values_of
from wove.cli.terminal import FAILED, SUCCESS, WRONG_USE, fail, new_command

if TYPE_CHECKING:
    from wove.block import weave
    from wove.graph.plan import Declaration
    from wove.result import WoveResult
    from wove.workflow import Weave

__all__ = ["add_parser"]

COMMAND: Final = "wove run"

EXAMPLES: Final = """\
examples:
  wove run myapp.reports:Report month=May accounts='[1, 2, 3]'
  wove run flows/report.py:Report month=May --print total
  wove run myapp.reports:Report month=May --environment cluster --record run.html

The results go to stdout as JSON; progress, errors and what the tasks print go to stderr.
exit status: 0 all tasks succeeded; 1 a task failed; 2 nothing was run, because the arguments or the
configuration are wrong; 130 interrupted."""


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``run`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "run",
        help="run a Weave class",
        description="Run the tasks of a Weave class, and print their results as JSON.",
        examples=EXAMPLES,
    )
    add_target(parser)
    add_configuration(parser)
    parser.add_argument(
        "--print", dest="shown", metavar="TASK", help="print the result of this task alone"
    )
    parser.add_argument(
        "--environment", metavar="NAME", help="the environment of tasks that name none"
    )
    parser.add_argument(
        "--error-mode", choices=("raise", "return", "continue"), help="as error_mode of weave(...)"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="write the timeline to FILE (.html or .json)"
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show what the tasks are doing (default: if stderr is a terminal)",
    )
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    from wove.workflow import declarations_of

    try:
        configure(chosen)
        cls = load_class(chosen.target)
    except TargetError as error:
        return fail(COMMAND, error, WRONG_USE)
    except Exception as error:  # the user's own modules may raise anything
        traceback.print_exception(error)
        return WRONG_USE

    try:
        declarations = declarations_of(cls)
        block = _planned(chosen, cls, declarations)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        return fail(COMMAND, error, WRONG_USE)

    try:
        # So that what tasks print cannot be taken for a part of the JSON.
        with contextlib.redirect_stdout(sys.stderr), block:
            pass
    except Exception as error:
        traceback.print_exception(error)
        return FAILED

    names = list(declarations) if chosen.shown is None else [chosen.shown]
    return _print_results(block.result, names, alone=chosen.shown is not None)


def _planned(
    chosen: argparse.Namespace, cls: type[Weave], declarations: Mapping[str, Declaration]
) -> weave:
    """Return the weave, ready to run; whatever is wrong before a task runs is raised here."""
    from wove.block import weave
    from wove.graph.plan import plan

    if chosen.shown is not None and chosen.shown not in declarations:
        raise TargetError(f"--print: there is no task {chosen.shown!r}: {', '.join(declarations)}")
    values = values_of(chosen.values)
    given = {"environment": chosen.environment, "error_mode": chosen.error_mode}
    block = weave(
        cls,
        values=values,
        background=False,
        fork=False,
        progress=sys.stderr.isatty() if chosen.progress is None else chosen.progress,
        record=chosen.record,
        **{name: value for name, value in given.items() if value is not None},
    )

    wrong = plan(declarations, values).error
    if wrong is not None:
        raise wrong
    block.explain()  # resolves every environment
    return block


def _print_results(result: WoveResult, names: Sequence[str], *, alone: bool) -> int:
    """Print the results of those of the tasks *names* that succeeded, and return the exit status."""
    for failure in result.failures:
        item = "" if failure.item is None else f", item {failure.item}"
        fail(f"{COMMAND}: task {failure.task}{item}", failure.exception)

    failed = {failure.task for failure in result.failures} | set(result.cancelled)
    results = {name: result[name] for name in names if name not in failed}
    value = next(iter(results.values()), None) if alone else results
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))  # noqa: T201
    return FAILED if failed else SUCCESS


def _plain(value: object) -> object:
    """Return *value* with everything that JSON does not know as its ``repr``."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        if isinstance(value, dict):
            mapping = cast("dict[object, object]", value)
            return {str(key): _plain(item) for key, item in mapping.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(item) for item in cast("Sequence[object]", value)]
        return repr(value)

    return value
