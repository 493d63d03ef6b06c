"""``wove.config``: what a process was told about environments and defaults."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from wove.settings.model import BUILT_IN, Configuration, Environment, check_default_kept, overlaid

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Unpack

    from wove.graph.options import DefaultOptions

__all__ = ["Configuration", "Environment", "config", "current", "install"]

_current: Configuration = BUILT_IN
_lock = threading.Lock()
_file: ContextVar[str | None] = ContextVar("wove_config_file", default=None)
"""The configuration file that is running right now."""


def config(
    *,
    default_environment: str | None = None,
    environments: Mapping[str, Mapping[str, Any] | None] | None = None,
    config_file: str | os.PathLike[str] | None = None,
    **defaults: Unpack[DefaultOptions],
) -> None:
    """Configure this process: environments, and defaults for every weave and task.

    Each call adds to the earlier ones, key by key, and counts for the weaves that start after it. A
    call that fails changes nothing. Without arguments it loads ``wove_config.py`` from the working
    directory, or from the nearest parent that has one.

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

    global _current

    with _lock:
        before = configuration = _current
        for label, layer in layers:
            configuration = overlaid(configuration, layer, label)
        check_default_kept(before, configuration)
        _current = configuration


def current() -> Configuration:
    """The configuration that holds now: a snapshot that never changes."""
    return _current


def install(configuration: Configuration) -> None:
    """Put *configuration* in the place of the current one, whole.

    A detached process takes over its parent's this way, and tests go back to an earlier one.
    """
    global _current
    with _lock:
        _current = configuration


def _read(config_file: str | os.PathLike[str] | None) -> tuple[str, Mapping[Any, object]]:
    """Where the settings came from, and the settings. No lock is held while the file runs."""
    from wove.settings.loading import load, locate
    from wove.settings.model import KEYS

    path = locate(config_file)
    token = _file.set(str(path))
    try:
        return str(path), load(path, KEYS)
    finally:
        _file.reset(token)
