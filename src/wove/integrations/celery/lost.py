"""Finds lost messages: those that no worker has started, and that are not in the queue either.

A worker that has started a run reports to the callback receiver, where its death is noticed. This module is for the
other runs. Workers are asked which of the tasks they know, and the broker whether the messages can be in the queue. A
message that no worker knows and that is not in the queue is lost: its worker died between taking and starting it, its
worker dropped it because it does not know the task, or the queue was purged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wove.integrations.base import JobStatus
from wove.integrations.celery.states import ResultStates, remedy

if TYPE_CHECKING:
    from wove.integrations.celery.adapter import Submission
    from wove.integrations.celery.client import Broker

__all__ = ["LostJobDetector"]

YOUNG_SECONDS: Final = 1.0
"""The age up to which a message may still be on its way."""

MIN_MISSED_PROBES: Final = 2
"""How often in a row a message must be unknown to count as lost: once, it may be between the broker and a worker."""

SILENT_SECONDS: Final = 15.0
"""How long a message must be unknown while a worker that answered before does not answer: it may be busy, not dead."""

REMEMBERED_SECONDS: Final = 120.0
"""How long after its last answer a worker is expected to answer again."""


@dataclass(slots=True)
class _Missed:
    """A message that was unknown at the last probe.

    Attributes:
        since: When it was unknown first, on the monotonic clock.
        probes: The number of probes since at which it was unknown.
    """

    since: float
    probes: int = 0


class LostJobDetector:
    """Finds lost jobs by comparing what workers and broker say from one probe to the next. For one thread at a time.

    Args:
        broker: The broker and its workers.
        task: The name of the Celery task.
        has_started: As `BackendAdapter`.
        results: The app's result backend, if its states can be read.
    """

    def __init__(
        self,
        broker: Broker,
        task: str,
        has_started: Callable[[str], bool],
        results: ResultStates | None = None,
    ) -> None:
        self._broker = broker
        self._task = task
        self._has_started = has_started
        self._results = results
        self._heard: dict[str, float] = {}
        self._missed: dict[str, _Missed] = {}
        self._latest = 0.0
        self._where: dict[str, str] = {}

    def ended(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Return the status of each job that is over; see `StatusProbe`.

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        statuses = {} if self._results is None else self._results.ended(submissions)
        rest = {run_id: each for run_id, each in submissions.items() if run_id not in statuses}
        return {**statuses, **self._lost(rest)}

    def _lost(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        """Which of *submissions* are lost, by run id.

        Args:
            submissions: Those that have not ended.
            begun: Whether a worker has reported a run.
            broker: Is asked, and asks the workers.
            task: The name of the Celery task.
        """
        broker, now = self._broker, time.monotonic()
        waiting: dict[str, Submission] = {}

        for run_id, submission in submissions.items():
            if self._has_started(run_id):
                self._latest = max(self._latest, submission.at)
            elif now - submission.at > YOUNG_SECONDS:
                waiting[run_id] = submission

        self._missed = {
            run_id: missed for run_id, missed in self._missed.items() if run_id in waiting
        }
        self._where = {run_id: host for run_id, host in self._where.items() if run_id in waiting}
        if not waiting or not broker.answers:
            return {}
        # The queue first: a message that is not in it now is with a worker when the workers are asked, or lost.
        depth = broker.depth()
        stuck = broker.unacknowledged()
        answers = broker.where([submission.task_id for submission in waiting.values()])
        fates = _failed(waiting, answers)
        suspects = self._suspects(waiting, answers, now)
        if not suspects:
            return fates
        all_answered = self._have_all_answered(depth.consumers)
        reason: str | None = None

        for run_id, missed in suspects.items():
            submission = waiting[run_id]
            # A queue keeps its order, and gives a returned message its old place. So if a message that was sent after
            # this one was missed has been taken, this one is no longer in the queue.
            gone = depth.ready == 0 or self._latest > missed.since
            if submission.task_id in stuck:
                fates[run_id] = self._abandoned(submission, self._where.get(run_id))
                if not submission.kept:
                    broker.drop(stuck[submission.task_id])
            elif gone and all_answered:
                if reason is None:
                    reason = _reason(broker, self._task)
                fates[run_id] = JobStatus("missing", self._named(run_id, reason))

        return fates

    def _suspects(
        self,
        waiting: Mapping[str, Submission],
        answers: Mapping[str, Mapping[str, object]],
        now: float,
    ) -> dict[str, _Missed]:
        """Return the jobs that have been unknown to all workers for long enough."""
        known: dict[str, str] = {}
        for host, tasks in answers.items():
            self._heard[host] = now
            known.update(dict.fromkeys(tasks, host))

        self._heard = {
            host: at for host, at in self._heard.items() if now - at < REMEMBERED_SECONDS
        }
        silent = len(answers) < len(self._heard) or not answers
        suspects: dict[str, _Missed] = {}

        for run_id, submission in waiting.items():
            if submission.task_id in known:
                self._where[run_id] = known[submission.task_id]
                self._latest = max(self._latest, submission.at)
                self._missed.pop(run_id, None)

        for run_id, submission in waiting.items():
            if submission.task_id in known:
                continue
            missed = self._missed.setdefault(run_id, _Missed(now))
            missed.probes += 1
            if missed.probes >= MIN_MISSED_PROBES and (
                not silent or now - missed.since >= SILENT_SECONDS
            ):
                suspects[run_id] = missed

        return suspects

    def _have_all_answered(self, consumers: int | None) -> bool:
        """Return whether all workers that may have the message have answered.

        RabbitMQ knows their number; a worker that does not answer (a busy solo pool, or remote control switched off)
        may have prefetched messages. With Redis, such a worker has only the message of the task that it runs.
        """
        if consumers is None or consumers == 0:
            return True
        queues = self._broker.ask("active_queues", {})
        return consumers <= sum(
            any(each["name"] == self._broker.queue for each in taken) for taken in queues.values()
        )

    def _abandoned(self, submission: Submission, host: str | None) -> JobStatus:
        kept = (
            ""
            if not submission.kept
            else f", and comes back after {self._broker.visibility_seconds():g} s"
        )
        return JobStatus(
            "missing",
            f"its message was taken by a worker ({host or 'unknown'}) that is gone, and not acknowledged: Redis keeps "
            f"it for that worker (visibility_timeout{kept})",
        )

    def _named(self, run_id: str, reason: str) -> str:
        host = self._where.get(run_id)
        return reason if host is None else f"{reason}; {host} was the last to have it"


def _failed(
    waiting: Mapping[str, Submission], answers: Mapping[str, Mapping[str, tuple[str, str]]]
) -> dict[str, JobStatus]:
    """Return the jobs that have failed on a worker and that no other worker has now."""
    said: dict[str, str] = {}
    alive: set[str] = set()
    for host, tasks in answers.items():
        said.update((task, f"{host} says: {error}") for task, (_, error) in tasks.items() if error)
        alive.update(task for task, (state, _) in tasks.items() if state != "failed")

    return {
        run_id: JobStatus("lost", said[submission.task_id])
        for run_id, submission in waiting.items()
        if submission.task_id in said and submission.task_id not in alive
    }


def _reason(broker: Broker, task: str) -> str:
    registered = broker.ask("registered", {})
    without = sorted(
        host
        for host, names in registered.items()
        if not any(name.split(" ")[0] == task for name in names)
    )
    if without and len(without) == len(registered):
        return f"no worker knows the task {task!r} (asked: {', '.join(without)}): {remedy(task)}"
    reason = (
        "no worker has its message, and it is not in the queue any more: the worker that took it died before it "
        "reported, or the queue was purged"
    )
    if without:
        reason += (
            f". Or {', '.join(without)} dropped it: there, the task {task!r} is not registered"
        )

    return reason
