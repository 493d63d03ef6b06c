"""Make a worker process what a child of `multiprocessing` is to its parent.

Such a child shares two things with its parent. Its *resource tracker*: one of the worker's own would remove a segment
of shared memory that belongs to the parent when the worker ends. And the *authentication key*: without it, the
proxies of a manager that the parent has started do not connect.

A worker imports nothing of `multiprocessing` for that: both are put in place when a task does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

__all__ = ["adopt"]


def adopt(tracker: int, key: bytes) -> None:
    """Take over what the parent shares.

    Args:
        tracker: The descriptor to which messages for the parent's resource tracker go.
        key: The parent's authentication key.
    """
    os.set_inheritable(tracker, False)  # multiprocessing passes it on by itself

    def share_tracker(module: ModuleType) -> None:
        module._resource_tracker._fd = tracker  # as multiprocessing.spawn does

    def share_key(module: ModuleType) -> None:
        module.current_process().authkey = key

    _when_imported("multiprocessing.resource_tracker", share_tracker)
    _when_imported("multiprocessing.process", share_key)


def _when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    module = sys.modules.get(name)
    if module is not None:
        action(module)
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder:
    """Finds one module as all other finders do, and has *action* called once it is imported."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Any", _Loader(spec.loader, self._action))
        return spec


class _Loader:
    def __init__(self, loader: Any, action: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return cast("ModuleType | None", self._loader.create_module(spec))

    def exec_module(self, module: ModuleType) -> None:
        # From now on the module shows the loader that it has without this.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._action(module)
