"""The block: what it takes, when it runs, and what it refuses."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, run, soon

from wove import UnresolvedSignatureError, WeaveStateError, WoveResult, weave
from wove.engine import threads as engine_threads


class Boom(Exception):
    pass


# ---------------------------------------------------------------------- initial values


def test_initial_values_are_dependencies_by_name_and_together(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def one(a: int) -> int:
            return a

        @w.do
        async def every(data: dict[str, int]) -> dict[str, int]:
            return data

    result = run(form, declare, a=1, b=2)
    assert (result.one, result.every) == (1, {"a": 1, "b": 2})


def test_initial_values_may_have_names_of_python(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def one(fn: int, item: int, source: int, name: int, kwargs: int) -> int:
            return fn + item + source + name + kwargs

    assert (
        run(form, declare, **dict.fromkeys(("fn", "item", "source", "name", "kwargs"), 1)).one == 5
    )


@pytest.mark.parametrize(
    "name", ["data", "final", "timings", "cancelled", "exception", "failures", "run_records"]
)
def test_names_that_are_taken(name: str) -> None:
    with pytest.raises(
        NameError,
        match=f"'{name}' cannot name an initial value",
    ):
        weave(**{name: 1})
    fn: Any = lambda: None  # noqa: E731
    fn.__name__ = name
    with pytest.raises(NameError, match=f"'{name}' cannot name a task"), weave() as w:
        w.do(fn)


def test_a_repeated_name_is_refused_at_the_declaration() -> None:
    def a() -> None: ...

    with pytest.raises(NameError, match="'a' is declared twice"), weave() as w:
        w.do(a)
        w.do(a)
    with pytest.raises(NameError, match="'a' is an initial value and a task"), weave(a=1) as w:
        w.do(a)


# ---------------------------------------------------------------------- the body


def test_an_exception_in_the_body_runs_nothing_and_propagates(form: str) -> None:
    ran: list[int] = []
    error = Boom()

    def declare(w: weave) -> None:
        w.do(lambda: ran.append(1))
        raise error

    done = attempt(form, declare)
    assert done.error is error
    assert error.__cause__ is None
    assert ran == []
    with pytest.raises(WeaveStateError):
        done.w.result  # noqa: B018


def test_leaving_the_body_early_runs_what_is_declared() -> None:
    for _ in range(1):
        with weave() as w:
            w.do(lambda: 1)
            break
    assert w.result.final == 1


def test_a_weave_is_used_once(form: str) -> None:
    done = attempt(form, lambda w: w.do(lambda: 1))
    with pytest.raises(WeaveStateError, match="used before"), done.w:
        pass

    async def again() -> None:
        async with done.w:
            pass

    with pytest.raises(WeaveStateError, match="used before"):
        asyncio.run(again())
    with pytest.raises(WeaveStateError, match="over"):
        done.w.do(lambda: 2)
    assert done.result.final == 1


def test_a_weave_is_not_entered_while_it_is_open() -> None:
    with weave() as w:
        w.do(lambda: 1)
        with pytest.raises(WeaveStateError), w:
            pass
    assert w.result.final == 1


def test_tasks_are_declared_inside() -> None:
    w = weave()
    with pytest.raises(WeaveStateError, match="inside the block"):
        w.do(lambda: 1)


def test_not_from_inside_a_running_task(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def sync() -> None:
            w.do(lambda: 1)

        @w.do
        async def asynchronous() -> None:
            w.do(lambda: 1)

        @w.do
        def reads() -> Any:
            return w.result

    result = run(form, declare, error_mode="continue")
    for error in result:
        assert isinstance(error, WeaveStateError)
        assert "running" in str(error)


def test_a_result_inside_the_block_is_an_error() -> None:
    w = weave()
    with pytest.raises(WeaveStateError, match="not even entered"):
        w.result  # noqa: B018
    with w:
        w.do(lambda: 1)
        with pytest.raises(WeaveStateError, match="when the block closes"):
            w.result  # noqa: B018
    assert w.result.final == 1


def test_what_it_says_of_itself() -> None:
    w = weave()
    assert (repr(w), w.done()) == ("<weave of 0 task(s), not entered>", False)
    with w:
        w.do(lambda: 1)
        assert repr(w) == "<weave of 1 task(s), open>"
    assert (repr(w), w.done(), w.wait(0)) == ("<weave of 1 task(s), over>", True, True)


# ---------------------------------------------------------------------- what is wrong with the plan


def unresolved(w: weave) -> None:
    def task(nowhere: int) -> None: ...

    w.do(task)


def circular(w: weave) -> None:
    def a(b: int) -> None: ...
    def b(a: int) -> None: ...

    w.do(a)
    w.do(b)


def unknown_source(w: weave) -> None:
    w.do("nowhere")(lambda item: None)


def no_item(w: weave) -> None:
    w.do([1])(lambda: None)


@pytest.mark.parametrize("mode", ["raise", "return", "continue"])
@pytest.mark.parametrize(
    ("wrong", "kind", "says"),
    [
        (unresolved, UnresolvedSignatureError, "nowhere"),
        (circular, RuntimeError, "Circular dependency detected: "),
        (unknown_source, NameError, "nowhere"),
        (no_item, TypeError, "item"),
    ],
)
def test_a_wrong_plan_is_an_error_at_the_end_of_the_block_and_runs_nothing(
    form: str, wrong: Callable[[weave], None], kind: type[Exception], says: str, mode: str
) -> None:
    ran: list[int] = []

    def fine() -> None:
        ran.append(1)

    done = attempt(form, lambda w: (w.do(fine), wrong(w)), error_mode=mode)
    assert type(done.error) is kind
    assert says in str(done.error)
    assert ran == []
    assert "fine" in done.w.execution_plan.dependencies


def test_an_environment_that_is_not_configured(form: str) -> None:
    for options, declare in (
        ({"environment": "nowhere"}, lambda w: w.do(lambda: 1)),
        ({}, lambda w: w.do(environment="nowhere")(lambda: 1)),
    ):
        done = attempt(form, declare, **options)  # type: ignore[arg-type]
        assert type(done.error) is NameError
        assert "'nowhere' is not configured" in str(done.error)
        assert "'default'" in str(done.error)


def test_the_execution_plan_is_there_in_every_case(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def a() -> None: ...

        @w.do
        def b(a: None) -> None:
            raise Boom

        plans.append(w.execution_plan)

    plans: list[Any] = []
    done = attempt(form, declare)
    assert isinstance(done.error, Boom)
    plans.append(done.w.execution_plan)
    for plan in plans:
        assert plan.sorted_tasks == ["a", "b"]
        assert plan.tiers == [["a"], ["b"]]
        assert plan["dependents"] == {"a": ["b"], "b": []}


# ---------------------------------------------------------------------- declarations


def test_the_forms_of_do(form: str) -> None:
    def declare(w: weave) -> None:
        @w.do
        def bare() -> int:
            return 1

        @w.do()
        def called() -> int:
            return 2

        @w.do(retries=1)
        def with_options() -> int:
            return 3

        @w.do([1, 2])
        def with_source(item: int) -> int:
            return item

        @w.do("with_source", workers=1)
        async def with_both(item: int) -> int:
            return item * 2

        assert bare() == 1  # what is declared stays what it was

    assert list(run(form, declare)) == [1, 2, 3, [1, 2], [2, 4]]


class Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def method(self, n: int) -> int:
        return n + self.by

    async def async_method(self, n: int) -> int:
        return n + self.by

    @classmethod
    def class_method(cls, n: int) -> int:
        return n

    @staticmethod
    def static_method(n: int) -> int:
        return n


class CallableObject:
    def __call__(self, n: int) -> int:
        return n + 20


class AsyncCallableObject:
    async def __call__(self, n: int) -> int:
        return n + 30


async def coroutine(n: int, more: int = 0) -> int:
    await asyncio.sleep(0)
    return n + more


@functools.wraps(coroutine)
def wrapper(*args: Any, **kwargs: Any) -> Any:
    return coroutine(*args, **kwargs)


def returns_future(n: int) -> Any:
    class Awaitable:
        def __await__(self) -> Any:
            return (yield from asyncio.sleep(0, n).__await__())

    return Awaitable()


class Point:
    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return self.n == other

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda n: n, 1),
        (Adder(10).method, 11),
        (Adder(10).async_method, 11),
        (Adder.class_method, 1),
        (Adder.static_method, 1),
        (CallableObject(), 21),
        (AsyncCallableObject(), 31),
        (functools.partial(lambda n, by: n + by, by=5), 6),
        (functools.partial(coroutine, more=5), 6),
        (functools.partial(AsyncCallableObject()), 31),
        (wrapper, 1),
        (returns_future, 1),
        (lambda n: coroutine(n), 1),
        (functools.lru_cache(lambda n: n), 1),
        (Point, 1),
        (lambda n, /: n, 1),
        (lambda *, n: n, 1),
        (lambda n, *args: (n, args), (1, ())),
        (lambda n, **kwargs: (n, kwargs), (1, {})),
        (lambda n, a=7, /, b=8, *, c=9: (n, a, b, c), (1, 7, 8, 9)),
        (lambda a=7, n=8, /: (a, n), (7, 1)),
    ],
)
def test_callables_of_every_kind(form: str, fn: Callable[..., Any], expected: Any) -> None:
    assert run(form, lambda w: w.do(fn), n=1, unrelated=2).final == expected
    assert (
        run(form, lambda w: w.do(retries=1, timeout=PATIENCE)(fn), n=1, unrelated=2).final
        == expected
    )


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": "3"}, TypeError, "retries"),
        ({"retries": True}, TypeError, "retries"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": True}, TypeError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"workers": 2}, ValueError, "workers"),
        ({"limit_per_minute": 2}, ValueError, "limit_per_minute"),
        ({"retires": 2}, TypeError, "Did you mean 'retries'"),
        ({"max_workers": 2}, TypeError, "max_workers"),
        ({"delivery_cancel_mode": "never"}, ValueError, "delivery_cancel_mode"),
        ({"delivery_orphan_policy": "adopt"}, ValueError, "delivery_orphan_policy"),
        ({"retry_on": int}, TypeError, "retry_on"),
        ({"retry_delay": "soon"}, ValueError, "retry_delay"),
    ],
)
def test_a_bad_option_is_refused_at_the_declaration(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    ran: list[int] = []
    with pytest.raises(error, match=says) as caught, weave() as w:
        w.do(lambda: ran.append(1))

        @w.do(**options)
        def broken() -> None: ...

    assert "'broken'" in str(caught.value)
    assert ran == []


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"limit_per_minute": 0}, {"workers": 1.5}]
)
def test_a_bad_option_of_a_mapped_task(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))), weave() as w:
        w.do([1], **options)(lambda item: item)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_workers": 0}, "max_workers"),
        ({"error_mode": "ignore"}, "error_mode"),
        ({"max_pending": -1}, "max_pending"),
        ({"on_done": 7}, "on_done"),
        ({"background": 1}, "background"),
        ({"delivery_timeout": -1}, "delivery_timeout"),
    ],
)
def test_a_bad_option_of_the_weave(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        weave(**options)


def test_what_cannot_be_declared() -> None:
    with weave() as w:
        for wrong in (7, None):
            with pytest.raises(TypeError):
                w.do(wrong)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="declares a callable"):
            w.do([1])(7)  # type: ignore[type-var]
        with pytest.raises(TypeError, match="min"):
            w.do(min)


# ---------------------------------------------------------------------- everywhere


def test_many_threads_at_once() -> None:
    def work(n: int) -> int:
        with weave(n=n) as w:

            @w.do
            async def a(n: int) -> int:
                await asyncio.sleep(0.001)
                return n

            @w.do([1, 2, 3])
            def b(item: int, n: int) -> int:
                return item * n

            @w.do
            def c(a: int, b: list[int]) -> int:
                return a + sum(b)

        return int(w.result.c)

    results: dict[int, int] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: work(n)})) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 7 * n for n in range(16)}


@pytest.mark.parametrize("inner", ["with", "async with"])
@pytest.mark.parametrize("outer", ["sync", "async"])
def test_weaves_inside_weaves(form: str, outer: str, inner: str) -> None:
    def innermost(w: weave) -> None:
        w.do([1, 2])(lambda item, n: item * n)

    async def awaiting(n: int) -> Any:
        async with weave(n=n) as w:
            innermost(w)
        return w.result.final

    def blocking(n: int) -> Any:
        if inner == "async with":
            return asyncio.run(awaiting(n))
        with weave(n=n) as w:
            innermost(w)
        return w.result.final

    async def one(item: int) -> Any:
        return await awaiting(item) if inner == "async with" else blocking(item)

    def sync_one(item: int) -> Any:
        return blocking(item)

    assert run(
        form, lambda w: w.do([2, 3], workers=2)(one if outer == "async" else sync_one)
    ).final == [[2, 4], [3, 6]]


def test_async_with_does_not_block_the_loop() -> None:
    async def main() -> int:
        release = threading.Event()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while not release.is_set():
                ticks += 1
                await asyncio.sleep(0)
                if ticks == 50:
                    release.set()

        ticking = asyncio.create_task(tick())
        async with weave() as w:

            @w.do
            def blocks() -> bool:
                return release.wait(PATIENCE)

            @w.do(iter(lambda: release.wait(PATIENCE), True))
            def never(item: bool) -> None: ...

        await ticking
        assert w.result.blocks
        return ticks

    assert asyncio.run(main()) >= 50


def test_a_with_inside_a_running_loop_blocks_as_written() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        asyncio.get_running_loop().call_soon(order.append, "loop")
        with weave() as w:

            @w.do
            async def elsewhere() -> bool:
                await asyncio.sleep(0.001)
                order.append("task")
                return threading.current_thread() is threading.main_thread()

        assert w.result.elsewhere is False
        order.append("after")
        await asyncio.sleep(0)
        return order

    assert asyncio.run(main()) == ["task", "after", "loop"]


def test_async_with_uses_the_running_loop() -> None:
    async def main() -> None:
        async with weave() as w:

            @w.do
            async def loop() -> Any:
                return asyncio.get_running_loop()

        assert w.result.loop is asyncio.get_running_loop()

    asyncio.run(main())


# ---------------------------------------------------------------------- context variables

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


UNSET = object()


@pytest.mark.parametrize("before", [None, [], 1, UNSET], ids=["None", "list", "1", "unset"])
@pytest.mark.parametrize("setting", [[], True, "other"], ids=["list", "True", "text"])
def test_what_one_task_sets_no_other_sees(form: str, before: Any, setting: Any) -> None:
    """Not even an equal value that is another object; and every task sees what the caller has set."""
    context = contextvars.copy_context()
    if before is not UNSET:
        context.run(VARIABLE.set, before)
    seen: list[Any] = []

    def body(item: Any = None) -> None:
        seen.append(VARIABLE.get(UNSET))
        VARIABLE.set(type(setting)(setting))

    async def quick(item: Any = None) -> None:
        body()

    async def slow(item: Any = None) -> None:
        body()
        await asyncio.sleep(0)

    def returning(item: Any = None) -> Any:
        body()
        return slow()

    def generator(item: Any = None) -> Any:
        yield body()

    async def async_generator(item: Any = None) -> Any:
        yield body()

    def source() -> Iterator[int]:
        for i in range(3):
            yield i
            VARIABLE.set("source")

    kinds = (body, quick, slow, returning, generator, async_generator)

    def declare(w: weave) -> None:
        for times in range(2):
            for kind in kinds:
                for options in ({}, {"timeout": PATIENCE}, {"retries": 1}):
                    w.do(**options)(called(f"{kind.__name__}_{times}_{list(options)}", kind))  # type: ignore[arg-type]
        for kind in kinds:
            w.do(source(), workers=2)(called(f"mapped_{kind.__name__}", kind))
            w.do(range(3), retries=1)(called(f"retried_{kind.__name__}", kind))

    context.run(run, form, declare)
    calls = 2 * 3 * len(kinds) + 2 * 3 * len(kinds)
    assert len(seen) == calls + calls // len(kinds)  # what `returning` returns counts too
    assert all(value is before for value in seen)
    assert context.get(VARIABLE, UNSET) is before


def called(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function *fn* under another name."""
    made = FunctionType(fn.__code__, fn.__globals__, name, fn.__defaults__, fn.__closure__)  # type: ignore[attr-defined]
    made.__name__ = name
    return made


# ---------------------------------------------------------------------- threads


def test_a_weave_of_async_tasks_only_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(job: Any) -> None:
        raise AssertionError("a thread was asked for")

    for module in ("threads", "sources"):
        monkeypatch.setattr(f"wove.engine.{module}.start_thread", no_thread)

    def declare(w: weave) -> None:
        @w.do
        async def a() -> int:
            await asyncio.sleep(0)
            return 1

        @w.do(range(10), workers=2, retries=1, timeout=PATIENCE)
        async def b(item: int, a: int) -> int:
            return item + a

        @w.do
        async def c() -> Any:
            yield 1

        @w.do("c")
        async def d(item: int) -> int:
            return item

    for form in ("with", "async with"):
        assert run(form, declare).d == [1]


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.concurrency.thread_pool.IDLE_SECONDS", 0.01)
    monkeypatch.setattr(engine_threads, "_threads", engine_threads.JobPool())
    barrier = threading.Barrier(5)

    def work(item: int) -> threading.Thread:
        barrier.wait(PATIENCE)
        return threading.current_thread()

    threads = run("with", lambda w: w.do(range(5))(work)).final
    assert len(set(threads)) == 5
    soon(lambda: not any(thread.is_alive() for thread in threads))


# ---------------------------------------------------------------------- on_done


@pytest.mark.parametrize("mode", ["raise", "return"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_on_done_is_told_the_result(form: str, asynchronous: bool, mode: str) -> None:
    told: list[WoveResult] = []

    async def on_done(result: WoveResult) -> None:
        await asyncio.sleep(0)
        told.append(result)

    def bad() -> None:
        raise Boom

    for declare in (lambda w: w.do(lambda: 1), lambda w: w.do(bad)):
        done = attempt(
            form, declare, on_done=on_done if asynchronous else told.append, error_mode=mode
        )
        assert told.pop() is done.result
        assert told == []


def test_on_done_is_told_when_an_async_weave_is_cancelled() -> None:
    told: list[WoveResult] = []

    async def on_done(result: WoveResult) -> None:
        await asyncio.sleep(0)
        told.append(result)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005), weave(on_done=on_done) as w:
                w.do(lambda: asyncio.sleep(PATIENCE))
        assert told == [w.result]
        assert w.result.cancelled == ("<lambda>",)

    asyncio.run(main())


def test_what_on_done_raises_is_logged(form: str, caplog: pytest.LogCaptureFixture) -> None:
    def on_done(result: WoveResult) -> None:
        raise Boom("in on_done")

    assert run(form, lambda w: w.do(lambda: 1), on_done=on_done).final == 1
    assert "in on_done" in caplog.text


# ---------------------------------------------------------------------- what it holds


class Held:
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_weave_and_its_results_are_freed(form: str, fails: bool) -> None:
    def use() -> list[weakref.ref[Any]]:
        held = Held()
        refs = [weakref.ref(held)]

        def declare(w: weave) -> None:
            @w.do
            def a(held: Held) -> Held:
                refs.append(weakref.ref(made := Held()))
                return made

            @w.do
            async def b(a: Held, held: Held) -> Held:
                return a

            @w.do([held], workers=1)
            def c(item: Held) -> Held:
                return item

            @w.do
            def d(a: Held, b: Held, c: Any) -> None:
                if fails:
                    raise Boom(a, b, c)

        done = attempt(form, declare, held=held)
        assert isinstance(done.error, Boom) is fails
        refs += [weakref.ref(done.w), weakref.ref(done.result)]
        return refs

    refs = use()
    assert len(refs) == 4

    def freed() -> bool:
        gc.collect()
        return all(ref() is None for ref in refs)

    soon(freed)


@pytest.mark.parametrize(
    "options", [{}, {"retries": 1, "timeout": PATIENCE}], ids=["plain", "limited"]
)
@pytest.mark.parametrize(
    "kind", ["sync", "async", "mapped", "async mapped", "generator", "async generator"]
)
def test_what_succeeded_is_freed_without_the_garbage_collector(
    form: str, kind: str, options: dict[str, Any]
) -> None:
    refs: list[weakref.ref[Any]] = []

    def make() -> Held:
        made = Held()
        refs.append(weakref.ref(made))
        return made

    async def async_make() -> Held:
        await asyncio.sleep(0)
        return make()

    async def async_generator() -> Any:
        yield make()

    def generator() -> Any:
        yield make()

    async def async_item(item: int) -> Held:
        return make()

    def declare(w: weave) -> None:
        fn: Any = {
            "sync": lambda: make(),
            "async": async_make,
            "mapped": lambda item: make(),
            "async mapped": async_item,
            "generator": generator,
            "async generator": async_generator,
        }[kind]
        fn.__name__ = "made"
        (w.do([1, 2], **options) if "mapped" in kind else w.do(**options))(fn)
        if "generator" in kind:
            w.do("made")(lambda item: None)

    gc.collect()
    gc.disable()
    try:
        assert run(form, declare).made is not None
        soon(lambda: all(ref() is None for ref in refs))
    finally:
        gc.enable()
    assert refs


@pytest.mark.parametrize(
    "name", ["retries", "retry_delay", "retry_on", "timeout", "workers", "limit_per_minute"]
)
def test_an_option_of_tasks_is_no_initial_value(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"weave: {name} is not an option here.*values=\{{'{name}'"
    ):
        weave(**{name: 5})
    with weave(values={name: 5}) as w:
        w.do(lambda data: data[name])
    assert w.result.final == 5


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("error_mod", "error_mode"),
        ("error_modes", "error_mode"),
        ("enviroment", "environment"),
        ("enviromnent", "environment"),
        ("max_worker", "max_workers"),
        ("on_dome", "on_done"),
        ("progres", "progress"),
        ("delivery_time_out", "delivery_timeout"),
    ],
)
def test_a_slip_in_an_option_is_told(name: str, meant: str) -> None:
    for _ in range(2):  # nothing that was refused is taken for known
        with pytest.raises(TypeError, match=f"unknown option '{name}'. Did you mean '{meant}'"):
            weave(**{name: 1})
    with weave(values={name: 1}) as w:
        w.do(lambda data: data[name])
    assert w.result.final == 1


@pytest.mark.parametrize("name", ["value", "work", "for_", "records", "debugs", "account", "done"])
def test_a_word_that_is_only_alike_is_an_initial_value(name: str) -> None:
    with weave(**{name: 1}) as w:
        w.do(lambda data: data[name])
    assert w.result.final == 1


def test_both_ways_to_give_initial_values() -> None:
    with weave(values={"a": 1, "fork_": 2}, b=3) as w:

        @w.do
        def total(a: int, b: int, fork_: int) -> int:
            return a + b + fork_

    assert w.result.total == 6
    for values, message in (
        ({"b": 1}, "given twice"),
        ([("a", 1)], "must be a mapping"),
        ({1: 1}, "are text"),
    ):
        with pytest.raises(TypeError, match=message):
            weave(values=values, b=2)  # type: ignore[arg-type]
    with pytest.raises(NameError, match="'data' cannot name an initial value"):
        weave(values={"data": 1})
