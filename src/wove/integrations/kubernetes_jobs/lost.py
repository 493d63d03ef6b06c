"""Finds ended and lost Jobs, by what the watches have shown, by events, and by the logs of failed pods."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from wove.errors import DeliveryError
from wove.integrations.base import JobStatus
from wove.integrations.kubernetes_jobs.client import Api
from wove.integrations.kubernetes_jobs.events import PodlessJobs
from wove.integrations.kubernetes_jobs.watch import PodCache, PodStatus, Watches

__all__ = ["LostJobDetector", "Submission"]

logger = logging.getLogger("wove")

LOG_LINES: Final = 20
MAX_LOGS: Final = 8
LOG_SECONDS: Final = 1.0
"""How many lines of how many logs of failed pods are read at each probe, and how long each may take."""

MAX_LOG_CHARACTERS: Final = 2000
"""Maximum length of a log in a reason."""


class Submission(NamedTuple):
    """A Job that was created.

    Attributes:
        name: Its name.
        uid: Its uid.
    """

    name: str
    uid: str


class LostJobDetector:
    """Finds out which Jobs are over, and which will never start.

    Args:
        api: Asks the cluster.
        cache: The known Jobs and pods.
        watches: Keep *cache* up to date.
        label: What log messages begin with.
    """

    def __init__(self, api: Api, cache: PodCache, watches: Watches, *, label: str) -> None:
        self._api = api
        self._cache = cache
        self._watches = watches
        self._podless = PodlessJobs(api, cache, label=label)
        self._label = label

    def ended(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        """Return the status of each Job that is over or will never start; see `StatusProbe`.

        Raises:
            DeliveryError: The cluster cannot be watched.
        """
        runs = {
            run_id: each for run_id, each in submissions.items() if isinstance(each, Submission)
        }
        uids = {each.uid for each in runs.values()}
        known = {**self._podless.statuses(uids), **self._cache.statuses(uids)}
        ended = {run_id: known[each.uid] for run_id, each in runs.items() if each.uid in known}
        if not ended and (trouble := self._watches.trouble()):
            raise DeliveryError(trouble)

        for why, number in self._cache.new_waiting_reasons():
            logger.info(
                "%s: %d of its pods cannot be scheduled, and wait: %s", self._label, number, why
            )

        statuses = self._with_logs(ended)
        self._remove(runs[run_id] for run_id, each in ended.items() if each.remove)
        return statuses

    def _remove(self, submissions: Iterable[Submission]) -> None:
        for each in submissions:
            try:
                self._api.delete(each.name, each.uid)
            except DeliveryError as error:
                logger.warning("%s", error)

    def _with_logs(self, ended: Mapping[str, PodStatus]) -> dict[str, JobStatus]:
        """Return the statuses, with the ends of the logs of failed pods."""
        left = MAX_LOGS
        statuses: dict[str, JobStatus] = {}

        for run_id, (status, pod, _) in ended.items():
            statuses[run_id] = status
            if pod is None or not pod.started or not left:
                continue
            left -= 1
            log = self._api.log(pod.name, pod.container, lines=LOG_LINES, seconds=LOG_SECONDS)
            if log:
                tail = log[-MAX_LOG_CHARACTERS:]
                statuses[run_id] = JobStatus("lost", f"{status.reason}; the end of its log: {tail}")

        return statuses
