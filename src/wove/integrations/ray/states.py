"""The states of Ray's tasks, as this process knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from wove.integrations.base import JobStatus
from wove.integrations.common.error_text import exception_text
from wove.integrations.ray import client as ray_client
from wove.integrations.ray.client import Submission

__all__ = ["SHUT_DOWN", "TaskProbe", "TaskState"]

FETCH_SECONDS: Final = 10.0
"""How long it may take to fetch the return value of a task that has ended: ``None``, or an error."""

SHUT_DOWN: Final = "Ray was shut down in this process"

TaskState = Literal["pending", "cancelled", "ended"]


class TaskProbe:
    """Finds out which tasks are over. Ray sends each end to this process, so no query is made. May be used by any
    thread.

    Args:
        ray: The package.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._core = ray_client.shutdown_lock()

    def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each task that is over; see `StatusProbe`."""
        with self._core:
            return self._ended(
                submissions
            )  # a method of its own, so that its references end under the lock

    def _ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        connection = ray_client.connection_id(self._ray)
        refs = {run_id: each.ref for run_id, each in submissions.items() if each.job == connection}
        statuses = {
            run_id: JobStatus("lost", SHUT_DOWN) for run_id in submissions if run_id not in refs
        }

        if refs:
            over, _ = self._ray.wait(
                list(refs.values()), num_returns=len(refs), timeout=0, fetch_local=False
            )
            over = set(over)
            statuses |= {run_id: self._status(ref) for run_id, ref in refs.items() if ref in over}

        return statuses

    def _status(self, ref: Any) -> JobStatus:
        try:
            self._ray.get(ref, timeout=FETCH_SECONDS)
        except Exception as error:
            # `cause` is the exception that `run` has raised; the error itself contains its whole traceback.
            cause = getattr(error, "cause", None)
            return JobStatus(
                "lost", exception_text(cause if isinstance(cause, BaseException) else error)
            )

        return JobStatus("finished", "finished")

    def state(self, submission: Submission) -> TaskState:
        """Return the state of one task."""
        with self._core:
            if submission.job != ray_client.connection_id(self._ray):
                return "ended"
            if not self._ray.wait([submission.ref], timeout=0, fetch_local=False)[0]:
                return "pending"
            try:
                self._ray.get(submission.ref, timeout=FETCH_SECONDS)
            except self._ray.exceptions.TaskCancelledError:
                return "cancelled"
            except Exception:
                return "ended"
            return "ended"

    def why_waiting(self) -> str:
        """Return the free and total resources of the cluster; ``""``: this process is not connected."""
        with self._core:
            if ray_client.connection_id(self._ray) is None:
                return ""
            total, free = self._ray.cluster_resources(), self._ray.available_resources()

        named = sorted(name for name in total if name in ("CPU", "GPU"))
        parts = [f"{free.get(name, 0):g} of {total[name]:g} {name}s" for name in named]
        return f"the Ray cluster has {' and '.join(parts) or 'no CPUs'} free"
