"""What a weave's decorator leaves of a function's type: everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, assert_type

import wove
from wove import Weave, WoveResult, merge, weave


def parse(text: str) -> int:
    return int(text)


def sync_weave() -> None:
    with weave(user_id=7) as w:

        @w.do
        def user(user_id: int) -> str:
            return f"user {user_id}"

        @w.do(retries=2, timeout=1.5, retry_on=(OSError, ValueError), retry_delay="exponential")
        async def orders(user: str) -> list[int]:
            return [len(user)]

        @w.do("orders", workers=4, limit_per_minute=6000)
        def doubled(order: int) -> int:
            return 2 * order

        @w.do(range(3), retry_delay=lambda attempt: 0.1 * attempt)
        def numbers(n: int) -> int:
            return n

        assert_type(user(7), str)
        assert_type(doubled(7), int)
        check_user: Callable[[int], str] = user
        check_orders: Callable[[str], Coroutine[Any, Any, list[int]]] = orders
        del check_user, check_orders

    assert_type(w.result, WoveResult)
    assert w.result.doubled == [12]
    assert w.result["numbers"] == [0, 1, 2]
    assert_type(w.result.timings["user"], float)
    for record in w.result.run_records:
        assert_type(record.pid, int | None)


async def async_weave() -> None:
    async with weave(error_mode="return", max_workers=8, n=1) as w:

        @w.do
        async def up(n: int) -> int:
            return n + 1

    assert w.result.up == 2
    assert_type(w.result.exception, BaseException | None)


class Report(Weave):
    @Weave.do
    def first(self, n: int) -> int:
        return n

    @Weave.do("items", workers=2)
    async def second(self, item: str, first: int) -> str:
        return item * first

    @Weave.do(timeout=None, environment="default")
    def third(self, second: list[str]) -> str:
        return " ".join(second)


def class_weave() -> None:
    with weave(Report, n=2, items=["a", "b"]) as w:

        @w.do
        def third(second: list[str]) -> str:
            return "+".join(second)

    assert w.result.final == "aa+bb"


def merging() -> None:
    with weave() as w:

        @w.do
        def total() -> int:
            return sum(merge(parse, ["1", "2"], workers=2))

    assert w.result.total == 3


def configure() -> None:
    wove.config(environments={"default": {"executor": "local"}}, retries=1, timeout=30)
    wove.config(default_environment="default", error_mode="raise")


if __name__ == "__main__":
    configure()
    sync_weave()
    asyncio.run(async_weave())
    class_weave()
    merging()
    wove.shutdown()
