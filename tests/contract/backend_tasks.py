"""What the tests of backends hand out. Light: some workers import it anew for each run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextvars import ContextVar

import wove
from tests.support.tracing import make_span
from wove.testing.tasks import Unfair, add_one, block, fail, pid, sleep_and_tell

__all__ = [
    "REQUEST",
    "Unfair",
    "add_one",
    "block",
    "count_up",
    "die",
    "fail",
    "hang",
    "loops_within",
    "pid",
    "sleep_and_tell",
    "speak",
    "weaves_within",
]


REQUEST = wove.carry(ContextVar("REQUEST", default="none"))


def speak(total: int) -> tuple[str, tuple[str, str]]:
    for done in range(1, total + 1):
        wove.progress(done, total, f"part {done}")
    logging.getLogger("app.speaking").info("logged")
    print("printed")
    return REQUEST.get(), make_span()


def count_up(path: str, seconds: float = 0.0) -> int:
    """Write a line to *path*, and return how many it has."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    with open(path) as file:
        return len(file.readlines())


def insist(path: str) -> None:
    """Take no notice of an interrupt: only a signal ends it."""
    from wove.worker.interrupts import TaskInterrupted

    count_up(path)
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        try:
            time.sleep(0.005)
        except TaskInterrupted:
            continue


def hang(path: str) -> None:
    """Hold on to the interpreter, so that nothing inside of the process can stop it."""
    import ctypes

    count_up(path)
    ctypes.PyDLL(None).sleep(40)


def die(path: str, times: int, after: float = 0.0) -> str:
    """End with the process, the first *times* times; *after* so many seconds."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(path) as file:
        if len(file.readlines()) <= times:
            time.sleep(after)
            os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def loops_within(number: int) -> int:
    async def later() -> int:
        await asyncio.sleep(0)
        return number + 1

    return asyncio.run(later())


def weaves_within(number: int) -> list[int]:
    from wove import weave

    with weave(number=number) as w:

        @w.do
        def doubled(number: int) -> int:
            return number * 2

        @w.do([1, 2, 3])
        async def each(item: int, doubled: int) -> int:
            return item + doubled

    return w.result.each
