"""A weave in every form in which a user may write it, so that a test can hold all of them to the same."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from wove import WoveResult, weave

FORMS = [
    "with",
    "async with",
    "with in a loop",
    "with in a thread",
    "with in a task",
    *(["async with, eager tasks"] if sys.version_info >= (3, 12) else []),
    *(["async with, uvloop"] if find_spec("uvloop") else []),
]
"""Every way to run a weave in the foreground."""

PATIENCE = 60.0
"""Seconds after which a test takes it that what it waits for never comes."""

Declare = Callable[[weave], object]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A weave that was run, and what its block raised."""

    w: weave
    error: BaseException | None

    @property
    def result(self) -> WoveResult:
        return self.w.result


def attempt(form: str, declare: Declare, *args: Any, **options: Any) -> Attempt:
    """Run ``weave(*args, **options)`` in *form* with the tasks that *declare* declares."""
    w = weave(*args, **options)

    def block() -> BaseException | None:
        try:
            with w:
                declare(w)
        except BaseException as error:
            return error
        return None

    async def awaiting() -> BaseException | None:
        try:
            async with w:
                declare(w)
        except BaseException as error:
            return error
        return None

    async def blocking() -> BaseException | None:
        return block()

    if form == "with":
        return Attempt(w, block())
    if form == "with in a thread":
        errors: list[BaseException | None] = []
        context = copy_context()  # a new thread has an empty one
        thread = threading.Thread(target=lambda: errors.append(context.run(block)))
        thread.start()
        thread.join()
        return Attempt(w, errors[0])
    if form == "with in a task":
        with weave() as outer:
            outer.do(block)
        return Attempt(w, outer.result.block)
    if form == "with in a loop":
        return Attempt(w, asyncio.run(blocking()))
    if form == "async with":
        return Attempt(w, asyncio.run(awaiting()))
    if form == "async with, uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return Attempt(w, runner.run(awaiting()))
    assert form == "async with, eager tasks", form
    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        return Attempt(w, runner.run(awaiting()))


def run(form: str, declare: Declare, *args: Any, **options: Any) -> WoveResult:
    """As `attempt`; returns the result, or raises what the block raised."""
    done = attempt(form, declare, *args, **options)
    if done.error is not None:
        raise done.error
    return done.result


def soon(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until *condition* holds; fail when it does not."""
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """Each of the forms."""
    return str(request.param)
