"""The configuration of this process: files and variables, read on first use, and calls of ``wove.config``."""

from __future__ import annotations

import contextlib
import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from wove.concurrency import forks
from wove.settings.model import Configuration, Environment, check_default_kept, overlaid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from wove.graph.options import DefaultOptions
    from wove.settings.types import EnvironmentDefinition

__all__ = ["Configuration", "Environment", "config", "current", "install", "installed"]

_current: Configuration | None = None
"""``None`` until files and variables have been read."""

_lock = threading.Lock()
_file: ContextVar[str | None] = ContextVar("wove_config_file", default=None)
"""The configuration file that is running right now."""


def config(
    *,
    default_environment: str | None = None,
    environments: Mapping[str, EnvironmentDefinition | None] | None = None,
    config_file: str | os.PathLike[str] | None = None,
    **defaults: Unpack[DefaultOptions],
) -> None:
    """Configure this process: environments, and defaults for every weave and task.

    Each call adds to the earlier ones, key by key, and counts for the weaves that start after it. A
    call that fails changes nothing. Below all calls lie ``wove.toml``, ``[tool.wove]`` in
    ``pyproject.toml`` and the variables ``WOVE_*``, which are read once.

    Without arguments it loads ``wove_config.py`` from the working directory, or from the nearest parent
    that has one.

    Args:
        default_environment: The environment of weaves that name none. It may be configured later.
        environments: Definitions by name: a dict with ``executor`` (the name of a built-in one, or an
            ``EnvironmentExecutor``), ``executor_config``, and any default below. What a definition
            leaves out stays as it was, except that another ``executor`` starts with an empty
            ``executor_config``. ``None`` removes an environment; ``"default"`` then is the built-in,
            local one again.
        config_file: A file to load, from the working directory if relative. What is passed beside it
            wins over what it says.
        **defaults: ``max_workers``, ``background``, ``fork``, ``error_mode``, ``max_pending``,
            ``retries``, ``retry_delay`` (seconds), ``retry_on``, ``timeout`` (seconds), ``workers``,
            ``limit_per_minute`` and ``delivery_*``. ``None`` is the built-in value.

    Raises:
        TypeError: An unknown key, or a value of the wrong type.
        ValueError: A value out of range, or an environment that cannot be removed.
        FileNotFoundError: There is no configuration file.
        RuntimeError: Called by the configuration file itself.

    Example:
        >>> import wove
        >>> wove.config(
        ...     environments={"reports": {"executor": "stdio", "timeout": 120.0}},
        ...     retries=1,
        ... )
    """
    running = _file.get()
    if running is not None:
        raise RuntimeError(
            f"{running} calls wove.config(), which is loading it; let it set names instead"
        )

    given: dict[str, object] = dict(defaults)
    if default_environment is not None:
        given["default_environment"] = default_environment
    if environments is not None:
        given["environments"] = environments

    layers: list[tuple[str, Mapping[Any, object]]] = [("wove.config", given)]
    if config_file is not None or not given:
        layers.insert(0, _read(config_file))

    base = current()
    global _current

    with _lock:
        before = base if _current is None else _current
        configuration = before
        for label, layer in layers:
            configuration = overlaid(configuration, layer, label)
        check_default_kept(before, configuration)
        _current = configuration


def current() -> Configuration:
    """Return the configuration that holds now: a snapshot that never changes.

    Raises:
        TypeError, ValueError, OSError: ``wove.toml``, ``pyproject.toml`` or a variable is wrong. The next call reads
            them again.
    """
    return _current if _current is not None else _read_outside()


def installed() -> Configuration | None:
    """Return the configuration that holds now; ``None`` where files and variables have not been read yet."""
    return _current


def install(configuration: Configuration | None) -> None:
    """Put *configuration* in the place of the current one, whole; ``None``: read files and variables again.

    A detached process takes over its parent's this way, and tests go back to an earlier one.
    """
    global _current
    with _lock:
        _current = configuration


def _read_outside() -> Configuration:
    folder: str | None = None
    with contextlib.suppress(FileNotFoundError):  # it may have been removed
        folder = os.getcwd()

    # A fork waits for imports: a child that had a half-imported module would wait for it for ever.
    with forks.importing:
        from wove.settings.sources import read_sources

        configuration = read_sources(os.environ, folder)

    global _current
    with _lock:  # another thread may have been faster
        if _current is None:
            _current = configuration
        return _current


def _read(config_file: str | os.PathLike[str] | None) -> tuple[str, Mapping[Any, object]]:
    """Return where the settings came from, and the settings. No lock is held while the file runs."""
    from wove.settings.loading import load, locate
    from wove.settings.model import KEYS

    path = locate(config_file)
    token = _file.set(str(path))
    try:
        return str(path), load(path, KEYS)
    finally:
        _file.reset(token)
