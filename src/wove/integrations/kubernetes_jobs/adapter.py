"""Kubernetes Jobs: each run is a Job, whose pod runs ``python -m wove.backend_worker`` once.

`manifest` makes Jobs, `client` calls the cluster, `states` reads its answers, `watch` keeps the known states up to date
with one watch for all Jobs of an environment, and `lost` finds lost Jobs.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import DeliveryError, install_command
from wove.executors.base import CancelReach, Frame
from wove.graph.resources import NAMES
from wove.graph.rules import shown
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.manifests import RESERVED_VARIABLES
from wove.integrations.common.resources import resources_of
from wove.integrations.common.withdrawals import Withdrawals
from wove.integrations.kubernetes_jobs.client import (
    Api,
    RefusedError,
    batch_api,
    default_namespace,
)
from wove.integrations.kubernetes_jobs.lost import LostJobDetector, Submission
from wove.integrations.kubernetes_jobs.manifest import (
    CONTAINER,
    MAX_PREFIX,
    OWNER,
    Template,
    name_of,
)
from wove.integrations.kubernetes_jobs.states import job_state
from wove.integrations.kubernetes_jobs.watch import PodCache, Watches
from wove.protocol import heartbeats
from wove.settings.config_readers import command, flag, mapping, text, variables, whole

__all__ = ["COMMAND", "KubernetesJobsAdapter", "Submission"]

logger = logging.getLogger("wove")

COMMAND: Final = ("python", "-m", "wove.backend_worker")
"""The worker's command by default."""

RETRY_SECONDS: Final = 2.0
"""The time between two attempts to create a Job while the API server is away or a quota is used up."""

REPLACE_SECONDS: Final = 5.0
"""How long the deletion of an earlier Job with the name may take. After that, the new Job gets another name."""

END_SECONDS: Final = 3.0
"""How long the Job of another process may take to end: its run may be over, and its pod about to end."""

ACK_SECONDS: Final = 5.0
"""How long a cancel with ``require_ack`` waits until no pod is left that could start."""

CLOSE_SECONDS: Final = 1.0

RIGHTS: Final = (
    ("create", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "batch", "jobs"),
    ("watch", "batch", "jobs"),
    ("list", "", "pods"),
    ("watch", "", "pods"),
)
"""The rights that are needed. They are checked when an environment starts."""

_PREFIX: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?-?")


class OccupiedError(DeliveryError):
    """Another process has a Job with the same idempotency key."""


class KubernetesJobsAdapter(BackendAdapter):
    """Creates a Job for each run.

    ``executor_config``: ``image``, whose Python has Wove and the user's modules; ``command``, the worker's (a list, or
    a text that is split like a shell's); ``namespace`` (that of the kubeconfig's context, or of the pod this runs in);
    ``backoff_limit`` (0); ``job_name_prefix`` (``"wove-"``); ``container``, ``pod_spec`` and ``job_spec``, dicts that
    are merged into the Job's manifest; ``labels`` and ``annotations``; or ``job_factory``, called with the payload and
    the Job that it would be, which returns a Job.

    The cluster: ``batch_api``, a `kubernetes.client.BatchV1Api` of the user's own; or ``in_cluster``, whether to use
    the pod's service account (default: where there is no kubeconfig), ``load_config_options`` of
    `kubernetes.config.load_kube_config` (or ``load_incluster_config``), and ``load_config=False``, to use what the
    process has set as Kubernetes' default configuration.

    Example:
        >>> config = {"image": "registry.example/reports:3", "namespace": "reports"}
        >>> wove.config(environments={"jobs": {"executor": "kubernetes_jobs", "executor_config": config}})
    """

    name: ClassVar[str] = "kubernetes_jobs"
    resources: ClassVar[frozenset[str]] = frozenset(NAMES)
    required_modules: ClassVar[tuple[str, ...]] = ("kubernetes",)
    install_hint: ClassVar[str] = install_command("kubernetes-jobs")
    keys: ClassVar[tuple[str, ...] | None] = (
        "namespace",
        "image",
        "command",
        "job_factory",
        "batch_api",
        "load_config",
        "in_cluster",
        "load_config_options",
        "backoff_limit",
        "job_name_prefix",
        "container",
        "pod_spec",
        "job_spec",
        "labels",
        "annotations",
    )
    cancel_reach: ClassVar[CancelReach] = "process"
    # The watches receive each change of a Job or pod with the whole manifest.
    inline_bytes: ClassVar[int] = 16 * 1024
    beat_seconds: ClassVar[float] = heartbeats.BATCH_SECONDS
    redelivers: ClassVar[bool] = False
    patient: ClassVar[bool] = True
    reports_cancel_reason: ClassVar[bool] = True
    threads: ClassVar[int] = 8
    # `watch` reads the cache, and makes no queries.
    watch_seconds: ClassVar[tuple[float, float]] = (0.25, 1.0)

    _api: Api | None = None
    _watches: Watches | None = None

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("batch_api")
        self._in_cluster = (
            flag(config, "in_cluster", False, label=label)
            if config.get("in_cluster") is not None
            else None
        )
        self._load = flag(config, "load_config", True, label=label)
        self._load_options = dict(mapping(config, "load_config_options", label=label))
        self._namespace = text(config, "namespace", None, label=label)
        self._check_client()
        self._factory = config.get("job_factory")
        if self._factory is not None and not callable(self._factory):
            raise TypeError(
                f"{label}: executor_config 'job_factory' must be callable, not {shown(self._factory)}"
            )

        self._prefix = text(config, "job_name_prefix", "wove-", label=label).rstrip("-") + "-"

        if not _PREFIX.fullmatch(self._prefix) or len(self._prefix) > MAX_PREFIX:
            raise ValueError(
                f"{label}: executor_config 'job_name_prefix' must be at most {MAX_PREFIX - 1} lower-case letters, "
                f"digits and '-', the first a letter, as names of Jobs are; not {shown(config['job_name_prefix'])}"
            )

        self._owner = secrets.token_hex(8)
        self._template = Template(
            self._namespace or "",
            text(config, "image", None, label=label),
            command(config, "command", COMMAND, label=label),
            whole(config, "backoff_limit", 0, label=label, minimum=0),
            cast("Mapping[str, str]", self._texts("labels")),
            cast("Mapping[str, str]", self._texts("annotations")),
            mapping(config, "container", label=label),
            mapping(config, "pod_spec", label=label),
            mapping(config, "job_spec", label=label),
            self._owner,
        )
        self._check_template()

    def _check_client(self) -> None:
        if self._given is None:
            return
        if both := [
            key
            for key in ("load_config", "in_cluster", "load_config_options")
            if key in self.config
        ]:
            raise ValueError(
                f"{self.label}: executor_config 'batch_api' has its configuration: it cannot have "
                f"{' and '.join(both)}, too"
            )

        create = getattr(self._given, "create_namespaced_job", None)
        is_async = inspect.iscoroutinefunction(create) or ".aio" in type(self._given).__module__
        if (
            isinstance(self._given, type)
            or create is None
            or is_async
            or not hasattr(self._given, "api_client")
        ):
            raise TypeError(
                f"{self.label}: executor_config 'batch_api' must be a kubernetes.client.BatchV1Api (not one of "
                f"asyncio), not {shown(self._given)}"
            )

    def _check_template(self) -> None:
        template, label = self._template, self.label
        if template.image is None and self._factory is None and not template.container.get("image"):
            raise ValueError(
                f"{label}: executor_config needs 'image' (\"registry.example/reports:3\") or 'job_factory'"
            )

        if template.image is not None and template.container.get("image"):
            raise ValueError(
                f"{label}: executor_config has 'image', and another one in 'container': leave one out"
            )

        if template.container.get("name", CONTAINER) != CONTAINER:
            raise ValueError(
                f"{label}: executor_config 'container' is named {CONTAINER!r}; leave its 'name' out"
            )

        if self.config.get("command") is not None and template.container.get("command"):
            raise ValueError(
                f"{label}: executor_config has 'command', and another one in 'container': leave one out"
            )

        container_label = f"{label}: executor_config 'container'"
        variables(template.container, "env", label=container_label, reserved=RESERVED_VARIABLES)

        if "template" in template.job_spec:
            raise ValueError(
                f"{label}: executor_config 'job_spec' has a 'template': that belongs into 'pod_spec'"
            )

    def _texts(self, key: str) -> Mapping[str, Any]:
        found = mapping(self.config, key, label=self.label)
        for name, value in found.items():
            if not isinstance(value, str):
                raise TypeError(
                    f"{self.label}: executor_config {key!r}: {name!r} must be text, not {shown(value)}"
                )
        return found

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        self._withdrawing = ThreadPool(1, "wove-k8s-withdraw")
        self._withdrawals = Withdrawals(self._cancel_named, self._withdrawing, label=self.label)
        await run_in_thread(self._connect)

    def _connect(self) -> None:
        options, load, in_cluster = self._load_options, self._load, self._in_cluster
        with forks.importing:
            importlib.import_module("kubernetes.client")
            config: Any = importlib.import_module("kubernetes.config")

        batch: Any = self._given
        namespace = self._namespace

        try:
            if batch is None:
                batch = batch_api(load=load, in_cluster=in_cluster, options=options)
            if namespace is None:
                known = self._given is None
                namespace = default_namespace(
                    load=known and load, in_cluster=in_cluster, options=options
                )
        except (config.ConfigException, OSError, TypeError) as error:
            raise ValueError(
                f"{self.label}: no configuration of a cluster could be loaded: {error}. Give a kubeconfig in "
                "executor_config 'load_config_options' ({'config_file': ..., 'context': ...}), or 'in_cluster': True "
                "in a pod, or 'batch_api'"
            ) from error

        self._template = self._template._replace(namespace=namespace)
        self._cache = PodCache()
        self._uids: dict[str, str] = {}
        self._lock = threading.Lock()
        api = self._api = Api(batch, namespace, label=self.label)
        self._watches = Watches(api, self._cache, f"{OWNER}={self._owner}", self._prune)
        self._probe = LostJobDetector(api, self._cache, self._watches, label=self.label)

        try:
            self._watches.start()
        except RefusedError as error:
            if error.status == 403:
                self._check_rights(api)  # its error names the missing right
            raise

        self._check_rights(api)

    def _check_rights(self, api: Api) -> None:
        for verb, group, resource in RIGHTS:
            if why := api.may(verb, group, resource):
                raise PermissionError(
                    f"{self.label}: this process may not {verb} {resource} in namespace {api.namespace!r}: {why}. "
                    "docs/kubernetes.md has a Role with the rights that are needed"
                )

    async def close(self) -> None:
        await self._withdrawals.close()
        await run_in_thread(self._disconnect)

    def _disconnect(self) -> None:
        self._withdrawing.close(CLOSE_SECONDS, for_good=True)
        if self._watches is not None:
            self._watches.close(CLOSE_SECONDS)
        if self._given is None and self._api is not None:
            client = self._api.batch.api_client
            pool_manager: Any = getattr(getattr(client, "rest_client", None), "pool_manager", None)
            if pool_manager is not None:
                # At the end of the process, urllib3 has closed its pools before, and closes no connection that a call
                # has returned since then.
                for key in list(pool_manager.pools.keys()):
                    pool_manager.pools[key].close()
                pool_manager.clear()
            client.close()

    def _prune(self) -> None:
        with self._lock:
            self._uids = {
                run_id: uid for run_id, uid in self._uids.items() if self.is_awaited(run_id)
            }
            kept = list(self._uids.values())
        self._cache.keep(kept)

    # ------------------------------------------------------------------ submit

    def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        name = name_of(frame, prefix=self._prefix)
        job = self._job(payload, name, resources_of(frame))
        made = self._create(job, payload)
        submission = Submission(made["metadata"]["name"], made["metadata"]["uid"])
        with self._lock:
            self._uids[payload["run_id"]] = submission.uid
        self._cache.expect(submission.uid)
        self._connected[1].ensure()
        return submission

    @property
    def _connected(self) -> tuple[Api, Watches]:
        assert self._api is not None and self._watches is not None  # `start` comes first
        return self._api, self._watches

    def _job(
        self, payload: PayloadDict, name: str, resources: Mapping[str, float]
    ) -> dict[str, Any]:
        try:
            default = self._template.job(payload, name, resources)
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from None

        if self._factory is None:
            return default
        given = copy.deepcopy(default)
        job: object = self._connected[0].sanitized(_called(self._factory, payload, given))
        if not isinstance(job, Mapping):
            raise TypeError(
                f"{self.label}: job_factory must return a Job, as a dict or a kubernetes.client.V1Job, not {shown(job)}"
            )

        try:
            return self._template.adopt(cast("Mapping[str, Any]", job), default)
        except ValueError as error:
            raise ValueError(
                f"{self.label}: what job_factory returned cannot be submitted: {error}"
            ) from None

    def _create(self, job: dict[str, Any], payload: PayloadDict) -> dict[str, Any]:
        """Create *job* exactly once, and wait for an API server that is away and for room in a quota of Jobs.

        Raises:
            DeliveryError: The server refused the Job, or did not answer for ``submit_patience_seconds``. If it may have
                created the Job all the same, that is deleted as soon as the server answers.
        """
        until = time.monotonic() + self.submit_patience_seconds

        while True:
            try:
                return self._create_once(job, payload)
            except DeliveryError as error:
                refused = isinstance(error, RefusedError) and error.status < 500
                if isinstance(error, RefusedError) and not error.passes:
                    raise
                if isinstance(error, OccupiedError):
                    raise
                if time.monotonic() >= until or not self.is_awaited(payload["run_id"]):
                    if not refused:
                        self._withdrawals.add(job["metadata"]["name"], payload["run_id"])
                    raise
                logger.info("%s; waiting for it", error)
            time.sleep(min(RETRY_SECONDS, max(0.0, until - time.monotonic())))

    def _cancel_named(self, name: str, run_id: str) -> bool:
        """Delete the Job *name* of the run *run_id*, and return whether there is none."""
        api = self._connected[0]
        found = api.read(name)
        if found is None or job_state(found).run_id != run_id:
            return True
        logger.info("%s: Job %s was created too late, and is deleted", self.label, name)
        api.delete(name, found["metadata"]["uid"])
        return False

    def _create_once(self, job: dict[str, Any], payload: PayloadDict) -> dict[str, Any]:
        """Create *job*, or return it if an earlier attempt has created it. A Job in its way is replaced."""
        api, began = self._connected[0], time.monotonic()
        name = job["metadata"]["name"]

        while True:
            try:
                return api.create(job)
            except RefusedError as error:
                if error.status != 409:
                    raise
            found = api.read(job["metadata"]["name"])
            if found is None:
                pass  # it was deleted just now
            elif (
                job_state(found).run_id == payload["run_id"]
                and job_state(found).owner == self._owner
            ):
                return found  # it was created, and the answer was lost
            else:
                self._make_room(found, payload, patient=time.monotonic() - began < END_SECONDS)
            if time.monotonic() - began > REPLACE_SECONDS:
                # A finalizer may keep the earlier Job for ever.
                job["metadata"]["name"] = f"{name[:-13]}-{secrets.token_hex(6)}"
            time.sleep(0.1)

    def _make_room(self, job: dict[str, Any], payload: PayloadDict, *, patient: bool) -> None:
        """Delete the Job with that name if it is over, or if this adapter created it earlier and it is lost.

        Runs with one key are already shared within the process.

        Raises:
            OccupiedError: Another process waits for the Job.
            ValueError: Another run has the Job, because of a ``job_factory``.
        """
        state = job_state(job)
        if (
            self._factory is not None
            and state.owner == self._owner
            and self.is_awaited(state.run_id)
            and not state.over
        ):
            raise ValueError(
                f"{self.label}: task {payload['task_name']!r} cannot have Job {state.name}: another run has it. A "
                "job_factory must leave names as they are, or give each run another one"
            )

        leaving = bool(job["metadata"].get("deletionTimestamp"))
        if not state.over and not leaving and state.owner != self._owner:
            if patient:
                return
            raise OccupiedError(
                f"{self.label}: task {payload['task_name']!r} with this idempotency key is already Job {state.name}, "
                f"created by another process, which gets its result. Wait for it, delete that Job (kubectl delete job "
                f"{state.name} --namespace {self._template.namespace}), or use another key"
            )

        if not leaving:
            self._connected[0].delete(state.name, state.uid)

    # ------------------------------------------------------------------ cancel

    def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(submission, Submission):
            return False  # not created yet; its worker learns of the cancel when it reports

        self._connected[0].delete(submission.name, submission.uid)
        if frame.get("delivery_cancel_mode") != "require_ack":
            return False
        deadline = time.monotonic() + ACK_SECONDS
        while time.monotonic() < deadline and not self._cache.has_started(submission.uid):
            if self._cache.is_gone(submission.uid):
                return True
            time.sleep(0.05)

        return False

    def release(self, run_id: str, submission: Any, lost: bool) -> None:
        """Delete the Job of a run that has ended normally, so that it counts in no quota. A failed one can be read."""
        if not lost and "ttlSecondsAfterFinished" not in self._template.job_spec:
            self._connected[0].delete(submission.name, submission.uid)

    # ------------------------------------------------------------------ watch

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return self._probe.ended(submissions)

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        uids = {each.uid for each in submissions.values() if isinstance(each, Submission)}
        return self._cache.why_waiting(uids)


def _called(factory: Callable[..., Any], payload: PayloadDict, job: dict[str, Any]) -> Any:
    """Return the Job that *factory* makes of a payload; its second parameter is optional."""
    try:
        inspect.signature(factory).bind(payload, job)
    except TypeError:
        return factory(copy.deepcopy(payload))
    except ValueError:  # a callable without a signature
        pass

    return factory(copy.deepcopy(payload), job)
