"""The delivery policy: what happens to a run between its hand-over and its end.

Timeouts, heartbeats, cancels, lost workers, orphans, shared keys: all of it is decided here and nowhere
else. A table lives on one loop, and all its methods are called there: on Wove's background loop for
executors that serve the whole process, on the weave's own for those that are started around a weave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from wove.delivery.commands import Commands, cancel_task, reported_loss, unknown_event
from wove.delivery.encoding import Codec
from wove.delivery.gates import gate
from wove.delivery.keys import shared
from wove.delivery.run import CANCELLED, GONE, Ending, Outcome, RemoteRun, State, Waiter, new_run_id
from wove.errors import (
    DeliveryOrphanedError,
    DeliveryTimeoutError,
    WorkerLostError,
)
from wove.protocol.frames import TERMINAL

if TYPE_CHECKING:
    from wove.concurrency.mailbox import LoopMailbox

__all__ = ["MAX_REQUEUES", "Outlet", "RunTable"]

logger = logging.getLogger("wove")

MAX_REQUEUES: Final = 5
"""How often ``delivery_orphan_policy="requeue"`` submits a run again. A task that kills whatever worker
it gets must end some time; one that is lost to five machines in a row is taken for such a task."""


class Outlet(Protocol):
    """What a table needs of its session."""

    @property
    def ready(self) -> bool:
        """Whether frames can be sent now."""
        ...

    def resubmit(self, run: RemoteRun) -> None:
        """Bring *run* back to `RunTable.admit` once frames can be sent, or end it."""
        ...

    def transmit(
        self, frame: dict[str, Any], sent: Callable[[BaseException | None], object]
    ) -> None:
        """Send *frame*; call *sent*, perhaps at once, with what went wrong."""
        ...

    def emptied(self) -> None:
        """There is no run left."""
        ...


class RunTable:
    """The runs of one session.

    Args:
        environment: The environment's name.
        home: The way to the loop on which this table lives.
        outlet: Sends frames.
        wire: Whether values cross the outlet pickled.
        inline: Whether small values may be pickled on the table's own loop.
        acknowledge_seconds: How long ``require_ack`` waits; ``None`` for ever.
    """

    def __init__(
        self,
        environment: str,
        home: LoopMailbox,
        outlet: Outlet,
        *,
        wire: bool,
        inline: bool,
        acknowledge_seconds: float | None,
    ) -> None:
        self.home = home
        self._environment = environment
        self._outlet = outlet
        self._wire = wire
        self._codec = Codec(home.post, inline=inline)
        self.acknowledge_seconds = acknowledge_seconds
        self._gate = gate(environment)
        self._sent: dict[str, RemoteRun] = {}
        self._all: set[RemoteRun] = set()
        self._commands = Commands(wire=wire)

    def __len__(self) -> int:
        """How many runs there are, the detached ones included."""
        return len(self._all)

    # ------------------------------------------------------------------ on the way out

    def add(self, run: RemoteRun) -> None:
        """Count *run* among the table's; it ends here."""
        self._all.add(run)

    def admit(self, run: RemoteRun) -> None:
        """Take *run* up: the session is ready. It waits for a slot, is pickled and handed over."""
        if run.state is not State.WAITING:
            return
        if run.slot:  # submitted again
            self._encode(run)
            return
        limit = run.request.settings.delivery.max_in_flight
        run.place = self._gate.enter(limit, partial(self._granted_somewhere, run))
        if run.place is None:
            run.slot = True
            self._encode(run)

    def _granted_somewhere(self, run: RemoteRun) -> None:
        if not self.home.post(self._granted, run):
            self._gate.leave()

    def _granted(self, run: RemoteRun) -> None:
        run.place = None
        if run.state is State.OVER:
            self._gate.leave()
        else:
            run.slot = True
            self._encode(run)

    def _encode(self, run: RemoteRun) -> None:
        call = run.request.call
        run.admitted_at = run.admitted_at or monotonic()
        if not self._wire:
            self._hand_over(run, {"callable": call.fn, "args": run.request.args})
        elif call.when_pickled(lambda: self.home.post(self._encode, run)):
            if call.failure is not None:
                self._end(run, Outcome(Ending.ERROR, call.failure))
            else:
                self._codec.arguments(run.request, partial(self._encoded, run))

    def _encoded(self, run: RemoteRun, args: Any) -> None:
        call = run.request.call
        if isinstance(args, BaseException):
            self._end(run, Outcome(Ending.ERROR, args))
        elif call.pickled is not None:
            run.bytes_out = call.pickled.size + args.size
            self._hand_over(
                run,
                {
                    "callable_pickle": call.pickled,
                    "callable_id": call.callable_id,
                    "args_pickle": args,
                },
            )

    def _hand_over(self, run: RemoteRun, call: dict[str, Any]) -> None:
        if run.state is not State.WAITING:
            return
        if not self._outlet.ready:  # lost since; the run keeps its slot and comes back
            self._outlet.resubmit(run)
            return
        run.run_id = new_run_id()
        frame = self._commands.run_task(run, call)
        run.sent_at = monotonic()
        run.transmitted_at = run.start_seen_at = 0.0
        run.state = State.SENT
        run.started = False
        self._sent[run.run_id] = run
        if run.request.settings.delivery.timeout is not None:
            self._watch(run)
        self._outlet.transmit(frame, partial(self._transmitted, run, run.run_id))

    def _transmitted(self, run: RemoteRun, run_id: str, error: BaseException | None) -> None:
        if error is None:
            run.transmitted_at = monotonic()
            return
        if self._sent.get(run_id) is not run:
            return
        if isinstance(error, WorkerLostError):
            self._lose(run, error)
        else:
            self._end(run, run.verdict or Outcome(Ending.ERROR, error))

    # ------------------------------------------------------------------ on the way back

    def receive(self, event: object) -> bool:
        """Take an event; whether it was one. What is wrong with it ends its run, if it names one."""
        if not isinstance(event, dict):
            logger.warning(
                "environment %r: recv() gave %s instead of an event",
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
                "environment %r: dropped a %r for %r, which is not waited for",
                self._environment,
                kind,
                run_id,
            )
            return isinstance(run_id, str)
        if kind == "task_started":
            run.host, run.pid = event.get("host"), event.get("pid")
            run.started = True
            run.start_seen_at = monotonic()
        elif isinstance(kind, str) and kind in TERMINAL:
            self._terminal(run, event)
            return True
        elif kind == "log":
            logger.info("%s: %s", run, event.get("message"))
        elif kind != "heartbeat":
            self._terminal(run, unknown_event(kind))
            return True
        if run.started and run.request.settings.delivery.heartbeat_seconds is not None:
            run.seen_at = monotonic()
            if run.timer is None or kind == "task_started":
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
        self._codec.outcomes(
            event, run.request.call.task, len(run.waiters), partial(self._decoded, run)
        )

    def _decoded(self, run: RemoteRun, outcomes: list[Outcome]) -> None:
        waiters, run.waiters = run.waiters, []
        # Some may have left meanwhile; nobody joins a run that is settling.
        for waiter, outcome in zip(waiters, outcomes, strict=False):
            waiter.settle(outcome)
        self._end(run, GONE)

    def lose(self, error: WorkerLostError) -> None:
        """The receiver or the whole executor is lost, and with it every run that was handed over."""
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
            self._outlet.resubmit(run)
        else:
            logger.debug("%s was lost: %s", run, error)
            self._end(run, Outcome(Ending.ERROR, error))

    # ------------------------------------------------------------------ limits of time

    def _watch(self, run: RemoteRun) -> None:
        """Have `_tick` called when the next of the run's limits may have passed."""
        self._unwatch(run)
        due = self._due(run)
        if due is not None:
            run.timer = self.home.loop.call_later(max(0.0, due - monotonic()), self._tick, run)

    def _due(self, run: RemoteRun) -> float | None:
        if run.verdict is not None:
            return run.acknowledge_by
        policy = run.request.settings.delivery
        limits: list[float] = []
        if policy.timeout is not None:
            limits.append(run.sent_at + policy.timeout)
        if policy.heartbeat_seconds is not None and run.started:
            limits.append(run.seen_at + policy.heartbeat_seconds)
        return min(limits, default=None)

    def _unwatch(self, run: RemoteRun) -> None:
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None

    def _tick(self, run: RemoteRun) -> None:
        run.timer = None
        now = monotonic()
        due = self._due(run)
        if due is None or run.state is not State.SENT:
            return
        if due > now:
            self._watch(run)
            return
        policy = run.request.settings.delivery
        if run.verdict is not None:
            self._unacknowledged(run, run.verdict)
        elif policy.timeout is not None and run.sent_at + policy.timeout <= now:
            if not run.waiters:  # detached: it goes on, but is not counted any more
                self._end(run, GONE)
                return
            text = (
                f"{run} had no end {policy.timeout:g} s after it was handed over (delivery_timeout)"
            )
            self._give_up(run, Outcome(Ending.ERROR, DeliveryTimeoutError(text)))
        else:
            self._silent(run)

    def _silent(self, run: RemoteRun) -> None:
        policy = run.request.settings.delivery
        text = (
            f"{run} gave no sign of life for {policy.heartbeat_seconds:g} s (delivery_heartbeat_seconds): "
            f"its worker counts as dead"
        )
        if policy.orphan_policy == "requeue" and run.waiters and run.losses < MAX_REQUEUES:
            self._send_cancel(run)
            self._lose(run, WorkerLostError(text))
        else:
            self._give_up(run, Outcome(Ending.ERROR, DeliveryTimeoutError(text)))

    # ------------------------------------------------------------------ giving up

    def attach(self, run: RemoteRun, waiter: Waiter) -> None:
        """Let *waiter* have the outcome of *run* as well, or tell it that it comes too late."""
        if run.state in (State.WAITING, State.SENT) and run.verdict is None:
            run.waiters.append(waiter)
        else:
            waiter.settle(GONE)

    def abandon(self, run: RemoteRun, waiter: Waiter, policy: str) -> None:
        """*waiter* stops waiting. Its answer is how it ends for it.

        Args:
            run: What it waits for.
            waiter: Who.
            policy: The orphan policy that holds.
        """
        if waiter not in run.waiters:
            waiter.settle(CANCELLED)
            return
        if run.state is not State.SENT:
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
        """Cancel *run*; it ends with *verdict*, at once or when the cancel is acknowledged."""
        shared.drop(run)
        self._send_cancel(run)
        if run.state is not State.SENT:
            return  # the executor answered on the spot
        if run.request.settings.delivery.cancel_mode == "require_ack":
            run.verdict = verdict
            if self.acknowledge_seconds is not None:
                run.acknowledge_by = monotonic() + self.acknowledge_seconds
            self._watch(run)
        else:
            self._end(run, verdict)

    def _send_cancel(self, run: RemoteRun) -> None:
        text = str(run)

        def sent(error: BaseException | None) -> None:
            if error is not None:
                # Of an environment that has stopped meanwhile, with a hundred runs perhaps, that is no news.
                level = logging.WARNING if self._outlet.ready else logging.DEBUG
                logger.log(
                    level,
                    "%s: its cancel could not be sent: %s: %s",
                    text,
                    type(error).__name__,
                    error,
                )

        if self._outlet.ready:
            self._outlet.transmit(cancel_task(run), sent)

    def _unacknowledged(self, run: RemoteRun, verdict: Outcome) -> None:
        error = DeliveryTimeoutError(
            f"{run} was cancelled, and its worker did not acknowledge that within "
            f"{self.acknowledge_seconds:g} s (delivery_cancel_mode='require_ack'): it may still be running"
        )
        if verdict.ending is Ending.ERROR:
            error.__cause__ = verdict.value
        self._end(run, Outcome(Ending.ERROR, error))

    def fail(self, run: RemoteRun, outcome: Outcome) -> None:
        """End a run that cannot be handed over."""
        self._end(run, outcome if run.verdict is None else run.verdict)

    def close(self, outcome: Outcome) -> None:
        """End all runs with *outcome*."""
        for run in list(self._all):
            self._end(run, outcome if run.verdict is None else run.verdict)

    def _end(self, run: RemoteRun, outcome: Outcome) -> None:
        """Nothing more happens to *run*."""
        if run.state is State.OVER:
            return
        self._release(run, State.OVER)
        waiters, run.waiters = run.waiters, []
        for waiter in waiters:
            waiter.settle(outcome)
        self._all.discard(run)
        if not self._all:
            self._outlet.emptied()

    def _release(self, run: RemoteRun, state: State) -> None:
        """Let go of everything that a run holds while it is in flight."""
        run.state = state
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        self._sent.pop(run.run_id, None)
        if run.key is not None:
            shared.drop(run)
        if run.place is not None:
            # If it has been granted meanwhile, `_granted` gives it back.
            self._gate.withdraw(run.place)
            run.place = None
        if run.slot:
            run.slot = False
            self._gate.leave()
