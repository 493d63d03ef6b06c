"""Which loop a weave runs on, and in what state it leaves it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import soon

from wove import WoveResult, weave
from wove.engine import loops

SOON = 20.0
"""Seconds after which something hangs."""


@pytest.fixture(autouse=True)
def _a_loop_of_ones_own() -> Iterator[None]:
    """Each test starts without a kept loop, and closes the one it leaves."""
    loops._kept.loop = loops._kept.closer = None
    yield
    loops._kept.loop = loops._kept.closer = None


def in_task(fn: Callable[[], Any]) -> Any:
    with weave() as w:

        @w.do
        async def task() -> Any:
            value = fn()
            return await value if asyncio.iscoroutine(value) else value

    return w.result.task


def loop_of_a_weave() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = in_task(asyncio.get_running_loop)
    return loop


# ------------------------------------------------------------------------------------------ which loop


def test_weaves_of_one_thread_share_a_loop() -> None:
    loop = loop_of_a_weave()
    assert not loop.is_closed()
    assert loop_of_a_weave() is loop


def test_no_loop_is_left_as_the_current_one() -> None:
    loop_of_a_weave()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert asyncio.run(_nothing()) is None


async def _nothing() -> None:
    pass


def test_async_with_uses_the_running_loop() -> None:
    async def main() -> bool:
        async with weave() as w:

            @w.do
            async def task() -> asyncio.AbstractEventLoop:
                return asyncio.get_running_loop()

        return w.result.task is asyncio.get_running_loop()

    assert asyncio.run(main())


def test_with_in_a_running_loop_uses_another_one_in_another_thread() -> None:
    async def main() -> None:
        here = asyncio.get_running_loop()
        seen: list[object] = []
        for _ in range(2):
            with weave() as w:

                @w.do
                async def task() -> tuple[bool, bool]:
                    return (
                        asyncio.get_running_loop() is here,
                        threading.current_thread() is threading.main_thread(),
                    )

            seen.append(w.result.task)
        assert seen == [(False, False)] * 2
        assert asyncio.get_running_loop() is here

    asyncio.run(main())


def test_with_in_a_running_loop_raises_as_elsewhere() -> None:
    error = LookupError("mine")

    async def main() -> None:
        with weave() as w:

            @w.do
            def fails() -> None:
                raise error

    with pytest.raises(LookupError) as caught:
        asyncio.run(main())
    assert caught.value is error
    assert caught.value.__context__ is None


def test_each_thread_has_its_loop_and_takes_it_along() -> None:
    found: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    own = loop_of_a_weave()

    def work() -> None:
        loop = loop_of_a_weave()
        assert loop is loop_of_a_weave()
        assert loop is not own
        found.append(weakref.ref(loop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SOON)
    gc.collect()
    loop = found[0]()
    assert loop is None or loop.is_closed()
    assert not own.is_closed()


def test_a_closed_loop_is_replaced() -> None:
    loop = loop_of_a_weave()
    loop.close()
    assert loop_of_a_weave() is not loop


def test_a_weave_of_threads_needs_no_loop() -> None:
    with weave() as w:

        @w.do
        def first() -> int:
            return 1

        @w.do
        def second(first: int) -> int:
            return first + 1

    assert w.result.second == 2


def test_a_weave_of_coroutines_starts_no_thread() -> None:
    before = set(threading.enumerate())
    with weave() as w:

        @w.do
        async def first() -> int:
            await asyncio.sleep(0)
            return 1

        @w.do([1, 2, 3])
        async def mapped(item: int, first: int) -> int:
            return item + first

    assert w.result.mapped == [2, 3, 4]
    assert not set(threading.enumerate()) - before


# ------------------------------------------------------------------------------------------ what is left on it


def kept() -> asyncio.AbstractEventLoop | None:
    return loops._kept.loop


def test_a_loop_on_which_nothing_is_left_is_kept_also_after_failures() -> None:
    loop = loop_of_a_weave()
    with pytest.raises(LookupError):
        with weave() as w:

            @w.do
            async def sleeps() -> None:
                await asyncio.sleep(60)

            @w.do(timeout=60, retries=1)
            async def limited() -> None:
                await asyncio.sleep(60)

            @w.do
            async def fails(data: Any) -> None:
                await asyncio.sleep(0.001)
                raise LookupError

    assert kept() is loop


async def _leave_a_task() -> None:
    left.append(asyncio.create_task(asyncio.sleep(60)))


async def _leave_a_generator() -> None:
    async def generator() -> AsyncIterator[int]:
        yield 1

    left.append(generator())
    await anext(left[-1])


async def _use_the_executor() -> None:
    await asyncio.to_thread(int)


async def _leave_a_timer() -> None:
    asyncio.get_running_loop().call_later(60, int)


async def _leave_a_reader() -> None:
    left.extend(socket.socketpair())
    asyncio.get_running_loop().add_reader(left[-1], int)


async def _leave_a_signal_handler() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, int)


async def _set_a_task_factory() -> None:
    asyncio.get_running_loop().set_task_factory(
        lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
    )


async def _set_an_exception_handler() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, about: None)


left: list[Any] = []


@pytest.mark.parametrize(
    "leave",
    [
        _leave_a_task,
        _leave_a_generator,
        _use_the_executor,
        _leave_a_timer,
        _leave_a_reader,
        _leave_a_signal_handler,
        _set_a_task_factory,
        _set_an_exception_handler,
    ],
)
def test_a_loop_on_which_something_is_left_is_closed_as_asyncio_run_does(
    leave: Callable[[], Any],
) -> None:
    loop = loop_of_a_weave()
    try:
        in_task(leave)
        soon(loop.is_closed)  # by another thread, where threads of its executor have to end first
        assert kept() is None
        if leave is _leave_a_task:
            assert left[0].cancelled()
        assert loop_of_a_weave() is not loop
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        for thing in left:
            if isinstance(thing, socket.socket):
                thing.close()
        left.clear()


def test_a_task_left_behind_that_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "CLEAN_UP_SECONDS", 0.05)
    go_on = True

    async def stubborn() -> None:
        while go_on:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def leave() -> None:
        left.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0)

    in_task(leave)
    go_on = False
    task = left.pop()
    assert not task.done()
    task._log_destroy_pending = (
        False  # what asyncio would say of it is right, and not of interest here
    )
    task.get_coro().close()


# ------------------------------------------------------------------------------------------ cancels


def test_cancelling_the_task_around_async_with_waits_for_the_clean_up() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        started = asyncio.Event()

        async def block() -> None:
            async with weave() as w:

                @w.do
                async def task() -> None:
                    started.set()
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(0.02)
                        cleaned.append("up")

        task = asyncio.create_task(block())
        await started.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # once is enough: it is ending
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["up"]

    asyncio.run(main())


def test_asyncio_timeout_around_async_with() -> None:
    result: list[WoveResult] = []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                async with weave() as w:

                    @w.do
                    async def sleeps() -> None:
                        await asyncio.sleep(60)

                    @w.do
                    def blocks() -> None:
                        time.sleep(0.3)

        result.append(w.result)
        await asyncio.sleep(0)  # the task itself is as before

    asyncio.run(main())
    assert result[0].cancelled == ("sleeps", "blocks")
    assert isinstance(result[0].exception, asyncio.CancelledError)


def test_a_coroutine_that_is_closed_ends_its_weave() -> None:
    """As when its loop is closed under it."""
    loop = asyncio.new_event_loop()
    ended: list[str] = []

    async def block() -> None:
        async with weave() as w:

            @w.do
            async def task() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.append("task")

    async def main() -> None:
        coroutine = block()
        coroutine.send(None)
        await asyncio.sleep(0.01)
        coroutine.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    loop.close()
    assert ended == ["task"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
@pytest.mark.parametrize("kind", ["sync", "async", "both"])
@pytest.mark.parametrize("in_loop", [False, True])
def test_a_signal_handler_that_raises_ends_the_weave(kind: str, in_loop: bool) -> None:
    class Alarm(Exception):
        pass

    def ring(*about: object) -> None:
        raise Alarm

    go = threading.Event()
    cleaned: list[str] = []

    def block() -> None:
        with weave() as w:
            if kind != "async":

                @w.do
                def blocks() -> None:
                    go.wait(SOON)

            if kind != "sync":

                @w.do
                async def sleeps() -> None:
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(0)
                        cleaned.append("up")

    async def main() -> None:
        block()

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            asyncio.run(main()) if in_loop else block()
    finally:
        signal.signal(signal.SIGALRM, previous)
        go.set()
    assert cleaned == ([] if kind == "sync" else ["up"])
    assert in_task(lambda: 1) == 1


def test_the_handler_of_ctrl_c_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert in_task(lambda: signal.getsignal(signal.SIGINT)) is not before
    assert signal.getsignal(signal.SIGINT) is before

    def own(*about: object) -> None:
        pass

    signal.signal(signal.SIGINT, own)
    try:
        assert in_task(lambda: signal.getsignal(signal.SIGINT)) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    loop = loop_of_a_weave()
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if loop_of_a_weave() is not loop else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert loop_of_a_weave() is loop
