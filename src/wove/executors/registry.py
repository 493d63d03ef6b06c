"""The executors that have a name, imported when one is first used."""

from __future__ import annotations

import importlib
from typing import Any, Final, cast

from wove.executors.base import EnvironmentExecutor
from wove.graph.options import suggest

__all__ = ["BUILT_IN", "LOCAL", "executor_class"]

LOCAL: Final = "local"
"""The name for running in this process: no executor, nothing is delivered."""

BUILT_IN: Final[dict[str, tuple[str, str]]] = {
    "stdio": ("wove.executors.stdio", "StdioExecutor"),
    "http": ("wove.executors.http", "HttpEnvironmentExecutor"),
    "https": ("wove.executors.http", "HttpsEnvironmentExecutor"),
    "grpc": ("wove.executors.grpc", "GrpcEnvironmentExecutor"),
    "websocket": ("wove.executors.websocket", "WebSocketEnvironmentExecutor"),
}
"""Module and class of each executor, by the name that ``executor`` takes."""


def executor_class(executor: object, environment: str) -> type[EnvironmentExecutor]:
    """The class behind the ``executor`` of an environment.

    Args:
        executor: A built-in name, or an instance of the user's own class.
        environment: The environment's name, for messages.

    Raises:
        ValueError: No built-in executor has that name.
        TypeError: Neither a name nor an executor.
    """
    if isinstance(executor, EnvironmentExecutor):
        return type(executor)
    if not isinstance(executor, str):
        hint = " Pass an instance, not the class." if isinstance(executor, type) else ""
        raise TypeError(
            f"environment {environment!r}: executor must be a built-in name or an EnvironmentExecutor "
            f"instance, not {cast('Any', executor)!r}.{hint}"
        )
    try:
        module, name = BUILT_IN[executor]
    except KeyError:
        names = [LOCAL, *BUILT_IN]
        raise ValueError(
            f"environment {environment!r}: there is no executor {executor!r}.{suggest(executor, names)} "
            f"Built in are: {', '.join(names)}"
        ) from None
    return cast("type[EnvironmentExecutor]", getattr(importlib.import_module(module), name))
