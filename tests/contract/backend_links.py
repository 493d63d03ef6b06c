"""The backends under contract. A new one is one more `Backend` in `BACKENDS`, and passes the suite.

A row says how to open a `Site`: its server from `tests.support.servers`, its workers from `tests.support.workers`, and
the ``executor_config`` that leads there. Whatever differs between backends is a field of the row, with the reason.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import workers
from tests.support.kept import ROOT, Kept
from tests.support.servers import Servers, dask as dask_server
from tests.support.workers import Command, Worker

__all__ = ["BACKENDS", "SECRET", "Backend", "Site", "parameters"]

SECRET = "for the contract suite of backends"


@dataclass(frozen=True)
class Site:
    """A backend that runs, with workers that take work.

    Attributes:
        config: The ``executor_config`` that leads there; or what makes one, where it holds an object that is for one
            environment only.
        workers: The processes of its workers, which are started again when they die; none where each job has its own.
        unknown: What to change in `config` to ask for a task that no worker knows; ``None``: workers know none by name.
    """

    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    workers: Sequence[Kept] = ()
    unknown: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Backend:
    """One backend, with one kind of worker.

    Attributes:
        name: For the tests' ids.
        executor: The built-in executor's name.
        needs: See tests/support/backends.py.
        open: Starts it.
        slots: How many runs its workers take at a time; ``None``: there is no bound, so that nothing waits in a queue.
        secret: What its payloads and events are signed with.
        cancels_queued: A run that is cancelled before a worker has it never starts.
        cause: A regular expression for what the backend says of a worker process that got a SIGKILL.
        unknown_words: And for what is said of a task that no worker knows.
        leaves: A regular expression for descriptors that its client leaves open in this process, and we cannot help it.
        seconds: The most that any of its tests may take.
    """

    name: str
    executor: str
    needs: tuple[str, ...]
    open: Callable[[Servers, Path], AbstractContextManager[Site]] = field(repr=False)
    slots: int | None = 2
    secret: str | None = None
    cancels_queued: bool = True
    cause: str = "."
    unknown_words: str = "."
    leaves: str | None = None
    seconds: float = 60.0

    def __str__(self) -> str:
        return self.name

    def config(self, site: Site, **more: Any) -> dict[str, Any]:
        """The ``executor_config``, with *more*."""
        security = (
            {} if self.secret is None else {"security": {"type": "signed", "secret": self.secret}}
        )
        return {**(site.config() if callable(site.config) else site.config), **security, **more}

    def environment(self, site: Site, **more: Any) -> dict[str, Any]:
        """An environment, with *more* in its ``executor_config``."""
        return {"executor": self.executor, "executor_config": self.config(site, **more)}


@contextmanager
def _working(
    folder: Path, command: Command, source: str = "", secret: str | None = None
) -> Iterator[list[Worker]]:
    """One worker, with a module ``contract_app`` of that source."""
    environ = {"WOVE_WORKER_SECRET": secret}
    modules = {"contract_app": source}
    with ExitStack() as stack:
        worker = Worker.start(command, folder, modules=modules, environ=environ, restarts=True)
        yield [stack.enter_context(worker)]


# --------------------------------------------------------------------------------------------------- celery

_CELERY = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("contract", broker={broker!r}, backend={results!r})
app.conf.update(task_default_queue={queue!r}, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
register(app)
"""


def celery(name: str, broker: str, pool: str, *, results: bool = False, **more: Any) -> Backend:
    """Celery on that broker, with a worker of that pool; with *results*, the broker is its result backend, too."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        url, queue = getattr(servers, broker).url, f"contract-{secrets.token_hex(4)}"
        command = workers.celery("contract_app", pool=pool)
        config = {"broker_url": url, "queue": queue, **({"result_backend": url} if results else {})}
        source = _CELERY.format(broker=url, queue=queue, results=config.get("result_backend"))
        with _working(folder, command, source, more.get("secret")) as found:
            yield Site(config, found, {"task_name": "no.such.task"})

    return Backend(
        name, "celery", ("celery", broker), opened, unknown_words="'no.such.task'", **more
    )


# -------------------------------------------------------------------------------------- rq, arq and taskiq


def rq(name: str, worker_class: str | None = None, **more: Any) -> Backend:
    """RQ, with two workers."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
        command = workers.rq(url, queue=queue, worker_class=worker_class)
        with ExitStack() as stack:
            found: list[Worker] = []
            for number in range(2):
                found += stack.enter_context(
                    _working(folder / str(number), command, secret=more.get("secret"))
                )
            yield Site({"redis_url": url, "queue_name": queue}, found)

    return Backend(name, "rq", ("rq",), opened, **more)


_ARQ = """
from arq.connections import RedisSettings
from wove.integrations.arq import worker_function

class WorkerSettings:
    functions = [worker_function()]
    redis_settings = RedisSettings.from_dsn({url!r})
    queue_name = {queue!r}
    allow_abort_jobs = True
    max_jobs = 2
    poll_delay = 0.05
"""


def arq(name: str, **more: Any) -> Backend:
    """ARQ, with one worker."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
        command = workers.arq("contract_app.WorkerSettings")
        with _working(
            folder, command, _ARQ.format(url=url, queue=queue), more.get("secret")
        ) as found:
            config = {"redis_settings": url, "queue_name": queue}
            yield Site(config, found, {"function_name": "no_such_function"})

    return Backend(
        name, "arq", ("arq",), opened, unknown_words="function 'no_such_function' not found", **more
    )


_TASKIQ = """
from taskiq_redis import {kind}
from wove.integrations.taskiq import register

# With redis-py 8, a broker that waits for more than five seconds otherwise ends with an error, and its process with it.
broker = {kind}({url!r}, queue_name={queue!r}, socket_timeout=None)
register(broker)
"""


def taskiq(name: str, kind: str, **more: Any) -> Backend:
    """Taskiq on Redis, with that broker and one worker of two processes."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        import taskiq_redis

        url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
        command = workers.taskiq(
            "contract_app:broker", "--max-async-tasks", "1", "--max-prefetch", "0"
        )
        with _working(
            folder, command, _TASKIQ.format(kind=kind, url=url, queue=queue), more.get("secret")
        ) as found:
            # A broker belongs to the event loop on which it is used.
            broker = getattr(taskiq_redis, kind)
            yield Site(
                lambda: {"broker": broker(url, queue_name=queue)},
                found,
                {"task_name": "no.such.task"},
            )

    return Backend(
        name, "taskiq", ("taskiq",), opened, unknown_words=r"knows no task 'no\.such\.task'", **more
    )


# ------------------------------------------------------------------------------------------------- clusters


def temporal(name: str, **more: Any) -> Backend:
    """Temporal, with the worker that Wove has for it."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        address, queue = servers.temporal.address, f"contract-{secrets.token_hex(4)}"
        options = ("--task-queue", queue, "--target-host", address, "--max-concurrent", "2")
        command = workers.module(
            "wove.integrations.temporal", *options, ready="takes runs from task queue"
        )
        with _working(folder, command, secret=more.get("secret")) as found:
            yield Site(
                {"target_host": address, "task_queue": queue}, found, {"workflow": "NoSuchWorkflow"}
            )

    return Backend(name, "temporal", ("temporal",), opened, **more)


def dask(name: str, **more: Any) -> Backend:
    """A Dask scheduler, with two workers of one thread."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        if secret := more.get("secret"):
            with dask_server.running(folder, environ={"WOVE_WORKER_SECRET": secret}) as cluster:
                yield Site({"address": cluster.address}, cluster.workers)
        else:
            yield Site({"address": servers.dask.address}, servers.dask.workers)

    return Backend(
        name, "dask", ("dask",), opened, cause="all those workers died while running it", **more
    )


def ray(name: str, **more: Any) -> Backend:
    """A Ray cluster of two CPUs, which starts worker processes as it likes, and anew for each connection.

    So the tests use one that is there; those of tests/services/test_ray.py have Wove make it.
    """

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        address = servers.ray.address
        import ray

        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        try:
            yield Site({"address": address})
        finally:
            ray.shutdown()

    # It holds connections to the workers of the cluster, for as long as it likes.
    more.setdefault("leaves", r" -> socket:")
    return Backend(name, "ray", ("ray",), opened, cause="The worker died unexpectedly", **more)


# ------------------------------------------------------------------------------- a job, a process of its own


def slurm(name: str, **more: Any) -> Backend:
    """A Slurm cluster of two CPUs."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in servers.slurm.environ.items():
                patch.setenv(variable, value)
            export = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            if secret := more.get("secret"):
                export["WOVE_WORKER_SECRET"] = secret
            yield Site({"export": export})

    return Backend(name, "slurm", ("slurm",), opened, cause="FAILED, .*signal SIGKILL", **more)


def kubernetes_jobs(name: str, **more: Any) -> Backend:
    """A cluster that runs two pods at a time."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        config = servers.kubernetes_jobs.config
        if secret := more.get("secret"):
            config["container"] = {"env": [{"name": "WOVE_WORKER_SECRET", "value": secret}]}
        yield Site(config)

    return Backend(
        name, "kubernetes_jobs", ("kubernetes_jobs",), opened, cause="exit code 137", **more
    )


def aws_batch(name: str, **more: Any) -> Backend:
    """A queue of AWS Batch that runs two jobs at a time."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        server, mark = servers.aws_batch, secrets.token_hex(4)
        queue = server.queue(f"contract-{mark}")
        command = ["python", "-m", "wove.backend_worker"]
        variables = (
            [{"name": "WOVE_WORKER_SECRET", "value": secret}]
            if (secret := more.get("secret"))
            else []
        )
        definition = server.definition(f"contract-{mark}", command, environment=variables)
        yield Site(
            {
                "client_options": server.client_options,
                "job_queue": queue,
                "job_definition": definition,
            }
        )

    return Backend(name, "aws_batch", ("aws_batch",), opened, **more)


# -------------------------------------------------------------------------------------------------- the rows

BACKENDS = (
    celery("celery-redis-prefork", "redis", "prefork", results=True, cause="SIGKILL"),
    celery("celery-rabbitmq-threads-signed", "rabbitmq", "threads", secret=SECRET),
    rq("rq", cause=r"signal 9"),
    rq("rq-simple-signed", "rq.worker.SimpleWorker", secret=SECRET),
    arq("arq"),
    taskiq("taskiq", "ListQueueBroker"),
    taskiq("taskiq-stream-signed", "RedisStreamBroker", secret=SECRET),
    temporal("temporal", unknown_words="NoSuchWorkflow is not registered"),
    temporal("temporal-signed", secret=SECRET, unknown_words="NoSuchWorkflow is not registered"),
    dask("dask"),
    dask("dask-signed", secret=SECRET),
    ray("ray"),
    slurm("slurm"),
    slurm("slurm-signed", secret=SECRET),
    kubernetes_jobs("kubernetes_jobs", seconds=120.0),
    kubernetes_jobs("kubernetes_jobs-signed", secret=SECRET, seconds=120.0),
    aws_batch("aws_batch", seconds=120.0),
    aws_batch("aws_batch-signed", secret=SECRET, seconds=120.0),
)


def parameters(backends: Sequence[Backend] = BACKENDS) -> list[Any]:
    """*backends* as the parameters of a fixture, each with what it needs."""
    return [
        pytest.param(
            backend,
            id=str(backend),
            marks=[pytest.mark.backend(*backend.needs), pytest.mark.timeout(backend.seconds)],
        )
        for backend in backends
    ]
