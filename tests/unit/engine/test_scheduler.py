"""One run of a plan: who starts when, and what becomes of everybody when something fails."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run

from wove import TaskCancelledError, weave

RUDE = [
    SystemExit(3),
    KeyboardInterrupt("mine"),
    GeneratorExit("mine"),
    asyncio.CancelledError("mine"),
]
POLITE = [
    ValueError("mine"),
    StopAsyncIteration("mine"),
    ExceptionGroup("mine", [ValueError("inner")]),
]
named_by_type = [type(error).__name__ for error in [*RUDE, *POLITE]]


class Boom(Exception):
    pass


# ---------------------------------------------------------------------- dataflow


def test_a_task_gets_the_results_that_its_parameters_name(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def total(left: int, right: int, base: int) -> int:
            return left + right + base

        @w.do
        def left(base: int) -> int:
            return base + 1

        @w.do
        async def right(left: int) -> int:
            return left * 10

    assert run(form, declare, base=1).total == 2 + 20 + 1


def test_a_task_starts_the_moment_its_own_inputs_are_there(form: str) -> None:
    """A chain gets through beside a task of its first tier that waits for the end of the chain."""
    over = threading.Event()

    def declare(w: weave) -> None:
        @w.do
        def slow() -> bool:
            return over.wait(PATIENCE)

        @w.do
        def a() -> int:
            return 1

        @w.do
        async def b(a: int) -> int:
            return a + 1

        @w.do
        def c(b: int) -> int:
            over.set()
            return b + 1

    result = run(form, declare)
    assert (result.slow, result.c) == (True, 3)


def test_async_tasks_wait_beside_each_other(form: str) -> None:
    count = 50

    def declare(w: weave) -> None:
        barrier = asyncio.Barrier(count)

        async def meet() -> None:
            async with asyncio.timeout(PATIENCE):
                await barrier.wait()

        for i in range(count):
            w.do(named(f"t{i}", meet))

    assert list(run(form, declare)) == [None] * count


def test_sync_tasks_run_beside_each_other(form: str) -> None:
    barrier = threading.Barrier(20)

    def declare(w: weave) -> None:
        for i in range(20):
            w.do(named(f"t{i}", lambda: barrier.wait(PATIENCE)))

    assert sorted(run(form, declare)) == list(range(20))


def test_max_workers_bounds_the_threads(form: str) -> None:
    """As many as are allowed work at once, and no more."""
    most = now = 0
    full = threading.Condition()

    def work() -> None:
        nonlocal most, now
        with full:
            now += 1
            most = max(most, now)
            full.notify_all()
            # The first ones wait for each other: a run one after the other would never get there.
            assert full.wait_for(lambda: most >= 3, PATIENCE)
        threading.Event().wait(0.002)
        with full:
            now -= 1

    def declare(w: weave) -> None:
        for i in range(20):
            w.do(named(f"t{i}", work))
        w.do(range(20), retries=1)(named("mapped", lambda item: work()))
        w.do(range(20))(named("plainly_mapped", lambda item: work()))

    run(form, declare, max_workers=3)
    assert most == 3


def test_nothing_to_do(form: str) -> None:
    result = run(form, lambda w: None)
    assert list(result) == []
    assert result.final is None


def test_a_long_chain(form: str) -> None:
    def declare(w: weave) -> None:
        w.do(named("t0", lambda: 0))
        for i in range(1, 300):
            space: dict[str, Any] = {}
            exec(f"{'async ' * (i % 2)}def t{i}(t{i - 1}): return t{i - 1} + 1", space)
            w.do(space[f"t{i}"])

    assert run(form, declare).final == 299


# ---------------------------------------------------------------------- what tasks may do


def test_tasks_may_use_asyncio_as_they_like(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        async def group() -> list[int]:
            async with asyncio.TaskGroup() as tasks:
                made = [tasks.create_task(asyncio.sleep(0, i)) for i in range(3)]
            return [task.result() for task in made]

        @w.do
        async def timeout() -> str:
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(PATIENCE)
            except TimeoutError:
                return "timed out"
            return "?"

        @w.do
        async def thread() -> bool:
            return (
                await asyncio.to_thread(threading.current_thread) is not threading.current_thread()
            )

        @w.do
        def own_loop() -> int:
            return asyncio.run(asyncio.sleep(0, 7))

        @w.do(range(3), workers=2, retries=1, timeout=PATIENCE)
        async def mapped(item: int) -> int:
            async with asyncio.TaskGroup() as tasks:
                made = tasks.create_task(asyncio.sleep(0, item))
            return made.result()

        @w.do
        async def gathered() -> list[int]:
            return await asyncio.gather(*(asyncio.sleep(0, i) for i in range(3)))

    result = run(form, declare)
    assert list(result) == [[0, 1, 2], "timed out", True, 7, [0, 1, 2], [0, 1, 2]]


def test_a_cancel_that_a_task_leaves_pending_on_itself_hurts_nobody_else(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        async def first() -> int:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            return 1

        @w.do
        async def second() -> int:
            await asyncio.sleep(0)
            return 2

        @w.do
        async def third(first: int) -> int:
            await asyncio.sleep(0)
            return 3

        @w.do(range(5), workers=1)
        async def mapped(item: int) -> int:
            await asyncio.sleep(0)
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            return item

    assert list(run(form, declare)) == [1, 2, 3, [0, 1, 2, 3, 4]]


def test_tasks_that_a_task_leaves_running_do_not_hold_up_the_weave(form: str) -> None:
    ended = threading.Event()

    async def straggler() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.set()

    def declare(w: weave) -> None:
        @w.do
        async def leaves() -> Any:
            left = asyncio.get_running_loop().create_task(straggler())
            await asyncio.sleep(0)
            return left

    run(form, declare)
    assert ended.wait(
        PATIENCE
    )  # asyncio.run cancels what is left, and so does a weave with a loop of its own


def test_callbacks_that_one_weave_leaves_on_its_loop_do_not_run_in_the_next() -> None:
    hits: list[str] = []
    with weave() as w:

        @w.do
        async def leaves() -> None:
            asyncio.get_running_loop().call_later(0.05, hits.append, "late")

    with weave() as w:

        @w.do
        async def waits() -> None:
            await asyncio.sleep(0.1)

    assert hits == []


def test_callbacks_that_are_due_when_a_weave_ends_belong_to_it() -> None:
    hits: list[int] = []
    for number in range(2):
        before = list(hits)
        with weave() as w:

            @w.do
            async def leaves(number: int = number) -> list[int]:
                loop = asyncio.get_running_loop()
                loop.call_soon(hits.append, number)
                return list(hits)

        assert w.result.leaves == before


# ---------------------------------------------------------------------- the first failure


KINDS = ["sync", "async", "returning", "mapped sync", "mapped async", "mapped returning", "generator",
         "async generator",
         "limited sync", "limited async", "limited mapped sync", "limited mapped async", "streaming",
         "streaming async"]  # fmt: skip


def failing(w: weave, kind: str, error: BaseException, name: str = "bad") -> None:
    """Declare a task of *kind* that raises *error*."""

    async def coroutine() -> None:
        raise error

    def bad() -> Any:
        raise error

    async def async_bad() -> Any:
        raise error

    def returning() -> Any:
        return coroutine()

    def bad_item(item: int) -> Any:
        raise error

    async def async_bad_item(item: int) -> Any:
        raise error

    def returning_item(item: int) -> Any:
        return coroutine()

    def generator() -> Any:
        yield 1
        raise error

    async def async_generator() -> Any:
        yield 1
        raise error

    limit = {"timeout": PATIENCE, "retries": 0}
    declare: dict[str, Callable[[], object]] = {
        "sync": lambda: w.do(named(name, bad)),
        "async": lambda: w.do(named(name, async_bad)),
        "returning": lambda: w.do(named(name, returning)),
        "mapped sync": lambda: w.do([0])(named(name, bad_item)),
        "mapped async": lambda: w.do([0])(named(name, async_bad_item)),
        "mapped returning": lambda: w.do([0])(named(name, returning_item)),
        "generator": lambda: w.do(named(name, generator)),
        "async generator": lambda: w.do(named(name, async_generator)),
        "limited sync": lambda: w.do(**limit)(named(name, bad)),  # type: ignore[arg-type]
        "limited async": lambda: w.do(**limit)(named(name, async_bad)),  # type: ignore[arg-type]
        "limited mapped sync": lambda: w.do([0], **limit)(named(name, bad_item)),  # type: ignore[arg-type]
        "limited mapped async": lambda: w.do([0], **limit)(named(name, async_bad_item)),  # type: ignore[arg-type]
        "streaming": lambda: (w.do(named(name, generator)), w.do(name)(lambda item: item)),
        "streaming async": lambda: (
            w.do(named(name, async_generator)),
            w.do(name)(lambda item: item),
        ),
    }
    declare[kind]()


def named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    fn.__name__ = name
    return fn


def fresh(error: BaseException) -> BaseException:
    return type(error)(*error.args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [*RUDE, *POLITE], ids=named_by_type)
def test_what_a_task_raises_comes_out_as_it_is(form: str, kind: str, model: BaseException) -> None:
    if isinstance(model, StopAsyncIteration) and kind in ("async generator", "streaming async"):
        pytest.skip("Python does not let it out of an async generator")
    error = fresh(model)
    done = attempt(form, lambda w: failing(w, kind, error))
    assert done.error is error
    assert done.result.exception is error
    assert any(note.startswith("in task 'bad'") for note in error.__notes__)
    if "mapped" in kind:
        (note,) = error.__notes__
        assert note.startswith("in task 'bad', item 0 (value ")
    with pytest.raises(type(error)) as caught:
        done.result.bad  # noqa: B018
    assert caught.value is error


@pytest.mark.parametrize("kind", KINDS)
def test_stop_iteration_becomes_what_python_makes_of_it(form: str, kind: str) -> None:
    error = StopIteration("mine")
    done = attempt(form, lambda w: failing(w, kind, error))
    assert type(done.error) is RuntimeError
    assert done.error.__cause__ is error
    assert any(note.startswith("in task 'bad'") for note in done.error.__notes__)


@pytest.mark.parametrize("mode", ["return", "continue"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [*RUDE, *POLITE[:1]], ids=[*named_by_type[:4], "ValueError"])
def test_in_the_other_modes_reading_returns_the_exception(
    form: str, kind: str, model: BaseException, mode: str
) -> None:
    error = fresh(model)

    def declare(w: weave) -> None:
        failing(w, kind, error)

        @w.do
        def after(bad: Any) -> Any:
            return bad

    result = run(form, declare, error_mode=mode)
    assert result.bad is error
    assert result.after is error
    assert result.exception is error
    assert [failure.exception for failure in result.failures] == [error]


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_mode_continue_the_other_branches_run_to_their_end(form: str, kind: str) -> None:
    gate = threading.Event()

    def declare(w: weave) -> None:
        failing(w, kind, Boom())

        @w.do
        def slow() -> int:
            gate.wait(0.01)
            return 1

        @w.do
        async def after_slow(slow: int) -> int:
            await asyncio.sleep(0)
            return slow + 1

        @w.do
        def after_both(bad: Any, after_slow: int) -> None: ...

        @w.do
        def after_after(after_both: Any) -> None: ...

    result = run(form, declare, error_mode="continue")
    assert (result.slow, result.after_slow) == (1, 2)
    assert isinstance(result.after_both, Boom)
    assert result.after_after is result.bad
    assert result.cancelled == ()


def test_in_the_mode_continue_the_other_items_run_to_their_end(form: str) -> None:
    seen: list[int] = []

    def declare(w: weave) -> None:
        @w.do(range(10), workers=2)
        def bad(item: int) -> None:
            seen.append(item)
            if item % 3 == 0:
                raise Boom(item)

        @w.do(range(10), workers=2)
        async def bad_async(item: int) -> None:
            seen.append(item)
            if item % 3 == 0:
                raise Boom(item)

    result = run(form, declare, error_mode="continue")
    assert sorted(seen) == sorted([*range(10), *range(10)])
    assert isinstance(result.bad, Boom)
    found = {(failure.task, failure.item, failure.exception.args[0]) for failure in result.failures}
    assert found == {(name, item, item) for name in ("bad", "bad_async") for item in (0, 3, 6, 9)}


@pytest.mark.parametrize("mode", ["raise", "return"])
def test_siblings_that_run_are_cancelled_and_clean_up(form: str, mode: str) -> None:
    cleaned: list[str] = []

    def declare(w: weave) -> None:
        started = asyncio.Semaphore(0)

        async def sleep(name: str) -> None:
            try:
                started.release()
                await asyncio.sleep(PATIENCE)
            finally:
                await asyncio.sleep(0.001)
                cleaned.append(name)

        @w.do
        async def sibling() -> None:
            await sleep("sibling")

        @w.do(timeout=PATIENCE)
        async def limited() -> None:
            await sleep("limited")

        @w.do(["a", "b"], workers=2)
        async def items(item: str) -> None:
            await sleep(item)

        @w.do
        def returning() -> Any:
            return sleep("returning")

        @w.do
        async def bad() -> None:
            for _ in range(5):
                await started.acquire()
            raise Boom

        @w.do
        async def later(sibling: None) -> None:
            cleaned.append("never")

    done = attempt(form, declare, error_mode=mode)
    assert isinstance(done.error, Boom) is (mode == "raise")
    assert sorted(cleaned) == ["a", "b", "limited", "returning", "sibling"]
    assert set(done.result.cancelled) == {"sibling", "limited", "items", "returning", "later"}
    for name in done.result.cancelled:
        if mode == "raise":
            with pytest.raises(TaskCancelledError, match=rf"'{name}'.*Boom"):
                done.result[name]


def test_the_block_does_not_wait_for_the_threads_of_siblings(form: str) -> None:
    release, started = threading.Event(), threading.Barrier(4)

    def declare(w: weave) -> None:
        @w.do
        def stuck() -> str:
            started.wait(PATIENCE)
            release.wait(PATIENCE)
            return "dropped"

        @w.do(["x", "y"])
        def stuck_items(item: str) -> str:
            started.wait(PATIENCE)
            release.wait(PATIENCE)
            return item

        @w.do
        def bad() -> None:
            started.wait(PATIENCE)
            raise Boom

        @w.do
        def after(stuck: str) -> None:
            raise AssertionError("nothing else starts")

    done = attempt(form, declare)
    assert not release.is_set()
    release.set()
    assert isinstance(done.error, Boom)
    assert set(done.result.cancelled) == {"stuck", "stuck_items", "after"}


def test_after_a_failure_nothing_else_starts(form: str) -> None:
    ran: list[str] = []
    gate = threading.Event()

    def declare(w: weave) -> None:
        @w.do
        def bad() -> None:
            gate.wait(0.01)
            raise Boom

        w.do(range(1000), workers=1)(
            named("items", lambda item: (ran.append("item"), gate.wait(0.005)))
        )

        @w.do
        def after(bad: None) -> None:
            ran.append("after")

    done = attempt(form, declare)
    assert isinstance(done.error, Boom)
    assert "after" not in ran
    assert len(ran) < 1000


def test_second_failures_can_be_reached(form: str) -> None:
    def declare(w: weave) -> None:
        ready = asyncio.Event()

        @w.do
        async def sibling() -> None:
            try:
                ready.set()
                await asyncio.sleep(PATIENCE)
            finally:
                raise Boom("in cleaning up")

        @w.do
        async def bad() -> None:
            await ready.wait()
            raise Boom("first")

    done = attempt(form, declare)
    assert str(done.error) == "first"
    assert [(failure.task, str(failure.exception)) for failure in done.result.failures] == [
        ("bad", "first"),
        ("sibling", "in cleaning up"),
    ]
    with pytest.raises(Boom, match="in cleaning up"):
        done.result.sibling  # noqa: B018


def test_dependents_fail_with_the_same_exception(form: str) -> None:
    def declare(w: weave) -> None:
        failing(w, "async", Boom())

        @w.do
        def one(bad: None) -> None: ...

        @w.do("bad")
        def two(item: Any) -> None: ...

        @w.do
        def three(one: None, two: None) -> None: ...

    done = attempt(form, declare)
    for name in ("bad", "one", "two", "three"):
        with pytest.raises(Boom) as caught:
            done.result[name]
        assert caught.value is done.error
    assert done.result.cancelled == ()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Unwilling(Exception):
    __notes__ = "not a list"  # type: ignore[assignment]

    def __str__(self) -> str:
        raise Boom("no message")

    __repr__ = __str__
    __hash__ = None  # type: ignore[assignment]


class Slotted(Exception):
    __slots__ = ()


@pytest.mark.parametrize(
    "error", [Frozen(1), Unwilling(), Slotted()], ids=["frozen", "unwilling", "slotted"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_exceptions_that_refuse_everything_come_out_all_the_same(
    form: str, kind: str, error: Exception
) -> None:
    error = fresh(error) if not isinstance(error, Frozen) else Frozen(1)  # type: ignore[assignment]
    done = attempt(form, lambda w: failing(w, kind, error))
    assert done.error is error
    assert "in task 'bad'" in error.__notes__[-1]
    assert repr(done.result).startswith("<WoveResult bad=failed: ")
    assert done.result.run_records[0].error is not None


def test_a_coroutine_that_swallows_the_cancellation_once_is_waited_for(form: str) -> None:
    def declare(w: weave) -> None:
        ready = asyncio.Event()

        @w.do
        async def stubborn() -> str:
            ready.set()
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                await asyncio.sleep(0.001)
            return "done all the same"

        @w.do
        async def bad() -> None:
            await ready.wait()
            raise Boom

    done = attempt(form, declare)
    assert isinstance(done.error, Boom)
    assert done.result.stubborn == "done all the same"


def test_a_coroutine_that_does_not_end_is_left_behind(
    form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wove.engine.scheduler.STOP_GRACE_SECONDS", 0.02)

    def declare(w: weave) -> None:
        ready = asyncio.Event()

        @w.do
        async def stubborn() -> None:
            ready.set()
            for _ in range(2):
                try:
                    await asyncio.sleep(0.3)
                except asyncio.CancelledError:
                    if not ready.is_set():
                        raise
                    ready.clear()

        @w.do
        async def bad() -> None:
            await ready.wait()
            raise Boom

    done = attempt(form, declare)
    assert isinstance(done.error, Boom)
    assert done.result.cancelled == ("stubborn",)
    assert any("'stubborn'" in record.getMessage() for record in caplog.records)


# ---------------------------------------------------------------------- cancelled from outside


@pytest.mark.parametrize("steps", range(6))
def test_cancelling_the_task_around_an_async_weave_cancels_what_runs(steps: int) -> None:
    cleaned: list[str] = []

    async def main() -> None:
        w = weave()
        release = threading.Event()

        async def block() -> None:
            async with w:

                @w.do
                async def sleeps() -> None:
                    try:
                        await asyncio.sleep(PATIENCE)
                    finally:
                        await asyncio.sleep(0.001)
                        cleaned.append("sleeps")

                @w.do
                def blocks() -> None:
                    release.wait(PATIENCE)

                @w.do([1, 2, 3], workers=2, timeout=PATIENCE)
                async def items(item: int) -> None:
                    await asyncio.sleep(PATIENCE)

        task = asyncio.create_task(block())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel("enough")
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            release.set()
        if steps > 1:
            assert set(w.result.cancelled) == {"sleeps", "blocks", "items"}
            assert isinstance(w.result.exception, asyncio.CancelledError)

    asyncio.run(main())
    assert cleaned in ([], ["sleeps"])


def test_a_timeout_around_an_async_weave() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with weave() as w:

                    @w.do
                    async def sleeps() -> None:
                        await asyncio.sleep(PATIENCE)

        assert w.result.cancelled == ("sleeps",)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    asyncio.run(main())


def test_cancelled_twice_it_still_waits_for_the_clean_up() -> None:
    cleaned = False

    async def main() -> None:
        async def block() -> None:
            async with weave() as w:

                @w.do
                async def sleeps() -> None:
                    nonlocal cleaned
                    try:
                        await asyncio.sleep(PATIENCE)
                    finally:
                        await asyncio.sleep(0.01)
                        cleaned = True

        task = asyncio.create_task(block())
        await asyncio.sleep(0.005)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned

    asyncio.run(main())


def test_a_cancel_counts_although_a_task_fails_meanwhile() -> None:
    async def main() -> None:
        w = weave()

        async def block() -> None:
            async with w:

                @w.do
                async def sleeps() -> None:
                    try:
                        await asyncio.sleep(PATIENCE)
                    finally:
                        raise Boom("in cleaning up")

        task = asyncio.create_task(block())
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [str(failure.exception) for failure in w.result.failures] == ["in cleaning up"]

    asyncio.run(main())


def test_an_inner_weave_ends_with_the_outer_one() -> None:
    inner = weave()
    started, ended = threading.Event(), threading.Event()

    def nested() -> None:
        try:
            with inner:

                @inner.do
                async def sleeps() -> None:
                    started.set()
                    await asyncio.sleep(PATIENCE)
        finally:
            ended.set()

    with pytest.raises(Boom), weave() as w:
        w.do(nested)

        @w.do
        def bad() -> None:
            started.wait(PATIENCE)
            raise Boom

    assert ended.wait(PATIENCE)
    assert inner.result.cancelled == ("sleeps",)
