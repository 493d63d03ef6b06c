"""``wove_config.py``: finding it, running it, and what of it counts.

The file is Python. Either it has a dict ``WOVE_CONFIG``, which then is all that counts, or its
module-level names are the settings. A misspelt setting must not pass in silence, and a file needs
imports, helpers and constants of its own; so of the names that are not settings

- private ones, modules, functions, classes and other objects are the file's own affair,
- UPPER_CASE ones too, unless they are a setting's name in capitals or nearly that,
- public lower-case ones that hold plain data (text, numbers, lists, dicts, ...) are errors.

The file runs once per call, under no importable name: it is not in ``sys.modules`` afterwards,
leaves no ``__pycache__``, and imports what the process can import; its own folder is not added to
``sys.path``.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from wove.graph.options import shown, suggest

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["FILE_NAME", "load", "locate"]

FILE_NAME: Final = "wove_config.py"
DICT_NAME: Final = "WOVE_CONFIG"

_PLAIN: Final = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, Mapping)


def locate(config_file: str | os.PathLike[str] | None) -> Path:
    """Return the path of the file to load.

    Args:
        config_file: A path, from the working directory if relative; ``~`` is the home directory.
            ``None`` looks for ``wove_config.py`` in the working directory and then in its parents.

    Raises:
        FileNotFoundError: There is no such file; the message names the folders of the search.
    """
    here = Path.cwd()

    if config_file is not None:
        if not isinstance(cast("object", config_file), (str, os.PathLike)):
            raise TypeError(f"wove.config: config_file must be a path, not {shown(config_file)}")
        path = here / Path(config_file).expanduser()
        if not path.is_file():
            reason = "is a directory" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"wove.config: config_file {str(path)!r} {reason}")
        return path

    for folder in (here, *here.parents):
        path = folder / FILE_NAME
        if path.is_file():
            return path

    raise FileNotFoundError(
        f"wove.config() without arguments loads {FILE_NAME}, and there is none in {str(here)!r} or a parent "
        "of it. Create one, name another file with config_file=..., or pass the settings as arguments"
    )


def load(path: Path, known: Collection[str]) -> Mapping[Any, object]:
    """Run the file at *path* and return the settings in it, unchecked.

    Args:
        path: The file.
        known: The names of all settings.

    Raises:
        TypeError: ``WOVE_CONFIG`` is not a dict, or a name looks like a misspelt setting.
        Exception: Whatever the file raises, with a note that says which file it was.
    """
    namespace = _run(path)
    if DICT_NAME in namespace:
        settings = namespace[DICT_NAME]
        if not isinstance(settings, Mapping):
            raise TypeError(f"{path}: {DICT_NAME} must be a dict, not {shown(settings)}")
        return cast("Mapping[Any, object]", settings)

    for name, value in namespace.items():
        if name not in known:
            _check_stranger(name, value, known, str(path))

    return {name: namespace[name] for name in known if name in namespace}


def _check_stranger(name: str, value: object, known: Collection[str], label: str) -> None:
    """Refuse a name that is not a setting and looks as if it were meant as one."""
    if name.startswith("_") or not (value is None or isinstance(value, _PLAIN)):
        return
    constant = name.isupper()
    hint = suggest(name, [*known, DICT_NAME], cutoff=0.8 if constant else 0.6)
    if constant and not hint:
        return
    raise TypeError(
        f"{label}: unknown setting {name!r}.{hint} Settings are lower case; a name of the file's own "
        f"begins with an underscore, or else the settings are in a dict {DICT_NAME}"
    )


def _run(path: Path) -> dict[str, Any]:
    name = f"__wove_config_{threading.get_ident()}__"
    module = ModuleType(name)
    module.__file__ = str(path)

    try:
        with _registered(name, module):
            # dont_inherit, or this module's own __future__ import would hold in the file.
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        error.add_note(f"This happened in {path}, which wove.config() was loading.")
        raise

    return module.__dict__


@contextmanager
def _registered(name: str, module: ModuleType) -> Generator[None]:
    """*module* in ``sys.modules`` for the moment: dataclasses look their own module up there."""
    sys.modules[name] = module
    try:
        yield
    finally:
        sys.modules.pop(name, None)
