"""Pieces of manifests in ``executor_config``, and how they are put into those that runs need. Pure."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast

from wove.graph.rules import shown

__all__ = ["command_of", "merged"]


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
        elif (ours := _named(both.get(key))) and (theirs := _named(value)) is not None:
            both[key] = _one_list(ours, theirs)
        else:
            both[key] = copy.deepcopy(value)

    return both


def _named(value: object) -> list[Mapping[str, Any]] | None:
    """The items of a list in which each has a name; ``None`` if it is no such list."""
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
    if (len(known), len(added)) != (
        len(ours),
        len(theirs),
    ):  # what comes twice is meant so: two mounts of one volume
        return [*(each for each in ours if each["name"] not in added), *copy.deepcopy(list(theirs))]
    return [merged(known.get(name, {}), added.get(name, {})) for name in {**known, **added}]


def command_of(config: Mapping[str, Any], *, label: str) -> list[str] | None:
    """The words of ``command``, a list or a text that is split like a shell's; ``None``: there is none.

    Raises:
        TypeError: It is neither.
        ValueError: A quote in it has no end.
    """
    command: Any = config.get("command")
    if command is None:
        return None
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise ValueError(
            f"{label}: executor_config 'command' cannot be split: {error}: {command!r}"
        ) from None

    if (
        isinstance(words, (list, tuple))
        and words
        and all(isinstance(word, str) for word in cast("Any", words))
    ):
        return list(cast("Sequence[str]", words))

    raise TypeError(
        f"{label}: executor_config 'command' must be a text or a list of texts, not {shown(command)}"
    )
