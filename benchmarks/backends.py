"""The backends, each beside its own way to hand out work and wait for the result, with the same server and worker.

A backend is one more row in `ROWS`: how it is opened, and what its native way is. Servers and workers are those of the
tests, started as users start them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from tests.support import workers
from tests.support.kept import Kept
from tests.support.servers import (
    dask as servers_dask,
    ray as servers_ray,
    redis,
    slurm as slurm_server,
    temporal as servers_temporal,
)
from tests.support.workers import Command, Worker

import wove
from wove import weave

from .children import backend
from .gaps import ELAPSED, SUBJECT, gap_probe
from .harness import Figure, Probe, Target, Values, benchmark, timed

MANY: Final = 1_000
CALLS: Final = 5

SMALL: Final = """
def small(item):
    return item
"""
"""A module of the worker's, for the native way; what weaves hand out goes by value."""


@dataclass(frozen=True)
class Native:
    """A backend that runs, with a worker.

    Attributes:
        executor: The built-in executor's name.
        config: Its ``executor_config``: JSON, because other processes get it as well.
        one: Hands out one small task, and waits for its result.
        many: Ways to hand out one for each item, and to wait for all results.
        server: The process of its server.
        pause: Seconds after which a worker that has ended one task waits for the next.
    """

    executor: str
    config: Mapping[str, Any]
    one: Callable[[int], int]
    many: Mapping[str, Callable[[Sequence[int]], list[int]]] = field(repr=False)
    server: Kept = field(repr=False)
    pause: float = 0.02


def weave_one(item: int) -> int:
    with weave(environment="backend", item=item) as w:

        @w.do
        def small(item: int) -> int:
            return item

    return int(w.result.small)


def weave_many(items: Sequence[int]) -> Any:
    with weave(environment="backend") as w:

        @w.do(items)
        def small(item: int) -> int:
            return item

    return w.result.small


def alone(label: str, work: Callable[[int], int], pause: float) -> Probe:
    """The seconds of one call, each with the worker at rest before it: the median of a few."""

    def probe() -> Values:
        seconds: list[float] = []
        gc.collect()
        for number in range(CALLS):
            time.sleep(pause)
            begin = perf_counter()
            answer = work(number)
            seconds.append(perf_counter() - begin)
            assert answer == number, f"{label}: {answer!r}"
        return {label: statistics.median(seconds)}

    return probe


@contextmanager
def configured(native: Native) -> Iterator[None]:
    wove.config(environments={"backend": backend(native.executor, native.config)})
    try:
        yield
    finally:
        wove.shutdown()


# ------------------------------------------------------------------------------------------------------- rq


@contextmanager
def rq(worker_class: str | None = None) -> Iterator[Native]:
    """RQ on Redis: `enqueue` and `latest_result`, which blocks until there is one."""
    from redis import Redis
    from rq import Queue

    command = partial(workers.rq, worker_class=worker_class)
    with on_redis(command, SMALL) as server, Redis.from_url(server.url) as client:
        queue = Queue(connection=client)

        def results(jobs: Sequence[Any]) -> list[int]:
            return [job.latest_result(timeout=60).return_value for job in jobs]

        def many(items: Sequence[int]) -> list[int]:
            return results([queue.enqueue("app.small", item) for item in items])

        def at_once(items: Sequence[int]) -> list[int]:
            return results(
                queue.enqueue_many([Queue.prepare_data("app.small", (item,)) for item in items])
            )

        yield Native(
            "rq",
            {"redis_url": server.url},
            lambda item: many([item])[0],
            {"enqueue": many, "enqueue_many": at_once},
            server.kept,
            0.2 if worker_class is None else 0.02,
        )


# --------------------------------------------------------------------------------------------------- celery

CELERY: Final = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("app", broker={url!r}, backend={url!r})
register(app)

@app.task(name="app.small")
def small(item):
    return item
"""


@contextmanager
def celery() -> Iterator[Native]:
    """Celery on Redis, which is its result backend too: `delay` and `group`, each with `get`."""
    from celery import Celery, group

    with on_redis(lambda url: workers.celery("app"), CELERY) as server:
        app = Celery("app", broker=server.url, backend=server.url, set_as_current=False)

        @app.task(name="app.small")
        def small(item: int) -> int:
            return item

        def many(items: Sequence[int]) -> list[int]:
            found = group(small.s(item) for item in items)().get(timeout=60)
            assert isinstance(found, list)
            return found

        try:
            yield Native(
                "celery",
                {"broker_url": server.url, "result_backend": server.url},
                lambda item: int(small.delay(item).get(timeout=60)),
                {"group": many},
                server.kept,
            )
        finally:
            app.close()


# ----------------------------------------------------------------------------------------------------- arq

ARQ: Final = """
from arq.connections import RedisSettings
from wove.integrations.arq import worker_function

async def small(ctx, item):
    return item

class WorkerSettings:
    functions = [small, worker_function()]
    redis_settings = RedisSettings.from_dsn({url!r})
    poll_delay = POLL
"""


@contextmanager
def arq(poll: float) -> Iterator[Native]:
    """ARQ: `enqueue_job` and `result`. Its worker and that look for what is new every *poll* seconds."""
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.jobs import ResultNotFound

    command, source = workers.arq("app.WorkerSettings"), ARQ.replace("POLL", str(poll))
    with on_redis(lambda url: command, source) as server, asyncio.Runner() as runner:
        pool = runner.run(create_pool(RedisSettings.from_dsn(server.url)))
        pool.connection_pool.max_connections = (
            2 * MANY
        )  # it takes one for each job that is waited for

        async def one(item: int) -> int:
            job = await pool.enqueue_job("small", item)
            assert job is not None
            while True:
                try:
                    return int(await job.result(poll_delay=poll))
                except (
                    ResultNotFound
                ):  # ARQ 0.25 does not look for it and for the job at the same time
                    continue

        async def many(items: Sequence[int]) -> list[int]:
            return await asyncio.gather(*map(one, items))

        try:
            yield Native(
                "arq",
                {"redis_settings": server.url},
                lambda item: runner.run(one(item)),
                {"gather": lambda items: runner.run(many(items))},
                server.kept,
            )
        finally:
            runner.run(pool.aclose(close_connection_pool=True))


# --------------------------------------------------------------------------------------------------- taskiq

TASKIQ: Final = """
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from wove.integrations.taskiq import register

broker = ListQueueBroker({url!r}, socket_timeout=None).with_result_backend(RedisAsyncResultBackend({url!r}))
register(broker)

@broker.task(task_name="app.small")
async def small(item: int) -> int:
    return item
"""


@contextmanager
def taskiq() -> Iterator[Native]:
    """Taskiq on a list in Redis, which has the results, too: `kiq` and `wait_result`, which looks every 0.2 s."""
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

    with (
        on_redis(lambda url: workers.taskiq("app:broker"), TASKIQ) as server,
        asyncio.Runner() as runner,
    ):
        broker = ListQueueBroker(server.url).with_result_backend(
            RedisAsyncResultBackend(server.url)
        )

        @broker.task(task_name="app.small")
        async def small(item: int) -> int:
            return item

        async def one(item: int) -> int:
            return int((await (await small.kiq(item)).wait_result()).return_value)

        async def many(items: Sequence[int]) -> list[int]:
            return await asyncio.gather(*map(one, items))

        runner.run(broker.startup())
        try:
            yield Native(
                "taskiq",
                {"broker": server.url},
                lambda item: runner.run(one(item)),
                {"gather": lambda items: runner.run(many(items))},
                server.kept,
            )
        finally:
            runner.run(broker.shutdown())


@contextmanager
def on_redis(command: Callable[[str], Command], source: str) -> Iterator[redis.Redis]:
    """A Redis, and a worker with a module ``app`` of that source, which may have a ``{url!r}`` in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            redis.running(folder / "redis") as server,
            Worker.start(
                command(server.url),
                folder / "worker",
                modules={"app": source.replace("{url!r}", repr(server.url))},
            ),
        ):
            yield server


# ------------------------------------------------------------------------------------------------- temporal

TEMPORAL: Final = """
import asyncio
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from wove.integrations.temporal import activities, workflows


@workflow.defn(sandboxed=False)
class Small:
    @workflow.run
    async def run(self, item: int) -> int:
        return await workflow.execute_activity(
            "small", item, start_to_close_timeout=timedelta(days=1), heartbeat_timeout=timedelta(seconds=10)
        )


@activity.defn
async def small(item: int) -> int:
    return item


async def main(address: str) -> None:
    client = await Client.connect(address)
    worker = Worker(
        client, task_queue="small", workflows=[Small, *workflows()], activities=[small, *activities()]
    )
    async with worker:
        print("takes runs", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
"""


@contextmanager
def temporal() -> Iterator[Native]:
    """Temporal: `execute_workflow` of a workflow that is equal to Wove's but for the payload."""
    from temporalio.client import Client

    with tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner:
        folder = Path(name)
        with servers_temporal.running(folder / "temporal") as server:
            command = workers.module("app", server.address, ready="takes runs")
            with Worker.start(command, folder / "worker", modules={"app": TEMPORAL}):
                client = runner.run(Client.connect(server.address))

                async def one(item: int) -> int:
                    name = f"small-{uuid.uuid4().hex}"
                    return int(
                        await client.execute_workflow("Small", item, id=name, task_queue="small")
                    )

                # All at once, it is slower, and the server refuses some: "Namespace default is not found".
                async def many(items: Sequence[int], bound: int) -> list[int]:
                    room = asyncio.Semaphore(bound)

                    async def in_turn(item: int) -> int:
                        async with room:
                            return await one(item)

                    return await asyncio.gather(*map(in_turn, items))

                yield Native(
                    "temporal",
                    {"target_host": server.address, "task_queue": "small"},
                    lambda item: runner.run(one(item)),
                    {
                        "gather, 32 at a time": lambda items: runner.run(many(items, 32)),
                        "gather, 200 at a time": lambda items: runner.run(many(items, 200)),
                    },
                    server.kept,
                )


# -------------------------------------------------------------------------------------------- dask and ray


@contextmanager
def dask() -> Iterator[Native]:
    """Dask with two workers of one thread: `submit` and `result`, `map` and `gather`."""
    from distributed import Client

    with (
        tempfile.TemporaryDirectory() as name,
        servers_dask.running(Path(name)) as cluster,
        Client(cluster.address, set_as_default=False) as client,
    ):

        def small(item: int) -> int:  # by value
            return item

        def many(items: Sequence[int]) -> list[int]:
            return client.gather(client.map(small, items, pure=False))

        def one_by_one(items: Sequence[int]) -> list[int]:
            return client.gather([client.submit(small, item, pure=False) for item in items])

        yield Native(
            "dask",
            {"address": cluster.address},
            lambda item: client.submit(small, item, pure=False).result(),
            {"map": many, "submit": one_by_one},
            cluster.scheduler,
        )


@contextmanager
def ray() -> Iterator[Native]:
    """Ray on two CPUs: `remote` and `ray.get`."""
    with tempfile.TemporaryDirectory() as name, servers_ray.running(Path(name)) as cluster:
        import ray as native

        native.init(cluster.address, log_to_driver=False, logging_level="WARNING")
        try:

            @native.remote(max_retries=0)
            def small(item: int) -> int:
                return item

            def many(items: Sequence[int]) -> list[int]:
                return native.get([small.remote(item) for item in items])

            yield Native(
                "ray",
                {},
                lambda item: native.get(small.remote(item)),
                {"remote": many},
                cluster.kept,
            )
        finally:
            native.shutdown()


# ----------------------------------------------------------------------------------------------- the figures

ROWS: Final[dict[str, Callable[[], AbstractContextManager[Native]]]] = {
    "rq, SimpleWorker": partial(rq, "rq.worker.SimpleWorker"),
    "rq, forking": rq,
    "celery": celery,
    "arq": partial(arq, 0.5),
    "arq, polling every 10 ms": partial(arq, 0.01),
    "taskiq": taskiq,
    "temporal": temporal,
    "dask": dask,
    "ray": ray,
}
LATENCY_LIMITS: Final = {"temporal": 1.1, "dask": 1.5, "ray": 1.5}
"""What is promised for one task over backends that start one faster than Wove's events make their way back."""
SMALL_LIMITS: Final = {"temporal": 1.2, "dask": 1.5, "ray": 1.5}
"""What is promised for many."""


@benchmark("backend-latency")
def latencies() -> Iterator[Figure]:
    """One small task on a backend, and its result."""
    for name, opened in ROWS.items():
        with opened() as native, configured(native):
            probes = [
                alone("wove", weave_one, native.pause),
                alone("native", native.one, native.pause),
            ]
            yield Figure(
                f"{name}: one small task", "wove", probes, Target(LATENCY_LIMITS.get(name, 1.0))
            )


@benchmark("backend-small")
def small_tasks() -> Iterator[Figure]:
    """Many small tasks, mapped, beside the native way to hand out as many."""
    items = list(range(MANY))
    for name, opened in ROWS.items():
        with opened() as native, configured(native):
            probes = [timed("wove", partial(weave_many, items), expect=items)]
            probes += [
                timed(label, partial(work, items), expect=items)
                for label, work in native.many.items()
            ]
            yield Figure(
                f"{name}: {MANY:,} small tasks",
                "wove",
                probes,
                Target(SMALL_LIMITS.get(name, 1.3)),
                rounds=7,
            )


@benchmark("backend-gap")
def gaps() -> Iterator[Figure]:
    """The longest gap of the loop while many tasks are handed out, and while the server does not answer."""
    for name, opened in ROWS.items():
        with opened() as native:
            arguments = (native.executor, json.dumps(native.config))
            for what, function, number in (
                (f"{MANY:,} small tasks are handed out", "hand_out", MANY),
                ("its server does not answer", "hand_out_to_nobody", native.server.pid),
            ):
                probe = gap_probe(function, number, *arguments)
                yield Figure(
                    f"{name}: {what}",
                    SUBJECT,
                    [probe],
                    Target(0.1, "over by"),
                    aside=(ELAPSED,),
                    rounds=5,
                )


@benchmark("backend-again")
def again() -> Iterator[Figure]:
    """The first weave of an environment, and its second."""
    for name, opened in ROWS.items():
        with opened() as native:

            def probe(native: Native = native) -> Values:
                with configured(native):
                    seconds = [timed("", partial(weave_one, 1))()[""] for _ in range(2)]
                return {"second": seconds[1], "first": seconds[0]}

            yield Figure(f"{name}: the second weave", "second", [probe])


# ------------------------------------------------------------------------------ a job, a process of its own

JOBS: Final = 100

STORED: Final = """
import json, sys

def small(item):
    return item

with open(sys.argv[2], "w") as file:
    json.dump(small(int(sys.argv[1])), file)
"""
"""The same task as a script: its result is in a file."""

PICKLED: Final = """
import pickle, sys
import cloudpickle

with open(sys.argv[1], "rb") as file:
    function, item = pickle.load(file)
with open(sys.argv[2], "wb") as file:
    cloudpickle.dump(function(item), file)
"""
"""As a script for any task: function and argument are in one file, the result in another one."""


@contextmanager
def slurm() -> Iterator[Native]:
    """Slurm on two CPUs: `sbatch` for each task, and `squeue` until there are no more."""
    import cloudpickle

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with slurm_server.running(folder / "slurm") as cluster:
            os.environ.update(cluster.environ)
            (folder / "stored.py").write_text(STORED)
            (folder / "pickled.py").write_text(PICKLED)

            def submit(script: str, *arguments: object) -> None:
                line = f"#!/bin/sh\nexec {sys.executable} {folder}/{script} {' '.join(map(str, arguments))}\n"
                command = ["sbatch", "--parsable", "--output=/dev/null"]
                subprocess.run(
                    command, input=line, text=True, stdout=subprocess.DEVNULL, check=True
                )

            def wait() -> None:
                while cluster.jobs():
                    time.sleep(0.1)

            def stored(items: Sequence[int]) -> list[int]:
                for item in items:
                    submit("stored.py", item, folder / f"result-{item}")
                wait()
                return [json.loads((folder / f"result-{item}").read_text()) for item in items]

            def pickled(items: Sequence[int]) -> list[int]:
                def small(item: int) -> int:
                    return item

                for item in items:
                    (folder / f"task-{item}").write_bytes(cloudpickle.dumps((small, item)))
                    submit("pickled.py", folder / f"task-{item}", folder / f"result-{item}")
                wait()
                return [pickle.loads((folder / f"result-{item}").read_bytes()) for item in items]

            many = {
                "sbatch, a pickle in a file": pickled,
                "sbatch, a script for this task alone": stored,
            }
            yield Native("slurm", {}, lambda item: stored([item])[0], many, cluster.controller)


@benchmark("backend-jobs")
def jobs() -> Iterator[Figure]:
    """Many tasks that are a job each, beside the native way to submit as many and to wait for them."""
    items = list(range(JOBS))
    with slurm() as native, configured(native):
        probes = [timed("wove", partial(weave_many, items), expect=items)]
        probes += [
            timed(label, partial(work, items), expect=items) for label, work in native.many.items()
        ]
        yield Figure(f"slurm: {JOBS} tasks", "wove", probes, Target(1.3), rounds=3, warm_up=False)
