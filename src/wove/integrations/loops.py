"""Clients that belong to an event loop of the user's: used there, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from wove.errors import DeliveryError

__all__ = ["loop_of_redis", "on_loop"]

T = TypeVar("T")


def loop_of_redis(pool: object) -> asyncio.AbstractEventLoop | None:
    """The event loop that the open connections of *pool* belong to; ``None`` while there are none.

    Args:
        pool: A connection pool of ``redis.asyncio``, of any version from 4 to 8. It does not know its loop; what its
            connections write to does.
    """
    for name in ("_in_use_connections", "_available_connections"):
        try:
            connections = list(cast("Iterable[object]", getattr(pool, name, None) or ()))
        except RuntimeError:  # its loop, in another thread, is just changing them
            continue
        for connection in connections:
            loop = getattr(getattr(connection, "_writer", None), "_loop", None)
            if isinstance(loop, asyncio.AbstractEventLoop):
                return loop
    return None


async def on_loop(
    loop: asyncio.AbstractEventLoop | None, make: Callable[[], Coroutine[Any, Any, T]], *, what: str
) -> T:
    """Await what *make* makes, on *loop*.

    Args:
        loop: Where; ``None``: here.
        make: Called there.
        what: Whose client it is, for the error: ``"environment 'reports': its pool"``.

    Raises:
        DeliveryError: The loop does not run, so that nothing would ever come of it.
    """
    if loop is None or loop is asyncio.get_running_loop():
        return await make()
    if loop.is_closed() or not loop.is_running():
        raise DeliveryError(
            f"{what} belongs to an event loop that is {'closed' if loop.is_closed() else 'not running'}. Make it on a "
            "loop that runs as long as weaves use it, or configure how to connect instead of the object itself"
        )
    coroutine = make()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # closed this very moment
        coroutine.close()
        raise DeliveryError(f"{what} belongs to an event loop that has just been closed") from None
    return await asyncio.wrap_future(future)
