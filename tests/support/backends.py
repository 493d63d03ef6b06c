"""Which backends this machine can run, and an honest word at the end about those it cannot.

A test says what it needs with ``@pytest.mark.backend("name")``. Where that backend is missing the test is skipped, and
the end of the run names it under "not run". With ``WOVE_REQUIRE_BACKENDS=all`` (or a list: ``a,b``) it fails instead.

A new backend is one more row in `BACKENDS`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from tests.support import browser, namespaces
from tests.support.servers import (
    aws_batch,
    dask,
    kubernetes_jobs,
    rabbitmq,
    ray,
    redis,
    slurm,
    temporal,
)

# Each row: a name, and a function that says what is missing (`None`: nothing, it can run).
Missing = Callable[[], "str | None"]


def _package(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"the package {name} is not installed"


def _packages(*names: str) -> Missing:
    return lambda: next(filter(None, map(_package, names)), None)


def _all(*found: Missing) -> Missing:
    return lambda: next(filter(None, (one() for one in found)), None)


BACKENDS: Mapping[str, Missing] = {
    "stdio": _packages("cloudpickle"),
    "http": _packages("cloudpickle", "uvicorn"),  # the executor needs neither; its service does
    "grpc": _packages("cloudpickle", "grpc"),
    "websocket": _packages("cloudpickle", "websockets"),
    "tls": _packages("trustme"),
    "netns": namespaces.missing,
    "chromium": _all(_packages("websockets"), browser.missing),
    "redis": redis.missing,
    "rabbitmq": rabbitmq.missing,
    "celery": _packages("cloudpickle", "celery", "redis"),
    "rq": _all(_packages("cloudpickle", "rq"), redis.missing),
    "arq": _all(_packages("cloudpickle", "arq"), redis.missing),
    "taskiq": _all(_packages("cloudpickle", "taskiq", "taskiq_redis"), redis.missing),
    "dask": _all(_packages("cloudpickle"), dask.missing),
    "ray": _all(_packages("cloudpickle"), ray.missing),
    "temporal": _all(_packages("cloudpickle"), temporal.missing),
    "slurm": _all(_packages("cloudpickle"), slurm.missing),
    "aws_batch": _all(_packages("cloudpickle"), aws_batch.missing),
    "kubernetes_jobs": _all(_packages("cloudpickle"), kubernetes_jobs.missing),
}

HEAVY = ("ray", "slurm", "dask", "temporal", "kubernetes_jobs", "aws_batch", "rabbitmq", "chromium")
"""Backends whose servers cost something even when nothing happens: their tests share one process of pytest-xdist, and
so one server."""

_PROPERTY = "wove-backend-missing"


@functools.cache
def missing(name: str) -> str | None:
    """Why the backend *name* cannot run here; ``None`` when it can. Asked once per process."""
    return BACKENDS[name]()


def required(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The backends whose absence is a failure, from ``WOVE_REQUIRE_BACKENDS``."""
    names = frozenset(
        name.strip() for name in environ.get("WOVE_REQUIRE_BACKENDS", "").split(",")
    ) - {""}
    if names == {"all"}:
        return frozenset(BACKENDS)
    if unknown := names - set(BACKENDS):
        known = ", ".join(["all", *sorted(BACKENDS)])
        raise pytest.UsageError(
            f"WOVE_REQUIRE_BACKENDS names {', '.join(sorted(unknown))}; known are: {known}"
        )
    return names


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "backend(*names): the test needs these backends (tests/support/backends.py)"
    )
    required()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        names = {name for mark in item.iter_markers("backend") for name in mark.args}
        if heavy := next((name for name in HEAVY if name in names), None):
            item.add_marker(pytest.mark.xdist_group(heavy))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("backend"):
        for name in mark.args:
            if name not in BACKENDS:
                pytest.fail(f"no backend {name!r} in tests/support/backends.py", pytrace=False)
            if why := missing(name):
                item.user_properties.append((_PROPERTY, name))
                if name in required():
                    pytest.fail(f"WOVE_REQUIRE_BACKENDS wants {name}, but {why}", pytrace=False)
                pytest.skip(f"{name}: {why}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = Counter(
        value
        for kind in ("skipped", "error", "failed")
        for report in terminalreporter.getreports(kind)
        for key, value in getattr(report, "user_properties", [])
        if key == _PROPERTY
    )
    for name, tests in sorted(counts.items()):
        terminalreporter.write_line(
            f"not run: {name} ({missing(name)}; {tests} test{'s'[: tests > 1]})", yellow=True
        )
