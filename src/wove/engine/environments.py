"""Prepares environments for a weave: imports what they need, without holding up its loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from wove.concurrency import forks
from wove.engine.threads import start_thread

if TYPE_CHECKING:
    from wove.engine.threads import RunMailbox
    from wove.settings.model import Environment

__all__ = ["EnvironmentPreparer"]


class EnvironmentPreparer:
    """Prepares each environment once, however many tasks of the weave use it."""

    __slots__ = ("_inbox", "_prepared")

    def __init__(self, inbox: RunMailbox) -> None:
        self._inbox = inbox
        self._prepared: dict[str, asyncio.Future[BaseException | None]] = {}

    async def prepare(self, environment: Environment) -> None:
        """Return when everything that *environment* needs is imported.

        Raises:
            ValueError: It has an unknown executor.
            MissingDependencyError: A package that it needs is not installed.
        """
        prepared = self._prepared.get(environment.name)
        if prepared is None:
            prepared = self._prepared[environment.name] = self._begin(environment)
        error = prepared.result() if prepared.done() else await asyncio.shield(prepared)
        if error is not None:
            raise error

    def _begin(self, environment: Environment) -> asyncio.Future[BaseException | None]:
        # The future's result is the error: an exception that no task retrieves is logged.
        prepared: asyncio.Future[BaseException | None] = self._inbox.loop.create_future()

        if _is_prepared(environment):
            prepared.set_result(None)
        else:
            # In a thread, because a first import takes too long for a loop that others live on too.
            on_prepared = partial(self._inbox.post, _set_result, prepared)
            start_thread(partial(_prepare, environment, on_prepared))

        return prepared


def _is_prepared(environment: Environment) -> bool:
    delivery: Any = sys.modules.get("wove.delivery")  # not loaded where no task leaves the process
    is_prepared = getattr(delivery, "is_prepared", None)
    return is_prepared is not None and bool(is_prepared(environment))


def _prepare(
    environment: Environment, on_prepared: Callable[[BaseException | None], object]
) -> None:
    try:
        with forks.importing:
            from wove.delivery import prepare

        prepare(environment)
    except BaseException as error:  # raised where the environment is used
        on_prepared(error)
    else:
        on_prepared(None)


def _set_result(
    prepared: asyncio.Future[BaseException | None], error: BaseException | None
) -> None:
    if not prepared.done():
        prepared.set_result(error)
