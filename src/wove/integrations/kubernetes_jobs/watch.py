"""The known states of an environment's Jobs and pods, kept up to date by a watch of each kind."""

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
"""How long a watch lasts before it is renewed. If its connection dies silently, that is noticed a few seconds later
than this."""

TROUBLE_SECONDS: Final = 3.0
"""How long a container may have an error, such as a missing image, before its run is lost."""

REASON_SECONDS: Final = 2.0
"""How long to wait for the pod of a failed Job, whose state has the reason."""

WATCH_AGAIN: Final = Backoff(0.25, 5.0, most=1.5)
"""The delays between attempts to watch."""

MIN_SECONDS: Final = 1.0
"""The minimum time between two watches, even if the server ends one earlier."""


class PodStatus(NamedTuple):
    """The status of a Job that is over.

    Attributes:
        status: How it ended.
        pod: The pod whose log may say more; ``None``: there is none, or its log is already in the reason.
        remove: Whether the Job must be deleted, because it could still start.
    """

    status: JobStatus
    pod: PodState | None = None
    remove: bool = False


class PodCache:
    """The known Jobs and pods, by uid. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, JobState | None] = {}
        self._pods: dict[str, PodState] = {}
        self._gone: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._logged: set[str] = set()

    def expect(self, uid: str) -> None:
        """Add a Job that was created, and may not have been listed yet."""
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
        """Return the number of Jobs."""
        return len(self._jobs)

    # ------------------------------------------------------------------ updates

    def put_job(self, job: Mapping[str, Any], *, gone: bool = False) -> None:
        """Update a Job, as the API describes it; *gone*: it was deleted."""
        state = job_state(job)
        with self._lock:
            self._jobs[state.uid] = state  # the answer to its creation may still be on its way
            if gone:
                self._gone[state.uid] = "was deleted"

    def put_pod(self, pod: Mapping[str, Any], *, gone: bool = False) -> None:
        """Update a pod, as the API describes it; *gone*: it was deleted."""
        state = pod_state(pod)

        with self._lock:
            before = self._pods.get(state.uid)
            if before is not None and before.trouble and "ImagePullBackOff" in state.trouble:
                state = state._replace(trouble=before.trouble)  # the earlier one says why
            self._pods[state.uid] = state._replace(leaving=True) if gone else state
            if state.trouble:
                self._since.setdefault(state.uid, time.monotonic())
            else:
                self._since.pop(state.uid, None)

    def uids(self, kind: str) -> set[str]:
        """Return the uids of all ``"Jobs"`` or of all ``"pods"``."""
        with self._lock:
            return set(self._jobs if kind == "Jobs" else self._pods)

    def drop_unlisted(self, uids: Iterable[str]) -> None:
        """Note that Jobs or pods were known before a list was requested, and are not in it."""
        with self._lock:
            for uid in uids:
                if uid in self._jobs:
                    self._gone.setdefault(uid, "is not there any more")
                elif uid in self._pods:
                    self._pods[uid] = self._pods[uid]._replace(leaving=True)

    # ------------------------------------------------------------------ questions

    def has_started(self, uid: str) -> bool:
        """Return whether a container of that Job has ever started."""
        with self._lock:
            return any(
                pod.started or pod.finished or bool(pod.failed)
                for pod in self._pods.values()
                if pod.job == uid
            )

    def is_gone(self, uid: str) -> bool:
        """Return whether that Job and all its pods were deleted."""
        with self._lock:
            return uid in self._gone and all(
                pod.leaving for pod in self._pods.values() if pod.job == uid
            )

    def podless(self, uids: Iterable[str]) -> dict[str, JobState]:
        """Return the Jobs among *uids* that exist and have had no pod for `TROUBLE_SECONDS`."""
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

    def statuses(self, uids: Iterable[str]) -> dict[str, PodStatus]:
        """Return the status of the Jobs among *uids* that are over, or will never start."""
        now = time.monotonic()

        with self._lock:
            pods: dict[str, list[PodState]] = {}
            for pod in self._pods.values():
                pods.setdefault(pod.job, []).append(pod)
            found = {
                uid: self._status(uid, pods.get(uid, []), now) for uid in uids if uid in self._jobs
            }

        return {uid: status for uid, status in found.items() if status is not None}

    def _status(self, uid: str, pods: list[PodState], now: float) -> PodStatus | None:
        job = self._jobs[uid]
        if job is not None and job.over == FINISHED:
            return PodStatus(JobStatus("finished", f"Job {job.name} is complete"))
        failed = next((pod for pod in pods if pod.failed), None)

        if job is not None and job.over:
            if (
                failed is None
                and now - self._since.setdefault(uid, now) < REASON_SECONDS
                and uid not in self._gone
            ):
                return None
            # The failure of the only pod is the reason, not that it was the only one.
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
        """Return why the pods of these Jobs do not run; ``""``: unknown."""
        with self._lock:
            pods = [pod for pod in self._pods.values() if pod.job in uids and not pod.leaving]
        if not pods:
            return "Kubernetes has made no pod for the Job yet"
        return "; ".join(sorted({why for pod in pods if (why := pod.waits or pod.trouble)}))

    def new_waiting_reasons(self) -> list[tuple[str, int]]:
        """Return the new reasons why pods cannot be scheduled, each with the number of pods."""
        counts: dict[str, int] = {}

        with self._lock:
            for pod in self._pods.values():
                if pod.waits and not pod.leaving:
                    counts[pod.waits] = counts.get(pod.waits, 0) + 1
            logged, self._logged = self._logged, set(counts)

        return [(why, number) for why, number in counts.items() if why not in logged]


def _lost(text: str, failed: PodState | None, pods: list[PodState]) -> PodStatus:
    if failed is not None:
        tail = f"; the end of its log: {failed.message}" if failed.message else ""
        return PodStatus(
            JobStatus("lost", f"{text}: {failed.failed}{tail}"), None if failed.message else failed
        )

    if any(pod.leaving for pod in pods):
        text += ": its pod was deleted"
    trouble = next((pod.trouble or pod.waits for pod in pods if pod.trouble or pod.waits), "")
    return PodStatus(JobStatus("lost", f"{text}; before, {trouble}" if trouble else text))


def _why(job: JobState) -> str:
    said = ": ".join(filter(None, (job.reason, job.message)))
    return f" ({said})" if said else ""


class Watches:
    """Two threads that keep a cache up to date while it has Jobs.

    Args:
        api: Asks the cluster.
        cache: Is updated.
        selector: The label selector of the adapter's Jobs and pods.
        prune: Removes the Jobs from the cache that are no longer awaited.
    """

    def __init__(self, api: Api, cache: PodCache, selector: str, prune: Callable[[], None]) -> None:
        self._api, self._cache, self._selector, self._prune = api, cache, selector, prune
        self._kinds: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
            "Jobs": (api.batch.list_namespaced_job, cache.put_job),
            "pods": (api.core.list_namespaced_pod, cache.put_pod),
        }
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._versions: dict[str, str] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._open: dict[str, Any] = {}
        self._troubles: dict[str, str] = {}

    def start(self) -> None:
        """List Jobs and pods once, so that missing rights are known at once."""
        for kind in self._kinds:
            self._list(kind)

    def ensure(self) -> None:
        """Start the threads that do not run."""
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
        """Return why the cluster cannot be watched at present; ``""``: it can."""
        return "; ".join(self._troubles.values())

    def close(self, seconds: float) -> None:
        """End both threads, waiting for each for at most *seconds*."""
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
                if isinstance(error, RefusedError) and error.status == 410:
                    self._versions.pop(
                        kind, None
                    )  # the server no longer has the changes since then
                elif isinstance(error, DeliveryError) or failures:
                    # A single other error is how a watch ends when the server restarts.
                    self._troubles[kind] = (
                        f"{error}" if isinstance(error, DeliveryError) else f"{error!r}"
                    )
                failures += 1
                self._closed.wait(WATCH_AGAIN.delay(failures))
            self._prune()
            with self._lock:
                if self._closed.is_set() or not self._cache.size():
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
        known = self._cache.uids(kind)
        listed = self._api.listed(function, kind, self._selector)
        for thing in listed["items"]:
            put(thing)
        self._cache.drop_unlisted(known - {thing["metadata"]["uid"] for thing in listed["items"]})
        self._versions[kind] = listed["metadata"]["resourceVersion"]
