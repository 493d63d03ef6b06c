"""RQ (Redis Queue): a run is a job, and its worker is any ``rq worker``.

Nothing has to be registered on the worker's side: a job names `wove.integrations.worker.run`, which RQ imports. RQ
keeps a job as a hash in Redis, which is what is asked here; of that hash nothing is unpickled on this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import urlsplit

from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool
from wove.errors import DeliveryError, install_command
from wove.executors.base import CancelReach, Frame
from wove.graph.rules import shown
from wove.integrations import naming
from wove.integrations.base import BackendAdapter, JobStatus, PayloadDict
from wove.integrations.common.timing import longest_seconds
from wove.integrations.rq.options import read_options
from wove.integrations.rq.states import WAITING, JobInspector, Row, read_row
from wove.settings.config_readers import text

__all__ = ["RQAdapter", "RunId", "Submission", "time_limit"]

FUNCTION: Final = "wove.integrations.worker.run"
"""The function that a job calls, by name."""

DEFAULT_URL: Final = "redis://localhost:6379/0"
"""The Redis that ``rq worker`` uses by default (rq/cli/helpers.py, `get_redis_from_config`)."""

SCHEMES: Final = ("redis", "rediss", "unix")
"""The URL schemes that `redis.Redis.from_url` accepts (redis/connection.py, `parse_url`)."""

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0
"""How long Redis may take to accept a connection, and to answer, where the URL says nothing else."""

GRACE_SECONDS: Final = 30
"""Seconds by which RQ's own time limit is later than the run's, at which the worker ends the run and reports that."""

MAX_SECONDS: Final = 10 * 365 * 86400
"""Longer limits become `NO_LIMIT`, since RQ sets an alarm, whose seconds have 32 bits."""

NO_LIMIT: Final = -1
"""RQ's ``job_timeout`` that stands for no limit (rq/queue.py, `create_job`). RQ's default is 180 s."""

MAX_ATTEMPTS: Final = 10
"""Maximum number of attempts to replace the job of a key while others change it."""

KILL_SECONDS: Final = 5.0
"""How long a cancelled run may take to end by itself before its work-horse is killed."""

MAX_CANCELS: Final = 2
LINGER_SECONDS: Final = 0.2

STOP: Final = "stop-job"
"""The command that has a worker kill its work-horse (rq/command.py, `send_stop_job_command`)."""


class RunId(str):
    """A run's id, in the ``meta`` of its job; see `wove.integrations.rq.preload`."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        from wove.integrations.rq.preload import plain

        return plain, (str(self),)


class Submission(NamedTuple):
    """A job that was enqueued.

    Attributes:
        job_id: Its id.
        mark: If its id is made of an idempotency key, the mark that tells it from other jobs with that id; otherwise
            ``None``.
    """

    job_id: str
    mark: str | None


class RQAdapter(BackendAdapter):
    """Enqueues each run as one job of an RQ queue.

    ``executor_config``: ``queue``, an `rq.Queue` of the user's own, or ``redis_url`` (``"redis://localhost:6379/0"``)
    and ``queue_name`` (``"default"``); ``enqueue_options``, a dict of options of `rq.Queue.enqueue`.

    Example:
        >>> wove.config(
        ...     environments={"jobs": {"executor": "rq", "executor_config": {"redis_url": "redis://redis:6379/0"}}}
        ... )
    """

    name: ClassVar[str] = "rq"
    required_modules: ClassVar[tuple[str, ...]] = ("rq", "redis")
    install_hint: ClassVar[str] = install_command("rq")
    keys: ClassVar[tuple[str, ...] | None] = ("queue", "redis_url", "queue_name", "enqueue_options")
    cancel_reach: ClassVar[CancelReach] = "process"
    watch_seconds: ClassVar[tuple[float, float]] = (0.5, 5.0)

    _queue: Any
    _own: Any = None
    """The Redis client, if Wove has made it."""

    # ------------------------------------------------------------------ configuration

    def configure(self) -> None:
        config, label = self.config, self.label
        self._given = config.get("queue")
        self._url = text(config, "redis_url", DEFAULT_URL, label=label)
        self._name = text(config, "queue_name", "default", label=label)

        if self._given is not None:
            self._check_queue(self._given)
        else:
            scheme = urlsplit(self._url).scheme
            if scheme not in SCHEMES:
                known = ", ".join(f"{each}://" for each in SCHEMES)
                raise ValueError(
                    f"{label}: executor_config 'redis_url' must begin with one of {known}"
                )

        self._options = read_options(config, label=label)
        self._owner = uuid.uuid4().hex
        self._condemned: set[Submission] = set()
        self._calls = ThreadPool(MAX_CANCELS, "wove-rq")

    def _check_queue(self, queue: object) -> None:
        if both := [key for key in ("redis_url", "queue_name") if self.config.get(key) is not None]:
            raise ValueError(
                f"{self.label}: executor_config 'queue' brings its own {' and '.join(both)}: give one only"
            )

        if not all(
            hasattr(queue, name) for name in ("enqueue_call", "connection", "serializer", "key")
        ):
            raise TypeError(
                f"{self.label}: executor_config 'queue' must be an rq.Queue, not {shown(queue)}"
            )

        if not getattr(queue, "is_async", True):
            raise ValueError(
                f"{self.label}: executor_config 'queue' has is_async=False and would run each task while it is "
                "enqueued, in this process. For that, use executor 'local'"
            )

    # ------------------------------------------------------------------ start and close

    def start(self) -> None:
        with forks.importing:
            redis: Any = importlib.import_module("redis")
            retries: Any = importlib.import_module("redis.retry")
            backoff: Any = importlib.import_module("redis.backoff")
            rq: Any = importlib.import_module("rq")
            commands: Any = importlib.import_module("rq.command")
            results: Any = importlib.import_module("rq.results")
            importlib.import_module("wove.integrations.rq.preload")

        self._errors: type[Exception] = redis.exceptions.RedisError
        self._changed: type[Exception] = redis.exceptions.WatchError
        self._send_command = commands.send_command
        self._worker_class: Any = rq.Worker

        if self._given is not None:
            self._queue = self._given
        else:
            # No retries: a command that was executed although its answer was lost would enqueue a job twice.
            self._own = redis.Redis.from_url(
                self._url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                socket_keepalive=True,
                retry=retries.Retry(backoff.NoBackoff(), 0),
            )
            self._queue = rq.Queue(self._name, connection=self._own)

        self._redis: Any = self._queue.connection
        self._job_class: Any = self._queue.job_class
        self._probe = JobInspector(
            self._queue,
            job_key=self._job_key,
            worker_key=f"{rq.Worker.redis_worker_namespace_prefix}{{}}".format,
            channel=commands.PUBSUB_CHANNEL_TEMPLATE.__mod__,
            result_key=results.Result.get_key,
        )
        self._try_options(rq.__version__)
        with self._reaching("could not be reached", "Is Redis running there?"):
            self._queue.get_redis_server_version()

    def _try_options(self, version: str) -> None:
        """Check the options with RQ now, instead of at each run."""
        options = {
            name: value
            for name, value in self._options.items()
            if name not in ("at_front", "job_timeout")
        }

        try:
            self._queue.create_job(
                FUNCTION, timeout=self._options.get("job_timeout", NO_LIMIT), **options
            )
        except Exception as error:
            raise ValueError(
                f"{self.label}: rq {version} does not take these enqueue_options: {type(error).__name__}: {error}"
            ) from error

    @contextlib.contextmanager
    def _reaching(self, failed: str, remedy: str = "") -> Generator[None]:
        try:
            yield
        except (self._errors, OSError) as error:
            if isinstance(error, self._changed):
                raise
            given = "redis_url" if self._given is None else "queue"
            raise DeliveryError(
                f"{self.label}: Redis at {_place(self._redis)} (executor_config {given!r}) {failed}: "
                f"{type(error).__name__}: {error}{'. ' if remedy else ''}{remedy}"
            ) from error

    def close(self) -> None:
        self._calls.close(LINGER_SECONDS, for_good=True)
        try:
            self._stop(set(self._condemned))  # later, no process could stop them
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._own is not None:
            self._own.connection_pool.disconnect()
            self._own = None

    # ------------------------------------------------------------------ out

    def submit(self, payload: PayloadDict, frame: Frame) -> Submission:
        if not self.is_awaited(payload["run_id"]):  # Redis did not answer for too long
            raise DeliveryError(
                f"{self.label}: run {payload['run_id']} was given up before it was enqueued"
            )

        with self._reaching("did not take the job"):
            if naming.idempotency_key(frame) is not None:
                return self._submit_with_key(payload, frame)
            submission = Submission(naming.job_id(frame), None)
            if "depends_on" in self._options:  # RQ uses a transaction of its own for that
                self._enqueue(submission, payload)
            else:
                with self._redis.pipeline() as pipe:
                    self._enqueue(submission, payload, pipe)
                    pipe.execute()
            return submission

    def _enqueue(self, submission: Submission, payload: PayloadDict, pipe: Any = None) -> None:
        options = dict(self._options)
        options["meta"] = {**(options.get("meta") or {}), "wove_run": RunId(payload["run_id"])}
        self._queue.enqueue_call(
            FUNCTION,
            args=(payload,),
            timeout=options.pop("job_timeout", None) or time_limit(payload),
            job_id=submission.job_id,
            # RQ's default contains the arguments, and its workers log it.
            description=f"wove task {payload['task_name']!r}, run {payload['run_id']}"[:200],
            pipeline=pipe,
            **options,
        )
        if submission.mark is not None:
            (self._redis if pipe is None else pipe).hset(
                self._key(submission), "wove", submission.mark
            )

    def _submit_with_key(self, payload: PayloadDict, frame: Frame) -> Submission:
        submission = Submission(naming.job_id(frame), f"{self._owner}/{payload['run_id']}")

        for _ in range(MAX_ATTEMPTS):
            with self._redis.pipeline() as pipe, contextlib.suppress(self._changed):
                pipe.watch(self._key(submission))
                row = read_row(pipe, self._key(submission))
                if row is not None:
                    pipe.reset()
                    submission = self._make_room(submission, row, payload)
                    continue
                if "depends_on" in self._options:
                    pipe.reset()
                    self._enqueue(submission, payload)
                else:
                    self._enqueue(submission, payload, pipe)
                    pipe.execute()
                return submission

        raise DeliveryError(
            f"{self.label}: job {submission.job_id} of RQ changes all the time, and cannot be replaced"
        )

    def _make_room(self, submission: Submission, row: Row, payload: PayloadDict) -> Submission:
        """Remove the job with that id if it is over, or if this adapter submitted it earlier and it is lost.

        Runs with one key are already shared within the process.

        Raises:
            DeliveryError: The job belongs to another process, which waits for it.
        """
        running = row.status == "started" and not self._probe.is_gone(row)
        if running and row.owner == self._owner:
            # It is lost here, but its worker still writes to it, and must not write to the new job.
            self._send_command(self._redis, row.worker, STOP, job_id=submission.job_id)
            return submission._replace(job_id=f"{submission.job_id}-{payload['run_id']}")

        if (running or row.status in WAITING) and row.owner != self._owner:
            raise DeliveryError(
                f"{self.label}: task {payload['task_name']!r} with this idempotency key is already job "
                f"{submission.job_id} of RQ ({row.status}), enqueued by another process, which gets its result. Wait "
                "for it, remove that job, or use another key"
            )

        self._remove(submission)
        return submission

    def _remove(self, submission: Submission, pipe: Any = None) -> None:
        job = self._job_class(
            submission.job_id, connection=self._redis, serializer=self._queue.serializer
        )
        job.origin = self._queue.name

        try:
            job.delete(pipeline=pipe)
        except self._errors:
            raise
        except Exception:  # RQ does not delete a hash without a status
            (self._redis if pipe is None else pipe).delete(job.key)

    # ------------------------------------------------------------------ cancel

    async def cancel(self, run_id: str, submission: Any, frame: Frame) -> bool:
        if not isinstance(submission, Submission):  # not enqueued yet
            return False
        if (taken_back := await self._calls.call(self._take_back, submission)) is not None:
            return taken_back
        # Its worker learns of the cancel within a second, and can end the run by itself. Otherwise it is killed.
        self._condemned.add(submission)

        try:
            await asyncio.sleep(KILL_SECONDS)
            await self._calls.call(self._stop, [submission])
        finally:
            self._condemned.discard(submission)

        return False

    def _take_back(self, submission: Submission) -> bool | None:
        """Return whether this call has kept the job from ever running; ``None``: it runs."""
        key = self._key(submission)

        with self._reaching("could not be told to cancel"):
            row = read_row(self._redis, key)
            if row is None or (submission.mark is not None and row.mark != submission.mark):
                return False  # there is no job, or that of another run
            # A worker that takes the id from the list has the job; here, this call has it.
            if self._redis.lrem(self._queue.key, 1, submission.job_id):
                self._redis.delete(key, f"{key}:dependents")
                return True
            with self._redis.pipeline() as pipe, contextlib.suppress(self._changed):
                pipe.watch(key)
                row = read_row(pipe, key)
                if row is not None and row.status in WAITING and row.status != "queued":
                    pipe.multi()
                    self._remove(submission, pipe)
                    pipe.execute()
                    return True

        return (
            None
            if row is not None and (row.status in WAITING or row.status == "started")
            else False
        )

    def _stop(self, submissions: Iterable[Submission]) -> None:
        """Have the work-horses of jobs that still run killed. A `SimpleWorker` has none, and ignores the command."""
        with self._reaching("could not be told to stop a job"):
            for each in submissions:
                row = read_row(self._redis, self._key(each))
                if (
                    row is not None
                    and row.status == "started"
                    and row.worker
                    and each.mark in (None, row.mark)
                ):
                    self._send_command(self._redis, row.worker, STOP, job_id=each.job_id)

    # ------------------------------------------------------------------ watch

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return self._probe.ended(submissions)

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        workers: list[Any] = self._worker_class.all(queue=self._queue)
        if not workers:
            return (
                f"no RQ worker listens to queue {self._queue.name!r} (rq worker {self._queue.name})"
            )

        busy = sum(
            str(worker.get_state()).rpartition(".")[2].lower() == "busy" for worker in workers
        )
        return f"of {len(workers)} RQ workers on queue {self._queue.name!r}, {busy} are busy"

    def _key(self, submission: Submission) -> str:
        return self._job_key(submission.job_id)

    def _job_key(self, job_id: str) -> str:
        key: str | bytes = self._job_class.key_for(job_id)
        return key if isinstance(key, str) else key.decode()  # bytes in RQ 2.0


def time_limit(payload: PayloadDict) -> int:
    """Return the seconds after which RQ may end the job, because its run cannot be awaited any more."""
    seconds = longest_seconds(payload) + GRACE_SECONDS
    return NO_LIMIT if seconds > MAX_SECONDS else math.ceil(seconds)


def _place(connection: Any) -> str:
    """Return the address of *connection*, without its password."""
    settings = connection.connection_pool.connection_kwargs
    if path := settings.get("path"):
        return str(path)
    if host := settings.get("host"):
        return f"{host}:{settings.get('port', 6379)}"
    return type(connection).__name__
