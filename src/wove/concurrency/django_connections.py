"""Django's database connections in threads of Wove.

Django keeps a connection for each thread, and closes it after a request. A task in a thread of Wove is not a request,
so that its connection would stay open for as long as the thread waits for other work.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["close_connections"]

_log = logging.getLogger("wove")


def close_connections() -> None:
    """Close the connections of this thread, where the process uses Django. Costs next to nothing otherwise."""
    database: Any = sys.modules.get("django.db")
    if database is None:
        return

    connections = getattr(database, "connections", None)  # None: it is being imported
    if connections is None or not sys.modules["django.conf"].settings.configured:
        return
    try:
        connections.close_all()
    except Exception:
        _log.exception("a database connection of Django cannot be closed")
