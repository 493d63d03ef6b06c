from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from wove.worker.interrupts import Interruptible, TaskInterrupted


def test_the_outcome_of_a_call() -> None:
    assert Interruptible().run(lambda: 5) == (True, 5)
    error = SystemExit(3)

    def fail() -> None:
        raise error

    assert Interruptible().run(fail) == (False, error)


def in_thread(call: Any) -> tuple[threading.Thread, Interruptible, list[Any]]:
    made, outcome, ready = [], [], threading.Event()

    def run() -> None:
        section = Interruptible()
        made.append(section)
        ready.set()
        outcome.append(section.run(call))

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    return thread, made[0], outcome


def spin() -> None:
    while True:
        pass


def test_a_call_is_interrupted_once() -> None:
    thread, section, outcome = in_thread(spin)
    assert section.interrupt()
    thread.join(20)
    ((ok, error),) = outcome
    assert not ok and type(error) is TaskInterrupted
    assert not section.interrupt()


def test_a_call_that_is_over_is_not_interrupted() -> None:
    thread, section, outcome = in_thread(lambda: 3)
    thread.join(20)
    assert outcome == [(True, 3)] and not section.interrupt()


def test_a_call_that_catches_it_keeps_its_result() -> None:
    entered = threading.Event()

    def stubborn() -> str:
        try:
            entered.set()
            spin()
        except BaseException:
            return "still here"
        raise AssertionError

    thread, section, outcome = in_thread(stubborn)
    assert entered.wait(20) and section.interrupt()
    thread.join(20)
    assert outcome == [(True, "still here")]


@pytest.fixture
def fast_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# One may arrive in a weakref callback, where Python reports and drops it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("fast_switching")
def test_no_interrupt_gets_out_of_its_call() -> None:
    """Short calls on one thread, each interrupted at about its end; nothing may leak into what follows."""
    sections: list[Interruptible] = []
    leaked: list[BaseException] = []
    outcomes: list[tuple[bool, Any]] = []
    over = threading.Event()

    def work() -> None:
        try:
            for i in range(3_000):
                section = Interruptible()
                outcomes.append(
                    section.run(lambda section=section, i=i: (sections.append(section), i)[1])
                )
                sum(range(20))  # what a thread does between two tasks
        except BaseException as error:
            leaked.append(error)
        finally:
            over.set()

    def disturb() -> None:
        while not over.is_set():
            try:
                sections.pop().interrupt()
            except IndexError:
                time.sleep(0)

    threads = [
        threading.Thread(target=work),
        threading.Thread(target=disturb),
        threading.Thread(target=disturb),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not leaked and len(outcomes) == 3_000
    assert all(
        value == i if ok else isinstance(value, TaskInterrupted)
        for i, (ok, value) in enumerate(outcomes)
    )
