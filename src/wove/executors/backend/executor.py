"""The way out through a backend: payloads go to its adapter, events come back to the callback receiver."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Final, Literal, TypeGuard, cast

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
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.watcher import Watcher
from wove.integrations.naming import idempotency_key
from wove.protocol import payload as payloads, signing
from wove.protocol.completed_runs import CompletedRuns, Key
from wove.protocol.frames import TERMINAL
from wove.protocol.limits import INLINE_BYTES, MAX_MESSAGE_BYTES
from wove.protocol.payload import Claim
from wove.protocol.pickling import Pickled
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
    "watch_seconds",
    "notice_seconds",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)
"""Keys of ``executor_config`` that every backend has."""

RETRY_SECONDS: Final = 60.0
"""Default of ``callback_retry_seconds``."""

NOTICE_SECONDS: Final = 10.0
"""Default of ``notice_seconds``: how long a run may wait for a worker before a warning says why it does."""

NOTICE_INTERVAL_SECONDS: Final = 1.0
"""The shortest time between two questions to the backend why runs wait."""

PATIENCE_KEY: Final = "submit_patience_seconds"
PATIENCE_SECONDS: Final = 60.0
"""The key of backends that wait for a controller or API server that is away, and its default."""

SUSPECT_SECONDS: Final = 1.5
"""How long a worker whose system has closed its connection may take to open another one."""

RECONNECT_SECONDS: Final = 60.0
"""Default of ``delivery_reconnect_seconds``: how long a worker may be silent whose connection the network has cut."""

LATE_SECONDS: Final = 5.0
"""How late a heartbeat may be. A connection that was silent for longer was cut by the network, however it ended: the
end may come late, from a worker that has opened another connection since."""

ASK_SECONDS: Final = 0.5
"""The time between two questions to the backend why a worker is gone."""

LINGER_SECONDS: Final = 0.2
"""How long a thread of the adapter's that is still in a call is waited for in the end. It is a daemon."""

MAX_ENDED: Final = 10_000
"""Maximum number of ended runs that are remembered, so that an event that comes twice is not an error."""

REMEMBERED_RUNS: Final = 10_000
REMEMBERED_BYTES: Final = 64 * 1024 * 1024
REMEMBERED_SECONDS: Final = 3600.0
"""How long the results of runs with an idempotency key are kept, in seconds."""


class _Job:
    """One run that was, or is being, handed to the backend.

    Attributes:
        run_id: Of the run.
        task: The task's name.
        key: Under which its result is remembered, if it has an idempotency key.
        submission: What the adapter returned.
        submitted: Whether it has.
        submitted_at: When, in the loop's time.
        reconnect_seconds: How long its worker may be silent because of the network.
        noticed: Whether a warning has said that no worker has begun it.
        begun: Its worker has reported.
        worker: The process that has it: host, pid and something random; ``""``: not known.
        cancelled: It was told to end, and its end is still wanted.
        claims: Ids of what its worker may fetch.
        suspicion: Runs when its worker's connection has ended.
        stopped: Its worker has reported that it was stopped, and the backend is asked why.
    """

    __slots__ = (
        "begun",
        "cancelled",
        "claims",
        "key",
        "noticed",
        "reconnect_seconds",
        "run_id",
        "stopped",
        "submission",
        "submitted",
        "submitted_at",
        "suspicion",
        "task",
        "worker",
    )

    def __init__(self, frame: Frame, environment: str) -> None:
        self.run_id: str = frame["run_id"]
        self.task: str = frame["task_id"]
        key = idempotency_key(frame)
        self.key: Key | None = None if key is None else (environment, self.task, key)
        delivery: Mapping[str, Any] = frame.get("delivery") or {}
        self.reconnect_seconds = float(
            delivery.get("delivery_reconnect_seconds", RECONNECT_SECONDS)
        )
        self.submission: Any = None
        self.worker = ""
        self.submitted = self.begun = self.cancelled = self.stopped = self.noticed = False
        self.submitted_at = 0.0
        self.claims: list[str] = []
        self.suspicion: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"run {self.run_id} of task {self.task!r}"


class _AdapterExitError(DeliveryError):
    """An adapter, or the library that it uses, called `sys.exit`."""


class BackendAdapterEnvironmentExecutor(EnvironmentExecutor):
    """Runs tasks on a backend, through a `BackendAdapter`.

    The built-in names (``"celery"``, ``"rq"``, ...) are executors of this kind; an adapter of your own becomes one
    by this class. Started once for the process, it serves all weaves and threads.

    Args:
        name: What it is called in messages and payloads; the adapter's own name by default.
        adapter_class: The adapter.

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

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        config, label = environment_config, f"environment {environment_name!r}"
        if self._kind.keys is not None:
            more = (PATIENCE_KEY,) if self._kind.patient else ()
            check_keys(label, self.name, config, (*self._kind.keys, *more, *KEYS))

        self.label = label
        self.security = NetworkExecutorSecurity.from_config(
            config.get("security"), label=f"{label}: executor_config 'security'"
        )

        if self.security.kind == "bearer":
            raise ValueError(
                f"{label}: executor_config 'security' is a bearer token, and a payload in a queue cannot show one "
                f"without giving it away: use type 'signed', such as \"env:WOVE_WORKER_SECRET\""
            )

        address = read_address(config, label=label)
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
        most = whole(config, "max_message_bytes", MAX_MESSAGE_BYTES, label=label)
        self.retry_seconds = number(config, "callback_retry_seconds", RETRY_SECONDS, label=label)
        self.call_seconds = number(config, "send_timeout", 60.0, label=label, none=True)
        longest = number(config, "watch_seconds", None, label=label)
        self.notice_seconds = number(
            config, "notice_seconds", NOTICE_SECONDS, label=label, none=True
        )
        adapter = self.adapter = self._kind(environment_name, config)
        if adapter.patient:
            adapter.submit_patience_seconds = self.submit_patience_seconds = number(
                config, PATIENCE_KEY, PATIENCE_SECONDS, label=label
            )

        adapter.caller_loop = run_config.get("caller_loop")
        with self._exits_contained("configure"):
            adapter.configure()
        self._check_packages()
        self._inbox = EventQueue()
        self._jobs: dict[str, _Job] = {}
        adapter.is_awaited, adapter.has_started = self._jobs.__contains__, self._is_at_work
        self._ended = BoundedDict[str, None](MAX_ENDED)
        self._cancelled = BoundedDict[str, bool](MAX_ENDED)  # whether it had begun
        self._memory = CompletedRuns(
            runs=REMEMBERED_RUNS, size=REMEMBERED_BYTES, seconds=REMEMBERED_SECONDS
        )
        self._claims: dict[str, tuple[Pickled, set[str]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._noticing: asyncio.Task[None] | None = None
        self._threads = ThreadPool(adapter.threads, f"wove-{self.name}")
        self._watcher: Watcher | None = None

        if type(adapter).watch is not BackendAdapter.watch:
            shortest, usual = adapter.watch_seconds
            self._watcher = Watcher(
                self._ask,
                self._watched,
                self._has_begun,
                self._over,
                seconds=(shortest, usual) if longest is None else (min(shortest, longest), longest),
                max_query_seconds=self.call_seconds,
                label=label,
            )

        self.route: Route = await open_route(
            address, self, security=self.security, max_message_bytes=most, label=label
        )
        self.url = self.route.url.replace(address.token, "<token>")

        try:
            await self._call(adapter.start)
        except BaseException:
            self._threads.close(
                0.0, for_good=True
            )  # without waiting: one may still be in a call that takes too long
            await self.route.close()
            raise

    def _check_packages(self) -> None:
        if importlib.util.find_spec("cloudpickle") is None:
            raise MissingDispatchFeatureError
        missing = [name for name in self._kind.required_modules if not _is_there(name)]
        if missing:
            command = self._kind.install_hint or f"pip install {' '.join(missing)}"
            raise MissingDependencyError(
                f"{self.label}: the {self.name} executor needs {' and '.join(missing)}. Install it with: {command}"
            )

    async def stop(self) -> None:
        if self._watcher is not None:
            await self._watcher.close()
        for job in list(self._jobs.values()):
            self._forget(job)
        await self.route.close()

        try:
            await self._call(self.adapter.close)
        finally:
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=1.0)
            await run_in_thread(partial(self._threads.close, LINGER_SECONDS, for_good=True))

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the adapter: a coroutine function on this loop, a plain function in one of its threads."""
        with self._exits_contained(method.__name__):
            if inspect.iscoroutinefunction(method):
                return await method(*args)
            value = await self._threads.call(method, *args)
            return await value if inspect.isawaitable(value) else value

    @contextlib.contextmanager
    def _exits_contained(self, name: str) -> Generator[None]:
        """Turn a `SystemExit` of the adapter into an error: it would end the loop that all environments live on."""
        try:
            yield
        except (SystemExit, KeyboardInterrupt) as error:
            raise _AdapterExitError(
                f"{self.label}: {self.name}'s {name} raised {type(error).__name__}: {error}"
            ) from error

    async def _ask(self, jobs: Mapping[str, Any]) -> Mapping[str, JobStatus]:
        """Return what has become of *jobs*: lost, if the adapter wants to end the process over the question."""
        try:
            found: Mapping[str, JobStatus] = await self._call(self.adapter.watch, jobs)
        except _AdapterExitError as error:
            return dict.fromkeys(jobs, JobStatus("lost", str(error)))
        return found

    # ------------------------------------------------------------------ out

    async def send(self, frame: Frame) -> None:
        if frame["type"] == "run_task":
            await self._submit(frame)
        elif frame["type"] == "cancel_task":
            await self._cancel(frame)

    async def recv(self) -> list[Frame]:
        return await self._inbox.get()

    async def _submit(self, frame: Frame) -> None:
        job = _Job(frame, self.label)
        if self._answered_before(job):
            return
        self._jobs[job.run_id] = job

        try:
            payload = await self._payload(job, frame)
            handing = asyncio.ensure_future(self._call(self.adapter.submit, payload, frame))
        except BaseException:
            self._forget(job)
            raise

        try:
            job.submission = await asyncio.shield(handing)
        except (
            asyncio.CancelledError
        ):  # it took too long; if it succeeds after all, nobody waits for the run
            self._forget(job)
            handing.add_done_callback(lambda done: self._take_back(job, frame, done))
            raise
        except BaseException:
            self._forget(job)
            raise

        job.submitted, job.submitted_at = True, asyncio.get_running_loop().time()
        if self.notice_seconds is not None and self._noticing is None:
            self._noticing = self._spawn(self._notice(self.notice_seconds))
        if self._watcher is not None:
            self._watcher.ensure_running()

    def _answered_before(self, job: _Job) -> bool:
        event = (
            None
            if job.key is None
            else self._memory.get(job.key, asyncio.get_running_loop().time())
        )
        if event is not None:
            self._inbox.put([{**event, "run_id": job.run_id}])
        return event is not None

    def _take_back(self, job: _Job, frame: Frame, handed: asyncio.Future[Any]) -> None:
        if handed.cancelled() or handed.exception() is not None:
            return
        logger.info("%s: %s was submitted too late, and is cancelled", self.label, job)
        cancel = {
            "type": "cancel_task",
            "run_id": job.run_id,
            "task_id": job.task,
            "delivery_cancel_mode": None,
        }
        self._spawn(self._call(self.adapter.cancel, job.run_id, handed.result(), cancel))

    async def _payload(self, job: _Job, frame: Frame) -> PayloadDict:
        sizes = payloads.size_of(frame)
        claims: dict[str, Claim] = {}
        room = self.adapter.inline_bytes - payloads.ENVELOPE_BYTES
        for name in sorted(sizes, key=lambda each: -sizes[each]):
            if sum(size for each, size in sizes.items() if each not in claims) > room:
                claims[name] = await self._claim(job, frame, name)

        payload = payloads.build(
            frame,
            adapter=self.name,
            callback_url=self.route.url,
            claims=claims,
            sent_at=time.time(),
            retry_seconds=self.retry_seconds,
            beat_seconds=self.adapter.beat_seconds,
        )
        digest = payloads.digest(payload) if self.security.authenticates else None
        if digest is not None:
            signature = self.security.payload_signature(
                adapter=self.name, run_id=job.run_id, body=digest
            )
            payload[payloads.SIGNATURE] = signature

        return payload

    async def _claim(self, job: _Job, frame: Frame, name: str) -> Claim:
        """Keep a pickle for its worker to fetch; that of a callable once for all runs of it."""
        pickled: Pickled = frame[name]
        sha256 = frame.get("callable_id") if name == "callable_pickle" else None
        if not isinstance(sha256, str):
            digest = signing.digest
            sha256 = (
                await run_in_thread(digest, pickled.chunks)
                if pickled.size > INLINE_BYTES
                else digest(pickled.chunks)
            )

        claim_id = sha256 if name == "callable_pickle" else f"{job.run_id}-arguments"
        self._claims.setdefault(claim_id, (pickled, set()))[1].add(job.run_id)
        job.claims.append(claim_id)
        return Claim(claim_id, sha256, pickled.size)

    async def _cancel(self, frame: Frame) -> None:
        job = self._jobs.get(frame["run_id"])
        if job is None:  # its end is on its way to the weave
            return
        wanted = frame.get("delivery_cancel_mode") == "require_ack"
        if wanted:
            job.cancelled = True
        else:
            self._forget(job)

        self._cancelled[job.run_id] = job.begun  # its worker is told so when it reports
        never = await self._call(self.adapter.cancel, job.run_id, job.submission, frame)
        if never is True and wanted and job.run_id in self._jobs:
            self._finish(job, {"type": "task_cancelled", "run_id": job.run_id, "task_id": job.task})

    # ------------------------------------------------------------------ back: what the receiver asks and tells

    def status(self, run_id: str, worker: str) -> RunStatus:
        job = self._jobs.get(run_id)
        if job is not None:
            if not self._may_have(job, worker):
                return RunStatus.ELSEWHERE
            return RunStatus.CANCELLED if job.cancelled else RunStatus.AWAITED

        if run_id in self._ended:
            return RunStatus.ENDED
        return RunStatus.STOPPED if run_id in self._cancelled else RunStatus.UNKNOWN

    def _may_have(self, job: _Job, worker: str) -> bool:
        """Return whether *worker* may run *job*: the first to report does, and another one only after it."""
        if not worker or not job.worker or worker == job.worker or self.adapter.restarts:
            return True
        return self.adapter.redelivers and job.suspicion is not None

    def receive(self, event: dict[str, Any], worker: str) -> None:
        job = self._jobs.get(event["run_id"])
        if job is None or job.stopped:
            return
        job.begun = True
        job.worker = worker or job.worker
        if job.suspicion is not None:
            job.suspicion.cancel()
            job.suspicion = None

        if event["type"] not in TERMINAL:
            self._inbox.put([event])
            return

        if self.adapter.reports_cancel_reason and not job.cancelled and _was_stopped(event):
            job.stopped = True
            self._spawn(self._explain(job, event))
            return

        if job.key is not None and event["type"] == "task_result":
            self._memory.put(job.key, event, asyncio.get_running_loop().time())
        self._finish(job, event)

    def on_connection_lost(self, run_ids: Sequence[str], worker: str, end: ConnectionEnd) -> None:
        for run_id in run_ids:
            job = self._jobs.get(run_id)
            if job is not None and job.suspicion is None and not job.stopped:
                job.suspicion = self._spawn(self._suspect(job, worker, end))

    def claim(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        held = self._claims.get(claim_id)
        return None if held is None else held[0].chunks

    # ------------------------------------------------------------------ losses

    async def _suspect(self, job: _Job, worker: str, end: ConnectionEnd) -> None:
        """Lose a run whose worker's connection has ended, unless the worker reports again.

        The backend may know why, or that another worker will have the job.
        """
        cut = not end.by_peer or end.silent_seconds > self.adapter.beat_seconds + LATE_SECONDS
        left = job.reconnect_seconds - end.silent_seconds if cut else 0.0
        await asyncio.sleep(max(SUSPECT_SECONDS, left))
        await self._lose_with_words(job)

        if not self.adapter.restarts:
            self._lose(
                job,
                f"its worker ({worker}) is gone: the connection over which it reported has ended",
            )

    async def _explain(self, job: _Job, event: dict[str, Any]) -> None:
        """Its worker has reported that it was stopped; the backend may know why."""
        await self._lose_with_words(job)
        if job.run_id in self._jobs:
            self._finish(job, event)

    async def _lose_with_words(self, job: _Job) -> None:
        """Ask the backend what has become of a job until it knows that it is lost, or has had its time to notice."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.adapter.loss_reason_timeout
        while self._watcher is not None and (left := until - loop.time()) > 0:
            await self._watcher.ask_now(left)
            fate = self._watcher.noted(job.run_id)
            if fate is not None and fate.state == "lost":
                self._lose(job, fate.reason)
            if job.run_id not in self._jobs:
                return
            await asyncio.sleep(ASK_SECONDS)  # it may not have noticed yet itself

    def _watched(self) -> dict[str, Any]:
        return {run_id: job.submission for run_id, job in self._jobs.items() if job.submitted}

    def _has_begun(self, run_id: str) -> bool:
        job = self._jobs.get(run_id)
        return job is not None and job.begun

    def _is_at_work(self, run_id: str) -> bool:
        job = self._jobs.get(run_id)
        if job is None:
            return self._cancelled.get(run_id, False)
        return job.begun and job.suspicion is None

    def _over(self, run_id: str, fate: JobStatus) -> None:
        job = self._jobs.get(run_id)
        if job is None or (fate.state == "missing" and job.begun):
            return
        if fate.state == "finished":
            self._lose(
                job,
                f"its job has ended ({fate.reason}), and no result came back: its worker could not reach "
                f"{self.url}, or did not hand the payload to wove.integrations.worker.run",
            )
        else:
            self._lose(job, fate.reason)

    def _lose(self, job: _Job, why: str) -> None:
        if job.run_id not in self._jobs:
            return
        why += advice_on_other_wove(why)
        error = WorkerLostError(f"{self.label}: {job} was lost: {why}")
        self._finish(
            job,
            {"type": "task_error", "run_id": job.run_id, "task_id": job.task, "exception": error},
        )

    # ------------------------------------------------------------------ nobody took it

    def _unbegun(self) -> list[_Job]:
        return [
            job
            for job in self._jobs.values()
            if job.submitted and not job.begun and not job.cancelled and not job.noticed
        ]

    async def _notice(self, seconds: float) -> None:
        """Warn of runs that no worker has begun for *seconds*, once for each reason, while there are such runs."""
        loop = asyncio.get_running_loop()
        told: str | None = None

        try:
            while unbegun := self._unbegun():
                due = min(job.submitted_at for job in unbegun) + seconds
                await asyncio.sleep(max(NOTICE_INTERVAL_SECONDS, due - loop.time()))
                limit = loop.time() - seconds
                late = [job for job in self._unbegun() if job.submitted_at <= limit]
                if not late:
                    continue
                for job in late:
                    job.noticed = True
                why = await self._why_waiting({job.run_id: job.submission for job in late})
                if why == told or not (left := [job for job in late if not job.begun]):
                    continue
                told = why
                logger.warning(
                    "%s: no worker has begun %s within %g s%s",
                    self.label,
                    left[0] if len(left) == 1 else f"{len(left)} runs, such as {left[0]},",
                    seconds,
                    f": {why}" if why else "",
                )
        finally:
            self._noticing = None

    async def _why_waiting(self, submissions: Mapping[str, Any]) -> str:
        try:
            async with asyncio.timeout(self.call_seconds):
                return str(await self._call(self.adapter.waiting, submissions) or "")
        except Exception as error:
            return f"its backend cannot say why: {type(error).__name__}: {error}"

    # ------------------------------------------------------------------ ends

    def _finish(self, job: _Job, event: dict[str, Any]) -> None:
        self._forget(job)
        self._ended[job.run_id] = None
        self._inbox.put([event])

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(job.run_id) is job:
            del self._jobs[job.run_id]
        for claim_id in job.claims:
            held = self._claims.get(claim_id)
            if held is not None:
                held[1].discard(job.run_id)
                if not held[1]:
                    del self._claims[claim_id]

        job.claims.clear()
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
    """The executor class of a built-in *adapter*."""
    kind: CancelReach = adapter.cancel_reach
    return type(
        f"{adapter.__name__}Executor",
        (BackendAdapterEnvironmentExecutor,),
        {"adapter_class": adapter, "cancel_reach": kind, "__module__": __name__},
    )


def _was_stopped(event: Mapping[str, Any]) -> bool:
    """Whether a worker was stopped from outside: see `wove.integrations.common.jobs.Job.interrupt`."""
    error = event.get("error") if event["type"] == "task_error" else None
    if not isinstance(error, Mapping):
        return False
    report = cast("Mapping[str, object]", error)
    kind = str(report.get("kind")).rpartition(".")[2]
    return report.get("source") == "executor" and kind == WorkerLostError.__name__


def _is_adapter(kind: object) -> TypeGuard[type[BackendAdapter]]:
    return isinstance(kind, type) and issubclass(kind, BackendAdapter)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False
