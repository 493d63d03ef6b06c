"""What `os.fork` must not bring into a child: descriptors of the parent's workers, and imports half done.

A child that keeps the write end of a worker's stdin open keeps that worker alive after the parent is gone;
one that keeps a socket open keeps a connection half alive. So whatever an executor opens and keeps is
registered here, and a forked child closes its copies.

A module whose import was under way in another thread at the moment of the fork can never be imported in the
child: its lock is held by a thread that does not exist there. So the imports that Wove makes in threads of
its own hold up a fork until they are done.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

__all__ = ["blank", "forget", "importing", "release", "track"]

MAX_SECONDS: Final = 5.0
"""How long a fork waits for an import; then it goes on at its own risk, as forks among threads do."""

importing = threading.RLock()
"""To be held around imports in Wove's own threads."""

_descriptors: set[int] = set()
_blanked: set[int] = set()


def track(*descriptors: int) -> None:
    """Have a forked child close *descriptors*."""
    _descriptors.update(descriptors)


def blank(descriptor: int) -> None:
    """Have a forked child put an empty file in the place of *descriptor*, for asyncio's sockets.

    Objects that are garbage in the child close it later, by its number, which must not be another file's then.
    """
    _blanked.add(descriptor)


def forget(*descriptors: int) -> None:
    """*descriptors* are about to be closed by someone else."""
    _descriptors.difference_update(descriptors)
    _blanked.difference_update(descriptors)


def release(*descriptors: int) -> None:
    """Close *descriptors* here, and forget them. Negative ones are ignored."""
    for descriptor in descriptors:
        _descriptors.discard(
            descriptor
        )  # first: the number may be taken by another thread once it is closed
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class _Fork(threading.local):
    """Whether this thread, which forks, holds `importing` for that."""

    holds = False


_fork = _Fork()


def _before() -> None:
    _fork.holds = importing.acquire(timeout=MAX_SECONDS)


def _after_in_parent() -> None:
    if _fork.holds:
        importing.release()
        _fork.holds = False


def _after_in_child() -> None:
    global importing
    _fork.holds = False
    importing = (
        threading.RLock()
    )  # if it was not to be had, then nobody is left who could release it
    for descriptor in list(_descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    if _blanked:
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in _blanked:
                os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)
    _blanked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
