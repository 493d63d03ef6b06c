"""Taskiq on Redis, with two kinds of broker."""

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
from tests.support.servers import Servers, redis
from tests.support.workers import Worker

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages("taskiq", "taskiq_redis"), redis.missing)

_APP = """
from taskiq_redis import {kind}
from wove.integrations.taskiq import register

# With redis-py 8, a broker that waits for more than five seconds otherwise ends with an error, and its process with it.
broker = {kind}({url!r}, queue_name={queue!r}, socket_timeout=None, **{options})
register(broker)
"""


def _contract(name: str, kind: str, **more: Any) -> Backend:
    """With that broker and one worker of two processes."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        import taskiq_redis

        url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
        source = _APP.format(kind=kind, url=url, queue=queue, options={})
        command = workers.taskiq(
            "contract_app:broker", "--max-async-tasks", "1", "--max-prefetch", "0"
        )
        with working(folder, command, source, more.get("secret")) as found:
            # A broker belongs to the event loop on which it is used.
            broker = getattr(taskiq_redis, kind)
            yield Site(
                lambda: {"broker": broker(url, queue_name=queue)},
                found,
                {"task_name": "no.such.task"},
            )

    unknown = r"knows no task 'no\.such\.task'"
    return Backend(name, "taskiq", ("taskiq",), opened, unknown_words=unknown, **more)


CONTRACT = (
    _contract("taskiq", "ListQueueBroker"),
    _contract("taskiq-stream-signed", "RedisStreamBroker", secret=SECRET),
)


def _restarts(name: str, kind: str, **options: Any) -> Restarts:
    """With that broker, and a worker of two processes."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        import taskiq_redis

        url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
        modules = {"mortal": _APP.format(kind=kind, url=url, queue=queue, options=options)}
        command = workers.taskiq("mortal:broker")
        with Worker.start(command, folder, modules=modules, restarts=True) as worker:
            broker = getattr(taskiq_redis, kind)(url, queue_name=queue, **options)
            yield {"executor": "taskiq", "executor_config": {"broker": broker}}, worker

    return Restarts(name, ("taskiq",), opened)


RESTARTS = (
    _restarts("taskiq-list", "ListQueueBroker"),
    # What a worker has fetched and not begun, another one takes over: after ten minutes, unless it is told otherwise.
    # The lock under which it does that outlives a worker that is killed in between.
    _restarts(
        "taskiq-stream", "RedisStreamBroker", idle_timeout=5000, unacknowledged_lock_timeout=5
    ),
)
