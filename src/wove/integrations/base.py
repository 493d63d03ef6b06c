"""The contract of a backend adapter."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from wove.executors.base import CancelReach, Frame
from wove.protocol import heartbeats

__all__ = ["BackendAdapter", "JobStatus", "MaybeAwaitable", "PayloadDict"]

PayloadDict: TypeAlias = dict[str, Any]
"""A payload as the backend gets it: a dict of JSON values; see `wove.protocol.payload`."""

MaybeAwaitable: TypeAlias = "Awaitable[Any] | Any"


class JobStatus(NamedTuple):
    """The end of a job as the backend tells it: the job is over, or will never begin.

    Attributes:
        state: ``"lost"``: it failed, was removed, or will never run, and nothing is to be expected of it.
            ``"finished"``: it ended as it should, so that its result is on its way, or has been.
            ``"missing"``: the backend does not know it any more; it is lost unless its worker has reported.
        reason: The backend's own words: a status, an exit code, the last lines of a traceback.
    """

    state: Literal["lost", "finished", "missing"]
    reason: str


class BackendAdapter(abc.ABC):
    """Hands payloads to one backend.

    An adapter knows nothing of callables, callbacks, retries or policies: it submits a payload as one job, cancels a
    job, and can tell what has become of jobs. The job's worker hands the payload to `wove.integrations.worker.run`
    or ``arun``, and everything else comes back from there.

    The methods may be plain functions or coroutines. Coroutines run on Wove's background loop, and must not block
    it; plain functions are called in a few threads of the adapter's own, several at a time, so a client library that
    blocks does no harm. Each call of `start` has ``start_timeout`` seconds, each `submit` and `cancel` has
    ``send_timeout`` (both 60 by default, keys of every ``executor_config``), and so has each `watch`.

    An instance serves one environment, from all threads and weaves of the process, until the configuration changes
    or the process ends.

    Args:
        environment: The environment's name.
        config: Its ``executor_config``, the keys of callbacks and timeouts included.

    Attributes:
        label: What messages should begin with: ``"environment 'reports'"``.
        caller_loop: The event loop of the ``async with weave()`` that needed the environment first, if it was one. A
            client that the user made for such a loop is used there: see `wove.integrations.common.client_loops`.
        submit_patience_seconds: How long `submit` waits for a backend that is away, if the adapter is `patient`.
        wanted: Whether a run, by its id, is still waited for: what was given up need not be submitted any more.
        begun: Whether a worker has reported that it runs it, and is not missed since; of a run that was cancelled,
            whether it had.

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
    """Modules that must be there; looked for when the environment starts."""

    install_hint: ClassVar[str] = ""
    """The command that installs them, for the message about one that is missing."""

    keys: ClassVar[tuple[str, ...] | None] = None
    """The adapter's own keys of ``executor_config``, for the error about an unknown one; ``None``: any key is taken."""

    cancel_reach: ClassVar[CancelReach] = "cooperative"
    """How far `cancel` reaches at best. Whatever it is, a Wove worker ends a run that nobody waits for any more when
    it next reports."""

    inline_bytes: ClassVar[int] = 128 * 1024
    """The most characters that a payload may have as JSON. What is larger is fetched by the worker instead."""

    beat_seconds: ClassVar[float] = heartbeats.QUEUE_SECONDS
    """The longest time between two signs of life of a worker, which are answered with whether its runs are still
    wanted. Longer for a backend that ends the process of a cancelled job itself, and has thousands of them."""

    loss_reason_timeout: ClassVar[float] = 3.0
    """How long the backend may take to notice that a worker process is gone. So long it is asked for its own words
    before a run whose worker's connection has ended is given up without them."""

    restarts: bool = False
    """Whether the backend itself starts a job again whose worker is gone. Only `watch` then knows what is lost; until
    it says so, a run whose worker's connection has ended waits for the next worker."""

    redelivers: ClassVar[bool] = True
    """Whether another worker may go on with a run whose worker's connection has ended, until the run is given up:
    queues hand out a message again where their users want that. If false, a second start is refused in any case."""

    patient: ClassVar[bool] = False
    """Whether `submit` waits for a backend that is away: ``submit_patience_seconds`` of ``executor_config`` (60) are
    then added to its ``send_timeout``."""

    threads: ClassVar[int] = 4
    """How many plain functions are called at a time."""

    reports_cancel_reason: ClassVar[bool] = False
    """Whether the backend ends jobs with a signal and knows why: a time limit, an operator, another job. When a worker
    reports that it was stopped in the middle of a run, `watch` is then asked for the reason first."""

    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 10.0)
    """The time between two calls of `watch`: right after something was submitted, and when nothing happens for long."""

    def __init__(self, environment: str, config: Mapping[str, Any]) -> None:
        self.environment = environment
        self.config = config
        self.label = f"environment {environment!r}"
        self.submit_patience_seconds = 0.0
        self.caller_loop: asyncio.AbstractEventLoop | None = None
        self.wanted: Callable[[str], bool] = lambda run_id: True
        self.begun: Callable[[str], bool] = lambda run_id: False

    def configure(self) -> None:  # noqa: B027  # optional
        """Read and check the configuration; no I/O, no import of the backend's package.

        Raises:
            ValueError: Or `TypeError`: a value is not right; the message names the key.
        """

    def start(self) -> MaybeAwaitable:  # noqa: B027
        """Import what is needed, and connect. What it raises ends the runs that wait; the next run tries again."""

    @abc.abstractmethod
    def submit(self, payload: PayloadDict, frame: Frame) -> MaybeAwaitable:
        """Hand *payload* to the backend, as one job.

        Args:
            payload: To be passed to the worker's ``run`` or ``arun`` as it is. It has ``run_id``: at most 48 of
                ``[A-Za-z0-9_-]``, unique per submission.
            frame: The ``run_task`` command behind it. ``frame["delivery"].get("delivery_idempotency_key")`` is the
                run's key, if it has one; `wove.integrations.naming.job_id` makes an id of it.

        Returns:
            Whatever `cancel` and `watch` need to know the job again.
        """

    @abc.abstractmethod
    def cancel(self, run_id: str, submission: Any, frame: Frame) -> MaybeAwaitable:
        """End the job *submission*, as far as the backend can.

        Args:
            run_id: Of its run.
            submission: What `submit` returned.
            frame: The ``cancel_task`` command.

        Returns:
            True if no worker has begun it and none will, so that nothing more is to be heard of it. Anything else
            means that its worker may still report.
        """

    def watch(self, submissions: Mapping[str, Any]) -> MaybeAwaitable:
        """Ask the backend, in one query, about all jobs that have not reported their end.

        Called every `watch_seconds` while there are such jobs; overriding it is what makes a lost job an error
        within seconds where its worker has not begun yet. (A worker that has begun keeps a connection open; when that
        ends, the run is looked after at once.)

        Args:
            submissions: What `submit` returned, by run id.

        Returns:
            A dict with a `JobStatus` for each run id whose job is over. Those that wait, run, or are not known are left
            out. What it raises is logged, and it is asked again later.
        """
        raise NotImplementedError

    def waiting(self, submissions: Mapping[str, Any]) -> MaybeAwaitable:
        """Return why no worker has begun these jobs, in words for a warning; ``""``: the backend does not know.

        Called when jobs have waited for ``notice_seconds``, at most once a second.

        Args:
            submissions: What `submit` returned, by run id.

        Example: ``"no worker listens to queue 'reports'"``.
        """
        return ""

    def close(self) -> MaybeAwaitable:  # noqa: B027
        """Let go of what `start` opened. A client that the user passed in is theirs, and stays open."""
