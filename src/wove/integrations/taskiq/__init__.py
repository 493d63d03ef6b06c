"""Taskiq: a run is a message to the task that `register` adds to a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.taskiq.adapter import TaskiqAdapter
    from wove.integrations.taskiq.worker import register

__all__ = ["TaskiqAdapter", "register"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"TaskiqAdapter": "adapter", "register": "worker"}
    )
