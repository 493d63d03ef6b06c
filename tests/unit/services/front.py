"""A queue with runs for it, without a transport."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from wove.protocol.codec import encode_events
from wove.protocol.faults import to_exception
from wove.protocol.frames import PYTHON, TERMINAL, says_busy
from wove.protocol.pickling import dumps, loads
from wove.services.options import service_options
from wove.services.queue import RunQueue
from wove.services.queued_runs import Subscription
from wove.services.wire import decode_command

_numbers = itertools.count(1)


def command(
    function: Any,
    /,
    *,
    run_id: str = "",
    key: str | None = None,
    orphan: str = "cancel",
    **more: Any,
) -> Any:
    """A ``run_task`` frame as it comes from the wire."""
    delivery = {"delivery_orphan_policy": orphan, **more.pop("delivery", {})}
    if key is not None:
        delivery["delivery_idempotency_key"] = key
    frame = {
        "type": "run_task",
        "run_id": run_id or f"run-{next(_numbers)}",
        "task_id": more.pop("task_id", "pdf"),
        "callable_pickle": dumps(function, label="f"),
        "args_pickle": dumps(more.pop("args", {}), label="a"),
        "delivery": delivery,
        "python": PYTHON,
        **more,
    }
    from wove.protocol import codec

    return decode_command(codec.encode(frame))


class Client:
    """One run, and what came back for it."""

    def __init__(self, queue: RunQueue, frame: dict[str, Any], owner: str = "") -> None:
        self.run_id, self.task_id = frame["run_id"], frame["task_id"]
        self.owner = owner
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.subscription: Subscription = queue.enqueue(frame, self._tell, peer="test", owner=owner)

    def _tell(self, event: dict[str, Any]) -> None:
        assert (event["run_id"], event.get("task_id")) == (self.run_id, self.task_id)
        assert encode_events([event])
        assert not self.over, "an event after the last one"
        self.events.append(event)
        self._changed.set()

    @property
    def over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in TERMINAL

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def started(self) -> None:
        await self.until(lambda: any(event["type"] == "task_started" for event in self.events))

    async def outcome(self) -> Any:
        """The value, the exception, ``"busy"`` or ``"cancelled"``."""
        await self.until(lambda: self.over)
        event = self.events[-1]
        if event["type"] == "task_result":
            return loads(event["result_pickle"], label="r")
        if event["type"] == "task_cancelled":
            return "cancelled"
        return "busy" if says_busy(event) else to_exception(event, task="pdf")


class Front:
    """A queue, and its clients."""

    def __init__(self, **options: Any) -> None:
        self.queue = RunQueue(service_options(**{"security": "none", **options}))

    def send(self, function: Any, /, *, owner: str = "", **more: Any) -> Client:
        return Client(self.queue, command(function, **more), owner)

    def cancel(self, client: Client, owner: str | None = None) -> None:
        frame = {"type": "cancel_task", "run_id": client.run_id, "task_id": client.task_id}
        self.queue.cancel(frame, owner=client.owner if owner is None else owner)


def with_front(main: Callable[[Front], Awaitable[Any]], **options: Any) -> Any:
    """Run *main* with a queue, and close that afterwards."""

    async def around() -> Any:
        front = Front(**options)
        try:
            return await main(front)
        finally:
            await front.queue.aclose()

    return asyncio.run(around())
