"""A Ray cluster of one node, to be joined by its address."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kept import ROOT, Kept, free_port, keep
from tests.support.servers._ready import of_this_venv

__all__ = ["ENVIRON", "Ray", "missing", "running"]

ENVIRON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    # What Ray does on desktops: it stays on 127.0.0.1, and listens nowhere else. Elsewhere it finds and uses the
    # machine's own address, whatever --node-ip-address says (ray/_private/services.py, get_node_ip_address).
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""What drivers must have in their environment, too, before they import ray."""


@dataclass(frozen=True)
class Ray:
    """A cluster that runs.

    Attributes:
        kept: ``ray start --block``, whose children the rest of it are.
        port: Where it listens.
    """

    kept: Kept
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    return None if importlib.util.find_spec("ray") else "the package ray is not installed"


@contextmanager
def running(folder: Path, *, port: int | None = None, path: Path | None = ROOT) -> Iterator[Ray]:
    """A cluster of two CPUs that is up; it ends with the block. This process has what `ENVIRON` says meanwhile.

    Args:
        folder: Of its own.
        port: Default: one that is free.
        path: The folder from which its workers import tasks, beside what is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    # The paths of its sockets have to fit in 107 characters (unix(7)), and they begin with this.
    short = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    where = ["--node-ip-address", "127.0.0.1", "--port", str(port), "--ray-client-server-port", str(free_port())]
    size = ["--num-cpus", "2", "--object-store-memory", str(400 << 20)]
    quiet = ["--include-dashboard", "False", "--disable-usage-stats", "--temp-dir", str(short)]
    command = [of_this_venv("ray"), "start", "--head", "--block", *where, *size, *quiet]
    environ = {**ENVIRON, "HOME": str(folder), "PYTHONPATH": None if path is None else str(path)}
    before = {name: os.environ.get(name) for name in ENVIRON}
    kept = keep("ray", command, folder, environ=environ, cwd=folder)
    try:
        kept.until(lambda: "Ray runtime started" in kept.log(), "is up")
        os.environ.update(ENVIRON)
        yield Ray(kept, port)
    finally:
        kept.stop(now=True)  # asked nicely, it waits for its workers to drain
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(short, ignore_errors=True)
