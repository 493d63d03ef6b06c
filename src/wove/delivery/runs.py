"""The delivery policy: decides what happens to a run between its hand-over and its end.

Timeouts, heartbeats, cancels, lost workers, orphans and shared keys are decided here and nowhere else. A table
lives on one loop, and all its methods are called there: on the background loop for executors that serve the whole
process, on the loop of the weave for executors that are started around a weave.
"""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from wove.concurrency.deadline import Deadline
from wove.delivery.encoding import (
    EncodedCall,
    RunEncoder,
    cancel_task,
    reported_loss,
    unknown_event,
)
from wove.delivery.in_flight import limiter_of
from wove.delivery.keys import shared
from wove.delivery.remote_logs import lines_home
from wove.delivery.run import (
    CANCELLED,
    GONE,
    IN_FLIGHT,
    Ending,
    Outcome,
    RemoteRun,
    State,
    Waiter,
    new_run_id,
)
from wove.delivery.start_notices import StartNotices
from wove.errors import (
    DeliveryOrphanedError,
    DeliveryTimeoutError,
    WorkerLostError,
)
from wove.observe.reports import report_of_event
from wove.protocol import heartbeats
from wove.protocol.frames import TERMINAL

if TYPE_CHECKING:
    from wove.concurrency.mailbox import LoopMailbox
    from wove.delivery.sessions import ExecutorSession

__all__ = ["MAX_REQUEUES", "RunTable"]

logger = logging.getLogger("wove")

MAX_REQUEUES: Final = 5
"""Maximum number of times that ``delivery_orphan_policy="requeue"`` submits a run again. A task that kills each worker
that runs it must end some time; one that is lost with six workers in a row is taken for such a task."""

MAX_GRACE_SECONDS: Final = 1.0
"""Maximum time that a run which has been silent for ``delivery_heartbeat_seconds`` is given beyond that."""


def _report(run: RemoteRun, working: bool) -> None:
    if run.request.timeout is not None:
        for waiter in run.waiters:
            waiter.report(working)


def _report_progress(run: RemoteRun, event: dict[str, Any]) -> None:
    find = run.request.find_reporter
    reporter = None if find is None else find()
    report = report_of_event(event, run.request.item, run.host)
    if reporter is not None and report is not None:
        reporter.report(report)


class RunTable:
    """The runs of one session.

    Args:
        environment: The environment's name.
        home: Posts to the loop of this table.
        session: Sends the frames.
        wire: Whether values are pickled on their way to the executor.
        says_started: Whether a worker is sure to say when it begins a run. Otherwise the time limit of
            an attempt counts from its hand-over, until the worker says more.
        inline: Whether small values may be pickled on the table's own loop.
        external_workers: Whether others start the workers, so that there may be none.
        acknowledge_seconds: How long ``require_ack`` waits; ``None``: for ever.
    """

    def __init__(
        self,
        environment: str,
        home: LoopMailbox,
        session: ExecutorSession,
        *,
        wire: bool,
        says_started: bool,
        inline: bool,
        shares: bool,
        external_workers: bool,
        acknowledge_seconds: float | None,
    ) -> None:
        self.home = home
        self._environment = environment
        self._says_started = says_started
        self._session = session
        self._encoder = RunEncoder(home, wire=wire, inline=inline, shares=shares)
        self.acknowledge_seconds = acknowledge_seconds
        self._limiter = limiter_of(environment)
        self._sent: dict[str, RemoteRun] = {}
        self._all: set[RemoteRun] = set()
        self._notices: StartNotices | None = None
        if external_workers:
            self._notices = StartNotices(environment, self._sent.values, session.why_waiting)

    def __len__(self) -> int:
        """Return the number of runs, including the detached ones."""
        return len(self._all)

    # ------------------------------------------------------------------ on the way out

    def add(self, run: RemoteRun) -> None:
        """Add *run*, which is going to end in this table."""
        self._all.add(run)

    def admit(self, run: RemoteRun) -> None:
        """Have *run* wait for a slot, be encoded and be handed over. The session is ready for it."""
        if run.state is not State.WAITING:
            return
        if run.slot:  # submitted again
            self._encode(run)
            return

        limit = run.request.settings.delivery.max_in_flight
        run.place = self._limiter.acquire(partial(self._granted_somewhere, run), limit=limit)
        if run.place is None:
            run.slot = True
            self._encode(run)

    def _granted_somewhere(self, run: RemoteRun) -> None:
        if not self.home.post(self._granted, run):
            self._limiter.release()

    def _granted(self, run: RemoteRun) -> None:
        run.place = None
        if run.state is State.OVER:
            self._limiter.release()
        else:
            run.slot = True
            self._encode(run)

    def _encode(self, run: RemoteRun) -> None:
        run.admitted_at = run.admitted_at or monotonic()
        self._encoder.encode(run, partial(self._encoded, run))

    def _encoded(self, run: RemoteRun, call: EncodedCall | BaseException) -> None:
        if isinstance(call, BaseException):
            self._end(run, Outcome(Ending.ERROR, call))
        else:
            self._hand_over(run, call)

    def _hand_over(self, run: RemoteRun, call: dict[str, Any]) -> None:
        if run.state is not State.WAITING:
            return
        if not self._session.ready:  # lost meanwhile; the run keeps its slot and comes back
            self._session.resubmit(run)
            return

        run.run_id = new_run_id()
        frame = self._encoder.run_task(run, call)
        run.sent_at = monotonic()
        run.transmitted_at = run.start_seen_at = 0.0
        run.start_assumed = False
        run.state = State.SENT
        self._sent[run.run_id] = run
        delivery = run.request.settings.delivery
        if delivery.timeout is not None:
            self._watch(run)
        if self._notices is not None and delivery.notice_seconds is not None:
            self._notices.ensure_running()
        self._session.transmit(frame, partial(self._transmitted, run, run.run_id))

    def _transmitted(self, run: RemoteRun, run_id: str, error: BaseException | None) -> None:
        if error is None:
            run.transmitted_at = monotonic()
            if not self._says_started and run.state is State.SENT:
                _report(run, True)
            return

        if self._sent.get(run_id) is not run:
            return
        if isinstance(error, WorkerLostError):
            self._lose(run, error)
        else:
            self._end(run, run.verdict or Outcome(Ending.ERROR, error))

    # ------------------------------------------------------------------ on the way back

    def receive(self, event: object) -> bool:
        """Return whether *event* was an event, after it has been applied.

        An event that names a run and is otherwise wrong ends that run.
        """
        if not isinstance(event, dict):
            logger.warning(
                "environment %r: recv() returned %s instead of an event",
                self._environment,
                type(event).__name__,
            )
            return False

        event = cast("dict[str, Any]", event)
        run_id = event.get("run_id")
        run = self._sent.get(run_id) if isinstance(run_id, str) else None
        kind = event.get("type")

        if run is None:
            logger.debug(
                "environment %r: dropped a %r for %r, which is not awaited",
                self._environment,
                kind,
                run_id,
            )
            return isinstance(run_id, str)

        if kind == "task_started":
            run.host, run.pid = event.get("host"), event.get("pid")
            if (record := run.request.record) is not None:  # for those who look while it runs
                record.host, record.pid = run.host, run.pid
            run.start_seen_at = monotonic()
            if run.state is State.SENT:
                run.state = State.STARTED
                _report(run, True)
        elif isinstance(kind, str) and kind in TERMINAL:
            self._terminal(run, event)
            return True
        elif kind == "progress":
            _report_progress(run, event)
        elif kind == "log" and "lines" in event:
            lines_home.put(run, event)
        elif kind == "log":
            logger.info("%s: %s", run, event.get("message"))
        elif kind == "task_sent":  # to a worker that may not report when it begins the run
            if run.state is State.SENT:
                run.start_assumed = True
                _report(run, True)
        elif kind == "heartbeat":
            if run.state is State.SENT:  # its worker reports it, and has not begun it yet
                run.start_assumed = False
                _report(run, False)
        else:
            self._terminal(run, unknown_event(kind))
            return True

        if (
            run.state is State.STARTED
            and run.request.settings.delivery.heartbeat_seconds is not None
        ):
            run.seen_at = monotonic()
            if kind == "task_started":
                self._watch(run)

        return True

    def _terminal(self, run: RemoteRun, event: dict[str, Any]) -> None:
        if run.verdict is not None:
            self._end(run, run.verdict)
            return

        if (loss := reported_loss(event)) is not None:
            self._lose(run, loss)
            return

        if event["type"] == "task_cancelled":
            text = f"{run} was cancelled by its worker or backend, not by its weave"
            event = {"type": "task_error", "exception": DeliveryOrphanedError(text)}

        run.end_seen_at, run.timing = monotonic(), event.get("timing")
        if run.host is None:
            run.host, run.pid = event.get("host"), event.get("pid")
        pickled = event.get("result_pickle") or event.get("exception_pickle")
        if pickled is not None:
            run.bytes_in = pickled.size
        self._release(run, State.SETTLING)
        self._encoder.decode(
            event, run.request.call.task, len(run.waiters), partial(self._decoded, run)
        )

    def _decoded(self, run: RemoteRun, outcomes: list[Outcome]) -> None:
        waiters, run.waiters = run.waiters, []
        # Some waiters may have left meanwhile; no waiter joins a run that is settling.
        for waiter, outcome in zip(waiters, outcomes, strict=False):
            waiter.settle(outcome)
        self._end(run, GONE)

    def lose(self, error: WorkerLostError) -> None:
        """End or requeue every run that was handed over: the executor is lost."""
        for run in list(self._sent.values()):
            self._lose(run, error)

    def _lose(self, run: RemoteRun, error: WorkerLostError) -> None:
        requeue = run.request.settings.delivery.orphan_policy == "requeue"

        if run.verdict is not None:
            self._end(run, run.verdict)
        elif requeue and run.waiters and run.losses < MAX_REQUEUES:
            run.losses += 1
            logger.warning(
                "%s was lost and is submitted again (%d of %d): %s",
                run,
                run.losses,
                MAX_REQUEUES,
                error,
            )
            self._unwatch(run)
            del self._sent[run.run_id]
            run.admitted_at = 0.0
            run.state = State.WAITING
            _report(run, False)
            self._session.resubmit(run)
        else:
            logger.debug("%s was lost: %s", run, error)
            self._end(run, Outcome(Ending.ERROR, error))

    # ------------------------------------------------------------------ limits of time

    def _watch(self, run: RemoteRun) -> None:
        """Have `_expire` called at the earliest of the limits of *run*, one of which is new."""
        if run.timer is None:
            due, expire = partial(self._due, run), partial(self._expire, run)
            run.timer = Deadline(self.home.loop, due, expire)
        run.timer.update()

    def _unwatch(self, run: RemoteRun) -> None:
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None

    def _due(self, run: RemoteRun) -> float | None:
        if run.state is State.CANCELLING:
            return run.acknowledge_by
        limits = (self._end_due(run), self._sign_due(run))
        return min((limit for limit in limits if limit is not None), default=None)

    def _end_due(self, run: RemoteRun) -> float | None:
        """Return when ``delivery_timeout`` has passed."""
        seconds = run.request.settings.delivery.timeout
        return None if seconds is None else run.sent_at + seconds

    def _sign_due(self, run: RemoteRun) -> float | None:
        """Return when the next sign of life is overdue."""
        seconds = run.request.settings.delivery.heartbeat_seconds
        if seconds is None or run.state is not State.STARTED:
            return None
        return max(run.seen_at + seconds, run.reprieved_until)

    def _expire(self, run: RemoteRun) -> None:
        if run.state is State.CANCELLING:
            self._unacknowledged(run)
            return

        end_due, sign_due = self._end_due(run), self._sign_due(run)
        if sign_due is not None and (end_due is None or sign_due < end_due):
            if self._reprieve(run, sign_due):
                self._watch(run)
            else:
                self._silent(run)
        elif run.waiters:
            seconds = run.request.settings.delivery.timeout
            text = f"{run} did not finish within {seconds:g} s of being sent (delivery_timeout)"
            if run.state is State.SENT:
                text += ": no worker has reported that it began it"
            self._give_up(run, Outcome(Ending.ERROR, DeliveryTimeoutError(text)))
        else:  # detached: it continues, but is not counted any more
            self._end(run, GONE)

    def _reprieve(self, run: RemoteRun, due: float) -> bool:
        """Return whether a run that has been silent until *due* gets the time of one more heartbeat.

        It does the first time: this process may have been stopped, or held up by a call that keeps the interpreter
        lock, and the heartbeats of that time wait to be read. And it does while this loop is held up again.
        """
        seconds = run.request.settings.delivery.heartbeat_seconds
        assert seconds is not None
        grace = min(seconds / heartbeats.PER_TIMEOUT, MAX_GRACE_SECONDS)
        now = monotonic()
        if run.reprieved_until >= run.seen_at + seconds and now <= due + grace:
            return False
        run.reprieved_until = now + grace
        return True

    def _silent(self, run: RemoteRun) -> None:
        policy = run.request.settings.delivery
        text = (
            f"{run} gave no sign of life for {policy.heartbeat_seconds:g} s (delivery_heartbeat_seconds): "
            f"its worker is taken for dead"
        )

        if policy.orphan_policy == "requeue" and run.waiters and run.losses < MAX_REQUEUES:
            self._send_cancel(run)
            self._lose(run, WorkerLostError(text))
        else:
            self._give_up(run, Outcome(Ending.ERROR, DeliveryTimeoutError(text)))

    # ------------------------------------------------------------------ giving up

    def attach(self, run: RemoteRun, waiter: Waiter) -> None:
        """Let *waiter* have the outcome of *run* as well, or settle it with `GONE` if that is too late."""
        if run.state in (State.WAITING, State.SENT, State.STARTED):
            run.waiters.append(waiter)
            if run.state is State.STARTED:
                waiter.report(True)
        else:
            waiter.settle(GONE)

    def abandon(self, run: RemoteRun, waiter: Waiter, policy: str) -> None:
        """Let *waiter* stop waiting, and settle it with how the run ends for it.

        Args:
            run: The run that it waits for.
            waiter: The call that stops waiting.
            policy: The orphan policy that applies.
        """
        if waiter not in run.waiters:
            waiter.settle(CANCELLED)
            return

        if run.state not in IN_FLIGHT:
            run.waiters.remove(waiter)
            waiter.settle(CANCELLED)
            if run.state is State.WAITING and not run.waiters:
                self._end(run, CANCELLED)
            return

        ending = CANCELLED

        if policy in ("fail", "detach"):
            label = (
                "was left running"
                if policy == "detach" or len(run.waiters) > 1
                else "was cancelled"
            )
            ending = Outcome(
                Ending.ERROR, DeliveryOrphanedError(f"{run} {label}, because its weave stopped")
            )

        if run.verdict is not None:
            run.verdict = ending
        elif policy == "detach" or len(run.waiters) > 1:
            run.waiters.remove(waiter)
            waiter.settle(ending)
        else:
            self._give_up(run, ending)

    def _give_up(self, run: RemoteRun, verdict: Outcome) -> None:
        """Cancel *run*, which ends with *verdict* at once or when the cancel is acknowledged."""
        shared.drop(run)
        self._send_cancel(run)
        if run.state not in IN_FLIGHT:
            return  # the executor answered at once
        if run.request.settings.delivery.cancel_mode == "require_ack":
            run.state, run.verdict = State.CANCELLING, verdict
            if self.acknowledge_seconds is not None:
                run.acknowledge_by = monotonic() + self.acknowledge_seconds
            self._watch(run)
        else:
            self._end(run, verdict)

    def _send_cancel(self, run: RemoteRun) -> None:
        text = str(run)

        def sent(error: BaseException | None) -> None:
            if error is not None:
                # An environment that has stopped meanwhile may have a hundred runs, which need no warning each.
                level = logging.WARNING if self._session.ready else logging.DEBUG
                logger.log(
                    level,
                    "%s: its cancel could not be sent: %s: %s",
                    text,
                    type(error).__name__,
                    error,
                )

        if self._session.ready:
            self._session.transmit(cancel_task(run), sent)

    def _unacknowledged(self, run: RemoteRun) -> None:
        error = DeliveryTimeoutError(
            f"{run} was cancelled, and its worker did not acknowledge that within "
            f"{self.acknowledge_seconds:g} s (delivery_cancel_mode='require_ack'): it may still be running"
        )
        if run.verdict is not None and run.verdict.ending is Ending.ERROR:
            error.__cause__ = run.verdict.value
        self._end(run, Outcome(Ending.ERROR, error))

    def fail(self, run: RemoteRun, outcome: Outcome) -> None:
        """End a run that cannot be handed over."""
        self._end(run, outcome if run.verdict is None else run.verdict)

    def close(self, outcome: Outcome) -> None:
        """End all runs with *outcome*."""
        if self._notices is not None:
            self._notices.close()
        for run in list(self._all):
            self._end(run, outcome if run.verdict is None else run.verdict)

    def _end(self, run: RemoteRun, outcome: Outcome) -> None:
        """End *run* with *outcome*. Nothing more happens to it."""
        if run.state is State.OVER:
            return
        self._release(run, State.OVER)
        waiters, run.waiters = run.waiters, []
        for waiter in waiters:
            waiter.settle(outcome)
        self._all.discard(run)
        if not self._all:
            self._session.emptied()

    def _release(self, run: RemoteRun, state: State) -> None:
        """Release everything that *run* holds while it is in flight."""
        run.state = state
        self._unwatch(run)
        self._sent.pop(run.run_id, None)
        if run.key is not None:
            shared.drop(run)
        if run.place is not None:
            # If the place has been granted meanwhile, `_granted` gives it back.
            self._limiter.withdraw(run.place)
            run.place = None

        if run.slot:
            run.slot = False
            self._limiter.release()
