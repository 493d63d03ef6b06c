"""Ray: a run is a task of the cluster, and any process of Ray's is its worker.

Workers need no registration: a task is `wove.integrations.worker.run`, which is exported once. Ray sends the ends of
all tasks to this process, so `watch` makes no queries.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from wove.concurrency.thread_pool import ThreadPool
from wove.errors import DeliveryError, install_command
from wove.executors.base import Frame
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.error_text import exception_text
from wove.integrations.common.resources import resources_of
from wove.integrations.ray import client as ray_client
from wove.integrations.ray.client import Submission
from wove.integrations.ray.states import SHUT_DOWN, TaskProbe, TaskState
from wove.integrations.worker import run
from wove.settings.config_readers import flag, options, text

__all__ = ["RayAdapter"]

RESERVED: Final = {
    "remote_options": {
        "num_returns": "a run returns nothing through Ray",
        "_generator_backpressure_num_objects": "a run is not a generator",
    },
    "init_options": {
        "address": "it has a key of its own, 'address'",
        "ignore_reinit_error": "Ray that is initialised already is used as it is",
    },
}
"""Options that the user cannot set, and why."""

SETTLE_SECONDS: Final = 2.0
"""How long a cancelled task may take to end as cancelled."""

KILL_SECONDS: Final = 2.0
"""With ``force_cancel``: how long a cancelled run may take to end by itself before its process is killed."""

POLL_SECONDS: Final = 0.05
"""The time between two checks of the state of a cancelled task."""

LINGER_SECONDS: Final = 0.2

ATTEMPTS: Final = 3
"""Maximum number of connections for one submission, if Ray is shut down before each."""


OPTIONS: Final[Mapping[str, str]] = {"cpus": "num_cpus", "memory": "memory", "gpus": "num_gpus"}
"""Ray's names of the resources that it can be asked for; ``memory`` is in bytes, too."""


class _Item(NamedTuple):
    """A run to be handed over, with the options of its task."""

    payload: PayloadDict
    options: Mapping[str, float]


class RayAdapter(BackendAdapter):
    """Submits each run as one task of a Ray cluster.

    ``executor_config``: ``address`` of the cluster, as `ray.init` takes it (``"auto"``, ``"127.0.0.1:6379"``,
    ``"ray://head:10001"``); ``init``, whether Wove may call `ray.init` where the user has not (``True``);
    ``init_options``, a dict of its further arguments; ``remote_options``, a dict of those of `ray.remote`, among which
    ``max_retries`` is 0 by default; ``force_cancel``, whether the process of a cancelled run is killed if the run does
    not end by itself (``False``).

    Example:
        >>> gpus = {"address": "auto", "remote_options": {"num_gpus": 1}}
        >>> wove.config(environments={"gpus": {"executor": "ray", "executor_config": gpus}})
    """

    name: ClassVar[str] = "ray"
    resources: ClassVar[frozenset[str]] = frozenset(OPTIONS)
    required_modules: ClassVar[tuple[str, ...]] = ("ray",)
    install_hint: ClassVar[str] = install_command("ray")
    keys: ClassVar[tuple[str, ...] | None] = (
        "address",
        "init",
        "init_options",
        "remote_options",
        "force_cancel",
    )
    # Larger arguments go through the object store, from 100 KiB on (ray_config_def.h, max_direct_call_object_size).
    inline_bytes: ClassVar[int] = 64 * 1024
    watch_seconds: ClassVar[tuple[float, float]] = (0.25, 1.0)  # a look at what Ray has told

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._address = text(config, "address", None, label=label)
        self._init = flag(config, "init", True, label=label)
        self._force = flag(config, "force_cancel", False, label=label)
        self._init_options = self._read_options("init_options")
        self._remote_options = {"max_retries": 0, **self._read_options("remote_options")}
        self.restarts = self._remote_options["max_retries"] != 0

        if not self._init and (
            given := [key for key in ("address", "init_options") if config.get(key) is not None]
        ):
            raise ValueError(
                f"{label}: executor_config has {' and '.join(given)}, which are for ray.init, and 'init' is False"
            )

    def _read_options(self, key: str) -> dict[str, Any]:
        return options(self.config, key, label=self.label, reserved=RESERVED[key])

    # ------------------------------------------------------------------ start and close

    async def start(self) -> None:
        self._threads = ThreadPool(self.threads, "wove-ray")
        self._batcher: Batcher[_Item, Submission] = Batcher(self._carry)
        self._exported: str | None = (
            None  # the connection over which the function has been exported
        )
        self._condemned: set[Submission] = set()
        await self._threads.call(self._connect)

    def _connect(self) -> None:
        given = self._init_options if self._init else None
        self._ray = ray = ray_client.load()
        self._core = ray_client.shutdown_lock()  # held during every call of Ray except this one
        self._probe = TaskProbe(ray)

        try:
            # Exported to the cluster once, when the first run is submitted.
            self._run: Any = ray.remote(**self._remote_options)(run)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.label}: ray.remote does not take these remote_options: {exception_text(error)}"
            ) from error

        ray_client.connect(id(self), self._address, given, label=self.label)

    async def close(self) -> None:
        await self._batcher.close()
        try:
            for submission in list(self._condemned):  # later, no process could do it
                await self._threads.call(self._cancel, submission, True)
            await self._threads.call(ray_client.leave, id(self))
        finally:
            self._threads.close(LINGER_SECONDS)

    # ------------------------------------------------------------------ out

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        asked = {
            OPTIONS[name]: amount
            for name, amount in resources_of(frame).items()
            if OPTIONS[name] not in self._remote_options  # what the environment says stands
        }
        size = sum(len(each) for each in payload.values() if isinstance(each, str))
        return await self._batcher.put(_Item(payload, asked), size)

    async def _carry(self, items: Sequence[_Item]) -> list[Submission]:
        # A single task without an export takes no longer than handing it to a thread.
        if len(items) == 1 and self._exported and self._core.acquire(blocking=False):
            try:
                if self._exported == ray_client.connection_id(self._ray):
                    return self._hand_over(items, self._exported)
            finally:
                self._core.release()
        return await self._threads.call(self._connect_and_hand_over, items)

    def _connect_and_hand_over(self, items: Sequence[_Item]) -> list[Submission]:
        for _ in range(ATTEMPTS):
            with self._core:
                if (job := ray_client.connection_id(self._ray)) is not None:
                    return self._hand_over(items, job)
            self._connect()  # Ray was shut down; a task would make it start a cluster of its own
        raise DeliveryError(f"{self.label}: {SHUT_DOWN} each time it was connected")

    def _hand_over(self, items: Sequence[_Item], job: str) -> list[Submission]:
        try:
            submissions: list[Submission] = []
            for payload, asked in items:
                task = self._run.options(**asked) if asked else self._run
                submissions.append(Submission(task.remote(json.dumps(payload).encode()), job))
        except Exception as error:
            raise DeliveryError(
                f"{self.label}: Ray did not take the task: {exception_text(error)}"
            ) from error

        # With ray://, the server exports the function, and the client waits for it.
        self._exported = None if self._ray.util.client.ray.is_connected() else job
        return submissions

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(submission, Submission):
            return False
        if self.has_started(run_id):
            # The worker learns of it within a second. Ray's cancel would interrupt the thread that waits for the task.
            if self._force:
                await self._kill_later(submission)
            return False

        if not await self._threads.call(self._cancel, submission, self._force):
            return False
        if frame.get("delivery_cancel_mode") != "require_ack":
            return False
        # A worker that has started the run reports before its task ends, so "cancelled" means that none has.
        return await self._settled(submission, SETTLE_SECONDS) == "cancelled"

    async def _kill_later(self, submission: Submission) -> None:
        self._condemned.add(submission)
        try:
            await self._settled(submission, KILL_SECONDS)
            await self._threads.call(
                self._cancel, submission, True
            )  # has no effect if the task has ended
        finally:
            self._condemned.discard(submission)

    async def _settled(self, submission: Submission, seconds: float) -> TaskState:
        """Wait for the end of a task for at most *seconds*, and return its state."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (state := await self._threads.call(self._probe.state, submission)) == "pending":
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return state

    def _cancel(self, submission: Submission, force: bool) -> bool:
        """Cancel the task, and return whether this process is still connected to its cluster."""
        with self._core:
            if submission.job != ray_client.connection_id(self._ray):
                return False
            self._ray.cancel(submission.ref, force=force)
            return True

    # ------------------------------------------------------------------ watch

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return self._probe.ended(submissions)

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        return self._probe.why_waiting()
