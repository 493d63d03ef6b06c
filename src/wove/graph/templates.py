"""Text made of a task's arguments: ``delivery_idempotency_key`` and ``cache_key``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from wove.graph.rules import suggest

__all__ = ["render"]


def render(
    key: str | Callable[..., str], args: Mapping[str, Any], label: object, option: str
) -> str:
    """Return the text that *key* gives for these arguments.

    Args:
        key: A template with ``{param}`` fields, formatted as `str.format` does (``{user.id}``,
            ``{day:%Y-%m-%d}``), or a callable, called as ``key(**args)``.
        args: The arguments of the task, by parameter name.
        label: The task, for messages.
        option: The name of the option, for messages.

    Raises:
        ValueError: A field names no parameter, or the text is empty.
        TypeError: The callable returned something other than text.
    """
    if callable(key):
        text = cast("object", key(**args))
        if not isinstance(text, str):
            raise TypeError(
                f"{label}: the {option} callable must return text, not {type(text).__name__}"
            )
    else:
        try:
            text = key.format_map(_Fields(args))
        except _UnknownFieldError as error:
            field = error.args[0]
            raise ValueError(
                f"{label}: {option} {key!r} has a field {{{field}}}, and the task has no such "
                f"parameter (it has: {', '.join(args) or 'none'}).{suggest(field, args)}"
            ) from None

    if not text:
        raise ValueError(f"{label}: its {option} is an empty text for these arguments")

    return text


class _UnknownFieldError(Exception):
    """A field names no parameter. Not a KeyError, which formatting an argument may raise as well."""


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise _UnknownFieldError(name)
