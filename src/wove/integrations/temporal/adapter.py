"""The adapter to Temporal. Nothing of Temporal's package is imported before an environment starts."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

from wove.concurrency import forks
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryError, install_command
from wove.graph.rules import shown
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.client_loops import on_loop
from wove.integrations.naming import idempotency_key, job_id
from wove.settings.config_readers import text

if TYPE_CHECKING:
    from temporalio.client import Client

    from wove.executors.base import Frame
    from wove.integrations.temporal.client import Submission

__all__ = ["TemporalAdapter"]

T = TypeVar("T")

TARGET_HOST: Final = "localhost:7233"
"""Where ``temporal server start-dev`` listens, and where Temporal's own tools look by default."""

ID_CHARACTERS: Final = 255
"""The most characters of a workflow's id. A server takes 1,000 unless it is set up for less (``limit.maxIDLength`` in
github.com/temporalio/temporal, common/dynamicconfig/constants.go); 255 is what its oldest stores hold."""

PREFIX_CHARACTERS: Final = 150

TAKEN: Final[Mapping[str, str]] = {
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
"""The options that ``start_options`` may not set, and why."""

STARTS_AT_ONCE: Final = 32
"""Workflows that are being started at a time. More wait here and not in the server, where each would be slower."""

LAST_SECONDS: Final = 1.0
"""How long the end waits for answers that are due: what has been cancelled is to hear of it."""


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
        self._connect_options = self._options(
            "connect_options", {"target_host": "the key beside it is for that"}
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

        self._start_options = self._options("start_options", TAKEN)

    def _options(self, key: str, taken: Mapping[str, str]) -> dict[str, Any]:
        value = self.config.get(key)
        label = f"{self.label}: executor_config {key!r}"
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise TypeError(f"{label} must be a dict of keyword arguments, not {shown(value)}")
        for name in cast("Mapping[object, Any]", value):
            if not isinstance(name, str):
                raise TypeError(
                    f"{label} must be a dict of keyword arguments, and {name!r} is not a name"
                )
            if name in taken:
                raise ValueError(f"{label} has {name!r}: {taken[name]}")

        return dict(cast("Mapping[str, Any]", value))

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        calls = self._calls = await run_in_thread(_library, "client")
        fates = await run_in_thread(_library, "states")
        where = f"{self.label}: executor_config"
        calls.check_options("connect", self._connect_options, label=f"{where} 'connect_options'")
        calls.check_options("start_workflow", self._start_options, label=f"{where} 'start_options'")
        self._type: str = calls.name_of(self._workflow, label=f"{where} 'workflow'")
        self._is_ours = self._workflow is None
        self._turns = asyncio.Semaphore(STARTS_AT_ONCE)
        self._calling: set[asyncio.Future[Any]] = set()
        self._closed = False

        if self._given is not None:
            self._client: Client = self._given
            calls.keep(self._client)
        else:
            self._client = await calls.connect(
                self._target, self._connect_options, label=self.label
            )

        self._options_of_start = {**self._start_options, "task_queue": self._task_queue}
        self._fates = fates.Fates(self._client, self._task_queue, self.begun, label=self.label)

    async def close(self) -> None:
        self._closed = True
        if self._calling:
            await asyncio.wait(self._calling, timeout=LAST_SECONDS)
        for each in self._calling:
            each.cancel()
        await asyncio.sleep(self._calls.SETTLE_SECONDS)

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """Where the client is to be used; ``None``: on Wove's own loop.

        A client belongs to no loop. What the user has put into it may: a codec of payloads, or an interceptor.
        """
        loop = self.caller_loop
        if self._given is None or loop is None or not loop.is_running():
            return None
        config = self._given.config()
        has_code = config["data_converter"].payload_codec is not None or config["interceptors"]
        return loop if has_code else None

    async def _there(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await what *make* returns where the client is to be used, and no longer than this adapter is open."""
        calling = asyncio.ensure_future(
            on_loop(self._loop(), make, label=f"{self.label}: its client")
        )
        self._calling.add(calling)
        calling.add_done_callback(self._calling.discard)

        try:
            return await calling
        except self._calls.RPCError as error:
            raise self._calls.unreachable(error, self._client, label=self.label) from error
        except AssertionError as error:
            raise self._calls.forked(self.label) from error
        except asyncio.CancelledError:
            if self._closed:
                raise DeliveryError(
                    f"{self.label} was stopped before Temporal had answered"
                ) from None
            raise

    # ------------------------------------------------------------------ what is asked of it

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        start = partial(
            self._calls.start_workflow,
            self._client,
            self._type,
            payload,
            workflow_id=job_id(frame, prefix=self._prefix, most=ID_CHARACTERS),
            keyed=idempotency_key(frame) is not None,
            wanted=self.wanted,
            options=self._options_of_start,
            label=self.label,
        )

        async with self._turns:
            if self._closed:
                raise DeliveryError(
                    f"{self.label} was stopped before run {payload['run_id']} was started"
                )
            return await self._there(start)

    async def cancel(self, run_id: str, submission: Submission | None, frame: Frame) -> bool:
        if submission is None:  # not started yet
            return False
        try:
            return await self._there(
                partial(self._calls.cancel, self._client, submission, is_ours=self._is_ours)
            )
        except DeliveryError:
            if self._closed:
                return False  # nobody is left who would want to know
            raise

    async def watch(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        return await self._there(partial(self._fates.ask, submissions))


def _library(name: str) -> Any:
    with forks.importing:
        return importlib.import_module(f"wove.integrations.temporal.{name}")
