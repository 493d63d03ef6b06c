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
    "stdio": ("wove.executors.stdio.executor", "StdioExecutor"),
    "http": ("wove.executors.http.executor", "HttpEnvironmentExecutor"),
    "https": ("wove.executors.http.executor", "HttpsEnvironmentExecutor"),
    "grpc": ("wove.executors.grpc.executor", "GrpcEnvironmentExecutor"),
    "websocket": ("wove.executors.websocket.executor", "WebSocketEnvironmentExecutor"),
    "celery": ("wove.integrations.celery", "CeleryAdapter"),
    "temporal": ("wove.integrations.temporal", "TemporalAdapter"),
    "ray": ("wove.integrations.ray", "RayAdapter"),
    "rq": ("wove.integrations.rq", "RQAdapter"),
    "taskiq": ("wove.integrations.taskiq", "TaskiqAdapter"),
    "arq": ("wove.integrations.arq", "ARQAdapter"),
    "dask": ("wove.integrations.dask", "DaskAdapter"),
    "kubernetes_jobs": ("wove.integrations.kubernetes_jobs", "KubernetesJobsAdapter"),
    "aws_batch": ("wove.integrations.aws_batch", "AWSBatchAdapter"),
    "slurm": ("wove.integrations.slurm", "SlurmAdapter"),
}
"""Module and class of each executor, or of the adapter to its backend, by the name that ``executor`` takes."""


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

    found = getattr(importlib.import_module(module), name)

    if module.startswith("wove.integrations."):
        from wove.executors.backend.executor import (
            for_adapter,
        )  # here, because the others do without it

        found = for_adapter(found)

    return cast("type[EnvironmentExecutor]", found)
