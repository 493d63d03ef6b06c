"""The backends: one specification file for each, with its rows in the suites that run over all of them.

A specification is a module of this folder, named as its executor, that says

- ``missing``: why this machine cannot run it; ``None`` when it can,
- ``CONTRACT``: its rows in tests/contract/test_backends.py,
- ``RESTARTS``: its rows in tests/faults/test_backend_restarts.py.

A new backend is one more such module, and passes the suites. What only one backend has is tested in the file
``test_<backend>.py`` beside it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from tests.support.kept import Kept
from tests.support.servers import Servers
from tests.support.workers import Command, Worker

__all__ = [
    "SECRET",
    "Backend",
    "Missing",
    "Mortal",
    "Restarts",
    "Site",
    "contract_rows",
    "packages",
    "parameters",
    "restart_rows",
    "specifications",
    "together",
    "working",
]

SECRET = "for the contract suite of backends"

Missing: TypeAlias = Callable[[], "str | None"]
"""Says what is missing on this machine; ``None``: nothing, it can run."""


def packages(*names: str) -> Missing:
    """Return the check that these packages are installed, beside cloudpickle."""

    def missing() -> str | None:
        for name in ("cloudpickle", *names):
            if importlib.util.find_spec(name) is None:
                return f"the package {name} is not installed"
        return None

    return missing


def together(*checks: Missing) -> Missing:
    """Return the check that all of *checks* pass."""
    return lambda: next(filter(None, (check() for check in checks)), None)


# ------------------------------------------------------------------------------------------ contract


@dataclass(frozen=True)
class Site:
    """A backend that runs, with workers that take work.

    Attributes:
        config: The ``executor_config`` that leads there; or what makes one, where it holds an object that is for one
            environment only.
        workers: The processes of its workers, which are started again when they die; none where each job has its own.
        unknown: What to change in `config` to ask for a task that no worker knows; ``None``: workers know none by name.
    """

    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    workers: Sequence[Kept] = ()
    unknown: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Backend:
    """One backend, with one kind of worker: a row of the contract.

    Attributes:
        name: For the tests' ids.
        executor: The built-in executor's name.
        needs: See tests/support/backends.py.
        open: Starts it.
        slots: How many runs its workers take at a time; ``None``: there is no bound, so that nothing waits in a queue.
        secret: What its payloads and events are signed with.
        signed_twin: It differs from another row by its signature alone, and so runs only those tests that a signature
            can influence: the ones marked ``signature``.
        cancels_queued: A run that is cancelled before a worker has it never starts.
        cause: A regular expression for what the backend says of a worker process that got a SIGKILL.
        unknown_words: And for what is said of a task that no worker knows.
        leaves: A regular expression for descriptors that its client leaves open in this process, and we cannot help it.
        seconds: The most that any of its tests may take.
    """

    name: str
    executor: str
    needs: tuple[str, ...]
    open: Callable[[Servers, Path], AbstractContextManager[Site]] = field(repr=False)
    slots: int | None = 2
    secret: str | None = None
    signed_twin: bool = False
    cancels_queued: bool = True
    cause: str = "."
    unknown_words: str = "."
    leaves: str | None = None
    seconds: float = 180.0

    def __str__(self) -> str:
        return self.name

    def config(self, site: Site, **more: Any) -> dict[str, Any]:
        """Return the ``executor_config``, with *more*."""
        security = (
            {} if self.secret is None else {"security": {"type": "signed", "secret": self.secret}}
        )
        return {**(site.config() if callable(site.config) else site.config), **security, **more}

    def environment(self, site: Site, **more: Any) -> dict[str, Any]:
        """Return an environment, with *more* in its ``executor_config``."""
        return {"executor": self.executor, "executor_config": self.config(site, **more)}


@contextmanager
def working(
    folder: Path, command: Command, source: str = "", secret: str | None = None
) -> Iterator[list[Worker]]:
    """One worker, with a module ``contract_app`` of that source."""
    environ = {"WOVE_WORKER_SECRET": secret}
    modules = {"contract_app": source}
    with ExitStack() as stack:
        worker = Worker.start(command, folder, modules=modules, environ=environ, restarts=True)
        yield [stack.enter_context(worker)]


# ------------------------------------------------------------------------------------------ restarts


class Mortal(Protocol):
    """A worker that is killed again and again."""

    def ready(self) -> None:
        """Wait until it takes work, since it was started last."""

    def kill_all(self) -> object:
        """Kill it with all of its processes. It comes again by itself."""


@dataclass(frozen=True)
class Restarts:
    """One kind of worker whose deaths lose no run.

    Attributes:
        name: For the test's id.
        needs: See tests/support/backends.py.
        open: Starts the backend; gives an environment, and the worker.
        runs: How many runs, of a thousand that others have: fewer where each costs much, or a death takes seconds.
        seconds: The most that the test may take.
    """

    name: str
    needs: tuple[str, ...]
    open: Callable[[Servers, Path], AbstractContextManager[tuple[Mapping[str, Any], Mortal]]] = (
        field(repr=False)
    )
    runs: int = 1000
    seconds: float = 400.0

    def __str__(self) -> str:
        return self.name


# ------------------------------------------------------------------------------------- the backends


@functools.cache
def specifications() -> dict[str, Any]:
    """Return the specification of each backend, by its executor's name."""
    names = (info.name for info in pkgutil.iter_modules(__path__))
    return {
        name: importlib.import_module(f"{__name__}.{name}")
        for name in names
        if not name.startswith("test_")
    }


def contract_rows() -> list[Backend]:
    """Return the rows of the contract."""
    return [row for specification in specifications().values() for row in specification.CONTRACT]


def restart_rows() -> list[Restarts]:
    """Return the kinds of workers that are killed."""
    return [row for specification in specifications().values() for row in specification.RESTARTS]


def parameters(rows: Sequence[Backend] | Sequence[Restarts]) -> list[Any]:
    """Return *rows* as the parameters of a test or a fixture, each with what it needs."""
    return [
        pytest.param(
            row,
            id=str(row),
            marks=[pytest.mark.backend(*row.needs), pytest.mark.timeout(row.seconds)],
        )
        for row in rows
    ]
