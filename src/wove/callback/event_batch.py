"""Events that travel in one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.callback.run_events import Event, RunEvents, has_end, without_pickles
from wove.protocol.codec import encode_events

if TYPE_CHECKING:
    from wove.callback.link import Destination
    from wove.security import NetworkExecutorSecurity

__all__ = ["EventBatch"]


class EventBatch:
    """One request to a receiver, and what has arrived of its response.

    Args:
        items: The runs, each with its events. All of them share destination and security.

    Attributes:
        items: As given.
        chunks: The encoded body; empty before `encode`.
        response_body: What has arrived of the response's body.
        has_end: Whether a terminal event is among the events.
        sent_at: When the request was sent, in monotonic seconds.
    """

    __slots__ = ("chunks", "has_end", "items", "response_body", "sent_at")

    def __init__(self, items: list[tuple[RunEvents, list[Event]]]) -> None:
        self.items = items
        self.chunks: list[bytes] = []
        self.response_body: list[bytes] = []
        self.has_end = any(has_end(events) for _, events in items)
        self.sent_at = 0.0

    @property
    def destination(self) -> Destination:
        """The URL that the request is posted to."""
        return self.items[0][0].report.destination

    @property
    def security(self) -> NetworkExecutorSecurity:
        """The security that signs the request."""
        return self.items[0][0].report.security

    def encode(self) -> None:
        """Make the body. Afterwards a large terminal event's pickles are kept in the body alone.

        Raises:
            FrameError: An event is not JSON.
        """
        self.chunks = encode_events([event for _, events in self.items for event in events])
        for run_events, events in self.items:
            if run_events.keeps_pickles_in(self):
                events[:] = map(without_pickles, events)
