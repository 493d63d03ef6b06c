"""Ray: a run is a task of the cluster, and its worker is any process of Ray's.

Nothing has to be registered on the workers' side: a task is `wove.integrations.worker.run`, which is exported once. Ray
tells this process what becomes of each task; `watch` looks at that for all of them together.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from wove.concurrency.thread_pool import ThreadPool
from wove.errors import DeliveryError, install_command
from wove.executors.base import Frame
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.batcher import Batcher
from wove.integrations.common.error_text import of_exception
from wove.integrations.ray import client as ray_process
from wove.integrations.ray.client import Submission
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
"""How long a cancelled task may take to say so."""

KILL_SECONDS: Final = 2.0
"""With ``force_cancel``: how long a cancelled run may take to end in good order before its process is killed."""

LOOK_SECONDS: Final = 0.05
"""How often to look what a cancelled task does."""

ANSWER_SECONDS: Final = 10.0
"""How long it may take to fetch what a task that is over has returned: nothing, or an error."""

SHUT_DOWN: Final = "Ray was shut down in this process"

LINGER_SECONDS: Final = 0.2

ATTEMPTS: Final = 3
"""How often to connect for a submission, if Ray is shut down each time before it."""

State = Literal["under way", "cancelled", "over"]


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
        self._trips: Batcher[PayloadDict, Submission] = Batcher(self._carry)
        self._exported: str | None = (
            None  # the connection over which the function has been exported
        )
        self._condemned: set[Submission] = set()
        await self._threads.call(self._connect)

    def _connect(self) -> None:
        given = self._init_options if self._init else None
        self._ray = ray = ray_process.load()
        self._core = ray_process.shutdown_lock()  # for everything that is asked of Ray but this

        try:
            # Exported to the cluster once, when the first run is submitted.
            self._run: Any = ray.remote(**self._remote_options)(run)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.label}: ray.remote does not take these remote_options: {of_exception(error)}"
            ) from error

        ray_process.connect(id(self), self._address, given, label=self.label)

    async def close(self) -> None:
        await self._trips.close()
        try:
            for submission in list(self._condemned):  # nobody will be there to do it later
                await self._threads.call(self._cancel, submission, True)
            await self._threads.call(ray_process.leave, id(self))
        finally:
            self._threads.close(LINGER_SECONDS)

    # ------------------------------------------------------------------ out

    async def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        return await self._trips.put(
            payload, sum(len(each) for each in payload.values() if isinstance(each, str))
        )

    async def _carry(self, payloads: Sequence[PayloadDict]) -> list[Submission]:
        # One, and nothing to export: that takes no longer than to have it done by a thread.
        if len(payloads) == 1 and self._exported and self._core.acquire(blocking=False):
            try:
                if self._exported == self._job():
                    return self._hand_over(payloads, self._exported)
            finally:
                self._core.release()
        return await self._threads.call(self._connect_and_hand_over, payloads)

    def _connect_and_hand_over(self, payloads: Sequence[PayloadDict]) -> list[Submission]:
        for _ in range(ATTEMPTS):
            with self._core:
                if (job := self._job()) is not None:
                    return self._hand_over(payloads, job)
            self._connect()  # it was shut down; asked for a task, it would start a cluster of its own
        raise DeliveryError(f"{self.label}: {SHUT_DOWN} each time it was connected")

    def _hand_over(self, payloads: Sequence[PayloadDict], job: str) -> list[Submission]:
        try:
            submissions = [
                Submission(self._run.remote(json.dumps(each).encode()), job) for each in payloads
            ]
        except Exception as error:
            raise DeliveryError(
                f"{self.label}: Ray did not take the task: {of_exception(error)}"
            ) from error

        # A client of ray:// has a server do it, and waits for it.
        self._exported = None if self._ray.util.client.ray.is_connected() else job
        return submissions

    def _job(self) -> str | None:
        """The id of this process's connection to the cluster; ``None``: it has none."""
        return (
            str(self._ray.get_runtime_context().get_job_id())
            if self._ray.is_initialized()
            else None
        )

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(submission, Submission):
            return False
        if self.begun(run_id):
            # Its worker hears of it within a second. Ray would interrupt the thread that waits for the task there.
            if self._force:
                await self._kill_later(submission)
            return False

        if not await self._threads.call(self._cancel, submission, self._force):
            return False
        if frame.get("delivery_cancel_mode") != "require_ack":
            return False
        # A worker that has begun it reports before it says so, so that this is news of no run but of one that has not.
        return await self._settled(submission, SETTLE_SECONDS) == "cancelled"

    async def _kill_later(self, submission: Submission) -> None:
        self._condemned.add(submission)
        try:
            await self._settled(submission, KILL_SECONDS)
            await self._threads.call(self._cancel, submission, True)  # nothing, if it is over
        finally:
            self._condemned.discard(submission)

    async def _settled(self, submission: Submission, seconds: float) -> State:
        """Wait for the end of a task for at most *seconds*, and return its state."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (state := await self._threads.call(self._state, submission)) == "under way":
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(LOOK_SECONDS)
        return state

    def _state(self, submission: Submission) -> State:
        with self._core:
            if submission.job != self._job():
                return "over"
            if not self._ray.wait([submission.ref], timeout=0, fetch_local=False)[0]:
                return "under way"
            try:
                self._ray.get(submission.ref, timeout=ANSWER_SECONDS)
            except self._ray.exceptions.TaskCancelledError:
                return "cancelled"
            except Exception:
                return "over"
            return "over"

    def _cancel(self, submission: Submission, force: bool) -> bool:
        """Whether this process still has to do with it."""
        with self._core:
            if submission.job != self._job():
                return False
            self._ray.cancel(submission.ref, force=force)
            return True

    # ------------------------------------------------------------------ watch

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        with self._core:
            return self._fates(submissions)  # whose references go with its frame

    def _fates(self, submissions: Mapping[str, Submission]) -> dict[str, JobStatus]:
        job = self._job()
        there = (
            {}
            if job is None
            else {key: each.ref for key, each in submissions.items() if each.job == job}
        )
        fates = {
            run_id: JobStatus("lost", SHUT_DOWN) for run_id in submissions if run_id not in there
        }

        if there:
            refs = list(there.values())
            over, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            over = set(over)
            fates |= {run_id: self._fate(ref) for run_id, ref in there.items() if ref in over}

        return fates

    def _fate(self, ref: Any) -> JobStatus:
        try:
            self._ray.get(ref, timeout=ANSWER_SECONDS)
        except Exception as error:
            cause = getattr(
                error, "cause", None
            )  # what `run` has raised; the error itself is its whole traceback
            return JobStatus(
                "lost", of_exception(cause if isinstance(cause, BaseException) else error)
            )

        return JobStatus("finished", "finished")
