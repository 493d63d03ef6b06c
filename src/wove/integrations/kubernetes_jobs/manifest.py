"""The manifest of a run's Job: names, labels, and the payload in the worker's environment. Pure."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from wove.integrations.base import PayloadDict
from wove.integrations.common.manifests import merged
from wove.integrations.common.timing import run_seconds, trip_seconds
from wove.integrations.naming import job_mark, job_name
from wove.protocol.names import PAYLOAD_VARIABLE

__all__ = ["CONTAINER", "MAX_PREFIX", "OWNER", "RUN", "TASK", "Template", "encoded", "name_of"]

CONTAINER: Final = "wove"
"""The name of the worker's container."""

OWNER: Final = "wove/owner"
"""The label by which an adapter finds its own Jobs and pods. Its value has 16 hexadecimal digits."""

RUN: Final = "wove/run-id"
TASK: Final = "wove/task"
"""Annotations, which may contain any text, unlike labels."""

MAX_NAME: Final = 57
"""Maximum length of a Job's name. It becomes the value of a label of its pods, at most 63 characters (kubernetes.io/
docs/concepts/overview/working-with-objects/labels), and their names have six more characters."""

MAX_PREFIX: Final = 30

MAX_VARIABLE: Final = 131_071
"""Maximum size of ``NAME=value``: MAX_ARG_STRLEN of Linux, 32 pages, less the NUL (include/uapi/linux/binfmts.h)."""

TTL_SECONDS: Final = 600
"""How long Kubernetes keeps a Job that is over, so that the reason of a failure can be read. ``job_spec`` may set
another time. Jobs of runs that have ended normally are deleted at once, unless ``job_spec`` sets a time."""

MARGIN_SECONDS: Final = 30
"""Seconds by which a time limit of Kubernetes is later than the run's, at which the worker ends the run and reports
that."""


PULL_SECONDS: Final = 600
"""How long a node may take to pull an image, which counts towards the deadline of a pod."""


def encoded(payload: Mapping[str, Any]) -> str:
    """Return *payload* as JSON without dollar signs: Kubernetes replaces ``$(NAME)`` and ``$$`` in a variable's value
    (kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables)."""
    return json.dumps(payload, separators=(",", ":")).replace("$", "\\u0024")


def name_of(frame: Mapping[str, Any], *, prefix: str) -> str:
    """Return the name of a run's Job: a DNS label, the same for runs of one task with the same idempotency key."""
    return job_name(
        frame["task_id"], prefix=prefix, most=MAX_NAME, suffix=f"-{job_mark(frame, 12)}"
    )


_QUANTITIES: Final[Mapping[str, str]] = {
    "cpus": "cpu",
    "memory": "memory",
    "gpus": "nvidia.com/gpu",
    "disk": "ephemeral-storage",
}
"""Names of a container's resources (kubernetes.io/docs/concepts/configuration/manage-resources-containers)."""


def container_resources(resources: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """Return the ``resources`` of a container that asks for *resources*; empty where it asks for none.

    All are requests. Memory, devices and disk are limits, too; a core that nobody else uses may be used.
    """
    asked = {
        _QUANTITIES[name]: f"{resources[name]:.15g}" for name in _QUANTITIES if resources.get(name)
    }
    limits = {name: quantity for name, quantity in asked.items() if name != "cpu"}
    return {key: value for key, value in (("requests", asked), ("limits", limits)) if value}


class Template(NamedTuple):
    """The parts that all Jobs of an environment have in common.

    Attributes:
        namespace: The namespace of the Jobs.
        image: The image of the worker's container; ``None``: ``container`` or a ``job_factory`` sets it.
        command: The command of the container.
        backoff_limit: How often Kubernetes replaces a pod that failed.
        labels: Further labels of Jobs and pods.
        annotations: Further annotations of both.
        container: Further fields of the worker's container, as in a manifest.
        pod_spec: Further fields of the pod's spec.
        job_spec: Further fields of the Job's spec.
        owner: The value of the label `OWNER`.
    """

    namespace: str
    image: str | None
    command: Sequence[str]
    backoff_limit: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    container: Mapping[str, Any]
    pod_spec: Mapping[str, Any]
    job_spec: Mapping[str, Any]
    owner: str

    def job(
        self, payload: PayloadDict, name: str, resources: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return the manifest of the Job *name*, which runs *payload*.

        Args:
            payload: The payload of its run.
            name: The name of the Job.
            resources: The ``resources`` of the run's ``run_task`` frame. What the template says stands.

        Raises:
            ValueError: The payload does not fit into an environment variable.
        """
        text = encoded(payload)
        if (size := len(PAYLOAD_VARIABLE) + 1 + len(text)) > MAX_VARIABLE:
            raise ValueError(
                f"the payload of task {payload['task_name']!r} does not fit into the environment variable "
                f"{PAYLOAD_VARIABLE}: that takes {MAX_VARIABLE:,} bytes, and it would have {size:,}, although its "
                "function and arguments are fetched. Its delivery options must be shorter"
            )

        metadata = self._metadata(payload)
        container: dict[str, Any] = {
            "name": CONTAINER,
            "command": list(self.command),
            "env": [{"name": PAYLOAD_VARIABLE, "value": text}],
            # The pod's status then contains the end of the log of a failed worker.
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }
        if self.image is not None:
            container["image"] = self.image
        if asked := container_resources(resources):
            container["resources"] = asked
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "containers": [merged(container, self.container)],
        }
        if "serviceAccountName" not in self.pod_spec:
            pod["automountServiceAccountToken"] = False  # a worker makes no calls to the cluster
        spec: dict[str, Any] = {
            "backoffLimit": self.backoff_limit,
            "ttlSecondsAfterFinished": TTL_SECONDS,
        }
        # The deadline of a Job counts from its creation, that of a pod only once a node has accepted it.
        if math.isfinite(seconds := trip_seconds(payload)):
            spec["activeDeadlineSeconds"] = math.ceil(seconds) + MARGIN_SECONDS
        if "time" in resources:
            pod["activeDeadlineSeconds"] = math.ceil(resources["time"])
        elif math.isfinite(seconds := run_seconds(payload)):
            pod["activeDeadlineSeconds"] = math.ceil(seconds) + MARGIN_SECONDS + PULL_SECONDS
        spec["template"] = {"metadata": copy.deepcopy(metadata), "spec": merged(pod, self.pod_spec)}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace, **metadata},
            "spec": merged(spec, self.job_spec),
        }

    def _metadata(self, payload: PayloadDict) -> dict[str, Any]:
        ours = {RUN: payload["run_id"], TASK: payload["task_name"]}
        return {
            "labels": {"app.kubernetes.io/managed-by": "wove", **self.labels, OWNER: self.owner},
            "annotations": {**self.annotations, **ours},
        }

    def adopt(self, job: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Job that a ``job_factory`` made of *default*, with the labels by which the adapter finds it.

        Raises:
            ValueError: It is not a Job that can be submitted; the message says why.
        """
        ours = {"metadata": {"labels": {OWNER: self.owner}, "annotations": {RUN: _run_of(default)}}}
        made = merged({"apiVersion": "batch/v1", "kind": "Job", **job}, ours)
        metadata, spec = made["metadata"], made.get("spec")
        metadata.setdefault("name", default["metadata"]["name"])

        if metadata.setdefault("namespace", self.namespace) != self.namespace:
            raise ValueError(
                f"it is for namespace {metadata['namespace']!r}, and the environment's 'namespace' is "
                f"{self.namespace!r}"
            )

        if (
            made["kind"] != "Job"
            or not isinstance(spec, dict)
            or not isinstance(made["spec"].get("template"), dict)
        ):
            raise ValueError("it is not a Job: that has kind 'Job', and a spec with a template")

        made["spec"]["template"] = merged(made["spec"]["template"], ours)
        return made


def _run_of(job: Mapping[str, Any]) -> str:
    return str(job["metadata"]["annotations"][RUN])
