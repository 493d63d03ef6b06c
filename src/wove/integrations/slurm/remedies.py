"""Remedies for messages of Slurm's commands."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_away", "with_remedy"]

REMEDIES: Final = (
    (
        "partition",
        "the partition is 'partition' of sbatch_options; `sinfo` lists those that there are",
    ),
    (
        "unrecognized option|invalid option|requires an argument",
        "options of jobs are those of sbatch_options",
    ),
    (
        "parameter too long|script is too (long|big)",
        "the site takes no script of {size} bytes (max_script_size)",
    ),
    (
        "time limit specification|invalid time",
        "'time' of sbatch_options is minutes, or hours:minutes:seconds, or days-hours",
    ),
    (
        "qos|account|policy|limit",
        "see 'account', 'qos' and 'time' of sbatch_options, and delivery_max_in_flight",
    ),
    (
        "specification|configuration is not|resource",
        "sbatch_options ask for it: 'mem', 'gres', 'constraint', ...",
    ),
    (
        "contact|connect|configuration source|timed out",
        "does Slurm's controller answer (`scontrol ping`)?",
    ),
)
"""Patterns of messages, and what to do about them. The first match counts."""

_AWAY: Final = re.compile(
    "contact|connect|configuration source|timed out|zero bytes|transport|unexpected message|try again",
    re.IGNORECASE,
)
"""Messages of ``sbatch`` when the controller is away or has not answered. It may have taken the job."""


def with_remedy(text: str, size: int = 0) -> str:
    """Return a message of Slurm with what to do about it.

    Args:
        text: The message.
        size: The size of the script in bytes, if the message is about one.
    """
    remedy = next(
        (each for pattern, each in REMEDIES if re.search(pattern, text, re.IGNORECASE)), None
    )
    return text if remedy is None else f"{text.rstrip('.')}. {remedy.format(size=size)}"


def is_away(text: str) -> bool:
    """Return whether a message of ``sbatch`` says that the controller is away or has not answered."""
    return _AWAY.search(text) is not None
