"""Configuration outside of the code: ``wove.toml``, ``[tool.wove]`` in ``pyproject.toml``, ``WOVE_*`` variables.

Each source is laid over the one before, in this order; calls of ``wove.config`` lie above all three.
The files are those of the working directory, or of its nearest parent that has one, up to the folder of
the repository (the one with ``.git``). Where there is none, reading costs a few look-ups in the file system.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from wove.errors import WoveWarning
from wove.graph.options import shown, suggest
from wove.settings.model import BUILT_IN, KEYS, Configuration, overlaid

__all__ = ["FILE", "PREFIX", "PROJECT_FILE", "read_sources", "value_of_text"]

FILE: Final = "wove.toml"
PROJECT_FILE: Final = "pyproject.toml"
PREFIX: Final = "WOVE_"

_ENVIRONMENTS: Final = "environments"

# Parsing a file takes milliseconds, and most of the files have no table of ours.
_MAY_HAVE_TABLE: Final = re.compile(
    rb"""^[ \t]*\[?[ \t]*["']?tool["']?[ \t]*(?:\.[ \t]*["']?wove\b|\]|=)""", re.MULTILINE
)

_NEAR: Final = 0.8
"""How alike the name of a variable and a setting must be, from 0 to 1, to be taken for a slip. Applications have
variables of their own that begin so."""


def read_sources(environ: Mapping[str, str], folder: str | None) -> Configuration:
    """Return the configuration of files and environment variables.

    Args:
        environ: The environment variables.
        folder: The absolute path of the folder where the search for files begins; ``None``: nowhere.

    Raises:
        TypeError: An unknown key, or a value of the wrong type; the message names file and key.
        ValueError: A value out of range, or a file that is not TOML.
        OSError: A file cannot be read.
    """
    configuration = BUILT_IN
    if folder is not None:
        for label, table in _tables(folder):
            configuration = overlaid(configuration, table, label)

    return _with_variables(configuration, environ)


# ------------------------------------------------------------------ files


def _tables(folder: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the label and the settings of each file that counts, the weakest first."""
    for path in _candidates(folder, FILE):
        yield path, _parsed(path, _read(path))
        break

    for path in _candidates(folder, PROJECT_FILE):
        content = _read(path)
        if not _MAY_HAVE_TABLE.search(content):
            continue

        tool = _parsed(path, content).get("tool")
        if isinstance(tool, Mapping) and "wove" in tool:
            label = f"{path} [tool.wove]"
            table = cast("Mapping[str, object]", tool)["wove"]
            if not isinstance(table, Mapping):
                raise TypeError(f"{label} must be a table of settings, not {shown(table)}")
            yield label, cast("Mapping[str, object]", table)
            break


def _candidates(folder: str, name: str) -> Iterator[str]:
    """Yield the files called *name* in *folder* and its parents, up to the repository, that may be trusted."""
    place = folder
    while True:
        path = os.path.join(place, name)
        if os.path.isfile(path) and (place == folder or _is_trusted(path, folder)):
            yield path

        parent = os.path.dirname(place)
        if parent == place or os.path.exists(os.path.join(place, ".git")):
            return
        place = parent


def _is_trusted(path: str, folder: str) -> bool:
    """Return whether *path* belongs to this user, to root or to the owner of *folder*.

    A configuration names commands to run, and anybody may put a file into a shared parent such as ``/tmp``.
    """
    if os.name != "posix":
        return True
    if os.stat(path).st_uid in {0, os.getuid(), os.stat(folder).st_uid}:
        return True

    warnings.warn(
        f"{path} belongs to another user and is ignored. Put the file into {folder}, or change its owner",
        WoveWarning,
        stacklevel=2,
    )
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _parsed(path: str, content: bytes) -> Mapping[str, object]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ones
        raise ValueError(f"{path} is not valid TOML: {error}. Correct or remove the file") from None


# ------------------------------------------------------------------ variables


def _with_variables(configuration: Configuration, environ: Mapping[str, str]) -> Configuration:
    """Return *configuration* with each ``WOVE_*`` variable laid over it."""
    variables = [
        (name.removeprefix(PREFIX).lower().split("__"), name)
        for name, text in environ.items()
        if name.startswith(PREFIX) and text
    ]
    # EXECUTOR comes before EXECUTOR_CONFIG__KEY: another executor begins with an empty executor_config.
    variables.sort(key=lambda variable: (len(variable[0]), variable[1]))

    for parts, name in variables:
        if parts[0] in KEYS and (len(parts) == 1 or parts[0] == _ENVIRONMENTS):
            label = f"variable {name}"
            given = _given(configuration, parts, value_of_text(environ[name]), label)
            configuration = overlaid(configuration, given, label, extends=True)
        elif hint := suggest(parts[0], KEYS, cutoff=_NEAR):
            warnings.warn(
                f"the variable {name} is not a setting of Wove and is ignored.{hint} Settings are variables "
                f"such as {PREFIX}RETRIES and {PREFIX}ENVIRONMENTS__REPORTS__EXECUTOR",
                WoveWarning,
                stacklevel=2,
            )

    return configuration


def _given(
    configuration: Configuration, parts: list[str], value: object, label: str
) -> dict[str, Any]:
    """Return the settings that one variable stands for; *parts* is its name, in lower case."""
    if "" in parts:
        raise TypeError(
            f"{label}: a part of the name is empty. Two underscores separate the parts, as in "
            f"{PREFIX}ENVIRONMENTS__REPORTS__EXECUTOR"
        )
    if len(parts) == 1:
        return {parts[0]: value}

    name = next(
        (known for known in configuration.environments if _as_part(known) == parts[1]), parts[1]
    )
    if len(parts) > 4:  # a dict below a key of executor_config: its other entries stay
        environment = configuration.environments.get(name)
        old = None if environment is None else environment.executor_config.get(parts[3])
        value = _nested(old, parts[4:], value)

    for part in reversed(parts[2:4]):
        value = {part: value}
    return {_ENVIRONMENTS: {name: value}}


def _as_part(name: str) -> str:
    """Return *name* as it stands in a variable: lower case, without what a variable's name cannot have."""
    return re.sub(r"\W", "_", name).lower()


def _nested(old: object, path: list[str], value: object) -> dict[str, Any]:
    base = dict(cast("Mapping[str, Any]", old)) if isinstance(old, Mapping) else {}
    base[path[0]] = value if len(path) == 1 else _nested(base.get(path[0]), path[1:], value)
    return base


_WORDS: Final[Mapping[str, object]] = {"true": True, "false": False, "null": None, "none": None}


def value_of_text(text: str) -> object:
    """Return the value that *text* stands for in a variable or on a command line: as JSON, otherwise as text.

    Example:
        >>> value_of_text("3"), value_of_text("true"), value_of_text("May"), value_of_text('"3"')
        (3, True, 'May', '3')
    """
    import json

    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return json.loads(word, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")
