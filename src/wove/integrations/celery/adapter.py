"""Celery: each payload is a message of one task, on the broker of the app.

`CeleryAdapter` is for the environment, `register` for its workers. Events and results go to the callback receiver;
Celery's result backend has only the failures of the job itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import DeliveryError, install_command
from wove.executors.base import Frame
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.celery.client import Broker, LostError, make_app
from wove.integrations.celery.lost import LostJobDetector
from wove.integrations.celery.states import ResultStates
from wove.integrations.celery.worker import TASK_NAME
from wove.integrations.common.batcher import Batcher
from wove.integrations.naming import idempotency_key, job_id
from wove.settings.config_readers import flag, options, text

__all__ = ["CeleryAdapter", "Submission"]

INLINE_CHARACTERS: Final = 64 * 1024
"""Maximum size of a payload that goes through the broker whole; workers fetch the pickles of larger ones. Brokers
accept more (RabbitMQ 16 MiB, rabbit_common/src/rabbit_limits; Redis holds all messages in memory), but workers prefetch
messages, and include them in their answers to questions."""

TERMINATE_SIGNAL: Final = "SIGTERM"
"""Ends a prefork child during a task, after `wove.integrations.worker.run` has reported that."""

RESERVED: Final[Mapping[str, str]] = dict.fromkeys(
    (
        "name",
        "args",
        "kwargs",
        "task_id",
        "producer",
        "publisher",
        "connection",
        "result_cls",
        "add_to_parent",
        "ignore_result",
        "argsrepr",
        "kwargsrepr",
    ),
    "it is set by Wove itself; remove it",
)
"""Arguments of ``Celery.send_task`` that ``send_task_options`` cannot set, and why."""

_LINGER_SECONDS: Final = 0.5


class Submission(NamedTuple):
    """A message that was sent.

    Attributes:
        task_id: The id of the Celery task.
        at: When it was sent, on the monotonic clock.
        kept: Whether it must stay in the queue, because its weave is detached from it.
    """

    task_id: str
    at: float
    kept: bool


class _Cancel(NamedTuple):
    task_id: str
    acknowledged: bool


class CeleryAdapter(BackendAdapter):
    """Sends payloads as messages of a Celery task.

    Args:
        environment: The environment's name.
        config: ``app``, or ``broker_url`` with ``result_backend`` and ``app_name``; ``task_name``, ``queue``,
            ``send_task_options``, ``terminate_on_cancel``.

    Example:
        >>> environment = {
        ...     "executor": "celery",
        ...     "executor_config": {"broker_url": "redis://localhost:6379/0", "queue": "reports"},
        ... }
    """

    name = "celery"
    required_modules: ClassVar[tuple[str, ...]] = ("celery",)
    install_hint = install_command("celery")
    keys = (
        "app",
        "broker_url",
        "result_backend",
        "backend_url",
        "app_name",
        "task_name",
        "queue",
        "send_task_options",
        "terminate_on_cancel",
    )
    inline_bytes = INLINE_CHARACTERS
    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 5.0)
    loss_reason_timeout: ClassVar[float] = (
        7.0  # a worker looks after its pool every 5 s: celery.concurrency.asynpool
    )

    def configure(self) -> None:
        config, label = self.config, self.label
        self._app: Any = config.get("app")
        urls = [
            key
            for key in ("broker_url", "result_backend", "backend_url", "app_name")
            if config.get(key)
        ]
        if self._app is None and not config.get("broker_url"):
            raise ValueError(f"{label}: executor_config needs 'app' (a Celery app) or 'broker_url'")
        if self._app is not None:
            if urls:
                raise ValueError(
                    f"{label}: executor_config has both 'app' and {urls[0]!r}; the app has its own"
                )
            if not (hasattr(self._app, "send_task") and hasattr(self._app, "connection_for_write")):
                raise TypeError(
                    f"{label}: executor_config 'app' must be a Celery app, not {self._app!r:.100}"
                )

        if config.get("result_backend") and config.get("backend_url"):
            raise ValueError(
                f"{label}: executor_config 'result_backend' and 'backend_url' are the same thing: keep one"
            )

        self._broker_url = text(config, "broker_url", label=label)
        self._backend_url = text(config, "result_backend", label=label) or text(
            config, "backend_url", label=label
        )
        if any(_is_redis(url) for url in (self._broker_url, self._backend_url)):
            self.required_modules = ("celery", "redis")  # type: ignore[misc]
            self.install_hint = f'{type(self).install_hint} "celery[redis]"'  # type: ignore[misc]
        self._app_name = text(config, "app_name", "wove", label=label)
        self.task_name = text(config, "task_name", TASK_NAME, label=label)
        self._terminate = flag(config, "terminate_on_cancel", False, label=label)
        self.options = self._read_options()

    def _read_options(self) -> dict[str, Any]:
        given = options(self.config, "send_task_options", label=self.label, reserved=RESERVED)
        queue = text(self.config, "queue", label=self.label)

        if queue is not None:
            if "queue" in given:
                raise ValueError(
                    f"{self.label}: executor_config 'send_task_options' has a queue, and so has executor_config: "
                    "keep one"
                )
            given["queue"] = queue

        # By default, a message that cannot be sent is an error at once. The user can have Celery try again.
        return {"serializer": "json", "retry": False, **given}

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        with forks.importing:
            if self._app is None:
                self._app = make_app(self._app_name, self._broker_url, self._backend_url)
            self._broker = Broker(self._app, self.task_name, self.options, label=self.label)
            self._results = ResultStates.of(self._app, self.task_name)

        self._probe = LostJobDetector(self._broker, self.task_name, self.has_started, self._results)
        # One thread for each connection, since a connection of kombu is for one thread at a time.
        self._sender, self._asker = (
            ThreadPool(1, "wove-celery-send"),
            ThreadPool(1, "wove-celery-ask"),
        )
        self._submissions: Batcher[tuple[PayloadDict, Frame], Submission | Exception] = Batcher(
            partial(self._sender.call, self._send)
        )
        self._cancels: Batcher[_Cancel, bool] = Batcher(partial(self._asker.call, self._revoke))
        self._broker.connect()

    async def close(self) -> None:
        await self._submissions.close()
        await self._cancels.close()
        await run_in_thread(self._end)

    def _end(self) -> None:
        self._broker.close()
        self._sender.close(_LINGER_SECONDS, for_good=True)
        self._asker.close(_LINGER_SECONDS, for_good=True)

    # ------------------------------------------------------------------ out

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        size = sum(len(value) for value in payload.values() if isinstance(value, str))
        sent = await self._submissions.put((payload, frame), size)
        if isinstance(sent, Exception):
            raise sent
        return sent

    def _send(self, batch: Sequence[tuple[PayloadDict, Frame]]) -> list[Submission | Exception]:
        try:
            return self._send_once(batch)
        except LostError:
            # The broker may have been restarted. A message that did arrive is now there twice; only one is run.
            return self._send_once(batch)

    def _send_once(
        self, batch: Sequence[tuple[PayloadDict, Frame]]
    ) -> list[Submission | Exception]:
        sent: list[Submission | Exception] = []

        with self._broker.sending(len(batch)) as send:
            for payload, frame in batch:
                if not self.is_awaited(payload["run_id"]):
                    sent.append(
                        DeliveryError(
                            f"{self.label}: run {payload['run_id']} was given up before it was sent"
                        )
                    )
                    continue
                try:
                    sent.append(self._send_one(send, payload, frame))
                except self._broker.errors:
                    raise
                except (
                    Exception
                ) as error:  # only this message cannot be sent, because of its options
                    sent.append(error)

        return sent

    def _send_one(
        self, send: Callable[..., None], payload: PayloadDict, frame: Frame
    ) -> Submission:
        policy = cast("Mapping[str, Any]", frame.get("delivery") or {}).get(
            "delivery_orphan_policy"
        )
        task_id = job_id(frame)
        if idempotency_key(frame) is not None:
            # Celery accepts any number of tasks with one id, but never runs a task whose id was revoked.
            task_id = f"{task_id}-{payload['run_id']}"

        submission = Submission(task_id, time.monotonic(), policy == "detach")
        send(
            self.task_name,
            args=(payload,),
            task_id=task_id,
            # The text that monitors show instead of the payload.
            argsrepr=f"(<run {payload['run_id']} of task {frame['task_id']!r}>,)",
            kwargsrepr="{}",
            **self.options,
        )
        return submission

    async def cancel(self, run_id: str, submission: Submission, frame: Frame) -> bool:
        return await self._cancels.put(
            _Cancel(submission.task_id, frame.get("delivery_cancel_mode") == "require_ack")
        )

    def _revoke(self, cancels: Sequence[_Cancel]) -> list[bool]:
        arguments: dict[str, Any] = {"task_id": [cancel.task_id for cancel in cancels]}
        if self._terminate:
            arguments.update(terminate=True, signal=TERMINATE_SIGNAL)
        acknowledged = [cancel.task_id for cancel in cancels if cancel.acknowledged]
        answers = self._broker.ask("revoke", arguments, wait=bool(acknowledged))
        if not answers:
            return [False] * len(cancels)

        # All workers know of the revocation now, so a message that none of them has started will not be started.
        started: set[str] = set()
        for tasks in self._broker.where(acknowledged).values():
            started.update(task for task, (state, _) in tasks.items() if state == "active")
        return [cancel.acknowledged and cancel.task_id not in started for cancel in cancels]

    # ------------------------------------------------------------------ watch

    async def watch(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        return await self._asker.call(self._probe.ended, dict(submissions))

    async def waiting(self, submissions: Mapping[str, Submission]) -> str:
        return await self._asker.call(self._why_waiting)

    def _why_waiting(self) -> str:
        queue = self._broker.queue
        if queue is None or not self._broker.answers:
            return ""
        consumed = self._broker.ask("active_queues", {})
        hosts = [
            host
            for host, queues in consumed.items()
            if any(each.get("name") == queue for each in queues)
        ]
        if not hosts:
            found = f"; {', '.join(sorted(consumed))} take from others" if consumed else ""
            return f"no Celery worker takes from queue {queue!r}{found} (celery worker -Q {queue})"

        active = self._broker.ask("active", {})
        busy = sum(bool(active.get(host)) for host in hosts)
        return f"of {len(hosts)} Celery workers on queue {queue!r}, {busy} are busy"


def _is_redis(url: str | None) -> bool:
    return (url or "").partition("://")[0] in ("redis", "rediss", "sentinel")
