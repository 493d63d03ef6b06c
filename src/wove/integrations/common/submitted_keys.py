"""Which jobs with an idempotency key this process has submitted, and whether anybody waits for them still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from wove.concurrency import forks
from wove.concurrency.bounded import BoundedDict

__all__ = ["SubmittedKeys", "Wanted"]

MAX_JOBS: Final = 10_000

Wanted: TypeAlias = Callable[[str], bool]
"""Whether a run is still waited for, by its id: an adapter's `wanted`."""


class SubmittedKeys:
    """Jobs of one backend, of all environments of this process.

    What is left of one that this process has submitted and given up can be replaced. One that another environment or
    another process has submitted has its result called back there. A forked child knows none: they are its parent's.
    """

    def __init__(self) -> None:
        self._jobs = BoundedDict[str, tuple[Wanted, str]](MAX_JOBS)
        forks.after_in_child(forks.Phase.CACHES, self.reset_after_fork)

    def note(self, job: str, wanted: Wanted, run_id: str) -> None:
        """The environment that has *wanted* has submitted *job* for its run *run_id*."""
        self._jobs[job] = wanted, run_id

    def who_waits(self, job: str, wanted: Wanted) -> str | None:
        """Who may wait for *job*, beside the environment that has *wanted*; ``None``: nobody."""
        known = self._jobs.get(job)
        if known is None:
            return "another process"
        theirs, run_id = known
        return (
            "another environment of this process" if theirs != wanted and theirs(run_id) else None
        )

    def reset_after_fork(self) -> None:
        """Forget all."""
        self._jobs.clear()
