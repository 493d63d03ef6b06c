from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from wove.integrations.base import JobStatus
from wove.integrations.common import watcher as watching
from wove.integrations.common.watcher import Watcher


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOST_SECONDS", "FINISHED_SECONDS"):
        monkeypatch.setattr(watching, name, 0.05)


class Scene:
    """Jobs, a backend that is asked about them, and the statuses that were reported."""

    def __init__(
        self, *jobs: str, seconds: tuple[float, float] = (0.01, 0.05), most: float | None = 5.0
    ) -> None:
        self.jobs: dict[str, Any] = {job: f"submission of {job}" for job in jobs}
        self.started: set[str] = set()
        self.asked: list[Mapping[str, Any]] = []
        self.reported: dict[str, JobStatus] = {}
        self.answer: Callable[[Mapping[str, Any]], Any] = lambda jobs: {}
        self.watcher = Watcher(
            self.ask,
            lambda: dict(self.jobs),
            self.started.__contains__,
            self.on_over,
            seconds=seconds,
            max_query_seconds=most,
            label="environment 'test'",
        )

    async def ask(self, jobs: Mapping[str, Any]) -> object:
        self.asked.append(jobs)
        found = self.answer(jobs)
        return await found if asyncio.iscoroutine(found) else found

    def on_over(self, run_id: str, status: JobStatus) -> None:
        self.reported[run_id] = status
        self.jobs.pop(run_id, None)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def test_asks_about_all_at_once_and_reports_what_is_over() -> None:
    async def main() -> None:
        scene = Scene("a", "b", "c")
        scene.answer = lambda jobs: {
            "a": JobStatus("lost", "killed"),
            "z": JobStatus("lost", "nobody's"),
        }
        scene.watcher.ensure_running()
        await until(lambda: "a" in scene.reported)
        assert scene.reported == {"a": JobStatus("lost", "killed")}
        assert set(scene.asked[0]) == {"a", "b", "c"}
        scene.jobs.clear()
        count = len(scene.asked)
        await asyncio.sleep(0.1)
        assert len(scene.asked) <= count + 1, "there is nothing to ask about"
        await scene.watcher.close()

    asyncio.run(main())


def test_a_report_that_comes_meanwhile_counts() -> None:
    async def main() -> None:
        scene = Scene("a")
        scene.answer = lambda jobs: {"a": JobStatus("lost", "killed")}
        scene.watcher.ensure_running()
        await until(lambda: scene.asked and scene.watcher.noted("a"))
        scene.watcher.forget("a")
        scene.jobs.clear()
        await asyncio.sleep(0.1)
        assert scene.reported == {}
        await scene.watcher.close()

    asyncio.run(main())


def test_the_interval_grows_and_is_short_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The intervals are those that it waits for: what else the machine does adds nothing to them."""
    waited: list[float | None] = []

    class Timeouts:
        """asyncio, but that a limit is noted and takes a millisecond."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        def timeout(self, seconds: float | None) -> asyncio.Timeout:
            waited.append(seconds)
            return asyncio.timeout(0.001)

    monkeypatch.setattr(watching, "asyncio", Timeouts())

    async def main() -> None:
        scene = Scene("a", seconds=(1.0, 4.0), most=None)
        scene.watcher.ensure_running()
        await until(lambda: len(scene.asked) >= 6)
        intervals = [seconds for seconds in waited if seconds is not None]
        assert intervals[:6] == [1.0, 1.5, 2.25, 3.375, 4.0, 4.0]

        scene.jobs.clear()
        await until(lambda: scene.watcher._task is not None and scene.watcher._task.done())
        waited.clear()
        scene.jobs["b"] = "another"
        scene.watcher.ensure_running()
        await until(lambda: waited)
        assert waited[0] == 1.0
        await scene.watcher.close()

    asyncio.run(main())


def test_can_be_asked_out_of_turn() -> None:
    async def main() -> None:
        scene = Scene("a", seconds=(60.0, 60.0))
        scene.watcher.ensure_running()
        scene.answer = lambda jobs: {"a": JobStatus("lost", "killed")}
        await scene.watcher.ask_now(20.0)
        assert scene.watcher.noted("a") == JobStatus("lost", "killed")
        await scene.watcher.close()

    asyncio.run(main())


def test_a_backend_that_cannot_be_asked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "UNREACHABLE_SECONDS", 0.1)

    def broken(jobs: Mapping[str, Any]) -> Any:
        raise ConnectionError("no route")

    async def hangs() -> None:
        await asyncio.sleep(60)

    async def main(answer: Callable[[Mapping[str, Any]], Any], said: str) -> None:
        scene = Scene("queued", "begun", most=0.02)
        scene.started.add("begun")
        scene.answer = answer
        scene.watcher.ensure_running()
        await until(lambda: scene.reported)
        assert list(scene.reported) == ["queued"], "the worker of the other is there"
        assert scene.reported["queued"].state == "lost" and said in scene.reported["queued"].reason
        scene.answer = lambda jobs: {"begun": JobStatus("finished", "ok")}
        await until(lambda: "begun" in scene.reported)
        await scene.watcher.close()

    answers: list[tuple[Callable[[Mapping[str, Any]], Coroutine[Any, Any, None]], str]] = [
        (broken, "ConnectionError: no route"),
        (lambda jobs: hangs(), "TimeoutError"),
    ]
    for answer, said in answers:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="wove"):
            asyncio.run(main(answer, said))
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert "answers again" in caplog.records[1].getMessage()
