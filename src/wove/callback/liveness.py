"""Which worker runs which run: a worker keeps one connection open for as long as it has runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from wove.net.http1 import Request
from wove.protocol.names import WORKER_HEADER

if TYPE_CHECKING:
    from wove.callback.routes import Route

__all__ = ["ConnectionEnd", "WorkerConnection", "WorkerLiveness"]

_WORKER: Final = WORKER_HEADER.lower()

# A proxy that closes a connection says nothing of the worker behind it (RFC 9110, 7.6.3; RFC 7239).
_PROXY_HEADERS: Final = frozenset({"via", "forwarded", "x-forwarded-for"})

MAX_CHARACTERS: Final = 200
"""Maximum length of a worker's name."""


class ConnectionEnd(NamedTuple):
    """How a worker's connection has ended, from which its subscribers judge whether the worker lives.

    Attributes:
        by_peer: Whether the worker's system has closed it, as it does when the process ends. Otherwise the network
            failed, or the receiver has given it up.
        silent_seconds: How long nothing had come over it by then.
    """

    by_peer: bool
    silent_seconds: float


class WorkerConnection:
    """The worker at the other end of a connection to the receiver, and whether it lives.

    Attributes:
        worker: The worker's name, from its requests; ``""``: not known.
        direct: Whether the connection is the worker's own, with no proxy between.
        runs: The runs whose last event came over it, and that have not ended.
    """

    __slots__ = ("direct", "runs", "worker")

    def __init__(self) -> None:
        self.worker = ""
        self.direct = True
        self.runs: dict[tuple[Route, str], None] = {}

    def on_request(self, request: Request) -> None:
        """Read the worker's name from the head of a request, and whether there is a proxy."""
        worker = ""

        for name, value in request.fields:
            if name == _WORKER:
                worker = value[:MAX_CHARACTERS]
            elif name in _PROXY_HEADERS:
                self.direct = False

        if self.worker and self.worker != worker:
            self.direct = False  # two workers on one connection: a proxy that does not say so
        self.worker = worker


class WorkerLiveness:
    """The runs of a receiver, each with the connection over which it was last heard of."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: dict[tuple[Route, str], WorkerConnection] = {}

    def add_run(self, route: Route, run_id: str, connection: WorkerConnection) -> None:
        """Note that an event of a run, which goes on, came over *connection*."""
        if not connection.worker:
            return
        key = (route, run_id)
        known = self._connections.get(key)
        if known is connection:
            return

        if known is not None:
            known.runs.pop(key, None)
        self._connections[key] = connection
        connection.runs[key] = None

    def remove_run(self, route: Route, run_id: str) -> None:
        """Remove a run that has ended."""
        connection = self._connections.pop((route, run_id), None)
        if connection is not None:
            connection.runs.pop((route, run_id), None)

    def remove_connection(self, connection: WorkerConnection) -> dict[Route, list[str]]:
        """Remove a connection that has ended, and return its runs by route.

        The end of a connection that is not direct says nothing of its worker: then there are none.
        """
        runs: dict[Route, list[str]] = {}
        for key in connection.runs:
            self._connections.pop(key, None)
            runs.setdefault(key[0], []).append(key[1])
        connection.runs.clear()
        return runs if connection.direct else {}

    def remove_route(self, route: Route) -> None:
        """Remove the runs of a route that is closed."""
        for key in [key for key in self._connections if key[0] is route]:
            self.remove_run(*key)
