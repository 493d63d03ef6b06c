"""Reports of a single run, and the callers who wait for their delivery."""

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

__all__ = ["Delivered", "EventSink", "RunReporter"]

WAKE_SECONDS: Final = 1.0
"""How often a thread that waits looks up: an exception that another thread raises in it arrives only then."""


class EventSink(Protocol):
    """Receiver of a reporter's events: its sender."""

    def put(self, report: RunReporter, event: Event) -> None:
        """Send *event* soon. Never blocks."""


class Delivered:
    """How the delivery of an end went.

    Attributes:
        error: Why it was given up; ``None``: the receiver has it.
        gone: The receiver did not want it: nobody waits for the run any more.
        unheard: Why the run, which has not begun, was dropped without a word of the receiver; ``""``: it was not.
    """

    __slots__ = ("error", "gone", "unheard")

    def __init__(
        self, *, error: DeliveryError | None = None, gone: bool = False, unheard: str = ""
    ) -> None:
        self.error = error
        self.gone = gone
        self.unheard = unheard


class RunReporter:
    """The events of one run, on their way to the receiver.

    Args:
        run_id: Of the run.
        task: Its task's name.
        destination: Where the events go.
        security: Signs them.
        retry_seconds: For how long the end of the run is sent again.
        beat_seconds: The time between heartbeats while the end is on its way, if it is large.
        detached: The run goes on when nobody waits for it any more.
        cancel: Called, from any thread, when nobody does and it is not to go on. Must neither raise nor block.

    Attributes:
        override_event: The event that takes the place of a ``task_cancelled``: why this worker cancelled the run.
    """

    def __init__(
        self,
        run_id: str,
        task: str,
        destination: Destination,
        security: NetworkExecutorSecurity,
        *,
        retry_seconds: float,
        beat_seconds: float,
        detached: bool,
        cancel: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.task = task
        self.destination = destination
        self.security = security
        self.retry_seconds = retry_seconds
        self.beat_seconds = beat_seconds
        self.detached = detached
        self.cancel = cancel
        self.override_event: Event | None = None
        self._begin: Callable[[], None] | None = None  # called once the run is known to be awaited
        self.way: EventSink | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._arrived = threading.Event()
        self._delivered: Delivered | None = None
        self._callbacks: list[Callable[[Delivered], None]] = []
        self.run_events = RunEvents(self)

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

        if self.way is not None:
            self.way.put(self, event)

    @property
    def asking(self) -> bool:
        """Whether the receiver is being asked if anybody waits for the run, which has not begun."""
        return self._begin is not None

    def ask(self, begin: Callable[[], None]) -> None:
        """Ask the receiver whether the run is awaited, and call *begin* if it is.

        Otherwise the run is over without having begun: `wait` and `when_delivered` say so. A detached run is also
        begun where the receiver does not wait for it or cannot be asked.

        Args:
            begin: Called from any thread. Must neither raise nor block.
        """
        self._begin = begin
        self.put({"type": "heartbeat", "run_id": self.run_id, "task_id": self.task})

    def answered(self) -> None:
        """Called when the receiver does not mind that the run goes on."""
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()

    def fail(self, error: BaseException, *, source: str, retryable: bool | None = None) -> None:
        """End the run with *error*."""
        self.put(self.failure(error, source=source, retryable=retryable))

    def failure(self, error: BaseException, *, source: str, retryable: bool | None = None) -> Event:
        """The ``task_error`` that `fail` sends."""
        fields = from_exception(error, task=self.task, source=source, retryable=retryable)
        return {
            "type": "task_error",
            "run_id": self.run_id,
            "task_id": self.task,
            **fields,
            "python": PYTHON,
        }

    # --- for those who wait --------------------------------------------------------------------------------

    def wait_ended(self, seconds: float) -> bool:
        """Wait for the terminal event, at most so long. Whether there is one."""
        return self._ended.wait(seconds)

    def wait(self, seconds: float | None = None) -> Delivered | None:
        """Wait until the end is delivered or given up, at most so long; ``None`` if it is neither."""
        deadline = None if seconds is None else time.monotonic() + seconds

        while not self._arrived.is_set():
            left = (
                WAKE_SECONDS if deadline is None else min(WAKE_SECONDS, deadline - time.monotonic())
            )
            if left <= 0:
                break
            self._arrived.wait(left)

        return self._delivered

    def when_delivered(self, callback: Callable[[Delivered], None]) -> None:
        """Call *callback*, which must neither raise nor block, from any thread: then, or now if it is over."""
        with self._lock:
            if self._delivered is None:
                self._callbacks.append(callback)
                return
        callback(self._delivered)

    def settle(self, delivered: Delivered) -> None:
        """It is over. The first one counts."""
        with self._lock:
            if self._delivered is not None:
                return
            self._delivered = delivered
            self._begin = None
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []

        self._arrived.set()
        for callback in callbacks:
            callback(delivered)
