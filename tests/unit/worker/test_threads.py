from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from wove.concurrency import thread_pool
from wove.worker import threads
from wove.worker.threads import TaskThreadPool


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def alive(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[TaskThreadPool]:
    name = request.node.name
    pool = TaskThreadPool(None, name)
    yield pool
    pool.close(0.0, for_good=True)
    until(lambda: not alive(name))


def test_short_jobs_run_in_order_on_the_thread_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "PATIENCE_SECONDS", 60.0)  # so that no job is stuck
    pool, seen = TaskThreadPool(None, "patient"), list[tuple[int, int]]()
    begin, done = threading.Event(), threading.Event()
    pool.submit(begin.wait)
    for i in range(50):
        pool.submit(lambda i=i: seen.append((i, threading.get_ident())))  # type: ignore[misc]
    pool.submit(done.set)
    begin.set()
    assert done.wait(20)
    assert [i for i, _ in seen] == list(range(50))
    assert len({ident for _, ident in seen}) == 1
    pool.close(0.0, for_good=True)


def test_blocked_jobs_do_not_hold_up_others(pool: TaskThreadPool) -> None:
    release, started = threading.Event(), threading.Semaphore(0)
    for _ in range(100):
        pool.submit(lambda: (started.release(), release.wait())[0])
    for _ in range(100):
        assert started.acquire(timeout=20)
    release.set()


def test_a_job_may_wait_for_one_that_comes_later(pool: TaskThreadPool) -> None:
    events = [threading.Event() for _ in range(30)]
    for i in range(29):
        pool.submit(lambda i=i: (events[i + 1].wait(), events[i].set())[1])  # type: ignore[misc]
    pool.submit(events[29].set)
    assert events[0].wait(20)


def test_the_limit_holds_and_everything_runs() -> None:
    pool, lock = TaskThreadPool(3, "limited"), threading.Lock()
    running, most, done = 0, 0, 0

    def job() -> None:
        nonlocal running, most, done
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
            done += 1

    for _ in range(30):
        pool.submit(job)
    until(lambda: done == 30)
    assert most <= 3
    pool.close(0.0, for_good=True)
    until(lambda: not alive("limited"))


def test_idle_threads_end_and_new_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "IDLE_SECONDS", 0.01)
    pool, done = TaskThreadPool(None, "fading"), threading.Semaphore(0)
    for _ in range(3):
        for _ in range(5):
            pool.submit(done.release)
        for _ in range(5):
            assert done.acquire(timeout=20)
        until(lambda: not alive("fading"))


def test_many_senders_and_threads_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "IDLE_SECONDS", 0.0005)
    pool, done = TaskThreadPool(None, "busy"), threading.Semaphore(0)

    def send() -> None:
        for i in range(200):
            pool.submit(done.release)
            if i % 10 == 0:
                time.sleep(0.001)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for _ in range(800):
        assert done.acquire(timeout=20)
    for sender in senders:
        sender.join()


def test_a_job_that_raises_is_logged(
    pool: TaskThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    pool.submit(lambda: int("x"))
    pool.submit(done.set)
    assert done.wait(20)
    until(lambda: "a call in the thread" in caplog.text)


def test_queued_jobs_still_run_after_close() -> None:
    pool, done = TaskThreadPool(1, "closing"), threading.Semaphore(0)
    for _ in range(5):
        pool.submit(lambda: (time.sleep(0.002), done.release())[1])
    pool.close(0.0, for_good=True)
    for _ in range(5):
        assert done.acquire(timeout=20)
    until(lambda: not alive("closing"))


def test_without_any_thread_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool, done = TaskThreadPool(None, "late"), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(done.set)
    pool.submit(done.set)
    assert done.wait(20)
    pool.close(0.0, for_good=True)
