"""The state of a Taskiq broker: its event loop, and whether it was started."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, ClassVar, NamedTuple, cast

from wove.concurrency import forks
from wove.integrations.common.client_loops import loop_of_redis

__all__ = ["BrokerLoops", "Submission", "loop_of"]


class Submission(NamedTuple):
    """A message that the broker has accepted.

    Attributes:
        task_id: The id of its task.
        began: When it was handed over, in seconds of `time.monotonic`.
        ended: When the broker had accepted it.
    """

    task_id: str
    began: float
    ended: float


class BrokerLoops:
    """Remembers which brokers were started, and on which loops.

    A broker does not say whether it was started, but it calls its event handlers. So this is known of the brokers that
    `register` has seen.
    """

    _loops: ClassVar[weakref.WeakKeyDictionary[Any, asyncio.AbstractEventLoop]] = (
        weakref.WeakKeyDictionary()
    )

    @classmethod
    def note(cls, broker: Any) -> None:
        """Have *broker* report from now on when it is started or shut down."""
        if not callable(getattr(broker, "add_event_handler", None)):
            return
        events = _events()
        known = weakref.ref(broker)

        def started(_: object) -> None:
            if (started_one := known()) is not None:
                cls._loops[started_one] = asyncio.get_running_loop()

        def ended(_: object) -> None:
            cls._loops.pop(known(), None)

        for event in (events.CLIENT_STARTUP, events.WORKER_STARTUP):
            broker.add_event_handler(event, started)
        for event in (events.CLIENT_SHUTDOWN, events.WORKER_SHUTDOWN):
            broker.add_event_handler(event, ended)

    @classmethod
    def loop(cls, broker: Any) -> asyncio.AbstractEventLoop | None:
        """Return the loop on which *broker* was started; ``None``: it was not, or this is not known."""
        return cls._loops.get(broker)

    @classmethod
    def reset_after_fork(cls) -> None:
        """Forget all brokers in a forked child, except those of the loop that still runs there."""
        here = asyncio._get_running_loop()
        for broker, loop in list(cls._loops.items()):
            if loop is not here:
                del cls._loops[broker]

    @classmethod
    def is_started(cls, broker: Any) -> bool:
        """Return whether *broker* is known to be started: it is a worker's, its owner has started it, or it is in
        use."""
        return bool(getattr(broker, "is_worker_process", False)) or loop_of(broker) is not None


forks.after_in_child(forks.Phase.CLIENTS, BrokerLoops.reset_after_fork)


def loop_of(broker: Any) -> asyncio.AbstractEventLoop | None:
    """Return the loop of the open connections of *broker*, or the one on which it was started; ``None``: unknown."""
    for owner in (broker, getattr(broker, "result_backend", None)):
        for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
            if (loop := _bound_to(value)) is not None:
                return loop
    started = BrokerLoops.loop(broker)
    return None if started is None or started.is_closed() else started


def _bound_to(value: object) -> asyncio.AbstractEventLoop | None:
    """Return the loop of a connection or pool of redis, aio-pika, asyncpg and the like; ``None``: it has none."""
    if (loop := loop_of_redis(value)) is not None:
        return loop
    for name in ("_loop", "loop"):
        found = getattr(value, name, None)
        if isinstance(found, asyncio.AbstractEventLoop):
            return found

    return None


def _events() -> Any:
    # The package is installed, since the broker comes from it.
    from taskiq.events import TaskiqEvents

    return cast("Any", TaskiqEvents)
