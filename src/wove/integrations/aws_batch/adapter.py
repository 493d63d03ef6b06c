"""AWS Batch: each run is a job, whose container runs ``python -m wove.backend_worker`` once."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from wove.concurrency import forks
from wove.concurrency.bounded import BoundedDict
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import DeliveryError, install_command
from wove.executors.base import CancelReach, Frame
from wove.graph.rules import shown
from wove.integrations.aws_batch.client import Api, DeniedError, UnansweredError, client_of
from wove.integrations.aws_batch.states import LIVE, JobProbe
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.manifests import RESERVED_VARIABLES, merged
from wove.integrations.common.resources import resources_of
from wove.integrations.common.timing import longest_seconds
from wove.integrations.common.withdrawals import Withdrawals
from wove.integrations.naming import idempotency_key, job_mark, job_name
from wove.protocol import heartbeats
from wove.protocol.names import PAYLOAD_VARIABLE
from wove.protocol.payload import ENVELOPE_BYTES
from wove.settings.config_readers import command, mapping, options, text, variables

__all__ = ["COMMAND", "AWSBatchAdapter"]

logger = logging.getLogger("wove")

COMMAND: Final = ("python", "-m", "wove.backend_worker")
"""The worker's command where neither the environment nor the job definition has one."""

MAX_OVERRIDES: Final = 8192
"""Maximum length of a job's overrides as JSON. A job with more fails with "Container Overrides length must be at most
8192" (docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskOverride.html)."""

BATCH_BYTES: Final = 1024
"""Size of the variables that Batch adds itself: AWS_BATCH_JOB_ID and others
(docs.aws.amazon.com/batch/latest/userguide/ job_env_vars.html), the names of queue and compute environment among
them."""

MAX_REQUEST: Final = 30 * 1024
"""Maximum size of a SubmitJob request (docs.aws.amazon.com/batch/latest/userguide/service_limits.html)."""

MAX_NAME: Final = 128
"""Maximum length of a job's name (docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html)."""

MAX_PREFIX: Final = 60

MIN_TIMEOUT: Final = 60
"""Minimum of ``attemptDurationSeconds``."""

MARGIN_SECONDS: Final = 30
"""Seconds by which the job's time limit is later than the run's, at which the worker ends the run and reports that."""

MAX_KEYED: Final = 10_000
"""Maximum number of jobs with an idempotency key that are remembered as submitted here."""

RETRY_SECONDS: Final = 2.0
"""The time between two attempts to submit a job while AWS Batch cannot be reached."""

CLOCK_SECONDS: Final = 60.0
"""How much the clocks of AWS and of this machine may differ."""

CLOSE_SECONDS: Final = 1.0

ACK_SECONDS: Final = 5.0
"""How long a cancel with ``require_ack`` waits for the end of the job."""

OPTIONS: Final = (
    "shareIdentifier",
    "schedulingPriorityOverride",
    "dependsOn",
    "parameters",
    "retryStrategy",
    "propagateTags",
    "timeout",
    "tags",
    "consumableResourcePropertiesOverride",
)
"""The keys of ``submit_job_options`` (docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html)."""

RESERVED: Final = {
    "jobName": "it is made of the task's name; there is 'job_name_prefix'",
    "jobQueue": "it is executor_config 'job_queue'",
    "jobDefinition": "it is executor_config 'job_definition'",
    "containerOverrides": "it is executor_config 'container_overrides'",
    "arrayProperties": "a run is one job",
    "nodeOverrides": "a run is one job on one node",
    "eksPropertiesOverride": "the payload goes to the container of an ECS job definition",
    "ecsPropertiesOverride": "the payload goes to the container of a job definition with one",
}
"""Options of SubmitJob that the user cannot set, and why."""


def requirements(resources: Mapping[str, float]) -> list[dict[str, str]]:
    """Return the ``resourceRequirements`` of a container that asks for *resources*: cores, MiB, devices.

    Example:
        >>> requirements({"cpus": 4, "memory": 8 * 2**30})
        [{'type': 'VCPU', 'value': '4'}, {'type': 'MEMORY', 'value': '8192'}]
    """
    asked = {
        "VCPU": resources.get("cpus"),
        "MEMORY": math.ceil(resources.get("memory", 0) / 2**20),
        "GPU": resources.get("gpus"),
    }
    return [{"type": kind, "value": f"{value:g}"} for kind, value in asked.items() if value]


class AWSBatchAdapter(BackendAdapter):
    """Submits each run as one job of AWS Batch.

    ``executor_config``: ``job_queue`` and ``job_definition`` (a name, ``name:revision`` or ARN; of one container);
    ``command``, the worker's (a list, or a text that is split like a shell's), where it is not the job definition's;
    ``container_overrides`` and ``submit_job_options``, dicts as in a SubmitJob request, which the payload is merged
    into; ``job_name_prefix`` (``"wove-"``); and ``client``, a ``boto3.client("batch")`` of the user's own, or
    ``client_options`` for one: ``region_name``, ``endpoint_url`` and so on.

    Example:
        >>> config = {"job_queue": "reports", "job_definition": "wove-worker"}
        >>> wove.config(environments={"batch": {"executor": "aws_batch", "executor_config": config}})
    """

    name: ClassVar[str] = "aws_batch"
    resources: ClassVar[frozenset[str]] = frozenset(("cpus", "memory", "gpus", "time"))
    required_modules: ClassVar[tuple[str, ...]] = ("boto3",)
    install_hint: ClassVar[str] = install_command("aws-batch")
    keys: ClassVar[tuple[str, ...] | None] = (
        "client",
        "client_options",
        "job_queue",
        "job_definition",
        "container_overrides",
        "command",
        "submit_job_options",
        "job_name_prefix",
    )
    cancel_reach: ClassVar[CancelReach] = "process"
    inline_bytes: ClassVar[int] = 6 * 1024
    beat_seconds: ClassVar[float] = heartbeats.BATCH_SECONDS
    redelivers: ClassVar[bool] = False
    patient: ClassVar[bool] = True
    reports_cancel_reason: ClassVar[bool] = True
    threads: ClassVar[int] = 8
    watch_seconds: ClassVar[tuple[float, float]] = (
        2.0,
        10.0,
    )  # with 200 jobs, each look is two calls

    _api: Api | None = None
    _command: Sequence[str] | None

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("client")
        self._client_options = mapping(self.config, "client_options", label=self.label)
        if self._given is not None:
            self._check_client(self._given)
        queue, definition = (
            text(config, "job_queue", label=label),
            text(config, "job_definition", label=label),
        )
        if queue is None or definition is None:
            missing = "job_queue" if queue is None else "job_definition"
            raise ValueError(f"{label}: executor_config needs {missing!r}: its name, or its ARN")

        self._queue, self._definition = queue, definition
        self._prefix = text(config, "job_name_prefix", "wove-", label=label)

        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_-]{{,{MAX_PREFIX - 1}}}", self._prefix):
            raise ValueError(
                f"{label}: executor_config 'job_name_prefix' must be at most {MAX_PREFIX} letters, digits, '-' and "
                f"'_', the first a letter or digit, as names of jobs are; not {shown(self._prefix)}"
            )

        self._overrides = dict(mapping(self.config, "container_overrides", label=self.label))
        self._command = self._read_command()
        self._options = options(
            config, "submit_job_options", label=label, reserved=RESERVED, known=OPTIONS
        )
        self._check_overrides()
        self._mine = BoundedDict[str, None](MAX_KEYED)
        self._may_list = True

    def _check_client(self, client: Any) -> None:
        if self._client_options:
            raise ValueError(
                f"{self.label}: executor_config 'client' has its options: leave out 'client_options'"
            )

        submit = getattr(client, "submit_job", None)
        if isinstance(client, type) or submit is None or inspect.iscoroutinefunction(submit):
            raise TypeError(
                f"{self.label}: executor_config 'client' must be a boto3.client('batch') (not one of asyncio), not "
                f"{shown(client)}"
            )

    def _read_command(self) -> Sequence[str] | None:
        given = command(self.config, "command", label=self.label)
        if given is not None and "command" in self._overrides:
            raise ValueError(
                f"{self.label}: executor_config has 'command', and another one in 'container_overrides': leave one out"
            )
        return given

    def _check_overrides(self) -> None:
        label = f"{self.label}: executor_config 'container_overrides'"
        variables(self._overrides, "environment", label=label, reserved=RESERVED_VARIABLES)
        taken = len(_compact({**self._overrides, "command": list(self._command or COMMAND)}))
        room = MAX_OVERRIDES - BATCH_BYTES - taken
        if room < ENVELOPE_BYTES:
            raise ValueError(
                f"{label} and 'command' have {taken:,} characters. All overrides of a job may have {MAX_OVERRIDES:,}, "
                f"of which a payload takes up to {ENVELOPE_BYTES:,} and Batch itself {BATCH_BYTES:,}: put them into "
                "the job definition"
            )

        # Each of the few hundred quotes in a payload becomes two characters.
        self.inline_bytes = max(ENVELOPE_BYTES, min(type(self).inline_bytes, room - 512))  # type: ignore[misc]

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        self._withdrawing = ThreadPool(1, "wove-batch-withdraw")
        self._withdrawals = Withdrawals(self._terminate_named, self._withdrawing, label=self.label)
        await run_in_thread(self._connect)

    def _connect(self) -> None:
        with forks.importing:
            exceptions: Any = importlib.import_module("botocore.exceptions")
            client = self._given
            if client is None:
                try:
                    client = client_of(self._client_options)
                except (exceptions.BotoCoreError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{self.label}: no client of AWS Batch could be made: {error}. Give 'region_name' and the like "
                        "in executor_config 'client_options', or in AWS_DEFAULT_REGION and ~/.aws"
                    ) from error

        api = self._api = Api(client, label=self.label)
        self._probe = JobProbe(api, label=self.label)

        for check in (self._check_queue, self._check_definition):
            try:
                check(api)
            except DeniedError as error:  # the right to submit is enough
                logger.debug("%s: this is not checked beforehand: %s", self.label, error)

    def _check_queue(self, api: Api) -> None:
        queue = api.queue(self._queue)
        if queue is None:
            raise ValueError(
                f"{self.label}: AWS Batch has no job queue {self._queue!r} in this account and region"
            )

        if queue.get("state") == "DISABLED" or queue.get("status") == "INVALID":
            raise ValueError(
                f"{self.label}: the job queue {self._queue!r} of AWS Batch takes no jobs: it is "
                f"{queue.get('state')}, {queue.get('status')}: {queue.get('statusReason') or 'no reason is given'}"
            )

    def _check_definition(self, api: Api) -> None:
        definition = api.definition(self._definition)
        if definition is None:
            raise ValueError(
                f"{self.label}: AWS Batch has no active job definition {self._definition!r}"
            )

        container = definition.get("containerProperties")
        if container is None:
            raise ValueError(
                f"{self.label}: the job definition {self._definition!r} has no containerProperties: a run is a job of "
                "type 'container', with one container on ECS or Fargate"
            )

        if (
            not container.get("command")
            and "command" not in self._overrides
            and self._command is None
        ):
            self._command = COMMAND

    async def close(self) -> None:
        await self._withdrawals.close()
        await run_in_thread(self._disconnect)

    def _disconnect(self) -> None:
        self._withdrawing.close(CLOSE_SECONDS, for_good=True)
        if self._given is None and self._api is not None:
            self._api.client.close()

    # ------------------------------------------------------------------ submit

    @property
    def _connected(self) -> Api:
        assert self._api is not None  # `start` comes first
        return self._api

    def submit(self, payload: PayloadDict, frame: Frame) -> str:
        request = self.request(payload, frame)
        if idempotency_key(frame) is not None:
            self._make_room(request["jobName"], payload)
        job = self._submit(request, payload["run_id"])
        if idempotency_key(frame) is not None:
            self._mine[job] = None
        return job

    def _submit(self, request: Mapping[str, Any], run_id: str) -> str:
        """Submit a job once, and wait for an AWS Batch that cannot be reached.

        A request without an answer may have been carried out. Then the job is looked up by its name, and used; further
        jobs with that name are terminated.

        Raises:
            DeliveryError: Batch refused the job, or did not answer for ``submit_patience_seconds``.
        """
        name, began = request["jobName"], time.time()
        until = time.monotonic() + self.submit_patience_seconds
        doubtful = False

        while True:
            try:
                job = self._connected.submit(request)
            except UnansweredError as error:
                doubtful = doubtful or error.sent
                if doubtful and (found := self._jobs_named(name, began)):
                    self._withdrawals.add(name, f"{began} {found[0]}")
                    return found[0]
                if time.monotonic() >= until or not self.is_awaited(run_id):
                    if doubtful:
                        self._withdrawals.add(name, f"{began} ")
                    raise
                logger.info("%s; waiting for it", error)
            else:
                if doubtful:
                    self._withdrawals.add(name, f"{began} {job}")
                return job

            time.sleep(min(RETRY_SECONDS, max(0.0, until - time.monotonic())))

    def _jobs_named(self, name: str, since: float) -> list[str]:
        """Return the ids of live jobs with that name that were created after *since*, in seconds of the epoch."""
        try:
            found = self._connected.named(self._queue, name)
        except DeliveryError as error:
            logger.debug("%s", error)
            return []

        earliest = (since - CLOCK_SECONDS) * 1000
        return [
            str(each["jobId"])
            for each in found
            if each.get("status") in LIVE and each.get("createdAt", earliest) >= earliest
        ]

    def _terminate_named(self, name: str, context: str) -> bool:
        """Terminate jobs with that name, and return whether there are none; see `Withdrawals`."""
        since, keep = context.split(" ")
        others = [job for job in self._jobs_named(name, float(since)) if job != keep]
        for job in others:
            logger.info("%s: job %s was submitted too late, and is terminated", self.label, job)
            self._connected.terminate(job, "submitted too late for Wove")
        return not others

    def request(self, payload: PayloadDict, frame: Frame) -> dict[str, Any]:
        """Return the SubmitJob request of a run.

        Raises:
            ValueError: It would be larger than Batch accepts.
        """
        suffix = f"-{job_mark(frame, 16)}"
        name = job_name(
            frame["task_id"],
            prefix=self._prefix,
            most=MAX_NAME,
            pattern="A-Za-z0-9_-",
            suffix=suffix,
        )
        variable = {"name": PAYLOAD_VARIABLE, "value": json.dumps(payload, separators=(",", ":"))}
        resources = resources_of(frame)
        overrides: dict[str, Any] = {"environment": [variable]}
        if asked := requirements(resources):
            overrides["resourceRequirements"] = asked
        if self._command is not None:
            overrides["command"] = list(self._command)
        overrides = merged(overrides, self._overrides)
        request: dict[str, Any] = {
            "jobName": name,
            "jobQueue": self._queue,
            "jobDefinition": self._definition,
            "containerOverrides": overrides,
            "retryStrategy": {"attempts": 1},
        }
        if "time" in resources:
            limit = max(MIN_TIMEOUT, math.ceil(resources["time"]))
            request["timeout"] = {"attemptDurationSeconds": limit}
        elif math.isfinite(seconds := longest_seconds(payload)):
            limit = max(MIN_TIMEOUT, math.ceil(seconds) + MARGIN_SECONDS)
            request["timeout"] = {"attemptDurationSeconds": limit}

        request = {**request, **self._options}
        self._check_size(
            payload, "container overrides", _compact(overrides), MAX_OVERRIDES - BATCH_BYTES
        )
        # With spaces, as botocore writes it (botocore/serialize.py, RestJSONSerializer).
        self._check_size(
            payload, "SubmitJob request", json.dumps(request, default=str), MAX_REQUEST
        )
        return request

    def _check_size(self, payload: PayloadDict, part: str, content: str, most: int) -> None:
        if (size := len(content)) > most:
            raise ValueError(
                f"{self.label}: task {payload['task_name']!r} does not fit: the {part} of its job would have {size:,} "
                f"characters, although its function and arguments are fetched where they are large, and may have "
                f"{most:,}. Shorten its delivery options, or put overrides into the job definition"
            )

    def _make_room(self, name: str, payload: PayloadDict) -> None:
        """Terminate an earlier job of this adapter with that name, which is lost.

        Runs with one key are already shared within the process. Batch accepts any number of jobs with one name, so two
        processes that submit at the same moment do not notice each other.

        Raises:
            DeliveryError: Another process has a job with that name.
        """
        try:
            found = self._connected.named(self._queue, name)
        except DeniedError as error:
            if self._may_list:
                self._may_list = False
                logger.warning(
                    "%s: whether other processes use a key cannot be seen: %s", self.label, error
                )
            return

        for each in found:
            if each.get("status") not in LIVE:
                continue
            if each["jobId"] not in self._mine:
                raise DeliveryError(
                    f"{self.label}: task {payload['task_name']!r} with this idempotency key is already job "
                    f"{each['jobId']} of AWS Batch ({each.get('status')}), submitted by another process, which gets "
                    f"its result. Wait for it, terminate that job, or use another key"
                )
            self._connected.terminate(each["jobId"], "lost for Wove, and submitted again")

    # ------------------------------------------------------------------ cancel

    def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(
            submission, str
        ):  # not submitted yet; its worker learns of the cancel when it reports
            return False
        self._connected.terminate(submission, "cancelled by Wove")
        if frame.get("delivery_cancel_mode") != "require_ack":
            return False
        deadline = time.monotonic() + ACK_SECONDS
        while not self.has_started(run_id) and time.monotonic() < deadline:
            job = self._connected.describe([submission]).get(submission, {})
            if job.get("status") == "FAILED":
                return not job.get("startedAt")
            time.sleep(1.0)

        return False

    # ------------------------------------------------------------------ watch

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return self._probe.ended(submissions)

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        return self._probe.why_waiting(submissions)


def _compact(content: object) -> str:
    return json.dumps(
        content, separators=(",", ":"), default=str
    )  # botocore checks the other types
