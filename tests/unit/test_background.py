"""Weaves in the background, in a thread or in a process of their own, as the program that starts them sees them."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from wove import (
    SerializationError,
    UnresolvedSignatureError,
    Weave,
    WoveResult,
    config,
    merge,
    weave,
)
from wove.errors import TaskTimeoutError, WeaveStateError

SOON = 30.0
"""Seconds after which something hangs."""

Block = Callable[[weave, Callable[[weave], None]], None]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def with_(w: weave, declare: Callable[[weave], None]) -> None:
    with w:
        declare(w)


def async_with(w: weave, declare: Callable[[weave], None]) -> None:
    async def main() -> None:
        async with w:
            declare(w)

    asyncio.run(main())


def with_in_a_running_loop(w: weave, declare: Callable[[weave], None]) -> None:
    async def main() -> None:
        with w:
            declare(w)

    asyncio.run(main())


def with_in_a_thread(w: weave, declare: Callable[[weave], None]) -> None:
    thread = threading.Thread(target=with_, args=(w, declare))
    thread.start()
    thread.join(SOON)


BLOCKS = pytest.mark.parametrize(
    "block", [with_, async_with, with_in_a_running_loop, with_in_a_thread]
)


class Told:
    """An `on_done` that keeps what it was told."""

    def __init__(self) -> None:
        self.results: list[WoveResult] = []

    def sync(self, result: WoveResult) -> None:
        self.results.append(result)

    async def later(self, result: WoveResult) -> None:
        await asyncio.sleep(0.001)
        self.results.append(result)


@pytest.fixture(params=["sync", "async"])
def told(request: pytest.FixtureRequest) -> tuple[Told, Callable[[WoveResult], Any]]:
    told = Told()
    return told, told.sync if request.param == "sync" else told.later


def errors_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


# ------------------------------------------------------------------------------------------ in a thread


@BLOCKS
def test_a_thread_goes_on_after_the_block(block: Block) -> None:
    go = threading.Event()
    w = weave(background=True, n=2)

    def declare(w: weave) -> None:
        @w.do
        def waits(n: int) -> int:
            go.wait(SOON)
            return n

        @w.do
        async def later(waits: int) -> int:
            await asyncio.sleep(0)
            return waits + 1

        @w.do([1, 2])
        def mapped(item: int, later: int) -> int:
            return merge(lambda n: n * later, [item])[0]

    block(w, declare)
    assert not w.done()
    assert w.wait(0.01) is False
    with pytest.raises(WeaveStateError, match="running"):
        _ = w.result
    assert w.execution_plan.tiers == [["waits"], ["later"], ["mapped"]]
    with pytest.raises(WeaveStateError, match="running already"):
        w.do(lambda: None)
    go.set()
    assert w.wait(SOON) is True
    assert w.done()
    assert list(w.result) == [2, 3, [3, 6]]


def test_wait_without_a_limit() -> None:
    with weave(background=True) as w:

        @w.do
        def task() -> int:
            time.sleep(0.02)
            return 1

    assert w.wait() is True
    assert w.result.task == 1


def test_a_weave_that_is_not_in_the_background_is_done_after_its_block() -> None:
    with weave() as w:
        assert not w.done()
    assert w.done()
    assert w.wait(0) is True


@BLOCKS
def test_on_done_after_success(
    block: Block, told: tuple[Told, Callable[[WoveResult], Any]]
) -> None:
    w = weave(background=True, on_done=told[1])
    block(w, lambda w: w.do(_one) and None)
    assert w.wait(SOON)
    assert [result.final for result in told[0].results] == [1]
    assert w.result.final == 1


def _one() -> int:
    return 1


@pytest.mark.parametrize("background", [True, False])
@BLOCKS
def test_on_done_after_failure(
    block: Block,
    told: tuple[Told, Callable[[WoveResult], Any]],
    background: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = LookupError("mine")

    def fail() -> None:
        raise error

    w = weave(background=background, on_done=told[1])
    if background:
        block(w, lambda w: w.do(fail) and None)
        assert w.wait(SOON)
    else:
        if block is with_in_a_thread:  # whose exception would end the thread
            block = with_
        with pytest.raises(LookupError):
            block(w, lambda w: w.do(fail) and None)
    assert [result.exception for result in told[0].results] == [error]
    with pytest.raises(LookupError):
        _ = w.result.fail
    assert not errors_of(caplog)


def test_on_done_after_a_timeout(told: tuple[Told, Callable[[WoveResult], Any]]) -> None:
    with weave(background=True, on_done=told[1]) as w:

        @w.do(timeout=0.02)
        def task() -> None:
            time.sleep(0.2)

    assert w.wait(SOON)
    assert isinstance(told[0].results[0].exception, TaskTimeoutError)


def test_on_done_after_an_unresolved_name(told: tuple[Told, Callable[[WoveResult], Any]]) -> None:
    with weave(background=True, on_done=told[1]) as w:

        @w.do
        def task(nothing: int) -> None:
            pass

    assert w.wait(SOON)
    result = told[0].results[0]
    assert isinstance(result.exception, UnresolvedSignatureError)
    assert result.cancelled == ("task",)
    assert w.result is result


def test_on_done_after_a_cycle(told: tuple[Told, Callable[[WoveResult], Any]]) -> None:
    with weave(background=True, on_done=told[1]) as w:

        @w.do
        def a(b: int) -> None:
            pass

        @w.do
        def b(a: int) -> None:
            pass

    assert w.wait(SOON)
    assert "Circular" in str(told[0].results[0].exception)


def test_on_done_after_an_unknown_environment(
    told: tuple[Told, Callable[[WoveResult], Any]],
) -> None:
    with weave(background=True, on_done=told[1]) as w:

        @w.do(environment="nowhere")
        def task() -> None:
            pass

    assert w.wait(SOON)
    assert isinstance(told[0].results[0].exception, NameError)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_on_done_after_a_task_that_exits(
    told: tuple[Told, Callable[[WoveResult], Any]], error: BaseException
) -> None:
    def leave() -> None:
        raise error

    with weave(background=True, on_done=told[1]) as w:
        w.do(leave)

    assert w.wait(SOON)
    assert told[0].results[0].exception is error


@pytest.mark.parametrize("error", [LookupError("mine"), SystemExit(3)])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_on_done_that_fails_is_logged(
    error: BaseException, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(result: WoveResult) -> None:
        raise error

    async def fail_later(result: WoveResult) -> None:
        await asyncio.sleep(0)
        raise error

    with weave(background=True, on_done=fail_later if asynchronous else fail) as w:
        w.do(_one)

    assert w.wait(SOON)
    assert w.result.final == 1
    (record,) = errors_of(caplog)
    assert record.name == "wove"
    assert "on_done failed" in record.message
    assert record.exc_info
    assert record.exc_info[1] is error


@BLOCKS
def test_an_on_done_that_fails_spoils_no_block(
    block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(result: WoveResult) -> None:
        raise LookupError("mine")

    async def fail_later(result: WoveResult) -> None:
        fail(result)

    for on_done in (fail, fail_later):
        caplog.clear()
        w = weave(on_done=on_done)
        block(w, lambda w: w.do(_one) and None)
        assert w.result.final == 1
        assert [record.message for record in errors_of(caplog)] == ["on_done failed"]


def test_a_failure_that_nobody_is_told_of_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = LookupError("mine")

    def fail() -> None:
        raise error

    with weave(background=True) as w:
        w.do(fail)
    assert w.wait(SOON)
    (record,) = errors_of(caplog)
    assert record.name == "wove"
    assert "LookupError('mine')" in record.message
    assert record.exc_info
    assert record.exc_info[1] is error


def test_on_done_must_be_callable() -> None:
    with pytest.raises(TypeError, match="on_done must be callable"):
        weave(on_done=5)  # type: ignore[arg-type]


def test_on_done_may_ask_the_weave() -> None:
    """It is a part of the weave, so that is not done yet; and to wait for it would be for ever."""
    asked: list[object] = []

    def ask(result: WoveResult) -> None:
        asked.extend([w.done(), w.wait()])

    with weave(background=True, on_done=ask) as w:
        w.do(_one)
    assert w.wait(SOON)
    assert asked == [False, False]


def test_a_body_that_raises_starts_nothing(told: tuple[Told, Callable[[WoveResult], Any]]) -> None:
    ran: list[int] = []
    before = set(threading.enumerate())
    with pytest.raises(LookupError):
        with weave(background=True, on_done=told[1]) as w:
            w.do(lambda: ran.append(1))
            raise LookupError
    assert set(threading.enumerate()) <= before
    assert not ran
    assert not told[0].results


variable: ContextVar[str] = ContextVar("variable", default="unset")


def test_the_context_is_that_of_the_block() -> None:
    seen: list[str] = []
    variable.set("caller")
    with weave(background=True, on_done=lambda result: seen.append(variable.get())) as w:

        @w.do
        def sync_task() -> str:
            return variable.get()

        @w.do
        async def async_task() -> str:
            return variable.get()

        @w.do([1])
        def mapped(item: int) -> str:
            return variable.get()

    variable.set("changed")
    assert w.wait(SOON)
    assert list(w.result) == ["caller", "caller", ["caller"]]
    assert seen == ["caller"]


def test_background_by_configuration() -> None:
    config(background=True)
    with weave() as w:
        w.do(_one)
    assert w.wait(SOON)
    assert w.result.final == 1
    with weave(background=False) as w:
        w.do(_one)
    assert w.result.final == 1


def test_it_belongs_to_no_other_weave() -> None:
    """It goes on when the weave of the task that started it fails, or when that task is over."""
    go = threading.Event()
    started: list[weave] = []

    def start() -> None:
        with weave(background=True) as w:

            @w.do
            def waits() -> Any:
                go.wait(SOON)
                return merge(_one)

            @w.do([1, 2], workers=1)
            def mapped(item: int, waits: int) -> Any:
                return merge(_one)

        started.append(w)

    with pytest.raises(LookupError):
        with weave() as w:

            @w.do(retries=1, timeout=SOON)
            def first() -> None:
                start()

            @w.do([1])
            def second(item: int, first: None) -> None:
                start()

            @w.do
            def third(second: list[None]) -> None:
                merge(start)
                raise LookupError

    assert len(started) == 3
    go.set()
    for w in started:
        assert w.wait(SOON)
        assert list(w.result) == [1, [1, 1]]


def test_many_at_once() -> None:
    weaves = []
    for n in range(20):
        with weave(background=True, n=n) as w:

            @w.do
            def task(n: int) -> int:
                time.sleep(0.01)
                return n

            @w.do
            async def later(task: int) -> int:
                return 2 * task

        weaves.append(w)
    assert all(w.wait(SOON) for w in weaves)
    assert [w.result.final for w in weaves] == [2 * n for n in range(20)]


# ------------------------------------------------------------------------------------------ in a process


def on_done_into(path: Path) -> Callable[[WoveResult], Any]:
    """An `on_done` that writes what became of the weave."""

    def write(result: WoveResult) -> None:
        text = json.dumps(
            {
                "error": repr(result.exception) if result.exception is not None else None,
                "values": None
                if result.exception is not None
                else [repr(value) for value in result],
                "pid": os.getpid(),
                "session": os.getsid(0),
                "cwd": os.getcwd(),
            }
        )
        path.with_suffix(".part").write_text(text)
        path.with_suffix(".part").rename(path)

    return write


def read(path: Path) -> dict[str, Any]:
    until(path.exists)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.backend("stdio")
@BLOCKS
def test_a_detached_process(block: Block, tmp_path: Path, no_leaks: None) -> None:
    go, done = tmp_path / "go", tmp_path / "done.json"
    w = weave(background=True, fork=True, on_done=on_done_into(done), n=2)

    def declare(w: weave) -> None:
        @w.do
        def waits(n: int) -> int:
            while not go.exists():
                time.sleep(0.005)
            return n

        @w.do
        async def later(waits: int) -> int:
            await asyncio.sleep(0)
            return waits + 1

    block(w, declare)
    assert not w.done()
    assert w.wait(0.01) is False
    go.touch()
    assert w.wait(SOON) is True
    assert w.done()
    found = read(done)
    assert found["values"] == ["2", "3"]
    assert found["pid"] != os.getpid()
    assert found["session"] == found["pid"] != os.getsid(0)
    assert found["cwd"] == os.getcwd()
    with pytest.raises(WeaveStateError, match="hand them on with on_done"):
        _ = w.result
    with pytest.raises(ChildProcessError):  # no zombie
        os.waitpid(found["pid"], os.WNOHANG)


class Workflow(Weave):
    @Weave.do(retries=1)
    def number(self, n: int) -> int:
        return n

    @Weave.do([1, 2])
    async def mapped(self, item: int, number: int) -> int:
        return item * number


@pytest.mark.backend("stdio")
def test_a_detached_process_of_a_class_and_what_can_end_one(tmp_path: Path) -> None:
    """All of these at once: to start a process takes its time."""

    def told(name: str) -> dict[str, Any]:
        async def later(result: WoveResult) -> None:
            await asyncio.sleep(0)
            on_done_into(tmp_path / name)(result)

        on_done = on_done_into(tmp_path / name) if name != "timeout" else later
        return {"background": True, "fork": True, "on_done": on_done}

    with weave(Workflow, **told("class"), n=3):
        pass
    with weave(**told("failure")) as w:

        @w.do
        def fail() -> None:
            raise LookupError("mine")

    with weave(**told("timeout")) as w:

        @w.do(timeout=0.05)
        async def long() -> None:
            await asyncio.sleep(600)

    with weave(**told("unresolved")) as w:

        @w.do
        def task(nothing: int) -> None:
            pass

    with weave(**told("exit")) as w:

        @w.do
        def leave() -> None:
            raise SystemExit(3)

    config(retries=3)
    with weave(**told("config")) as w:
        tried: list[int] = []

        @w.do
        def flaky() -> int:
            tried.append(1)
            if len(tried) < 4:
                raise OSError
            return len(tried)

    assert read(tmp_path / "class")["values"] == ["3", "[3, 6]"]
    assert read(tmp_path / "failure")["error"] == "LookupError('mine')"
    assert "took longer than 0.05 s" in read(tmp_path / "timeout")["error"]
    assert "UnresolvedSignatureError" in read(tmp_path / "unresolved")["error"]
    assert read(tmp_path / "exit")["error"] == "SystemExit(3)"
    assert read(tmp_path / "config")["values"] == ["4"]


@pytest.mark.backend("stdio")
def test_a_large_value_is_handed_over_off_the_loop(tmp_path: Path) -> None:
    """50 MB are written while the loop keeps turning."""
    turns = 0

    class Slow:
        """Says when it is pickled, and takes its time."""

        def __reduce__(self) -> tuple[Any, ...]:
            assert threading.current_thread() is not threading.main_thread()
            seen = turns
            deadline = time.monotonic() + SOON
            while turns < seen + 5:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            return (int, (7,))

    async def main() -> weave:
        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        turning = asyncio.create_task(turn())
        async with weave(
            background=True,
            fork=True,
            on_done=on_done_into(tmp_path / "done"),
            large=b"x" * 50_000_000,
            slow=Slow(),
        ) as w:

            @w.do
            def size(large: bytes, slow: int) -> int:
                return len(large) + slow

        turning.cancel()
        return w

    w = asyncio.run(main())
    assert w.wait(SOON)
    assert read(tmp_path / "done")["values"] == ["50000007"]


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("block", [with_, async_with, with_in_a_running_loop])
def test_what_cannot_be_pickled_is_an_error_of_the_block(block: Block, no_leaks: None) -> None:
    w = weave(background=True, fork=True, lock=threading.Lock())

    def declare(w: weave) -> None:
        @w.do
        def task(lock: Any) -> None:
            pass

    with pytest.raises(SerializationError, match="lock"):
        block(w, declare)
    assert w.done()
    gc.collect()


def test_an_interpreter_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cloudpickle")
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(FileNotFoundError, match="no-python"):
        with weave(background=True, fork=True) as w:
            w.do(_one)
