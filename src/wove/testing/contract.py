"""The contract suite: what every environment must do, as tests for an adapter or executor of your own.

Subclass `EnvironmentContract` in a test file, and say with the fixture ``environment`` how the environment is
configured. pytest then runs the suite over it::

    from wove.testing.contract import EnvironmentContract

    class TestNomad(EnvironmentContract):
        @pytest.fixture
        def environment(self):
            return {"executor": "nomad", "executor_config": {"address": "http://127.0.0.1:4646"}}

Wove's own backends are held to the same class. The workers must be able to import Wove, and must see the folder of
the tests, because tasks write there what happens to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from wove import settings
from wove.block import weave
from wove.errors import SerializationError, TaskTimeoutError, WorkerLostError
from wove.testing.tasks import (
    Unfair,
    add_one,
    add_one_later,
    block,
    fail,
    pid,
    reverse,
    sleep,
    sleep_and_tell,
)

__all__ = ["EnvironmentContract"]

PATIENCE_SECONDS = 60.0
"""How long a test waits at most for what must come."""

STARTED_SECONDS = 0.3
"""After this time the start of a run has been reported. A worker waits a little, as a short run is one message."""


class EnvironmentContract:
    """The tests. Set an attribute to false where your environment is not meant to do that.

    Attributes:
        leaves_process: Whether tasks run in other processes than the test.
        cancels: Whether a cancelled run is stopped: a coroutine is cancelled, a blocking call interrupted, or its
            process ended.
        outlives_workers: Whether a process that is killed ends its run with `WorkerLostError`, and the next run is
            executed all the same.
        items: How many items a map has.
        megabytes: The size of a large value, both ways.
    """

    leaves_process: ClassVar[bool] = True
    cancels: ClassVar[bool] = True
    outlives_workers: ClassVar[bool] = True
    items: ClassVar[int] = 8
    megabytes: ClassVar[int] = 5

    @pytest.fixture
    def environment(self) -> Mapping[str, Any]:
        """Return the definition of the environment, as ``wove.config`` takes it. To be overridden."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a fixture `environment` that returns the environment's definition"
        )

    @pytest.fixture(autouse=True)
    def _configured(self, environment: Mapping[str, Any]) -> Iterator[None]:
        before = settings.installed()
        settings.config(environments={"tested": dict(environment)})
        yield
        settings.install(before)

    def _run(
        self, fn: Callable[..., Any], options: dict[str, Any] | None = None, /, **values: Any
    ) -> Any:
        """Return what *fn* gives in the environment."""
        given: dict[str, Any] = {"environment": "tested", **(options or {})}
        with weave(values=values) as w:
            w.do(**given)(fn)
        return w.result.final

    # --- round trips

    def test_the_items_of_a_map_keep_their_order(self) -> None:
        with weave() as w:
            w.do(range(self.items), environment="tested")(add_one)
            w.do(range(self.items), environment="tested", workers=2)(add_one_later)
        expected = list(range(1, self.items + 1))
        assert w.result.add_one == expected
        assert w.result.add_one_later == expected

    def test_tasks_leave_the_process(self) -> None:
        assert (self._run(pid) != os.getpid()) is self.leaves_process

    def test_functions_and_closures_travel(self) -> None:
        factor = 3

        def times(number: int) -> dict[str, Any]:
            return {"product": number * factor, "text": "ü"}

        assert self._run(times, number=2) == {"product": 6, "text": "ü"}

    def test_an_exception_keeps_its_type_and_shows_where_it_was_raised(self) -> None:
        with pytest.raises(Unfair) as caught:
            self._run(fail, left=7)
        assert caught.value.left == 7
        assert "in task 'fail'" in caught.value.__notes__[0]
        if self.leaves_process:
            assert "raise Unfair(left, 2)" in str(caught.value.__cause__)
        assert self._run(add_one, item=1) == 2

    def test_an_argument_that_cannot_travel_is_named(self) -> None:
        if not self.leaves_process:
            pytest.skip("tasks stay in this process")
        with pytest.raises(SerializationError, match="add_one"):
            self._run(add_one, item=threading.Lock())
        assert self._run(add_one, item=1) == 2

    def test_a_large_value_goes_out_and_comes_back(self) -> None:
        content = os.urandom(1 << 20) * self.megabytes
        back = self._run(reverse, content=content)
        assert len(back) == len(content)
        assert bool(back == content[::-1])  # a difference of megabytes must not be printed

    def test_two_weaves_at_once_keep_apart(self) -> None:
        seen: dict[int, list[int]] = {}

        def run(first: int) -> None:
            with weave() as w:
                w.do(range(first, first + 4), environment="tested")(add_one)
            seen[first] = w.result.add_one

        threads = [threading.Thread(target=run, args=(first,)) for first in (100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {first: list(range(first + 1, first + 5)) for first in (100, 200)}

    # --- limits and losses

    def test_heartbeats_keep_a_run_alive_that_holds_its_thread(self) -> None:
        if not self.leaves_process:
            pytest.skip("tasks stay in this process, where nothing needs a heartbeat")
        options = {"delivery_heartbeat_seconds": 1.0}
        assert self._run(sleep, options, seconds=2.5) == "done"

    def test_a_run_that_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        path, told = tmp_path / "path", tmp_path / "told"
        with pytest.raises(TaskTimeoutError, match="task 'sleep_and_tell' timed out"):
            self._run(sleep_and_tell, {"timeout": 1.0}, path=str(path), told=str(told))
        if self.cancels:
            _wait_for(lambda: _has_ended(path, told))
        assert self._run(add_one, item=1) == 2

    @pytest.mark.parametrize("kind", ["coroutine", "thread"])
    def test_a_cancelled_run_is_ended(self, kind: str, tmp_path: Path) -> None:
        if not self.cancels:
            pytest.skip("runs of this environment cannot be cancelled")
        path, told = tmp_path / "path", tmp_path / "told"
        values = {"path": str(path), "told": str(told)}
        if kind == "thread":
            values["until"] = str(tmp_path / "until")

        async def main() -> None:
            running = asyncio.create_task(
                _begin(sleep_and_tell if kind == "coroutine" else block, values)
            )
            await asyncio.to_thread(_wait_for, lambda: _lines(path))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(main())
        _wait_for(lambda: _has_ended(path, told))
        assert self._run(add_one, item=1) == 2

    def test_a_killed_process_ends_its_run(self, tmp_path: Path) -> None:
        if not (self.leaves_process and self.outlives_workers):
            pytest.skip("workers of this environment cannot be killed")
        path = tmp_path / "path"
        values = {"path": str(path), "until": str(tmp_path / "until")}

        async def main() -> None:
            running = asyncio.create_task(_begin(block, values))
            await asyncio.to_thread(_wait_for, lambda: _lines(path))
            await asyncio.sleep(STARTED_SECONDS)
            os.kill(int(_lines(path)[0]), getattr(signal, "SIGKILL", signal.SIGTERM))
            with pytest.raises(WorkerLostError, match="task 'block'"):
                await running

        asyncio.run(main())
        assert self._run(add_one, item=1) == 2


async def _begin(fn: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    async with weave(values=values) as w:
        w.do(environment="tested")(fn)
    return w.result.final


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.005)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _has_ended(path: Path, told: Path) -> bool:
    """Return whether the run that wrote its process's id to *path* was stopped, or its process has ended."""
    if told.exists() or not path.exists():  # a run that never began has nothing to end
        return True
    if os.name == "nt":  # where signal 0 is not a question
        return False

    number = int(_lines(path)[-1])
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with contextlib.suppress(OSError):  # on Linux alone: ended, and nobody has asked how
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return False
