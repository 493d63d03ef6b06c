"""Ray: a run is a task of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.ray.adapter import RayAdapter

__all__ = ["RayAdapter"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, {"RayAdapter": "adapter"})
