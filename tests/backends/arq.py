"""ARQ."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import Backend, Mortal, Restarts, Site, packages, together, working
from tests.support import workers
from tests.support.servers import Servers, redis
from tests.support.workers import Worker

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages("arq"), redis.missing)

_SETTINGS = """
from arq.connections import RedisSettings
from wove.integrations.arq import worker_function

class WorkerSettings:
    functions = [worker_function()]
    redis_settings = RedisSettings.from_dsn({url!r})
    queue_name = {queue!r}
    poll_delay = 0.05
    {more}
"""


@contextmanager
def _contract(servers: Servers, folder: Path) -> Iterator[Site]:
    """One worker of two jobs at a time."""
    url, queue = servers.redis.url, f"contract-{secrets.token_hex(4)}"
    source = _SETTINGS.format(url=url, queue=queue, more="allow_abort_jobs = True; max_jobs = 2")
    with working(folder, workers.arq("contract_app.WorkerSettings"), source) as found:
        config = {"redis_settings": url, "queue_name": queue}
        yield Site(config, found, {"function_name": "no_such_function"})


@contextmanager
def _restarts(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """A worker of ten jobs at a time."""
    url, queue = servers.redis.url, f"mortal-{secrets.token_hex(4)}"
    modules = {"mortal": _SETTINGS.format(url=url, queue=queue, more="")}
    command = workers.arq("mortal.WorkerSettings")
    with Worker.start(command, folder, modules=modules, restarts=True) as worker:
        config = {"redis_settings": url, "queue_name": queue}
        yield {"executor": "arq", "executor_config": config}, worker


_UNKNOWN = "function 'no_such_function' not found"

CONTRACT = (Backend("arq", "arq", ("arq",), _contract, unknown_words=_UNKNOWN),)
RESTARTS = (Restarts("arq", ("arq",), _restarts),)
