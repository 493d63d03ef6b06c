"""Temporal, with the worker that Wove has for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from tests.support.servers import Servers, temporal
from tests.support.workers import Command, Worker

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), temporal.missing)


def _worker(address: str, queue: str, at_once: int) -> Command:
    options = ("--task-queue", queue, "--target-host", address, "--max-concurrent", str(at_once))
    ready = "takes runs from task queue"
    return workers.module("wove.integrations.temporal", *options, ready=ready)


def _contract(name: str, **more: Any) -> Backend:
    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        address, queue = servers.temporal.address, f"contract-{secrets.token_hex(4)}"
        with working(folder, _worker(address, queue, 2), secret=more.get("secret")) as found:
            config = {"target_host": address, "task_queue": queue}
            yield Site(config, found, {"workflow": "NoSuchWorkflow"})

    unknown = "NoSuchWorkflow is not registered"
    return Backend(name, "temporal", ("temporal",), opened, unknown_words=unknown, **more)


@contextmanager
def _restarts(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    address, queue = servers.temporal.address, f"mortal-{secrets.token_hex(4)}"
    with Worker.start(_worker(address, queue, 20), folder, restarts=True) as worker:
        config = {"target_host": address, "task_queue": queue}
        yield {"executor": "temporal", "executor_config": config}, worker


CONTRACT = (
    _contract("temporal"),
    _contract("temporal-signed", secret=SECRET, signed_twin=True),
)
# It takes several seconds to hand out again what a death has left.
RESTARTS = (Restarts("temporal", ("temporal",), _restarts, runs=250, seconds=900),)
