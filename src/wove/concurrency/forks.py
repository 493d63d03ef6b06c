"""Prepare the process for `os.fork`, and reset the child: one registry, with an order that imports do not decide.

A forked child inherits the parent's memory and descriptors, and none of its threads. So a lock that another thread
held stays locked for ever, a queue that another thread served is never emptied, and a copy of a descriptor keeps
the other end of a pipe or a connection open after the parent is gone. Each module that has such state registers one
function, ``reset_after_fork``, in the `Phase` that it belongs to::

    parent                                 child
    ------                                 -----
    before: CLIENTS ... LOCKS
    hold `importing` and the held locks
    ------------------------------ os.fork ------------------------------
    release the locks                      release the locks
    after:  LOCKS ... CLIENTS              close and blank the descriptors
                                           after:  LOCKS ... CLIENTS

Where the system cannot fork, everything here can be called and nothing is ever called back.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

__all__ = [
    "Phase",
    "after_in_child",
    "after_in_parent",
    "before",
    "before_foreign_hooks",
    "blank",
    "hold",
    "importing",
    "release",
    "track",
    "untrack",
]

MAX_SECONDS: Final = 5.0
"""How long a fork waits for imports in other threads. Then it continues, at the risk that every fork of a process
with threads has."""

Hook: TypeAlias = Callable[[], object]


class Phase(enum.IntEnum):
    """The order in which a child is reset. Before a fork, the order is the reverse."""

    LOCKS = enum.auto()
    """Locks of their own, which the hooks of later phases may acquire."""
    THREADS = enum.auto()
    """Pools and queues whose threads exist in the parent only."""
    LOOPS = enum.auto()
    """Event loops, and what runs on them."""
    CACHES = enum.auto()
    """Counters and tables of runs in flight: the parent's."""
    CLIENTS = enum.auto()
    """Connections to other processes."""


# --- hooks ------------------------------------------------------------------------------------------------

_before: Final[dict[Phase, list[Hook]]] = {phase: [] for phase in Phase}
_after_in_parent: Final[dict[Phase, list[Hook]]] = {phase: [] for phase in Phase}
_after_in_child: Final[dict[Phase, list[Hook]]] = {phase: [] for phase in Phase}
_held: Final[list[threading.Lock]] = []


def before(phase: Phase, hook: Hook) -> None:
    """Call *hook* in the parent before each fork, in the thread that forks."""
    _before[phase].append(hook)


def after_in_parent(phase: Phase, hook: Hook) -> None:
    """Call *hook* in the parent after each fork, also after one that failed."""
    _after_in_parent[phase].append(hook)


def after_in_child(phase: Phase, hook: Hook) -> None:
    """Call *hook* in each forked child, once the locks are released and the descriptors closed."""
    _after_in_child[phase].append(hook)


def before_foreign_hooks(hook: Hook) -> None:
    """Call *hook* before each fork, ahead of the hooks that other libraries have registered until now.

    The system calls first what was registered last. Call this after the import of a library whose own hooks must
    find nothing under way. *hook* comes before every phase, and no lock is held yet.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=hook)


def hold(lock: threading.Lock) -> None:
    """Hold *lock* during each fork, so that a child finds what the lock guards whole.

    For locks that are held for microseconds, and under which no other lock is acquired and nothing is imported.
    """
    _held.append(lock)


# --- imports ----------------------------------------------------------------------------------------------

importing = threading.RLock()
"""Hold this around each import in a thread of Wove's own.

A module whose import was under way in another thread at the moment of a fork can never be imported in the child,
because its lock belongs to a thread that does not exist there. So a fork waits for these imports.
"""


# --- descriptors ------------------------------------------------------------------------------------------

_descriptors: Final[set[int]] = set()
_blanked: Final[set[int]] = set()


def track(*descriptors: int) -> None:
    """Close *descriptors* in each forked child."""
    _descriptors.update(descriptors)


def blank(descriptor: int) -> None:
    """Replace *descriptor* with an empty file in each forked child. For the sockets of asyncio.

    Objects that are garbage in the child close it later, by its number, which must not be another file's then.
    """
    _blanked.add(descriptor)


def untrack(*descriptors: int) -> None:
    """Leave *descriptors* alone from now on: their owner is about to close them."""
    _descriptors.difference_update(descriptors)
    _blanked.difference_update(descriptors)


def release(*descriptors: int) -> None:
    """Close *descriptors* here, and stop tracking them. Negative ones are ignored."""
    for descriptor in descriptors:
        # First: once it is closed, another thread may get the same number.
        _descriptors.discard(descriptor)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


# --- the fork itself --------------------------------------------------------------------------------------


class _Fork(threading.local):
    """The locks that the forking thread holds during the fork."""

    is_importing = False
    locks: tuple[threading.Lock, ...] = ()


_fork = _Fork()


def _run(hooks: dict[Phase, list[Hook]], phases: Iterable[Phase]) -> None:
    """Call all *hooks*, and raise afterwards what they raised. Python reports that, and the fork continues."""
    errors: list[Exception] = []

    for phase in phases:
        for hook in hooks[phase]:
            try:
                hook()
            except Exception as error:  # one that fails must not cost the others their turn
                errors.append(error)

    if errors:
        raise ExceptionGroup("hooks of a fork failed", errors)


def _prepare() -> None:
    try:
        _run(_before, reversed(Phase))
    finally:
        # Only now: the hooks may have waited for other threads, and those may need these locks.
        _fork.is_importing = importing.acquire(timeout=MAX_SECONDS)
        _fork.locks = tuple(_held)
        for lock in _fork.locks:
            lock.acquire()


def _release_locks() -> None:
    locks, _fork.locks = _fork.locks, ()
    for lock in locks:
        lock.release()


def _resume_parent() -> None:
    _release_locks()
    if _fork.is_importing:
        importing.release()
        _fork.is_importing = False
    _run(_after_in_parent, Phase)


def _reset_child() -> None:
    global importing
    _release_locks()
    _fork.is_importing = False
    # A new one: if the old one could not be acquired, the thread that holds it does not exist here.
    importing = threading.RLock()
    _close_descriptors()
    _run(_after_in_child, Phase)


def _close_descriptors() -> None:
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
        before=_prepare, after_in_parent=_resume_parent, after_in_child=_reset_child
    )
