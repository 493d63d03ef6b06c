"""What a weave leaves behind, as its user reads it."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import traceback
from typing import Any

import pytest
from tests.support.forms import PATIENCE, Attempt, attempt, run

from wove import TaskCancelledError, WoveResult, weave
from wove.errors import EnvironmentExecutionError
from wove.result import RESERVED


class Boom(Exception):
    pass


class TwoArguments(Exception):
    """It does not rebuild from its args."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def three(w: weave) -> None:
    @w.do
    def b() -> int:
        return 2

    @w.do
    async def a(b: int) -> int:
        return b + 1

    @w.do([1, 2])
    def c(item: int, start: int) -> int:
        return item + start


def one_fails(form: str, mode: str) -> Attempt:
    def declare(w: weave) -> None:
        ready = asyncio.Event()

        @w.do
        def fine() -> int:
            return 1

        @w.do
        async def sleeps(fine: int) -> None:
            ready.set()
            await asyncio.sleep(PATIENCE)

        @w.do
        async def bad() -> None:
            await ready.wait()
            raise Boom("why")

        @w.do
        def after(bad: None) -> None: ...

    return attempt(form, declare, error_mode=mode, n=5)


def test_reading_by_name(form: str) -> None:
    result = run(form, three, start=10)
    assert (result.a, result["a"], result.c, result["c"]) == (3, 3, [11, 12], [11, 12])
    assert (result.start, result["start"]) == (10, 10)
    assert "a" in result
    assert "start" in result
    assert "z" not in result
    assert 7 not in result


def test_order_is_the_order_of_definition(form: str) -> None:
    result = run(form, three, start=10)
    assert list(result) == [2, 3, [11, 12]]
    b, a, c = result
    assert (a, b, c) == (3, 2, [11, 12])
    assert len(result) == 3
    assert result.final == [11, 12]
    assert list(result.timings) == ["b", "a", "c"]
    assert repr(result) == "<WoveResult b=2, a=3, c=[11, 12]>"
    assert {"a", "b", "c"} <= set(dir(result))


def test_of_no_tasks() -> None:
    result = run("with", lambda w: None)
    assert (len(result), list(result), result.final, result.exception) == (0, [], None, None)
    assert bool(repr(result))


def test_an_unknown_name_says_what_there_is() -> None:
    result = run("with", three, start=10)
    with pytest.raises(AttributeError, match="no task 'aa'.*Did you mean 'a'.*'b', 'a', 'c'"):
        result.aa  # noqa: B018
    with pytest.raises(KeyError, match="no task 'aa'.*Did you mean 'a'.*'b', 'a', 'c'"):
        result["aa"]
    assert getattr(result, "aa", None) is None
    assert not hasattr(result, "__iter_me__")


def test_reading_what_failed_or_was_cancelled(form: str) -> None:
    done = one_fails(form, "raise")
    result = done.result
    assert result.fine == 1
    for name in ("bad", "after"):
        with pytest.raises(Boom) as caught:
            result[name]
        assert caught.value is done.error is result.exception
        with pytest.raises(Boom):
            getattr(result, name)
    with pytest.raises(
        TaskCancelledError, match=r"'sleeps' has no result: it was cancelled after Boom\('why'\)"
    ) as lost:
        result.sleeps  # noqa: B018
    assert lost.value.__cause__ is result.exception
    assert result.cancelled == ("sleeps",)
    assert [(failure.task, failure.item, failure.exception) for failure in result.failures] == [
        ("bad", None, result.exception)
    ]
    with pytest.raises(Boom):
        result.final  # noqa: B018
    assert repr(result) == (
        "<WoveResult fine=1, sleeps=cancelled, bad=failed: Boom('why'), after=failed: Boom('why')>"
    )


@pytest.mark.parametrize("mode", ["return", "continue"])
def test_reading_what_failed_in_the_other_modes(form: str, mode: str) -> None:
    if mode == "continue":
        result = run(form, lambda w: (w.do(_bad), w.do(_after)), error_mode=mode)
        assert list(result) == [result.exception, result.exception]
    else:
        result = one_fails(form, mode).result
        assert result.bad is result.after is result.final is result.exception


def _bad() -> None:
    raise Boom("why")


def _after(_bad: None) -> None: ...


def test_reading_a_failed_task_again_and_again_does_not_lengthen_its_traceback(form: str) -> None:
    result = one_fails(form, "raise").result
    lengths = []
    for _ in range(5):
        try:
            result.bad  # noqa: B018
        except Boom as error:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(set(lengths)) == 1
    assert all(
        line.name != "with_traceback"
        for line in traceback.extract_tb(result.exception.__traceback__)
    )  # type: ignore[union-attr]


def test_many_threads_may_read_a_failed_task() -> None:
    result = one_fails("with", "raise").result
    found: list[int] = []

    def read() -> None:
        for _ in range(200):
            try:
                result.bad  # noqa: B018
            except Boom as error:
                found.append(len(traceback.extract_tb(error.__traceback__)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800
    assert max(found) < 50


# ---------------------------------------------------------------------- pickling


@pytest.mark.parametrize("mode", ["raise", "return"])
def test_it_pickles(form: str, mode: str) -> None:
    result = one_fails(form, mode).result
    back: WoveResult = pickle.loads(pickle.dumps(result))
    assert back.fine == 1
    assert back.n == 5
    assert back.cancelled == ("sleeps",)
    assert back.timings == result.timings
    assert back.run_records == result.run_records
    assert repr(back) == repr(result)
    assert isinstance(back.exception, Boom)
    assert back.exception is back.failures[0].exception
    assert back.exception.__notes__ == ["in task 'bad'"]
    if mode == "raise":
        with pytest.raises(Boom) as caught:
            back.after  # noqa: B018
        assert caught.value is back.exception
    else:
        assert back.after is back.exception
    again = pickle.loads(pickle.dumps(back))
    assert repr(again) == repr(result)


@pytest.mark.parametrize("lock", [False, True])
def test_it_pickles_with_exceptions_that_do_not(lock: bool) -> None:
    def declare(w: weave) -> None:
        @w.do
        def bad() -> None:
            if lock:
                raise Boom(threading.Lock())
            raise TwoArguments(1, 2)

        @w.do
        def after(bad: None) -> None: ...

    result = run("with", declare, error_mode="return")
    back = pickle.loads(pickle.dumps(result))
    assert isinstance(back.bad, EnvironmentExecutionError)
    assert back.bad is back.after is back.exception
    assert ("Boom" if lock else "TwoArguments: 1 and 2") in str(back.bad)
    assert isinstance(result.bad, Boom if lock else TwoArguments)  # the original stays what it is


def test_it_copies() -> None:
    result = run("with", three, start=10)
    assert list(copy.copy(result)) == list(copy.deepcopy(result)) == list(result)


# ---------------------------------------------------------------------- names that are taken


def test_every_attribute_of_a_result_is_a_name_that_is_taken() -> None:
    attributes: list[Any] = []
    with weave() as w:
        pass
    attributes = [name for name in object.__dir__(w.result) if not name.startswith("__")]
    assert {"final", "timings", "cancelled", "exception", "failures", "run_records"} <= set(
        attributes
    )
    assert set(attributes) <= RESERVED
    for name in attributes:
        with pytest.raises(NameError, match=f"'{name}' cannot name"):
            weave(**{name: 1})
        fn: Any = lambda: None  # noqa: E731
        fn.__name__ = name
        with pytest.raises(NameError, match=f"'{name}' cannot name"), weave() as w:
            w.do(fn)
