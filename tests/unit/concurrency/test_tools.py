"""`Backoff`, `BoundedDict`, `Deadline`, `RateLimiter` and `post_to`."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from time import monotonic

import pytest

from wove.concurrency.backoff import Backoff
from wove.concurrency.bounded import BoundedDict
from wove.concurrency.deadline import Deadline
from wove.concurrency.mailbox import post_to
from wove.concurrency.rate_limiter import RateLimiter


class TestBackoff:
    def test_doubles_from_the_first_up_to_the_maximum(self) -> None:
        exact = Backoff(0.5, 3.0, 1.0, 1.0)
        assert [exact.delay(failures) for failures in (1, 2, 3, 4, 10_000)] == [0.5, 1, 2, 3, 3]
        assert exact.delay(0) == 0.5

    def test_jitter_stays_within_its_factors(self) -> None:
        backoff, rng = Backoff(1.0, 8.0, 0.5, 1.5), random.Random(7)
        delays = [backoff.delay(4, rng) for _ in range(500)]
        assert 4 <= min(delays) < 5 and 11 < max(delays) <= 12
        assert len(set(delays)) > 400

    def test_the_generator_decides(self) -> None:
        backoff = Backoff(1.0, 8.0)
        assert backoff.delay(2, random.Random(3)) == backoff.delay(2, random.Random(3))


class TestBoundedDict:
    def test_drops_what_was_inserted_first(self) -> None:
        kept = BoundedDict[str, int](2)
        kept["a"], kept["b"] = 1, 2
        kept["a"] = 3  # keeps its place
        kept["c"] = 4
        assert dict(kept) == {"b": 2, "c": 4}

    @pytest.mark.parametrize(
        "put", [lambda kept: kept.setdefault(4, 4), lambda kept: kept.update({4: 4, 5: 5})]
    )
    def test_whatever_inserts(self, put: Callable[[BoundedDict[int, int]], object]) -> None:
        kept = BoundedDict[int, int](3)
        for number in range(4):
            kept[number] = number
        put(kept)
        assert len(kept) == 3 and list(kept)[-1] in (4, 5)


class TestDeadline:
    def run(self, body: Callable[[asyncio.AbstractEventLoop, asyncio.Event], object]) -> None:
        """Run *body* on a loop until it has set the event."""

        async def main() -> None:
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            keep = body(loop, done)
            async with asyncio.timeout(30):
                await done.wait()
            del keep

        asyncio.run(main())

    def test_expires_once_at_the_earliest_limit(self) -> None:
        expired: list[float] = []

        def body(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> object:
            began = monotonic()
            limits = [began + 60, began + 0.02]

            def end() -> None:
                expired.append(monotonic() - began)
                done.set()

            deadline = Deadline(loop, lambda: min(limits), end)
            deadline.update()
            return deadline

        self.run(body)
        assert len(expired) == 1 and expired[0] > 0.01

    def test_a_limit_that_moves_to_later_keeps_its_timer(self) -> None:
        seen: list[str] = []

        def body(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> object:
            limit = [monotonic() + 0.01]

            def end() -> None:
                seen.append("expired")
                done.set()

            deadline = Deadline(loop, lambda: limit[0], end)
            deadline.update()
            limit[0] = monotonic() + 0.1
            loop.call_later(0.05, seen.append, "after the first")
            return deadline

        self.run(body)
        assert seen == ["after the first", "expired"]

    def test_a_limit_that_moves_to_earlier_is_heard_of_by_update(self) -> None:
        def body(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> object:
            limit: list[float | None] = [None]
            deadline = Deadline(loop, lambda: limit[0], done.set)
            deadline.update()
            limit[0] = monotonic() + 3600
            deadline.update()
            limit[0] = monotonic()
            deadline.update()
            return deadline

        self.run(body)

    def test_without_a_limit_or_cancelled_it_never_expires(self) -> None:
        expired: list[str] = []

        def body(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> object:
            gone: list[float | None] = [monotonic() + 0.01]
            first = Deadline(loop, lambda: gone[0], lambda: expired.append("gone"))
            first.update()
            gone[0] = None  # noticed when the timer fires
            second = Deadline(loop, monotonic, lambda: expired.append("cancelled"))
            second.update()
            second.cancel()
            third = Deadline(loop, lambda: None, lambda: expired.append("never"))
            third.update()
            loop.call_later(0.05, done.set)
            return first, second, third

        self.run(body)
        assert expired == []


class TestRateLimiter:
    def test_a_burst_and_then_an_even_pace(self) -> None:
        limiter, now, made = RateLimiter(3, 4.0), 1000.0, list[float]()
        for step in range(400):
            now += limiter.reserve(now)
            made.append(now)
            now += (step % 7) * 0.9
        assert made[:3] == [1000.0, 1000.0, pytest.approx(1000.9)]
        in_a_minute = [sum(begin <= each < begin + 60 for each in made) for begin in made]
        assert 15 <= max(in_a_minute) <= 18

    def test_a_pause_earns_one_burst_and_no_more(self) -> None:
        limiter = RateLimiter(2, 5.0)
        assert [limiter.reserve(now=0.0) for _ in range(3)] == [0.0, 0.0, 5.0]
        assert [limiter.reserve(now=1000.0) for _ in range(3)] == [0.0, 0.0, 5.0]


def test_post_to_says_when_the_loop_is_closed() -> None:
    seen: list[int] = []

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def post() -> None:
            assert post_to(loop, seen.append, 1)
            assert post_to(loop, done.set)

        thread = threading.Thread(target=post)
        thread.start()
        async with asyncio.timeout(30):
            await done.wait()
        thread.join()

    asyncio.run(main())
    assert seen == [1]
    loop = asyncio.new_event_loop()
    loop.close()
    assert not post_to(loop, seen.append, 2)
