"""The reports of a single run, and the callers who wait for their delivery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from wove.callback.run_events import Event, RunEvents
from wove.errors import DeliveryError
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, TERMINAL

if TYPE_CHECKING:
    from wove.callback.link import Destination
    from wove.security import NetworkExecutorSecurity

__all__ = ["DeliveryOutcome", "EventSink", "RunReporter"]

WAKE_SECONDS: Final = 1.0
"""How often a waiting thread wakes up: an exception that another thread raises in it arrives only then."""


class EventSink(Protocol):
    """Receiver of a reporter's events: its sender."""

    def put(self, report: RunReporter, event: Event) -> None:
        """Send *event* soon. Never blocks."""

    def ask(self, report: RunReporter) -> None:
        """Ask soon whether the run is awaited. Never blocks."""


class DeliveryOutcome:
    """How the delivery of a run's end went.

    Attributes:
        error: Why it was given up; ``None``: it was not.
        awaited: False: nobody waits for the run any more, so that its end was not needed.
        unreachable: Why the run, which has not begun, was dropped without an answer of its receiver; otherwise ``""``.
    """

    __slots__ = ("awaited", "error", "unreachable")

    def __init__(
        self, *, error: DeliveryError | None = None, awaited: bool = True, unreachable: str = ""
    ) -> None:
        self.error = error
        self.awaited = awaited
        self.unreachable = unreachable


class RunReporter:
    """Sends the events of one run to its receiver.

    Args:
        run_id: Id of the run.
        task: Name of its task.
        destination: Where the events are posted.
        security: Signs the requests.
        retry_seconds: For how many seconds the delivery of the run's end is tried again.
        heartbeat_seconds: Seconds between two heartbeats while a large end is on its way.
        detached: Whether the run goes on when nobody waits for it any more.
        cancel: Called, from any thread, when nobody waits and the run is not to go on. Must neither raise nor block.

    Attributes:
        sender: Sends the events.
        override_event: The event that takes the place of a ``task_cancelled``: why this worker cancelled the run.
        run_events: The events, as far as they are not delivered. For the sender's thread alone.
    """

    def __init__(
        self,
        run_id: str,
        task: str,
        destination: Destination,
        security: NetworkExecutorSecurity,
        *,
        retry_seconds: float,
        heartbeat_seconds: float,
        detached: bool,
        cancel: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.task = task
        self.destination = destination
        self.security = security
        self.retry_seconds = retry_seconds
        self.heartbeat_seconds = heartbeat_seconds
        self.detached = detached
        self.cancel = cancel
        self.sender: EventSink | None = None
        self.override_event: Event | None = None
        self.run_events = RunEvents(self)
        self._begin: Callable[[], None] | None = None  # called once the run is known to be awaited
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._settled = threading.Event()
        self._outcome: DeliveryOutcome | None = None
        self._callbacks: list[Callable[[DeliveryOutcome], None]] = []

    def put(self, event: Event) -> None:
        """Send *event*. Never blocks; the first terminal event is the last event."""
        terminal = event["type"] in TERMINAL

        with self._lock:
            if self._ended.is_set():
                return
            if terminal:
                if event["type"] == "task_cancelled" and self.override_event is not None:
                    event = self.override_event
                self._ended.set()

        if self.sender is not None:
            self.sender.put(self, event)

    def heartbeat(self) -> Event:
        """Return a heartbeat of the run."""
        return {"type": "heartbeat", "run_id": self.run_id, "task_id": self.task}

    def ask(self, begin: Callable[[], None]) -> None:
        """Ask the receiver whether the run is awaited, and call *begin* if it is.

        Otherwise the run is over without having begun: `wait` and `when_delivered` say so. A detached run is also
        begun where the receiver does not wait for it or cannot be asked.

        Args:
            begin: Called from any thread. Must neither raise nor block.
        """
        self._begin = begin
        if self.sender is not None:
            self.sender.ask(self)

    def begin(self) -> None:
        """Call the function that was given to `ask`, once."""
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()

    def fail(self, error: BaseException, *, source: str, retryable: bool | None = None) -> None:
        """End the run with *error*."""
        self.put(self.failure(error, source=source, retryable=retryable))

    def failure(self, error: BaseException, *, source: str, retryable: bool | None = None) -> Event:
        """Return the ``task_error`` that `fail` sends."""
        fields = from_exception(error, task=self.task, source=source, retryable=retryable)
        return {
            "type": "task_error",
            "run_id": self.run_id,
            "task_id": self.task,
            **fields,
            "python": PYTHON,
        }

    # --- for the callers who wait -----------------------------------------------------------------------------

    def wait_ended(self, seconds: float) -> bool:
        """Wait at most *seconds* for the terminal event. Return whether there is one."""
        return self._ended.wait(seconds)

    def wait(self, seconds: float | None = None) -> DeliveryOutcome | None:
        """Wait at most *seconds* until the end is delivered or given up; return ``None`` if it is neither by then."""
        deadline = None if seconds is None else time.monotonic() + seconds

        while not self._settled.is_set():
            left = (
                WAKE_SECONDS if deadline is None else min(WAKE_SECONDS, deadline - time.monotonic())
            )
            if left <= 0:
                break
            self._settled.wait(left)

        return self._outcome

    def when_delivered(self, callback: Callable[[DeliveryOutcome], None]) -> None:
        """Call *callback* when the end is delivered or given up, at once if it is.

        Args:
            callback: Called from any thread. Must neither raise nor block.
        """
        with self._lock:
            if self._outcome is None:
                self._callbacks.append(callback)
                return
        callback(self._outcome)

    def settle(self, outcome: DeliveryOutcome) -> None:
        """Wake those who wait. The first outcome counts."""
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = outcome
            self._begin = None
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []

        self._settled.set()
        for callback in callbacks:
            callback(outcome)
