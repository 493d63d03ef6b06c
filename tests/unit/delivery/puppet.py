"""An executor whose every move a test decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from wove.delivery import Call, DeliveryClient, Request
from wove.executors.base import EnvironmentExecutor, Frame
from wove.graph.options import DeliveryPolicy
from wove.settings.model import Environment
from wove.settings.resolution import TaskSettings

__all__ = ["Puppet", "SharedPuppet", "drive", "eventually", "request"]


class Puppet(EnvironmentExecutor):
    """Keeps what it is sent, and says what it is told to say.

    Attributes:
        sent: All frames, in order.
        calls: Names of the methods that were called, `send` and `recv` left out.
        on_start: Awaited in `start`, with the number of starts; `on_send` and `on_stop` likewise.
    """

    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.calls: list[str] = []
        self.events: asyncio.Queue[Any] | None = None
        self.on_start: Callable[[int], Awaitable[None]] | None = None
        self.on_send: Callable[[Frame], Awaitable[None]] | None = None
        self.on_stop: Callable[[], Awaitable[None]] | None = None
        self.config: dict[str, Any] = {}

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        self.calls.append("start")
        self.config = dict(environment_config)
        self.loop = asyncio.get_running_loop()
        self.events = asyncio.Queue()
        if self.on_start is not None:
            await self.on_start(self.calls.count("start"))

    async def send(self, frame: Frame) -> None:
        self.sent.append(frame)
        if self.on_send is not None:
            await self.on_send(frame)

    async def recv(self) -> Any:
        assert self.events is not None
        event = await self.events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    async def stop(self) -> None:
        self.calls.append("stop")
        if self.on_stop is not None:
            await self.on_stop()

    # ------------------------------------------------------------------ for the test

    def say(self, *events: Any) -> None:
        """Have `recv` give *events*, one after the other; it raises exceptions."""
        for event in events:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)  # type: ignore[union-attr]

    @property
    def runs(self) -> list[Frame]:
        """The ``run_task`` frames."""
        return [frame for frame in self.sent if frame["type"] == "run_task"]

    @property
    def cancels(self) -> list[str]:
        """The ids that ``cancel_task`` frames were about."""
        return [frame["run_id"] for frame in self.sent if frame["type"] == "cancel_task"]

    def event(self, type: str, run: int = -1, **fields: Any) -> Frame:  # noqa: A002 - as the frame calls it
        """An event about one of the runs."""
        return {"type": type, "run_id": self.runs[run]["run_id"], **fields}

    async def sending(self, count: int) -> None:
        """Wait until so many runs were sent."""
        await eventually(lambda: len(self.runs) >= count)


class SharedPuppet(Puppet):
    """One for the whole process."""

    scope = "process"


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for *condition*, without a word about how long that takes."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come about"
        await asyncio.sleep(0.002)
    return value


async def transmitted(client: DeliveryClient, count: int) -> None:
    """Wait until the executors of *client* have sent *count* runs that have not ended."""

    def sent() -> int:
        tables = [session.table for _, session in client._sessions.values()]
        return sum(run.transmitted_at > 0 for table in tables for run in list(table._sent.values()))

    await eventually(lambda: sent() >= count)


def drive(main: Callable[[DeliveryClient], Awaitable[Any]]) -> Any:
    """What *main* returns, with a scope as one weave has it."""

    async def around() -> Any:
        scope = DeliveryClient(asyncio.get_running_loop())
        try:
            return await main(scope)
        finally:
            await scope.aclose()

    return asyncio.run(around())


def add(left: int = 1, right: int = 1) -> int:
    return left + right


def request(
    executor: EnvironmentExecutor | Environment,
    fn: Callable[..., Any] | Call = add,
    args: dict[str, Any] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    name: str = "puppets",
    attempt_timeout: float | None = None,
    **policy: Any,
) -> Request:
    """A request for *executor*; *policy* are the fields of `DeliveryPolicy`."""
    environment = (
        executor
        if isinstance(executor, Environment)
        else Environment(name, executor, dict(config or {}))
    )
    return Request(
        fn if isinstance(fn, Call) else Call(fn, getattr(fn, "__name__", "task")),
        args or {},
        TaskSettings(
            environment=environment, timeout=attempt_timeout, delivery=DeliveryPolicy(**policy)
        ),
        timeout=attempt_timeout,
    )
