"""Finds ended and lost jobs of Slurm, by ``squeue``, ``sacct`` and ``sinfo``."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Final

from wove.integrations.base import JobStatus
from wove.integrations.slurm.client import SlurmClient, Submission, last_line
from wove.integrations.slurm.states import COMES_AGAIN, ENDED, Row, status_of, stranded

__all__ = ["LostJobDetector"]

logger = logging.getLogger("wove")

NODES_SECONDS: Final = 30.0
"""The time between two queries about nodes while jobs wait for them."""

NO_OUTPUT: Final = ("COMPLETED", "PENDING", "RUNNING", "COMPLETING")
"""States of jobs whose output is not quoted."""


class LostJobDetector:
    """Finds out which jobs are over, and which wait for ever. For one thread at a time.

    Args:
        client: Asks Slurm.
        output: The file for the output of jobs, with Slurm's ``%`` patterns.
        label: What log messages begin with.
    """

    def __init__(self, client: SlurmClient, output: str, *, label: str) -> None:
        self._client = client
        self._output = output
        self._label = label
        self._requeued: set[tuple[str, str]] = set()
        self._logged: set[str] = set()
        self._nodes_due = 0.0

    def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each job that is over or waits for ever; see `StatusProbe`.

        Jobs that wait for ever are cancelled; otherwise one of them could be released later, and run for nobody.

        Raises:
            DeliveryError: Slurm does not answer.
        """
        rows = self._client.rows({each.cluster for each in submissions.values()})
        statuses: dict[str, JobStatus] = {}
        missing: dict[str, Submission] = {}
        waiting: dict[str, Row] = {}
        requeued = set[tuple[str, str]]()

        for run_id, submission in submissions.items():
            row = rows.get(submission.place)
            if row is None:
                missing[run_id] = submission
                continue
            if row.requeues and row.state in COMES_AGAIN:
                requeued.add(submission.place)
                if submission.place not in self._requeued:
                    continue  # if Slurm requeues the job, the next query shows it in the queue
            if (status := status_of(row, self._output_text(row, submission))) is not None:
                statuses[run_id] = status
                continue
            self._log_reason(row)
            if row.wants_nodes:
                waiting[run_id] = row

        self._requeued = requeued
        statuses.update(self._stranded(waiting, submissions))
        hopeless = [
            submissions[run_id]
            for run_id in statuses
            if rows[submissions[run_id].place].state not in ENDED
        ]
        if hopeless:
            self._client.cancel(hopeless)
        if missing:
            statuses.update(self._missing(missing))
        return statuses

    def why_waiting(self, submissions: Mapping[str, Submission]) -> str:
        """Return the states of jobs and the reasons that Slurm gives, as text.

        Raises:
            DeliveryError: Slurm does not answer.
        """
        rows = self._client.rows({each.cluster for each in submissions.values()})
        found = [rows[each.place] for each in submissions.values() if each.place in rows]
        states = {f"{row.state} ({row.reason})" if row.reason else row.state for row in found}
        return f"Slurm says {', '.join(sorted(states))}" if states else ""

    def _log_reason(self, row: Row) -> None:
        """Warn of a job that waits for an administrator, once for each reason."""
        if row.worries and row.reason not in self._logged:
            self._logged.add(row.reason)
            logger.warning("%s: job %s of Slurm waits: %s", self._label, row.job, row.reason)

    def _stranded(
        self, waiting: Mapping[str, Row], submissions: Mapping[str, Submission]
    ) -> dict[str, JobStatus]:
        """Return the status of jobs that wait for nodes while no node of their partitions takes jobs."""
        now = time.monotonic()
        if not waiting or now < self._nodes_due:
            return {}
        self._nodes_due = now + NODES_SECONDS
        statuses: dict[str, JobStatus] = {}

        for cluster in {submissions[run_id].cluster for run_id in waiting}:
            rows = {
                run_id: row
                for run_id, row in waiting.items()
                if submissions[run_id].cluster == cluster
            }
            partitions = self._client.nodes((row.partition for row in rows.values()), cluster)
            found = {run_id: stranded(row, partitions) for run_id, row in rows.items()}
            statuses.update({run_id: each for run_id, each in found.items() if each is not None})

        return statuses

    def _missing(self, missing: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of jobs that the controller has forgotten, some minutes after their end (MinJobAge)."""
        rows = self._client.accounted(list(missing.values()))
        statuses: dict[str, JobStatus] = {}

        for run_id, submission in missing.items():
            row = rows.get(submission.place)
            status = None if row is None else status_of(row, self._output_text(row, submission))
            statuses[run_id] = status or JobStatus(
                "missing", f"Slurm does not know job {submission.job} any more"
            )

        return statuses

    def _output_text(self, row: Row, submission: Submission) -> str:
        """Return a sentence with the last line of a job's output, or that its folder is missing; ``""``: neither."""
        if self._output == "/dev/null" or row.state in NO_OUTPUT:
            return ""

        values = {"j": submission.job, "A": submission.job, "x": submission.name, "%": "%"}
        path = re.sub(r"%(.)", lambda found: values.get(found[1], found[0]), self._output)
        folder = os.path.dirname(path)
        if os.path.isabs(folder) and not os.path.isdir(folder):
            return f"the folder {folder} of executor_config 'output' is not there"
        line = last_line(path)
        return f"it said: {line}" if line else ""
