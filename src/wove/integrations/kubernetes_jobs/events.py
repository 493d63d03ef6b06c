"""Why a Job gets no pod, which only events say (github.com/kubernetes/kubernetes/issues/100726)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import Final

from wove.errors import DeliveryError
from wove.integrations.base import JobStatus
from wove.integrations.kubernetes_jobs.client import Api, RefusedError
from wove.integrations.kubernetes_jobs.watch import PodCache, PodStatus

__all__ = ["PodlessJobs"]

logger = logging.getLogger("wove")

REASON: Final = "FailedCreate"
"""The reason of the Job controller's event (pkg/controller/controller_utils.go, FailedCreatePodReason)."""

ASK_SECONDS: Final = 10.0
"""The minimum time between two queries of events. There are none while all Jobs have pods."""

_FINAL: Final = re.compile(r"is forbidden|is invalid|denied the request")
_PASSES: Final = re.compile(
    r"exceeded quota|status unknown for quota|not yet ready to handle request"
)
"""Messages of pods that admission will always refuse, and of those that it refuses only while a quota is used up
(apiserver/pkg/admission/plugin/resourcequota/controller.go)."""


class PodlessJobs:
    """Finds out why Jobs have no pod.

    Args:
        api: Asks the cluster.
        cache: The known Jobs and pods.
        label: What log messages begin with.
    """

    def __init__(self, api: Api, cache: PodCache, *, label: str) -> None:
        self._api, self._cache, self._label = api, cache, label
        self._next = 0.0
        self._may = True
        self._waiting = False

    def statuses(self, uids: Iterable[str]) -> dict[str, PodStatus]:
        """Return the status of Jobs whose pods are refused, and log why others wait."""
        podless = self._cache.podless(uids)
        if not podless:
            self._waiting = False
            return {}

        now = time.monotonic()
        if not self._may or now < self._next:
            return {}
        self._next = now + ASK_SECONDS
        messages = self._messages()
        statuses: dict[str, PodStatus] = {}
        waiting: list[str] = []

        for uid, job in podless.items():
            why = messages.get(uid, "")
            if _FINAL.search(why) and not _PASSES.search(why):
                statuses[uid] = PodStatus(
                    JobStatus("lost", f"no pod is made for Job {job.name}: {why}"), remove=True
                )
            elif why:
                waiting.append(why)

        if waiting and not self._waiting:
            logger.info(
                "%s: %d Jobs wait for a pod to be made: %s", self._label, len(waiting), waiting[0]
            )

        self._waiting = bool(waiting)
        return statuses

    def _messages(self) -> dict[str, str]:
        """Return the messages of events, by the uid of their Job."""
        try:
            events = self._api.events(REASON)
        except RefusedError as error:
            self._may = error.status not in (401, 403)
            logger.info(
                "%s: why some of its Jobs get no pod cannot be seen: %s", self._label, error
            )
        except DeliveryError as error:
            logger.debug("%s", error)
        else:
            return {
                each["involvedObject"].get("uid", ""): str(each.get("message") or "")
                for each in events
            }

        return {}
