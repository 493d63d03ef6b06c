"""A weave from its declarations to its result: what is kept, what travels, what the block is to raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from wove import Weave, config, weave
from wove.engine.execution import Execution
from wove.engine.loops import run_blocking
from wove.graph.plan import Declaration
from wove.settings import current
from wove.workflow import declarations_of


def execution(
    *tasks: Callable[..., Any], values: dict[str, Any] | None = None, **options: Any
) -> Execution:
    declarations = [Declaration(task, {}) for task in tasks]
    return Execution({one.name: one for one in declarations}, values or {}, options, current())


def one() -> int:
    return 1


async def two(one: int) -> int:
    return one + 1


def fails(one: int) -> None:
    raise LookupError("mine")


def after(fails: None) -> None:
    raise AssertionError("not to be run")


def test_from_declarations_to_a_result() -> None:
    found = execution(one, two)
    assert found.result() is None
    assert found.error() is None
    run_blocking(found.make_run)
    result = found.result()
    assert result is not None
    assert list(result) == [1, 2]
    assert found.error() is None


@pytest.mark.parametrize("error_mode", ["raise", "return", "continue"])
def test_what_the_block_is_to_raise(error_mode: str) -> None:
    found = execution(one, fails, after, error_mode=error_mode)
    run_blocking(found.make_run)
    error = found.error()
    if error_mode == "raise":
        assert isinstance(error, LookupError)
    else:
        assert error is None
    result = found.result()
    assert result is not None
    assert isinstance(result.exception, LookupError)


@pytest.mark.parametrize("error_mode", ["raise", "return", "continue"])
def test_what_cancels_it_from_outside_is_raised_in_every_mode(error_mode: str) -> None:
    found = execution(one, two, error_mode=error_mode)
    error = KeyboardInterrupt()

    def make(*about: Any) -> Any:
        run = found.make_run(*about)
        run.cancel_from_anywhere(error)
        return run

    run_blocking(make)
    assert found.error() is error
    result = found.result()
    assert result is not None
    assert result.exception is error


def test_a_second_interrupt_that_got_into_a_task_is_the_one_to_raise() -> None:
    inner = KeyboardInterrupt()

    async def interrupted() -> None:
        found._run.cancel_from_anywhere(KeyboardInterrupt())  # type: ignore[union-attr]
        raise inner

    found = execution(interrupted)
    run_blocking(found.make_run)
    assert found.error() is inner


def test_a_plan_that_is_wrong_is_kept_for_who_runs_it() -> None:
    found = execution(two)
    assert isinstance(found.plan.error, NameError)
    result = found.failed(found.plan.error)
    assert result.exception is found.plan.error
    assert result.cancelled == ("two",)


def test_unknown_environments() -> None:
    with pytest.raises(NameError, match="nowhere"):
        execution(one, environment="nowhere")


variable: ContextVar[str] = ContextVar("variable", default="unset")


def look() -> str:
    return variable.get()


def test_the_context_is_that_of_its_making() -> None:
    variable.set("then")
    found = execution(look)
    variable.set("now")
    run_blocking(found.make_run)
    result = found.result()
    assert result is not None
    assert result.look == "then"


class Workflow(Weave):
    @Weave.do
    def number(self, start: int) -> int:
        return start

    @Weave.do("numbers", workers=2)
    def mapped(self, item: int, number: int) -> int:
        return item * number


class Derived(Workflow):
    def mapped(self, item: int, number: int) -> int:
        return -item * number


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("parent", [Workflow, Derived])
def test_it_travels_with_its_settings(parent: type[Weave]) -> None:
    from wove.protocol.pickling import dumps, loads

    config(retries=2)
    found = Execution(
        declarations_of(parent),
        {"start": 3, "numbers": [1, 2]},
        {"error_mode": "return"},
        current(),
    )
    again = loads(dumps(found, label="a weave"), label="a weave")
    config(retries=0)
    assert isinstance(again, Execution)
    assert again.settings.error_mode == "return"
    assert again.configuration.defaults["retries"] == 2
    run_blocking(again.make_run)
    result = again.result()
    assert result is not None
    assert list(result) == [3, [3, 6] if parent is Workflow else [-3, -6]]


def test_both_forms_of_the_block_come_to_the_same() -> None:
    def declare(w: weave) -> None:
        w.do(one)
        w.do(two)
        w.do(fails)
        w.do(after)

    with pytest.raises(LookupError) as sync_error, weave() as sync_weave:
        declare(sync_weave)

    async def main() -> weave:
        with pytest.raises(LookupError) as async_error:
            async with weave() as w:
                declare(w)
        assert async_error.value.__notes__ == sync_error.value.__notes__
        assert async_error.value.__context__ is sync_error.value.__context__ is None
        return w

    async_weave = asyncio.run(main())
    assert async_weave.result.one == sync_weave.result.one == 1
    assert repr(async_weave.result) == repr(sync_weave.result)
