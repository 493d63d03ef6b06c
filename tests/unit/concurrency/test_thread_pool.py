"""`ThreadPool`: limits, idle threads, what happens without threads, and the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from tests.support.forms import PATIENCE, soon

from wove.concurrency import thread_pool
from wove.concurrency.thread_pool import ThreadPool


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(2, "test-pool")
    yield pool
    pool.close(PATIENCE, for_good=True)


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_call_over_the_limit_waits_and_one_that_is_started_does_not(pool: ThreadPool) -> None:
    leave, met, order = threading.Event(), threading.Barrier(3), list[str]()

    def block() -> None:
        met.wait(PATIENCE)
        leave.wait(PATIENCE)

    for _ in range(2):
        pool.submit(block)
    met.wait(PATIENCE)
    pool.submit(order.append, "submitted")
    started = threading.Event()
    pool.start(lambda: (order.append("started"), started.set()))
    assert started.wait(PATIENCE)
    # The thread that the start has added takes the next call as well.
    soon(lambda: order == ["started", "submitted"])
    leave.set()


def test_a_call_that_raises_is_logged_and_costs_no_thread(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        pool.submit(int, "x")
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(PATIENCE)
    pool.close(PATIENCE)
    assert caplog.text.count("a call in the thread test-pool-") == 5


def test_without_another_thread_a_busy_one_makes_the_call(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave, done = threading.Event(), list[int]()
    pool.submit(leave.wait, PATIENCE)
    with monkeypatch.context() as patched:
        patched.setattr(thread_pool._PoolThread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.start(done.append, 0)
        pool.submit(lambda: done.append(threading.get_ident()))
    assert done == []
    leave.set()
    soon(lambda: done)
    assert done[0] != threading.get_ident()


def test_without_any_thread_the_caller_makes_the_call(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_pool._PoolThread, "start", refuse)
    done = list[int]()
    pool.submit(lambda: done.append(threading.get_ident()))
    assert done == [threading.get_ident()]


def test_close_waits_for_calls_and_a_later_one_has_a_new_thread(pool: ThreadPool) -> None:
    seen = list[threading.Thread]()
    for _ in range(2):
        pool.submit(lambda: seen.append(threading.current_thread()))
        pool.close(PATIENCE)
        assert not seen[-1].is_alive()
    assert seen[0] is not seen[1]


def test_the_number_of_a_thread_is_that_in_its_own_pool(pool: ThreadPool) -> None:
    other, numbers = ThreadPool(1, "test-other"), list[int]()
    pool.submit(lambda: numbers.extend((pool.current_number(), other.current_number())))
    pool.close(PATIENCE)
    assert numbers == [1, 0]
    assert pool.current_number() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_with_an_empty_pool(pool: ThreadPool) -> None:
    """Whatever the parent's threads are doing, and whichever lock they hold."""
    leave, busy = threading.Event(), threading.Barrier(3)
    for _ in range(2):
        pool.submit(lambda: (busy.wait(PATIENCE), leave.wait(PATIENCE)))
    busy.wait(PATIENCE)
    child = os.fork()
    if not child:
        done = threading.Event()
        pool.submit(done.set)
        os._exit(0 if done.wait(PATIENCE) else 1)
    leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
