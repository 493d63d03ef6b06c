"""Jobs that a backend may create after their submission was given up: they are cancelled by their names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wove.concurrency.mailbox import post_to
from wove.concurrency.thread_pool import ThreadPool

__all__ = ["Withdrawals"]

logger = logging.getLogger("wove")

INTERVAL_SECONDS: Final = 3.0
"""The time between two checks for a job that the backend may still create."""

MIN_CLEAR_CHECKS: Final = 3
"""How many checks in a row must find no job before the name is dropped."""

MAX_CHECKS: Final = 200
"""Maximum number of checks for one name: after ten minutes, a request that was on its way has been carried out."""


class Withdrawals:
    """Cancels jobs by name until the backend has said several times that there are none. Made on the loop that runs it.

    Args:
        cancel: Cancels the unwanted jobs with a name, and returns whether the backend has answered that there are none.
            Its second argument is the context that was given to `add`. It may block, and is called in *threads*.
        threads: Run *cancel*.
        label: What log messages begin with.

    Attributes:
        pending: The contexts of the names that are still checked.
    """

    def __init__(
        self, cancel: Callable[[str, str], bool], threads: ThreadPool, *, label: str
    ) -> None:
        self._cancel = cancel
        self._threads = threads
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self.pending: dict[str, str] = {}

    def add(self, name: str, context: str = "") -> None:
        """Have the unwanted jobs *name* cancelled. For any thread.

        Args:
            name: The name.
            context: How *cancel* tells the unwanted jobs from others with that name.
        """
        self.pending[name] = context
        post_to(self._loop, self._ensure_task)

    async def close(self) -> None:
        """Check each pending name for the last time."""
        if self._task is not None:
            self._task.cancel()
        for name, context in list(self.pending.items()):
            await self._threads.call(self._check, name, context)

    def _ensure_task(self) -> None:
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        clear: dict[str, int] = {}
        checks: dict[str, int] = {}

        while self.pending:
            for name, context in list(self.pending.items()):
                is_clear = await self._threads.call(self._check, name, context)
                checks[name] = checks.get(name, 0) + 1
                clear[name] = clear.get(name, 0) + 1 if is_clear else 0
                if clear[name] >= MIN_CLEAR_CHECKS or checks[name] >= MAX_CHECKS:
                    del self.pending[name]
            await asyncio.sleep(INTERVAL_SECONDS)

    def _check(self, name: str, context: str) -> bool:
        try:
            return self._cancel(name, context)
        except Exception as error:
            logger.debug("%s: job %s cannot be withdrawn yet: %s", self._label, name, error)
            return False
