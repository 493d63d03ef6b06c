"""The resources that a task asks for: one vocabulary for all environments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypedDict, cast

from wove.graph.rules import Rule, positive, shown, suggest, whole

__all__ = ["NAMES", "Resources", "ResourcesDict", "resources"]

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE: Final = r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?"  # not compiled here: few programs need it
_DURATION: Final = r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)"
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class ResourcesDict(TypedDict, total=False):
    """The resources that a task may ask for, checked when the task is declared.

    ``cpus`` and ``gpus`` are numbers; ``memory`` and ``disk`` are bytes, or text such as ``"8GiB"``; ``time`` is the
    wall time of the job: seconds, or text such as ``"2h"``.
    """

    cpus: float
    memory: int | str
    gpus: int
    time: float | str
    disk: int | str


class Resources(NamedTuple):
    """The resources of a task, in base units; ``None``: it does not say.

    Attributes:
        cpus: Cores, or a fraction of one.
        memory: Bytes.
        gpus: Devices.
        time: Seconds that the job may run; waiting in a queue does not count.
        disk: Bytes of temporary space.
    """

    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    time: float | None = None
    disk: int | None = None

    def given(self) -> dict[str, float]:
        """Return those that are set, by name: JSON values, as they are in a ``run_task`` frame."""
        return {name: value for name, value in self._asdict().items() if value is not None}


NAMES: Final = Resources._fields


def resources(value: Any) -> Resources:
    """Check the value of the option ``resources``, and return it in base units."""
    if isinstance(value, Resources):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f'must be a dict such as {{"cpus": 4, "memory": "8GiB"}}, not {shown(value)}'
        )

    found: dict[str, Any] = {}
    for name, wanted in cast("Mapping[object, object]", value).items():
        if not isinstance(name, str) or name not in _RULES:
            hint = suggest(name, NAMES) if isinstance(name, str) else ""
            raise ValueError(f"has no {name!r}.{hint} There are: {', '.join(NAMES)}")
        try:
            found[name] = _RULES[name](wanted)
        except (TypeError, ValueError) as error:
            raise type(error)(f"[{name!r}] {error}") from None

    if not found:
        raise ValueError(f"must not be empty. There are: {', '.join(NAMES)}")
    return Resources(**found)


def _size(value: Any) -> int:
    if not isinstance(value, str):
        return cast("int", whole(1)(value))
    match = re.fullmatch(_SIZE, value.strip(), re.IGNORECASE)
    size = math.ceil(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise ValueError(f'must be bytes, or text such as "8GiB" or "500MB", not {value!r}')
    return size


def _duration(value: Any) -> float:
    if not isinstance(value, str):
        return cast("float", positive("seconds")(value))
    match = re.fullmatch(_DURATION, value.strip(), re.IGNORECASE)
    seconds = float(match[1]) * _SECONDS[match[2].lower()] if match else 0.0
    if seconds <= 0:
        raise ValueError(
            f'must be seconds, or text such as "90s", "30m", "2h" or "1d", not {value!r}'
        )
    return seconds


_RULES: Final[Mapping[str, Rule]] = {
    "cpus": positive("cores"),
    "memory": _size,
    "gpus": whole(0),
    "time": _duration,
    "disk": _size,
}
