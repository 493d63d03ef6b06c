"""Prepares a worker process once, before its first task: the user's set-up, and Django's.

The set-up is a function that takes nothing, as ``module:function``. It is the ``setup`` of the task's environment, of
``wove worker --setup``, or of the variable ``WOVE_WORKER_SETUP``. Django is set up where ``DJANGO_SETTINGS_MODULE`` is
set, because tasks that use models cannot even be unpickled before.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, cast

from wove.concurrency import forks
from wove.errors import WorkerSetupError

__all__ = ["SETUP_VARIABLE", "set_up"]

SETUP_VARIABLE: Final = "WOVE_WORKER_SETUP"

DJANGO: Final = "django"
"""Stands for the set-up of Django among those that are done."""

_lock = threading.RLock()
_done: set[str] = set()


def set_up(name: str | None) -> None:
    """Call what this process has not called yet; other threads wait until it has ended.

    Args:
        name: The set-up of the task's environment, as ``module:function``.

    Raises:
        WorkerSetupError: A set-up has failed. It is called again before the next task.
    """
    own = os.environ.get(SETUP_VARIABLE)
    django = DJANGO if "DJANGO_SETTINGS_MODULE" in os.environ else None
    wanted = [one for one in (django, own, name) if one and one not in _done]
    if not wanted:
        return

    with _lock:
        for one in wanted:
            if one not in _done:
                _call(one)
                _done.add(one)


def _call(name: str) -> None:
    try:
        if name == DJANGO:
            _set_up_django()
        else:
            _function(name)()
    except Exception as error:
        label = "the set-up of Django" if name == DJANGO else f"the set-up {name!r}"
        raise WorkerSetupError(
            f"{label} failed in its worker: {type(error).__name__}: {error}"
        ) from error


def _function(name: str) -> Callable[[], object]:
    module, _, path = name.partition(":")
    with forks.importing:
        found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is not a function but {type(cast('object', found)).__name__}")
    return cast("Callable[[], object]", found)


def _set_up_django() -> None:
    """Load the apps of the project, unless the worker's own program has done so."""
    if importlib.util.find_spec("django") is None:
        return
    apps: Any = sys.modules.get("django.apps")
    if apps is not None and apps.apps.ready:
        return
    with forks.importing:
        django: Any = importlib.import_module("django")
        django.setup()


def reset_after_fork() -> None:
    """Keep what was done: the child has it, too. Only the lock may be another thread's."""
    global _lock
    _lock = threading.RLock()


forks.after_in_child(forks.Phase.LOCKS, reset_after_fork)
