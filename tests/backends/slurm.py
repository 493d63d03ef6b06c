"""A Slurm cluster of two CPUs. Each job is a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.backends import SECRET, Backend, Restarts, Site, packages, together
from tests.support.kept import ROOT
from tests.support.servers import Servers, slurm

__all__ = ["CONTRACT", "RESTARTS", "missing"]

missing = together(packages(), slurm.missing)


def _contract(name: str, **more: Any) -> Backend:
    @contextmanager
    def opened(servers: Servers, folder: Path) -> Iterator[Site]:
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in servers.slurm.environ.items():
                patch.setenv(variable, value)
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            export = {"PYTHONPATH": path}
            if secret := more.get("secret"):
                export["WOVE_WORKER_SECRET"] = secret
            yield Site({"export": export})

    return Backend(name, "slurm", ("slurm",), opened, cause="FAILED, .*signal SIGKILL", **more)


CONTRACT = (
    _contract("slurm"),
    _contract("slurm-signed", secret=SECRET, signed_twin=True),
)
RESTARTS: tuple[Restarts, ...] = ()
