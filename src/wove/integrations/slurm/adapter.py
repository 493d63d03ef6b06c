"""Slurm: a run is a batch job, which starts ``python -m wove.backend_worker`` with the payload on its standard input.

What is known of Slurm here is its commands: ``sbatch``, ``scancel``, ``squeue``, and ``sacct`` where there is one.
`options` reads what the user says of them, `client` runs them, and `states` reads what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

from wove.concurrency.mailbox import post_to
from wove.concurrency.rate_limiter import RateLimiter
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import DeliveryError
from wove.executors.base import CancelReach, Frame
from wove.graph.rules import shown
from wove.integrations import naming
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.slurm import client as commands
from wove.integrations.slurm.options import (
    environment_of_queries,
    read_export,
    read_options,
)
from wove.integrations.slurm.script import job_script
from wove.integrations.slurm.states import (
    COMES_AGAIN,
    ENDED,
    SACCT_FIELDS,
    SINFO_FORMAT,
    SQUEUE_FIELDS,
    Row,
    fate_of,
    read_sacct,
    read_sinfo,
    read_squeue,
    stranded,
)
from wove.protocol import heartbeats
from wove.settings.config_readers import command, text

__all__ = ["SlurmAdapter", "Submission"]

logger = logging.getLogger("wove")

SUBMIT_SECONDS: Final = 50.0
"""How long ``sbatch`` may take. It tries again by itself for a while when the controller is busy."""

RETRY_SECONDS: Final = 2.0
"""The time between two attempts to submit a job while the controller is away."""

WITHDRAW_SECONDS: Final = 3.0
SETTLED_LOOKS: Final = 3
"""The time between two looks for a job that the controller may still take, and how many must find none."""

QUERY_SECONDS: Final = 30.0
"""How long the other commands may take."""

QUERY_BURST: Final = 3
QUERY_INTERVAL_SECONDS: Final = 4.0
"""How many queries about jobs may be made at once, and the seconds between more of them: 18 in a minute at most, and
20 together with those about nodes."""

NODES_SECONDS: Final = 30.0
"""The time between two questions about nodes, while jobs wait for them."""

LAST_SECONDS: Final = 5.0
"""And ``scancel`` when this process ends."""

MAX_SCRIPT: Final = 4 * 1024 * 1024
"""Bytes of a script that Slurm takes by default (slurm.conf(5), SchedulerParameters, max_script_size)."""

MAX_NAME: Final = 128
"""Maximum number of characters of a job's name. Accounting keeps 255 characters (tinytext) of it."""

MAX_IDS: Final = 1000
"""Maximum number of jobs that are named in one command line."""

QUERIES_AT_ONCE: Final = 2
LINGER_SECONDS: Final = 0.2

REMEDIES: Final = (
    (
        "partition",
        "the partition is 'partition' of sbatch_options; `sinfo` lists those that there are",
    ),
    (
        "unrecognized option|invalid option|requires an argument",
        "options of jobs are those of sbatch_options",
    ),
    (
        "parameter too long|script is too (long|big)",
        "the site takes no script of {size} bytes (max_script_size)",
    ),
    (
        "time limit specification|invalid time",
        "'time' of sbatch_options is minutes, or hours:minutes:seconds, or days-hours",
    ),
    (
        "qos|account|policy|limit",
        "see 'account', 'qos' and 'time' of sbatch_options, and delivery_max_in_flight",
    ),
    (
        "specification|configuration is not|resource",
        "sbatch_options ask for it: 'mem', 'gres', 'constraint', ...",
    ),
    (
        "contact|connect|configuration source|timed out",
        "does Slurm's controller answer (`scontrol ping`)?",
    ),
)
"""The remedies for words of ``sbatch``."""

_AWAY: Final = re.compile(
    "contact|connect|configuration source|timed out|zero bytes|transport|unexpected message|try again",
    re.IGNORECASE,
)
"""The messages of ``sbatch`` when the controller is away, or has not answered, and may have taken the job."""

_ANSWER: Final = re.compile(r"(?:Submitted batch job )?(\d+)(?:(?:;| on cluster )([\w.-]+))?")


class Submission(NamedTuple):
    """A job that was submitted.

    Attributes:
        job: Its id.
        cluster: The cluster that took it, if ``sbatch`` named one; else empty.
        name: Its name; empty if it is not known.
    """

    job: str
    cluster: str
    name: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """By what its rows are known."""
        return self.cluster, self.job


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
        self._accounting = True
        self._again: set[tuple[str, str]] = set()
        self._worried: set[str] = set()
        self._unsaid: set[Submission] = set()
        self._query_rate = RateLimiter(QUERY_BURST, QUERY_INTERVAL_SECONDS)
        self._nodes_at = 0.0
        self._queries = ThreadPool(QUERIES_AT_ONCE, "wove-slurm")

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
        self._loop = asyncio.get_running_loop()
        self._doubtful: dict[str, str] = {}
        self._withdrawing: asyncio.Task[None] | None = None
        self._cancels: Batcher[tuple[Submission, bool], bool] = Batcher(self._carry_cancels)

        try:
            await self._queries.call(self._connect)
        except BaseException:
            await run_in_thread(self._queries.close, LINGER_SECONDS)
            raise

    def _connect(self) -> None:
        known = self._others["scancel"] or self._submit or self._sbatch
        found = {
            name: given or commands.sibling(known, name) for name, given in self._others.items()
        }
        self._scancel, self._squeue = found["scancel"], found["squeue"]
        self._sacct, self._sinfo = found["sacct"], found["sinfo"]
        if self._submit:
            commands.check_program(self._submit, "submit", label=self.label)
        elif not self._function:
            commands.check_program(self._sbatch, "sbatch", label=self.label)

        commands.check_program(self._scancel, "scancel", label=self.label)
        commands.check_program(self._squeue, "squeue", label=self.label)
        self._accounting = shutil.which(self._sacct[0]) is not None
        self._rows({""})

    async def close(self) -> None:
        await self._cancels.close()
        if self._withdrawing is not None:
            self._withdrawing.cancel()
        try:
            for name, keep in self._doubtful.items():
                await self._queries.call(self._cancel_named, name, keep)
            if self._unsaid:
                await self._queries.call(self._tell, list(self._unsaid), LAST_SECONDS)
        finally:
            await run_in_thread(self._queries.close, LINGER_SECONDS)

    # ------------------------------------------------------------------ out

    def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        if not self.wanted(payload["run_id"]):  # it waited for a Slurm that does not answer
            raise DeliveryError(
                f"{self.label}: run {payload['run_id']} was given up before it was submitted"
            )

        if self._function is not None:
            return self._submission(self._function(payload, frame), "")
        name = self._name(payload, frame)
        ours = ("--parsable", "--no-requeue", f"--export={self._export.option}")
        about = (f"--job-name={name}", f"--output={self._output}")

        if self._submit is not None:
            command, environment = self._submit, environment_of_queries()
            script = job_script(
                payload, self._command, options=("--no-requeue", *about, *self._options)
            )
        else:
            command, environment = (
                (*self._sbatch, *ours, *about, *self._options),
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
            commands.run,
            command,
            seconds=SUBMIT_SECONDS,
            environment=environment,
            content=content,
            label=self.label,
        )
        return self._submitted(call, command[0], name, payload["run_id"], len(content))

    def _submitted(
        self, call: Callable[[], commands.Done], program: str, name: str, run_id: str, size: int
    ) -> Submission:
        """Submit the job *name*, once, and wait for a controller that is away.

        Where the controller may have taken the job although ``sbatch`` says that it has not (a time-out), the job is
        looked for by its name, and adopted.

        Raises:
            DeliveryError: Slurm refused the job, or did not answer for ``submit_patience_seconds``. In the second case
                the job is withdrawn by its name as soon as Slurm answers.
        """
        until = time.monotonic() + self.submit_patience_seconds
        failures = 0

        while True:
            try:
                done = call()
            except commands.NoAnswerError as error:
                words = str(error)
            else:
                if not done.status:
                    lines = reversed(done.stdout.split("\n"))
                    found = next(
                        (one for one in lines if _ANSWER.fullmatch(one.strip())), done.words
                    )
                    submission = self._submission(found, name)
                    if failures:
                        self._withdraw(name, keep=submission.job)
                    return submission
                words = f"{self.label}: {program} did not take the job: {_with_remedy(done.words, size)}"
                if not _AWAY.search(done.words):
                    raise DeliveryError(words)
            if jobs := self._jobs_named(name):
                self._withdraw(name, keep=jobs[0])
                return Submission(jobs[0], "", name)
            failures += 1
            if time.monotonic() >= until or not self.wanted(run_id):
                self._withdraw(name)
                raise DeliveryError(words)
            logger.info("%s; waiting for it", words)
            time.sleep(min(RETRY_SECONDS, max(0.0, until - time.monotonic())))

    def _jobs_named(self, name: str) -> list[str] | None:
        """Return the ids of the user's jobs *name* that are not over; ``None``: Slurm does not answer."""
        options = ("--noheader", "--me", f"--name={name}", "--format=%A")
        try:
            done = self._ask((*self._squeue, *options), QUERY_SECONDS)
        except DeliveryError:
            return None
        return None if done.status else done.stdout.split()

    def _withdraw(self, name: str, *, keep: str = "") -> None:
        """Have the jobs *name* cancelled, except *keep*: the controller may take one only now."""
        self._doubtful[name] = keep
        post_to(self._loop, self._start_withdrawing)

    def _start_withdrawing(self) -> None:
        if self._withdrawing is None or self._withdrawing.done():
            self._withdrawing = self._loop.create_task(self._withdraw_all())

    async def _withdraw_all(self) -> None:
        """Cancel doubtful jobs until Slurm has said for `SETTLED_LOOKS` times that there are none."""
        looks: dict[str, int] = {}

        while self._doubtful:
            for name, keep in list(self._doubtful.items()):
                clear = await self._queries.call(self._cancel_named, name, keep)
                looks[name] = looks.get(name, 0) + 1 if clear else 0
                if looks[name] >= SETTLED_LOOKS:
                    del self._doubtful[name]
            await asyncio.sleep(WITHDRAW_SECONDS)

    def _cancel_named(self, name: str, keep: str) -> bool:
        """Cancel the jobs *name* except *keep*; whether Slurm answered that there are none."""
        jobs = self._jobs_named(name)
        others = [job for job in jobs or () if job != keep]
        if others:
            logger.info("%s: job %s was submitted too late, and is cancelled", self.label, others)
            with contextlib.suppress(DeliveryError):
                self._tell([Submission(job, "", name) for job in others], QUERY_SECONDS)

        return jobs is not None and not others

    def _name(self, payload: PayloadDict, frame: Frame) -> str:
        """Return a name for people that no other job has, so that a job can be looked for by it."""
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
        self._unsaid.add(submission)

        try:
            never = await self._cancels.put(
                (submission, frame.get("delivery_cancel_mode") == "require_ack")
            )
        except Exception:
            self._unsaid.discard(submission)
            raise

        self._unsaid.discard(submission)
        return never

    async def _carry_cancels(self, cancels: Sequence[tuple[Submission, bool]]) -> list[bool]:
        return await self._queries.call(self._cancel, cancels)

    def _cancel(self, cancels: Sequence[tuple[Submission, bool]]) -> list[bool]:
        """For each, whether it is certain that no worker began it; that is asked for those that want to know."""
        self._tell([submission for submission, _ in cancels], QUERY_SECONDS)
        clusters = {submission.cluster for submission, wanted in cancels if wanted}
        rows = self._rows(clusters) if clusters else {}
        return [wanted and _was_taken_back(rows.get(each.place)) for each, wanted in cancels]

    def _tell(self, submissions: Sequence[Submission], seconds: float) -> None:
        """Have jobs ended: Slurm sends SIGTERM, and after its KillWait SIGKILL."""
        for cluster, jobs in _by_cluster(submissions).items():
            for first in range(0, len(jobs), MAX_IDS):
                command = (*self._scancel, *_on(cluster), *jobs[first : first + MAX_IDS])
                done = self._ask(command, seconds)
                if done.status and "Invalid job id" not in done.words:  # that one is over
                    raise DeliveryError(f"{self.label}: {command[0]} did not cancel: {done.words}")

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        await asyncio.sleep(self._query_rate.reserve())
        return await self._queries.call(self._look, submissions)

    async def waiting(self, submissions: Mapping[str, Any]) -> str:
        return await self._queries.call(self._why_waiting, submissions)

    def _why_waiting(self, submissions: Mapping[str, Submission]) -> str:
        rows = self._rows({each.cluster for each in submissions.values()})
        found = [rows[each.place] for each in submissions.values() if each.place in rows]
        states = {f"{row.state} ({row.reason})" if row.reason else row.state for row in found}
        return f"Slurm says {', '.join(sorted(states))}" if states else ""

    def _look(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        rows = self._rows({each.cluster for each in submissions.values()})
        fates: dict[str, JobStatus] = {}
        missing: dict[str, Submission] = {}
        waiting: dict[str, Row] = {}
        again, before = set[tuple[str, str]](), self._again

        for run_id, submission in submissions.items():
            place = submission.place
            row = rows.get(place)
            if row is None:
                missing[run_id] = submission
                continue
            if row.requeues and row.state in COMES_AGAIN:
                again.add(place)
                if (
                    place not in before
                ):  # if it is to come again, it will be in the queue the next time
                    continue
            if (fate := fate_of(row, self._said(row, submission))) is not None:
                fates[run_id] = fate
                continue
            if row.worries and row.reason not in self._worried:
                self._worried.add(row.reason)
                logger.warning("%s: job %s of Slurm waits: %s", self.label, row.job, row.reason)
            if row.wants_nodes:
                waiting[run_id] = row

        self._again = again
        fates.update(self._fates_of_stranded(waiting, submissions))

        if vain := [
            submissions[run_id]
            for run_id in fates
            if rows[submissions[run_id].place].state not in ENDED
        ]:
            self._tell(vain, QUERY_SECONDS)  # or somebody releases it, and it runs for nobody

        if missing:
            fates.update(self._fates_of_missing(missing))
        return fates

    def _fates_of_stranded(
        self, waiting: Mapping[str, Row], submissions: Mapping[str, Submission]
    ) -> dict[str, JobStatus]:
        """Of jobs that wait for nodes: those in whose partitions there is none any more that takes jobs."""
        now = time.monotonic()
        if not waiting or now < self._nodes_at or shutil.which(self._sinfo[0]) is None:
            return {}
        self._nodes_at = now + NODES_SECONDS
        fates: dict[str, JobStatus] = {}

        for cluster in {submissions[run_id].cluster for run_id in waiting}:
            rows = {
                run_id: row
                for run_id, row in waiting.items()
                if submissions[run_id].cluster == cluster
            }
            named = ",".join(sorted({row.partition for row in rows.values()}))
            options = ("--noheader", "--Node", f"--partition={named}", f"--format={SINFO_FORMAT}")
            done = self._ask((*self._sinfo, *options, *_on(cluster)), QUERY_SECONDS)
            partitions = read_sinfo(done.stdout)
            found = {run_id: stranded(row, partitions) for run_id, row in rows.items()}
            fates.update({run_id: fate for run_id, fate in found.items() if fate is not None})

        return fates

    def _fates_of_missing(self, missing: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Of jobs that the controller has forgotten, which it does some minutes after their end (MinJobAge)."""
        rows = self._accounted(list(missing.values())) if self._accounting else {}
        fates: dict[str, JobStatus] = {}

        for run_id, submission in missing.items():
            row = rows.get(submission.place)
            fate = None if row is None else fate_of(row, self._said(row, submission))
            fates[run_id] = fate or JobStatus(
                "missing", f"Slurm does not know job {submission.job} any more"
            )

        return fates

    # ------------------------------------------------------------------ questions

    def _rows(self, clusters: Iterable[str]) -> dict[tuple[str, str], Row]:
        """The user's jobs, by cluster and id; those that have ended, too, as long as the controller knows them."""
        named = sorted(set(clusters) - {""})
        found: dict[tuple[str, str], Row] = {}

        for asked in ([""] if "" in clusters else []) + ([",".join(named)] if named else []):
            options = ("--noheader", "--me", "--states=all", f"--Format={SQUEUE_FIELDS}")
            done = self._ask((*self._squeue, *options, *_on(asked)), QUERY_SECONDS)
            if done.status:
                raise DeliveryError(
                    f"{self.label}: {self._squeue[0]} does not answer: {_with_remedy(done.words)}"
                )
            # The name of a cluster stands above its jobs, unless only one is asked.
            alone = asked if len(named) == 1 else ""
            found.update(
                {
                    (row.cluster or alone if asked else "", row.job): row
                    for row in read_squeue(done.stdout)
                }
            )

        return found

    def _accounted(self, submissions: Sequence[Submission]) -> dict[tuple[str, str], Row]:
        """Return the accounting's rows of jobs; an empty dict where there is no accounting."""
        found: dict[tuple[str, str], Row] = {}

        for cluster, jobs in _by_cluster(submissions).items():
            for first in range(0, len(jobs), MAX_IDS):
                listed = ",".join(jobs[first : first + MAX_IDS])
                options = (
                    "--noheader",
                    "--parsable2",
                    "--allocations",
                    f"--format={SACCT_FIELDS}",
                    f"--jobs={listed}",
                )
                done = self._ask((*self._sacct, *options, *_on(cluster)), QUERY_SECONDS)
                if done.status:
                    self._accounting = "disabled" not in done.words
                    logger.debug("%s: %s: %s", self.label, self._sacct[0], done.words)
                    return found
                found.update({(cluster, row.job): row for row in read_sacct(done.stdout)})

        return found

    def _ask(self, command: Sequence[str], seconds: float) -> commands.Done:
        return commands.run(
            command, seconds=seconds, environment=environment_of_queries(), label=self.label
        )

    def _said(self, row: Row, submission: Submission) -> str:
        """Return a sentence with the last line of a job's output, or that its folder is not there; ``""``: neither."""
        if self._output == "/dev/null" or row.state in (
            "COMPLETED",
            "PENDING",
            "RUNNING",
            "COMPLETING",
        ):
            return ""

        values = {"j": submission.job, "A": submission.job, "x": submission.name, "%": "%"}
        path = re.sub(r"%(.)", lambda found: values.get(found[1], found[0]), self._output)
        folder = os.path.dirname(path)
        if os.path.isabs(folder) and not os.path.isdir(folder):
            return f"the folder {folder} of executor_config 'output' is not there"
        line = commands.last_line(path)
        return f"it said: {line}" if line else ""


def _with_remedy(words: str, size: int = 0) -> str:
    remedy = next(
        (each for pattern, each in REMEDIES if re.search(pattern, words, re.IGNORECASE)), None
    )
    return words if remedy is None else f"{words.rstrip('.')}. {remedy.format(size=size)}"


def _was_taken_back(row: Row | None) -> bool:
    return row is not None and row.state == "CANCELLED" and not row.nodes


def _by_cluster(submissions: Iterable[Submission]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in submissions:
        found.setdefault(each.cluster, []).append(each.job)
    return found


def _on(cluster: str) -> tuple[str, ...]:
    return (f"--clusters={cluster}",) if cluster else ()
