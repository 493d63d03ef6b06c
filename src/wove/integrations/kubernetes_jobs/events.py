"""Why a Job gets no pod: only events say so (github.com/kubernetes/kubernetes/issues/100726)."""

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

__all__ = ["Unmade"]

logger = logging.getLogger("wove")

REASON: Final = "FailedCreate"
"""Of the event that the Job controller makes (pkg/controller/controller_utils.go, FailedCreatePodReason)."""

ASK_SECONDS: Final = 10.0
"""The least time between two lists of events, each of which is a call; there are none while all Jobs have pods."""

_FINAL: Final = re.compile(r"is forbidden|is invalid|denied the request")
_PASSES: Final = re.compile(
    r"exceeded quota|status unknown for quota|not yet ready to handle request"
)
"""A pod that admission refuses will be refused again, unless others have only left no room
(apiserver/pkg/admission/plugin/resourcequota/controller.go)."""


class Unmade:
    """Looks after Jobs without a pod.

    Args:
        api: To be asked.
        book: Knows which these are.
        label: What messages begin with.
    """

    def __init__(self, api: Api, book: PodCache, *, label: str) -> None:
        self._api, self._book, self._what = api, book, label
        self._next = 0.0
        self._may = True
        self._waiting = False

    def verdicts(self, uids: Iterable[str]) -> dict[str, PodStatus]:
        """Return the ends of the Jobs whose pods are refused, and log why others wait."""
        podless = self._book.podless(uids)
        if not podless:
            self._waiting = False
            return {}

        now = time.monotonic()
        if not self._may or now < self._next:
            return {}
        self._next = now + ASK_SECONDS
        told = self._told()
        verdicts: dict[str, PodStatus] = {}
        waiting: list[str] = []

        for uid, job in podless.items():
            why = told.get(uid, "")
            if _FINAL.search(why) and not _PASSES.search(why):
                verdicts[uid] = PodStatus(
                    JobStatus("lost", f"no pod is made for Job {job.name}: {why}"), remove=True
                )
            elif why:
                waiting.append(why)

        if waiting and not self._waiting:
            logger.info(
                "%s: %d Jobs wait for a pod to be made: %s", self._what, len(waiting), waiting[0]
            )

        self._waiting = bool(waiting)
        return verdicts

    def _told(self) -> dict[str, str]:
        """Return the messages of events, by the uid of their Job."""
        try:
            events = self._api.events(REASON)
        except RefusedError as error:
            self._may = error.status not in (401, 403)
            logger.info("%s: why some of its Jobs get no pod cannot be seen: %s", self._what, error)
        except DeliveryError as error:
            logger.debug("%s", error)
        else:
            return {
                each["involvedObject"].get("uid", ""): str(each.get("message") or "")
                for each in events
            }

        return {}
