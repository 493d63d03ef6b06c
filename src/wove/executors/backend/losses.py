"""Ends runs whose worker is gone or was stopped, after the backend has been asked for the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from wove.callback.receiver import ConnectionEnd
from wove.executors.backend.jobs import SubmittedJob
from wove.integrations.base import BackendAdapter
from wove.integrations.common.watcher import Watcher

__all__ = ["Losses"]

SUSPECT_SECONDS: Final = 1.5
"""How long a worker whose system has closed its connection may take to open another one."""

LATE_SECONDS: Final = 5.0
"""How late a heartbeat may be. A connection that was silent for longer was cut by the network, however it ended: the
end may come late, from a worker that has opened another connection since."""

ASK_SECONDS: Final = 0.5
"""The time between two questions to the backend about a job whose worker is gone."""


class Losses:
    """Ends runs whose workers are gone. For one loop.

    Args:
        adapter: Its `loss_reason_timeout` and `restarts` apply.
        watcher: Asks the backend; ``None``: the adapter has no `watch`.
        jobs: The jobs that have not ended, by run id.
        lose: Ends a job as lost, with the reason.
        finish: Ends a job with the event of its worker.
    """

    def __init__(
        self,
        adapter: BackendAdapter,
        watcher: Watcher | None,
        jobs: Mapping[str, SubmittedJob],
        *,
        lose: Callable[[SubmittedJob, str], None],
        finish: Callable[[SubmittedJob, dict[str, Any]], None],
    ) -> None:
        self._adapter = adapter
        self._watcher = watcher
        self._jobs = jobs
        self._lose = lose
        self._finish = finish

    async def suspect(self, job: SubmittedJob, worker: str, end: ConnectionEnd) -> None:
        """Lose *job*, the connection of whose *worker* has ended. Cancelled if a worker reports again.

        With an adapter that `restarts` jobs, only the backend decides.

        Args:
            job: The job.
            worker: Its worker.
            end: How the connection ended. One that the network has cut may be replaced later.
        """
        cut = not end.by_peer or end.silent_seconds > self._adapter.beat_seconds + LATE_SECONDS
        left = job.reconnect_seconds - end.silent_seconds if cut else 0.0
        await asyncio.sleep(max(SUSPECT_SECONDS, left))
        await self._lose_with_reason(job)

        if self._adapter.restarts:
            return
        ended = "the connection over which it reported has ended"
        if cut and job.reconnect_seconds:
            ended += (
                f", cut by the network, and none came for {job.reconnect_seconds:g} s "
                "(delivery_reconnect_seconds)"
            )
        self._lose(job, f"its worker ({worker}) is gone: {ended}")

    async def explain(self, job: SubmittedJob, event: dict[str, Any]) -> None:
        """End *job*, whose worker has reported with *event* that it was stopped; with the backend's reason, if any."""
        await self._lose_with_reason(job)
        if job.run_id in self._jobs:
            self._finish(job, event)

    async def _lose_with_reason(self, job: SubmittedJob) -> None:
        """Ask the backend until it says that *job* is lost, for `loss_reason_timeout` at most."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._adapter.loss_reason_timeout

        while self._watcher is not None and (left := until - loop.time()) > 0:
            await self._watcher.ask_now(left)
            status = self._watcher.noted(job.run_id)
            if status is not None and status.state == "lost":
                self._lose(job, status.reason)
            if job.run_id not in self._jobs:
                return
            await asyncio.sleep(ASK_SECONDS)  # the backend itself may not have noticed yet
