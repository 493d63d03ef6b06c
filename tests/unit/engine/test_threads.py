"""Sync callables in threads: the pool, its places, and calls that are given up."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.forms import PATIENCE, attempt, soon

from wove import weave
from wove.engine.threads import (
    JobPool,
    RunMailbox,
    ThreadCall,
    ThreadLimiter,
    discard,
    start_thread,
    thread_number,
)


def test_a_thread_is_used_again() -> None:
    """Threads have numbers, which no two of them share; one that ended never comes back."""
    seen: set[int] = set()

    def is_known() -> bool:
        numbers, ended = list[int](), threading.Event()

        def job() -> None:
            numbers.append(thread_number())
            ended.set()

        start_thread(job)
        assert ended.wait(PATIENCE)
        known = numbers[0] in seen
        seen.update(numbers)
        return known

    soon(is_known)
    assert 0 not in seen
    assert thread_number() == 0


def test_a_job_may_give_the_next_one() -> None:
    seen: list[int] = []
    ended = threading.Event()

    def job(n: int) -> Callable[[], Any] | None:
        seen.append(threading.get_ident())
        if n == 3:
            ended.set()
            return None
        return lambda: job(n + 1)

    start_thread(lambda: job(0))
    assert ended.wait(PATIENCE)
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_jobs_over_the_limit_wait_in_the_order_they_came() -> None:
    slots = ThreadLimiter(1)
    order: list[int] = []
    gate, ended = threading.Event(), threading.Event()

    def job(n: int) -> Any:
        gate.wait(PATIENCE)
        order.append(n)
        if n == 4:
            ended.set()
        return slots.next()

    for n in range(5):
        slots.submit(lambda n=n: job(n))
    gate.set()
    assert ended.wait(PATIENCE)
    assert order == [0, 1, 2, 3, 4]
    soon(lambda: slots.in_use == 0)


def in_a_loop(body: Callable[[RunMailbox, ThreadLimiter], Any]) -> Any:
    async def main() -> Any:
        return await body(RunMailbox(asyncio.get_running_loop()), ThreadLimiter(1))

    return asyncio.run(main())


def test_calls_from_threads_come_in_order() -> None:
    async def body(inbox: RunMailbox, slots: ThreadLimiter) -> list[int]:
        got: list[int] = []
        done = asyncio.Event()

        def work() -> None:
            for n in range(1000):
                inbox.post(got.append, n)
            inbox.post(done.set)

        start_thread(work)
        async with asyncio.timeout(PATIENCE):
            await done.wait()
        return got

    assert in_a_loop(body) == list(range(1000))


def test_calls_that_never_end_leave_the_loop_its_turn() -> None:
    async def body(inbox: RunMailbox, slots: ThreadLimiter) -> None:
        stop = threading.Event()

        def again() -> None:
            if not stop.is_set():
                inbox.post(again)

        inbox.post(again)
        async with asyncio.timeout(PATIENCE):
            for _ in range(10):
                await asyncio.sleep(0)
        stop.set()

    in_a_loop(body)


def test_a_call_into_a_loop_that_was_closed_is_dropped() -> None:
    """It is neither made nor kept: a coroutine among its arguments is closed."""
    loop = asyncio.new_event_loop()
    inbox, made = RunMailbox(loop), list[object]()
    loop.close()

    async def coroutine() -> None: ...

    awaitable = coroutine()
    inbox.post(made.append, awaitable)
    assert made == []
    with pytest.raises(RuntimeError, match="cannot reuse"):
        awaitable.send(None)


def test_a_call_reports_once_unless_it_is_given_up() -> None:
    async def body(inbox: RunMailbox, slots: ThreadLimiter) -> None:
        ended: asyncio.Future[tuple[bool, Any]] = asyncio.get_running_loop().create_future()
        made = ThreadCall(
            lambda: 7, slots=slots, inbox=inbox, context=contextvars.copy_context(),
            ended=lambda *outcome: ended.set_result(outcome),
        )  # fmt: skip
        made.start()
        assert await asyncio.wait_for(ended, PATIENCE) == (True, 7)
        made.abandon()  # too late to matter
        soon(lambda: slots.in_use == 0)

        release, reported = threading.Event(), []
        stuck = ThreadCall(
            lambda: release.wait(PATIENCE), slots=slots, inbox=inbox, context=contextvars.copy_context(),
            ended=lambda *outcome: reported.append(outcome),
        )  # fmt: skip
        begun = stuck.wait_started()
        stuck.start()
        await asyncio.wait_for(begun, PATIENCE)
        waiting = ThreadCall(
            lambda: reported.append("ran"), slots=slots, inbox=inbox, context=contextvars.copy_context(),
            ended=lambda *outcome: reported.append(outcome),
        ).start()  # fmt: skip
        waiting.abandon()  # before it began
        stuck.abandon()
        soon(lambda: slots.in_use == 0)
        release.set()
        await asyncio.sleep(0.01)
        assert reported == []

    in_a_loop(body)


def test_a_coroutine_that_nobody_awaits_is_closed() -> None:
    async def coroutine() -> None: ...

    made = coroutine()
    discard(made)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        made.send(None)

    class Pool:
        closed = False

        def __await__(self) -> Any: ...

        def close(self) -> None:
            self.closed = True

    pool = Pool()
    discard(pool)
    assert not pool.closed  # awaitable, but the user's own


@pytest.mark.parametrize("count", [0, 1])
def test_where_there_are_no_more_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none at all, a task that needs one fails; with one, it does the work of many."""
    started = 0
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        nonlocal started
        if not thread.name.removeprefix(
            "wove-"
        ).isdigit():  # what an earlier test left behind is not meant
            original(thread)
            return
        if started == count:
            raise RuntimeError("can't start new thread")
        started += 1
        original(thread)

    monkeypatch.setattr("wove.engine.threads._threads", JobPool())
    monkeypatch.setattr(
        "wove.concurrency.thread_pool.IDLE_SECONDS", 60.0
    )  # or on a busy machine, the one ends in between
    monkeypatch.setattr(threading.Thread, "start", start)

    def declare(w: weave) -> None:
        @w.do
        def a() -> int:
            return 1

        @w.do
        def b() -> int:
            return 2

        @w.do(range(5))
        def c(item: int, a: int, b: int) -> int:
            return item

        @w.do(range(5), retries=1)
        def d(item: int) -> int:
            return item

        @w.do(iter(range(5)))
        async def e(item: int, c: list[int], d: list[int]) -> int:
            return item

        @w.do
        def f() -> Any:
            yield 1

    for form in ("with", "async with"):
        for w_declare in (
            declare,
            lambda w: w.do(range(5))(lambda item: item),
            lambda w: w.do(lambda: 1),
        ):
            done = attempt(form, w_declare)  # type: ignore[arg-type]
            if count:
                assert done.error is None
            else:
                assert isinstance(done.error, RuntimeError)
                assert "can't start new thread" in str(done.error)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    with weave() as w:
        w.do(lambda: 1)
    child = os.fork()
    if not child:
        status = 1
        try:
            with weave() as w:
                w.do([1, 2])(lambda item: item)
            status = 0 if w.result.final == [1, 2] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
