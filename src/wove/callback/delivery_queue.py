"""The runs of a sender: which events go into the next request, and what a response means for them. No socket here."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import time
from collections.abc import Iterable
from typing import Final

from wove.callback.client import (
    RETRY,
    is_retryable,
    refusal_text,
    run_ids_in,
)
from wove.callback.event_batch import EventBatch
from wove.callback.link import REFUSED_SECONDS
from wove.callback.reporter import DeliveryOutcome
from wove.callback.run_events import Event, RunEvents, RunState, has_end
from wove.concurrency.bounded import BoundedDict
from wove.errors import DeliveryError, SerializationError
from wove.net.http1 import Head
from wove.protocol.completed_runs import bulk
from wove.protocol.frames import FrameError
from wove.protocol.names import CANCELLED_HEADER, UNAWAITED_HEADER

__all__ = ["DeliveryQueue"]

_log = logging.getLogger("wove.worker")

MAX_BYTES: Final = 1024 * 1024
"""Size of a request's pickles at which no further run joins it. The last run's events may exceed it."""

MAX_RUNS: Final = 1000
"""Maximum number of runs in a request."""

DEAD_SECONDS: Final = 30.0
"""How long an address at which nobody listened is taken to be dead after one more refused connection. A queue may
hold thousands of payloads of one weave that has gone."""

MAX_DEAD: Final = 256
"""Maximum number of such addresses that are remembered."""

_dead: BoundedDict[tuple[bool, str, int], float] = BoundedDict(MAX_DEAD)
"""Origins at which nobody listened, with the monotonic time of the last attempt."""


class DeliveryQueue:
    """The runs whose end is not delivered. For one thread; times are monotonic seconds.

    Attributes:
        alive: All of them.
        ready: Those with events that may be sent now.
        uploads: Those whose end is to go over a connection of its own now.
    """

    def __init__(self) -> None:
        self.alive: dict[RunEvents, None] = {}
        self.ready: dict[RunEvents, None] = {}
        self.uploads: list[RunEvents] = []
        self._announced: set[RunEvents] = set()  # the receiver knows them from the kept connection
        self._timers: list[tuple[float, int, RunEvents]] = []
        self._numbers = itertools.count()  # order of timers that are due at the same time

    # --- what the runs say ------------------------------------------------------------------------------------

    def register(self, run_events: RunEvents) -> None:
        """Expect events of a run."""
        if run_events.state is not RunState.SETTLED:
            self.alive[run_events] = None

    def ask(self, run_events: RunEvents, now: float) -> None:
        """Ask whether a run is awaited."""
        self.register(run_events)
        run_events.ask(now)
        self._on_due(run_events, now)

    def add(self, run_events: RunEvents, event: Event, now: float) -> None:
        """Add *event* of a run."""
        self.register(run_events)
        run_events.add(event, now)
        if run_events.heartbeat_due < math.inf:
            self._call_at(run_events.heartbeat_due, run_events)

        if event["type"] == "task_started":
            self._call_at(run_events.started_due, run_events)
        else:
            self._on_due(run_events, now)

    # --- timers -----------------------------------------------------------------------------------------------

    def run_timers(self, now: float) -> None:
        """Move the runs with something that is due to `ready` and `uploads`."""
        while self._timers and self._timers[0][0] <= now:
            self._on_due(heapq.heappop(self._timers)[2], now)

    def next_timer(self) -> float | None:
        """Return when to call `run_timers`; ``None``: nothing will be due."""
        while self._timers and self._timers[0][2] not in self.alive:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _call_at(self, moment: float, run_events: RunEvents) -> None:
        heapq.heappush(self._timers, (moment, next(self._numbers), run_events))

    def _on_due(self, run_events: RunEvents, now: float) -> None:
        """An event of the run is due, or the moment to give up."""
        if run_events not in self.alive:
            return
        attempts = run_events.attempts

        if run_events.pending and attempts.failed and now >= run_events.deadline():
            self._give_up(run_events)
        elif not run_events.large:
            self.ready[run_events] = None
        else:
            if run_events.pending and now >= attempts.not_before:
                self.uploads.append(run_events)
            if now >= run_events.heartbeat_due:
                run_events.heartbeat_due = now + run_events.report.heartbeat_seconds
                self._call_at(run_events.heartbeat_due, run_events)
                run_events.beat()
                self.ready[run_events] = None

    # --- requests ---------------------------------------------------------------------------------------------

    def next_batch(self, now: float) -> EventBatch | None:
        """Return the next request, encoded: the ready events that may share one; ``None`` if there are none."""
        items: list[tuple[RunEvents, list[Event]]] = []
        size = 0

        for run_events in list(self.ready):
            if items and not run_events.fits_with(items[0][0]):
                continue
            del self.ready[run_events]
            if events := run_events.take_due(now):
                items.append((run_events, events))
                size += sum(map(bulk, events))
                if run_events.isolated or size >= MAX_BYTES or len(items) >= MAX_RUNS:
                    break

        if not items:
            return None
        batch = EventBatch(items)

        try:
            batch.encode()
        except FrameError as error:
            self.split(batch, f"it cannot be encoded: {error}")
            return None

        return batch

    def end_batch(self, run_events: RunEvents, now: float) -> EventBatch | None:
        """Return a request with the end of one run, perhaps not encoded; ``None`` if it must not be sent now."""
        if not run_events.large:
            self.ready.pop(run_events, None)
        if run_events not in self.alive or not (events := run_events.take_all(now)):
            return None
        return run_events.end_batch(EventBatch([(run_events, events)]))

    # --- what becomes of requests -----------------------------------------------------------------------------

    def on_response(
        self, batch: EventBatch, head: Head, body: bytes, now: float, *, kept: bool
    ) -> None:
        """A response to *batch* came; *kept*: over the connection that is kept."""
        if 200 <= head.status < 300 or head.status == 410:
            self._on_accepted(batch, head, kept=kept)
            return

        trouble = refusal_text(batch.destination, head, body)
        if is_retryable(head.status):
            self.retry_later(batch, trouble, now)
        elif len(batch.items) > 1:
            self.split(batch, trouble)
        else:
            ((run_events, events),) = batch.items
            self._on_refused(run_events, events, head.status, trouble)

    def retry_later(
        self, batch: EventBatch, trouble: str, now: float, *, refused: bool = False
    ) -> None:
        """Send the events of *batch* again, after a pause; *refused*: the connection was refused."""
        _log.info("%s; trying again", trouble)
        for run_events, events in batch.items:
            run_events.put_back(events)
            self._add_failure(run_events, trouble, now, refused=refused)
            attempts = run_events.attempts
            attempts.not_before = now + RETRY.delay(attempts.failed)
            self._call_at(attempts.not_before, run_events)

    def put_back(self, batch: EventBatch) -> None:
        """Send the events of *batch*, which may or may not have arrived, as soon as there is a connection."""
        for run_events, events in batch.items:
            run_events.put_back(events)
            self.ready[run_events] = None

    def add_failures(
        self, runs: Iterable[RunEvents], trouble: str, now: float, *, refused: bool
    ) -> None:
        """Count an attempt that failed, and not because of the events; *refused*: the connection was refused."""
        for run_events in list(runs):
            self._add_failure(run_events, trouble, now, refused=refused)

    def split(self, batch: EventBatch, trouble: str) -> None:
        """Send the events of each run in a request of its own: something in *batch* is not right."""
        for run_events, events in batch.items:
            if len(batch.items) == 1:
                self._lose_end(run_events, f"is lost: {trouble}")
            else:
                run_events.isolated = True
                run_events.put_back(events)
                self.ready[run_events] = None

    def on_connection_lost(self, *, beat: bool) -> None:
        """The kept connection has ended; *beat*: tell the receiver at once that its runs go on."""
        announced, self._announced = self._announced, set()
        if beat:
            for run_events in self.alive:
                if run_events in announced:
                    run_events.beat()
                    self.ready[run_events] = None

    def settle_all(self, error: BaseException) -> None:
        """Give up everything: the sender failed with *error*."""
        for run_events in list(self.alive):
            self._lose_end(run_events, f"is lost: the sender of events failed: {error!r}")
        self.uploads.clear()

    def _on_accepted(self, batch: EventBatch, head: Head, *, kept: bool) -> None:
        unawaited = run_ids_in(head, UNAWAITED_HEADER)
        cancelled = run_ids_in(head, CANCELLED_HEADER)

        for run_events, events in batch.items:
            run_id = run_events.report.run_id
            run_events.isolated = False

            if head.status == 410 or run_id in unawaited:
                self._on_unawaited(run_events, events, cancelled=run_id in cancelled)
            elif has_end(events):
                self._settle(run_events, DeliveryOutcome())
            else:
                if kept:
                    self._announced.add(run_events)
                run_events.accept()

    def _on_unawaited(self, run_events: RunEvents, events: list[Event], *, cancelled: bool) -> None:
        """Nobody waits for the run; *cancelled*: it was told to end, even if it is detached."""
        report = run_events.report

        if has_end(events):
            _log.info("%s is dropped: nobody waits for it any more", _end_of(run_events))
            self._settle(run_events, DeliveryOutcome(awaited=False))
        elif run_events.state is RunState.ASKING and not cancelled and not report.detached:
            _log.info("%s is not begun: nobody waits for it any more", _run(run_events))
            self._settle(run_events, DeliveryOutcome(awaited=False))
        elif run_events.state is not RunState.SUPPRESSED:
            self._suppress(run_events)
            if cancelled or not report.detached:
                _log.info(
                    "run %s of task %r is cancelled: nobody waits for it any more",
                    report.run_id,
                    report.task,
                )
                report.cancel()
            else:
                report.begin()

    def _on_refused(
        self, run_events: RunEvents, events: list[Event], status: int, trouble: str
    ) -> None:
        """The receiver refused *events* for good, with an HTTP *status*."""
        if has_end(events):
            if status == 413 and not run_events.shortened:
                _log.error("%s: %s", _end_of(run_events), trouble)
                run_events.replace_end(_too_large(run_events))
                self.ready[run_events] = None
            else:
                self._lose_end(run_events, f"is lost: {trouble}")
        elif run_events.state is RunState.ASKING and not run_events.report.detached:
            if status in (401, 403):
                text = f"{_run(run_events)} was not begun: {trouble}"
                self._settle(run_events, DeliveryOutcome(error=DeliveryError(text)))
            else:
                self._drop(run_events, f"its weave does not listen at that address: {trouble}")
        else:
            _log.warning("%s. Run %s goes on", trouble, run_events.report.run_id)
            self._suppress(run_events)
            run_events.report.begin()

    def _add_failure(
        self, run_events: RunEvents, trouble: str, now: float, *, refused: bool
    ) -> None:
        run_events.attempts.add_failure(trouble, now, refused=refused)

        if run_events.end is None:
            if run_events.report.detached:
                run_events.accept()
            if run_events.state is not RunState.ASKING:
                return  # nobody waits for the delivery

        known_dead = refused and run_events.end is None and _is_dead(run_events, now)
        if known_dead or now >= run_events.deadline():
            self._give_up(run_events)
        else:
            self._call_at(run_events.deadline(), run_events)

    # --- the end of runs --------------------------------------------------------------------------------------

    def _give_up(self, run_events: RunEvents) -> None:
        attempts = run_events.attempts
        seconds = run_events.report.retry_seconds

        if run_events.end is not None:
            if attempts.refused_since is not None:
                seconds = min(seconds, REFUSED_SECONDS)
            self._lose_end(
                run_events, f"could not be reported within {seconds:g} s: {attempts.trouble}"
            )
        elif attempts.refused_since is not None:
            _dead[run_events.report.destination.origin] = time.monotonic()
            self._drop(
                run_events,
                f"its weave is gone, or its callback_url is not an address that this worker "
                f"can call: {attempts.trouble}",
            )
        else:
            text = (
                f"{_run(run_events)} was not begun: whether anybody waits for it could not be asked within "
                f"{seconds:g} s: {attempts.trouble}"
            )
            self._settle(run_events, DeliveryOutcome(error=DeliveryError(text)))

    def _drop(self, run_events: RunEvents, why: str) -> None:
        """End a run that has not begun: its receiver cannot be reached."""
        text = f"{_run(run_events)} is not begun: {why}"
        _log.warning("%s", text)
        self._settle(run_events, DeliveryOutcome(awaited=False, unreachable=text))

    def _lose_end(self, run_events: RunEvents, why: str) -> None:
        text = f"{_end_of(run_events)} {why}"
        self._settle(run_events, DeliveryOutcome(error=DeliveryError(text)))

    def _settle(self, run_events: RunEvents, outcome: DeliveryOutcome) -> None:
        if outcome.error is not None:
            _log.error("%s", outcome.error)
        self.alive.pop(run_events, None)
        self.ready.pop(run_events, None)
        self._announced.discard(run_events)
        run_events.settle()
        run_events.report.settle(outcome)

    def _suppress(self, run_events: RunEvents) -> None:
        self._announced.discard(run_events)
        run_events.suppress()


def _is_dead(run_events: RunEvents, now: float) -> bool:
    """Return whether nobody has listened at the run's address a moment ago, when another run asked there."""
    found = _dead.get(run_events.report.destination.origin)
    return found is not None and now < found + DEAD_SECONDS


def _run(run_events: RunEvents) -> str:
    return f"run {run_events.report.run_id} of task {run_events.report.task!r}"


def _end_of(run_events: RunEvents) -> str:
    return f"the end of {_run(run_events)}"


def _too_large(run_events: RunEvents) -> Event:
    error = SerializationError(
        f"what task {run_events.report.task!r} has to report is pickled {run_events.size} bytes, more than the "
        "receiver takes in one message (executor_config 'max_message_bytes'). Have the task store it, "
        "and return where it is"
    )
    return run_events.report.failure(error, source="config", retryable=False)
