"""The events of one run on their way to the receiver. For the sender's thread alone; times are monotonic seconds."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from wove.callback.link import REFUSED_SECONDS
from wove.protocol.completed_runs import bulk
from wove.protocol.frames import TERMINAL, condensed
from wove.protocol.pickling import Pickled
from wove.protocol.waiting import add_waiting

if TYPE_CHECKING:
    from wove.callback.event_batch import EventBatch
    from wove.callback.reporter import RunReporter

__all__ = ["DeliveryAttempts", "Event", "RunEvents", "RunState", "has_end", "without_pickles"]

HOLD_SECONDS: Final = 0.01
"""How long a ``task_started`` waits for the end of its run. Most tasks are short, and then one request carries both."""

LARGE_BYTES: Final = 256 * 1024
"""Minimum size of the pickles of an end that is posted over a connection of its own, so that no heartbeat waits
behind it."""

ASK_REFUSED_SECONDS: Final = 1.5
"""How long connections may be refused before a run that has not begun is dropped. A receiver listens as long as its
weave lives, so a refused connection says that the weave has gone."""

Event: TypeAlias = "Mapping[str, Any]"


class RunState(enum.Enum):
    """How far the events of a run have come.

    ============  ==============================================  ============
    from          when                                            to
    ============  ==============================================  ============
    `OPEN`        the worker asks whether the run is awaited      `ASKING`
    `OPEN`        nobody waits for the run any more               `SUPPRESSED`
    `ASKING`      the run may begin                               `OPEN`
    `ASKING`      it may begin, and nobody waits for it           `SUPPRESSED`
    `ASKING`      it must not begin                               `SETTLED`
    any of these  the terminal event is added                     `ENDED`
    `ENDED`       the terminal event is taken into a batch        `REPORTING`
    `REPORTING`   the batch did not get through                   `ENDED`
    `REPORTING`   the terminal event is replaced by a small one   `ENDED`
    any           it is delivered, or given up                    `SETTLED`
    ============  ==============================================  ============
    """

    OPEN = enum.auto()
    """Events are sent as they come."""

    ASKING = enum.auto()
    """The run has not begun: the receiver is being asked whether the run is awaited."""

    SUPPRESSED = enum.auto()
    """Only the terminal event will be sent: the receiver wants no other."""

    ENDED = enum.auto()
    """The terminal event waits to be sent, perhaps not for the first time."""

    REPORTING = enum.auto()
    """The terminal event is in a batch that has not been answered."""

    SETTLED = enum.auto()
    """Nothing is sent any more."""


class DeliveryAttempts:
    """The failed attempts to deliver events of one run, and when to stop.

    Attributes:
        failed: How many there were.
        not_before: When the next one may be made.
        give_up_at: When to stop, unless connections are refused: then it is earlier.
        refused_since: Since when every attempt has met a refused connection; ``None``: the last attempt has not.
        trouble: How the last one failed, for messages.
    """

    __slots__ = ("failed", "give_up_at", "not_before", "refused_since", "trouble")

    def __init__(self) -> None:
        self.failed = 0
        self.not_before = self.give_up_at = 0.0
        self.refused_since: float | None = None
        self.trouble = "no attempt was made"

    def add_failure(self, trouble: str, now: float, *, refused: bool) -> None:
        """Count a failed attempt; *refused*: the connection was refused."""
        self.failed += 1
        self.trouble = trouble
        if not refused:
            self.refused_since = None
        elif self.refused_since is None:
            self.refused_since = now

    def deadline(self, refused_seconds: float) -> float:
        """Return when to stop, where connections may be refused for at most *refused_seconds*."""
        if self.refused_since is None:
            return self.give_up_at
        return min(self.give_up_at, self.refused_since + refused_seconds)


class RunEvents:
    """The events of a run that are to be sent.

    Attributes:
        report: Its reporter.
        state: How far they have come.
        attempts: The failed attempts to deliver them.
        end: The terminal event, once there is one.
        size: Bytes of the terminal event's pickles.
        started_due: When to send the ``task_started``, if the run has not ended by then.
        heartbeat_due: When to send the next heartbeat, while a large terminal event is on its way: the runner sends
            none any more.
        isolated: Its events share no request with other runs, as such a request was refused.
        shortened: The terminal event was too large, and has been replaced.
    """

    __slots__ = (
        "_end_batch",
        "_heartbeat",
        "_others",
        "_started",
        "attempts",
        "end",
        "heartbeat_due",
        "isolated",
        "report",
        "shortened",
        "size",
        "started_due",
        "state",
    )

    def __init__(self, report: RunReporter) -> None:
        self.report = report
        self.state = RunState.OPEN
        self.attempts = DeliveryAttempts()
        self.end: Event | None = None
        self.size = 0
        self.started_due = 0.0
        self.heartbeat_due = math.inf
        self.isolated = self.shortened = False
        self._started: Event | None = None
        self._heartbeat: Event | None = None
        self._others: list[Event] = []
        self._end_batch: EventBatch | None = None  # the encoded request with a large end

    @property
    def large(self) -> bool:
        """Whether the terminal event goes over a connection of its own."""
        return self.size >= LARGE_BYTES

    @property
    def pending(self) -> bool:
        """Whether the run's worker waits for the delivery of something that is not on its way."""
        return self.state in (RunState.ASKING, RunState.ENDED)

    def deadline(self) -> float:
        """Return when to give up."""
        return self.attempts.deadline(ASK_REFUSED_SECONDS if self.end is None else REFUSED_SECONDS)

    # --- what the run and the receiver say --------------------------------------------------------------------

    def ask(self, now: float) -> None:
        """Ask the receiver whether the run is awaited, with a heartbeat."""
        if self.state is RunState.OPEN:
            self.state = RunState.ASKING
            self.attempts.give_up_at = now + self.report.retry_seconds
            self.beat()

    def add(self, event: Event, now: float) -> None:
        """Add *event*. The terminal event is the last one."""
        kind = event["type"]
        if kind in TERMINAL:
            self._add_end(event, now)
        elif self.state is RunState.SUPPRESSED:
            pass
        elif kind == "task_started":
            self._started, self.started_due = event, now + HOLD_SECONDS
        elif kind == "heartbeat":
            self._heartbeat = event
        else:
            add_waiting(self._others, event)

    def beat(self) -> None:
        """Add a heartbeat, unless one waits already or the receiver will soon know the run's end."""
        if self.state in (RunState.OPEN, RunState.ASKING) or self.heartbeat_due < math.inf:
            self._heartbeat = self._heartbeat or self.report.heartbeat()

    def accept(self) -> None:
        """Let the run begin, if it waits for that."""
        if self.state is RunState.ASKING:
            self.state = RunState.OPEN
            self.report.begin()

    def suppress(self) -> None:
        """Drop all events but the terminal one: the receiver wants no other."""
        if self.end is None:
            self.state = RunState.SUPPRESSED
        self.heartbeat_due = math.inf
        self._started = self._heartbeat = None
        self._others.clear()

    def replace_end(self, event: Event) -> None:
        """Send *event*, a small one, in place of the terminal event, which was refused for its size."""
        self.state, self.end, self.shortened = RunState.ENDED, event, True
        self.size, self.heartbeat_due, self._end_batch = 0, math.inf, None

    def settle(self) -> None:
        """Drop everything: the terminal event is delivered or given up."""
        self.suppress()
        self.state, self.end, self._end_batch = RunState.SETTLED, None, None

    # --- batches ----------------------------------------------------------------------------------------------

    def fits_with(self, other: RunEvents) -> bool:
        """Return whether events of both runs may share a request."""
        mine, theirs = self.report, other.report
        same = mine.security is theirs.security and mine.destination == theirs.destination
        return same and not self.isolated and not other.isolated

    def take_due(self, now: float) -> list[Event]:
        """Remove and return the events to send now, but not a large terminal event. `put_back` reverses it."""
        if self.end is not None and not self.large:
            return self.take_all(now)
        due: list[Event] = []

        if self._started is not None and self.started_due <= now:
            due.append(self._started)
            self._started = None
        elif self._heartbeat is not None:
            due.append(self._heartbeat)

        self._heartbeat = None
        due += self._others
        self._others = []
        return due

    def take_all(self, now: float) -> list[Event]:
        """Remove and return all events, if the terminal event is among them and may be sent now."""
        if self.state is not RunState.ENDED or self.attempts.not_before > now:
            return []
        self.state = RunState.REPORTING

        events = [event for event in (self._started, *self._others, self.end) if event is not None]
        self._started = self._heartbeat = None
        self._others = []
        return list(condensed(events))

    def end_batch(self, new_batch: EventBatch) -> EventBatch:
        """Return the request that carries the terminal event: *new_batch*, or the one of an earlier attempt.

        The pickles of a large terminal event are kept in that request alone.
        """
        if self.large and self.end is not None:
            self._end_batch = self._end_batch or new_batch
            self.end = without_pickles(self.end)
            return self._end_batch
        return new_batch

    def keeps_pickles_in(self, batch: EventBatch) -> bool:
        """Return whether the pickles of the terminal event are to be kept in the body of *batch* alone."""
        return self._end_batch is batch

    def put_back(self, events: list[Event]) -> None:
        """Add *events* again, which were taken and did not get through."""
        others: list[Event] = []

        for event in events:
            kind = event["type"]
            if kind in TERMINAL:
                self.state, self.end = RunState.ENDED, event
            elif self.state is RunState.SUPPRESSED:
                continue
            elif kind == "task_started":
                self._started = event
            elif kind == "heartbeat":
                self._heartbeat = self._heartbeat or event
            else:
                others.append(event)

        self._others[:0] = others

    def _add_end(self, event: Event, now: float) -> None:
        self.end = event
        self.size = bulk(event)
        self.attempts.give_up_at = now + self.report.retry_seconds
        if self.large and self.state is not RunState.SUPPRESSED:
            self.heartbeat_due = now + self.report.heartbeat_seconds
        self.state = RunState.ENDED


def has_end(events: list[Event]) -> bool:
    """Return whether a terminal event is among *events*."""
    return any(event["type"] in TERMINAL for event in events)


def without_pickles(event: Event) -> Event:
    """Return *event* without its pickles."""
    return {name: value for name, value in event.items() if not isinstance(value, Pickled)}
