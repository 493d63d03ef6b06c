"""Decides which of a run's events are sent, when, and in which batch. For the sender's thread alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from wove.callback.link import REFUSED_SECONDS
from wove.protocol.codec import encode_events
from wove.protocol.completed_runs import bulk
from wove.protocol.frames import TERMINAL, condensed
from wove.protocol.pickling import Pickled

if TYPE_CHECKING:
    from wove.callback.link import Destination
    from wove.callback.reporter import RunReporter
    from wove.security import NetworkExecutorSecurity

__all__ = ["Event", "EventBatch", "RunEvents"]

HOLD_SECONDS: Final = 0.01
"""How long a ``task_started`` waits for the end of its run: most tasks are short, and then one POST says it all."""

LARGE_BYTES: Final = 256 * 1024
"""Pickles of this size go over a connection of their own, so that no heartbeat waits behind them."""

ASK_REFUSED_SECONDS: Final = 1.5
"""How long connections may be refused before a run that has not begun is dropped: nobody listens there any more."""

Event: TypeAlias = "Mapping[str, Any]"


class RunEvents:
    """The events of a report that are to be sent, and how far they have come.

    Attributes:
        end: The terminal event, once there is one.
        end_is_out: It is on its way.
        large: It goes over a connection of its own.
        attempts: How often its delivery has failed.
        not_before: When it may be tried again, in monotonic seconds.
        give_up_at: When it is not tried again, in monotonic seconds.
        refused_since: Since when each attempt has met a refused connection, in monotonic seconds; ``None``: the last
            attempt met something else.
        trouble: What the last attempt met with.
        alone: What it says goes into no request with others: such a one was refused.
        batch: The request with the end in it, where that is large: it is made once.
        shortened: The result was too large, and the end says that now.
        size: Bytes of the end's pickles.
        announced: The receiver knows from this connection that the run runs.
        beat_due: When to say so again while the end, which is large, is on its way, in monotonic seconds.
        quiet: Nobody wants to hear anything but the end.
    """

    __slots__ = (
        "_beat",
        "_others",
        "_started",
        "alone",
        "announced",
        "attempts",
        "beat_due",
        "end",
        "end_is_out",
        "give_up_at",
        "large",
        "not_before",
        "batch",
        "quiet",
        "refused_since",
        "report",
        "shortened",
        "size",
        "started_due",
        "trouble",
    )

    def __init__(self, report: RunReporter) -> None:
        self.report = report
        self._started: Event | None = None
        self._beat: Event | None = None
        self._others: list[Event] = []
        self.started_due = 0.0
        self.end: Event | None = None
        self.end_is_out = self.large = self.alone = self.shortened = self.announced = self.quiet = (
            False
        )
        self.batch: EventBatch | None = None
        self.attempts = self.size = 0
        self.not_before = self.give_up_at = 0.0
        self.beat_due = math.inf
        self.refused_since: float | None = None
        self.trouble = "no attempt was made"

    def add(self, event: Event, now: float) -> None:
        """Take *event* in."""
        kind = event["type"]
        if kind in TERMINAL:
            self.end = event
            self.size = bulk(event)
            self.large = self.size >= LARGE_BYTES
            self.give_up_at = now + self.report.retry_seconds
            if self.large:
                self.beat_due = now + self.report.beat_seconds
        elif self.quiet:
            pass
        elif kind == "task_started":
            self._started, self.started_due = event, now + HOLD_SECONDS
        elif kind == "heartbeat":
            self._beat = event
            if self.report.asking:
                self.give_up_at = now + self.report.retry_seconds
        else:
            self._others.append(event)

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for what the receiver says: to the end of the run, or before it may begin."""
        return self.report.asking if self.end is None else not self.end_is_out

    def patience_ends(self) -> float:
        """Return when to give up, in monotonic seconds."""
        if self.refused_since is None:
            return self.give_up_at
        allowed = ASK_REFUSED_SECONDS if self.end is None else REFUSED_SECONDS
        return min(self.give_up_at, self.refused_since + allowed)

    def beat(self) -> None:
        """Say once more that the run is here."""
        if not self.quiet and (self.end is None or self.large) and self._beat is None:
            self._beat = {
                "type": "heartbeat",
                "run_id": self.report.run_id,
                "task_id": self.report.task,
            }

    def suppress(self) -> None:
        """Say nothing more but the end."""
        self.quiet, self.announced = True, False
        self._started = self._beat = None
        self._others.clear()

    def replace(self, event: Event) -> None:
        """The end is refused: it is *event* now."""
        self.end, self.end_is_out, self.shortened = event, False, True
        self.large, self.batch = False, None

    def keep(self, batch: EventBatch) -> None:
        """The end is in *batch*, and needs to be nowhere else."""
        if self.end is not None:
            self.batch, self.end = batch, _outline(self.end)

    def forget(self) -> None:
        """It is over."""
        self.suppress()
        self.end = self.batch = None

    def goes_with(self, other: RunEvents) -> bool:
        """Whether what both have to say may go in one request."""
        mine, theirs = self.report, other.report
        same = mine.security is theirs.security and mine.destination == theirs.destination
        return same and not self.alone and not other.alone

    def take(self, now: float) -> list[Event]:
        """Return the events to send now, without a large end; `put_back` takes them if they do not get through."""
        if self.end is not None and not self.large:
            return self.take_end(now)
        found: list[Event] = []

        if self._started is not None and self.started_due <= now:
            found.append(self._started)
            self._started = None
        elif self._beat is not None:
            found.append(self._beat)

        self._beat = None
        found += self._others
        self._others = []
        return found

    def take_end(self, now: float) -> list[Event]:
        """As `take`, all up to the end."""
        if self.end is None or self.end_is_out or self.not_before > now:
            return []
        self.end_is_out = True
        events = [event for event in (self._started, *self._others, self.end) if event is not None]
        self._started = self._beat = None
        self._others = []
        return list(condensed(events))

    def put_back(self, events: list[Event]) -> None:
        """*events* did not get through."""
        others: list[Event] = []

        for event in events:
            kind = event["type"]
            if kind in TERMINAL:
                self.end, self.end_is_out = event, False
            elif self.quiet:
                continue
            elif kind == "task_started":
                self._started = event
            elif kind == "heartbeat":
                self._beat = self._beat or event
            else:
                others.append(event)

        self._others[:0] = others


class EventBatch:
    """Events on their way in one request.

    Attributes:
        items: The all_run_events they are from.
        chunks: The body.
        answer: What has come of the answer's body.
        ends: Whether there is the end of a run among them.
        sent_at: When it was sent, in monotonic seconds.
    """

    __slots__ = ("answer", "chunks", "ends", "items", "sent_at")

    def __init__(self, items: list[tuple[RunEvents, list[Event]]]) -> None:
        self.items = items
        self.chunks: list[bytes] = []
        self.answer: list[bytes] = []
        self.ends = any(event["type"] in TERMINAL for _, events in items for event in events)
        self.sent_at = 0.0

    @property
    def destination(self) -> Destination:
        """Where it goes."""
        return self.items[0][0].report.destination

    @property
    def security(self) -> NetworkExecutorSecurity:
        """Return the security that signs the batch."""
        return self.items[0][0].report.security

    def encode(self) -> None:
        """Make the body. What is large is only in there afterwards.

        Raises:
            FrameError: An event is not JSON.
        """
        self.chunks = encode_events([event for _, events in self.items for event in events])
        for run_events, events in self.items:
            if run_events.batch is self:
                events[:] = map(_outline, events)


def _outline(event: Event) -> Event:
    """*event* without its pickles."""
    return {name: value for name, value in event.items() if not isinstance(value, Pickled)}
