"""A Taskiq broker's state: the loop it belongs to, and whether it was started."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, ClassVar, NamedTuple, cast

from wove.concurrency import forks
from wove.integrations.common.client_loops import loop_of_redis

__all__ = ["Sent", "Startups", "home_of"]


class Sent(NamedTuple):
    """A message that the broker has taken.

    Attributes:
        task_id: The id of its task.
        began: When it was handed over, in seconds of `time.monotonic`.
        ended: And when that was done.
    """

    task_id: str
    began: float
    ended: float


class Startups:
    """Which brokers their owners have started, and on which loop.

    Brokers do not tell. They do call their event handlers, so those that `register` has seen are known.
    """

    _loops: ClassVar[weakref.WeakKeyDictionary[Any, asyncio.AbstractEventLoop]] = (
        weakref.WeakKeyDictionary()
    )

    @classmethod
    def note(cls, broker: Any) -> None:
        """From now on it is noticed when *broker* is started or shut down."""
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
        """The loop on which *broker* was started, as far as is known."""
        return cls._loops.get(broker)

    @classmethod
    def reset_after_fork(cls) -> None:
        """Forget all, in a forked child, but what was started on the loop that goes on there."""
        here = asyncio._get_running_loop()
        for broker, loop in list(cls._loops.items()):
            if loop is not here:
                del cls._loops[broker]

    @classmethod
    def done(cls, broker: Any) -> bool:
        """Whether *broker* was started: by a worker, by its owner as far as is known, or it is in use already."""
        return bool(getattr(broker, "is_worker_process", False)) or home_of(broker) is not None


forks.after_in_child(forks.Phase.CLIENTS, Startups.reset_after_fork)


def home_of(broker: Any) -> asyncio.AbstractEventLoop | None:
    """The loop that *broker* belongs to: that of its open connections, or the one it was started on."""
    for owner in (broker, getattr(broker, "result_backend", None)):
        for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
            if (loop := _bound_to(value)) is not None:
                return loop
    started = Startups.loop(broker)
    return None if started is None or started.is_closed() else started


def _bound_to(value: object) -> asyncio.AbstractEventLoop | None:
    """The loop of a connection or a pool of them: those of redis, aio-pika, asyncpg, ... have one under such a name."""
    if (loop := loop_of_redis(value)) is not None:
        return loop
    for name in ("_loop", "loop"):
        found = getattr(value, name, None)
        if isinstance(found, asyncio.AbstractEventLoop):
            return found

    return None


def _events() -> Any:
    # Its package is there: it has made the broker.
    from taskiq.events import TaskiqEvents

    return cast("Any", TaskiqEvents)
