"""Executors of other packages, by the entry points of the group ``wove.executors``.

A package declares a name, and the class behind it::

    [project.entry-points."wove.executors"]
    nomad = "wove_nomad:NomadAdapter"

The class is an `EnvironmentExecutor`, or a `BackendAdapter`. Names of Wove's own cannot be taken.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

from wove.executors.base import EnvironmentExecutor

__all__ = ["GROUP", "plugin_class", "plugin_names"]

GROUP: Final = "wove.executors"


def plugin_names() -> list[str]:
    """Return the names that installed packages declare."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def plugin_class(name: str) -> type[EnvironmentExecutor] | None:
    """Return the executor class that an installed package declares as *name*; ``None`` if none does.

    Raises:
        ValueError: Several packages declare that name.
        ImportError: The class cannot be imported.
        TypeError: It is neither an executor nor an adapter.
    """
    entries = entry_points(group=GROUP, name=name)
    declared = {entry.value: entry for entry in entries}
    if not declared:
        return None
    if len(declared) > 1:
        packages = ", ".join(sorted(map(_package_of, declared.values())))
        raise ValueError(
            f"executor {name!r} is declared by several packages ({packages}): uninstall all but one of them"
        )

    (value,) = declared
    return _load(name, value, _package_of(declared[value]))


def _package_of(entry: EntryPoint) -> str:
    return "an unnamed package" if entry.dist is None else entry.dist.name


@cache
def _load(name: str, value: str, package: str) -> type[EnvironmentExecutor]:
    label = f"executor {name!r} of the package {package!r}"
    try:
        found: Any = EntryPoint(name, value, GROUP).load()
    except Exception as error:
        raise ImportError(
            f"{label} cannot be loaded from {value!r}: {type(error).__name__}: {error}"
        ) from error

    if isinstance(found, type) and issubclass(found, EnvironmentExecutor):
        return found

    # Here, because executors do without it.
    from wove.executors.backend.executor import for_adapter
    from wove.integrations.base import BackendAdapter

    if isinstance(found, type) and issubclass(found, BackendAdapter):
        return for_adapter(found)
    raise TypeError(
        f"{label} must be a subclass of EnvironmentExecutor or BackendAdapter, not {cast('object', found)!r}"
    )
