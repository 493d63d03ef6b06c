"""The events of weaves, for any number of listeners.

Every step of a weave reports through `emit`, which also writes the debug log of the logger ``wove``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["emit", "listen", "listening"]

_log = logging.getLogger("wove")
_sinks: list[Callable[[str, dict[str, Any]], object]] = []


def listen(sink: Callable[[str, dict[str, Any]], object]) -> Callable[[], None]:
    """Have *sink* called with the name and the fields of every event; return the call that ends this.

    A sink is called in the thread in which the event happens, and must not block. An exception of it is
    logged and goes no further.
    """
    _sinks.append(sink)

    def stop() -> None:
        if sink in _sinks:
            _sinks.remove(sink)

    return stop


def listening() -> bool:
    """Return whether there is a listener; a caller on a hot path asks first."""
    return bool(_sinks) or _log.isEnabledFor(logging.DEBUG)


def emit(event: str, **fields: Any) -> None:
    """Call every listener with *event* and its *fields*."""
    for sink in tuple(_sinks):
        try:
            sink(event, fields)
        except Exception:
            _log.exception("a listener failed on the event %r", event)

    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(
            "%s %s", event, " ".join(f"{name}={value!r:.200}" for name, value in fields.items())
        )
