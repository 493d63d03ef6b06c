"""The contract of a backend adapter."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from wove.executors.base import CancelReach, Frame
from wove.protocol import heartbeats

__all__ = ["BackendAdapter", "JobStatus", "MaybeAwaitable", "PayloadDict", "StatusProbe"]

JobT = TypeVar("JobT", contravariant=True)

PayloadDict: TypeAlias = dict[str, Any]
"""A payload as the backend gets it: a dict of JSON values; see `wove.protocol.payload`."""

MaybeAwaitable: TypeAlias = "Awaitable[Any] | Any"


class JobStatus(NamedTuple):
    """How a job ended, as the backend tells it: the job is over, or will never begin.

    Attributes:
        state: ``"lost"``: the job failed, was removed, or will never run, and no result is to be expected.
            ``"finished"``: the job ended normally, so that its result is on its way, or has arrived.
            ``"missing"``: the backend no longer knows the job; it is lost unless its worker has reported.
        reason: What the backend says: a status, an exit code, the last lines of a traceback.
    """

    state: Literal["lost", "finished", "missing"]
    reason: str


class StatusProbe(Protocol[JobT]):
    """Finds out which jobs of one environment are over. Each backend has one, in its ``states.py`` or ``lost.py``."""

    def ended(self, submissions: Mapping[str, JobT], /) -> MaybeAwaitable:
        """Return a `JobStatus` for each job that is over, by run id. Jobs that wait or run are left out.

        Args:
            submissions: What `BackendAdapter.submit` returned, by run id.
        """


class BackendAdapter(abc.ABC):
    """Hands payloads to one backend.

    An adapter does not deal with callables, callbacks, retries or policies: it submits a payload as one job, cancels
    jobs, and says which jobs are over. The job's worker hands the payload to `wove.integrations.worker.run` or
    ``arun``, which reports the rest.

    The methods may be plain functions or coroutine functions. Coroutines run on Wove's background loop, and must not
    block it. Plain functions are called in threads of the adapter's own, several at a time, and may block. Each call of
    `start` has ``start_timeout`` seconds; each call of `submit`, `cancel` and `watch` has ``send_timeout`` seconds.
    Both are keys of every ``executor_config``, 60 by default.

    An instance serves one environment, from all threads and weaves of the process, until the configuration changes
    or the process ends.

    Args:
        environment: The environment's name.
        config: Its ``executor_config``, the keys of callbacks and timeouts included.

    Attributes:
        label: What messages should begin with: ``"environment 'reports'"``.
        caller_loop: The event loop of the ``async with weave()`` that needed the environment first; ``None`` if it was
            not an async one. A client that the user made for such a loop is used there: see
            `wove.integrations.common.client_loops`.
        submit_patience_seconds: How long `submit` waits for a backend that is away, if the adapter is `patient`.
        is_awaited: Returns whether the run with this id is still waited for. One that was given up need not be
            submitted any more.
        has_started: Returns whether a worker has reported that it runs the run with this id, and its connection
            still exists. For a cancelled run: whether it had been started.

    Example:
        >>> class QueueAdapter(BackendAdapter):
        ...     name = "queue"
        ...     keys = ("folder",)
        ...
        ...     def submit(self, payload, frame):
        ...         path = pathlib.Path(self.config["folder"]) / f"{payload['run_id']}.json"
        ...         path.write_text(json.dumps(payload))
        ...         return path
        ...
        ...     def cancel(self, run_id, submission, frame):
        ...         try:
        ...             submission.unlink()
        ...         except FileNotFoundError:
        ...             return False  # a worker has it
        ...         return True
    """

    name: ClassVar[str] = ""
    """The executor's name; it is in each payload."""

    required_modules: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed. Wove looks for them when the environment starts."""

    install_hint: ClassVar[str] = ""
    """The command that installs `required_modules`, for the message about a missing one."""

    keys: ClassVar[tuple[str, ...] | None] = None
    """The adapter's own keys of ``executor_config``. Other keys are errors; ``None``: any key is accepted."""

    cancel_reach: ClassVar[CancelReach] = "cooperative"
    """How far `cancel` reaches at best. In any case, Wove's worker ends a cancelled run when it next reports."""

    resources: ClassVar[frozenset[str]] = frozenset()
    """Names of the resources, of those of the option ``resources``, that `submit` asks the backend for. A task that
    asks for another one is refused. ``frame["resources"]`` has their amounts, in cores, bytes and seconds."""

    inline_bytes: ClassVar[int] = 128 * 1024
    """The maximum number of characters of a payload as JSON. The worker fetches larger parts from the receiver."""

    beat_seconds: ClassVar[float] = heartbeats.QUEUE_SECONDS
    """The maximum time between two heartbeats of a worker. The answer to one tells the worker which runs were
    cancelled, so a backend that ends the process of a cancelled job itself can have a longer time."""

    loss_reason_timeout: ClassVar[float] = 3.0
    """How long the backend may take to notice that a worker process is gone. When a worker's connection has ended,
    `watch` is called for this long to find the reason; after that the run is lost without one."""

    restarts: bool = False
    """Whether the backend itself starts a job again when its worker is gone. Then only `watch` knows which jobs are
    lost; until it says so, a run whose worker's connection has ended waits for the next worker."""

    redelivers: ClassVar[bool] = True
    """Whether another worker may run a job whose worker's connection has ended, until the run is lost: queues can be
    configured to deliver a message again. If false, a second start is always refused."""

    patient: ClassVar[bool] = False
    """Whether `submit` waits for a backend that is away: ``submit_patience_seconds`` of ``executor_config`` (60) are
    then added to its ``send_timeout``."""

    threads: ClassVar[int] = 4
    """The maximum number of plain functions of the adapter that are called at the same time."""

    reports_cancel_reason: ClassVar[bool] = False
    """Whether the backend ends jobs with a signal and knows why: a time limit, an operator, another job. When a worker
    reports that it was stopped during a run, `watch` is then called for the reason first."""

    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 10.0)
    """The minimum and maximum time between two calls of `watch`. It grows from the first to the second."""

    def __init__(self, environment: str, config: Mapping[str, Any]) -> None:
        self.environment = environment
        self.config = config
        self.label = f"environment {environment!r}"
        self.submit_patience_seconds = 0.0
        self.caller_loop: asyncio.AbstractEventLoop | None = None
        self.is_awaited: Callable[[str], bool] = lambda run_id: True
        self.has_started: Callable[[str], bool] = lambda run_id: False

    def configure(self) -> None:  # noqa: B027  # optional
        """Read and check the configuration, without I/O and without importing the backend's package.

        Raises:
            TypeError: A value has the wrong type; the message names the key.
            ValueError: A value is wrong; the message names the key.
        """

    def start(self) -> MaybeAwaitable:  # noqa: B027
        """Import the backend's package, and connect. An exception ends the runs that wait; the next run tries again."""

    @abc.abstractmethod
    def submit(self, payload: PayloadDict, frame: Frame) -> MaybeAwaitable:
        """Hand *payload* to the backend, as one job.

        Args:
            payload: The argument of the worker's ``run`` or ``arun``. Its ``run_id`` has at most 48 characters of
                ``[A-Za-z0-9_-]`` and is unique to this submission.
            frame: The ``run_task`` command of the run. ``frame["delivery"].get("delivery_idempotency_key")`` is the
                run's key, if it has one; `wove.integrations.naming.job_id` makes an id of it.

        Returns:
            What `cancel` and `watch` need to identify the job.
        """

    @abc.abstractmethod
    def cancel(self, run_id: str, submission: Any, frame: Frame) -> MaybeAwaitable:
        """End the job *submission*, as far as the backend can.

        Args:
            run_id: The id of its run.
            submission: What `submit` returned.
            frame: The ``cancel_task`` command.

        Returns:
            True if no worker has started the job and none will, so that no report will come. Any other value means
            that a worker may still report.
        """

    def watch(self, submissions: Mapping[str, Any]) -> MaybeAwaitable:
        """Ask the backend, in one query, which jobs are over. An adapter overrides it with the call of its
        `StatusProbe`.

        Called every `watch_seconds` while there are jobs that have not reported their end. Without it, a job that is
        lost before its worker starts it is noticed only at ``delivery_timeout``. (A worker that has started the run
        keeps a connection open; when that ends, `watch` is called at once.)

        Args:
            submissions: What `submit` returned, by run id.

        Returns:
            A dict with a `JobStatus` for each run id whose job is over. Jobs that wait, run, or are unknown are left
            out. An exception is logged, and `watch` is called again later.
        """
        raise NotImplementedError

    def waiting(self, submissions: Mapping[str, Any]) -> MaybeAwaitable:
        """Return why no worker has started these jobs, as text for a warning; ``""``: the backend does not know.

        Called when jobs have waited for ``notice_seconds``, at most once a second.

        Args:
            submissions: What `submit` returned, by run id.

        Example: ``"no worker listens to queue 'reports'"``.
        """
        return ""

    def release(self, run_id: str, submission: Any, lost: bool) -> MaybeAwaitable:  # noqa: B027
        """Remove what is left of a job in the backend. Called when its run has ended, but not when it was cancelled.

        Args:
            run_id: The id of the run.
            submission: What `submit` returned.
            lost: Whether the run was lost, so that the job may show the reason.
        """

    def close(self) -> MaybeAwaitable:  # noqa: B027
        """Close what `start` opened. A client that the user passed in stays open."""
