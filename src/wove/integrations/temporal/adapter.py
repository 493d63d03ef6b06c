"""The adapter to Temporal. Nothing of Temporal's package is imported before an environment starts."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryError, install_command
from wove.graph.rules import shown
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.client_loops import ClientCalls
from wove.integrations.naming import idempotency_key, job_id
from wove.settings.config_readers import options, text

if TYPE_CHECKING:
    from temporalio.client import Client

    from wove.executors.base import Frame
    from wove.integrations.temporal.client import Submission

__all__ = ["TemporalAdapter"]

TARGET_HOST: Final = "localhost:7233"
"""The address of ``temporal server start-dev``, and the default of Temporal's own tools."""

ID_CHARACTERS: Final = 255
"""Maximum length of a workflow's id. Servers accept 1,000 characters unless configured otherwise (``limit.maxIDLength``
in github.com/temporalio/temporal, common/dynamicconfig/constants.go); their oldest stores hold 255."""

PREFIX_CHARACTERS: Final = 150
"""Maximum length of ``workflow_id_prefix``."""

RESERVED_CONNECT: Final = {"target_host": "the key 'target_host' beside it is for that"}

RESERVED: Final = {
    "workflow": "the key 'workflow' beside it is for that",
    "arg": "the payload is the one argument",
    "args": "the payload is the one argument",
    "id": "'workflow_id_prefix' and delivery_idempotency_key make the id",
    "task_queue": "the key 'task_queue' beside it is for that",
    "id_reuse_policy": "delivery_idempotency_key decides which runs share one workflow",
    "id_conflict_policy": "delivery_idempotency_key decides which runs share one workflow",
    "cron_schedule": "a run is run once",
    "start_signal": "a run is started without one",
    "start_signal_args": "a run is started without one",
}
"""Options that ``connect_options`` and ``start_options`` cannot set, and why."""

MAX_PENDING_STARTS: Final = 32
"""Maximum number of workflows that are being started. Others wait here, since each would be slower in the server."""

LAST_SECONDS: Final = 1.0
"""How long `close` waits for pending calls, so that cancels still arrive."""


class TemporalAdapter(BackendAdapter):
    """Starts one workflow for each run.

    ``executor_config``: ``task_queue``; ``client``, a `temporalio.client.Client` of the user's own, or ``target_host``
    (``"localhost:7233"``) and ``connect_options``, a dict of options of ``Client.connect``; ``workflow``, another one
    than Wove's, that hands its argument to `run_payload`; ``workflow_id_prefix`` (``"wove-"``); ``start_options``, a
    dict of options of ``Client.start_workflow``.

    Example:
        >>> wove.config(
        ...     environments={"reports": {"executor": "temporal", "executor_config": {"task_queue": "wove-reports"}}}
        ... )
    """

    name: ClassVar[str] = "temporal"
    required_modules: ClassVar[tuple[str, ...]] = ("temporalio",)
    install_hint: ClassVar[str] = install_command("temporal")
    keys: ClassVar[tuple[str, ...] | None] = (
        "client",
        "target_host",
        "connect_options",
        "workflow",
        "task_queue",
        "workflow_id_prefix",
        "start_options",
    )

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("client")
        both = [key for key in ("target_host", "connect_options") if config.get(key) is not None]
        if self._given is not None and both:
            raise ValueError(
                f"{label}: executor_config 'client' is connected already: leave out {' and '.join(both)}"
            )

        if self._given is not None and not callable(getattr(self._given, "start_workflow", None)):
            raise TypeError(
                f"{label}: executor_config 'client' must be what `await Client.connect(...)` gives, not "
                f"{shown(self._given)}. Where to connect goes under 'target_host'"
            )

        self._target = text(config, "target_host", TARGET_HOST, label=label)
        self._connect_options = options(
            config, "connect_options", label=label, reserved=RESERVED_CONNECT
        )
        self._workflow = config.get("workflow")
        if self._workflow is not None and not callable(self._workflow):
            self._workflow = text(config, "workflow", label=label)
        queue = text(config, "task_queue", label=label)
        if queue is None:
            raise ValueError(
                f"{label}: temporal needs executor_config 'task_queue': the name that its workers have, too"
            )

        self._task_queue = queue
        self._prefix = text(config, "workflow_id_prefix", "wove-", label=label)

        if len(self._prefix) > PREFIX_CHARACTERS:
            raise ValueError(
                f"{label}: executor_config 'workflow_id_prefix' has {len(self._prefix)} characters; at most "
                f"{PREFIX_CHARACTERS} leave room for the id"
            )

        self._start_options = options(config, "start_options", label=label, reserved=RESERVED)

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        library = self._library = await run_in_thread(_import, "client")
        states = await run_in_thread(_import, "states")
        where = f"{self.label}: executor_config"
        library.check_options("connect", self._connect_options, label=f"{where} 'connect_options'")
        library.check_options(
            "start_workflow", self._start_options, label=f"{where} 'start_options'"
        )
        self._type: str = library.name_of(self._workflow, label=f"{where} 'workflow'")
        self._is_ours = self._workflow is None
        self._slots = asyncio.Semaphore(MAX_PENDING_STARTS)
        self._calls = ClientCalls(
            self._client_loop, label=f"{self.label}: its client", explain=self._explain
        )

        if self._given is not None:
            self._client: Client = self._given
            library.keep(self._client)
        else:
            self._client = await library.connect(
                self._target, self._connect_options, label=self.label
            )

        self._options_of_start = {**self._start_options, "task_queue": self._task_queue}
        self._probe = states.WorkflowProbe(self._client, self._task_queue, self.has_started)

    async def close(self) -> None:
        await self._calls.close(LAST_SECONDS)
        await asyncio.sleep(self._library.SETTLE_SECONDS)

    def _client_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop on which the client is to be used; ``None``: Wove's own loop.

        A client belongs to no loop. Code that the user has put into it may: a codec of payloads, or an interceptor.
        """
        loop = self.caller_loop
        if self._given is None or loop is None or not loop.is_running():
            return None
        config = self._given.config()
        has_code = config["data_converter"].payload_codec is not None or config["interceptors"]
        return loop if has_code else None

    def _explain(self, error: BaseException) -> DeliveryError | None:
        if isinstance(error, self._library.RPCError):
            return cast(
                "DeliveryError",
                self._library.unreachable(error, self._client, label=self.label),
            )
        if isinstance(error, AssertionError):
            return cast("DeliveryError", self._library.forked(self.label))
        return None

    # ------------------------------------------------------------------ jobs

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        start = partial(
            self._library.start_workflow,
            self._client,
            self._type,
            payload,
            workflow_id=job_id(frame, prefix=self._prefix, most=ID_CHARACTERS),
            keyed=idempotency_key(frame) is not None,
            is_awaited=self.is_awaited,
            options=self._options_of_start,
            label=self.label,
        )

        async with self._slots:
            if self._calls.closed:
                raise DeliveryError(
                    f"{self.label} was stopped before run {payload['run_id']} was started"
                )
            return await self._calls.call(start)

    async def cancel(self, run_id: str, submission: Submission | None, frame: Frame) -> bool:
        if submission is None:  # not started yet
            return False
        try:
            return await self._calls.call(
                partial(self._library.cancel, self._client, submission, is_ours=self._is_ours)
            )
        except DeliveryError:
            if self._calls.closed:
                return False  # no caller waits for the answer any more
            raise

    async def watch(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        return await self._calls.call(partial(self._probe.ended, submissions))

    async def waiting(self, submissions: Mapping[str, Submission]) -> str:
        return await self._calls.call(self._probe.why_waiting)


def _import(name: str) -> Any:
    with forks.importing:
        return importlib.import_module(f"wove.integrations.temporal.{name}")
