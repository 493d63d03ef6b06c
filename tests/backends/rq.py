"""RQ, with workers that fork for each job, and with ones that do not."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.backends import (
    SECRET,
    Backend,
    Mortal,
    Restarts,
    Site,
    packages,
    together,
    working,
)
from tests.support import workers
from tests.support.servers import Servers, redis
from tests.support.workers import Worker

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages("rq"), redis.missing)

SIMPLE = "rq.worker.SimpleWorker"


def _contract(name: str, worker_class: str | None = None, **more: Any) -> Backend:
    """With two workers."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
        command = workers.rq(url, queue=queue, worker_class=worker_class)
        with ExitStack() as stack:
            found: list[Worker] = []
            for number in range(2):
                one = working(folder / str(number), command, secret=more.get("secret"))
                found += stack.enter_context(one)
            yield Site({"redis_url": url, "queue_name": queue}, found)

    return Backend(name, "rq", ("rq",), opened, **more)


CONTRACT = (
    _contract("rq", cause=r"signal 9"),
    _contract("rq-simple-signed", SIMPLE, secret=SECRET),
)


def _restarts(name: str, worker_class: str | None = None, **more: Any) -> Restarts:
    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
        command = workers.rq(url, queue=queue, worker_class=worker_class)
        with Worker.start(command, folder, restarts=True) as worker:
            config = {"redis_url": url, "queue_name": queue}
            yield {"executor": "rq", "executor_config": config}, worker

    return Restarts(name, ("rq",), opened, **more)


RESTARTS = (
    _restarts("rq-simple", SIMPLE),
    _restarts("rq", runs=150),  # a process for each run
)
