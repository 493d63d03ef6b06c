"""The tasks of the contract suite. Workers import this module, so it needs nothing but Wove."""

from __future__ import annotations

import asyncio
import os
import time

__all__ = [
    "Unfair",
    "add_one",
    "add_one_later",
    "block",
    "fail",
    "pid",
    "reverse",
    "sleep",
    "sleep_and_tell",
]

PATIENCE_SECONDS = 50.0
"""How long a task that waits for its test waits at most."""


class Unfair(Exception):
    """An error with arguments of its own."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(left, right)
        self.left = left


def _write(path: str, line: object) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def add_one(item: int) -> int:
    return item + 1


async def add_one_later(item: int) -> int:
    await asyncio.sleep(0.001)
    return item + 1


def pid() -> int:
    return os.getpid()


def fail(left: int) -> None:
    raise Unfair(left, 2)


def reverse(content: bytes) -> bytes:
    return content[::-1]


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def block(path: str, until: str, told: str = "") -> str:
    """Write the process's id to *path*, and hold the thread until there is a file *until*."""
    _write(path, os.getpid())
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not os.path.exists(until) and time.monotonic() < deadline:
            time.sleep(0.005)
    except BaseException as error:
        if told:
            _write(told, type(error).__name__)
        raise
    return "done"


async def sleep_and_tell(path: str, told: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Write the process's id to *path*, and to *told* how the sleep ended."""
    _write(path, os.getpid())
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _write(told, "cancelled")
        raise
    _write(told, "finished")
