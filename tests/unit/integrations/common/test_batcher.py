"""Items that share round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from wove.errors import DeliveryError
from wove.integrations.common.batcher import MAX_BYTES, MAX_ITEMS, Batcher


class Carrier:
    """Doubles what it is given, one batch at a time, each when `go` lets it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: BaseException | None = None

    async def carry(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


def run(main: object) -> None:
    asyncio.run(main())  # type: ignore[operator]


def test_those_that_come_meanwhile_go_together() -> None:
    async def main() -> None:
        carrier = Carrier()
        trips = Batcher(carrier.carry)
        assert await trips.put(1) == 2
        carrier.go.clear()
        first = asyncio.create_task(trips.put(1))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(trips.put(item)) for item in range(2, 2 + MAX_ITEMS + 3)]
        await asyncio.sleep(0.01)
        carrier.go.set()
        assert await asyncio.gather(first, *others) == [
            2 * item for item in range(1, 2 + MAX_ITEMS + 3)
        ]
        assert [len(batch) for batch in carrier.batches] == [1, 1, MAX_ITEMS, 3]

    run(main)


def test_a_batch_is_not_too_large() -> None:
    async def main() -> None:
        carrier = Carrier()
        trips = Batcher(carrier.carry)
        await asyncio.gather(*(trips.put(item, size=MAX_BYTES // 2) for item in range(3)))
        assert [len(batch) for batch in carrier.batches] == [2, 1]
        assert await trips.put(1, size=5 * MAX_BYTES) == 2

    run(main)


def test_an_error_is_that_of_its_batch_alone() -> None:
    async def main() -> None:
        carrier = Carrier()
        trips = Batcher(carrier.carry)
        carrier.error = OSError("away")
        answers = await asyncio.gather(trips.put(1), trips.put(2), return_exceptions=True)
        assert list(map(str, answers)) == ["away", "away"]
        carrier.error = None
        assert await trips.put(1) == 2

    run(main)


def test_who_stops_waiting_takes_it_back() -> None:
    async def main() -> None:
        carrier = Carrier()
        trips = Batcher(carrier.carry)
        carrier.go.clear()
        first, second, third = (asyncio.create_task(trips.put(item)) for item in (1, 2, 3))
        await asyncio.sleep(0.01)
        fourth, fifth = (asyncio.create_task(trips.put(item)) for item in (4, 5))
        await asyncio.sleep(0.01)
        first.cancel()  # it is on its way already
        fourth.cancel()
        await asyncio.sleep(0.01)
        carrier.go.set()
        assert await asyncio.gather(second, third, fifth) == [4, 6, 10]
        assert carrier.batches == [[1, 2, 3], [5]]

    run(main)


def test_the_end_leaves_nobody_waiting() -> None:
    async def main() -> None:
        carrier = Carrier()
        trips = Batcher(carrier.carry)
        carrier.go.clear()
        first = asyncio.create_task(trips.put(1))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(trips.put(2))
        await asyncio.sleep(0.01)
        await trips.close()
        for each in (first, second):
            with pytest.raises(DeliveryError, match="was stopped before there was an answer"):
                await each
        await trips.close()

    run(main)
