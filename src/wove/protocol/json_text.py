"""JSON from other processes: parsed, and bounded in depth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, cast

from wove.protocol.limits import MAX_DEPTH

__all__ = ["check_depth", "parse_json"]

_decode: Final = json.JSONDecoder().decode
_CONTAINERS: Final = frozenset({dict, list, tuple})


def parse_json(text: str | bytes | bytearray) -> Any:
    """Return the value of a JSON text. Bytes are UTF-8, perhaps with a byte order mark (RFC 8259, 8.1).

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        value = _decode(text)
    except RecursionError:
        raise ValueError(_message()) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:  # which few messages have
        check_depth(value)
    return value


def check_depth(value: object) -> None:
    """Refuse a value of dicts and lists that is nested more than `MAX_DEPTH` deep.

    Code that walks through such a value, to print or to encode it, would exceed Python's limit of recursion.

    Raises:
        ValueError: It is nested too deeply.
    """
    level: list[Any] = [value] if type(value) in _CONTAINERS else []

    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for each in level:
            children: Iterable[Any] = cast("Any", each).values() if type(each) is dict else each
            deeper += [child for child in children if type(child) in _CONTAINERS]
        if not deeper:
            return
        level = deeper

    raise ValueError(_message())


def _message() -> str:
    return f"it is nested more than {MAX_DEPTH} deep"
