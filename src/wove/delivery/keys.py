"""``delivery_idempotency_key``: its text, and the runs in flight that have one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from wove.concurrency import forks
from wove.graph.options import suggest

if TYPE_CHECKING:
    from wove.delivery.run import RemoteRun

__all__ = ["SharedRuns", "render", "shared"]


def render(key: str | Callable[..., str], args: Mapping[str, Any], label: object) -> str:
    """Return the text of an idempotency key.

    Args:
        key: A template with ``{param}`` fields, formatted as `str.format` does (``{user.id}``,
            ``{day:%Y-%m-%d}``), or a callable, called as ``key(**args)``.
        args: The arguments of the task, by parameter name.
        label: The task, for messages.

    Raises:
        ValueError: A field names no parameter, or the text is empty.
        TypeError: The callable returned something other than text.
    """
    if callable(key):
        text = cast("object", key(**args))
        if not isinstance(text, str):
            raise TypeError(
                f"{label}: the delivery_idempotency_key callable must return text, not {type(text).__name__}"
            )
    else:
        try:
            text = key.format_map(_Fields(args))
        except _UnknownFieldError as error:
            field = error.args[0]
            raise ValueError(
                f"{label}: delivery_idempotency_key {key!r} has a field {{{field}}}, and the task has no such "
                f"parameter (it has: {', '.join(args) or 'none'}).{suggest(field, args)}"
            ) from None

    if not text:
        raise ValueError(
            f"{label}: its delivery_idempotency_key is an empty text for these arguments"
        )

    return text


class _UnknownFieldError(Exception):
    """A field names no parameter. Not a KeyError, which formatting an argument may raise as well."""


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise _UnknownFieldError(name)


class SharedRuns:
    """The runs in flight that have an idempotency key, by environment and key. Thread-safe."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forget all runs: in a forked child, none of them is in flight."""
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], RemoteRun] = {}

    def claim(self, environment: str, key: str, run: RemoteRun) -> RemoteRun:
        """Return the run in flight with this *key*. If there was none, that is *run* from now on."""
        with self._lock:
            return self._runs.setdefault((environment, key), run)

    def drop(self, run: RemoteRun) -> None:
        """Let no caller join *run* any more."""
        if run.key is None:
            return
        name = (run.request.settings.environment.name, run.key)
        with self._lock:
            if self._runs.get(name) is run:
                del self._runs[name]

    def __len__(self) -> int:
        return len(self._runs)


shared: Final = SharedRuns()
"""The shared runs of this process."""

forks.after_in_child(forks.Phase.CACHES, shared.reset_after_fork)
