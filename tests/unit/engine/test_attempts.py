"""Retries, their delays, and the time that an attempt may take."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import TaskTimeoutError, weave
from wove.engine.attempts import RETRY, Pacer, retry_delay

SHAPES = [
    "sync",
    "async",
    "returning",
    "generator",
    "async generator",
    "mapped sync",
    "mapped async",
]


class Boom(Exception):
    pass


class Other(Exception):
    pass


def declare(w: weave, shape: str, body: Callable[[], Any], **options: Any) -> None:
    """Declare `task`, which calls *body*, or awaits what it gives."""

    async def coroutine(*item: Any) -> Any:
        value = body()
        return await value if asyncio.iscoroutine(value) else value

    def generator() -> Any:
        yield body()

    async def async_generator() -> Any:
        yield await coroutine()

    async def async_item(item: int) -> Any:
        return await coroutine()

    made: dict[str, Any] = {
        "sync": lambda: body(),
        "async": coroutine,
        "returning": lambda: coroutine(),
        "generator": generator,
        "async generator": async_generator,
        "mapped sync": lambda item: body(),
        "mapped async": async_item,
    }
    fn = made[shape]
    fn.__name__ = "task"
    (w.do([0], **options) if shape.startswith("mapped") else w.do(**options))(fn)


def value(shape: str, result: Any) -> Any:
    return result.task if shape in ("sync", "async", "returning") else result.task[0]


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("failures", [0, 1, 3])
def test_up_to_so_many_more_attempts(form: str, shape: str, failures: int) -> None:
    attempts = 0

    def body() -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= failures:
            raise Boom(attempts)
        return attempts

    result = run(form, lambda w: declare(w, shape, body, retries=3))
    assert value(shape, result) == attempts == failures + 1
    assert [record.attempt for record in result.run_records] == [failures + 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_then_the_last_failure_comes_out(form: str, shape: str) -> None:
    attempts = 0

    def body() -> None:
        nonlocal attempts
        attempts += 1
        raise Boom(attempts)

    done = attempt(form, lambda w: declare(w, shape, body, retries=2))
    assert isinstance(done.error, Boom)
    assert done.error.args == (3,)
    assert done.error.__context__ is None  # the attempts before are none of its causes
    assert attempts == 3


@pytest.mark.parametrize("retries", [0, None])
def test_no_retries(form: str, retries: int | None) -> None:
    attempts: list[int] = []

    def body() -> None:
        attempts.append(1)
        raise Boom

    assert isinstance(
        attempt(form, lambda w: declare(w, "sync", body, retries=retries)).error, Boom
    )
    assert len(attempts) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_what_is_no_exception_is_not_retried(
    form: str, shape: str, error: type[BaseException]
) -> None:
    attempts: list[int] = []

    def body() -> None:
        attempts.append(1)
        raise error("mine")

    done = attempt(form, lambda w: declare(w, shape, body, retries=3, timeout=PATIENCE))
    assert type(done.error) is error
    assert len(attempts) == 1


@pytest.mark.parametrize("retry_on", [Boom, (Boom, OSError), [Boom]])
def test_only_some_exceptions_are_retried(form: str, retry_on: Any) -> None:
    raised: list[type[Exception]] = []

    def body() -> None:
        raised.append(Other if raised else Boom)
        raise raised[-1]

    done = attempt(form, lambda w: declare(w, "async", body, retries=5, retry_on=retry_on))
    assert isinstance(done.error, Other)
    assert raised == [Boom, Other]


def test_a_delay_between_attempts(form: str) -> None:
    asked: list[int] = []
    at: list[float] = []

    def delay(failed: int) -> float:
        asked.append(failed)
        return 0.01

    def body() -> None:
        at.append(time.perf_counter())
        if len(at) < 3:
            raise Boom

    run(form, lambda w: declare(w, "sync", body, retries=2, retry_delay=delay))
    assert asked == [1, 2]
    assert at[1] - at[0] > 0.008
    assert at[2] - at[1] > 0.008


def test_a_delay_that_raises_is_the_failure(form: str) -> None:
    def delay(failed: int) -> float:
        raise Other

    def body() -> None:
        raise Boom

    done = attempt(form, lambda w: declare(w, "sync", body, retries=2, retry_delay=delay))
    assert isinstance(done.error, Other)
    assert isinstance(done.error.__context__, Boom)


def test_a_task_that_waits_for_its_next_attempt_ends_with_the_weave(form: str) -> None:
    def tasks(w: weave) -> None:
        failed = threading.Event()

        def body() -> None:
            failed.set()
            raise Boom("again and again")

        declare(w, "sync", body, retries=1, retry_delay=PATIENCE)

        @w.do
        def other() -> None:
            failed.wait(PATIENCE)
            raise Other

    began = time.perf_counter()
    done = attempt(form, tasks)
    assert isinstance(done.error, Other)
    assert done.result.cancelled == ("task",)
    assert time.perf_counter() - began < PATIENCE / 2


def test_the_lengths_of_delays() -> None:
    assert retry_delay(1.5, 3) == 1.5
    assert retry_delay(lambda failed: failed * 2, 3) == 6
    assert retry_delay(lambda failed: -1, 1) == 0
    for failed in (1, 2, 5, 2000):
        drawn = [retry_delay("exponential", failed) for _ in range(50)]
        assert all(0 <= delay <= min(RETRY.maximum, 2.0 ** min(failed - 1, 60)) for delay in drawn)
        assert len(set(drawn)) > 1


# ---------------------------------------------------------------------- time limits


async def never() -> None:
    await asyncio.sleep(PATIENCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_attempt_that_takes_too_long(form: str, shape: str) -> None:
    release = threading.Event()

    def body() -> Any:
        return release.wait(PATIENCE) if shape in ("sync", "generator", "mapped sync") else never()

    began = time.perf_counter()
    done = attempt(form, lambda w: declare(w, shape, body, timeout=0.02))
    release.set()
    error = done.error
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error, TimeoutError)
    assert (error.task, error.attempt, error.limit) == ("task", 1, 0.02)
    for part in ("'task'", "attempt 1", "0.02 s", *(["item 0"] if "mapped" in shape else [])):
        assert part in str(error)
    assert time.perf_counter() - began < PATIENCE / 2
    assert error.__context__ is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_limit_is_for_each_attempt(form: str, shape: str) -> None:
    attempts = 0
    release = threading.Event()

    def body() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            return 7
        return release.wait(PATIENCE) if shape in ("sync", "generator", "mapped sync") else never()

    result = run(form, lambda w: declare(w, shape, body, timeout=0.02, retries=2))
    release.set()
    assert value(shape, result) == 7


def test_the_last_of_several_timeouts_says_which_attempt_it_was(form: str) -> None:
    done = attempt(form, lambda w: declare(w, "async", never, timeout=0.01, retries=2))
    assert isinstance(done.error, TaskTimeoutError)
    assert done.error.attempt == 3


def test_a_timed_out_thread_is_not_waited_for_and_gives_its_place_to_others(form: str) -> None:
    release = threading.Event()

    def tasks(w: weave) -> None:
        @w.do(timeout=0.02)
        def stuck() -> None:
            release.wait(PATIENCE)

        @w.do
        def next_in_line() -> int:
            return 1

        @w.do
        def and_next(next_in_line: int) -> int:
            return next_in_line + 1

        @w.do(range(3), timeout=0.02)
        def items(item: int) -> int:
            if item == 0:
                release.wait(PATIENCE)
            return item

    result = run(form, tasks, max_workers=1, error_mode="continue")
    release.set()
    assert isinstance(result.stuck, TaskTimeoutError)
    assert result.and_next == 2
    assert isinstance(result["items"], TaskTimeoutError)


def test_the_time_in_the_queue_for_a_thread_does_not_count(form: str) -> None:
    gate = threading.Event()

    def tasks(w: weave) -> None:
        @w.do
        def first() -> None:
            gate.wait(0.08)

        @w.do(timeout=0.04)
        def second() -> int:
            return 2

    assert run(form, tasks, max_workers=1).second == 2


def test_a_sync_call_and_what_it_returns_share_one_limit(form: str) -> None:
    def tasks(w: weave) -> None:
        @w.do(timeout=0.06)
        def task() -> Any:
            time.sleep(0.04)
            return asyncio.sleep(0.04)

    assert isinstance(attempt(form, tasks).error, TaskTimeoutError)


def test_a_coroutine_that_is_out_of_time_cleans_up(form: str) -> None:
    cleaned: list[int] = []

    def tasks(w: weave) -> None:
        @w.do(timeout=0.01, retries=1)
        async def task() -> None:
            try:
                await never()
            finally:
                await asyncio.sleep(0.001)
                cleaned.append(1)

    assert isinstance(attempt(form, tasks).error, TaskTimeoutError)
    assert cleaned == [1, 1]


def test_what_a_coroutine_raises_when_its_time_is_up_is_the_cause(form: str) -> None:
    def tasks(w: weave) -> None:
        @w.do(timeout=0.01)
        async def task() -> None:
            try:
                await never()
            finally:
                raise Boom

    done = attempt(form, tasks)
    assert isinstance(done.error, TaskTimeoutError)
    assert isinstance(done.error.__cause__, Boom)


def test_a_coroutine_that_does_not_end_when_its_time_is_up_is_left_behind(
    form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wove.engine.attempts.CANCEL_GRACE_SECONDS", 0.01)

    def tasks(w: weave) -> None:
        @w.do(timeout=0.01)
        async def task() -> None:
            for _ in range(2):
                try:
                    await asyncio.sleep(0.2)
                except asyncio.CancelledError:
                    continue

    done = attempt(form, tasks)
    assert isinstance(done.error, TaskTimeoutError)
    assert any("'task'" in record.getMessage() for record in caplog.records)


def test_a_timeout_of_the_tasks_own_is_its_own(form: str) -> None:
    def tasks(w: weave) -> None:
        @w.do(timeout=PATIENCE)
        async def task() -> None:
            async with asyncio.timeout(0.001):
                await never()

    done = attempt(form, tasks)
    assert type(done.error) is TimeoutError


def test_a_limit_that_is_not_reached_changes_nothing(form: str) -> None:
    for shape in SHAPES:
        assert (
            value(
                shape,
                run(form, lambda w, shape=shape: declare(w, shape, lambda: 5, timeout=PATIENCE)),
            )
            == 5
        )


# ---------------------------------------------------------------------- the pacer


def test_a_turn_that_is_cancelled_is_not_lost_for_the_next() -> None:
    async def main() -> float:
        pacer = Pacer(60 / 0.5)
        await pacer.turn()
        waiting = [asyncio.ensure_future(pacer.turn()) for _ in range(3)]
        began = time.perf_counter()
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        await waiting[2]
        return time.perf_counter() - began

    assert asyncio.run(main()) < 0.5 * 2.5
