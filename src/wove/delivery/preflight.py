"""The check of an environment before anything runs: the executor's name, its ``executor_config``, its packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.concurrency import forks
from wove.delivery.sessions import Limits
from wove.executors.base import EnvironmentExecutor
from wove.executors.registry import executor_class

if TYPE_CHECKING:
    from wove.settings.model import Environment

__all__ = ["check_environment"]


def check_environment(environment: Environment) -> None:
    """Check *environment* without I/O. Imports its executor, and looks for the executor's packages.

    Raises:
        ValueError: There is no executor of that name, or a key or value of ``executor_config`` is wrong.
        TypeError: A value is of the wrong type.
        MissingDependencyError: A package is not installed.
    """
    with forks.importing:
        kind = executor_class(environment.executor, environment.name)
    Limits.of(environment.executor_config, environment.name)
    executor = environment.executor
    if not isinstance(executor, EnvironmentExecutor):
        executor = kind()
    executor.check(environment.name, environment.executor_config)
