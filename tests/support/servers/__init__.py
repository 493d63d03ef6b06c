"""The servers of the backends: each in processes of its own, on loopback, in a temporary folder.

One module each, and all of them alike: ``missing()`` says why the server cannot run here, ``running(folder)`` is a
context in which it runs and is ready. Most know where their clients find it (``url``, ``address``).

The fixture `servers` starts each when the first test asks for it, and stops it when the session is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar, cast

import pytest

from tests.support.servers import (
    aws_batch,
    dask,
    kubernetes_jobs,
    rabbitmq,
    ray,
    redis,
    slurm,
    temporal,
)

__all__ = ["Servers", "servers"]

T = TypeVar("T")


class Servers:
    """The session's servers, each started when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._started: dict[str, object] = {}

    @property
    def redis(self) -> redis.Redis:
        return self._get("redis", redis.running)

    @property
    def rabbitmq(self) -> rabbitmq.RabbitMQ:
        return self._get("rabbitmq", rabbitmq.running)

    @property
    def temporal(self) -> temporal.Temporal:
        return self._get("temporal", temporal.running)

    @property
    def slurm(self) -> slurm.Slurm:
        return self._get("slurm", slurm.running)

    @property
    def dask(self) -> dask.Dask:
        return self._get("dask", dask.running)

    @property
    def ray(self) -> ray.Ray:
        return self._get("ray", ray.running)

    @property
    def aws_batch(self) -> aws_batch.AWSBatch:
        return self._get("aws_batch", aws_batch.running)

    @property
    def kubernetes_jobs(self) -> kubernetes_jobs.KubernetesJobs:
        return self._get("kubernetes_jobs", kubernetes_jobs.running)

    def _get(self, name: str, running: Callable[[Path], AbstractContextManager[T]]) -> T:
        if name not in self._started:
            self._started[name] = self._stack.enter_context(running(self.folder / name))
        return cast("T", self._started[name])

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Each server, started when a test asks for it: ``servers.redis.url``."""
    found = Servers(tmp_path_factory.mktemp("servers"))
    yield found
    found.stop()
