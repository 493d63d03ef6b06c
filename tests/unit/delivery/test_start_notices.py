"""Warnings of runs that no worker begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from wove.delivery import start_notices
from wove.delivery.run import State
from wove.delivery.start_notices import StartNotices

LONG_AGO = 3600.0


def sent(run_id: str, *, state: State = State.SENT, seconds: float | None = 10.0) -> Any:
    """A run that was sent an hour ago."""
    delivery = SimpleNamespace(notice_seconds=seconds)
    request = SimpleNamespace(settings=SimpleNamespace(delivery=delivery))

    class Run(SimpleNamespace):
        def __str__(self) -> str:
            return f"run {self.run_id}"

    return Run(
        run_id=run_id,
        state=state,
        start_assumed=False,
        sent_at=monotonic() - LONG_AGO,
        request=request,
    )


class Session:
    """Runs, and an executor that is asked about them."""

    def __init__(self, *runs: Any, reason: str = "no worker") -> None:
        self.runs = list(runs)
        self.reason = reason
        self.asked: list[set[str]] = []

    async def why_waiting(self, run_ids: Collection[str]) -> str:
        self.asked.append(set(run_ids))
        if self.reason == "broken":
            raise ConnectionError("no route")
        return self.reason


def watched(session: Session, until: Callable[[], bool]) -> None:
    """Watch the session's runs until a condition holds, and then until there are no more of them."""

    async def main() -> None:
        notices = StartNotices("jobs", lambda: list(session.runs), session.why_waiting)
        async with asyncio.timeout(30):
            while not until():
                notices.ensure_running()
                await asyncio.sleep(0.001)
            session.runs.clear()
            while notices._task is not None:
                await asyncio.sleep(0.001)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_notices, "MIN_INTERVAL_SECONDS", 0.005)


def test_runs_with_the_same_reason_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(sent("a"), sent("b"))
    watched(session, lambda: bool(caplog.messages))
    assert caplog.messages == [
        "environment 'jobs': no worker has begun 2 runs, such as run a, within 10 s of being sent: no worker"
    ]
    assert session.asked == [{"a", "b"}]


def test_another_reason_is_another_warning(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(sent("a"))

    def more() -> bool:
        if len(caplog.messages) == 1 and len(session.runs) == 1:
            session.runs.append(sent("b"))  # for the same reason
            return False
        if len(session.asked) == 2 and len(session.runs) == 2:
            session.reason = "two workers, both busy"
            session.runs.append(sent("c"))
        return len(caplog.messages) == 2

    watched(session, more)
    assert session.asked == [{"a"}, {"b"}, {"c"}]
    assert caplog.messages[1].endswith(
        "no worker has begun run c within 10 s of being sent: two workers, both busy"
    )


def test_runs_that_have_begun_or_want_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(sent("a"), sent("begun", state=State.STARTED), sent("silent", seconds=None))
    watched(session, lambda: bool(caplog.messages))
    assert session.asked == [{"a"}]


def test_an_executor_that_cannot_be_asked(caplog: pytest.LogCaptureFixture) -> None:
    watched(Session(sent("a"), reason="broken"), lambda: bool(caplog.messages))
    assert caplog.messages[0].endswith(": its backend cannot say why: ConnectionError: no route")
