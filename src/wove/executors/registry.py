"""Finds the executors that have a name, and imports one when it is first used."""

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
    """Return the class behind the ``executor`` of an environment.

    Args:
        executor: A built-in name, a name that an installed package declares, or an instance of the user's own class.
        environment: The environment's name, for messages.

    Raises:
        ValueError: There is no executor of that name, or there are several.
        ImportError: The executor of another package cannot be imported.
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

    if executor not in BUILT_IN:
        return _of_another_package(executor, environment)

    module, name = BUILT_IN[executor]
    found = getattr(importlib.import_module(module), name)

    if module.startswith("wove.integrations."):
        from wove.executors.backend.executor import (
            for_adapter,
        )  # here, because the others do without it

        found = for_adapter(found)

    return cast("type[EnvironmentExecutor]", found)


def _of_another_package(executor: str, environment: str) -> type[EnvironmentExecutor]:
    # Here, because to look at the installed packages takes longer than all else that a first weave does.
    from wove.executors.plugins import plugin_class, plugin_names

    try:
        found = plugin_class(executor)
    except (ValueError, ImportError, TypeError) as error:
        error.add_note(f"for environment {environment!r}")
        raise
    if found is not None:
        return found

    others = plugin_names()
    names = [LOCAL, *BUILT_IN, *others]
    of_packages = f". Installed packages add: {', '.join(others)}" if others else ""
    raise ValueError(
        f"environment {environment!r}: there is no executor {executor!r}.{suggest(executor, names)} "
        f"Built in are: {', '.join([LOCAL, *BUILT_IN])}{of_packages}"
    )
