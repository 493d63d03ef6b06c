"""Exit statuses of ``python -m wove.backend_worker``, and their meanings for a backend that sees only the number."""

from __future__ import annotations

from typing import Final

__all__ = ["REFUSED", "UNREADABLE", "UNREPORTED", "meaning"]

# sysexits.h: EX_DATAERR, EX_UNAVAILABLE, EX_NOPERM. The interpreter itself ends with 1 when it cannot even begin.
UNREADABLE: Final = 65
UNREPORTED: Final = 69
REFUSED: Final = 77

_MEANINGS: Final = {
    1: "its Python could not run wove.backend_worker: is Wove installed there?",
    UNREADABLE: "its worker could not read the payload",
    UNREPORTED: "its worker could not report how the task ended",
    REFUSED: "PermissionError: its worker refused the payload: its WOVE_WORKER_SECRET and the environment's 'security' "
    "do not match",
    143: "its worker was told to stop (SIGTERM)",
    # POSIX, Shell Command Language, 2.8.2.
    126: "its command could not be executed",
    127: "its command was not found",
}


def meaning(status: int) -> str | None:
    """Return the meaning of the exit *status* of a job that runs Wove's worker; ``None``: it has none.

    Example:
        >>> meaning(127)
        'its command was not found'
    """
    return _MEANINGS.get(status)
