"""Makes workers of RQ import what runs need once, before they fork a process for each run.

A worker of RQ reads a job's ``meta`` and forks; only the fork imports the job's function. Therefore `RunId`, which is
in the meta of each job, pickles as a call of a function of this module, so that reading it imports this module. A
worker where that fails goes on without it (rq/job.py, `restore`); a serializer other than pickle finds plain text.
"""

from __future__ import annotations

import cloudpickle

import wove.integrations.worker

__all__ = ["plain"]

loaded = (cloudpickle, wove.integrations.worker)


def plain(run_id: str) -> str:
    """Rebuild a pickled `wove.integrations.rq.adapter.RunId` as plain text."""
    return run_id
