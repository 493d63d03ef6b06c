"""`merge`: from every kind of caller, with every kind of callable; it neither deadlocks nor outlives its weave."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from wove import WoveResult, config, merge, weave
from wove.errors import TaskTimeoutError
from wove.merging import MERGE_DEPTH

SOON = 20.0
"""Seconds after which something hangs."""


def double(item: int) -> int:
    return 2 * item


async def double_later(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


class Doubler:
    def __call__(self, item: int) -> int:
        return 2 * item

    def method(self, item: int) -> int:
        return 2 * item

    async def later(self, item: int) -> int:
        return 2 * item


def times(factor: int, item: int) -> int:
    return factor * item


async def times_later(factor: int, item: int) -> int:
    return factor * item


def a_coroutine_of(item: int) -> Coroutine[Any, Any, int]:
    return double_later(item)


CALLABLES: dict[str, Callable[..., Any]] = {
    "function": double,
    "coroutine function": double_later,
    "lambda": lambda item: 2 * item,
    "partial": partial(times, 2),
    "partial of a coroutine function": partial(times_later, 2),
    "bound method": Doubler().method,
    "bound coroutine method": Doubler().later,
    "callable object": Doubler(),
    "function that returns a coroutine": a_coroutine_of,
    "builtin": (2).__mul__,
}


def in_sync_task(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do
        def task() -> Any:
            return call()

    return w.result.task


def in_async_task(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do
        async def task() -> Any:
            return await call()

    return w.result.task


def in_async_with(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        async with weave() as w:

            @w.do
            async def task() -> Any:
                return await call()

            @w.do
            def sync_task() -> Any:
                return call()

        assert w.result.task == w.result.sync_task
        return w.result.task

    return asyncio.run(main())


def in_mapped_sync_task(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do(range(3), workers=2)
        def task(item: int) -> Any:
            return call()

    assert w.result.task == [w.result.task[0]] * 3
    return w.result.task[0]


def in_mapped_async_task(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do(range(3), workers=2)
        async def task(item: int) -> Any:
            return await call()

    assert w.result.task == [w.result.task[0]] * 3
    return w.result.task[0]


def in_nested_weave(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do
        def outer() -> Any:
            return in_sync_task(call)

    return w.result.outer


def in_asyncio_run_in_a_sync_task(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await call()

    return in_sync_task(lambda: asyncio.run(main()))


def in_a_thread_of_an_async_task(call: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do
        async def task() -> Any:
            return await asyncio.to_thread(call)

    return w.result.task


def outside(call: Callable[[], Any]) -> Any:
    return call()


def outside_in_a_running_loop(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await call()

    return asyncio.run(main())


CALLERS = [
    in_sync_task,
    in_async_task,
    in_async_with,
    in_mapped_sync_task,
    in_mapped_async_task,
    in_nested_weave,
    in_asyncio_run_in_a_sync_task,
    in_a_thread_of_an_async_task,
    outside,
    outside_in_a_running_loop,
]


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("caller", CALLERS)
def test_every_callable_from_every_caller(
    caller: Callable[[Callable[[], Any]], Any], name: str
) -> None:
    assert caller(lambda: merge(CALLABLES[name], [1, 2, 3])) == [2, 4, 6]


@pytest.mark.parametrize("caller", CALLERS)
def test_without_iterable(caller: Callable[[Callable[[], Any]], Any]) -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return "later"

    assert caller(lambda: merge(lambda: "now")) == "now"
    assert caller(lambda: merge(later)) == "later"
    assert caller(lambda: merge(dict)) == {}


@pytest.mark.parametrize("caller", CALLERS)
def test_the_exception_of_the_callable_comes_out_as_it_is(
    caller: Callable[[Callable[[], Any]], Any],
) -> None:
    error = LookupError("mine")

    def fail(item: int) -> None:
        if item == 2:
            raise error

    async def fail_later(item: int) -> None:
        fail(item)

    for fn in (fail, fail_later):
        with pytest.raises(LookupError) as caught:
            caller(partial(merge, fn, [1, 2, 3]))
        assert caught.value is error


@pytest.mark.parametrize(
    "caller", [in_sync_task, in_async_task, outside, outside_in_a_running_loop]
)
def test_any_iterable(caller: Callable[[Callable[[], Any]], Any]) -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2, 3)

    async def later() -> AsyncIterator[int]:
        for number in (1, 2, 3):
            await asyncio.sleep(0)
            yield number

    assert caller(lambda: merge(double, numbers())) == [2, 4, 6]
    assert caller(lambda: merge(double, later())) == [2, 4, 6]
    assert caller(lambda: merge(double_later, later())) == [2, 4, 6]
    assert caller(lambda: merge(double, [])) == []
    assert caller(lambda: merge(double, iter(()))) == []
    assert caller(lambda: merge(str.upper, "abc")) == ["A", "B", "C"]
    assert caller(lambda: merge(str, {"a": 1})) == ["a"]
    assert caller(lambda: merge(str.upper, iterable="ab")) == ["A", "B"]
    with pytest.raises(TypeError, match="not iterable"):
        caller(lambda: merge(double, 5))  # type: ignore[call-overload]


@pytest.mark.parametrize("caller", [in_sync_task, outside])
def test_none_is_no_iterable_and_not_an_item(caller: Callable[[Callable[[], Any]], Any]) -> None:
    assert caller(lambda: merge(dict, None)) == {}


def test_the_name_of_the_parameter_does_not_matter() -> None:
    """`data` and the names of tasks are dependencies of tasks only."""

    def take(data: int) -> int:
        return data + 1

    def final(task: int) -> int:
        return task + 1

    for caller in (in_sync_task, outside):
        assert caller(lambda: merge(take, [1])) == [2]
        assert caller(lambda: merge(final, [1])) == [2]


def test_results_are_in_the_order_of_the_items() -> None:
    async def later(item: int) -> int:
        await asyncio.sleep((5 - item) / 100)
        return item

    assert in_async_task(lambda: merge(later, range(5))) == list(range(5))


def test_async_calls_run_at_once_and_sync_ones_in_threads() -> None:
    barrier = threading.Barrier(4)

    def meet(item: int) -> int:
        barrier.wait(SOON)
        return item

    async def all_there(item: int) -> None:
        there.add(item)
        while len(there) < 4:
            await asyncio.sleep(0.001)

    there: set[int] = set()
    assert in_sync_task(lambda: merge(meet, range(4))) == [0, 1, 2, 3]
    in_sync_task(lambda: merge(all_there, range(4)))


# ------------------------------------------------------------------------------------------ options


def test_workers_bounds_how_many_run_at_once() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(item: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    in_sync_task(lambda: merge(work, range(12), workers=3))
    assert most == 3


@pytest.mark.parametrize("caller", [in_sync_task, in_async_task, outside])
def test_retries(caller: Callable[[Callable[[], Any]], Any]) -> None:
    tried: list[int] = []

    def flaky(item: int) -> int:
        tried.append(item)
        if tried.count(item) < 3:
            raise OSError(item)
        return item

    assert caller(lambda: merge(flaky, [1, 2], retries=2, retry_delay=0)) == [1, 2]
    assert sorted(tried) == [1, 1, 1, 2, 2, 2]
    tried.clear()
    with pytest.raises(OSError, match="1"):
        caller(lambda: merge(flaky, [1], retries=1, retry_delay=0))


@pytest.mark.parametrize("caller", [in_sync_task, in_async_task, outside])
def test_timeout(caller: Callable[[Callable[[], Any]], Any]) -> None:
    ended = threading.Event()

    async def forever(item: int) -> None:
        await asyncio.sleep(600)

    def long(item: int) -> None:
        ended.wait(SOON)

    for fn in (forever, long):
        with pytest.raises(TaskTimeoutError, match=f"{fn.__name__}.*0.05"):
            caller(partial(merge, fn, [1], timeout=0.05))
    ended.set()


def test_limit_per_minute_paces_the_launches() -> None:
    def launch(item: int) -> float:
        return time.perf_counter()

    times = in_sync_task(lambda: merge(launch, range(4), limit_per_minute=60 / 0.02))
    assert all(later - earlier > 0.01 for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"retries": -1}, "retries"),
        ({"retries": "3"}, "retries"),
        ({"timeout": True}, "timeout"),
        ({"retires": 1}, "retires.*Did you mean 'retries'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    for caller in (in_sync_task, outside):
        with pytest.raises((TypeError, ValueError), match=message):
            caller(lambda: merge(double, [1], **options))


def test_workers_without_iterable_is_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        merge(dict, workers=2)


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(TypeError, match="merge calls a callable, not 3"):
        merge(3, [1])  # type: ignore[call-overload]


def test_an_unknown_environment_is_a_name_error() -> None:
    for caller in (in_sync_task, in_async_task, outside):
        with pytest.raises(NameError, match="nowhere"):
            caller(lambda: merge(double, [1], environment="nowhere"))


def test_the_settings_of_the_weave_hold_for_its_merges() -> None:
    with pytest.raises(ValueError, match="max_pending"), weave(max_pending=2) as w:

        @w.do
        def task() -> Any:
            return merge(double, [1, 2, 3])


def test_the_defaults_of_the_configuration_hold() -> None:
    config(retries=1)
    tried: list[int] = []

    def flaky(item: int) -> int:
        tried.append(item)
        if len(tried) == 1:
            raise OSError
        return item

    assert merge(flaky, [1]) == [1]


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("caller", [in_sync_task, in_async_task, outside])
def test_in_another_process(caller: Callable[[Callable[[], Any]], Any]) -> None:
    config(environments={"elsewhere": {"executor": "stdio", "executor_config": {"processes": 1}}})
    assert os.getpid() not in caller(
        lambda: merge(lambda item: os.getpid(), [1, 2], environment="elsewhere")
    )
    assert caller(lambda: merge(os.getpid, environment="elsewhere")) != os.getpid()


@pytest.mark.backend("stdio")
def test_alone_in_the_default_environment() -> None:
    """What makes a lone merge a weave must not be sent anywhere itself."""
    config(
        default_environment="elsewhere",
        environments={"elsewhere": {"executor": "stdio", "executor_config": {"processes": 1}}},
    )
    assert merge(os.getpid) != os.getpid()
    assert len(set(merge(lambda item: os.getpid(), [1, 2]))) == 1


# ------------------------------------------------------------------------------------------ never a deadlock


@pytest.mark.parametrize("max_workers", [1, 2])
def test_nested_sync_merges_fifty_deep(max_workers: int) -> None:
    def down(depth: int) -> int:
        return 1 + sum(merge(down, [depth - 1])) if depth else 0

    with weave(max_workers=max_workers) as w:

        @w.do
        def task() -> int:
            return down(50)

    assert w.result.task == 50


def test_nested_async_merges_fifty_deep() -> None:
    async def down(depth: int) -> int:
        return 1 + sum(await merge(down, [depth - 1])) if depth else 0

    with weave() as w:

        @w.do
        async def task() -> int:
            return await down(50)

    assert w.result.task == 50


@pytest.mark.parametrize("mapped", [True, False])
def test_sync_and_async_nested_in_each_other(mapped: bool) -> None:
    def sync_down(depth: int) -> int:
        if not depth:
            return 0
        if mapped:
            return 1 + int(sum(merge(async_down, [depth - 1])))
        return 1 + int(merge(partial(async_down, depth - 1)))

    async def async_down(depth: int) -> int:
        if not depth:
            return 0
        if mapped:
            return 1 + sum(await merge(sync_down, [depth - 1]))
        return 1 + int(await merge(partial(sync_down, depth - 1)))

    with weave(max_workers=1) as w:

        @w.do
        def task() -> int:
            return sync_down(50)

    assert w.result.task == 50


def test_a_hundred_mapped_tasks_that_each_merge() -> None:
    with weave(max_workers=1) as w:

        @w.do(range(100))
        def outer(item: int) -> int:
            return int(sum(merge(double, range(item % 5))))

        @w.do(range(100))
        async def outer_async(item: int) -> int:
            return sum(await merge(double, range(item % 5)))

    assert (
        w.result.outer
        == w.result.outer_async
        == [sum(2 * i for i in range(item % 5)) for item in range(100)]
    )


def test_one_thread_that_merges_under_asyncio_run() -> None:
    """The thread holds the only slot while the loop inside it waits for the merge."""

    async def main() -> list[list[int]]:
        return list(await asyncio.gather(*(merge(double, [i]) for i in range(3))))

    with weave(max_workers=1) as w:

        @w.do
        def task() -> Any:
            return asyncio.run(main())

    assert w.result.task == [[0], [2], [4]]


def test_retried_merges_in_one_thread() -> None:
    tried: list[int] = []

    def inner(item: int) -> int:
        tried.append(item)
        if len(tried) < 3:
            raise OSError
        return item

    with weave(max_workers=1, error_mode="raise") as w:

        @w.do(retries=3, retry_delay=0)
        def task() -> Any:
            return merge(inner, [7])

    assert w.result.task == [7]


@pytest.mark.parametrize("form", ["mapped", "single"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_endless_recursion_is_a_recursion_error(kind: str, form: str) -> None:
    deepest = 0

    def sync_down(depth: int) -> Any:
        nonlocal deepest
        deepest = max(deepest, depth)
        if form == "mapped":
            return merge(sync_down, [depth + 1])
        return merge(partial(sync_down, depth + 1))

    async def async_down(depth: int) -> Any:
        nonlocal deepest
        deepest = max(deepest, depth)
        if form == "mapped":
            return await merge(async_down, [depth + 1])
        return await merge(partial(async_down, depth + 1))

    with (
        pytest.raises(RecursionError, match="nested more than 200 deep"),
        weave(max_workers=4) as w,
    ):
        if kind == "sync":

            @w.do
            def task() -> Any:
                return sync_down(0)
        else:

            @w.do
            async def task() -> Any:
                return await async_down(0)

    assert deepest == MERGE_DEPTH


def test_merges_one_after_another_are_not_nested() -> None:
    async def nothing() -> None:
        pass

    with weave() as w:

        @w.do
        async def async_task() -> int:
            for _ in range(MERGE_DEPTH + 10):
                await merge(nothing)
                await merge(double_later, [1])
            return 1

        @w.do
        def sync_task() -> int:
            for _ in range(MERGE_DEPTH + 10):
                merge(double, [1])
            return 1

    assert w.result.async_task == w.result.sync_task == 1


# ------------------------------------------------------------------------------------------ contexts

variable: ContextVar[str] = ContextVar("variable", default="unset")


def test_merged_calls_see_the_context_of_the_caller_and_keep_theirs() -> None:
    seen: list[str] = []

    def look(item: int) -> str:
        found = variable.get()
        variable.set(f"by item {item}")
        return found

    async def look_later(item: int) -> str:
        return look(item)

    variable.set("caller")
    with weave() as w:

        @w.do
        def sync_task() -> Any:
            before = merge(look, [1, 2])
            variable.set("sync task")
            return (
                before,
                merge(look, [1, 2]),
                merge(look_later, [1, 2]),
                merge(lambda: look(3)),
                variable.get(),
            )

        @w.do
        async def async_task() -> Any:
            before = await merge(look_later, [1, 2])
            variable.set("async task")
            single = await merge(lambda: look(3))
            alone = await merge(partial(look_later, 3))
            return (
                before,
                await merge(look, [1, 2]),
                await merge(look_later, [1, 2]),
                single,
                alone,
                variable.get(),
            )

    before = ["caller"] * 2
    own = ["sync task"] * 2
    assert w.result.sync_task == (before, own, own, own[0], own[0])
    own = ["async task"] * 2
    assert w.result.async_task == (before, own, own, own[0], own[0], own[0])
    assert variable.get() == "caller"
    assert merge(look, [1, 2]) == before
    assert variable.get() == "caller"
    assert not seen


# ------------------------------------------------------------------------------------------ failures, cancels, ends


def test_the_first_failure_ends_the_rest() -> None:
    launched: list[int] = []
    cancelled: list[int] = []

    async def work(item: int) -> None:
        launched.append(item)
        if item == 2:
            raise LookupError(item)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(LookupError):
        in_sync_task(lambda: merge(work, range(100), workers=3))
    assert launched == [0, 1, 2]
    assert sorted(cancelled) == [0, 1]


def test_a_task_can_catch_the_failure_of_its_merge_and_go_on() -> None:
    def fail(item: int) -> None:
        raise LookupError(item)

    with weave() as w:

        @w.do
        def sync_task() -> Any:
            try:
                merge(fail, [1])
            except LookupError:
                return merge(double, [1])

        @w.do
        async def async_task() -> Any:
            try:
                await merge(fail, [1])
            except LookupError:
                return await merge(double, [1])

    assert w.result.sync_task == w.result.async_task == [2]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration("x"), GeneratorExit()]
)
def test_strange_exceptions_neither_hang_nor_vanish(error: BaseException) -> None:
    def fail(item: int) -> None:
        raise error

    expected = (RuntimeError, StopIteration) if isinstance(error, StopIteration) else type(error)
    for caller in (in_sync_task, outside):
        with pytest.raises(expected):
            caller(lambda: merge(fail, [1]))


def test_a_failing_sibling_ends_the_merges_that_wait() -> None:
    released = threading.Event()
    ends: list[BaseException] = []
    merging = threading.Event()
    cleaned: list[str] = []

    async def forever(item: int) -> None:
        merging.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    with pytest.raises(LookupError), weave() as w:

        @w.do
        def waits() -> None:
            try:
                merge(forever, [1])
            except BaseException as error:
                ends.append(error)
                raise
            finally:
                released.set()

        @w.do
        async def fails() -> None:
            while not merging.is_set():
                await asyncio.sleep(0.001)
            raise LookupError

    assert cleaned == ["up"]  # the block has waited for the coroutines it started
    assert released.wait(SOON)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert w.result.cancelled == ("waits",)


def test_cancelling_an_async_weave_ends_the_merges_that_wait() -> None:
    released = threading.Event()
    cleaned: list[str] = []

    async def main() -> None:
        merging: list[int] = []

        async def forever(item: int) -> None:
            merging.append(item)
            try:
                await asyncio.sleep(600)
            finally:
                await asyncio.sleep(0.01)
                cleaned.append("up")

        async def run() -> None:
            async with weave() as w:

                @w.do
                def waits() -> None:
                    try:
                        merge(forever, [1])
                    finally:
                        released.set()

                @w.do
                async def waits_too() -> None:
                    await merge(forever, [1])

        task = asyncio.create_task(run())
        while len(merging) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["up", "up"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert released.wait(SOON)


def test_an_abandoned_thread_starts_nothing_more() -> None:
    """The weave has been stopped and is over when the thread comes to its merge."""
    begun, go, over = threading.Event(), threading.Event(), threading.Event()
    ran: list[int] = []
    ends: list[BaseException] = []

    with pytest.raises(LookupError), weave() as w:

        @w.do
        def late() -> None:
            begun.set()
            go.wait(SOON)
            try:
                merge(ran.append, [1])
            except BaseException as error:
                ends.append(error)
            finally:
                over.set()

        @w.do
        def fails() -> None:
            begun.wait(SOON)
            raise LookupError

    go.set()
    assert over.wait(SOON)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert not ran


@pytest.mark.parametrize("mapped", [True, False])
def test_a_merge_ends_with_the_attempt_that_made_it(mapped: bool) -> None:
    """A timed-out attempt must not go on launching items beside the next one."""
    launched: list[tuple[int, int]] = []
    attempts = 0
    lock = threading.Lock()

    def work(attempt: int, item: int) -> int:
        with lock:
            launched.append((attempt, item))
        if attempt == 1:
            time.sleep(0.01)
        return item

    def task_body() -> Any:
        nonlocal attempts
        attempts += 1
        attempt = attempts
        return merge(partial(work, attempt), range(100_000 if attempt == 1 else 3), workers=1)

    with weave() as w:
        if mapped:

            @w.do([1], timeout=0.2, retries=5)
            def task(item: int) -> Any:
                return task_body()
        else:

            @w.do(timeout=0.2, retries=5)
            def task() -> Any:
                return task_body()

        @w.do
        async def later(task: Any) -> int:
            before = len(launched)
            await asyncio.sleep(0.1)
            return len(launched) - before

    assert w.result.task == ([[0, 1, 2]] if mapped else [0, 1, 2])
    assert w.result.later == 0


def test_a_thread_that_nobody_waits_for_is_released_when_the_weave_ends() -> None:
    started, ended = threading.Event(), threading.Event()
    ends: list[BaseException] = []

    async def forever(item: int) -> None:
        started.set()
        await asyncio.sleep(600)

    with weave() as w:

        @w.do
        async def leaves_a_thread() -> None:
            from contextvars import copy_context

            def work() -> None:
                try:
                    merge(forever, [1])
                except BaseException as error:
                    ends.append(error)
                finally:
                    ended.set()

            threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
            while not started.is_set():
                await asyncio.sleep(0.001)

    assert ended.wait(SOON)
    assert isinstance(ends[0], asyncio.CancelledError)


def test_after_the_weave_a_merge_is_one_outside_of_any_weave() -> None:
    go = threading.Event()
    merged: list[Any] = []
    threads: list[threading.Thread] = []

    with weave() as w:

        @w.do
        def leaves_a_thread() -> None:
            from contextvars import copy_context

            def work() -> None:
                go.wait(SOON)
                merged.append(merge(double, [1, 2]))

            threads.append(threading.Thread(target=copy_context().run, args=(work,)))
            threads[0].start()

    go.set()
    threads[0].join(SOON)
    assert merged == [[2, 4]]


def test_notes_say_which_call_it_was() -> None:
    def fail(item: int) -> None:
        if item == 2:
            raise LookupError("mine")

    for caller in (in_sync_task, outside):
        with pytest.raises(LookupError) as caught:
            caller(lambda: merge(fail, [1, 2]))
        assert "in task 'fail', item 1 (value 2)" in caught.value.__notes__


def test_merges_in_many_threads_at_once() -> None:
    results: list[WoveResult] = []

    def work() -> None:
        with weave(max_workers=2) as w:

            @w.do(range(5))
            def outer(item: int) -> Any:
                return merge(double, [item])

        results.append(w.result)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert [result.outer for result in results] == [[[0], [2], [4], [6], [8]]] * 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_of_a_task_merges_on_its_own() -> None:
    def in_child() -> int:
        pid = os.fork()
        if not pid:
            try:
                os._exit(0 if merge(double, [1, 2]) == [2, 4] else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_sync_task(in_child) == 0

    async def in_child_of_loop() -> int:
        return in_child()

    # Off a loop the child merges as outside of any weave.
    assert in_async_task(lambda: asyncio.to_thread(in_child)) == 0


def test_a_weave_inside_ends_with_the_attempt_that_made_it() -> None:
    launched: list[tuple[int, int]] = []
    attempts = 0
    lock = threading.Lock()

    with weave() as w:

        @w.do(timeout=0.1, retries=1)
        def task() -> Any:
            nonlocal attempts
            attempts += 1
            attempt = attempts
            with weave() as inner:

                @inner.do(range(100_000 if attempt == 1 else 3), workers=1)
                def work(item: int) -> int:
                    with lock:
                        launched.append((attempt, item))
                    time.sleep(0.01)
                    return item

            return inner.result.work

        @w.do
        async def later(task: Any) -> int:
            before = len(launched)
            await asyncio.sleep(0.1)
            return len(launched) - before

    assert w.result.task == [0, 1, 2]
    assert w.result.later == 0
