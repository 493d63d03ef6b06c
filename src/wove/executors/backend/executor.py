"""The executor of backends: payloads go to an adapter, and events come back to the callback receiver."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Final, Literal, TypeGuard, cast

from wove.callback.address import Address
from wove.callback.receiver import (
    KEYS as CALLBACK_KEYS,
    ConnectionEnd,
    Route,
    RunStatus,
    open_route,
    read_address,
)
from wove.concurrency.bounded import BoundedDict
from wove.concurrency.thread_pool import ThreadPool, run_in_thread
from wove.errors import (
    DeliveryError,
    MissingDependencyError,
    MissingDispatchFeatureError,
    WorkerLostError,
    advice_on_other_wove,
)
from wove.executors.backend.jobs import SubmittedJob
from wove.executors.backend.losses import Losses
from wove.executors.backend.payloads import PayloadBuilder
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.integrations.base import BackendAdapter, JobStatus
from wove.integrations.common.watcher import Watcher
from wove.protocol.completed_runs import CompletedRuns
from wove.protocol.frames import TERMINAL
from wove.protocol.limits import MAX_MESSAGE_BYTES
from wove.security import NetworkExecutorSecurity
from wove.security.endpoints import refuse_exposed_receiver
from wove.settings.config_readers import check_keys, flag, number, whole

__all__ = ["BackendAdapterEnvironmentExecutor", "for_adapter"]

logger = logging.getLogger("wove")

KEYS: Final = (
    *CALLBACK_KEYS,
    "callback_retry_seconds",
    "security",
    "insecure",
    "max_message_bytes",
    "payload_max_age",
    "watch_seconds",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)
"""Keys of ``executor_config`` of every backend."""

RETRY_SECONDS: Final = 60.0
"""Default of ``callback_retry_seconds``."""

PATIENCE_KEY: Final = "submit_patience_seconds"
PATIENCE_SECONDS: Final = 60.0
"""The key of backends whose adapters are `patient`, and its default."""

RELEASE_SECONDS: Final = 2.0
"""How long `stop` waits for calls that remove ended jobs."""

LINGER_SECONDS: Final = 0.2
"""How long `stop` waits for threads that are still in a call of the adapter. They are daemons."""

MAX_ENDED: Final = 10_000
"""Maximum number of ended runs that are remembered, so that a repeated event is not an error."""

REMEMBERED_RUNS: Final = 10_000
REMEMBERED_BYTES: Final = 64 * 1024 * 1024
REMEMBERED_SECONDS: Final = 3600.0
"""How many results of runs with an idempotency key are kept, of which size, and for how many seconds."""


class _AdapterExitError(DeliveryError):
    """The adapter, or the library that it uses, called `sys.exit`."""


class BackendAdapterEnvironmentExecutor(EnvironmentExecutor):
    """Runs tasks on a backend, through a `BackendAdapter`.

    The built-in names (``"celery"``, ``"rq"``, ...) are executors of this kind, and this class makes one of an adapter
    of your own. It is started once for the process, and serves all weaves and threads.

    Args:
        name: Its name in messages and payloads; by default the adapter's.
        adapter_class: The class of the adapter.

    Example:
        >>> class QueueAdapter(BackendAdapter):  # as the example of `BackendAdapter` goes on
        ...     def submit(self, payload, frame): ...
        ...     def cancel(self, run_id, submission, frame): ...
        >>> executor = BackendAdapterEnvironmentExecutor("queue", adapter_class=QueueAdapter)
        >>> wove.config(environments={"queue": {"executor": executor}})
    """

    scope: ClassVar[Literal["run", "process"]] = "process"
    wire: ClassVar[bool] = True
    says_started: ClassVar[bool] = True
    external_workers: ClassVar[bool] = True
    needs_caller_loop: ClassVar[bool] = True

    adapter_class: type[BackendAdapter] | None = None

    def __init__(
        self, name: str = "", *, adapter_class: type[BackendAdapter] | None = None
    ) -> None:
        kind = adapter_class or self.adapter_class
        if not _is_adapter(kind):
            raise TypeError(f"adapter_class must be a subclass of BackendAdapter, not {kind!r}")
        self._kind: type[BackendAdapter] = kind
        self.name = name or kind.name or kind.__name__

    # ------------------------------------------------------------------ start and stop

    def check(self, environment_name: str, environment_config: Mapping[str, Any]) -> None:
        other = BackendAdapterEnvironmentExecutor(self.name, adapter_class=self._kind)
        other._read_config(environment_name, environment_config)

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        address = self._read_config(environment_name, environment_config)
        config, label, adapter = environment_config, self.label, self.adapter
        await run_in_thread(
            partial(
                refuse_exposed_receiver,
                label,
                host=address.host,
                url=address.url,
                security=self.security,
                insecure=flag(config, "insecure", False, label=label),
            )
        )
        adapter.caller_loop = run_config.get("caller_loop")
        self._inbox = EventQueue()
        self._jobs: dict[str, SubmittedJob] = {}
        adapter.is_awaited, adapter.has_started = self._jobs.__contains__, self._has_worker
        self._ended = BoundedDict[str, None](MAX_ENDED)
        self._cancelled = BoundedDict[str, bool](MAX_ENDED)  # whether the run had been started
        self._completed = CompletedRuns(
            runs=REMEMBERED_RUNS, size=REMEMBERED_BYTES, seconds=REMEMBERED_SECONDS
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._releasing: set[asyncio.Task[Any]] = set()
        self._releases = type(adapter).release is not BackendAdapter.release
        self._threads = ThreadPool(adapter.threads, f"wove-{self.name}")
        self._watcher: Watcher | None = None

        if type(adapter).watch is not BackendAdapter.watch:
            shortest, longest = adapter.watch_seconds
            if self._max_interval is not None:
                shortest, longest = min(shortest, self._max_interval), self._max_interval
            self._watcher = Watcher(
                self._ask,
                self._watched,
                self._has_started,
                self._on_over,
                seconds=(shortest, longest),
                max_query_seconds=self.call_seconds,
                label=label,
            )

        self.route: Route = await open_route(
            address, self, security=self.security, max_message_bytes=self._max_bytes, label=label
        )
        self.url = self.route.url.replace(address.token, "<token>")
        self._payloads = PayloadBuilder(
            self.name,
            adapter,
            self.route.url,
            self.security,
            environment=environment_name,
            retry_seconds=self.retry_seconds,
            max_age=self._max_age,
        )
        self._losses = Losses(
            adapter, self._watcher, self._jobs, lose=self._lose, finish=self._finish
        )

        try:
            await self._call(adapter.start)
        except BaseException:
            # Without waiting, since a thread may still be in a call that takes too long.
            self._threads.close(0.0, for_good=True)
            await self.route.close()
            raise

    def _read_config(self, environment_name: str, config: Mapping[str, Any]) -> Address:
        """Read and check *config*, look for the packages, and return where the receiver is to listen."""
        label = self.label = f"environment {environment_name!r}"
        if self._kind.keys is not None:
            more = (PATIENCE_KEY,) if self._kind.patient else ()
            check_keys(label, self.name, config, (*self._kind.keys, *more, *KEYS))

        self.security = NetworkExecutorSecurity.from_config(
            config.get("security"), label=f"{label}: executor_config 'security'"
        )
        if self.security.kind == "bearer":
            raise ValueError(
                f"{label}: executor_config 'security' is a bearer token, and a payload in a queue cannot show one "
                f"without giving it away: use type 'signed', such as \"env:WOVE_WORKER_SECRET\""
            )

        address = read_address(config, label=label)
        flag(config, "insecure", False, label=label)
        self._max_bytes = whole(config, "max_message_bytes", MAX_MESSAGE_BYTES, label=label)
        self.retry_seconds = number(config, "callback_retry_seconds", RETRY_SECONDS, label=label)
        self._max_age = number(config, "payload_max_age", None, label=label)
        if self._max_age is not None and not self.security.authenticates:
            raise ValueError(
                f"{label}: executor_config 'payload_max_age' needs 'security': without a signature anybody can change "
                "the end of a payload's validity"
            )
        self.call_seconds = number(config, "send_timeout", 60.0, label=label, none=True)
        self._max_interval = number(config, "watch_seconds", None, label=label)

        adapter = self.adapter = self._kind(environment_name, config)
        if adapter.patient:
            adapter.submit_patience_seconds = self.submit_patience_seconds = number(
                config, PATIENCE_KEY, PATIENCE_SECONDS, label=label
            )
        with self._exits_contained("configure"):
            adapter.configure()
        self._check_packages()
        return address

    def _check_packages(self) -> None:
        """Look for all packages at once, so that one command installs what is missing.

        Raises:
            MissingDispatchFeatureError: cloudpickle is missing, and perhaps others.
            MissingDependencyError: Others are missing.
        """
        needed = ("cloudpickle", *self.adapter.required_modules)
        missing = [name for name in needed if not _is_installed(name)]
        if not missing:
            return

        hint = self.adapter.install_hint
        if missing == ["cloudpickle"] and not hint:
            raise MissingDispatchFeatureError
        kind = MissingDispatchFeatureError if "cloudpickle" in missing else MissingDependencyError
        raise kind(
            f"{self.label}: the {self.name} executor needs {' and '.join(missing)}. "
            f"Install it with: {hint or 'pip install ' + ' '.join(missing)}"
        )

    async def stop(self) -> None:
        if self._watcher is not None:
            await self._watcher.close()
        for job in list(self._jobs.values()):
            self._forget(job)
        await self.route.close()
        if self._releasing:
            await asyncio.wait(set(self._releasing), timeout=RELEASE_SECONDS)

        try:
            await self._call(self.adapter.close)
        finally:
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=1.0)
            await run_in_thread(partial(self._threads.close, LINGER_SECONDS, for_good=True))

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the adapter: a coroutine function on this loop, a plain function in a thread."""
        with self._exits_contained(method.__name__):
            if inspect.iscoroutinefunction(method):
                return await method(*args)
            value = await self._threads.call(method, *args)
            return await value if inspect.isawaitable(value) else value

    @contextlib.contextmanager
    def _exits_contained(self, name: str) -> Generator[None]:
        """Replace a `SystemExit` of the adapter by an error; otherwise it would end the loop of all environments."""
        try:
            yield
        except (SystemExit, KeyboardInterrupt) as error:
            raise _AdapterExitError(
                f"{self.label}: {self.name}'s {name} raised {type(error).__name__}: {error}"
            ) from error

    async def _ask(self, jobs: Mapping[str, Any]) -> Mapping[str, JobStatus]:
        """Return the statuses of *jobs* that are over. If the adapter exits, all of them are lost."""
        try:
            statuses: Mapping[str, JobStatus] = await self._call(self.adapter.watch, jobs)
        except _AdapterExitError as error:
            return dict.fromkeys(jobs, JobStatus("lost", str(error)))
        return statuses

    # ------------------------------------------------------------------ commands

    async def send(self, frame: Frame) -> None:
        if frame["type"] == "run_task":
            await self._submit(frame)
        elif frame["type"] == "cancel_task":
            await self._cancel(frame)

    async def recv(self) -> list[Frame]:
        return await self._inbox.get()

    async def why_waiting(self, run_ids: Collection[str]) -> str:
        jobs = {
            run_id: self._jobs[run_id].submission
            for run_id in run_ids
            if run_id in self._jobs and self._jobs[run_id].submitted
        }
        return str(await self._call(self.adapter.waiting, jobs) or "") if jobs else ""

    async def _submit(self, frame: Frame) -> None:
        job = SubmittedJob(frame, self.label)
        if self._answered_before(job):
            return
        self._jobs[job.run_id] = job

        try:
            payload = await self._payloads.build(job, frame)
            submitting = asyncio.ensure_future(self._call(self.adapter.submit, payload, frame))
        except BaseException:
            self._forget(job)
            raise

        try:
            job.submission = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # It took too long. If it succeeds later, the run is no longer awaited.
            self._forget(job)
            submitting.add_done_callback(lambda done: self._withdraw(job, done))
            raise
        except BaseException:
            self._forget(job)
            raise

        job.submitted = True
        if self._watcher is not None:
            self._watcher.ensure_running()

    def _answered_before(self, job: SubmittedJob) -> bool:
        """Answer a run whose idempotency key has a result already, and return whether it has."""
        event = (
            None
            if job.key is None
            else self._completed.get(job.key, asyncio.get_running_loop().time())
        )
        if event is not None:
            self._inbox.put([{**event, "run_id": job.run_id}])
        return event is not None

    def _withdraw(self, job: SubmittedJob, submitting: asyncio.Future[Any]) -> None:
        """Cancel a job whose submission succeeded after its run was given up."""
        if submitting.cancelled() or submitting.exception() is not None:
            return
        logger.info("%s: %s was submitted too late, and is cancelled", self.label, job)
        cancel = {
            "type": "cancel_task",
            "run_id": job.run_id,
            "task_id": job.task,
            "delivery_cancel_mode": None,
        }
        self._spawn(self._call(self.adapter.cancel, job.run_id, submitting.result(), cancel))

    async def _cancel(self, frame: Frame) -> None:
        job = self._jobs.get(frame["run_id"])
        if job is None:  # its end is on its way to the weave
            return
        acknowledged = frame.get("delivery_cancel_mode") == "require_ack"
        if acknowledged:
            job.cancelled = True
        else:
            self._forget(job)

        self._cancelled[job.run_id] = job.started  # its worker is told so when it reports
        never_started = await self._call(self.adapter.cancel, job.run_id, job.submission, frame)
        if never_started is True and acknowledged and job.run_id in self._jobs:
            self._finish(job, {"type": "task_cancelled", "run_id": job.run_id, "task_id": job.task})

    # ------------------------------------------------------------------ events: called by the receiver

    def status(self, run_id: str, worker: str) -> RunStatus:
        job = self._jobs.get(run_id)
        if job is not None:
            if not self._may_have(job, worker):
                return RunStatus.ELSEWHERE
            return RunStatus.CANCELLED if job.cancelled else RunStatus.AWAITED

        if run_id in self._ended:
            return RunStatus.ENDED
        return RunStatus.STOPPED if run_id in self._cancelled else RunStatus.UNKNOWN

    def _may_have(self, job: SubmittedJob, worker: str) -> bool:
        """Return whether *worker* may run *job*: only the first to report, or another one after that is gone."""
        if not worker or not job.worker or worker == job.worker or self.adapter.restarts:
            return True
        return self.adapter.redelivers and job.suspicion is not None

    def receive(self, event: dict[str, Any], worker: str) -> None:
        job = self._jobs.get(event["run_id"])
        if job is None or job.stopped:
            return
        job.started = True
        job.worker = worker or job.worker
        if job.suspicion is not None:
            job.suspicion.cancel()
            job.suspicion = None

        if event["type"] not in TERMINAL:
            self._inbox.put([event])
            return

        if self.adapter.reports_cancel_reason and not job.cancelled and _was_stopped(event):
            job.stopped = True
            self._spawn(self._losses.explain(job, event))
            return

        if job.key is not None and event["type"] == "task_result":
            self._completed.put(job.key, event, asyncio.get_running_loop().time())
        self._finish(job, event)

    def on_connection_lost(self, run_ids: Sequence[str], worker: str, end: ConnectionEnd) -> None:
        for run_id in run_ids:
            job = self._jobs.get(run_id)
            if job is not None and job.suspicion is None and not job.stopped:
                job.suspicion = self._spawn(self._losses.suspect(job, worker, end))

    def claim(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        return self._payloads.chunks(claim_id)

    # ------------------------------------------------------------------ jobs that are over

    def _watched(self) -> dict[str, Any]:
        return {run_id: job.submission for run_id, job in self._jobs.items() if job.submitted}

    def _has_started(self, run_id: str) -> bool:
        job = self._jobs.get(run_id)
        return job is not None and job.started

    def _has_worker(self, run_id: str) -> bool:
        job = self._jobs.get(run_id)
        if job is None:
            return self._cancelled.get(run_id, False)
        return job.started and job.suspicion is None

    def _on_over(self, run_id: str, status: JobStatus) -> None:
        job = self._jobs.get(run_id)
        if job is None or (status.state == "missing" and job.started):
            return
        if status.state == "finished":
            self._lose(
                job,
                f"its job has ended ({status.reason}), and no result came back: its worker could not reach "
                f"{self.url}, or did not hand the payload to wove.integrations.worker.run",
            )
        else:
            self._lose(job, status.reason)

    def _lose(self, job: SubmittedJob, reason: str) -> None:
        if job.run_id not in self._jobs:
            return
        reason += advice_on_other_wove(reason)
        error = WorkerLostError(f"{self.label}: {job} was lost: {reason}")
        self._finish(
            job,
            {"type": "task_error", "run_id": job.run_id, "task_id": job.task, "exception": error},
        )

    # ------------------------------------------------------------------ ends

    def _finish(self, job: SubmittedJob, event: dict[str, Any]) -> None:
        self._forget(job)
        if self._releases and job.submitted:
            lost = isinstance(event.get("exception"), WorkerLostError) or _was_stopped(event)
            release = self._call(self.adapter.release, job.run_id, job.submission, lost)
            releasing = self._spawn(release)
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)
        self._ended[job.run_id] = None
        self._inbox.put([event])

    def _forget(self, job: SubmittedJob) -> None:
        if self._jobs.get(job.run_id) is job:
            del self._jobs[job.run_id]
        self._payloads.release(job)
        if self._watcher is not None:
            self._watcher.forget(job.run_id)
        if job.suspicion is not None and job.suspicion is not asyncio.current_task():
            job.suspicion.cancel()
        job.suspicion = None

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s: %s: %s", self.label, type(error).__name__, error)


@cache
def for_adapter(adapter: type[BackendAdapter]) -> type[BackendAdapterEnvironmentExecutor]:
    """Return the executor class of a built-in *adapter*."""
    kind: CancelReach = adapter.cancel_reach
    return type(
        f"{adapter.__name__}Executor",
        (BackendAdapterEnvironmentExecutor,),
        {
            "adapter_class": adapter,
            "cancel_reach": kind,
            "resources": adapter.resources,
            "__module__": __name__,
        },
    )


def _was_stopped(event: Mapping[str, Any]) -> bool:
    """Return whether a worker was stopped from outside; see `wove.integrations.common.jobs.Job.interrupt`."""
    error = event.get("error") if event["type"] == "task_error" else None
    if not isinstance(error, Mapping):
        return False
    report = cast("Mapping[str, object]", error)
    kind = str(report.get("kind")).rpartition(".")[2]
    return report.get("source") == "executor" and kind == WorkerLostError.__name__


def _is_adapter(kind: object) -> TypeGuard[type[BackendAdapter]]:
    return isinstance(kind, type) and issubclass(kind, BackendAdapter)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing, too
        return False
