"""The runs of a sender: which events go into the next request, and what an answer means for them. No socket here."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Final

from wove.callback.client import CANCELLED, GONE, RETRY, listed, may_come_right, shown
from wove.callback.link import REFUSED_SECONDS
from wove.callback.reporter import Delivered
from wove.callback.run_events import Event, EventBatch, RunEvents
from wove.errors import DeliveryError, SerializationError
from wove.net.http1 import Head
from wove.protocol.completed_runs import bulk
from wove.protocol.frames import TERMINAL, FrameError

__all__ = ["DeliveryQueue"]

_log = logging.getLogger("wove.worker")

MAX_BYTES: Final = 1024 * 1024
MAX_RUNS: Final = 1000
"""Number of bytes after which no further run goes into a request; the last run's events may exceed it."""


DEAD_SECONDS: Final = 30.0
"""How long an address at which nobody listened is taken to be dead after one more refused connection: a queue may
hold thousands of payloads of one weave that is gone."""

MAX_DEAD: Final = 256

_dead: dict[tuple[bool, str, int], float] = {}
"""Origins at which nobody listened, with the time of that in monotonic seconds."""


class DeliveryQueue:
    """For one thread. Times are monotonic seconds.

    Attributes:
        alive: The runs whose end is not delivered.
        ready: Those with something that may be sent.
        large: Those whose end is to go over a connection of its own.
    """

    def __init__(self) -> None:
        self.alive: dict[RunEvents, None] = {}
        self.ready: dict[RunEvents, None] = {}
        self.large: list[RunEvents] = []
        self._later: list[tuple[float, int, RunEvents]] = []
        self._numbers = itertools.count()

    # --- what comes up --------------------------------------------------------------------------------------

    def add(self, run_events: RunEvents, event: Event, now: float) -> bool:
        """Take *event* in. Whether it is one that should not wait."""
        self.alive[run_events] = None
        run_events.add(event, now)
        if run_events.beat_due < math.inf:
            self._at(run_events, run_events.beat_due)
        if event["type"] == "task_started":
            self._at(run_events, run_events.started_due)
            return False

        self._ripen(run_events, now)
        return event["type"] in TERMINAL

    def ripen(self, now: float) -> None:
        """Let be ready what is due."""
        while self._later and self._later[0][0] <= now:
            self._ripen(heapq.heappop(self._later)[2], now)

    def next_due(self) -> float | None:
        """When to call `ripen`; ``None``: there is nothing to come."""
        while self._later and self._later[0][2] not in self.alive:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def _at(self, run_events: RunEvents, moment: float) -> None:
        heapq.heappush(self._later, (moment, next(self._numbers), run_events))

    def _ripen(self, run_events: RunEvents, now: float) -> None:
        """Something of *run_events* is due: an event, or giving up."""
        if run_events not in self.alive:
            return
        waits = run_events.waiting
        if waits and run_events.attempts and now >= run_events.patience_ends():
            self._give_up(run_events)
        elif not run_events.large:
            self.ready[run_events] = None
        else:
            if waits and now >= run_events.not_before:
                self.large.append(run_events)
            if (
                now >= run_events.beat_due
            ):  # the runner does not any more, and a large result may be long on its way
                run_events.beat_due = now + run_events.report.beat_seconds
                self._at(run_events, run_events.beat_due)
                run_events.beat()
                self.ready[run_events] = None

    # --- requests -------------------------------------------------------------------------------------------

    def pack(self, now: float) -> EventBatch | None:
        """The next request: what is ready, as far as it may go together; ``None`` if there is nothing."""
        items: list[tuple[RunEvents, list[Event]]] = []
        size = 0

        for run_events in list(self.ready):
            if items and not run_events.goes_with(items[0][0]):
                continue
            del self.ready[run_events]
            if events := run_events.take(now):
                items.append((run_events, events))
                size += sum(map(bulk, events))
                if run_events.alone or size >= MAX_BYTES or len(items) >= MAX_RUNS:
                    break

        if not items:
            return None
        batch = EventBatch(items)

        try:
            batch.encode()
        except FrameError as error:
            self.apart(batch, f"it cannot be encoded: {error}")
            return None

        return batch

    def pack_end(self, run_events: RunEvents, now: float) -> EventBatch | None:
        """A request with the end of one run, not encoded yet, if it is large; ``None`` if it is not its turn."""
        if not run_events.large:
            self.ready.pop(run_events, None)
        if run_events not in self.alive or not (events := run_events.take_end(now)):
            return None
        batch = run_events.batch or EventBatch([(run_events, events)])
        if run_events.large:
            run_events.keep(batch)
        return batch

    # --- what becomes of them -------------------------------------------------------------------------------

    def answered(
        self, batch: EventBatch, head: Head, body: bytes, now: float, *, kept: bool
    ) -> None:
        """An answer came, over the connection that is *kept* or another."""
        destination = batch.destination

        if 200 <= head.status < 300 or head.status == 410:
            gone, cancelled = listed(head, GONE), listed(head, CANCELLED)
            for run_events, events in batch.items:
                if head.status == 410 or run_events.report.run_id in gone:
                    self._gone(run_events, events, cancelled=run_events.report.run_id in cancelled)
                else:
                    self._taken(run_events, events, kept=kept)
        elif may_come_right(head.status):
            self.again(batch, shown(destination, head, body), now)
        elif len(batch.items) > 1:
            self.apart(batch, shown(destination, head, body))
        else:
            ((run_events, events),) = batch.items
            self._refused(run_events, events, head.status, shown(destination, head, body))

    def again(self, batch: EventBatch, trouble: str, now: float, *, refused: bool = False) -> None:
        """Send the same request a little later; *refused*: the connection was."""
        _log.info("%s; trying again", trouble)
        for run_events, events in batch.items:
            run_events.put_back(events)
            self._missed(run_events, trouble, now, refused=refused)
            run_events.not_before = now + RETRY.delay(run_events.attempts)
            self._at(run_events, run_events.not_before)

    def unsent(self, batch: EventBatch) -> None:
        """Nothing is known of the request: it is to be sent again as soon as there is a connection."""
        for run_events, events in batch.items:
            run_events.put_back(events)
            self.ready[run_events] = None

    def missed(
        self, all_run_events: Iterable[RunEvents], trouble: str, now: float, *, refused: bool
    ) -> None:
        """Note an attempt that came to nothing, through no fault of what was to be sent."""
        for run_events in list(all_run_events):
            self._missed(run_events, trouble, now, refused=refused)

    def apart(self, batch: EventBatch, trouble: str) -> None:
        """Something in the request is not right: each run's events are to be sent by themselves."""
        for run_events, events in batch.items:
            if len(batch.items) == 1:
                self.end(
                    run_events,
                    Delivered(error=DeliveryError(f"{_what(run_events)} is lost: {trouble}")),
                )
            else:
                run_events.alone = True
                run_events.put_back(events)
                self.ready[run_events] = None

    def unannounced(self, *, beat: bool) -> None:
        """The connection that is kept has ended; *beat*: the receiver is to hear at once that the runs have not."""
        for run_events in self.alive:
            if run_events.announced:
                run_events.announced = False
                if beat:
                    run_events.beat()
                    self.ready[run_events] = None

    def end(self, run_events: RunEvents, delivered: Delivered) -> None:
        """It is over."""
        if delivered.error is not None:
            _log.error("%s", delivered.error)
        self.alive.pop(run_events, None)
        self.ready.pop(run_events, None)
        run_events.forget()
        run_events.report.settle(delivered)

    def end_all(self, error: BaseException) -> None:
        """The sender failed."""
        for run_events in list(self.alive):
            text = f"{_what(run_events)} is lost: the sender of events failed: {error!r}"
            self.end(run_events, Delivered(error=DeliveryError(text)))
        self.large.clear()

    def _taken(self, run_events: RunEvents, events: Sequence[Event], *, kept: bool) -> None:
        run_events.alone = False
        if _has_end(events):
            self.end(run_events, Delivered())
        else:
            run_events.announced = run_events.announced or kept
            run_events.report.answered()

    def _gone(self, run_events: RunEvents, events: Sequence[Event], *, cancelled: bool) -> None:
        """Nobody waits for the run; *cancelled*: it was told to end, and not only left alone."""
        report = run_events.report

        if _has_end(events):
            _log.info("%s is dropped: nobody waits for it any more", _what(run_events))
            self.end(run_events, Delivered(gone=True))
        elif report.asking and not cancelled and not report.detached:
            _log.info("%s is not begun: nobody waits for it any more", _run(run_events))
            self.end(run_events, Delivered(gone=True))
        elif not run_events.quiet:
            run_events.suppress()
            if cancelled or not report.detached:
                _log.info(
                    "run %s of task %r is cancelled: nobody waits for it any more",
                    report.run_id,
                    report.task,
                )
                report.cancel()
            else:
                report.answered()

    def _refused(
        self, run_events: RunEvents, events: Sequence[Event], status: int, trouble: str
    ) -> None:
        report = run_events.report
        if report.asking and not report.detached and not _has_end(events):
            if status in (401, 403):
                text = f"{_run(run_events)} was not begun: {trouble}"
                self.end(run_events, Delivered(error=DeliveryError(text)))
            else:
                self._drop(run_events, f"its weave does not listen at that address: {trouble}")
        elif not _has_end(events):
            _log.warning("%s. Run %s goes on", trouble, run_events.report.run_id)
            run_events.suppress()
            run_events.report.answered()
        elif status == 413 and not run_events.shortened:
            _log.error("%s: %s", _what(run_events), trouble)
            run_events.replace(_too_large(run_events))
            self.ready[run_events] = None
        else:
            self.end(
                run_events,
                Delivered(error=DeliveryError(f"{_what(run_events)} is lost: {trouble}")),
            )

    def _missed(self, run_events: RunEvents, trouble: str, now: float, *, refused: bool) -> None:
        run_events.attempts += 1
        run_events.trouble = trouble
        if not refused:
            run_events.refused_since = None
        elif run_events.refused_since is None:
            run_events.refused_since = now

        if run_events.end is None and (run_events.report.detached or not run_events.report.asking):
            run_events.report.answered()
            return

        known_dead = refused and run_events.end is None and self._is_dead(run_events, now)
        if known_dead or now >= run_events.patience_ends():
            self._give_up(run_events)
        else:
            self._at(run_events, run_events.patience_ends())

    def _is_dead(self, run_events: RunEvents, now: float) -> bool:
        """Whether nobody has listened at the run's address a moment ago, when another run asked there."""
        found = _dead.get(run_events.report.destination.origin)
        return found is not None and now < found + DEAD_SECONDS

    def _drop(self, run_events: RunEvents, why: str) -> None:
        """End a run that has not begun: there is nobody to report it to."""
        text = f"{_run(run_events)} is not begun: {why}"
        _log.warning("%s", text)
        self.end(run_events, Delivered(gone=True, unheard=text))

    def _give_up(self, run_events: RunEvents) -> None:
        seconds = run_events.report.retry_seconds

        if run_events.end is None and run_events.refused_since is not None:
            _dead[run_events.report.destination.origin] = time.monotonic()
            while len(_dead) > MAX_DEAD:
                del _dead[next(iter(_dead))]
            self._drop(
                run_events,
                f"its weave is gone, or its callback_url is not an address that this worker "
                f"can call: {run_events.trouble}",
            )
            return

        if run_events.end is None:
            text = (
                f"{_run(run_events)} was not begun: whether anybody waits for it could not be asked within "
                f"{seconds:g} s: {run_events.trouble}"
            )
            self.end(run_events, Delivered(error=DeliveryError(text)))
            return

        if run_events.refused_since is not None:
            seconds = min(seconds, REFUSED_SECONDS)
        text = (
            f"{_what(run_events)} could not be reported within {seconds:g} s: {run_events.trouble}"
        )
        self.end(run_events, Delivered(error=DeliveryError(text)))


def _has_end(events: Sequence[Event]) -> bool:
    return any(event["type"] in TERMINAL for event in events)


def _run(run_events: RunEvents) -> str:
    return f"run {run_events.report.run_id} of task {run_events.report.task!r}"


def _what(run_events: RunEvents) -> str:
    return f"the end of {_run(run_events)}"


def _too_large(run_events: RunEvents) -> Event:
    error = SerializationError(
        f"what task {run_events.report.task!r} has to report is pickled {run_events.size} bytes, more than the "
        "receiver takes in one message (executor_config 'max_message_bytes'). Have the task store it, "
        "and return where it is"
    )
    return run_events.report.failure(error, source="config", retryable=False)
