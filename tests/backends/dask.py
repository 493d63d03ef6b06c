"""A Dask scheduler and its workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import SECRET, Backend, Mortal, Restarts, Site, packages, together
from tests.support.kept import Kept
from tests.support.servers import Servers, dask

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), dask.missing)


def _contract(name: str, **more: Any) -> Backend:
    """With two workers of one thread."""

    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        if secret := more.get("secret"):
            with dask.running(folder, environ={"WOVE_WORKER_SECRET": secret}) as cluster:
                yield Site({"address": cluster.address}, cluster.workers)
        else:
            yield Site({"address": servers.dask.address}, servers.dask.workers)

    cause = "all those workers died while running it"
    return Backend(name, "dask", ("dask",), opened, cause=cause, **more)


class DaskWorker:
    """A worker of Dask, with its nanny; both are started again."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.kill_all = kept.kill_all

    def ready(self) -> None:
        self._kept.until(lambda: "Registered to:" in self._kept.latest_log(), "is registered")


@contextmanager
def _restarts(servers: Servers, folder: Path) -> Iterator[tuple[Mapping[str, Any], Mortal]]:
    """One worker of one thread."""
    with dask.running(folder, workers=1) as cluster:
        config = {"executor": "dask", "executor_config": {"address": cluster.address}}
        yield config, DaskWorker(cluster.workers[0])


CONTRACT = (
    _contract("dask"),
    _contract("dask-signed", secret=SECRET, signed_twin=True),
)
RESTARTS = (Restarts("dask", ("dask",), _restarts),)
