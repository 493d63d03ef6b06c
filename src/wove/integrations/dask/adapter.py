"""Dask: a run is a task of the cluster, and its worker is any ``dask worker``.

Workers need no registration: a task names `wove.integrations.worker.run`, which Dask imports. The scheduler sends the
states of all tasks to the client, so `watch` makes no queries.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from wove.concurrency import forks
from wove.concurrency.bounded import BoundedDict
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryError, install_command
from wove.executors.base import Frame
from wove.graph.rules import shown
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.client_loops import ClientCalls
from wove.integrations.common.error_text import exception_text
from wove.integrations.common.resources import resources_of
from wove.integrations.dask.options import read_client_options, read_submit_options
from wove.integrations.dask.states import FutureProbe, loop_of, never_started
from wove.integrations.naming import idempotency_key, job_id
from wove.integrations.worker import run
from wove.settings.config_readers import text

__all__ = ["DaskAdapter"]

CONNECT_SECONDS: Final = 10.0
"""How long the scheduler may take to accept a connection if ``client_options`` have no ``timeout``; also how long a
scheduler that was lost may take to come back before the client gives up (distributed/client.py, `_reconnect`)."""

SPARE_SECONDS: Final = 2.0
"""Seconds added to that for a client that exceeds it, and for the close of a client that failed."""

MAX_NAME: Final = 100
"""Maximum number of characters of a task's name in a key. Dask's dashboard groups tasks by the beginnings of keys."""

MAX_KEYS: Final = 10_000
"""Maximum number of used keys that are remembered."""

LIVE: Final = ("released", "waiting", "no-worker", "queued", "processing")
"""States of a task that has not ended (distributed/scheduler.py, ALL_TASK_STATES)."""

SETTLE_SECONDS: Final = (0.05, 0.15, 0.4, 1.0)
"""The pauses after a cancel; after each, the workers are asked about the task. Usually the first one is enough, since
messages to workers are collected for 2 ms (distributed/scheduler.py, `add_worker`)."""


class _Item(NamedTuple):
    """One run to be submitted.

    Attributes:
        key: The key of its task.
        payload: Its payload.
        detached: Whether the task is to run even if no client holds its future.
        resources: What its worker must have, by the names that workers use.
    """

    key: str
    payload: PayloadDict
    detached: bool
    resources: tuple[tuple[str, float], ...] = ()


RESOURCES: Final[Mapping[str, str]] = {
    "cpus": "CPU",
    "memory": "MEMORY",
    "gpus": "GPU",
    "disk": "DISK",
}
"""The names under which workers offer what a task asks for: ``dask worker --resources "GPU=2 MEMORY=64e9"``."""


class DaskAdapter(BackendAdapter):
    """Submits each run as one task of a Dask cluster.

    ``executor_config``: ``client``, a `distributed.Client` of the user's own, synchronous or asynchronous; or
    ``address`` of a scheduler (``"tcp://scheduler:8786"``) and ``client_options``, a dict of further arguments of
    `distributed.Client`; and ``submit_options``, a dict of options of `distributed.Client.submit`. With neither
    ``client`` nor ``address``, the scheduler is the one that Dask's own configuration names (``scheduler-address``).

    Example:
        >>> wove.config(
        ...     environments={"cluster": {"executor": "dask", "executor_config": {"address": "tcp://scheduler:8786"}}}
        ... )
    """

    name: ClassVar[str] = "dask"
    resources: ClassVar[frozenset[str]] = frozenset(RESOURCES)
    required_modules: ClassVar[tuple[str, ...]] = ("distributed",)
    install_hint: ClassVar[str] = install_command("dask")
    keys: ClassVar[tuple[str, ...] | None] = (
        "client",
        "address",
        "client_options",
        "submit_options",
    )
    inline_bytes: ClassVar[int] = (
        64 * 1024
    )  # the scheduler keeps it for as long as the task is there
    watch_seconds: ClassVar[tuple[float, float]] = (
        0.25,
        1.0,
    )  # a look at what the scheduler has told

    _client: Any = None
    _owned: bool = False

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("client")
        self._address = text(config, "address", None, label=label)
        self._client_options = read_client_options(config, label=label)
        self._submit_options = read_submit_options(config, label=label)
        if self._given is None:
            return
        if both := [key for key in ("address", "client_options") if config.get(key) is not None]:
            raise ValueError(
                f"{label}: executor_config 'client' is connected already: it cannot have {' and '.join(both)}, too"
            )

        if isinstance(self._given, type) or not all(
            hasattr(self._given, name) for name in ("submit", "map", "loop")
        ):
            raise TypeError(
                f"{label}: executor_config 'client' must be a distributed.Client, not {shown(self._given)}"
            )

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        self._batcher: Batcher[_Item, Any] = Batcher(self._carry)
        self._connecting = asyncio.Lock()
        self._calls = ClientCalls(
            lambda: loop_of(self._client or self._given), label=f"{self.label}: its client"
        )
        self._probe = FutureProbe(lambda: self._client, self._calls)
        self._used = BoundedDict[str, None](MAX_KEYS)
        self._distributed, self._parse_seconds = await run_in_thread(_import)
        await self._connected()

    async def close(self) -> None:
        await self._calls.close()
        await self._batcher.close()
        if self._owned and self._client is not None:
            client, self._client = self._client, None
            if client.status != "closed":
                await client.close()

    async def _connected(self) -> Any:
        """Return the client, connected. Wove's own client is replaced if it has given up."""
        client = self._client
        if client is not None and client.status in ("running", "connecting"):
            return client
        async with self._connecting:
            if self._given is not None:
                self._client = await self._settled(self._given)
            elif self._client is None or self._client.status not in ("running", "connecting"):
                self._client = await self._open()
            return self._client

    async def _settled(self, client: Any) -> Any:
        async def settle() -> None:
            # The user may not have awaited an asynchronous client yet.
            if client.status in ("newly-created", "connecting"):
                await client

        if client.status not in ("closed", "closing"):
            await self._calls.call(settle)
        if client.status in ("closed", "closing"):
            raise DeliveryError(
                f"{self.label}: executor_config 'client' is closed, by its owner or because the scheduler went away. "
                "Configure an open one, or an 'address', with which Wove connects again by itself"
            )

        return client

    async def _open(self) -> Any:
        distributed, options = self._distributed, self._client_options
        if self._address is None and not options.get("scheduler_file"):
            self._address = distributed.config.get("scheduler-address", None)
            if self._address is None:
                raise ValueError(
                    f"{self.label}: executor_config needs 'client' or 'address' (\"tcp://scheduler:8786\"), as Dask's "
                    "own configuration names no scheduler-address either"
                )

        _warn_only(distributed.versions.VersionMismatchWarning)
        options = {"timeout": CONNECT_SECONDS, "name": "wove", **options}
        where = self._address or options.get("scheduler_file")
        seconds = self._parse_seconds(options["timeout"]) + SPARE_SECONDS
        client = distributed.Client(
            self._address, asynchronous=True, set_as_default=False, **options
        )

        try:
            # The client itself would wait for ever for a peer that accepts the connection and sends nothing.
            async with asyncio.timeout(seconds):
                await client
        except BaseException as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SPARE_SECONDS):
                    await client.close()
            if not isinstance(error, (OSError, ImportError)):  # a TimeoutError is an OSError
                raise
            raise DeliveryError(
                f"{self.label}: the Dask scheduler at {where} could not be reached: {exception_text(error)}. Is "
                "'dask scheduler' running there?"
            ) from error

        self._owned = True
        return client

    # ------------------------------------------------------------------ out

    async def submit(self, payload: PayloadDict, frame: Frame) -> Any:
        delivery: Mapping[str, Any] = frame.get("delivery") or {}
        key = job_id(frame, prefix=f"{payload['task_name'][:MAX_NAME]}-wove-", most=MAX_NAME + 80)
        if idempotency_key(frame) is not None:
            key = await self._free(key, payload)
        detached = delivery.get("delivery_orphan_policy") == "detach"
        asked = {RESOURCES[name]: amount for name, amount in resources_of(frame).items()}
        item = _Item(key, payload, detached, tuple(asked.items()))
        # The returned future holds the task in the cluster: Dask releases tasks without one.
        return await self._batcher.put(item, _size(payload))

    async def _free(self, key: str, payload: PayloadDict) -> str:
        """Return a key that no task of the cluster has had.

        A worker that still runs a cancelled task uses its result for the next task with that key
        (distributed/worker_state_machine.py, `_transition_cancelled_waiting`). So each key is used once.

        Raises:
            DeliveryError: Another process waits for a task with that key.
        """
        unique = f"{key}-{payload['run_id']}"
        if key in self._used:
            return unique
        self._used[key] = None
        client = await self._connected()

        async def ask() -> Any:
            return await client.scheduler.get_task_status(keys=[key])

        state = (await self._calls.call(ask)).get(key)
        if state in LIVE:
            raise DeliveryError(
                f"{self.label}: task {payload['task_name']!r} with this idempotency key is already a task of Dask "
                f"({key}, {state}), submitted by another process, which gets its result. Wait for it, or use another "
                "key"
            )

        return key if state is None else unique

    async def _carry(self, items: Sequence[_Item]) -> list[Any]:
        client = await self._connected()
        if not loop_of(client).is_running():
            raise DeliveryError(
                f"{self.label}: executor_config 'client' belongs to an event loop that does not run"
            )

        try:
            # In a thread, because it pickles. Any thread may use a client for this, an asynchronous one as well.
            return await run_in_thread(self._hand_over, client, items)
        except Exception as error:
            raise DeliveryError(
                f"{self.label}: Dask did not take the task: {exception_text(error)}"
            ) from error

    def _hand_over(self, client: Any, items: Sequence[_Item]) -> list[Any]:
        futures: dict[str, Any] = {}
        for resources in dict.fromkeys(item.resources for item in items):
            alike = [item for item in items if item.resources == resources]
            for item, future in zip(alike, self._submitted(client, alike), strict=True):
                futures[item.key] = future
        return [futures[item.key] for item in items]

    def _submitted(self, client: Any, items: Sequence[_Item]) -> list[Any]:
        """Return the futures of *items*, which ask for the same resources."""
        options = dict(self._submit_options)
        if items[0].resources:
            options.setdefault("resources", dict(items[0].resources))
        # As bytes, because Dask searches all other types for its own keys.
        contents = [json.dumps(item.payload).encode() for item in items]
        keys = [item.key for item in items]

        if len(items) == 1:
            futures: list[Any] = [
                client.submit(run, contents[0], key=keys[0], pure=False, **options)
            ]
        else:
            futures = client.map(run, contents, key=keys, pure=False, **options)

        for item, future in zip(items, futures, strict=True):
            if item.detached:
                self._distributed.fire_and_forget(future)

        return futures

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        client = self._client
        if submission is None or client is None or client.status == "closed":
            return False
        asked = frame.get("delivery_cancel_mode") == "require_ack"

        async def cancel() -> bool:
            await client.cancel([submission], force=True)

            for pause in SETTLE_SECONDS if asked else ():  # otherwise the answer is not used
                await asyncio.sleep(pause)
                if never_started(
                    submission.key, await client.story(submission.key, on_error="ignore")
                ):
                    return True
                if self.has_started(run_id):
                    break

            return False

        return await self._calls.call(cancel)

    # ------------------------------------------------------------------ watch

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        if self._client is None:
            return ""
        info: dict[str, Any] = self._client.scheduler_info()
        workers = info.get("n_workers", len(info.get("workers", ())))
        if not workers:
            return "no worker is connected to the Dask scheduler (dask worker ADDRESS)"
        return f"{workers} workers are connected to the Dask scheduler"

    async def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return await self._probe.ended(submissions)


def _size(payload: PayloadDict) -> int:
    return sum(len(value) for value in payload.values() if isinstance(value, str))


def _import() -> tuple[Any, Callable[[Any], float]]:
    with forks.importing:
        distributed: Any = importlib.import_module("distributed")
        # A client imports NumPy, pandas and others when it connects, to compare versions.
        distributed.versions.get_versions()
        utils: Any = importlib.import_module("dask.utils")
    return distributed, utils.parse_timedelta


def _warn_only(category: type[Warning]) -> None:
    """Keep a filter from turning warnings of *category* into errors, which would break a working connection."""
    for action, _, kind, _, _ in warnings.filters:
        if issubclass(category, kind):
            if action == "error":
                warnings.simplefilter("default", category)
            return
