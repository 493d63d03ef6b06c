"""Workers of queues in processes of their own, started as their users start them.

    >>> with Worker.start(celery("shop", pool="prefork"), tmp_path / "worker", modules={"shop": SOURCE}) as worker:
    ...     shop.run.delay(1)

A worker has a module of the user's own in a folder of its own, and from `path` what else it may import: by default,
what the tests can, so that their tasks go by reference. With ``path=None`` it knows nothing but what is installed.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.kept import ROOT, Kept, kill, launch

__all__ = ["Command", "Worker", "arq", "celery", "module", "rq", "taskiq"]


@dataclass(frozen=True)
class Command:
    """How a worker is started.

    Attributes:
        name: What messages call it.
        line: Program and arguments.
        ready: A regular expression for what it says when it takes work.
        copies: How many of its processes say so.
    """

    name: str
    line: tuple[str, ...]
    ready: str
    copies: int = 1


def _beside(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def celery(app: str, *options: str, pool: str = "prefork", concurrency: int = 2) -> Command:
    """``celery -A app worker -P pool -c concurrency``."""
    line = (
        _beside("celery"),
        "-A",
        app,
        "worker",
        "-P",
        pool,
        "-c",
        str(concurrency),
        "-l",
        "info",
        *options,
    )
    return Command(f"celery worker -P {pool}", line, r"celery@\S+ ready\.")


def rq(url: str, *options: str, queue: str = "default", worker_class: str | None = None) -> Command:
    """``rq worker --url url [-w worker_class] queue``."""
    chosen = () if worker_class is None else ("-w", worker_class)
    line = (_beside("rq"), "worker", "--url", url, *chosen, *options, queue)
    return Command(f"rq worker {worker_class or ''}".strip(), line, r"\*\*\* Listening on ")


def arq(settings: str, *options: str) -> Command:
    """``arq module.WorkerSettings``."""
    return Command(f"arq {settings}", (_beside("arq"), settings, *options), r"redis_version=")


def taskiq(broker: str, *options: str, workers: int = 2) -> Command:
    """``taskiq worker module:broker``."""
    line = (_beside("taskiq"), "worker", broker, "--workers", str(workers), *options)
    return Command(f"taskiq worker {broker}", line, r"Listening started", workers)


def module(name: str, *options: str, ready: str) -> Command:
    """``python -m name``."""
    return Command(f"python -m {name}", (sys.executable, "-m", name, *options), ready)


@dataclass
class Worker(Kept):
    """A worker that runs (or ran). It is started again when it dies, if it ``restarts``.

    Attributes:
        command: How it was started.
        temporary: Where its temporary files are; they go with it. Not in its folder: the paths of the sockets among
            them have to fit in 107 characters (unix(7)).
    """

    command: Command = field(repr=False)
    temporary: Path

    @classmethod
    def start(
        cls,
        command: Command,
        folder: Path,
        *,
        modules: Mapping[str, str] | None = None,
        path: Path | None = ROOT,
        restarts: bool = False,
        environ: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> Worker:
        """Start a worker, and wait until it takes work.

        Args:
            command: How.
            folder: For its modules and its log; its own.
            modules: The source of modules that it can import, by name.
            path: A folder from which it imports, too; ``None``: no other.
            restarts: Whether to start it again when it ends.
            environ: More environment variables; ``None`` takes one away.
            cwd: Where it runs; default: the folder with its modules.
        """
        code = folder / "modules"
        code.mkdir(parents=True, exist_ok=True)
        for name, source in (modules or {}).items():
            (code / f"{name}.py").write_text(source)
        places = ":".join(str(place) for place in (code, path) if place is not None)
        temporary = Path(tempfile.mkdtemp(prefix="worker-", dir="/tmp"))
        variables = {"PYTHONPATH": places, "TMPDIR": str(temporary), **(environ or {})}
        process = launch(
            command.line, folder, restarts=restarts, environ=variables, cwd=cwd or code
        )
        worker = cls(command.name, folder, restarts, process, command, temporary)
        try:
            worker.ready()
        except BaseException:
            worker.stop(now=True)
            raise
        return worker

    def ready(self) -> None:
        """Wait until it takes work, since it was started last."""
        command = self.command
        self.until(
            lambda: len(re.findall(command.ready, self.latest_log())) >= command.copies,
            "takes work",
        )

    def children(self) -> list[int]:
        """The processes that it has started."""
        return sorted(set(self.processes()) - {self.pid})

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL to one of its `children`, the latest by default. Returns which."""
        pid = pid or self.until(self.children, "has a child")[-1]
        kill(pid)
        return pid

    def stop(self, *, now: bool = False) -> int:
        try:
            return super().stop(now=now)
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        # What it still does, nobody waits for.
        self.stop(now=True)
