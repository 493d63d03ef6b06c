"""A Ray cluster of two CPUs, which starts worker processes as it likes, and anew for each connection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import Backend, Mortal, Restarts, Site, packages, together
from tests.support.kept import Kept, kill
from tests.support.servers import Servers, ray as ray_server

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), ray_server.missing)


@contextmanager
def _contract(servers: Servers, folder: Path) -> Iterator[Site]:
    """A connection that is there, as each new one starts workers anew; in test_ray.py, Wove makes it."""
    address = servers.ray.address
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    try:
        yield Site({"address": address})
    finally:
        ray.shutdown()


class RayWorkers:
    """The worker processes of a Ray cluster, which starts others."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def ready(self) -> None:
        self._kept.until(self._pids, "has worker processes")

    def kill_all(self) -> None:
        for pid in self._pids():
            kill(pid)

    def _pids(self) -> list[int]:
        # The node's agents call themselves alike, and the node does not outlive them.
        worker = re.compile(r"\(ray::(?!Dashboard|RuntimeEnv)")
        return [pid for pid, name in self._kept.processes().items() if worker.search(name)]


@contextmanager
def _restarts(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    with ray_server.running(folder) as cluster:
        config = {"executor": "ray", "executor_config": {"address": cluster.address}}
        yield config, RayWorkers(cluster.kept)


CONTRACT = (
    Backend(
        "ray",
        "ray",
        ("ray",),
        _contract,
        cause="The worker died unexpectedly",
        leaves=r" -> socket:",  # its connections to the workers of the cluster, for as long as it likes
    ),
)
RESTARTS = (Restarts("ray", ("ray",), _restarts),)
