"""Celery: a run is a message of a queue, and any worker with Wove's task executes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.celery.adapter import CeleryAdapter
    from wove.integrations.celery.worker import register

__all__ = ["CeleryAdapter", "register"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"CeleryAdapter": "adapter", "register": "worker"}
    )
