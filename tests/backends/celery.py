"""Celery, on Redis and on RabbitMQ."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import SECRET, Backend, Mortal, Restarts, Site, packages, working
from tests.support import workers
from tests.support.servers import Servers
from tests.support.workers import Worker

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = packages("celery", "redis")  # its broker is asked for beside it

_APP = """
from celery import Celery
from wove.integrations.celery import register

app = Celery("contract", broker={broker!r}, backend={results!r})
app.conf.update({options})
register(app)
"""


def _contract(name: str, broker: str, pool: str, *, results: bool = False, **more: Any) -> Backend:
    """On that broker, with a worker of that pool; with *results*, the broker is its result backend, too."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        url, queue = getattr(servers, broker).url, f"contract-{secrets.token_hex(4)}"
        options = f"task_default_queue={queue!r}, worker_prefetch_multiplier=1, {_RETRY}"
        source = _APP.format(broker=url, results=url if results else None, options=options)
        config = {"broker_url": url, "queue": queue, **({"result_backend": url} if results else {})}
        command = workers.celery("contract_app", pool=pool)
        with working(folder, command, source, more.get("secret")) as found:
            yield Site(config, found, {"task_name": "no.such.task"})

    needs = ("celery", broker)
    return Backend(name, "celery", needs, opened, unknown_words="'no.such.task'", **more)


_RETRY = "broker_connection_retry_on_startup=True"

CONTRACT = (
    _contract("celery-redis-prefork", "redis", "prefork", results=True, cause="SIGKILL"),
    _contract("celery-rabbitmq-threads-signed", "rabbitmq", "threads", secret=SECRET),
)


def _restarts(broker: str) -> Restarts:
    """A prefork worker of two processes that takes eight messages in advance."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
        url, queue = getattr(servers, broker).url, f"mortal-{secrets.token_hex(4)}"
        options = f"task_default_queue={queue!r}, {_RETRY}"
        modules = {"mortal": _APP.format(broker=url, results=None, options=options)}
        command = workers.celery("mortal", "--without-mingle")
        with Worker.start(command, folder, modules=modules, restarts=True) as worker:
            config = {"broker_url": url, "queue": queue}
            yield {"executor": "celery", "executor_config": config}, worker

    return Restarts(f"celery-{broker}", ("celery", broker), opened)


RESTARTS = (_restarts("redis"), _restarts("rabbitmq"))
