"""Executors that run tasks in this process, for tests.

::

    weave --run_task--> send --(Recorder: fault)--> begin --> Runner or thread or coroutine
    weave <---events--- recv <---------- deliver <-----------------'
"""

from __future__ import annotations

import asyncio
import inspect
from abc import abstractmethod
from collections.abc import Mapping
from contextvars import Context
from functools import partial
from typing import Any, ClassVar, Literal

from wove.concurrency.mailbox import post_to
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.executors.base import EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.protocol import codec
from wove.protocol.frames import TERMINAL
from wove.protocol.pickling import loads
from wove.testing.recorder import Fault, Recorder, SentRun
from wove.worker.runner import Runner

__all__ = ["CodecExecutor", "DirectExecutor"]

CLOSE_SECONDS = 5.0
"""How long a stop waits for tasks that are still at work."""

MAX_THREADS = 64
"""Maximum number of sync tasks at a time, for each environment."""


class RecordingExecutor(EnvironmentExecutor):
    """Records what it is sent, and lets the recorder's faults happen.

    Args:
        recorder: Where runs are recorded.
    """

    scope: ClassVar[Literal["run", "process"]] = "process"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._faults: dict[str, Fault] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        self.environment = environment_name
        self.loop = asyncio.get_running_loop()
        self._events = EventQueue()
        self.open()

    async def send(self, frame: Frame) -> None:
        run_id = frame.get("run_id", "")

        if frame["type"] == "run_task":
            self._take(run_id, frame)
        elif frame["type"] == "cancel_task":
            if (timer := self._waiting.pop(run_id, None)) is not None:
                timer.cancel()
                self.deliver(self._named(frame, "task_cancelled"))
            else:
                self.cancel(frame)

    async def recv(self) -> list[Frame]:
        return await self._events.get()

    async def stop(self) -> None:
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        await self.close()

    def deliver(self, event: Mapping[str, Any]) -> None:
        """Hand *event* to the weave, as its run's fault has it. Called on the loop."""
        run_id = event["run_id"]
        fault = self._faults.get(run_id)
        if fault is None:  # its end was told already
            return

        told = dict(event)
        if event["type"] in TERMINAL:
            del self._faults[run_id]
            if fault.error is not None:
                told = {**self._named(event, "task_error"), "exception": fault.error}

        self._events.put([dict(told) for _ in range(fault.copies)])

    @abstractmethod
    def open(self) -> None:
        """Get ready to run tasks."""

    @abstractmethod
    def begin(self, frame: Frame) -> None:
        """Run the task of *frame*; its events go to `deliver`."""

    @abstractmethod
    def cancel(self, frame: Frame) -> None:
        """Stop the run of *frame* as far as Python can."""

    @abstractmethod
    async def close(self) -> None:
        """End what `open` and `begin` began."""

    @abstractmethod
    def arguments(self, frame: Frame) -> dict[str, Any]:
        """Return the keyword arguments that *frame* carries."""

    def _take(self, run_id: str, frame: Frame) -> None:
        fault = self._recorder.record(
            SentRun(
                self.environment,
                frame["task_id"],
                run_id,
                dict(frame.get("delivery") or {}),
                partial(self.arguments, frame),
            )
        )
        self._faults[run_id] = fault

        if fault.error is not None and not fault.runs:
            self.deliver(self._named(frame, "task_started"))
            self.deliver(self._named(frame, "task_error"))
        elif fault.delay > 0:
            self._waiting[run_id] = self.loop.call_later(fault.delay, self._begin_late, frame)
        else:
            self.begin(frame)

    def _begin_late(self, frame: Frame) -> None:
        del self._waiting[frame["run_id"]]
        self.begin(frame)

    @staticmethod
    def _named(frame: Mapping[str, Any], kind: str) -> Frame:
        return {"type": kind, "run_id": frame["run_id"], "task_id": frame.get("task_id")}


class CodecExecutor(RecordingExecutor):
    """Sends every command and event through the real wire format, and runs tasks as a worker does."""

    wire: ClassVar[bool] = True
    says_started: ClassVar[bool] = True

    def open(self) -> None:
        self._runner = Runner(self._on_event, max_threads=MAX_THREADS, name="wove-testing")

    def begin(self, frame: Frame) -> None:
        [command] = codec.decode(codec.encode(frame))
        self._runner.submit(command)

    def cancel(self, frame: Frame) -> None:
        self._runner.cancel(frame)

    async def close(self) -> None:
        await run_in_thread(self._runner.close, CLOSE_SECONDS)

    def arguments(self, frame: Frame) -> dict[str, Any]:
        found: dict[str, Any] = loads(
            frame["args_pickle"], label=f"the arguments of task {frame['task_id']!r}"
        )
        return found

    def _on_event(self, event: dict[str, Any]) -> None:
        """Take an event of the runner's, from any thread."""
        [decoded] = codec.decode(codec.encode(event))
        post_to(self.loop, self.deliver, decoded)


class DirectExecutor(RecordingExecutor):
    """Runs tasks with the very objects of the weave: nothing is pickled."""

    def open(self) -> None:
        self._threads = ThreadPool(MAX_THREADS, "wove-testing")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, frame: Frame) -> None:
        run_id = frame["run_id"]
        task = self._tasks[run_id] = self.loop.create_task(self._run(frame))
        task.add_done_callback(lambda _: self._tasks.pop(run_id, None))

    def cancel(self, frame: Frame) -> None:
        if (task := self._tasks.get(frame["run_id"])) is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await run_in_thread(self._threads.close, CLOSE_SECONDS)

    def arguments(self, frame: Frame) -> dict[str, Any]:
        return dict(frame["args"])

    async def _run(self, frame: Frame) -> None:
        self.deliver(self._named(frame, "task_started"))
        call = partial(frame["callable"], **frame["args"])

        try:
            if inspect.iscoroutinefunction(frame["callable"]):
                result = await call()
            else:
                result = await self._threads.call(Context().run, call)
                if inspect.isawaitable(result):
                    result = await result
        except asyncio.CancelledError:
            self.deliver(self._named(frame, "task_cancelled"))
        except BaseException as error:
            self.deliver({**self._named(frame, "task_error"), "exception": error})
        else:
            self.deliver({**self._named(frame, "task_result"), "result": result})
