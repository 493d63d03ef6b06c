"""How many connections a server has at a time, and which of them go when there are too many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Connections", "max_connections"]

SPARE_DESCRIPTORS: Final = 256
"""Descriptors that are left to tasks and to the process itself."""

MIN_CONNECTIONS: Final = 64
MAX_CONNECTIONS: Final = 8192
"""About 10 KiB each, with their objects and kernel buffers apart."""

LOG_SECONDS: Final = 60.0
"""Minimum time between two warnings that connections were closed: strangers must not fill the log."""


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
    """The open connections of one server. For one loop.

    When there are too many, the one that has been a stranger for the longest is closed. Clients that have shown who
    they are stay; where all have, the newest connection is closed.

    Args:
        limit: Maximum number of connections.
        max_strangers: Maximum number of those that have not shown who they are; ``None``: no other than *limit*.
        logger: Logs that connections were closed, at most once a minute.
        label: How that line begins.
    """

    def __init__(
        self,
        limit: int,
        *,
        max_strangers: int | None = None,
        logger: logging.Logger,
        label: str = "",
    ) -> None:
        self._limit = limit
        self._max_strangers = limit if max_strangers is None else max_strangers
        self._logger = logger
        self._label = label
        self._strangers: dict[object, Callable[[], object]] = {}
        self._known: set[object] = set()
        self._closed = 0  # since the last warning
        self._logged_at: float | None = None

    def arrived(self, connection: object, close: Callable[[], object]) -> None:
        """Count *connection*, which is a stranger's; *close* ends it at once."""
        self._strangers[connection] = close
        strangers = len(self._strangers)
        if strangers <= self._max_strangers and strangers + len(self._known) <= self._limit:
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
        self._logger.warning(
            "%smore than %d connections, or %d that have not shown who they are: %d of these were closed",
            self._label,
            self._limit,
            self._max_strangers,
            self._closed,
        )
        self._logged_at, self._closed = now, 0
