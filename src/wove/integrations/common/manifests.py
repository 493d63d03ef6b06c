"""Merging of the user's pieces of manifests into those that runs need. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from wove.protocol.names import PAYLOAD_VARIABLE

__all__ = ["RESERVED_VARIABLES", "merged"]

RESERVED_VARIABLES: Final = {PAYLOAD_VARIABLE: "that is the payload"}
"""Environment variables of a worker's container that the user cannot set, and why."""


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return *base* with *more* merged in: dicts by key, lists of named entries by name, anything else replaced.

    Example:
        >>> merged({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B", "value": "2"}], "tty": True})
        {'env': [{'name': 'A', 'value': '1'}, {'name': 'B', 'value': '2'}], 'tty': True}
    """
    both = dict(base)

    for key, value in more.items():
        if isinstance(both.get(key), Mapping) and isinstance(value, Mapping):
            both[key] = merged(both[key], cast("Mapping[str, Any]", value))
        elif (ours := _named(both.get(key))) and (theirs := _named(value)) is not None:
            both[key] = _one_list(ours, theirs)
        else:
            both[key] = copy.deepcopy(value)

    return both


def _named(value: object) -> list[Mapping[str, Any]] | None:
    """Return the entries of a list in which each has a name; ``None`` if *value* is not such a list."""
    if not isinstance(value, (list, tuple)):
        return None
    items = cast("Sequence[Any]", value)
    good = all(
        isinstance(item, Mapping) and isinstance(cast("Any", item).get("name"), str)
        for item in items
    )
    return list(items) if good else None


def _one_list(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    known, added = ({each["name"]: each for each in some} for some in (ours, theirs))
    if (len(known), len(added)) != (len(ours), len(theirs)):
        # A name that occurs twice is intended: two mounts of one volume.
        return [*(each for each in ours if each["name"] not in added), *copy.deepcopy(list(theirs))]
    return [merged(known.get(name, {}), added.get(name, {})) for name in {**known, **added}]
