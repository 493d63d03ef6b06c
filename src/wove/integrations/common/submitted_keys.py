"""Jobs with an idempotency key that this process has submitted, and whether their runs are still awaited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from wove.concurrency import forks
from wove.concurrency.bounded import BoundedDict

__all__ = ["IsAwaited", "SubmittedKeys"]

MAX_JOBS: Final = 10_000
"""Maximum number of jobs that are remembered."""

IsAwaited: TypeAlias = Callable[[str], bool]
"""Returns whether the run with an id is still awaited: an adapter's `is_awaited`."""


class SubmittedKeys:
    """Remembers jobs of one backend, of all environments of this process.

    A job that this process has submitted and given up can be replaced. The result of a job that another environment or
    process has submitted goes there. A forked child begins with an empty memory, since the jobs belong to its parent.
    """

    def __init__(self) -> None:
        self._jobs = BoundedDict[str, tuple[IsAwaited, str]](MAX_JOBS)
        forks.after_in_child(forks.Phase.CACHES, self.reset_after_fork)

    def note(self, job: str, is_awaited: IsAwaited, run_id: str) -> None:
        """Note that the environment with *is_awaited* has submitted *job* for its run *run_id*."""
        self._jobs[job] = is_awaited, run_id

    def who_waits(self, job: str, is_awaited: IsAwaited) -> str | None:
        """Return who may wait for *job*, apart from the environment with *is_awaited*; ``None``: nobody does."""
        known = self._jobs.get(job)
        if known is None:
            return "another process"
        theirs, run_id = known
        return (
            "another environment of this process"
            if theirs != is_awaited and theirs(run_id)
            else None
        )

    def reset_after_fork(self) -> None:
        """Forget all jobs."""
        self._jobs.clear()
