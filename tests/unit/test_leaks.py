"""Whatever a weave does, and however it ends, nothing of it is left behind."""

from __future__ import annotations

import asyncio
import time

import pytest

import wove
from wove import weave

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.backend("stdio")]


@pytest.fixture(params=["default", "pool"])
def environment(request: pytest.FixtureRequest) -> str:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    return str(request.param)


def test_a_weave_that_works(environment: str) -> None:
    with weave() as w:

        @w.do(range(20), environment=environment)
        def numbers(n: int) -> int:
            return n

        @w.do(environment=environment)
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

    assert w.result.total == 190


def test_a_weave_that_fails(environment: str) -> None:
    with pytest.raises(ValueError, match="no"), weave() as w:

        @w.do(range(20), environment=environment)
        def numbers(n: int) -> int:
            if n == 7:
                raise ValueError("no")
            time.sleep(0.02)
            return n

        @w.do(environment=environment)
        async def sleeper() -> None:
            await asyncio.sleep(30)


def test_a_weave_that_times_out(environment: str) -> None:
    with pytest.raises(TimeoutError), weave() as w:

        @w.do(environment=environment, timeout=0.2)
        def slow() -> None:
            time.sleep(0.5)


async def _weave_for(environment: str, seconds: float) -> None:
    async with weave() as w:

        @w.do(environment=environment)
        async def sleeper() -> None:
            await asyncio.sleep(seconds)


def test_a_weave_that_is_cancelled(environment: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.3):
            await _weave_for(environment, 30)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_weave_inside_a_running_loop(environment: str) -> None:
    async def main() -> int:
        with weave() as w:  # as in a notebook

            @w.do(environment=environment)
            def one() -> int:
                return 1

        return int(w.result.one)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("fork", [False, True])
def test_a_weave_in_the_background(fork: bool) -> None:
    with weave(background=True, fork=fork) as w:

        @w.do
        def one() -> int:
            return 1

    assert w.wait(20)
