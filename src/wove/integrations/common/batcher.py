"""Requests that share a round trip: all that are made during one round trip go together in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from wove.errors import DeliveryError

__all__ = ["Batcher"]

Item = TypeVar("Item")
Reply = TypeVar("Reply")

MAX_ITEMS: Final = 256
"""Maximum number of items in one batch."""

MAX_BYTES: Final = 1024 * 1024
"""Maximum number of bytes in one batch. A larger batch would keep a loop busy for longer than ten milliseconds."""


class Batcher(Generic[Item, Reply]):
    """Collects items while *carry* is busy with others. An item that comes when it is idle goes at once. For one loop.

    Args:
        carry: Sends items and awaits their replies, which it returns in the order of the items. An exception goes to
            the callers of all these items.

    Example:
        >>> values = Batcher(lambda names: redis.mget(names))
        >>> first, second = await asyncio.gather(values.put("a"), values.put("b"))  # one MGET
    """

    def __init__(self, carry: Callable[[Sequence[Item]], Awaitable[Sequence[Reply]]]) -> None:
        self._carry = carry
        self._waiting: deque[tuple[Item, int, asyncio.Future[Reply]]] = deque()
        self._carrier: asyncio.Task[None] | None = None

    async def put(self, item: Item, size: int = 0) -> Reply:
        """Return the reply to *item*. A caller that is cancelled before the item is sent withdraws it.

        Args:
            item: What is to be sent.
            size: Its size in bytes.
        """
        loop = asyncio.get_running_loop()
        replied: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((item, size, replied))
        if self._carrier is None:
            self._carrier = loop.create_task(self._carry_all())
        return await replied

    async def close(self) -> None:
        """End all waiting calls with a `DeliveryError`."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.cancel()
            await asyncio.wait({carrier}, timeout=1.0)
        _fail(replied for _, _, replied in self._waiting)
        self._waiting.clear()

    async def _carry_all(self) -> None:
        while batch := self._next():
            waiters = [replied for _, _, replied in batch]
            try:
                replies = await self._carry([item for item, _, _ in batch])
                for replied, reply in zip(waiters, replies, strict=True):
                    if not replied.done():
                        replied.set_result(reply)
            except Exception as error:
                for replied in waiters:
                    if not replied.done():
                        replied.set_exception(error)
            except BaseException:
                _fail(waiters)
                raise

        self._carrier = None

    def _next(self) -> list[tuple[Item, int, asyncio.Future[Reply]]]:
        batch: list[tuple[Item, int, asyncio.Future[Reply]]] = []
        size = 0

        while self._waiting and len(batch) < MAX_ITEMS:
            if batch and size + self._waiting[0][1] > MAX_BYTES:
                break
            each = self._waiting.popleft()
            if not each[2].done():
                batch.append(each)
                size += each[1]

        return batch


def _fail(waiters: Iterable[asyncio.Future[Any]]) -> None:
    for replied in waiters:
        if not replied.done():
            replied.set_exception(
                DeliveryError("the environment was stopped before there was an answer")
            )
