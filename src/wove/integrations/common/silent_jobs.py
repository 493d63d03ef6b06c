"""Jobs that a worker has taken from a queue without reporting that it started them."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

__all__ = ["SILENCE_SECONDS", "SilentJobs"]

SILENCE_SECONDS: Final = 15.0
"""How long a worker may take from taking a job to reporting its start. It normally reports within milliseconds. A
worker that takes longer was killed at that moment, cannot reach the receiver, or has a blocked event loop."""


class SilentJobs:
    """Remembers since when jobs have been taken without a report.

    A worker that has reported has an open connection, whose end is noticed at once. A worker that is killed before
    leaves only one trace: the job is no longer in the queue.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def overdue(self, taken: Collection[str], waiting: Collection[str]) -> list[str]:
        """Return the jobs that were taken more than `SILENCE_SECONDS` ago.

        Args:
            taken: The jobs that workers have taken, as the backend shows it now.
            waiting: All jobs whose start was not reported.
        """
        now = time.monotonic()
        still = {job: since for job, since in self._since.items() if job in waiting}
        self._since = {**dict.fromkeys(taken, now), **still}
        return [job for job, since in self._since.items() if now - since >= SILENCE_SECONDS]
