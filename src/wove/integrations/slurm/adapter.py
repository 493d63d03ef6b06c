"""Slurm: a run is a batch job, which starts ``python -m wove.backend_worker`` with the payload on its standard input.

The adapter uses Slurm's commands: ``sbatch``, ``scancel``, ``squeue``, ``sinfo``, and ``sacct`` if there is one.
`options` reads their configuration, `client` runs them, `states` reads their output, and `lost` finds lost jobs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from wove.concurrency.rate_limiter import RateLimiter
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import DeliveryError
from wove.executors.base import CancelReach, Frame
from wove.graph.resources import NAMES
from wove.graph.rules import shown
from wove.integrations import naming
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.resources import resources_of
from wove.integrations.common.timing import longest_seconds
from wove.integrations.common.withdrawals import Withdrawals
from wove.integrations.slurm import client as slurm_client
from wove.integrations.slurm.client import (
    CommandResult,
    NoAnswerError,
    SlurmClient,
    Submission,
)
from wove.integrations.slurm.lost import LostJobDetector
from wove.integrations.slurm.options import (
    environment_of_queries,
    read_export,
    read_options,
    resource_options,
)
from wove.integrations.slurm.remedies import is_away, with_remedy
from wove.integrations.slurm.script import job_script
from wove.integrations.slurm.states import Row
from wove.protocol import heartbeats
from wove.settings.config_readers import command, text

__all__ = ["SlurmAdapter", "Submission"]

logger = logging.getLogger("wove")

SUBMIT_SECONDS: Final = 50.0
"""How long ``sbatch`` may take. It retries by itself for a while when the controller is busy."""

RETRY_SECONDS: Final = 2.0
"""The time between two attempts to submit a job while the controller is away."""

QUERY_BURST: Final = 3
QUERY_INTERVAL_SECONDS: Final = 4.0
"""How many queries about jobs may be made at once, and the seconds between more of them: 18 in a minute at most, and
20 together with those about nodes."""

LAST_SECONDS: Final = 5.0
"""How long ``scancel`` may take when this process ends."""

MAX_SCRIPT: Final = 4 * 1024 * 1024
"""Maximum size of a script that Slurm accepts by default (slurm.conf(5), SchedulerParameters, max_script_size)."""

MAX_NAME: Final = 128
"""Maximum length of a job's name. The accounting stores 255 characters (tinytext)."""

MAX_PENDING_QUERIES: Final = 2
LINGER_SECONDS: Final = 0.2

_ANSWER: Final = re.compile(r"(?:Submitted batch job )?(\d+)(?:(?:;| on cluster )([\w.-]+))?")


class SlurmAdapter(BackendAdapter):
    """Submits each run as one batch job.

    ``executor_config``: ``command``, the worker's (this interpreter with ``-m wove.backend_worker``);
    ``sbatch_options``, a dict, a list or a text of options for each job; ``output``, a file on a shared file system for
    what jobs print (``/dev/null``); ``export``, what jobs get of this process's environment beside what they need to
    find programs and modules; ``job_name_prefix`` (``"wove-"``); and ``sbatch``, ``scancel``, ``squeue``, ``sacct``
    and ``sinfo``, where these commands have other names. Instead of ``sbatch``, ``submit``: a command that takes the
    script on its standard input and prints the job's id, or a function of payload and frame that returns it. Commands
    are lists, or texts that are split as a shell's.

    Example:
        >>> options = {"partition": "gpu", "gres": "gpu:1", "time": "1:00:00"}
        >>> wove.config(environments={"gpu": {"executor": "slurm", "executor_config": {"sbatch_options": options}}})
    """

    name: ClassVar[str] = "slurm"
    resources: ClassVar[frozenset[str]] = frozenset(NAMES)
    keys: ClassVar[tuple[str, ...] | None] = (
        "submit",
        "command",
        "sbatch",
        "scancel",
        "job_name_prefix",
        "sbatch_options",
        "output",
        "export",
        "squeue",
        "sacct",
        "sinfo",
    )
    cancel_reach: ClassVar[CancelReach] = "process"
    # In a pipe there is room for 64 KiB: what is larger, a shell may put into a temporary file of the node.
    inline_bytes: ClassVar[int] = 32 * 1024
    beat_seconds: ClassVar[float] = heartbeats.BATCH_SECONDS
    watch_seconds: ClassVar[tuple[float, float]] = (2.0, 30.0)
    redelivers: ClassVar[bool] = False
    patient: ClassVar[bool] = True
    reports_cancel_reason: ClassVar[bool] = True

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        submit = config.get("submit")
        self._function: Callable[..., Any] | None = submit if callable(submit) else None
        self._submit = (
            None if self._function else command(config, "submit", label=label, printable=True)
        )
        self._check_together()
        interpreter = (sys.executable, "-m", "wove.backend_worker") if sys.executable else None
        self._command = command(config, "command", interpreter, label=label, printable=True)
        if self._command is None:
            raise ValueError(
                f"{label}: this interpreter does not know its own path: set executor_config 'command'"
            )

        self._sbatch = command(config, "sbatch", ("sbatch",), label=label, printable=True)
        others = ("scancel", "squeue", "sacct", "sinfo")
        self._others = {name: command(config, name, label=label, printable=True) for name in others}
        self._prefix = text(config, "job_name_prefix", "wove-", label=label)

        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", self._prefix):
            raise ValueError(
                f"{label}: executor_config 'job_name_prefix' is made of letters, digits, '_', '.' and '-', and has at "
                f"most 60 of them: {self._prefix!r}"
            )

        self._output = text(config, "output", "/dev/null", label=label)
        if re.search(r"[\x00-\x1f]", self._output):
            raise ValueError(
                f"{label}: executor_config 'output' holds a control character: {self._output!r}"
            )

        self._options = read_options(config.get("sbatch_options"), label=label)
        self._export = read_export(config.get("export"), label=label)
        self._uncancelled: set[Submission] = set()
        self._query_rate = RateLimiter(QUERY_BURST, QUERY_INTERVAL_SECONDS)
        self._queries = ThreadPool(MAX_PENDING_QUERIES, "wove-slurm")

    def _check_together(self) -> None:
        others = ["sbatch", "export"] if self._submit else []
        if self._function:
            others = ["sbatch", "export", "command", "sbatch_options", "output", "job_name_prefix"]
        if both := [key for key in others if self.config.get(key) is not None]:
            raise ValueError(
                f"{self.label}: executor_config 'submit' takes the place of {' and '.join(map(repr, both))}: give one"
            )

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        self._withdrawals = Withdrawals(self._cancel_named, self._queries, label=self.label)
        self._cancels: Batcher[tuple[Submission, bool], bool] = Batcher(self._carry_cancels)

        try:
            await self._queries.call(self._connect)
        except BaseException:
            await run_in_thread(self._queries.close, LINGER_SECONDS)
            raise

    def _connect(self) -> None:
        known = self._others["scancel"] or self._submit or self._sbatch
        found = {
            name: given or slurm_client.sibling(known, name) for name, given in self._others.items()
        }
        if self._submit:
            slurm_client.check_program(self._submit, "submit", label=self.label)
        elif not self._function:
            slurm_client.check_program(self._sbatch, "sbatch", label=self.label)

        for name in ("scancel", "squeue"):
            slurm_client.check_program(found[name], name, label=self.label)
        self._client = SlurmClient(**found, label=self.label)
        self._probe = LostJobDetector(self._client, self._output, label=self.label)
        self._client.rows({""})

    async def close(self) -> None:
        await self._cancels.close()
        try:
            await self._withdrawals.close()
            if self._uncancelled:
                await self._queries.call(self._client.cancel, list(self._uncancelled), LAST_SECONDS)
        finally:
            await run_in_thread(self._queries.close, LINGER_SECONDS)

    # ------------------------------------------------------------------ out

    def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        if not self.is_awaited(payload["run_id"]):  # Slurm did not answer for too long
            raise DeliveryError(
                f"{self.label}: run {payload['run_id']} was given up before it was submitted"
            )

        if self._function is not None:
            return self._submission(self._function(payload, frame), "")
        name = self._name(payload, frame)
        ours = ("--parsable", "--no-requeue", f"--export={self._export.option}")
        naming_options = (f"--job-name={name}", f"--output={self._output}")
        asked = resource_options(resources_of(frame), longest_seconds(payload), self._options)

        if self._submit is not None:
            command, environment = self._submit, environment_of_queries()
            script = job_script(
                payload,
                self._command,
                options=("--no-requeue", *naming_options, *asked, *self._options),
            )
        else:
            command, environment = (
                (*self._sbatch, *ours, *naming_options, *asked, *self._options),
                self._export.environment(),
            )
            script = job_script(payload, self._command)

        content = script.encode("utf-8", "surrogateescape")
        if len(content) > MAX_SCRIPT:
            raise DeliveryError(
                f"{self.label}: the script for run {payload['run_id']} of task {payload['task_name']!r} has "
                f"{len(content)} bytes, and Slurm takes {MAX_SCRIPT}. Large arguments are not in it: is "
                "delivery_idempotency_key so long?"
            )

        call = partial(
            slurm_client.run,
            command,
            seconds=SUBMIT_SECONDS,
            environment=environment,
            content=content,
            label=self.label,
        )
        return self._submitted(call, command[0], name, payload["run_id"], len(content))

    def _submitted(
        self, call: Callable[[], CommandResult], program: str, name: str, run_id: str, size: int
    ) -> Submission:
        """Submit the job *name* exactly once, and wait for a controller that is away.

        After a time-out, the controller may have taken the job. Then it is looked up by its name, and used.

        Raises:
            DeliveryError: Slurm refused the job, or did not answer for ``submit_patience_seconds``. In the second case
                the job is cancelled by its name as soon as Slurm answers.
        """
        until = time.monotonic() + self.submit_patience_seconds
        failures = 0

        while True:
            try:
                done = call()
            except NoAnswerError as error:
                problem = str(error)
            else:
                if not done.status:
                    lines = reversed(done.stdout.split("\n"))
                    answer = next(
                        (one for one in lines if _ANSWER.fullmatch(one.strip())), done.error_text
                    )
                    submission = self._submission(answer, name)
                    if failures:
                        self._withdrawals.add(name, submission.job)
                    return submission
                text = with_remedy(done.error_text, size)
                problem = f"{self.label}: {program} did not take the job: {text}"
                if not is_away(done.error_text):
                    raise DeliveryError(problem)

            if jobs := self._client.jobs_named(name):
                self._withdrawals.add(name, jobs[0])
                return Submission(jobs[0], "", name)
            failures += 1
            if time.monotonic() >= until or not self.is_awaited(run_id):
                self._withdrawals.add(name)
                raise DeliveryError(problem)
            logger.info("%s; waiting for it", problem)
            time.sleep(min(RETRY_SECONDS, max(0.0, until - time.monotonic())))

    def _name(self, payload: PayloadDict, frame: Frame) -> str:
        """Return a readable name that no other job has, so that the job can be found by it."""
        if naming.idempotency_key(frame) is not None:
            suffix = f"-{payload['run_id']}"
            keyed = naming.job_id(frame, prefix=self._prefix, most=MAX_NAME - len(suffix))
            return f"{keyed}{suffix}"

        suffix = f"-{payload['run_id']}"
        pattern = "A-Za-z0-9_.-"
        return naming.job_name(
            payload["task_name"], prefix=self._prefix, most=MAX_NAME, pattern=pattern, suffix=suffix
        )

    def _submission(self, answer: object, name: str) -> Submission:
        found = _ANSWER.fullmatch(str(answer).strip())
        if found is None:
            key = "sbatch" if self._submit is None and self._function is None else "submit"
            raise DeliveryError(
                f"{self.label}: executor_config {key!r} did not say which job it submitted: it must print (or "
                f"return) the job's id, or id and cluster as in '17;cluster', and not {shown(answer)}"
            )

        return Submission(found[1], found[2] or "", name)

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(submission, Submission):  # not submitted yet
            return False
        self._uncancelled.add(submission)

        try:
            never_started = await self._cancels.put(
                (submission, frame.get("delivery_cancel_mode") == "require_ack")
            )
        except Exception:
            self._uncancelled.discard(submission)
            raise

        self._uncancelled.discard(submission)
        return never_started

    async def _carry_cancels(self, cancels: Sequence[tuple[Submission, bool]]) -> list[bool]:
        return await self._queries.call(self._cancel, cancels)

    def _cancel(self, cancels: Sequence[tuple[Submission, bool]]) -> list[bool]:
        """Cancel jobs. Return for each whether an acknowledgement was requested, and certainly no worker has started
        it."""
        self._client.cancel([submission for submission, _ in cancels])
        clusters = {submission.cluster for submission, acknowledged in cancels if acknowledged}
        rows = self._client.rows(clusters) if clusters else {}
        return [
            acknowledged and _never_started(rows.get(each.place)) for each, acknowledged in cancels
        ]

    def _cancel_named(self, name: str, keep: str) -> bool:
        """Cancel the jobs *name* except *keep*. Return whether Slurm has answered that there are no others."""
        jobs = self._client.jobs_named(name)
        others = [job for job in jobs or () if job != keep]
        if others:
            logger.info("%s: job %s was submitted too late, and is cancelled", self.label, others)
            self._client.cancel([Submission(job, "", name) for job in others])
        return jobs is not None and not others

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        await asyncio.sleep(self._query_rate.reserve())
        return await self._queries.call(self._probe.ended, submissions)

    async def waiting(self, submissions: Mapping[str, Any]) -> str:
        return await self._queries.call(self._probe.why_waiting, submissions)


def _never_started(row: Row | None) -> bool:
    return row is not None and row.state == "CANCELLED" and not row.nodes
