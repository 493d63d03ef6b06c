"""The keys of an environment on Slurm: options of ``sbatch``, and the environment variables of jobs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple, cast

from wove.graph.rules import shown
from wove.settings.config_readers import command_words

__all__ = [
    "Export",
    "directives",
    "environment_of_queries",
    "read_export",
    "read_options",
    "resource_options",
]

_TWICE: Final = (
    "a job that runs twice would report twice. Use delivery_orphan_policy='requeue', "
    "which submits a lost run again"
)
_NONE: Final = "no job would run"

RESERVED: Final = {
    "job-name": "it names the run; 'job_name_prefix' is what it begins with",
    "J": "it names the run; 'job_name_prefix' is what it begins with",
    "output": "it has a key of its own, 'output'",
    "o": "it has a key of its own, 'output'",
    "error": "what a job says goes to 'output', which has a key of its own",
    "e": "what a job says goes to 'output', which has a key of its own",
    "export": "it has a key of its own, 'export'",
    "export-file": "use the key 'export'",
    "get-user-env": "use the key 'export', with 'NONE'",
    "parsable": "Wove sets it, to read the job's id",
    "wrap": "the script is Wove's; what it starts is 'command'",
    "array": "a run is one job",
    "a": "a run is one job",
    "input": "what the worker reads is the payload",
    "i": "what the worker reads is the payload",
    "wait": "sbatch would hold up a thread for as long as the job lasts; its worker reports by itself",
    "W": "sbatch would hold up a thread for as long as the job lasts; its worker reports by itself",
    "requeue": _TWICE,
    "no-requeue": "Wove sets it",
    "test-only": _NONE,
    "help": _NONE,
    "h": _NONE,
    "usage": _NONE,
    "version": _NONE,
    "V": _NONE,
}
"""Options of ``sbatch`` that the user cannot set, and why. The names are those of sbatch(1)."""

EXPORTED: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_*",
    "TZ",
    "PYTHON*",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
    "MODULEPATH",
)
"""The variables of the submitting process that a job gets: enough to find programs and modules."""

_OF_SBATCH: Final = (
    "SBATCH_*",
    "SLURM_CONF",
    "SLURM_CLUSTERS",
    "SLURM_JWT",
    "SLURM_UMASK",
    "SLURM_DEBUG_FLAGS",
)
"""The variables that ``sbatch`` itself reads (sbatch(1), INPUT ENVIRONMENT VARIABLES). Not all of SLURM_*: in a
process that is a job itself, these say what *that* job has, and Slurm hands them on to the new one."""

_NOT_OF_SBATCH: Final = ("SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_GET_USER_ENV")
"""Variables of ``sbatch`` that would override what Wove sets, and that no option on the command line switches off."""

_OTHER_COMMANDS: Final = ("SQUEUE_*", "SCANCEL_*", "SACCT_*", "SLURM_TIME_FORMAT")
"""Variables with filters and prompts for interactive use, which would hide jobs from the queries (squeue(1),
scancel(1), ENVIRONMENT VARIABLES)."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_OPTION: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")


# ---------------------------------------------------------------------------------------------- sbatch_options


def read_options(value: object, *, label: str) -> tuple[str, ...]:
    """Return ``sbatch_options`` as arguments of ``sbatch``.

    Args:
        value: A dict of long or short names; or the arguments themselves, as a list or a text; or ``None``. In a dict,
            True stands for an option without a value; options with False or ``None`` are left out.
        label: What messages begin with.

    Raises:
        TypeError: It is something else.
        ValueError: An option is reserved, or not an option; the message says why.

    Example:
        >>> read_options({"partition": "gpu", "cpus_per_task": 4, "exclusive": True}, label="environment 'jobs'")
        ('--partition=gpu', '--cpus-per-task=4', '--exclusive')
    """
    key_label = f"{label}: executor_config 'sbatch_options'"
    if value is None:
        return ()
    if isinstance(value, Mapping):
        arguments = tuple(_of_mapping(cast("Mapping[object, object]", value), key_label))
    else:
        arguments = command_words(value, key_label, printable=True)

    before = "="

    for each in arguments:
        if (
            not each.startswith("-") and "=" in before
        ):  # sbatch would use it as the script, and the rest as its arguments
            raise ValueError(
                f"{key_label}: {each!r} is neither an option of sbatch nor the value of one"
            )
        before = "=" if not each.startswith("-") else each
        # The value of a short option may follow directly; a word without a hyphen is the value of the option before it.
        name = _name(each)
        if (reason := RESERVED.get(name)) is not None:
            raise ValueError(f"{key_label} cannot set {name!r}: {reason}")

    return arguments


_ASKED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "cpus": ("cpus-per-task", "c"),
    "memory": ("mem", "mem-per-cpu", "mem-per-gpu"),
    "gpus": ("gres", "gpus", "G", "gpus-per-node", "gpus-per-task"),
    "time": ("time", "t"),
    "disk": ("tmp",),
}
"""The options of ``sbatch`` that ask for a resource; where the user has set one, it stands."""

MARGIN_SECONDS: Final = 60.0
"""By how much a job's wall time exceeds the time limit of its run, which its worker ends by itself."""


def resource_options(
    resources: Mapping[str, float], seconds: float, given: Sequence[str]
) -> tuple[str, ...]:
    """Return the options of ``sbatch`` that ask for what a task needs.

    Args:
        resources: The ``resources`` of its ``run_task`` frame.
        seconds: How long the run can take; infinite where nothing limits it.
        given: The options of the environment, which stand.

    Example:
        >>> resource_options({"cpus": 4, "memory": 8 * 2**30, "gpus": 1, "time": 7200.0}, math.inf, ())
        ('--cpus-per-task=4', '--mem=8388608K', '--gres=gpu:1', '--time=120')
    """
    wanted = dict(resources)
    if math.isfinite(seconds):
        wanted.setdefault("time", seconds + MARGIN_SECONDS)
    taken = {name for each in given if (name := _name(each))}
    written: dict[str, Callable[[float], str]] = {
        "cpus": lambda value: f"--cpus-per-task={math.ceil(value)}",
        "memory": lambda value: f"--mem={math.ceil(value / 1024)}K",
        "gpus": lambda value: f"--gres=gpu:{value:g}",
        "time": lambda value: f"--time={math.ceil(value / 60)}",
        "disk": lambda value: f"--tmp={math.ceil(value / 1024)}K",
    }
    return tuple(
        write(wanted[name])
        for name, write in written.items()
        if wanted.get(name) and taken.isdisjoint(_ASKED_BY[name])
    )


def _name(argument: str) -> str:
    """Return the name of the option that *argument* begins with; an empty text for a value."""
    if argument.startswith("--"):
        return argument[2:].partition("=")[0]
    return argument[1:2] if argument.startswith("-") else ""


def directives(arguments: Sequence[str]) -> str:
    """Return *arguments* as lines of a script that ``sbatch`` reads.

    Example:
        >>> print(directives(["--partition=gpu", "--comment=a b"]), end="")
        #SBATCH --partition=gpu
        #SBATCH "--comment=a b"
    """
    # Slurm splits each line at spaces, and interprets double quotes and backslashes (src/sbatch/opt.c, _get_argument).
    return "".join(f"#SBATCH {' '.join(map(_quoted, words))}\n" for words in _joined(arguments))


def _of_mapping(options: Mapping[object, object], label: str) -> list[str]:
    found: list[str] = []

    for name, value in options.items():
        if not isinstance(name, str) or not _OPTION.fullmatch(name):
            raise ValueError(
                f"{label} has an option {name!r}: names are those of sbatch, without hyphens before them"
            )
        if value is None or value is False:
            continue
        if not isinstance(value, (str, int, float, Path)):
            raise TypeError(
                f"{label}: {name!r} must be a text, a number, True or None, not {shown(value)}"
            )
        word = str(value)
        if _UNPRINTABLE.search(word):
            raise ValueError(f"{label}: {name!r} holds a line break or another control character")
        if len(name) == 1:
            found += [f"-{name}"] if value is True else [f"-{name}{word}"]
        else:
            dashed = name.replace("_", "-")
            found.append(f"--{dashed}" if value is True else f"--{dashed}={word}")

    return found


def _joined(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return options with their values: a word without a hyphen belongs to the option before it."""
    lines: list[tuple[str, ...]] = []

    for each in arguments:
        if lines and not each.startswith("-"):
            lines[-1] = (*lines[-1], each)
        else:
            lines.append((each,))

    return lines


def _quoted(word: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"' if re.search(r"[\s\"'#\\]", word) else word


# ------------------------------------------------------------------------------------------------------ export


class Export(NamedTuple):
    """The part of this process's environment that a job gets.

    Attributes:
        option: The value of ``sbatch --export``.
        names: Patterns of the variables that jobs get; ``None``: all variables.
        values: Further variables with their values.
    """

    option: str
    names: tuple[str, ...] | None
    values: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """Return the environment in which to call ``sbatch``, which passes all of it on.

        So no value is on a command line, values may contain commas, and the node does not create a login environment
        with ``su`` first, which takes a second or more for ``--export=NAME`` and ``--export=NONE``.
        """
        names = ("*",) if self.names is None else (*self.names, *_OF_SBATCH)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_OF_SBATCH and any(fnmatchcase(name, pattern) for pattern in names)
        }
        return {**kept, **self.values}


def read_export(value: object, *, label: str) -> Export:
    """Read the key ``export``.

    Args:
        value: A list (or a text with commas) of names of variables, ``NAME=value`` or ``PREFIX_*``, which jobs get
            in addition to `EXPORTED`; or a dict of values; ``"ALL"`` for the whole environment; ``"NONE"`` for that of
            a login on the node; ``None`` for `EXPORTED` only.
        label: What messages begin with.

    Raises:
        TypeError: It is something else.
        ValueError: A name is not a name of a variable.
    """
    key_label = f"{label}: executor_config 'export'"
    if isinstance(value, str):
        if value in ("ALL", "NONE"):
            return Export(value, None, {})
        value = [each for each in value.split(",") if each]

    if isinstance(value, Mapping):
        value = [f"{name}={held}" for name, held in cast("Mapping[str, object]", value).items()]
    if not isinstance(value, (list, tuple, type(None))):
        raise TypeError(
            f"{key_label} must be a list of names, a dict, 'ALL' or 'NONE', not {shown(value)}"
        )

    names: list[str] = list(EXPORTED)
    values: dict[str, str] = {}

    for each in cast("Sequence[object]", value or ()):
        if not isinstance(each, str):
            raise TypeError(f"{key_label} must be a list of names, and {shown(each)} is not one")
        name, given, held = each.partition("=")
        if not (_NAME if given else _PATTERN).fullmatch(name):
            raise ValueError(
                f"{key_label}: {name!r} is not a name of a variable. Write NAME, NAME=value or PREFIX_*"
            )
        if name in ("ALL", "NONE", "NIL"):
            raise ValueError(f"{key_label}: {name!r} stands alone, not in a list")
        if "\0" in held:
            raise ValueError(
                f"{key_label}: the value of {name!r} holds a NUL, which no variable can"
            )
        if given:
            values[name] = held
        else:
            names.append(name)

    return Export("ALL", tuple(names), values)


def environment_of_queries() -> dict[str, str]:
    """Return the environment in which the other commands are called."""
    return {
        name: value
        for name, value in os.environ.items()
        if not any(fnmatchcase(name, pattern) for pattern in _OTHER_COMMANDS)
    }
