"""Which worker is there for which run: a worker keeps one connection open for as long as its runs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wove.net.http1 import Request
from wove.protocol.names import WORKER_HEADER

if TYPE_CHECKING:
    from wove.callback.routes import Route

__all__ = ["WorkerConnection", "WorkerLiveness"]

_WORKER: Final = WORKER_HEADER.lower()

# A proxy in between tells nothing of the worker when it closes a connection (RFC 9110, 7.6.3; RFC 7239).
_OF_PROXIES: Final = frozenset({"via", "forwarded", "x-forwarded-for"})

MAX_CHARACTERS: Final = 200


class WorkerConnection:
    """A connection, as far as it tells that a worker is there.

    Attributes:
        worker: Whose it is, if its requests say so; ``""``: not known.
        direct: Whether it comes from the worker itself.
        runs: Those that were last heard of over it, and have not ended.
    """

    __slots__ = ("direct", "runs", "worker")

    def __init__(self) -> None:
        self.worker = ""
        self.direct = True
        self.runs: dict[tuple[Route, str], None] = {}

    def note(self, request: Request) -> None:
        """Another request came over it."""
        worker = ""

        for name, value in request.fields:
            if name == _WORKER:
                worker = value[:MAX_CHARACTERS]
            elif name in _OF_PROXIES:
                self.direct = False

        if self.worker and self.worker != worker:
            self.direct = (
                False  # two workers on one connection: something is between that does not say so
            )

        self.worker = worker


class WorkerLiveness:
    """The runs of a receiver that workers are there for."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[tuple[Route, str], WorkerConnection] = {}

    def heard(self, route: Route, run_id: str, line: WorkerConnection) -> None:
        """A run that goes on was heard of over *line*."""
        if not line.worker:
            return
        key = (route, run_id)
        known = self._lines.get(key)
        if known is line:
            return
        if known is not None:
            known.runs.pop(key, None)
        self._lines[key] = line
        line.runs[key] = None

    def ended(self, route: Route, run_id: str) -> None:
        """A run has ended."""
        line = self._lines.pop((route, run_id), None)
        if line is not None:
            line.runs.pop((route, run_id), None)

    def lost(self, line: WorkerConnection) -> dict[Route, list[str]]:
        """*line* has ended. The runs that nobody is there for now, unless a proxy has ended it."""
        gone: dict[Route, list[str]] = {}
        for key in line.runs:
            self._lines.pop(key, None)
            gone.setdefault(key[0], []).append(key[1])
        line.runs.clear()
        return gone if line.direct else {}

    def forget(self, route: Route) -> None:
        """*route* is closed."""
        for key in [key for key in self._lines if key[0] is route]:
            self.ended(*key)
