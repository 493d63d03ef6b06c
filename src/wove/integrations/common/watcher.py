"""One watcher an environment: asks the backend now and then what has become of jobs that have not reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from wove.integrations.base import JobStatus

__all__ = ["Watcher"]

logger = logging.getLogger("wove")

GROWTH: Final = 1.5
"""By what the interval grows from one query to the next."""

LOST_SECONDS: Final = 1.0
"""How long the report of a lost job is waited for: it may have been sent right before."""

UNREACHABLE_SECONDS: Final = 60.0
"""A backend that answers no query for so long has lost the jobs that nobody has begun."""

FINISHED_SECONDS: Final = 5.0
"""And of one that ended in good order. Its worker does not end before its report has arrived or been given up."""


class Watcher:
    """Asks in intervals that grow, as long as there is a job to ask about. For one loop.

    Args:
        ask: Awaits the answer to one query about all jobs it is given.
        jobs: Gives those that there are: submissions by run id.
        begun: Whether the worker of a run has told that it began.
        over: Is told, after a grace time, of each that is over; its report may have come meanwhile.
        seconds: The shortest and the longest interval.
        most: How long one query may take; ``None``: for ever.
        label: What log messages begin with.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any]], Awaitable[object]],
        jobs: Callable[[], Mapping[str, Any]],
        begun: Callable[[str], bool],
        over: Callable[[str, JobStatus], None],
        *,
        seconds: tuple[float, float],
        most: float | None,
        label: str,
    ) -> None:
        self._ask = ask
        self._jobs = jobs
        self._begun = begun
        self._over = over
        self._shortest, self._longest = seconds
        self._most = most
        self._what = label
        self._interval = self._shortest
        self._failing_since: float | None = None
        self._known: dict[str, tuple[asyncio.TimerHandle, JobStatus]] = {}
        self._soon = asyncio.Event()
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """There is a job again, or one more."""
        if self._task is None or self._task.done():
            self._interval = self._shortest
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def look_now(self, seconds: float) -> None:
        """Ask at once, out of turn, and wait for the answer for at most *seconds*."""
        self._asked.clear()
        self._soon.set()
        self._interval = self._shortest  # what has become of one may have become of others
        self.look()

        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass

    def note(self, run_id: str, fate: JobStatus) -> None:
        """Note what has become of a job, and tell it when its report has had its time to come."""
        if run_id not in self._known:
            grace = FINISHED_SECONDS if fate.state == "finished" else LOST_SECONDS
            timer = asyncio.get_running_loop().call_later(grace, self._settle, run_id, fate)
            self._known[run_id] = timer, fate

    def noted(self, run_id: str) -> JobStatus | None:
        """Return the end of a job that is known and has not been told yet."""
        return self._known[run_id][1] if run_id in self._known else None

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        known = self._known.pop(run_id, None)
        if known is not None:
            known[0].cancel()

    async def close(self) -> None:
        """Ask no more."""
        for run_id in list(self._known):
            self.forget(run_id)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    def _settle(self, run_id: str, fate: JobStatus) -> None:
        self._known.pop(run_id, None)
        self._over(run_id, fate)

    async def _watch(self) -> None:
        while self._jobs():
            try:
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            self._interval = min(self._longest, self._interval * GROWTH)
            if jobs := self._jobs():
                await self._query(jobs)
            # Not to be kept until the next time: some backends keep a job for as long as there is its submission.
            del jobs
            self._asked.set()

    async def _query(self, jobs: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._most):
                fates = await self._ask(jobs)
            found = dict(cast("Mapping[str, JobStatus]", fates or {}))
        except Exception as error:
            self._failed(jobs, error)
            return

        if self._failing_since is not None:
            logger.info("%s: its backend answers again", self._what)
            self._failing_since = None

        for run_id, fate in found.items():
            if run_id in jobs:
                self.note(run_id, fate)

    def _failed(self, jobs: Mapping[str, Any], error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        # Once loudly: a backend that is away for an hour is one fact, not a thousand.
        level = logging.WARNING if self._failing_since == now else logging.DEBUG
        logger.log(
            level,
            "%s: its backend could not be asked about %d jobs: %s",
            self._what,
            len(jobs),
            text,
        )

        if now - self._failing_since >= UNREACHABLE_SECONDS:
            reason = f"its backend could not be asked for {now - self._failing_since:.0f} s: {text}"
            for run_id in jobs:
                if not self._begun(run_id):
                    self.note(run_id, JobStatus("lost", reason))
