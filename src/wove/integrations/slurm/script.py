"""The script of a batch job, which starts Wove's worker with the payload on its standard input."""

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
    """Return the script of a job that runs *payload*, for a ``submit`` function of the user's own.

    Args:
        payload: The payload that `SlurmAdapter` gives to ``submit``.
        command: The worker's command; default: this interpreter with ``-m wove.backend_worker``.
        options: Options of ``sbatch``, for lines that begin with ``#SBATCH``.

    Example:
        >>> def submit(payload, frame):
        ...     return cluster.submit(job_script(payload, options=["--partition=gpu"]))
    """
    command = command or (sys.executable, "-m", "wove.backend_worker")
    # JSON is one line of ASCII that begins with a brace, so it cannot be the line that ends the document.
    return f"#!/bin/sh\n{directives(options)}exec {shlex.join(command)} <<'{END}'\n{json.dumps(payload)}\n{END}\n"
