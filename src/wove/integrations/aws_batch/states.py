"""The states of AWS Batch's jobs, as DescribeJobs describes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from wove.integrations.aws_batch.client import Api
from wove.integrations.base import JobStatus
from wove.integrations.common.exit_codes import meaning

__all__ = ["LIVE", "WAITING", "JobProbe", "status_of"]

logger = logging.getLogger("wove")

WAITING: Final = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING")
LIVE: Final = (*WAITING, "RUNNING")
"""States of a job that is not over (docs.aws.amazon.com/batch/latest/userguide/job_states.html)."""


class JobProbe:
    """Finds out which jobs are over.

    Args:
        api: Asks AWS Batch.
        label: What log messages begin with.
    """

    def __init__(self, api: Api, *, label: str) -> None:
        self._api = api
        self._label = label
        self._logged: set[str] = set()

    def ended(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        """Return the status of each job that is over; see `StatusProbe`.

        Raises:
            DeliveryError: AWS Batch cannot be asked.
        """
        jobs = {run_id: each for run_id, each in submissions.items() if isinstance(each, str)}
        found = self._api.describe(jobs.values())
        self._log_reasons(found.values())
        statuses: dict[str, JobStatus] = {}

        for run_id, job in jobs.items():
            if job not in found:
                statuses[run_id] = JobStatus(
                    "missing", f"job {job} is not known to AWS Batch any more"
                )
            elif (status := status_of(found[job])) is not None:
                statuses[run_id] = status

        return statuses

    def why_waiting(self, submissions: Mapping[str, Any]) -> str:
        """Return the states of the jobs that have not started, and the reasons that AWS Batch gives.

        Raises:
            DeliveryError: AWS Batch cannot be asked.
        """
        found = self._api.describe(each for each in submissions.values() if isinstance(each, str))
        counts = Counter(
            ": ".join(filter(None, (str(job.get("status")), job.get("statusReason"))))
            for job in found.values()
            if job.get("status") in WAITING
        )
        return f"AWS Batch says {'; '.join(sorted(counts))}" if counts else ""

    def _log_reasons(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Warn of the reasons why jobs cannot be placed, once for each."""
        waiting = [job for job in jobs if job.get("status") == "RUNNABLE"]
        reasons = {str(job["statusReason"]) for job in waiting if job.get("statusReason")}
        for reason in reasons - self._logged:
            logger.warning("%s: jobs of it wait, and may do so for ever: %s", self._label, reason)
        self._logged |= reasons


def status_of(job: Mapping[str, Any]) -> JobStatus | None:
    """Return the status of a job, as DescribeJobs describes it; ``None``: it is not over.

    Example:
        >>> status_of({"jobId": "1", "status": "FAILED", "statusReason": "Host EC2 terminated."})
        JobStatus(state='lost', reason='job 1 failed: Host EC2 terminated.')
    """
    state = job.get("status")
    if state == "SUCCEEDED":
        return JobStatus("finished", f"job {job['jobId']} has succeeded")
    if state != "FAILED":
        return None
    attempts: Any = job.get("attempts") or [{}]
    container: Mapping[str, Any] = {
        **attempts[-1].get("container", {}),
        **(job.get("container") or {}),
    }
    facts = [str(each) for each in (job.get("statusReason"), container.get("reason")) if each]
    if container.get("exitCode") is not None:
        said = meaning(container["exitCode"])
        facts.append(f"exit code {container['exitCode']}{f' ({said})' if said else ''}")

    if container.get("logStreamName"):
        facts.append(f"its log is in stream {container['logStreamName']}")
    return JobStatus(
        "lost",
        f"job {job['jobId']} failed: {'; '.join(dict.fromkeys(facts)) or 'no reason is given'}",
    )
