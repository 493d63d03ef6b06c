"""Where the messages are that no worker has reported about: in the queue, with a worker, or nowhere.

A worker that has begun tells the callback receiver, and is missed there when it dies. This is about the others. Workers
are asked which of the tasks they know; the broker is asked whether they can be in the queue. A message that no worker
knows and that is not in the queue is lost: its worker died between taking and beginning it, dropped it because it does
not know the task, or somebody purged the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wove.integrations.base import JobStatus
from wove.integrations.celery.states import remedy

if TYPE_CHECKING:
    from wove.integrations.celery.adapter import Submission
    from wove.integrations.celery.client import Broker

__all__ = ["LostJobDetector"]

YOUNG_SECONDS: Final = 1.0
"""A message that was sent less long ago may be on its way."""

MISSED_LOOKS: Final = 2
"""So often must nobody have known a message: the first time, it may have been between the broker and a worker."""

SILENT_SECONDS: Final = 15.0
"""And for so long, where a worker that answered before does not now: it may be busy rather than dead."""

REMEMBERED_SECONDS: Final = 120.0
"""A worker that has not answered for so long is not expected to."""


@dataclass(slots=True)
class _Missed:
    """A message that nobody knew at the last look.

    Attributes:
        since: When that began, on the monotonic clock.
        looks: How often nobody knew it since.
    """

    since: float
    looks: int = 0


class LostJobDetector:
    """Finds lost jobs by what was seen of their messages, from one look to the next. For one thread at a time."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._missed: dict[str, _Missed] = {}
        self._latest = 0.0
        self._where: dict[str, str] = {}

    def look(
        self,
        submissions: Mapping[str, Submission],
        begun: Callable[[str], bool],
        broker: Broker,
        task: str,
    ) -> dict[str, JobStatus]:
        """Which of *submissions* are lost, by run id.

        Args:
            submissions: Those that have not ended.
            begun: Whether a worker has reported a run.
            broker: Is asked, and asks the workers.
            task: The name of the Celery task.
        """
        now = time.monotonic()
        waiting: dict[str, Submission] = {}

        for run_id, submission in submissions.items():
            if begun(run_id):
                self._latest = max(self._latest, submission.at)
            elif now - submission.at > YOUNG_SECONDS:
                waiting[run_id] = submission

        self._missed = {
            run_id: missed for run_id, missed in self._missed.items() if run_id in waiting
        }
        self._where = {run_id: host for run_id, host in self._where.items() if run_id in waiting}
        if not waiting or not broker.answers:
            return {}
        # The queue first: what is not in it now is with a worker when they are asked, or it is lost.
        depth = broker.depth()
        stuck = broker.unacknowledged()
        answers = broker.where([submission.task_id for submission in waiting.values()])
        fates = _failed(waiting, answers)
        suspects = self._suspects(waiting, answers, now)
        if not suspects:
            return fates
        told = self._everybody_told(broker, depth.consumers)
        reason: str | None = None

        for run_id, missed in suspects.items():
            submission = waiting[run_id]
            # Queues keep their order, and give a message that comes back its old place: one that was sent after this
            # one was missed, and has been taken, would not have been the next.
            gone = depth.ready == 0 or self._latest > missed.since
            if submission.task_id in stuck:
                fates[run_id] = self._abandoned(submission, self._where.get(run_id), broker)
                if not submission.kept:
                    broker.drop(stuck[submission.task_id])
            elif gone and told:
                if reason is None:
                    reason = _reason(broker, task)
                fates[run_id] = JobStatus("missing", self._named(run_id, reason))

        return fates

    def _suspects(
        self,
        waiting: Mapping[str, Submission],
        answers: Mapping[str, Mapping[str, object]],
        now: float,
    ) -> dict[str, _Missed]:
        """Return the jobs that nobody has known for long enough."""
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
            missed.looks += 1
            if missed.looks >= MISSED_LOOKS and (
                not silent or now - missed.since >= SILENT_SECONDS
            ):
                suspects[run_id] = missed

        return suspects

    def _everybody_told(self, broker: Broker, consumers: int | None) -> bool:
        """Whether all workers that may have the message have been heard.

        RabbitMQ knows how many there are; one that does not answer (a solo pool that is busy, or remote control
        switched off) may have taken messages in advance. With Redis, such a one has none but the one it works on.
        """
        if consumers is None or consumers == 0:
            return True
        queues = broker.ask("active_queues", {})
        return consumers <= sum(
            any(each["name"] == broker.queue for each in taken) for taken in queues.values()
        )

    def _abandoned(self, submission: Submission, host: str | None, broker: Broker) -> JobStatus:
        kept = (
            ""
            if not submission.kept
            else f", and comes back after {broker.visibility_seconds():g} s"
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
    """Return the jobs that have failed on a worker, as it says, and that no other worker has now."""
    said: dict[str, str] = {}
    alive: set[str] = set()
    for host, tasks in answers.items():
        said.update((task, f"{host} says: {words}") for task, (_, words) in tasks.items() if words)
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
