"""The script of a batch job: Wove's worker, with the payload on its standard input."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Final

from wove.integrations.base import PayloadDict
from wove.integrations.slurm.options import directives

__all__ = ["job_script"]

END: Final = "WOVE_PAYLOAD"


def job_script(
    payload: PayloadDict, command: Sequence[str] | None = None, *, options: Sequence[str] = ()
) -> str:
    """The script of a job that runs *payload*: for a ``submit`` of your own.

    Args:
        payload: What `SlurmAdapter` gives to ``submit``.
        command: The worker's; default: this interpreter with ``-m wove.backend_worker``.
        options: Of ``sbatch``, for lines that begin with ``#SBATCH``.

    Example:
        >>> def submit(payload, frame):
        ...     return cluster.submit(job_script(payload, options=["--partition=gpu"]))
    """
    command = command or (sys.executable, "-m", "wove.backend_worker")
    # JSON is one line of ASCII, and begins with a brace: so it cannot be the line that ends it.
    return f"#!/bin/sh\n{directives(options)}exec {shlex.join(command)} <<'{END}'\n{json.dumps(payload)}\n{END}\n"
