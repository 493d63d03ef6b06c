"""A worker service for the time of a block: ``wove worker http`` in a process of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def worker_service() -> Generator[dict[str, Any], None, None]:
    """Start it on this machine, give the ``executor_config`` that leads to it, and stop it in the end."""
    secret = secrets.token_urlsafe()
    command = [
        "worker",
        "http",
        "--bind",
        "127.0.0.1:0",
        "--security",
        "env:REPORT_SECRET",
        "--log-level",
        "warning",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "wove", *command],
        env={**os.environ, "REPORT_SECRET": secret},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            # The one line that it prints ends with its address.
            said = process.stdout.readline() if process.stdout is not None else ""
            if not said:
                raise SystemExit("the worker service did not start")
            yield {"url": said.split()[-1], "security": {"type": "signed", "secret": secret}}
        finally:
            process.terminate()
