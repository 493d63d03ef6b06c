"""Workflows that are classes: inheritance in every form, inline overrides, order, and errors where they are made."""

from __future__ import annotations

import abc
import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from typing import Any

import pytest

from wove import UnresolvedSignatureError, Weave, WoveResult, weave
from wove.errors import TaskTimeoutError


def run(parent: type[Weave], **values: Any) -> WoveResult:
    with weave(parent, **values) as w:
        pass

    async def main() -> WoveResult:
        async with weave(parent, **values) as w:
            pass
        return w.result

    again = asyncio.run(main())
    assert list(again) == list(w.result)
    return w.result


def names(parent: type[Weave]) -> list[str]:
    return list(weave(parent).execution_plan.dependencies)


# ------------------------------------------------------------------------------------------ declaring


def test_every_form_of_do() -> None:
    class Workflow(Weave):
        @Weave.do
        def plain(self, start: int) -> int:
            return start

        @Weave.do()
        def called(self, plain: int) -> int:
            return plain + 1

        @Weave.do(retries=1, timeout=60)
        async def with_options(self, called: int) -> int:
            await asyncio.sleep(0)
            return called + 1

        @Weave.do([1, 2])
        def over_a_list(self, item: int, plain: int) -> int:
            return item + plain

        @Weave.do("over_a_list", workers=1)
        async def over_a_task(self, item: int) -> int:
            return 10 * item

        @Weave.do("numbers")
        def over_a_value(self, number: int) -> int:
            return -number

        @Weave.do
        def generator(self) -> Iterator[int]:
            yield from (1, 2)

        @Weave.do
        async def async_generator(self) -> AsyncIterator[int]:
            yield 1

        @Weave.do("generator")
        def over_a_generator(self, item: int, generator: list[int]) -> int:
            return item + len(generator)

    result = run(Workflow, start=5, numbers=[1, 2])
    assert list(result) == [5, 6, 7, [6, 7], [60, 70], [-1, -2], [1, 2], [1], [3, 4]]
    assert result.final == [3, 4]
    assert len(result) == 9


def test_do_returns_the_function_itself() -> None:
    def task(self: Any) -> int:
        return 1

    assert Weave.do(task) is task
    assert Weave.do(retries=1)(task) is task


def test_methods_that_are_not_marked_are_no_tasks() -> None:
    class Workflow(Weave):
        factor = 3

        def helper(self, number: int) -> int:
            return self.factor * number

        @Weave.do
        def task(self, number: int) -> int:
            return self.helper(number)

    result = run(Workflow, number=2)
    assert list(result) == [6]
    with weave(Workflow, number=1) as w:

        @w.do
        def helper() -> str:  # the name is free
            return "inline"

    assert list(w.result) == [3, "inline"]


def test_static_and_class_methods_in_either_order_of_the_decorators() -> None:
    class Workflow(Weave):
        label = "base"

        @Weave.do
        @staticmethod
        def static_inside(n: int) -> int:
            return n

        @staticmethod
        @Weave.do
        def static_outside(n: int) -> int:
            return n + 1

        @Weave.do
        @classmethod
        def class_inside(cls, n: int) -> str:
            return f"{cls.label} {n}"

        @classmethod
        @Weave.do(retries=1)
        async def class_outside(cls, n: int) -> str:
            return f"{cls.label} {n + 1}"

        @Weave.do([1, 2])
        @classmethod
        def mapped(cls, item: int) -> str:
            return f"{cls.label} {item}"

    class Derived(Workflow):
        label = "derived"

    assert list(run(Workflow, n=1)) == [1, 2, "base 1", "base 2", ["base 1", "base 2"]]
    assert list(run(Derived, n=1)) == [1, 2, "derived 1", "derived 2", ["derived 1", "derived 2"]]


def test_decorators_that_keep_the_name_keep_the_mark() -> None:
    def plus_one(fn: Callable[..., int]) -> Callable[..., int]:
        @wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> int:
            return fn(*args, **kwargs) + 1

        return wrapper

    class Workflow(Weave):
        @plus_one
        @Weave.do
        def outside(self, n: int) -> int:
            return n

        @Weave.do
        @plus_one
        def inside(self, n: int) -> int:
            return n

    assert list(run(Workflow, n=1)) == [2, 2]


# ------------------------------------------------------------------------------------------ inheritance


class Base(Weave):
    @Weave.do(retries=2, timeout=30)
    def load(self, source: str) -> list[str]:
        return [source]

    @Weave.do("load", workers=2)
    def clean(self, item: str) -> str:
        return item.strip()

    @Weave.do
    async def report(self, clean: list[str]) -> str:
        return ",".join(clean)


class Middle(Base):
    def load(self, source: str) -> list[str]:  # a plain method
        return [*super().load(source), " middle "]

    @Weave.do
    async def report(self, clean: list[str]) -> str:
        return f"[{await super().report(clean)}]"


class Leaf(Middle):
    @Weave.do(retries=5)
    def load(self, source: str) -> list[str]:
        return [*super().load(source), "leaf"]

    def clean(self, item: str) -> str:
        return super().clean(item).upper()

    @Weave.do
    def audit(self, report: str) -> int:
        return len(report)


def test_multi_level_inheritance_and_super() -> None:
    assert run(Base, source=" a ").report == "a"
    assert run(Middle, source=" a ").report == "[a,middle]"
    result = run(Leaf, source=" a ")
    assert list(result) == [
        [" a ", " middle ", "leaf"],
        ["A", "MIDDLE", "LEAF"],
        "[A,MIDDLE,LEAF]",
        15,
    ]
    assert names(Leaf) == ["load", "clean", "report", "audit"]


def test_an_override_keeps_the_options_it_does_not_set() -> None:
    def options(parent: type[Weave]) -> dict[str, Any]:
        explained = weave(parent, source="x").explain()
        return {name: explained["load"][name].value for name in ("retries", "timeout")}

    assert options(Base) == {"retries": 2, "timeout": 30}
    assert options(Middle) == {"retries": 2, "timeout": 30}
    assert options(Leaf) == {"retries": 5, "timeout": 30}


def test_options_of_a_plain_override_take_effect() -> None:
    class Flaky(Base):
        tried = 0

        def load(self, source: str) -> list[str]:
            self.tried += 1
            if self.tried < 3:
                raise OSError
            return [source] * self.tried

    assert run(Flaky, source="a").load == ["a"] * 3


def test_mixins_that_are_no_weaves_themselves() -> None:
    class Audited:
        prefix = "audited"

        @Weave.do
        def audit(self, total: int) -> str:
            return f"{self.prefix} {total}"

        def total(self, numbers: list[int]) -> int:  # no task here, and an override of one below
            return 10 * super().total(numbers)  # type: ignore[misc]

    class Totals(Weave):
        @Weave.do
        def total(self, numbers: list[int]) -> int:
            return sum(numbers)

    class Both(Audited, Totals):
        pass

    class Other(Totals, Audited):
        pass

    assert run(Both, numbers=[1, 2]).audit == "audited 30"
    assert run(Other, numbers=[1, 2]).audit == "audited 3"
    assert names(Both) == ["total", "audit"]
    assert names(Other) == ["audit", "total"]


def test_diamonds_follow_the_mro() -> None:
    class Root(Weave):
        @Weave.do(retries=1)
        def value(self) -> list[str]:
            return ["root"]

        @Weave.do
        def last(self, value: list[str]) -> int:
            return len(value)

    class Left(Root):
        @Weave.do(timeout=40)
        def value(self) -> list[str]:
            return [*super().value(), "left"]

        @Weave.do
        def left(self) -> int:
            return 1

    class Right(Root):
        @Weave.do(timeout=50, retries=3)
        def value(self) -> list[str]:
            return [*super().value(), "right"]

        @Weave.do
        def right(self) -> int:
            return 2

    class Bottom(Left, Right):
        pass

    assert run(Bottom).value == ["root", "right", "left"]
    assert names(Bottom) == ["value", "last", "right", "left"]
    explained = weave(Bottom).explain()["value"]
    assert (explained["timeout"].value, explained["retries"].value) == (40, 3)


def test_super_of_a_coroutine_function_from_a_sync_override() -> None:
    class Asynchronous(Weave):
        @Weave.do
        async def value(self, n: int) -> int:
            await asyncio.sleep(0)
            return n

    class Synchronous(Asynchronous):
        def value(self, n: int) -> Coroutine[Any, Any, int]:  # type: ignore[override]
            return super().value(n + 1)

    class Back(Synchronous):
        async def value(self, n: int) -> int:
            return 2 * await super().value(n)

    assert run(Synchronous, n=1).value == 2
    assert run(Back, n=1).value == 4


class Mapped(Weave):
    @Weave.do
    def source(self) -> list[int]:
        return [1, 2, 3]

    @Weave.do("source", workers=1, retries=1)
    def work(self, item: int) -> int:
        return item


class MappedAgain(Mapped):
    def work(self, item: int, source: list[int]) -> int:  # type: ignore[override]
        return item * len(source)


class MappedOnceMore(MappedAgain):
    @Weave.do(retries=3)
    def work(self, number: int) -> int:  # type: ignore[override]
        return -number


class NotMapped(MappedOnceMore):
    def work(self, source: list[int]) -> int:  # type: ignore[override]
        return sum(source)


class MappedElsewhere(NotMapped):
    @Weave.do("numbers")
    def work(self, number: int) -> int:  # type: ignore[override]
        return number + 1


def test_an_override_stays_mapped_while_it_has_a_parameter_for_the_item() -> None:
    assert run(MappedAgain).work == [3, 6, 9]
    assert run(MappedOnceMore).work == [-1, -2, -3]
    assert run(NotMapped).work == 6
    assert run(MappedElsewhere, numbers=[5]).work == [6]


@pytest.mark.parametrize("parent", [Mapped, MappedAgain, MappedOnceMore])
def test_an_inline_override_stays_mapped_too(parent: type[Weave]) -> None:
    with weave(parent) as w:

        @w.do(workers=3)
        async def work(item: int) -> str:
            return str(item)

    assert w.result.work == ["1", "2", "3"]
    with weave(parent) as w:

        @w.do
        def work(source: list[int]) -> int:
            return max(source)

    assert w.result.work == 3


def test_the_plan_may_be_looked_at_before_everything_is_declared() -> None:
    with weave(Mapped) as w:

        @w.do
        def work(item: int, late: int) -> int:
            return item + late

        assert "work" in w.execution_plan.dependencies

        @w.do
        def late() -> int:
            return 10

    assert w.result.work == [11, 12, 13]
    with weave(Mapped) as w:

        @w.do
        def work(late: int) -> int:
            return late

        assert "work" in w.execution_plan.dependencies

        @w.do
        def late() -> int:
            return 10

    assert w.result.work == 10


def test_none_takes_a_task_back() -> None:
    class Shorter(Base):
        report = None  # type: ignore[assignment]

    assert names(Shorter) == ["load", "clean"]
    assert run(Shorter, source="a").final == ["a"]

    class Again(Shorter):
        @Weave.do
        def report(self) -> str:  # type: ignore[override]
            return "again"

    assert run(Again, source="a").final == "again"


def test_what_cannot_be_called_is_refused() -> None:
    class Broken(Base):
        report = 5  # type: ignore[assignment]

    with pytest.raises(
        TypeError, match="task 'report' of Broken is replaced by 5, which cannot be called"
    ):
        weave(Broken)


# ------------------------------------------------------------------------------------------ inline overrides


@pytest.mark.parametrize("asynchronous", [False, True])
def test_inline_overrides_with_other_signatures(asynchronous: bool) -> None:
    def declare(w: weave) -> None:
        if asynchronous:

            @w.do
            async def load(source: str, extra: str) -> list[str]:
                return [source, extra]
        else:

            @w.do
            def load(source: str, extra: str) -> list[str]:
                return [source, extra]

        @w.do
        def extra() -> str:
            return " extra "

        @w.do
        def report(load: list[str], data: dict[str, Any]) -> Any:
            return load, data

    with weave(Base, source="a") as w:
        declare(w)

    async def main() -> WoveResult:
        async with weave(Base, source="a") as w:
            declare(w)
        return w.result

    for result in (w.result, asyncio.run(main())):
        assert result.load == ["a", " extra "]
        assert result.clean == ["a", "extra"]
        assert result.report == (["a", " extra "], {"source": "a"})
        # The order is that of the class, and what is new comes last.
        assert list(result) == [result.load, result.clean, result.report, " extra "]
        assert result.final == " extra "


def test_an_inline_override_keeps_options_and_may_set_its_own() -> None:
    tried = 0
    with weave(Base, source="a") as w:

        @w.do
        def load() -> list[str]:
            nonlocal tried
            tried += 1
            if tried < 3:
                raise OSError
            return [str(tried)]

    assert w.result.load == ["3"]

    tried = 0
    with weave(Base, source="a", error_mode="return") as w:

        @w.do(retries=0)
        def load() -> list[str]:
            nonlocal tried
            tried += 1
            raise OSError

    assert isinstance(w.result.load, OSError)
    assert tried == 1


def test_an_inline_override_with_a_timeout() -> None:
    with pytest.raises(TaskTimeoutError, match="report"), weave(Base, source="a") as w:

        @w.do(timeout=0.05)
        async def report(clean: list[str]) -> None:
            await asyncio.sleep(600)


def test_an_inline_override_of_a_task_that_was_not_mapped_may_be_mapped() -> None:
    with weave(Base, source="a") as w:

        @w.do([1, 2, 3], workers=2)
        def report(item: int, load: list[str]) -> int:
            return item + len(load)

    assert w.result.report == [2, 3, 4]


def test_only_one_inline_override_of_each_task() -> None:
    with pytest.raises(NameError, match="load.*twice"), weave(Base, source="a") as w:

        @w.do
        def load() -> list[str]:
            return []

        @w.do  # type: ignore[no-redef]
        def load() -> list[str]:  # noqa: F811
            return []


def test_partials_and_methods_as_inline_overrides() -> None:
    def load(prefix: str, source: str) -> list[str]:
        return [prefix + source]

    with weave(Base, source="a") as w:
        w.do(partial(load, "partial "))
    assert w.result.report == "partial a"


def test_the_settings_of_an_override_that_stays_mapped_are_explained() -> None:
    for parent in (Mapped, MappedAgain, MappedOnceMore):
        assert weave(parent).explain()["work"]["workers"].value == 1


# ------------------------------------------------------------------------------------------ order


def test_final_and_unpacking_follow_the_class_bodies() -> None:
    class First(Weave):
        @Weave.do
        def c(self, z: int) -> str:
            return "c"

        @Weave.do
        def a(self) -> str:
            return "a"

        @Weave.do
        def z(self) -> int:
            return 26

    class Second(First):
        @Weave.do
        def b(self) -> str:
            return "b"

        @Weave.do
        def a(self) -> str:
            return "A"

    assert list(run(First)) == ["c", "a", 26]
    c, a, z, b = run(Second)
    assert (c, a, z, b) == ("c", "A", 26, "b")
    assert run(Second).final == "b"
    assert [*run(Second).timings] == ["c", "a", "z", "b"]


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"retries": -1}, ValueError, "task 'task'.*retries"),
        ({"retries": "2"}, TypeError, "task 'task'.*retries"),
        ({"retries": True}, TypeError, "task 'task'.*retries"),
        ({"timeout": 0}, ValueError, "task 'task'.*timeout"),
        ({"workers": 2}, ValueError, "task 'task' of Workflow.*workers"),
        ({"limit_per_minute": 5}, ValueError, "task 'task' of Workflow.*limit_per_minute"),
        ({"delivery_cancel_mode": "maybe"}, ValueError, "delivery_cancel_mode"),
        ({"retires": 2}, TypeError, "retires.*Did you mean 'retries'"),
    ],
)
def test_options_are_checked_when_the_class_is_defined(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):

        class Workflow(Weave):
            @Weave.do(**options)
            def task(self) -> None:
                pass


def test_zero_workers_is_an_error_at_the_definition() -> None:
    with pytest.raises(ValueError, match="workers"):

        class Workflow(Weave):
            @Weave.do([1], workers=0)
            def task(self, item: int) -> None:
                pass


def test_the_options_of_a_mixin_are_checked_with_the_class_that_uses_it() -> None:
    class Mixin:
        @Weave.do(workers=3)  # right for an override of a mapped task
        def work(self, item: int) -> int:
            return 2 * item

    class Right(Mixin, Mapped):  # type: ignore[misc]
        pass

    assert run(Right).work == [2, 4, 6]
    with pytest.raises(ValueError, match="task 'work' of Wrong.*workers"):

        class Wrong(Mixin, Weave):
            pass


def test_a_source_that_is_none() -> None:
    with pytest.raises(TypeError, match="not over 5"):

        class Workflow(Weave):
            @Weave.do(5)  # type: ignore[call-overload]
            def task(self, item: int) -> None:
                pass


@pytest.mark.parametrize("name", ["final", "timings", "cancelled", "exception", "data", "failures"])
def test_reserved_names(name: str) -> None:
    def task(self: Any) -> None:
        pass

    with pytest.raises(NameError, match=f"'{name}' cannot name a task of Workflow"):
        type("Workflow", (Weave,), {name: Weave.do(task)})
    mixin = type("Mixin", (), {name: Weave.do(task)})
    with pytest.raises(NameError, match=f"'{name}' cannot name a task of Workflow"):
        type("Workflow", (mixin, Weave), {})


def test_an_initial_value_named_like_a_task() -> None:
    with pytest.raises(NameError, match="'load' is a task of Base and an initial value"):
        weave(Base, load=[])


def test_a_missing_initial_value_is_an_unresolved_signature() -> None:
    with pytest.raises(UnresolvedSignatureError, match="'source' of task 'load'"), weave(Base):
        pass


def test_an_init_that_needs_arguments() -> None:
    class Needy(Weave):
        def __init__(self, connection: object) -> None:
            self.connection = connection

        @Weave.do
        def task(self) -> None:
            pass

    with pytest.raises(
        TypeError, match=r"weave\(Needy\) makes the instance by itself.*'connection'"
    ):
        weave(Needy)


def test_an_init_without_arguments_is_run_once_for_each_weave() -> None:
    made: list[object] = []

    class Counting(Weave):
        def __init__(self, step: int = 2) -> None:
            made.append(self)
            self.step = step

        @Weave.do
        def first(self) -> int:
            self.step += 1
            return self.step

        @Weave.do
        def second(self, first: int) -> int:
            return self.step

    for _ in range(2):
        with weave(Counting) as w:
            pass
        assert list(w.result) == [3, 3]
    assert len(made) == 2


def test_an_error_inside_init_comes_out_as_it_is() -> None:
    class Failing(Weave):
        def __init__(self) -> None:
            raise TypeError("mine")

    with pytest.raises(TypeError, match="^mine$"):
        weave(Failing)


def test_abstract_tasks() -> None:
    class Abstract(Weave, abc.ABC):
        @Weave.do
        @abc.abstractmethod
        def value(self) -> int: ...

        @Weave.do
        def doubled(self, value: int) -> int:
            return 2 * value

    class Concrete(Abstract):
        def value(self) -> int:
            return 4

    assert run(Concrete).doubled == 8
    with pytest.raises(TypeError, match="abstract"):
        weave(Abstract)


@pytest.mark.parametrize("parent", [Base(), object, "Base", 5, int])
def test_only_subclasses_of_weave_are_parents(parent: Any) -> None:
    with pytest.raises(TypeError, match="takes a subclass of wove.Weave"):
        weave(parent)


def test_the_empty_class() -> None:
    class Empty(Weave):
        pass

    assert list(run(Empty)) == []
    assert run(Empty).final is None
    assert list(run(Weave)) == []


def test_init_subclass_of_the_user_is_called() -> None:
    seen: list[str] = []

    class Registered(Weave):
        def __init_subclass__(cls, tag: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append(tag)

    class Tagged(Registered, tag="x"):
        pass

    assert seen == ["x"]


# ------------------------------------------------------------------------------------------ many at once


def test_one_class_in_many_weaves_at_once() -> None:
    class Counting(Weave):
        def __init__(self) -> None:
            self.calls = 0

        @Weave.do
        def number(self, n: int) -> int:
            self.calls += 1
            return n

        @Weave.do([1, 2, 3])
        def mapped(self, item: int, number: int) -> int:
            return item * number

        @Weave.do
        async def total(self, mapped: list[int]) -> tuple[int, int]:
            return sum(mapped), self.calls

    barrier = threading.Barrier(10)
    found: dict[int, list[Any]] = {}

    def work(n: int) -> None:
        barrier.wait(20)
        for _ in range(5):
            with weave(Counting, n=n) as w:
                pass
            found.setdefault(n, []).append(w.result.total)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {n: [(6 * n, 1)] * 5 for n in range(10)}


def test_a_weave_of_a_class_inside_a_task_of_one() -> None:
    class Inner(Weave):
        @Weave.do
        def inner(self, n: int) -> int:
            return 2 * n

    class Outer(Weave):
        @Weave.do([1, 2, 3])
        def outer(self, item: int) -> int:
            with weave(Inner, n=item) as w:
                pass
            return int(w.result.inner)

        @Weave.do("outer")
        async def again(self, item: int) -> int:
            async with weave(Inner, n=item) as w:
                pass
            return int(w.result.inner)

    assert run(Outer).again == [4, 8, 12]
