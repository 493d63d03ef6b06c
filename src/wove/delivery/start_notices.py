"""Warnings of runs that no worker begins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic
from typing import Final

from wove.delivery.run import RemoteRun, State

__all__ = ["StartNotices"]

logger = logging.getLogger("wove")

MIN_INTERVAL_SECONDS: Final = 1.0
"""The minimum time between two questions to an executor why runs wait."""

MAX_QUESTION_SECONDS: Final = 30.0
"""How long an executor may take to answer."""

MAX_RUNS: Final = 100
"""Maximum number of runs in one question."""


class StartNotices:
    """Warns of runs that no worker has begun for ``delivery_notice_seconds``, once for each reason. For one loop.

    One task does this for all runs of a session, while there is one that waits.

    Args:
        environment: The environment's name.
        runs: Returns the runs that were handed over and have not ended.
        why_waiting: Asks the executor why the runs with these ids wait.
    """

    def __init__(
        self,
        environment: str,
        runs: Callable[[], Iterable[RemoteRun]],
        why_waiting: Callable[[Collection[str]], Awaitable[str]],
    ) -> None:
        self._environment = environment
        self._runs = runs
        self._why_waiting = why_waiting
        self._task: asyncio.Task[None] | None = None
        self._noticed: set[str] = set()
        self._last_reason: str | None = None

    def ensure_running(self) -> None:
        """Begin to watch the runs, if this is not done already. Called when a run is handed over."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()

    def _waiting(self) -> dict[str, float]:
        """Return when to warn of each run that waits and was not mentioned yet, by run id."""
        due: dict[str, float] = {}
        known: set[str] = set()

        for run in self._runs():
            seconds = run.request.settings.delivery.notice_seconds
            if run.state is not State.SENT or run.start_assumed or seconds is None:
                continue
            known.add(run.run_id)
            if run.run_id not in self._noticed:
                due[run.run_id] = run.sent_at + seconds

        self._noticed &= known
        if not self._noticed:
            self._last_reason = None
        return due

    async def _watch(self) -> None:
        try:
            while due := self._waiting():
                await asyncio.sleep(max(MIN_INTERVAL_SECONDS, min(due.values()) - monotonic()))
                now = monotonic()
                late = [run_id for run_id, at in self._waiting().items() if at <= now]
                if not late:
                    continue

                self._noticed.update(late)
                reason = await self._reason(late[:MAX_RUNS])
                left = [
                    run for run in self._runs() if run.run_id in late and run.state is State.SENT
                ]
                if left and reason != self._last_reason:
                    self._last_reason = reason
                    self._warn(left, reason)
        finally:
            self._task = None

    async def _reason(self, run_ids: Collection[str]) -> str:
        try:
            async with asyncio.timeout(MAX_QUESTION_SECONDS):
                return await self._why_waiting(run_ids)
        except Exception as error:
            return f"its backend cannot say why: {type(error).__name__}: {error}"

    def _warn(self, runs: list[RemoteRun], reason: str) -> None:
        first = runs[0]
        logger.warning(
            "environment %r: no worker has begun %s within %g s of being sent%s",
            self._environment,
            first if len(runs) == 1 else f"{len(runs)} runs, such as {first},",
            first.request.settings.delivery.notice_seconds,
            f": {reason}" if reason else "",
        )
