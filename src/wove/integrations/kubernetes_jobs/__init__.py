"""Kubernetes: a run is a Job with one pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.kubernetes_jobs.adapter import KubernetesJobsAdapter

__all__ = ["KubernetesJobsAdapter"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, {"KubernetesJobsAdapter": "adapter"})
