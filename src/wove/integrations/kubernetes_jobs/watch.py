"""The known state of an environment's Jobs and pods, kept up to date by one watch of each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from wove.concurrency.backoff import Backoff
from wove.errors import DeliveryError
from wove.integrations.base import JobStatus
from wove.integrations.kubernetes_jobs.client import Api, RefusedError, hang_up, lines_of
from wove.integrations.kubernetes_jobs.states import (
    FINISHED,
    JobState,
    PodState,
    job_state,
    pod_state,
)

__all__ = ["PodCache", "PodStatus", "Watches"]

logger = logging.getLogger("wove")

WATCH_SECONDS: Final = 30
"""How long a watch lasts before it is renewed. So many seconds, and a few, can pass until it is noticed that the
connection of a watch has died without an end."""

TROUBLE_SECONDS: Final = 3.0
"""How long a container may be in trouble, such as an image that is not there, before its run is given up."""

WORDS_SECONDS: Final = 2.0
"""How long a Job that failed may be known before what its pod has to say."""

WATCH_AGAIN: Final = Backoff(0.25, 5.0, most=1.5)
"""Seconds between two tries to watch."""

MIN_SECONDS: Final = 1.0
"""A watch that the server ends earlier is not renewed before."""


class PodStatus(NamedTuple):
    """The end of a Job.

    Attributes:
        fate: That.
        pod: Whose log may say more; ``None``: there is nothing to read, or it has been read.
        remove: It must be deleted, because it could still start.
    """

    fate: JobStatus
    pod: PodState | None = None
    remove: bool = False


class PodCache:
    """Jobs and their pods by uid. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, JobState | None] = {}
        self._pods: dict[str, PodState] = {}
        self._gone: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._told: set[str] = set()

    def expect(self, uid: str) -> None:
        """A Job was created, of which nothing may be known yet."""
        with self._lock:
            self._jobs.setdefault(uid, None)
            self._first.setdefault(uid, time.monotonic())

    def keep(self, uids: Iterable[str]) -> None:
        """Forget all Jobs but these."""
        kept = set(uids)

        with self._lock:
            for uid in [uid for uid in self._jobs if uid not in kept]:
                del self._jobs[uid]
                self._gone.pop(uid, None)
                self._first.pop(uid, None)
            self._pods = {uid: pod for uid, pod in self._pods.items() if pod.job in kept}
            known = {*kept, *self._pods}
            self._since = {uid: since for uid, since in self._since.items() if uid in known}

    def size(self) -> int:
        """How many Jobs are in it."""
        return len(self._jobs)

    # ------------------------------------------------------------------ what the streams tell

    def put_job(self, job: Mapping[str, Any], *, gone: bool = False) -> None:
        state = job_state(job)
        with self._lock:
            self._jobs[state.uid] = state  # its creation may not have been answered yet
            if gone:
                self._gone[state.uid] = "was deleted"

    def put_pod(self, pod: Mapping[str, Any], *, gone: bool = False) -> None:
        state = pod_state(pod)

        with self._lock:
            before = self._pods.get(state.uid)
            if before is not None and before.trouble and "ImagePullBackOff" in state.trouble:
                state = state._replace(trouble=before.trouble)  # which says why
            self._pods[state.uid] = state._replace(leaving=True) if gone else state
            if state.trouble:
                self._since.setdefault(state.uid, time.monotonic())
            else:
                self._since.pop(state.uid, None)

    def uids(self, kind: str) -> set[str]:
        """Of all Jobs, or of all pods."""
        with self._lock:
            return set(self._jobs if kind == "Jobs" else self._pods)

    def lacking(self, uids: Iterable[str]) -> None:
        """These were known before a list was asked for, and are not in it."""
        with self._lock:
            for uid in uids:
                if uid in self._jobs:
                    self._gone.setdefault(uid, "is not there any more")
                elif uid in self._pods:
                    self._pods[uid] = self._pods[uid]._replace(leaving=True)

    # ------------------------------------------------------------------ what is to be known

    def has_begun(self, uid: str) -> bool:
        """Whether a container of that Job has ever started."""
        with self._lock:
            return any(
                pod.begun or pod.finished or bool(pod.failed)
                for pod in self._pods.values()
                if pod.job == uid
            )

    def is_gone(self, uid: str) -> bool:
        """Whether it, and all of its pods, have been deleted."""
        with self._lock:
            return uid in self._gone and all(
                pod.leaving for pod in self._pods.values() if pod.job == uid
            )

    def podless(self, uids: Iterable[str]) -> dict[str, JobState]:
        """Return those of the Jobs that exist and have had no pod for a while."""
        before = time.monotonic() - TROUBLE_SECONDS

        with self._lock:
            served = {pod.job for pod in self._pods.values()}
            found = {
                uid: self._jobs.get(uid)
                for uid in uids
                if uid not in served and self._first.get(uid, before) < before
            }
            return {
                uid: job
                for uid, job in found.items()
                if job and not job.over and uid not in self._gone
            }

    def verdicts(self, uids: Iterable[str]) -> dict[str, PodStatus]:
        """Return the ends of those of the Jobs that are over, or will never begin."""
        now = time.monotonic()

        with self._lock:
            pods: dict[str, list[PodState]] = {}
            for pod in self._pods.values():
                pods.setdefault(pod.job, []).append(pod)
            found = {
                uid: self._verdict(uid, pods.get(uid, []), now) for uid in uids if uid in self._jobs
            }

        return {uid: verdict for uid, verdict in found.items() if verdict is not None}

    def _verdict(self, uid: str, pods: list[PodState], now: float) -> PodStatus | None:
        job = self._jobs[uid]
        if job is not None and job.over == FINISHED:
            return PodStatus(JobStatus("finished", f"Job {job.name} is complete"))
        failed = next((pod for pod in pods if pod.failed), None)

        if job is not None and job.over:
            if (
                failed is None
                and now - self._since.setdefault(uid, now) < WORDS_SECONDS
                and uid not in self._gone
            ):
                return None
            # That its only pod may not fail is not a reason by itself.
            why = (
                ""
                if job.one_pod and failed is not None and job.reason == "BackoffLimitExceeded"
                else _why(job)
            )
            return _lost(f"Job {job.name} failed{why}", failed, pods)

        if uid in self._gone:
            return _lost(f"Job {job.name if job else uid} {self._gone[uid]}", failed, pods)
        if job is None:
            return None
        if job.one_pod and failed is not None:
            return _lost(f"Job {job.name} failed", failed, pods)
        if job.one_pod and any(pod.finished for pod in pods):
            return PodStatus(
                JobStatus("finished", f"the pod of Job {job.name} ended with exit code 0")
            )

        for pod in pods:
            since = self._since.get(pod.uid)
            if (
                pod.trouble
                and not pod.leaving
                and since is not None
                and now - since >= TROUBLE_SECONDS
            ):
                return PodStatus(
                    JobStatus("lost", f"pod {pod.name} of Job {job.name}: {pod.trouble}"),
                    remove=True,
                )

        return None

    def why_waiting(self, uids: set[str]) -> str:
        """Return why the pods of these Jobs do not run; ``""``: nothing is known of that."""
        with self._lock:
            pods = [pod for pod in self._pods.values() if pod.job in uids and not pod.leaving]
        if not pods:
            return "Kubernetes has made no pod for the Job yet"
        return "; ".join(sorted({why for pod in pods if (why := pod.waits or pod.trouble)}))

    def waiting(self) -> list[tuple[str, int]]:
        """Why pods cannot be scheduled, and how many; what was told before is left out."""
        counts: dict[str, int] = {}

        with self._lock:
            for pod in self._pods.values():
                if pod.waits and not pod.leaving:
                    counts[pod.waits] = counts.get(pod.waits, 0) + 1
            told, self._told = self._told, set(counts)

        return [(why, number) for why, number in counts.items() if why not in told]


def _lost(words: str, failed: PodState | None, pods: list[PodState]) -> PodStatus:
    if failed is not None:
        tail = f"; the end of its log: {failed.message}" if failed.message else ""
        return PodStatus(
            JobStatus("lost", f"{words}: {failed.failed}{tail}"), None if failed.message else failed
        )

    if any(pod.leaving for pod in pods):
        words += ": its pod was deleted"
    trouble = next((pod.trouble or pod.waits for pod in pods if pod.trouble or pod.waits), "")
    return PodStatus(JobStatus("lost", f"{words}; before, {trouble}" if trouble else words))


def _why(job: JobState) -> str:
    said = ": ".join(filter(None, (job.reason, job.message)))
    return f" ({said})" if said else ""


class Watches:
    """Two threads that keep a book up to date, while there is something in it.

    Args:
        api: To be asked.
        book: To be written.
        selector: Finds what is ours.
        prune: Takes out of the book what is of no interest any more.
    """

    def __init__(self, api: Api, book: PodCache, selector: str, prune: Callable[[], None]) -> None:
        self._api, self._book, self._selector, self._prune = api, book, selector, prune
        self._kinds: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
            "Jobs": (api.batch.list_namespaced_job, book.put_job),
            "pods": (api.core.list_namespaced_pod, book.put_pod),
        }
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._versions: dict[str, str] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._open: dict[str, Any] = {}
        self._troubles: dict[str, str] = {}

    def start(self) -> None:
        """List both once, so that what is not allowed is known at once."""
        for kind in self._kinds:
            self._list(kind)

    def ensure(self) -> None:
        """See that both threads run: there is a Job."""
        with self._lock:
            for kind in self._kinds:
                if not self._closed.is_set() and (
                    kind not in self._threads or not self._threads[kind].is_alive()
                ):
                    # Not from a pool: it reads a stream until `close`, which joins it.
                    thread = threading.Thread(
                        target=self._run, args=(kind,), name=f"wove-k8s-{kind}", daemon=True
                    )
                    self._threads[kind] = thread
                    thread.start()

    def trouble(self) -> str:
        """Why the cluster cannot be watched at the moment, if it cannot."""
        return "; ".join(self._troubles.values())

    def close(self, seconds: float) -> None:
        """End both, waiting for each at most so long."""
        self._closed.set()
        with self._lock:
            threads = list(self._threads.values())
            for response in self._open.values():
                hang_up(response)

        for thread in threads:
            thread.join(seconds)

    def _run(self, kind: str) -> None:
        failures = 0

        while True:
            began = time.monotonic()
            try:
                self._follow(kind)
                self._closed.wait(max(0.0, MIN_SECONDS + began - time.monotonic()))
                failures = 0
            except Exception as error:
                if self._closed.is_set():
                    return
                if (
                    isinstance(error, RefusedError) and error.status == 410
                ):  # what changed since has been forgotten
                    self._versions.pop(kind, None)
                elif (
                    isinstance(error, DeliveryError) or failures
                ):  # else how a watch ends in a restart
                    self._troubles[kind] = (
                        f"{error}" if isinstance(error, DeliveryError) else f"{error!r}"
                    )
                failures += 1
                self._closed.wait(WATCH_AGAIN.delay(failures))
            self._prune()
            with self._lock:
                if self._closed.is_set() or not self._book.size():
                    del self._threads[kind]
                    self._versions.pop(kind, None)
                    return

    def _follow(self, kind: str) -> None:
        function, put = self._kinds[kind]
        if kind not in self._versions:
            self._list(kind)
        response = self._api.follow(function, self._selector, self._versions[kind], WATCH_SECONDS)
        with self._lock:
            self._open[kind] = response
            if self._closed.is_set():
                hang_up(response)

        self._troubles.pop(kind, None)

        try:
            for event in lines_of(response):
                thing = event["object"]
                if event["type"] == "ERROR":
                    raise RefusedError(str(thing.get("message")), int(thing.get("code") or 0))
                self._versions[kind] = thing["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    put(thing, gone=event["type"] == "DELETED")
        finally:
            with self._lock:
                self._open.pop(kind, None)
            response.close()

    def _list(self, kind: str) -> None:
        function, put = self._kinds[kind]
        known = self._book.uids(kind)
        listed = self._api.listed(function, kind, self._selector)
        for thing in listed["items"]:
            put(thing)
        self._book.lacking(known - {thing["metadata"]["uid"] for thing in listed["items"]})
        self._versions[kind] = listed["metadata"]["resourceVersion"]
