"""A Kubernetes cluster that runs two pods at a time. Each job is a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends import SECRET, Backend, Restarts, Site, packages, together
from tests.support.servers import Servers, kubernetes_jobs

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), kubernetes_jobs.missing)


def _contract(name: str, **more: Any) -> Backend:
    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        config = servers.kubernetes_jobs.config
        if secret := more.get("secret"):
            config["container"] = {"env": [{"name": "WOVE_WORKER_SECRET", "value": secret}]}
        yield Site(config)

    needs = ("kubernetes_jobs",)
    return Backend(name, "kubernetes_jobs", needs, opened, cause="exit code 137", **more)


CONTRACT = (
    _contract("kubernetes_jobs"),
    _contract("kubernetes_jobs-signed", secret=SECRET, signed_twin=True),
)
RESTARTS: tuple[Restarts, ...] = ()
