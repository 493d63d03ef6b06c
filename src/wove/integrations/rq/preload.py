"""Has workers of RQ import what a run needs before they fork a process for it, and not in each of these anew.

RQ's worker reads a job's ``meta`` and forks; only then is the job's function imported. So `RunId`, which is in the meta
of each job, pickles as a call of a function of this module: whoever reads it, imports this. A worker that cannot goes
on without (rq/job.py, `restore`), and one whose serializer is not pickle finds a plain text.
"""

from __future__ import annotations

import cloudpickle

import wove.integrations.worker

__all__ = ["plain"]

loaded = (cloudpickle, wove.integrations.worker)


def plain(run_id: str) -> str:
    """Rebuild a pickled `wove.integrations.rq.adapter.RunId` as plain text."""
    return run_id
