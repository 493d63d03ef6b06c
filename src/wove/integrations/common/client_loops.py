"""Clients that belong to an event loop of the user's: used there, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar, cast

from wove.concurrency import forks
from wove.errors import DeliveryError

__all__ = ["leave_behind", "loop_of_redis", "on_loop"]

T = TypeVar("T")

_LISTS: Final = ("_in_use_connections", "_available_connections")
"""Where a connection pool of ``redis.asyncio`` has its connections: redis/asyncio/connection.py, since 4.2."""


def loop_of_redis(pool: object) -> asyncio.AbstractEventLoop | None:
    """The event loop that the open connections of *pool* belong to; ``None`` while there are none.

    Args:
        pool: A connection pool of ``redis.asyncio``, of any version from 4 to 8. It does not know its loop; what its
            connections write to does.
    """
    for writer in _writers(pool):
        loop = getattr(writer, "_loop", None)
        if isinstance(loop, asyncio.AbstractEventLoop):
            return loop

    return None


def _writers(pool: object) -> Iterator[object]:
    for name in _LISTS:
        try:
            connections = list(cast("Iterable[object]", getattr(pool, name, None) or ()))
        except RuntimeError:  # its loop, in another thread, is just changing them
            continue
        for connection in connections:
            writer: object = getattr(connection, "_writer", None)
            if writer is not None:
                yield writer


async def on_loop(
    loop: asyncio.AbstractEventLoop | None,
    make: Callable[[], Coroutine[Any, Any, T]],
    *,
    label: str,
) -> T:
    """Await what *make* makes, on *loop*.

    Args:
        loop: Where; ``None``: here.
        make: Called there.
        label: Whose client it is, for the error: ``"environment 'reports': its pool"``.

    Raises:
        DeliveryError: The loop does not run, so that nothing would ever come of it.
    """
    if loop is None or loop is asyncio.get_running_loop():
        return await make()
    if loop.is_closed() or not loop.is_running():
        raise DeliveryError(
            f"{label} belongs to an event loop that is {'closed' if loop.is_closed() else 'not running'}. Make it on a "
            "loop that runs as long as weaves use it, or configure how to connect instead of the object itself"
        )

    coroutine = make()

    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # closed this very moment
        coroutine.close()
        raise DeliveryError(f"{label} belongs to an event loop that has just been closed") from None

    return await asyncio.wrap_future(future)


# --- forks ------------------------------------------------------------------------------------------------

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[tuple[Any, list[int]]] = []


def leave_behind(pool: object) -> None:
    """Have a forked child begin without the connections that *pool*, one of ``redis.asyncio``, has on Wove's loop.

    They are the parent's: two processes that talk over one connection get each other's answers. And their loop does
    not run in the child.
    """
    with contextlib.suppress(TypeError):
        _pools.add(pool)


def _before_fork() -> None:
    _inherited.clear()
    for pool in list(_pools):
        if hasattr(loop_of_redis(pool), "dropped"):  # see wove.delivery.background_loop
            sockets = (cast("Any", writer).get_extra_info("socket") for writer in _writers(pool))
            _inherited.append((pool, [sock.fileno() for sock in sockets if sock is not None]))


def reset_after_fork() -> None:
    for pool, descriptors in _inherited:
        # The connections close them when they are garbage, by number: that must not be another file's then.
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in descriptors:
                if descriptor >= 0:
                    os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)
        for name in _LISTS:
            getattr(pool, name).clear()
        for name, kind in (("_lock", asyncio.Lock), ("_condition", asyncio.Condition)):
            if isinstance(getattr(pool, name, None), kind):
                setattr(pool, name, kind())

    _inherited.clear()


forks.before(forks.Phase.CLIENTS, _before_fork)
forks.after_in_parent(forks.Phase.CLIENTS, _inherited.clear)
forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
