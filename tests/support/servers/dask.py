"""A Dask scheduler, and its workers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.kept import ROOT, Kept, free_port, keep
from tests.support.servers._ready import of_this_venv

__all__ = ["Dask", "missing", "running"]

_QUIET = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",  # the first dead worker is an error; by default, the fourth
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "1000",
}


@dataclass(frozen=True)
class Dask:
    """A cluster that runs.

    Attributes:
        scheduler: Its process.
        port: Where it listens.
        folder: For its workers.
        workers: Those that were started with it. Each replaces its process when that dies, and is replaced itself.
        environ: More environment variables of its workers; ``None`` takes one away.
    """

    scheduler: Kept
    port: int
    folder: Path
    workers: list[Kept] = field(default_factory=list)
    environ: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @contextmanager
    def worker(self, name: str, *options: str, path: Path | None = ROOT) -> Iterator[Kept]:
        """One more worker, registered.

        Args:
            name: Its own.
            options: More of its command line.
            path: The folder from which its tasks are imported, beside what is installed.
        """
        folder = self.folder / name
        folder.mkdir()
        command = [
            of_this_venv("dask"),
            "worker",
            self.address,
            "--host",
            "127.0.0.1",
            "--name",
            name,
        ]
        command += [
            "--dashboard-address",
            "127.0.0.1:0",
            "--local-directory",
            str(folder),
            *options,
        ]
        environ = {
            **_QUIET,
            "TMPDIR": str(folder),
            "PYTHONPATH": None if path is None else str(path),
            **self.environ,
        }
        kept = keep(
            f"dask worker {name}", command, folder, environ=environ, cwd=folder, restarts=True
        )
        try:
            kept.until(lambda: re.search(r"Registered to:", kept.log()), "is registered")
            yield kept
        finally:
            kept.stop(now=True)


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    return (
        None
        if importlib.util.find_spec("distributed")
        else "the package distributed is not installed"
    )


@contextmanager
def running(
    folder: Path,
    *,
    port: int | None = None,
    workers: int = 2,
    environ: Mapping[str, str | None] | None = None,
) -> Iterator[Dask]:
    """A scheduler with that many workers of one thread each, registered; they end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0"]
    command = [of_this_venv("dask"), "scheduler", *where]
    scheduler = keep(
        "dask scheduler",
        command,
        folder / "scheduler",
        environ={**_QUIET, "TMPDIR": str(folder)},
        cwd=folder,
    )
    try:
        scheduler.until(lambda: "Scheduler at:" in scheduler.log(), "listens")
        dask = Dask(scheduler, port, folder, environ=environ or {})
        with _workers(dask, workers):
            yield dask
    finally:
        scheduler.stop(now=True)


@contextmanager
def _workers(dask: Dask, number: int) -> Iterator[None]:
    if number == 0:
        yield
        return
    with _workers(dask, number - 1), dask.worker(f"worker-{number}", "--nthreads", "1") as kept:
        dask.workers.append(kept)
        yield
