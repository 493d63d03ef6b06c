"""The backends that Wove can hand a run to: one module each, with an adapter and what its workers need.

The adapters are also attributes here, imported on first use: ``wove.integrations.CeleryAdapter``. What every worker
calls, ``run`` and ``arun``, is in `wove.integrations.worker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.arq import ARQAdapter
    from wove.integrations.aws_batch import AWSBatchAdapter
    from wove.integrations.base import BackendAdapter
    from wove.integrations.celery import CeleryAdapter
    from wove.integrations.dask import DaskAdapter
    from wove.integrations.kubernetes_jobs import KubernetesJobsAdapter
    from wove.integrations.ray import RayAdapter
    from wove.integrations.rq import RQAdapter
    from wove.integrations.slurm import SlurmAdapter
    from wove.integrations.taskiq import TaskiqAdapter
    from wove.integrations.temporal import TemporalAdapter

__all__ = [
    "ARQAdapter",
    "AWSBatchAdapter",
    "BackendAdapter",
    "CeleryAdapter",
    "DaskAdapter",
    "KubernetesJobsAdapter",
    "RQAdapter",
    "RayAdapter",
    "SlurmAdapter",
    "TaskiqAdapter",
    "TemporalAdapter",
]

_HOMES = {
    "ARQAdapter": "arq",
    "AWSBatchAdapter": "aws_batch",
    "BackendAdapter": "base",
    "CeleryAdapter": "celery",
    "DaskAdapter": "dask",
    "KubernetesJobsAdapter": "kubernetes_jobs",
    "RQAdapter": "rq",
    "RayAdapter": "ray",
    "SlurmAdapter": "slurm",
    "TaskiqAdapter": "taskiq",
    "TemporalAdapter": "temporal",
}


# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, _HOMES)
