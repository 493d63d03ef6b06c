"""How many bytes of requests a service holds while they arrive."""

from __future__ import annotations

import asyncio

import pytest

from wove.services import byte_budget
from wove.services.byte_budget import ByteBudget


def test_the_oldest_always_gets_room() -> None:
    async def main() -> None:
        budget = ByteBudget(100)
        oldest, second, third = budget.open(), budget.open(), budget.open()
        assert await oldest.acquire(80)
        assert await second.acquire(20)
        waiting = asyncio.create_task(third.acquire(60))
        assert await oldest.acquire(50), "beyond the limit"
        assert not waiting.done()
        second.close()
        await asyncio.sleep(0)
        assert not waiting.done()
        oldest.close()
        assert await waiting, "it is the oldest now"
        third.close()
        third.close()
        last = budget.open()
        assert await last.acquire(100)

    asyncio.run(main())


def test_who_waits_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_budget, "ROOM_SECONDS", 0.01)

    async def main() -> None:
        budget = ByteBudget(100)
        oldest, second = budget.open(), budget.open()
        assert await oldest.acquire(100)
        assert not await second.acquire(1)
        oldest.close()
        assert await second.acquire(1)

    asyncio.run(main())


def test_who_stops_waiting_gets_nothing() -> None:
    async def main() -> None:
        budget = ByteBudget(100)
        oldest, second, third = budget.open(), budget.open(), budget.open()
        assert await oldest.acquire(100)
        waiting = [asyncio.create_task(share.acquire(100)) for share in (second, third)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        second.close()
        oldest.close()
        assert await waiting[1]

    asyncio.run(main())
