"""What an exception says of where it came from."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.docs.pages import ROOT
from tests.support.forms import PATIENCE, attempt

from wove import weave
from wove.engine.tracebacks import annotate, raisable
from wove.errors import HELP_PAGE, SerializationError, WorkerLostError


class Boom(Exception):
    pass


def users_line() -> None:
    raise Boom("here")


def sync(item: Any = None) -> None:
    users_line()


async def asynchronous(item: Any = None) -> None:
    await asyncio.sleep(0)
    users_line()


def returning(item: Any = None) -> Any:
    return asynchronous()


def generator(item: Any = None) -> Iterator[int]:
    yield 1
    users_line()


async def async_generator(item: Any = None) -> Any:
    yield 1
    users_line()


OPTIONS: list[dict[str, Any]] = [{}, {"timeout": PATIENCE}, {"retries": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("source", [None, [1], "iterator"])
@pytest.mark.parametrize("fn", [sync, asynchronous, returning, generator, async_generator])
def test_the_traceback_begins_with_the_users_code(
    form: str, fn: Callable[..., Any], source: Any, options: dict[str, Any]
) -> None:
    def declare(w: weave) -> None:
        given = () if source is None else (iter([1]) if source == "iterator" else source,)
        w.do(*given, **options)(fn)

    def frames(error: BaseException) -> list[str]:
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    returned = attempt(form, declare, error_mode="return").result.exception
    assert returned is not None
    names = frames(returned)
    assert names[-1] == "users_line"
    assert names[0] in ("sync", "asynchronous", "generator", "async_generator")
    assert len(names) == 2
    item = "" if source is None else ", item 0 (value 1)"
    attempts = ", attempt 2" if "retries" in options else ""
    assert returned.__notes__ == [f"in task {fn.__name__!r}{item}{attempts}"]

    raised = attempt(form, declare).error
    assert raised is not None
    assert frames(raised)[-2:] == names
    assert raised.__context__ is None
    assert raised.__cause__ is None
    assert raised.__suppress_context__ is False


def test_cause_and_context_are_kept(form: str) -> None:
    cause, context = ValueError("cause"), KeyError("context")

    def with_cause() -> None:
        raise Boom from cause

    async def with_context() -> None:
        try:
            raise context
        except KeyError:
            raise Boom  # noqa: B904

    for fn in (with_cause, with_context):
        error = attempt(form, lambda w, fn=fn: w.do(fn)).error
        assert isinstance(error, Boom)
        assert error.__cause__ is (cause if fn is with_cause else None)
        assert error.__context__ is (None if fn is with_cause else context)


def test_a_note_for_each_weave_it_came_through(form: str) -> None:
    def outer() -> None:
        with weave() as w:
            w.do([1])(lambda item: users_line())

    error = attempt(form, lambda w: w.do(outer)).error
    assert error is not None
    assert error.__notes__ == ["in task '<lambda>', item 0 (value 1)", "in task 'outer'"]


def test_an_exception_that_several_tasks_raise_has_a_note_of_each() -> None:
    shared = Boom()

    def bad(item: int) -> None:
        raise shared

    error = attempt("with", lambda w: w.do(range(3))(bad), error_mode="continue").result.bad
    assert error is shared
    assert len(error.__notes__) == 1  # the same task: once is enough


def test_the_position_is_told() -> None:
    error = Boom()
    assert annotate(error, "a", 3) == 3
    assert annotate(error, "a") == 3
    assert annotate(error, "b") is None
    assert annotate(error, "b") is None
    assert error.__notes__ == ["in task 'a', item 3", "in task 'b'"]


class Hostile:
    def __repr__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("invoice 7", "'invoice 7'"),
        ({"id": 7}, "{'id': 7}"),
        (list(range(100_000)), "[0, 1, 2, 3, 4, 5, ...]"),
        (Boom("two\nlines"), r"Boom('two\nlines')"),
        (Hostile(), "<Hostile>"),
    ],
)
def test_the_item_is_shown_beside_its_position(value: object, shown: str) -> None:
    error = Boom()
    annotate(error, "a", 3, value, ", attempt 2")
    assert error.__notes__ == [f"in task 'a', item 3 (value {shown}), attempt 2"]


def test_a_long_item_is_shortened() -> None:
    error = Boom()
    annotate(error, "a", 3, "x" * 1000)
    assert len(error.__notes__[0]) < 100


def test_only_stop_iteration_cannot_be_raised() -> None:
    for error in (Boom(), SystemExit(), StopAsyncIteration(), GeneratorExit()):
        assert raisable(error, "a") is error
    stop = StopIteration(1)
    replaced = raisable(stop, "a")
    assert isinstance(replaced, RuntimeError)
    assert replaced.__cause__ is stop
    assert "'a'" in str(replaced)


@pytest.mark.parametrize("error", [WorkerLostError("gone"), SerializationError("a lock")], ids=repr)
def test_what_happens_on_the_way_names_the_page_that_helps(error: Exception) -> None:
    annotate(error, "report")
    assert error.__notes__ == [f"in task 'report'\n{HELP_PAGE}"]
    page, _, _ = HELP_PAGE.partition(" ")
    assert (ROOT / page).is_file()


def test_a_tasks_own_error_names_no_page() -> None:
    error = Boom("here")
    annotate(error, "report")
    assert error.__notes__ == ["in task 'report'"]
