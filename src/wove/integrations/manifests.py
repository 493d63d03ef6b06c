"""Putting one manifest into another: what the user wants beside what a run needs. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

__all__ = ["merged"]


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """*base* with *more* put in: dicts key by key, lists of named things name by name, anything else replaced.

    Example:
        >>> merged({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B", "value": "2"}], "tty": True})
        {'env': [{'name': 'A', 'value': '1'}, {'name': 'B', 'value': '2'}], 'tty': True}
    """
    both = dict(base)
    for key, value in more.items():
        if isinstance(both.get(key), Mapping) and isinstance(value, Mapping):
            both[key] = merged(both[key], cast("Mapping[str, Any]", value))
        elif (ours := _named(both.get(key))) is not None and (theirs := _named(value)) is not None:
            both[key] = [merged(ours.get(name, {}), theirs.get(name, {})) for name in {**ours, **theirs}]
        else:
            both[key] = copy.deepcopy(value)
    return both


def _named(value: object) -> dict[str, Mapping[str, Any]] | None:
    """The items of a list by their names; ``None`` if it is no list of such."""
    if not isinstance(value, (list, tuple)):
        return None
    items = cast("Sequence[object]", value)
    found: dict[str, Mapping[str, Any]] = {}
    for item in items:
        name = cast("Mapping[str, Any]", item).get("name") if isinstance(item, Mapping) else None
        if not isinstance(name, str):
            return None
        found[name] = cast("Mapping[str, Any]", item)
    return found if found and len(found) == len(items) else None
