"""Clients that belong to one of the user's event loops, and are used on that loop only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar, cast

from wove.concurrency import forks
from wove.errors import DeliveryError

__all__ = ["ClientCalls", "leave_behind", "loop_of_redis", "on_loop"]

T = TypeVar("T")

_LISTS: Final = ("_in_use_connections", "_available_connections")
"""Where a connection pool of ``redis.asyncio`` has its connections: redis/asyncio/connection.py, since 4.2."""


def loop_of_redis(pool: object) -> asyncio.AbstractEventLoop | None:
    """Return the event loop that the open connections of *pool* belong to; ``None`` while there are none.

    Args:
        pool: A connection pool of ``redis.asyncio``, of any version from 4 to 8. It does not know its loop; the writers
            of its connections do.
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
        except RuntimeError:  # its loop changes them in another thread at this moment
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
    """Await the coroutine that *make* returns, on *loop*.

    Args:
        loop: The loop; ``None``: the running one.
        make: Called on that loop.
        label: What messages begin with: ``"environment 'reports': its pool"``.

    Raises:
        DeliveryError: The loop does not run, so that the coroutine would never end.
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
    except RuntimeError:  # it was closed just now
        coroutine.close()
        raise DeliveryError(f"{label} belongs to an event loop that has just been closed") from None

    return await asyncio.wrap_future(future)


class ClientCalls:
    """Makes the calls of one client on the event loop that it belongs to.

    Args:
        loop: Returns that loop; ``None``: the running one. It is asked at each call, since some clients belong to the
            loop on which they are first used.
        label: What messages begin with: ``"environment 'reports': its pool"``.
        seconds: The time limit of each call; ``None``: no limit.
        explain: Returns the error to raise instead of one that a call raised; ``None``: raise that one.

    Attributes:
        closed: Whether `close` was called.
    """

    def __init__(
        self,
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        *,
        label: str,
        seconds: float | None = None,
        explain: Callable[[BaseException], DeliveryError | None] = lambda error: None,
    ) -> None:
        self._loop = loop
        self._label = label
        self._seconds = seconds
        self._explain = explain
        self._pending: set[asyncio.Future[Any]] = set()
        self.closed = False

    async def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await the coroutine that *make* returns, on the client's loop.

        Raises:
            DeliveryError: The loop does not run, or the environment was stopped before there was an answer.
        """

        async def bounded() -> T:
            async with asyncio.timeout(self._seconds):
                return await make()

        pending = asyncio.ensure_future(on_loop(self._loop(), bounded, label=self._label))
        self._pending.add(pending)
        pending.add_done_callback(self._pending.discard)

        try:
            return await pending
        except asyncio.CancelledError:
            if not self.closed:
                raise
            raise DeliveryError(
                f"{self._label}: the environment was stopped before there was an answer"
            ) from None
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from error

    async def close(self, seconds: float = 0.0) -> None:
        """Wait for pending calls for at most *seconds*, then cancel them."""
        self.closed = True
        if self._pending and seconds:
            await asyncio.wait(set(self._pending), timeout=seconds)
        for pending in list(self._pending):
            pending.cancel()


# --- forks ------------------------------------------------------------------------------------------------

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[tuple[Any, list[int]]] = []


def leave_behind(pool: object) -> None:
    """Have a forked child begin without the connections that a pool of ``redis.asyncio`` has on Wove's loop.

    They belong to the parent: two processes that use one connection get each other's answers. Besides, their loop does
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
        # When the connections are collected, they close these numbers, which must not be those of other files then.
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
