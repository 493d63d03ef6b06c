"""The executors under contract. A new one is one more `Link` in `LINKS`, and passes the suite."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.line_backend import line_executor
from tests.support.namespaces import FAR_ADDRESS
from tests.support.services import Plan, Services
from wove.delivery import Call, DeliveryClient, Request
from wove.executors.base import EnvironmentExecutor, Frame
from wove.graph.options import DeliveryPolicy
from wove.result import RunRecord
from wove.settings.model import Environment
from wove.settings.resolution import TaskSettings

__all__ = ["LINKS", "Bench", "InProcess", "Link", "parameters"]

FAR = os.environ.get("WOVE_TEST_FAR", "")
"""The network namespace in which the services are to run, at `FAR_ADDRESS`: see tests/network/test_two_hosts.py."""

Make: TypeAlias = Callable[[str, Services], Environment]


class InProcess(EnvironmentExecutor):
    """A user's own executor: runs sync callables in threads and coroutines on the loop."""

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Frame] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, frame: Frame) -> None:
        if frame["type"] == "run_task":
            self.tasks[frame["run_id"]] = asyncio.create_task(self.work(frame))
        elif frame["type"] == "cancel_task" and frame["run_id"] in self.tasks:
            self.tasks[frame["run_id"]].cancel()

    async def work(self, frame: Frame) -> None:
        names = {"run_id": frame["run_id"], "task_id": frame["task_id"]}
        self.events.put_nowait({"type": "task_started", **names})
        beat = frame["delivery"].get("delivery_heartbeat_seconds")
        beats = asyncio.create_task(self.beat(names, beat / 3)) if beat else None
        try:
            if asyncio.iscoroutinefunction(frame["callable"]):
                result = await frame["callable"](**frame["args"])
            else:
                result = await self.in_thread(frame["callable"], frame["args"])
        except asyncio.CancelledError:
            self.events.put_nowait({"type": "task_cancelled", **names})
        except Exception as error:
            self.events.put_nowait({"type": "task_error", "exception": error, **names})
        else:
            self.events.put_nowait({"type": "task_result", "result": result, **names})
        finally:
            if beats is not None:
                beats.cancel()

    async def in_thread(self, fn: Callable[..., Any], args: dict[str, Any]) -> Any:
        done = self.loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not done.done():
                done.set_result((value, error))

        def call() -> None:
            try:
                outcome = (fn(**args), None)
            except BaseException as error:
                outcome = (None, error)
            try:
                self.loop.call_soon_threadsafe(settle, *outcome)
            except RuntimeError:
                pass

        threading.Thread(target=call, daemon=True).start()
        value, error = await done
        if error is not None:
            raise error
        return value

    async def beat(self, names: dict[str, Any], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self.events.put_nowait({"type": "heartbeat", **names})

    async def recv(self) -> Frame:
        return await self.events.get()

    async def stop(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


class InProcessShared(InProcess):
    """The same, started once for the process."""

    scope = "process"


@dataclass(frozen=True)
class Link:
    """One way out.

    Attributes:
        name: Of the executor, for the test's id.
        environment: Makes an environment of that name; what it leads to accepts runs by then.
        backends: What it needs; see tests/support/backends.py.
        pickles: Values cross it as bytes.
        cancels: A cancelled coroutine gets to know it.
        interrupts: A cancelled sync task ends, if need be with its process.
        loses: Its worker can be killed from inside a task.
        names_signals: It can tell what killed the worker.
        beats: Its workers send heartbeats.
        remembers: Its workers know the outcomes of runs with a key, once they have ended.
        across_threads: Two threads can use one environment of it at once.
    """

    name: str
    environment: Make
    backends: tuple[str, ...] = ()
    pickles: bool = True
    cancels: bool = True
    interrupts: bool = True
    loses: bool = True
    names_signals: bool = True
    beats: bool = True
    remembers: bool = False
    across_threads: bool = True

    def __str__(self) -> str:
        return self.name


def service(name: str, plan: Plan, *, executor: str | None = None, **config: Any) -> Link:
    """A link to ``wove worker`` in another process, started again whenever a task kills it."""
    threads = plan.processes is None
    # A detached run of some test may sleep for a minute, and there is nobody any more to wait for it.
    plan = replace(plan, supervised=True, options=("--drain-timeout", "0.5"))
    if FAR:
        plan = replace(plan, host=FAR_ADDRESS, inside=("ip", "netns", "exec", FAR))
    return Link(
        name,
        lambda environment, services: Environment(
            environment, executor or plan.transport, services.get(plan).config(**config)
        ),
        backends=(plan.transport, "tls") if plan.tls else (plan.transport,),
        interrupts=not threads,  # a thread cannot be interrupted in a blocking call, and its process has other runs
        names_signals=not threads,  # of a service that dies, one sees that the connection is gone
        remembers=True,
    )


# A command of one's own imports from where one's own environment says, not from where this process does.
_PLAIN = [
    "env",
    f"PYTHONPATH={Path(__file__).parents[2]}",
    sys.executable,
    str(Path(__file__).with_name("plain_worker.py")),
]

_SECRET = "for the contract suite"

LINKS = (
    Link(
        "stdio",
        lambda name, services: Environment(name, "stdio", {"processes": 2}),
        backends=("stdio",),
    ),
    Link(
        "stdio-plain-worker",
        lambda name, services: Environment(name, "stdio", {"command": _PLAIN}),
        backends=("stdio",),
        cancels=False,  # it only knows the cancel that comes before the end
        beats=False,
    ),
    Link(
        "own-executor",
        lambda name, services: Environment(name, InProcess()),
        pickles=False,
        interrupts=False,  # a thread cannot be
        loses=False,  # there is no worker to lose
        across_threads=False,  # one instance, one loop at a time
    ),
    Link(
        "own-shared-executor",
        lambda name, services: Environment(name, InProcessShared()),
        pickles=False,
        interrupts=False,
        loses=False,
    ),
    Link(
        "backend-adapter",
        lambda name, services: Environment(name, line_executor()),
        interrupts=False,  # its tasks are in threads of one process
        names_signals=True,
        remembers=True,
    ),
    Link(
        "backend-adapter-signed",
        lambda name, services: Environment(
            name,
            line_executor(),
            {"security": {"type": "signed", "secret": _SECRET}, "secret": _SECRET},
        ),
        interrupts=False,
        remembers=True,
    ),
    service("http", Plan("http")),
    service("https-signed", Plan("http", _SECRET, tls=True), executor="https"),
    service("http-processes", Plan("http", processes=2)),
    service("grpc", Plan("grpc")),
    service("grpc-tls-signed-replies", Plan("grpc", _SECRET, sign_replies=True, tls=True)),
    service("grpc-processes", Plan("grpc", processes=2)),
    service("websocket", Plan("websocket")),
    service("wss-signed-replies", Plan("websocket", _SECRET, sign_replies=True, tls=True)),
    service("websocket-processes", Plan("websocket", processes=2)),
)


def parameters(links: Iterable[Link]) -> list[Any]:
    """*links* as the parameters of a fixture, each with what it needs."""
    return [
        pytest.param(link, id=str(link), marks=pytest.mark.backend(*link.backends))
        for link in links
    ]


class Bench:
    """One environment of one link, and runs through it."""

    def __init__(self, link: Link, services: Services, name: str = "bench") -> None:
        self.link = link
        self.environment = link.environment(name, services)
        self.records: list[RunRecord] = []

    def drive(self, main: Callable[[DeliveryClient], Awaitable[Any]]) -> Any:
        """What *main* returns, with a scope as one weave has it."""

        async def around() -> Any:
            scope = DeliveryClient(asyncio.get_running_loop())
            try:
                return await main(scope)
            finally:
                await scope.aclose()

        return asyncio.run(around())

    def request(
        self,
        fn: Callable[..., Any] | Call,
        args: dict[str, Any] | None = None,
        *,
        attempt_timeout: float | None = None,
        **policy: Any,
    ) -> Request:
        """One attempt of *fn*; *policy* are the fields of `DeliveryPolicy`."""
        call = fn if isinstance(fn, Call) else Call(fn, getattr(fn, "__name__", "task"))
        self.records.append(RunRecord(call.task, environment=self.environment.name))
        return Request(
            call,
            args or {},
            TaskSettings(
                environment=self.environment,
                timeout=attempt_timeout,
                delivery=DeliveryPolicy(**policy),
            ),
            timeout=attempt_timeout,
            record=self.records[-1],
        )
