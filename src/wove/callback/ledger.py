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
from wove.callback.outbox import Event, EventBatch, RunEvents
from wove.callback.reporter import Delivered
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

    def add(self, outbox: RunEvents, event: Event, now: float) -> bool:
        """Take *event* in. Whether it is one that should not wait."""
        self.alive[outbox] = None
        outbox.add(event, now)
        if outbox.beat_due < math.inf:
            self._at(outbox, outbox.beat_due)
        if event["type"] == "task_started":
            self._at(outbox, outbox.started_due)
            return False
        self._ripen(outbox, now)
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

    def _at(self, outbox: RunEvents, moment: float) -> None:
        heapq.heappush(self._later, (moment, next(self._numbers), outbox))

    def _ripen(self, outbox: RunEvents, now: float) -> None:
        """Something of *outbox* is due: an event, or giving up."""
        if outbox not in self.alive:
            return
        waits = outbox.waiting
        if waits and outbox.attempts and now >= outbox.patience_ends():
            self._give_up(outbox)
        elif not outbox.large:
            self.ready[outbox] = None
        else:
            if waits and now >= outbox.not_before:
                self.large.append(outbox)
            if (
                now >= outbox.beat_due
            ):  # the runner does not any more, and a large result may be long on its way
                outbox.beat_due = now + outbox.report.beat_seconds
                self._at(outbox, outbox.beat_due)
                outbox.beat()
                self.ready[outbox] = None

    # --- requests -------------------------------------------------------------------------------------------

    def pack(self, now: float) -> EventBatch | None:
        """The next request: what is ready, as far as it may go together; ``None`` if there is nothing."""
        items: list[tuple[RunEvents, list[Event]]] = []
        size = 0
        for outbox in list(self.ready):
            if items and not outbox.goes_with(items[0][0]):
                continue
            del self.ready[outbox]
            if events := outbox.take(now):
                items.append((outbox, events))
                size += sum(map(bulk, events))
                if outbox.alone or size >= MAX_BYTES or len(items) >= MAX_RUNS:
                    break
        if not items:
            return None
        parcel = EventBatch(items)
        try:
            parcel.encode()
        except FrameError as error:
            self.apart(parcel, f"it cannot be encoded: {error}")
            return None
        return parcel

    def pack_end(self, outbox: RunEvents, now: float) -> EventBatch | None:
        """A request with the end of one run, not encoded yet, if it is large; ``None`` if it is not its turn."""
        if not outbox.large:
            self.ready.pop(outbox, None)
        if outbox not in self.alive or not (events := outbox.take_end(now)):
            return None
        parcel = outbox.parcel or EventBatch([(outbox, events)])
        if outbox.large:
            outbox.keep(parcel)
        return parcel

    # --- what becomes of them -------------------------------------------------------------------------------

    def answered(
        self, parcel: EventBatch, head: Head, body: bytes, now: float, *, kept: bool
    ) -> None:
        """An answer came, over the connection that is *kept* or another."""
        destination = parcel.destination
        if 200 <= head.status < 300 or head.status == 410:
            gone, cancelled = listed(head, GONE), listed(head, CANCELLED)
            for outbox, events in parcel.items:
                if head.status == 410 or outbox.report.run_id in gone:
                    self._gone(outbox, events, cancelled=outbox.report.run_id in cancelled)
                else:
                    self._taken(outbox, events, kept=kept)
        elif may_come_right(head.status):
            self.again(parcel, shown(destination, head, body), now)
        elif len(parcel.items) > 1:
            self.apart(parcel, shown(destination, head, body))
        else:
            ((outbox, events),) = parcel.items
            self._refused(outbox, events, head.status, shown(destination, head, body))

    def again(self, parcel: EventBatch, trouble: str, now: float, *, refused: bool = False) -> None:
        """Send the same request a little later; *refused*: the connection was."""
        _log.info("%s; trying again", trouble)
        for outbox, events in parcel.items:
            outbox.put_back(events)
            self._missed(outbox, trouble, now, refused=refused)
            outbox.not_before = now + RETRY.delay(outbox.attempts)
            self._at(outbox, outbox.not_before)

    def unsent(self, parcel: EventBatch) -> None:
        """Nothing is known of the request: it is to be sent again as soon as there is a connection."""
        for outbox, events in parcel.items:
            outbox.put_back(events)
            self.ready[outbox] = None

    def missed(
        self, outboxes: Iterable[RunEvents], trouble: str, now: float, *, refused: bool
    ) -> None:
        """Note an attempt that came to nothing, through no fault of what was to be sent."""
        for outbox in list(outboxes):
            self._missed(outbox, trouble, now, refused=refused)

    def apart(self, parcel: EventBatch, trouble: str) -> None:
        """Something in the request is not right: each run's events are to be sent by themselves."""
        for outbox, events in parcel.items:
            if len(parcel.items) == 1:
                self.end(
                    outbox, Delivered(error=DeliveryError(f"{_what(outbox)} is lost: {trouble}"))
                )
            else:
                outbox.alone = True
                outbox.put_back(events)
                self.ready[outbox] = None

    def unannounced(self, *, beat: bool) -> None:
        """The connection that is kept has ended; *beat*: the receiver is to hear at once that the runs have not."""
        for outbox in self.alive:
            if outbox.announced:
                outbox.announced = False
                if beat:
                    outbox.beat()
                    self.ready[outbox] = None

    def end(self, outbox: RunEvents, delivered: Delivered) -> None:
        """It is over."""
        if delivered.error is not None:
            _log.error("%s", delivered.error)
        self.alive.pop(outbox, None)
        self.ready.pop(outbox, None)
        outbox.forget()
        outbox.report.settle(delivered)

    def end_all(self, error: BaseException) -> None:
        """The sender failed."""
        for outbox in list(self.alive):
            text = f"{_what(outbox)} is lost: the sender of events failed: {error!r}"
            self.end(outbox, Delivered(error=DeliveryError(text)))
        self.large.clear()

    def _taken(self, outbox: RunEvents, events: Sequence[Event], *, kept: bool) -> None:
        outbox.alone = False
        if _has_end(events):
            self.end(outbox, Delivered())
        else:
            outbox.announced = outbox.announced or kept
            outbox.report.answered()

    def _gone(self, outbox: RunEvents, events: Sequence[Event], *, cancelled: bool) -> None:
        """Nobody waits for the run; *cancelled*: it was told to end, and not only left alone."""
        report = outbox.report
        if _has_end(events):
            _log.info("%s is dropped: nobody waits for it any more", _what(outbox))
            self.end(outbox, Delivered(gone=True))
        elif report.asking and not cancelled and not report.detached:
            _log.info("%s is not begun: nobody waits for it any more", _run(outbox))
            self.end(outbox, Delivered(gone=True))
        elif not outbox.quiet:
            outbox.hush()
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
        self, outbox: RunEvents, events: Sequence[Event], status: int, trouble: str
    ) -> None:
        report = outbox.report
        if report.asking and not report.detached and not _has_end(events):
            if status in (401, 403):
                text = f"{_run(outbox)} was not begun: {trouble}"
                self.end(outbox, Delivered(error=DeliveryError(text)))
            else:
                self._drop(outbox, f"its weave does not listen at that address: {trouble}")
        elif not _has_end(events):
            _log.warning("%s. Run %s goes on", trouble, outbox.report.run_id)
            outbox.hush()
            outbox.report.answered()
        elif status == 413 and not outbox.shortened:
            _log.error("%s: %s", _what(outbox), trouble)
            outbox.replace(_too_large(outbox))
            self.ready[outbox] = None
        else:
            self.end(outbox, Delivered(error=DeliveryError(f"{_what(outbox)} is lost: {trouble}")))

    def _missed(self, outbox: RunEvents, trouble: str, now: float, *, refused: bool) -> None:
        outbox.attempts += 1
        outbox.trouble = trouble
        if not refused:
            outbox.refused_since = None
        elif outbox.refused_since is None:
            outbox.refused_since = now
        if outbox.end is None and (outbox.report.detached or not outbox.report.asking):
            outbox.report.answered()
            return
        known_dead = refused and outbox.end is None and self._is_dead(outbox, now)
        if known_dead or now >= outbox.patience_ends():
            self._give_up(outbox)
        else:
            self._at(outbox, outbox.patience_ends())

    def _is_dead(self, outbox: RunEvents, now: float) -> bool:
        """Whether nobody has listened at the run's address a moment ago, when another run asked there."""
        found = _dead.get(outbox.report.destination.origin)
        return found is not None and now < found + DEAD_SECONDS

    def _drop(self, outbox: RunEvents, why: str) -> None:
        """End a run that has not begun: there is nobody to report it to."""
        text = f"{_run(outbox)} is not begun: {why}"
        _log.warning("%s", text)
        self.end(outbox, Delivered(gone=True, unheard=text))

    def _give_up(self, outbox: RunEvents) -> None:
        seconds = outbox.report.retry_seconds
        if outbox.end is None and outbox.refused_since is not None:
            _dead[outbox.report.destination.origin] = time.monotonic()
            while len(_dead) > MAX_DEAD:
                del _dead[next(iter(_dead))]
            self._drop(
                outbox,
                f"its weave is gone, or its callback_url is not an address that this worker can call: {outbox.trouble}",
            )
            return
        if outbox.end is None:
            text = (
                f"{_run(outbox)} was not begun: whether anybody waits for it could not be asked within "
                f"{seconds:g} s: {outbox.trouble}"
            )
            self.end(outbox, Delivered(error=DeliveryError(text)))
            return
        if outbox.refused_since is not None:
            seconds = min(seconds, REFUSED_SECONDS)
        text = f"{_what(outbox)} could not be reported within {seconds:g} s: {outbox.trouble}"
        self.end(outbox, Delivered(error=DeliveryError(text)))


def _has_end(events: Sequence[Event]) -> bool:
    return any(event["type"] in TERMINAL for event in events)


def _run(outbox: RunEvents) -> str:
    return f"run {outbox.report.run_id} of task {outbox.report.task!r}"


def _what(outbox: RunEvents) -> str:
    return f"the end of {_run(outbox)}"


def _too_large(outbox: RunEvents) -> Event:
    error = SerializationError(
        f"what task {outbox.report.task!r} has to report is pickled {outbox.size} bytes, more than the receiver takes "
        "in one message (executor_config 'max_message_bytes'). Have the task store it, and return where it is"
    )
    return outbox.report.failure(error, source="config", retryable=False)
