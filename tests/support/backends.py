"""Which backends this machine can run, and an honest word at the end about those it cannot.

A test says what it needs with ``@pytest.mark.backend("name")``. Where that backend is missing the test is skipped, and
the end of the run names it under "not run". With ``WOVE_REQUIRE_BACKENDS=all`` (or a list: ``a,b``) it fails instead.

A new backend is one more module in `tests.backends`.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping

import pytest

from tests.backends import Missing, packages, specifications, together
from tests.support import browser, namespaces
from tests.support.servers import rabbitmq, redis

BACKENDS: Mapping[str, Missing] = {
    "stdio": packages(),
    "http": packages("uvicorn"),  # the executor needs neither; its service does
    "grpc": packages("grpc"),
    "websocket": packages("websockets"),
    "tls": packages("trustme"),
    "netns": namespaces.missing,
    "chromium": together(packages("websockets"), browser.missing),
    "redis": redis.missing,
    "rabbitmq": rabbitmq.missing,
    **{name: specification.missing for name, specification in specifications().items()},
}
"""What says whether a backend is missing, by the name that tests have for it."""

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
    config.addinivalue_line(
        "markers", "signature: what it tests may depend on whether payloads and events are signed"
    )
    required()


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
