"""One task, many items: lazy, bounded, paced, in order."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tests.support.forms import FORMS, PATIENCE, attempt, run, soon

from wove import WoveResult, weave

CALLS = ["sync", "async", "returning", "generator", "async generator", "retried sync", "retried async", "timed sync",
         "timed async"]  # fmt: skip


class Boom(Exception):
    pass


def mapped(w: weave, call: str, source: Any, fn: Callable[[Any], Any], **options: Any) -> None:
    """Map *fn* over *source* as a callable of the kind *call*; the task is `items`."""

    def items(item: Any) -> Any:
        return fn(item)

    async def async_items(item: Any) -> Any:
        await asyncio.sleep(0)
        return fn(item)

    def returning(item: Any) -> Any:
        return async_items(item)

    def generator(item: Any) -> Any:
        yield fn(item)

    async def async_generator(item: Any) -> Any:
        yield fn(item)

    kind, limits = call, {}
    if " " in call and call != "async generator":
        limit, kind = call.split(" ")
        limits = {"retries": 1} if limit == "retried" else {"timeout": PATIENCE}
    made: dict[str, Any] = {
        "sync": items,
        "async": async_items,
        "returning": returning,
        "generator": generator,
        "async generator": async_generator,
    }
    made[kind].__name__ = "items"
    w.do(source, **limits, **options)(made[kind])


def plain(call: str, results: list[Any]) -> list[Any]:
    return [result[0] for result in results] if "generator" in call else results


class Counted:
    """An iterable that knows how much of it was taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pulled = 0

    def __iter__(self) -> Iterator[int]:
        for i in range(self.count):
            self.pulled += 1
            yield i


class AsyncCounted(Counted):
    __iter__ = None  # type: ignore[assignment]

    async def __aiter__(self) -> AsyncIterator[int]:
        for i in range(self.count):
            self.pulled += 1
            await asyncio.sleep(0)
            yield i


# ---------------------------------------------------------------------- sources and results


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("workers", [None, 1, 3])
def test_the_result_is_a_list_in_the_order_of_the_items(
    form: str, call: str, workers: int | None
) -> None:
    done = run(form, lambda w: mapped(w, call, range(20), lambda item: item * 2, workers=workers))
    assert plain(call, done.items) == [i * 2 for i in range(20)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2, 3],
        lambda: (1, 2, 3),
        lambda: {1: "a", 2: "b", 3: "c"},
        lambda: dict.fromkeys([1, 2, 3]).keys(),
        lambda: iter([1, 2, 3]),
        lambda: (i for i in (1, 2, 3)),
        lambda: map(int, "123"),
        lambda: b"\x01\x02\x03",
        lambda: Counted(4),
        lambda: AsyncCounted(4),
        lambda: type("Old", (), {"__getitem__": lambda self, i: [1, 2, 3][i]})(),
    ],
)
@pytest.mark.parametrize("call", ["sync", "async", "retried sync"])
def test_any_iterable(form: str, call: str, make: Callable[[], Any]) -> None:
    result = run(form, lambda w: mapped(w, call, make(), lambda item: item))
    assert [item for item in result.items if item] == [1, 2, 3]


@pytest.mark.parametrize(
    "source", [[], (), {}, iter(()), Counted(0), AsyncCounted(0)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("call", CALLS)
def test_an_empty_source(call: str, source: Any) -> None:
    if isinstance(source, type(iter(()))):
        source = iter(())
    for form in FORMS:
        assert run(form, lambda w: mapped(w, call, source, lambda item: item)).items == []


def test_the_source_is_named(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        async def made() -> list[int]:
            return [1, 2]

        @w.do("made")
        def each(item: int) -> int:
            return item * 10

        @w.do("given")
        async def other(item: int, made: list[int]) -> int:
            return item + len(made)

        @w.do("data")
        def key(item: str) -> str:
            return item

    result = run(form, declare, given=(5, 6))
    assert (result.each, result.other, result.key) == ([10, 20], [7, 8], ["given"])


@pytest.mark.parametrize("call", ["sync", "async"])
def test_what_is_not_iterable_is_a_type_error_of_the_task(form: str, call: str) -> None:
    def declare(w: weave) -> None:
        w.do(lambda: 7)
        mapped(w, call, "<lambda>", lambda item: item)

    done = attempt(form, declare)
    assert type(done.error) is TypeError
    assert "'items'" in str(done.error)
    assert "int is not iterable" in str(done.error)


@pytest.mark.parametrize("source", [7, None, 1.5, object()])
def test_what_is_not_iterable_is_refused_at_the_declaration_where_it_is_there(source: Any) -> None:
    with pytest.raises(TypeError, match="maps over"), weave() as w:
        w.do(source)(lambda item: item)


class _Sources:
    @staticmethod
    def sync() -> Iterator[int]:
        yield 1
        yield 2
        raise Boom("source")

    @staticmethod
    async def asynchronous() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise Boom("source")


@pytest.mark.parametrize("source", [_Sources.sync, _Sources.asynchronous])
@pytest.mark.parametrize("call", CALLS)
def test_an_exception_of_the_source_comes_out_as_it_is(
    form: str, call: str, source: Callable[[], Any]
) -> None:
    done = attempt(form, lambda w: mapped(w, call, source(), lambda item: item, workers=2))
    assert isinstance(done.error, Boom)
    assert done.error.__notes__ == ["in task 'items'"]


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("call", ["sync", "async"])
def test_a_rude_exception_of_the_source_comes_out_too(
    form: str, call: str, error: type[BaseException]
) -> None:
    class Source:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            raise error("source")

    class AsyncSource:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            raise error("source")

    for source in (Source(), AsyncSource()):
        done = attempt(form, lambda w, source=source: mapped(w, call, source, lambda item: item))
        assert type(done.error) is error
        assert done.error.args == ("source",)


def test_an_iterable_whose_iter_fails(form: str) -> None:
    class Source:
        def __iter__(self) -> Any:
            raise Boom("iter")

    assert isinstance(
        attempt(form, lambda w: mapped(w, "sync", Source(), lambda item: item)).error, Boom
    )


# ---------------------------------------------------------------------- how many at once


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "make", [lambda: range(12), lambda: iter(range(12)), lambda: AsyncCounted(12)]
)
def test_workers_bounds_how_many_run_at_once(form: str, call: str, make: Callable[[], Any]) -> None:
    now = most = 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    async def async_body(item: int) -> int:
        enter()
        await asyncio.sleep(0.001)
        leave()
        return item

    def body(item: int) -> int:
        enter()
        time.sleep(0.001)
        leave()
        return item

    def declare(w: weave) -> None:
        if call in ("async", "retried async", "timed async"):
            options: dict[str, Any] = {
                "retried async": {"retries": 1},
                "timed async": {"timeout": 9},
            }.get(call, {})
            w.do(make(), workers=3, **options)(async_body)
        elif call == "returning":
            w.do(make(), workers=3)(lambda item: async_body(item))
        else:
            mapped(w, call, make(), body, workers=3)

    assert plain(call, run(form, declare).final) == list(range(12))
    assert (
        (1 if call == "async generator" else 2) <= most <= 3
    )  # one that never awaits keeps the loop


@pytest.mark.parametrize("call", ["sync", "async", "retried sync"])
def test_without_workers_all_items_run_at_once(form: str, call: str) -> None:
    barrier = threading.Barrier(30)

    def declare(w: weave) -> None:
        if call == "async":
            gate = asyncio.Barrier(30)

            @w.do(range(30))
            async def items(item: int) -> int:
                async with asyncio.timeout(PATIENCE):
                    await gate.wait()
                return item
        else:
            mapped(w, call, range(30), lambda item: (barrier.wait(PATIENCE), item)[1])

    assert run(form, declare).items == list(range(30))


def test_sync_items_use_no_more_threads_than_workers(form: str) -> None:
    threads: set[int] = set()
    barrier = threading.Barrier(2)

    def body(item: int) -> None:
        threads.add(threading.get_ident())
        if item < 2:
            barrier.wait(PATIENCE)

    run(form, lambda w: mapped(w, "sync", range(200), body, workers=2))
    assert len(threads) <= 2


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Counted, AsyncCounted])
def test_the_source_is_pulled_as_far_as_workers_need(
    form: str, call: str, kind: type[Counted]
) -> None:
    """Never more than a fixed number of items, given by `workers`, are beyond those that have ended."""
    source = kind(200)
    ended = 0
    beyond: list[int] = []

    def body(item: int) -> None:
        nonlocal ended
        beyond.append(source.pulled - ended)
        ended += 1

    run(form, lambda w: mapped(w, call, source, body, workers=4))
    assert source.pulled == 200
    assert max(beyond) <= 3 * 4


def test_a_failure_leaves_the_rest_of_the_source_alone(form: str) -> None:
    source = Counted(100_000)

    def body(item: int) -> None:
        if item == 5:
            raise Boom

    assert isinstance(
        attempt(form, lambda w: mapped(w, "sync", source, body, workers=2)).error, Boom
    )
    assert source.pulled < 100


@pytest.mark.parametrize("call", ["sync", "async", "retried sync"])
def test_a_source_that_blocks_holds_up_nobody(form: str, call: str) -> None:
    """Not its own earlier items, and not the rest of the weave."""
    first, other = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        yield first.wait(PATIENCE) + 0
        yield other.wait(PATIENCE) + 0

    def declare(w: weave) -> None:
        mapped(w, call, slow(), lambda item: first.set() if item == 0 else item, workers=4)

        @w.do
        async def a() -> None:
            await asyncio.sleep(0)

        @w.do
        def b(a: None) -> None:
            other.set()

    assert run(form, declare).items == [None, 1, 1]


def test_an_iterator_may_be_fed_by_the_items(form: str) -> None:
    import queue

    todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    todo.put(3)

    def body(item: int) -> int:
        todo.put(item - 1 if item else None)
        return item

    result = run(
        form,
        lambda w: mapped(
            w, "sync", iter(lambda: todo.get(timeout=PATIENCE), None), body, workers=2
        ),
    )
    assert result.items == [3, 2, 1, 0]


def test_an_async_generator_is_advanced_inside_one_task(form: str) -> None:
    tasks: set[Any] = set()

    async def source() -> AsyncIterator[int]:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for i in range(5):
                tasks.add(asyncio.current_task())
                yield await group.create_task(asyncio.sleep(0, i))

    assert run(
        form, lambda w: mapped(w, "async", source(), lambda item: item, workers=2)
    ).items == [0, 1, 2, 3, 4]
    assert len(tasks) == 1


@pytest.mark.parametrize("call", ["sync", "async"])
def test_an_async_source_is_closed_when_an_item_fails(form: str, call: str) -> None:
    closed = threading.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for i in range(100):
                yield i
        finally:
            closed.set()

    def body(item: int) -> None:
        raise Boom

    assert isinstance(
        attempt(form, lambda w: mapped(w, call, source(), body, workers=2)).error, Boom
    )
    assert closed.is_set()


# ---------------------------------------------------------------------- 200,000 items


@pytest.mark.parametrize("form", ["with", "async with"])
def test_many_items_take_few_asyncio_tasks_and_threads(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    original = asyncio.Task

    class Task(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            nonlocal made
            made += 1
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(asyncio, "Task", Task)
    threads = threading.active_count()

    def declare(w: weave) -> None:
        @w.do(range(200_000), workers=8)
        async def asynchronous(item: int) -> int:
            return item

        @w.do(range(50_000), workers=8)
        def synchronous(item: int) -> int:
            return item

        @w.do(range(5_000), workers=8)
        async def waiting(item: int) -> int:
            await asyncio.sleep(0)
            return item

    result = run(form, declare)
    assert [len(items) for items in result] == [200_000, 50_000, 5_000]
    assert result.asynchronous == list(range(200_000))
    assert made < 2_000
    assert threading.active_count() - threads <= 9


@pytest.mark.parametrize(
    "make", [lambda: range(4000), lambda: iter(range(4000)), lambda: Counted(4000)]
)
def test_threads_that_take_items_at_the_same_time_do_not_mix_them_up(
    make: Callable[[], Any],
) -> None:
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        result = run("with", lambda w: mapped(w, "sync", make(), lambda item: item, workers=8))
    finally:
        sys.setswitchinterval(switch)
    assert result.items == list(range(4000))


# ---------------------------------------------------------------------- max_pending


@pytest.mark.parametrize(
    "make",
    [lambda: range(6), lambda: iter(range(6)), lambda: AsyncCounted(6), lambda: Counted(10**9)],
)
@pytest.mark.parametrize("call", CALLS)
def test_max_pending_refuses_before_anything_runs(
    form: str, call: str, make: Callable[[], Any]
) -> None:
    ran: list[int] = []
    source = make()
    done = attempt(form, lambda w: mapped(w, call, source, ran.append, workers=2), max_pending=5)
    assert type(done.error) is ValueError
    assert "'items'" in str(done.error)
    assert "max_pending=5" in str(done.error)
    assert ran == []
    if isinstance(source, Counted):
        assert source.pulled < 5 + 100


@pytest.mark.parametrize(
    "make", [lambda: range(5), lambda: iter(range(5)), lambda: AsyncCounted(5)]
)
@pytest.mark.parametrize("call", CALLS)
def test_max_pending_lets_as_many_through(form: str, call: str, make: Callable[[], Any]) -> None:
    done = run(form, lambda w: mapped(w, call, make(), lambda item: item, workers=2), max_pending=5)
    assert plain(call, done.items) == [0, 1, 2, 3, 4]


def test_max_pending_counts_the_items_of_a_generator_task(form: str) -> None:
    ran: list[int] = []

    def declare(w: weave, count: int) -> None:
        @w.do
        def made() -> Iterator[int]:
            yield from range(count)

        w.do("made")(lambda item: ran.append(item))

    assert type(attempt(form, lambda w: declare(w, 6), max_pending=5).error) is ValueError
    assert ran == []
    assert len(run(form, lambda w: declare(w, 5), max_pending=5).final) == 5


# ---------------------------------------------------------------------- pace

INTERVAL = 0.1
PER_MINUTE = 60 / INTERVAL


def assert_paced(launches: list[float], count: int) -> None:
    """Late a launch may be by any time; but then the next one must not follow at once.

    What is looked at is when the launch was written down, which a busy machine may put off a little.
    """
    assert len(launches) == count
    assert min(after - before for before, after in itertools.pairwise(launches)) > 0.8 * INTERVAL


def launched(result: WoveResult) -> list[float]:
    return [record.started for record in result.run_records]


@pytest.mark.parametrize("call", ["sync", "async", "retried async", "timed sync"])
@pytest.mark.parametrize("make", [lambda: range(5), lambda: AsyncCounted(5), lambda: Counted(5)])
def test_launches_are_paced_evenly(form: str, call: str, make: Callable[[], Any]) -> None:
    began = time.perf_counter()
    done = run(
        form, lambda w: mapped(w, call, make(), lambda item: item, limit_per_minute=PER_MINUTE)
    )
    assert done.items == [0, 1, 2, 3, 4]
    assert_paced(launched(done), 5)
    assert time.perf_counter() - began < 60 * INTERVAL


def test_the_first_item_of_a_slow_pace_goes_at_once_and_the_last_does_not_wait_for_another_turn(
    form: str,
) -> None:
    for source in (Counted(1), AsyncCounted(1), [0]):
        began = time.perf_counter()
        run(
            form,
            lambda w, source=source: mapped(
                w, "async", source, lambda item: item, limit_per_minute=1
            ),
        )
        assert time.perf_counter() - began < PATIENCE


def test_retries_are_paced_as_well(form: str) -> None:
    launches: list[float] = []

    async def body(item: int) -> int:
        launches.append(time.perf_counter())
        if len(launches) <= 3:
            raise Boom
        return item

    def declare(w: weave) -> None:
        w.do(range(3), limit_per_minute=PER_MINUTE, retries=3)(body)

    assert run(form, declare).body == [0, 1, 2]
    assert_paced(sorted(launches), 6)


def test_time_without_items_is_not_made_up_for_by_a_burst(form: str) -> None:
    async def source() -> AsyncIterator[int]:
        yield 0
        await asyncio.sleep(8 * INTERVAL)
        for i in range(1, 5):
            yield i

    def declare(w: weave) -> None:
        @w.do(source(), limit_per_minute=PER_MINUTE)
        async def items(item: int) -> None: ...

    assert_paced(launched(run(form, declare)), 5)


def test_a_loop_that_was_busy_does_not_make_up_for_it_by_a_burst() -> None:
    def declare(w: weave) -> None:
        @w.do(range(6), limit_per_minute=PER_MINUTE)
        async def items(item: int) -> None:
            if item == 1:
                time.sleep(4.5 * INTERVAL)

    assert_paced(launched(run("with", declare)), 6)


def test_a_pace_does_not_wait_for_the_items_before(form: str) -> None:
    def declare(w: weave) -> None:
        both = asyncio.Barrier(3)

        @w.do(range(3), limit_per_minute=PER_MINUTE)
        async def items(item: int) -> None:
            async with asyncio.timeout(PATIENCE):
                await both.wait()

    run(form, declare)


# ---------------------------------------------------------------------- calls of every kind


def test_the_item_goes_where_the_signature_wants_it(form: str) -> None:
    def declare(w: weave) -> None:
        w.do([1])(first)
        w.do([1])(last)
        w.do([1])(slashed)
        w.do([1])(keyword)
        w.do([1])(gap)
        w.do(["a", "bb"])(len)
        w.do(["1", "2"])(int)

    def first(item: int, a: str, b: str) -> Any:
        return item, a, b

    def last(a: str, b: str, item: int) -> Any:
        return a, b, item

    def slashed(a: str, item: int, /, b: str) -> Any:
        return a, item, b

    def keyword(a: str, *, item: int, other: int = 5) -> Any:
        return a, item, other

    def gap(a: str, unused: int = 7, item: int = 8, b: str = "?", /) -> Any:
        return a, unused, item, b

    def gap_of_one(a: str, item: int = 8, /) -> Any:
        return a, item

    with pytest.raises(TypeError, match="2 parameters"):
        run(form, declare, a="A", b="B")

    def again(w: weave) -> None:
        for fn in (first, last, slashed, keyword, gap_of_one):
            w.do([1])(fn)
        w.do(["a", "bb"])(len)
        w.do(["1", "2"])(int)

    assert list(run(form, again, a="A", b="B")) == [
        [(1, "A", "B")],
        [("A", "B", 1)],
        [("A", 1, "B")],
        [("A", 1, 5)],
        [("A", 1)],
        [1, 2],
        [1, 2],
    ]


def test_items_that_are_awaitable_or_odd_pass_through(form: str) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise Boom

        __hash__ = None  # type: ignore[assignment]

        def __bool__(self) -> bool:
            raise Boom

    odd = [Odd(), None, StopIteration, ...]
    for call in ("sync", "async", "retried sync"):
        result = run(form, lambda w, call=call: mapped(w, call, odd, lambda item: item))
        assert all(a is b for a, b in zip(result.items, odd, strict=True))


def test_an_item_of_a_sync_call_that_is_given_up_does_not_come_back(form: str) -> None:
    begun, release = threading.Event(), threading.Event()
    ended = threading.Semaphore(0)

    def stuck(item: int) -> int:
        begun.set()
        release.wait(PATIENCE)
        ended.release()
        return item

    def declare(w: weave) -> None:
        w.do(range(3))(stuck)

        @w.do
        async def bad() -> None:
            while not begun.is_set():
                await asyncio.sleep(0.002)
            raise Boom

    done = attempt(form, declare)
    assert isinstance(done.error, Boom)
    records = len(done.result.run_records)
    release.set()
    soon(lambda: ended.acquire(blocking=False))
    assert len(done.result.run_records) == records


# ---------------------------------------------------------------------- any source, any bound


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.integers(), max_size=40),
    workers=st.none() | st.integers(1, 9),
    kind=st.sampled_from(
        ["list", "iterator", "async", "task", "generator task", "async generator task"]
    ),
    call=st.sampled_from(CALLS),
    form=st.sampled_from(FORMS),
    waits=st.randoms(use_true_random=False),
)
def test_order_is_kept_whatever_is_mapped(
    items: list[int], workers: int | None, kind: str, call: str, form: str, waits: Any
) -> None:
    async def asynchronous() -> AsyncIterator[int]:
        for item in items:
            if waits.random() < 0.2:
                await asyncio.sleep(0)
            yield item

    def generator() -> Iterator[int]:
        yield from items

    def declare(w: weave) -> None:
        source: Any = items
        if kind == "iterator":
            source = iter(items)
        elif kind == "async":
            source = asynchronous()
        elif kind != "list":
            fn: Any = {
                "task": lambda: items,
                "generator task": generator,
                "async generator task": asynchronous,
            }[kind]
            fn.__name__ = source = "source"
            w.do(fn)
        mapped(w, call, source, lambda item: (item, item), workers=workers)

    assert plain(call, run(form, declare).items) == [(item, item) for item in items]


@pytest.mark.parametrize("workers", [None, 8])
@pytest.mark.parametrize("source", [range, lambda n: iter(range(n))], ids=["container", "iterator"])
def test_many_threads_do_not_swap_their_items(
    workers: int | None, source: Callable[[int], Any]
) -> None:
    # Often and with many items: threads change places every few milliseconds.
    for _ in range(10):
        with weave() as w:

            @w.do(source(10_000 if source is range else 500), workers=workers)
            def same(item: int) -> int:
                return item

        assert w.result.same == sorted(w.result.same)
