"""Calls `BackendAdapter.watch` in intervals, and decides when a job that is over counts as lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from wove.integrations.base import JobStatus

__all__ = ["Watcher"]

logger = logging.getLogger("wove")

GROWTH: Final = 1.5
"""The factor by which the interval grows from one query to the next."""

LOST_SECONDS: Final = 1.0
"""How long to wait for the report of a lost job, which may have been sent just before."""

UNREACHABLE_SECONDS: Final = 60.0
"""How long a backend may answer no query before its jobs that no worker has started are lost."""

FINISHED_SECONDS: Final = 5.0
"""How long to wait for the report of a finished job. Its worker ends only after the report has arrived or failed."""


class Watcher:
    """Asks in growing intervals, as long as there are jobs. For one loop.

    Args:
        ask: Awaits the statuses of the jobs that are over, in one query.
        jobs: Returns the jobs to ask about: submissions by run id.
        has_started: Returns whether a worker has reported the start of a run.
        on_over: Called for each job that is over, after a grace time in which its report may still come.
        seconds: The minimum and the maximum interval.
        max_query_seconds: How long one query may take; ``None``: no limit.
        label: What log messages begin with.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any]], Awaitable[object]],
        jobs: Callable[[], Mapping[str, Any]],
        has_started: Callable[[str], bool],
        on_over: Callable[[str, JobStatus], None],
        *,
        seconds: tuple[float, float],
        max_query_seconds: float | None,
        label: str,
    ) -> None:
        self._ask = ask
        self._jobs = jobs
        self._has_started = has_started
        self._on_over = on_over
        self._min_interval, self._max_interval = seconds
        self._max_query_seconds = max_query_seconds
        self._label = label
        self._interval = self._min_interval
        self._failing_since: float | None = None
        self._known: dict[str, tuple[asyncio.TimerHandle, JobStatus]] = {}
        self._soon = asyncio.Event()
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ensure_running(self) -> None:
        """Begin to ask, if this is not done already. Called when there is a new job."""
        if self._task is None or self._task.done():
            self._interval = self._min_interval
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def ask_now(self, seconds: float) -> None:
        """Ask at once, and wait for the answer for at most *seconds*."""
        self._asked.clear()
        self._soon.set()
        self._interval = self._min_interval  # other jobs may be over for the same reason
        self.ensure_running()

        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass

    def note(self, run_id: str, status: JobStatus) -> None:
        """Note the status of a job that is over, and call `on_over` with it after the grace time."""
        if run_id not in self._known:
            grace = FINISHED_SECONDS if status.state == "finished" else LOST_SECONDS
            timer = asyncio.get_running_loop().call_later(grace, self._settle, run_id, status)
            self._known[run_id] = timer, status

    def noted(self, run_id: str) -> JobStatus | None:
        """Return the status of a job in its grace time; ``None``: it is not over, as far as is known."""
        return self._known[run_id][1] if run_id in self._known else None

    def forget(self, run_id: str) -> None:
        """Drop a run that has ended."""
        known = self._known.pop(run_id, None)
        if known is not None:
            known[0].cancel()

    async def close(self) -> None:
        """Stop asking."""
        for run_id in list(self._known):
            self.forget(run_id)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    def _settle(self, run_id: str, status: JobStatus) -> None:
        self._known.pop(run_id, None)
        self._on_over(run_id, status)

    async def _watch(self) -> None:
        while self._jobs():
            try:
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            self._interval = min(self._max_interval, self._interval * GROWTH)
            if jobs := self._jobs():
                await self._query(jobs)
            # No reference may remain until the next query: some backends keep a job while its submission exists.
            del jobs
            self._asked.set()

    async def _query(self, jobs: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._max_query_seconds):
                answer = await self._ask(jobs)
            statuses = dict(cast("Mapping[str, JobStatus]", answer or {}))
        except Exception as error:
            self._failed(jobs, error)
            return

        if self._failing_since is not None:
            logger.info("%s: its backend answers again", self._label)
            self._failing_since = None

        for run_id, status in statuses.items():
            if run_id in jobs:
                self.note(run_id, status)

    def _failed(self, jobs: Mapping[str, Any], error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        # One warning, however long the backend is away.
        level = logging.WARNING if self._failing_since == now else logging.DEBUG
        logger.log(
            level,
            "%s: its backend could not be asked about %d jobs: %s",
            self._label,
            len(jobs),
            text,
        )

        if now - self._failing_since >= UNREACHABLE_SECONDS:
            reason = f"its backend could not be asked for {now - self._failing_since:.0f} s: {text}"
            for run_id in jobs:
                if not self._has_started(run_id):
                    self.note(run_id, JobStatus("lost", reason))
