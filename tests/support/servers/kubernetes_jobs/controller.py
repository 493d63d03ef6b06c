"""The Job controller, the scheduler's answer for pods that fit nowhere, and the garbage collector."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from store import RefusedError, Store, Thing, now

ACCOUNTS = ("default", "reports")
"""The service accounts that there are, in each namespace."""

BACKOFF_SECONDS = 10.0
"""Before a failed pod is replaced; doubled each time (kubernetes.io/docs/concepts/workloads/controllers/job)."""


class Controller(threading.Thread):
    """Looks at all Jobs when something has changed."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="controller", daemon=True)
        self.store = store
        self.retry_at: dict[str, float] = {}
        self.ended_at: dict[str, float] = {}
        self.began_at: dict[str, float] = {}
        self.quotas: dict[str, int] = {}

    def run(self) -> None:
        version = 0
        while True:
            with self.store.changed:
                if self.store.version == version:
                    self.store.changed.wait(0.1)
                version = self.store.version
            jobs, _ = self.store.find("jobs")
            pods, _ = self.store.find("pods")
            for job in jobs:
                self.sync(job, [pod for pod in pods if _owner(pod) == job["metadata"]["uid"]])
            self.collect({job["metadata"]["uid"] for job in jobs}, pods)

    def sync(self, job: Thing, pods: list[Thing]) -> None:
        uid, spec, status = job["metadata"]["uid"], job["spec"], job.get("status") or {}
        if status.get("conditions"):
            ttl = spec.get("ttlSecondsAfterFinished")
            if ttl is not None and time.monotonic() - self.ended_at[uid] >= ttl:
                self.store.remove("jobs", job["metadata"]["namespace"], job["metadata"]["name"])
            return
        began = self.began_at.setdefault(uid, time.monotonic())
        phases = [(pod.get("status") or {}).get("phase") for pod in pods]
        failed = phases.count("Failed") + status.get("_removed", 0)
        leaving = [pod for pod in pods if pod["metadata"].get("deletionTimestamp")]
        active = [pod for pod in pods if _is_active(pod)]
        end: tuple[str, str, str] | None = None
        refused = False
        if "Succeeded" in phases:
            end = "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        elif time.monotonic() - began >= spec.get("activeDeadlineSeconds", float("inf")):
            end = "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
        elif failed + len([pod for pod in leaving if pod in active]) > spec.get("backoffLimit", 6):
            end = "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        if end is not None:
            for pod in active:
                delete_pod(self.store, pod)
            self.ended_at[uid] = time.monotonic()
        elif not active and (why := self.refusal(job)):
            refused = True
            self.refuse(job, why)
        elif not active:
            self.start_pod(job, failed)
        counts = {
            "active": 0 if end or refused else max(1, len(active)),
            "failed": failed,
            "succeeded": phases.count("Succeeded"),
        }
        self.tell(job, {name: number for name, number in counts.items() if number}, end)

    def refusal(self, job: Thing) -> str:
        """What admission has against a pod of the Job; nothing: it may be made."""
        namespace = job["metadata"]["namespace"]
        account = job["spec"]["template"]["spec"].get("serviceAccountName", "default")
        if account not in ACCOUNTS:
            return f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        used = sum(map(_is_active, self.store.find("pods", namespace)[0]))
        if used >= (most := self.quotas.get(namespace, 1 << 30)):
            return (
                f"exceeded quota: pods, requested: pods=1, used: pods={used}, limited: pods={most}"
            )
        return ""

    def refuse(self, job: Thing, why: str) -> None:
        """An event says so, and nothing else does."""
        metadata = job["metadata"]
        about = {"kind": "Job", **{name: metadata[name] for name in ("namespace", "name", "uid")}}
        event = {"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "FailedCreate"}
        event |= {"message": f'Error creating: pods "{metadata["name"]}-" is forbidden: {why}'}
        event |= {
            "metadata": {"name": f"{metadata['name']}.{metadata['uid'][:8]}"},
            "involvedObject": about,
        }
        with contextlib.suppress(RefusedError):  # it is there already
            self.store.create("events", metadata["namespace"], event)

    def start_pod(self, job: Thing, failed: int) -> None:
        uid, metadata, template = job["metadata"]["uid"], job["metadata"], job["spec"]["template"]
        if failed:
            wait = BACKOFF_SECONDS * 2 ** (failed - 1)
            if time.monotonic() < self.retry_at.setdefault(
                f"{uid} {failed}", time.monotonic() + wait
            ):
                return
        names = {
            "batch.kubernetes.io/job-name": metadata["name"],
            "batch.kubernetes.io/controller-uid": uid,
        }
        names |= {"job-name": metadata["name"], "controller-uid": uid}
        reference = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "uid": uid,
            "controller": True,
        }
        given = template.get("metadata") or {}
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "labels": {**(given.get("labels") or {}), **names},
                "annotations": given.get("annotations") or {},
                "ownerReferences": [reference],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self.store.create("pods", metadata["namespace"], pod)

    def tell(self, job: Thing, counts: Thing, end: tuple[str, str, str] | None) -> None:
        def change(job: Thing) -> None:
            status = job.setdefault("status", {})
            for name in ("active", "failed", "succeeded"):
                status.pop(name, None)
            status.update(counts)
            status.setdefault("startTime", now())
            if end is not None:
                kind, reason, message = end
                condition = {"type": kind, "status": "True", "reason": reason, "message": message}
                status["conditions"] = [
                    {**condition, "lastTransitionTime": now(), "lastProbeTime": now()}
                ]

        self.store.update("jobs", job["metadata"]["namespace"], job["metadata"]["name"], change)

    def collect(self, uids: set[str], pods: list[Thing]) -> None:
        """Delete the pods of Jobs that are not there any more."""
        for pod in pods:
            owner = _owner(pod)
            if owner and owner not in uids and not pod["metadata"].get("deletionTimestamp"):
                delete_pod(self.store, pod)


def _is_active(pod: Thing) -> bool:
    return (pod.get("status") or {}).get("phase") in (None, "Pending", "Running")


def _owner(pod: Thing) -> str:
    return next((each["uid"] for each in pod["metadata"].get("ownerReferences") or ()), "")


def delete_pod(store: Store, pod: Thing) -> None:
    """Mark it; the kubelet ends it, and then it goes."""

    def change(pod: Thing) -> None:
        pod["metadata"].setdefault("deletionTimestamp", now())
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        pod["metadata"].setdefault("deletionGracePeriodSeconds", grace)

    store.update("pods", pod["metadata"]["namespace"], pod["metadata"]["name"], change)
