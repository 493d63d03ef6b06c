"""Slurm: a run is a batch job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.slurm.adapter import SlurmAdapter
    from wove.integrations.slurm.script import job_script

__all__ = ["SlurmAdapter", "job_script"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"SlurmAdapter": "adapter", "job_script": "script"}
    )
