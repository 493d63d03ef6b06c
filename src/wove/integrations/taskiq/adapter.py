"""Taskiq: the adapter, and the task for its workers.

In the module with the broker, which weaves and workers both import::

    from taskiq_redis import ListQueueBroker
    from wove.integrations.taskiq import register

    broker = ListQueueBroker("redis://redis:6379/0")
    register(broker)
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryError, install_command
from wove.graph.rules import shown
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.client_loops import ClientCalls
from wove.integrations.naming import idempotency_key, job_id
from wove.integrations.taskiq.client import BrokerLoops, Submission, loop_of
from wove.integrations.taskiq.lost import LostJobDetector
from wove.integrations.taskiq.worker import TASK_NAME
from wove.security import NetworkExecutorSecurity
from wove.settings.config_readers import number, text

if TYPE_CHECKING:
    from wove.executors.base import Frame

__all__ = ["TaskiqAdapter"]

LABELS: Final[Mapping[str, Any]] = {
    # The weave retries its tasks itself: taskiq/middlewares/simple_retry_middleware.py.
    "retry_on_error": False,
    # A message that is acknowledged at the end of its task would be delivered again after ten minutes, while a long
    # task still runs (RedisStreamBroker, idle_timeout). See taskiq/receiver/receiver.py, _get_ack_time; releases before
    # 0.13 ignore it.
    "ack_type": "when_received",
}

MAX_PENDING_KICKS: Final = 16
"""Maximum number of messages that are being sent at a time: each uses a connection of the broker's pool."""

BROADCASTING: Final = "PubSubBroker"
"""The broker of taskiq-redis that delivers each message to every worker."""


class TaskiqAdapter(BackendAdapter):
    """Hands payloads to Taskiq's workers, through the broker that the user has made. See the page "Taskiq"."""

    name: ClassVar[str] = "taskiq"
    required_modules: ClassVar[tuple[str, ...]] = ("taskiq",)
    install_hint: ClassVar[str] = install_command("taskiq")
    keys: ClassVar[tuple[str, ...] | None] = ("task", "broker", "task_name")
    inline_bytes: ClassVar[int] = 64 * 1024
    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 5.0)

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._task: Any = config.get("task")
        broker: Any = config.get("broker")
        if (self._task is None) == (broker is None):
            both = "has both 'task' and 'broker'; give" if broker is not None else "needs"
            raise ValueError(
                f"{label}: executor_config {both} one of them: 'task' (what register(broker) returns), or 'broker' "
                "and, where it is not the default, 'task_name'"
            )

        if self._task is not None:
            if not (
                callable(getattr(self._task, "kicker", None)) and hasattr(self._task, "broker")
            ):
                raise TypeError(
                    f"{label}: executor_config 'task' must be a task of a broker, not {shown(self._task)}"
                )
            if config.get("task_name") is not None:
                raise ValueError(
                    f"{label}: executor_config has both 'task' and 'task_name'; the task has a name already"
                )
            broker = (
                self._task.kicker().broker
            )  # for a shared task, this differs from its attribute

        if not (
            callable(getattr(broker, "kick", None)) and callable(getattr(broker, "startup", None))
        ):
            raise TypeError(
                f"{label}: executor_config 'broker' must be a broker of taskiq, not {shown(broker)}"
            )

        if any(kind.__name__ == BROADCASTING for kind in type(broker).__mro__):
            raise ValueError(
                f"{label}: a {type(broker).__name__} gives each task to all workers, and each would run it. Use a "
                "broker that gives it to one, such as ListQueueBroker"
            )

        self._broker = broker
        self._name = (
            text(config, "task_name", TASK_NAME, label=label)
            if self._task is None
            else self._task.task_name
        )
        self._seconds = number(config, "send_timeout", 60.0, label=label, none=True)
        security = NetworkExecutorSecurity.from_config(config.get("security"), label=label)
        self._trusts_results = not security.authenticates

    # ------------------------------------------------------------------ start and end

    async def start(self) -> None:
        self._kicker = await run_in_thread(_import)
        self._slots = asyncio.Semaphore(MAX_PENDING_KICKS)
        self._started_on: asyncio.AbstractEventLoop | None = None
        self._calls = ClientCalls(
            self._broker_loop,
            label=f"{self.label}: {self._shown}",
            seconds=self._seconds,
            explain=self._explain,
        )
        self._probe = LostJobDetector(
            self._broker, self._name, self.has_started, trusts_results=self._trusts_results
        )
        if BrokerLoops.is_started(self._broker):
            return
        loop = self._broker_loop()

        try:
            await self._calls.call(self._broker.startup)
        except DeliveryError:
            raise
        except Exception as error:
            raise DeliveryError(
                f"{self.label}: {self._shown} could not be started: {_cause_text(error)}"
            ) from error

        self._started_on = loop or asyncio.get_running_loop()

    async def close(self) -> None:
        await self._calls.close()
        # A broker that was started on the user's loop is left to the user, as the loop is. A broker in memory is left
        # too: it could not be started again without its threads.
        if self._started_on is asyncio.get_running_loop() and not hasattr(self._broker, "executor"):
            await self._broker.shutdown()

    @property
    def _shown(self) -> str:
        return f"its broker ({type(self._broker).__name__})"

    def _broker_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop that the broker belongs to; ``None``: Wove's own loop."""
        if self._started_on is not None and not self._started_on.is_closed():
            return self._started_on
        return loop_of(self._broker)

    def _explain(self, error: BaseException) -> DeliveryError | None:
        if not isinstance(error, TimeoutError):
            return None
        return DeliveryError(f"{self.label}: {self._shown} did not answer within {self._seconds} s")

    # ------------------------------------------------------------------ out

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        task_id = job_id(frame)
        if idempotency_key(frame) is not None:
            # Taskiq accepts any number of tasks with one id, and the result of an earlier one would count as that of
            # this one.
            task_id = f"{task_id}-{payload['run_id']}"

        async with self._slots:
            began = time.monotonic()
            try:
                await self._calls.call(lambda: self._kick(task_id, payload))
            except DeliveryError:
                raise
            except Exception as error:
                raise DeliveryError(
                    f"{self.label}: {self._shown} did not take the task: {_cause_text(error)}"
                ) from error
            return Submission(task_id, began, time.monotonic())

    def _kick(self, task_id: str, payload: PayloadDict) -> Coroutine[Any, Any, Any]:
        task = self._task if self._task is not None else self._broker.find_task(self._name)
        kicker = self._kicker(self._name, self._broker, {}) if task is None else task.kicker()
        kicker.labels = {**LABELS, **kicker.labels}
        return cast("Coroutine[Any, Any, Any]", kicker.with_task_id(task_id).kiq(payload))

    async def cancel(self, run_id: str, submission: Submission, frame: Frame) -> bool:
        # Taskiq can neither withdraw a message nor cancel a task. The worker learns of the cancel from the answer to
        # its next report.
        return False

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        if not self._probe.usable:
            return {}
        return await self._calls.call(lambda: self._probe.ended(submissions))

    async def waiting(self, submissions: Mapping[str, Submission]) -> str:
        return await self._calls.call(self._probe.why_waiting)


def _import() -> Any:
    with forks.importing:
        return importlib.import_module("taskiq.kicker").AsyncKicker


def _cause_text(error: BaseException) -> str:
    """Return the text of the cause, which Taskiq wraps in an error without text."""
    cause = error.__cause__ if error.__cause__ is not None else error
    return ": ".join(filter(None, (type(cause).__name__, str(cause))))
