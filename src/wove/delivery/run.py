"""A run outside this process, and the callers that wait for its outcome."""

from __future__ import annotations

import asyncio
import enum
import itertools
import os
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wove.concurrency import forks
from wove.protocol.frames import is_timing
from wove.result import Trip

if TYPE_CHECKING:
    from collections.abc import Callable

    from wove.concurrency.deadline import Deadline
    from wove.concurrency.limiter import Reservation
    from wove.concurrency.mailbox import LoopMailbox
    from wove.delivery.request import Request
    from wove.delivery.runs import RunTable

__all__ = [
    "CANCELLED",
    "GONE",
    "IN_FLIGHT",
    "Ending",
    "Outcome",
    "RemoteRun",
    "State",
    "Waiter",
    "new_run_id",
]


class Ending(enum.Enum):
    """How a run ended for a caller that waited for it."""

    VALUE = enum.auto()
    ERROR = enum.auto()
    CANCELLED = enum.auto()
    """The weave stopped waiting, and the run was given up."""
    GONE = enum.auto()
    """The run was never submitted, or was shared and has ended: it is to be submitted once more."""


class Outcome(NamedTuple):
    """An ending, with its value or exception."""

    ending: Ending
    value: Any = None


CANCELLED: Final = Outcome(Ending.CANCELLED)
GONE: Final = Outcome(Ending.GONE)


class State(enum.Enum):
    """Where a run is.

    ============= ============ =============================================================================
    from          to           when
    ============= ============ =============================================================================
    WAITING       SENT         its frame is handed to the executor
    WAITING       OVER         it cannot be encoded, its last waiter leaves, or its session closes
    SENT          STARTED      ``task_started`` comes
    SENT, STARTED WAITING      its worker or executor is lost, and the run is submitted again
    SENT, STARTED CANCELLING   it is given up, and its cancel must be acknowledged (``require_ack``)
    SENT, STARTED SETTLING     its terminal event comes
    SENT, STARTED OVER         it is given up (``best_effort``) or lost, cannot be sent, or its session closes
    CANCELLING    OVER         its terminal event comes, its worker is lost, or the acknowledgement is overdue
    SETTLING      OVER         its outcome is decoded
    ============= ============ =============================================================================
    """

    WAITING = enum.auto()
    """For its session, for a slot, or to be encoded. Nothing outside this process knows of it."""
    SENT = enum.auto()
    STARTED = enum.auto()
    CANCELLING = enum.auto()
    """The verdict of the run is known, and given to its waiter at the next transition."""
    SETTLING = enum.auto()
    OVER = enum.auto()


IN_FLIGHT: Final = (State.SENT, State.STARTED, State.CANCELLING)
"""The states in which a worker may have the run."""


class Waiter:
    """One call of `DeliveryClient.run`, which waits on its own loop.

    Args:
        mailbox: Posts to that loop.
        home: The loop on which the run lives.
        working: Called on the waiter's loop: with true whenever a worker begins the run, with false
            when the run is lost and waits for another one. ``None``: it is not of interest.
    """

    __slots__ = ("_home", "_mailbox", "_working", "future")

    def __init__(
        self,
        mailbox: LoopMailbox,
        home: asyncio.AbstractEventLoop,
        working: Callable[[bool], object] | None = None,
    ) -> None:
        self._working = working
        self.future: asyncio.Future[Outcome] = mailbox.loop.create_future()
        self._mailbox = mailbox
        self._home = home

    def wait_again(self) -> None:
        """Wait once more, for the answer to `RunTable.abandon`."""
        self.future = self._mailbox.loop.create_future()

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome. Called on the loop where the run lives; only the first call counts."""
        if self._mailbox.loop is self._home:
            _settle(self.future, outcome)
        else:
            self._mailbox.post_from(self._home, _settle, self.future, outcome)

    def report(self, working: bool) -> None:
        """Tell whether a worker is at work on the run. Called on the loop where the run lives."""
        if self._working is None:
            return
        if self._mailbox.loop is self._home:
            self._working(working)
        else:
            self._mailbox.post_from(self._home, self._working, working)

    def settle_gone(self) -> None:
        """Set `GONE` as the outcome. For any thread, once the loop of the run takes no calls any more."""
        self._mailbox.post(_settle, self.future, GONE)


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


class RemoteRun:
    """One run. Once it has been submitted to its table, its fields belong to the loop of that table.

    Attributes:
        request: The call, and how it is to run.
        table: The table that the run belongs to.
        key: Its idempotency key, rendered as text; ``None`` without one.
        run_id: The id of its last submission.
        waiters: The calls that wait for the outcome. More than one with an idempotency key; none once detached.
        admitted_at: When it got its slot; 0 before. All times are those of `time.monotonic`.
        sent_at: When it was handed over.
        transmitted_at: When the executor had sent it; 0 before.
        start_assumed: Whether it is with a worker that may not report when it begins.
        start_seen_at: When ``task_started`` came; 0 before.
        end_seen_at: When its terminal event came; 0 before.
        timing: The times that its worker reports, not yet checked.
        seen_at: When the last event came, once the run has started.
        reprieved_until: Until when a silent run is not taken for lost: events may wait to be read.
        losses: The number of its submissions that were lost.
        slot: Whether the run counts in the limiter of its environment.
        place: Its place in the queue of that limiter.
        verdict: How a cancelled run ends as soon as its cancel is acknowledged.
        acknowledge_by: When that wait ends; ``None``: never.
        timer: Expires at the earliest time limit of the run; ``None`` if it has none.
    """

    __slots__ = (
        "acknowledge_by",
        "admitted_at",
        "bytes_in",
        "bytes_out",
        "end_seen_at",
        "host",
        "key",
        "losses",
        "pid",
        "place",
        "reprieved_until",
        "request",
        "run_id",
        "seen_at",
        "sent_at",
        "slot",
        "start_assumed",
        "start_seen_at",
        "state",
        "table",
        "timer",
        "timing",
        "transmitted_at",
        "verdict",
        "waiters",
    )

    def __init__(self, request: Request, table: RunTable, key: str | None) -> None:
        self.request = request
        self.table = table
        self.key = key
        self.state = State.WAITING
        self.run_id = ""
        self.waiters: list[Waiter] = []
        self.admitted_at = self.sent_at = self.transmitted_at = 0.0
        self.start_seen_at = self.end_seen_at = 0.0
        self.start_assumed = False
        self.timing: object = None
        self.seen_at = self.reprieved_until = 0.0
        self.losses = 0
        self.slot = False
        self.place: Reservation | None = None
        self.verdict: Outcome | None = None
        self.acknowledge_by: float | None = None
        self.timer: Deadline | None = None
        self.host: str | None = None
        self.pid: int | None = None
        self.bytes_out = 0
        self.bytes_in = 0

    def trip(self) -> Trip:
        """Return when the run passed which point of its way."""
        ahead = time() - monotonic()

        def epoch(point: float) -> float | None:
            return ahead + point if point else None

        trip = Trip(
            admitted=epoch(self.admitted_at),
            handed_over=epoch(self.sent_at),
            sent=epoch(self.transmitted_at),
            start_seen=epoch(self.start_seen_at),
            end_seen=epoch(self.end_seen_at),
        )
        if is_timing(self.timing):
            trip.worker_began, load, work, dump = self.timing
            trip.worker_spent = load, work, dump

        return trip

    def __str__(self) -> str:
        return (
            f"run {self.run_id} of {self.request}" if self.run_id else f"the run of {self.request}"
        )


def _new_ids() -> itertools.count[int]:
    global _prefix
    # Lower-case hexadecimal: valid as the start of a name in every backend.
    _prefix = os.urandom(8).hex()
    return itertools.count(1)


_prefix = ""
_ids = _new_ids()


def new_run_id() -> str:
    """Return an id that no other run has, in any process: at most 48 characters of ``[a-z0-9-]``."""
    return f"{_prefix}-{next(_ids):x}"


def reset_after_fork() -> None:
    global _ids
    _ids = _new_ids()


forks.after_in_child(forks.Phase.CACHES, reset_after_fork)
