"""The states of Jobs and pods, reduced to what matters for a run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from wove.integrations.kubernetes_jobs.manifest import CONTAINER, OWNER, RUN

__all__ = ["FINISHED", "JobState", "PodState", "job_state", "pod_state"]

HOPELESS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
    }
)
"""Reasons of waiting containers that will not start by themselves (pkg/kubelet/images/types.go,
pkg/kubelet/kuberuntime/ kuberuntime_container.go)."""

FINISHED: Final = "finished"
MAX_MESSAGE: Final = 2000


class JobState(NamedTuple):
    """A Job.

    Attributes:
        uid: Its uid.
        name: Its name.
        run_id: The id of its run.
        owner: The id of the adapter that created it.
        over: ``"finished"``, ``"failed"``, or ``""`` while it is neither.
        reason: The code of its failure (``"DeadlineExceeded"``).
        message: The text of its failure.
        one_pod: Whether the first failed pod is its end.
    """

    uid: str
    name: str
    run_id: str
    owner: str
    over: str
    reason: str
    message: str
    one_pod: bool


class PodState(NamedTuple):
    """A pod.

    Attributes:
        uid: Its uid.
        name: Its name.
        job: The uid of its Job.
        started: Whether one of its containers has ever started.
        trouble: Why its container will never start; empty: it may.
        waits: Why it cannot be scheduled at present; empty: it can.
        failed: How it failed; empty: it has not.
        finished: Whether its worker ended with status 0.
        message: The termination message of its container: the end of the log.
        container: The name of the container that failed, whose log says more.
        leaving: Whether it is being deleted, or was.
    """

    uid: str
    name: str
    job: str
    started: bool
    trouble: str
    waits: str
    failed: str
    finished: bool
    message: str
    container: str
    leaving: bool


def job_state(job: Mapping[str, Any]) -> JobState:
    """Return the state of a Job, as the API describes it."""
    conditions = {
        each["type"]: each
        for each in _items(job, "status", "conditions")
        if each.get("status") == "True"
    }
    end = conditions.get("Failed") or conditions.get("FailureTarget")
    limit, policy = _in(job, "spec", "backoffLimit"), _in(job, "spec", "podFailurePolicy")
    return JobState(
        job["metadata"]["uid"],
        job["metadata"]["name"],
        _in(job, "metadata", "annotations", RUN) or "",
        _in(job, "metadata", "labels", OWNER) or "",
        FINISHED if "Complete" in conditions else "failed" if end else "",
        _in(end, "reason") or "",
        _in(end, "message") or "",
        limit == 0
        and not policy
        and _in(job, "spec", "template", "spec", "restartPolicy") == "Never",
    )


def pod_state(pod: Mapping[str, Any]) -> PodState:
    """Return the state of a pod, as the API describes it."""
    owners = [
        each["uid"]
        for each in _items(pod, "metadata", "ownerReferences")
        if each.get("kind") == "Job"
    ]
    containers = _items(pod, "status", "containerStatuses")
    workers = [each for each in containers if each["name"] == CONTAINER] or containers
    everything = [*_items(pod, "status", "initContainerStatuses"), *workers]
    bad = next((each for each in everything if _in(each, "state", "terminated", "exitCode")), None)
    name, phase = pod["metadata"]["name"], _in(pod, "status", "phase")
    failed = _failed(name, pod, bad) if phase == "Failed" or bad is not None else ""
    return PodState(
        pod["metadata"]["uid"],
        name,
        owners[0] if owners else "",
        any(_in(each, "state", "running") is not None or _ran(each) for each in everything),
        _trouble(everything),
        _waits(pod),
        failed,
        not failed and (phase == "Succeeded" or (bool(workers) and all(map(_ran, workers)))),
        _message(bad),
        "" if bad is None else bad["name"],
        bool(_in(pod, "metadata", "deletionTimestamp")),
    )


def _in(thing: Any, *path: str) -> Any:
    """Return the value at *path*; ``None``: it does not exist, since the API leaves out empty values."""
    for key in path:
        if thing is None:
            return None
        thing = thing.get(key)
    return thing


def _items(thing: Any, *path: str) -> list[Any]:
    return list(_in(thing, *path) or ())


def _ran(container: Any) -> bool:
    return any(_in(container, state, "terminated") is not None for state in ("state", "lastState"))


def _failed(name: str, pod: Any, container: Any) -> str:
    deleted = _in(pod, "metadata", "deletionTimestamp") is not None
    text = f"pod {name} was deleted" if deleted else f"pod {name} failed"

    # The reason of the pod as a whole: Evicted, DeadlineExceeded, NodeLost, ...
    if reason := _in(pod, "status", "reason"):
        text += f" ({_sentence(reason, _in(pod, 'status', 'message'))})"
    else:
        for each in _items(pod, "status", "conditions"):
            if each.get("type") == "DisruptionTarget" and each.get("status") == "True":
                text += f" ({_sentence(each.get('reason'), each.get('message'))})"

    if container is not None:
        end = _in(container, "state", "terminated")
        text += f": container {container['name']!r} ended with exit code {end['exitCode']}"
        text += f", signal {end['signal']}" if end.get("signal") else ""
        if (
            reason := end.get("reason")
        ) == "StartError":  # there is no log, but a message of the container runtime
            text += f" ({_sentence(reason, end.get('message'))})"
        elif reason and reason != "Error":
            text += f" ({reason})"

    return text


def _message(container: Any) -> str:
    if _in(container, "state", "terminated", "reason") == "StartError":
        return ""
    return str(_in(container, "state", "terminated", "message") or "").strip()[-MAX_MESSAGE:]


def _trouble(containers: Iterable[Any]) -> str:
    for each in containers:
        reason = _in(each, "state", "waiting", "reason")
        if reason in HOPELESS:
            image = f" of image {each['image']!r}" if each.get("image") else ""
            message = _in(each, "state", "waiting", "message")
            return f"container {each['name']!r}{image} does not start: {_sentence(reason, message)}"
    return ""


def _waits(pod: Any) -> str:
    for each in _items(pod, "status", "conditions"):
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return _sentence(each.get("reason"), each.get("message"))
    return ""


def _sentence(reason: object, message: object) -> str:
    return ": ".join(str(each)[:MAX_MESSAGE] for each in (reason, message) if each)
