"""Jobs that a worker has taken, and that nobody reports to have begun."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

__all__ = ["SILENCE_SECONDS", "SilentJobs"]

SILENCE_SECONDS: Final = 15.0
"""How long a worker may take from taking a job to reporting that it begins it. It reports within milliseconds; so it
was killed right then, cannot reach the receiver, or its event loop is blocked by something else."""


class SilentJobs:
    """Since when jobs have been taken without a word.

    Workers that have reported are known by their connection, so that their end is seen at once. One that is killed
    before that leaves no trace, but that the job is in the queue no more.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, taken: Collection[str], waiting: Collection[str]) -> list[str]:
        """Which jobs have been silent for too long.

        Args:
            taken: Those that, as is seen now, workers have taken.
            waiting: All those of which nothing was heard so far.
        """
        now = time.monotonic()
        still = {job: since for job, since in self._since.items() if job in waiting}
        self._since = {**dict.fromkeys(taken, now), **still}
        return [job for job, since in self._since.items() if now - since >= SILENCE_SECONDS]
