"""A Ray cluster of one node, to be joined by its address."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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


_NODE = """
import types
from ray.scripts import scripts

scripts.ray_constants = types.SimpleNamespace(**vars(scripts.ray_constants) | {"ENABLE_RAY_CLUSTER": True})
scripts.main()
"""
"""The command line of Ray, which adds no node to a cluster that stays on 127.0.0.1, and does here (ray/scripts/
scripts.py, `start`)."""


@dataclass(frozen=True)
class Ray:
    """A cluster that runs.

    Attributes:
        kept: ``ray start --block``, whose children the rest of it are.
        port: Where it listens.
        path: The folder from which its workers import tasks, beside what is installed.
    """

    kept: Kept
    port: int
    path: Path | None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def node(self, folder: Path, *options: str) -> Iterator[Kept]:
        """One more node, of one CPU; it ends with the block.

        Args:
            folder: Of its own.
            options: More of its command line.
        """
        options = ("--address", self.address, "--num-cpus", "1", *options)
        with _started(
            "ray node", folder, [sys.executable, "-c", _NODE], options, self.path, {}
        ) as kept:
            yield kept


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    return None if importlib.util.find_spec("ray") else "the package ray is not installed"


@contextmanager
def running(
    folder: Path,
    *,
    port: int | None = None,
    path: Path | None = ROOT,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Ray]:
    """A cluster of two CPUs that is up; it ends with the block. This process has what `ENVIRON` says meanwhile.

    Args:
        folder: Of its own.
        port: Default: one that is free.
        path: The folder from which its workers import tasks, beside what is installed.
        environ: More environment variables of its processes.
    """
    port = port or free_port()
    where = [
        "--head",
        "--port",
        str(port),
        "--ray-client-server-port",
        str(free_port()),
        "--num-cpus",
        "2",
    ]
    before = {name: os.environ.get(name) for name in ENVIRON}
    options = [*where, "--include-dashboard", "False"]
    with _started("ray", folder, [of_this_venv("ray")], options, path, environ or {}) as kept:
        os.environ.update(ENVIRON)
        try:
            yield Ray(kept, port, path)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _started(
    name: str,
    folder: Path,
    ray: list[str],
    options: Sequence[str],
    path: Path | None,
    environ: Mapping[str, str],
) -> Iterator[Kept]:
    folder.mkdir(parents=True, exist_ok=True)
    # The paths of its sockets have to fit in 107 characters (unix(7)), and they begin with this.
    short = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    command = [*ray, "start", "--block", *options, "--node-ip-address", "127.0.0.1"]
    command += [
        "--object-store-memory",
        str(400 << 20),
        "--disable-usage-stats",
        "--temp-dir",
        str(short),
    ]
    variables = {
        **ENVIRON,
        "HOME": str(folder),
        "PYTHONPATH": None if path is None else str(path),
        **environ,
    }
    kept = keep(name, command, folder, environ=variables, cwd=folder)
    try:
        kept.until(lambda: "Ray runtime started" in kept.log(), "is up")
        yield kept
    finally:
        kept.stop(now=True)  # asked nicely, it waits for its workers to drain
        shutil.rmtree(short, ignore_errors=True)
