"""A queue of AWS Batch that runs two jobs at a time. Each job is a process of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import SECRET, Backend, Restarts, Site, packages, together
from tests.support.servers import Servers, aws_batch

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), aws_batch.missing)


def _contract(name: str, **more: Any) -> Backend:
    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        server, mark = servers.aws_batch, secrets.token_hex(4)
        queue = server.queue(f"contract-{mark}")
        command = ["python", "-m", "wove.backend_worker"]
        secret = more.get("secret")
        variables = [{"name": "WOVE_WORKER_SECRET", "value": secret}] if secret else []
        definition = server.definition(f"contract-{mark}", command, environment=variables)
        yield Site(
            {
                "client_options": server.client_options,
                "job_queue": queue,
                "job_definition": definition,
            }
        )

    return Backend(name, "aws_batch", ("aws_batch",), opened, **more)


CONTRACT = (
    _contract("aws_batch"),
    _contract("aws_batch-signed", secret=SECRET, signed_twin=True),
)
RESTARTS: tuple[Restarts, ...] = ()
