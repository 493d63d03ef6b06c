"""How many connections a service has at a time, and which of them go when there are too many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Connections", "max_connections"]

logger = logging.getLogger("wove.service")

SPARE_DESCRIPTORS: Final = 256
"""Descriptors that are left to tasks and to the process itself."""

MIN_CONNECTIONS: Final = 64
MAX_CONNECTIONS: Final = 8192
"""About 10 KiB each, with their objects and kernel buffers apart."""

LOG_SECONDS: Final = 60.0
"""Between two lines that say that connections were closed: strangers must not fill the log."""


def max_connections() -> int:
    """Return how many connections fit below this process's limit of descriptors."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(MIN_CONNECTIONS, limit - SPARE_DESCRIPTORS))


class Connections:
    """The open connections of one service. For one loop.

    With one more than the limit, the one that has been a stranger for the longest is closed. Clients that have
    shown who they are stay; where all have, the newest is closed.

    Args:
        limit: The most connections.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._strangers: dict[object, Callable[[], object]] = {}
        self._known: set[object] = set()
        self._closed = 0
        self._logged_at: float | None = None

    def arrived(self, connection: object, close: Callable[[], object]) -> None:
        """Count *connection*, which is a stranger's; *close* ends it at once."""
        self._strangers[connection] = close
        if len(self._strangers) + len(self._known) <= self._limit:
            return
        oldest = next(iter(self._strangers))
        self._strangers.pop(oldest)()
        self._log()

    def recognized(self, connection: object) -> None:
        """Note that *connection* has shown who it is."""
        if self._strangers.pop(connection, None) is not None:
            self._known.add(connection)

    def left(self, connection: object) -> None:
        """Note that *connection* has ended."""
        self._strangers.pop(connection, None)
        self._known.discard(connection)

    def _log(self) -> None:
        self._closed += 1
        now = time.monotonic()
        if self._logged_at is not None and now - self._logged_at < LOG_SECONDS:
            return
        logger.warning(
            "more than %d connections: %d that had not shown who they are were closed",
            self._limit,
            self._closed,
        )
        self._logged_at, self._closed = now, 0
