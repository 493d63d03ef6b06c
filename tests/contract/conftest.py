"""Every test of this folder runs once for each executor, or for each backend."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends import Site
from tests.contract.links import LINKS, Bench, Link, parameters
from tests.support.leaks import leak_check
from tests.support.services import Services


@pytest.fixture(params=parameters(LINKS))
def link(request: pytest.FixtureRequest) -> Link:
    return request.param


@pytest.fixture
def bench(
    link: Link, services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Bench]:
    bench = Bench(link, services)  # before the check: the service stays for the tests to come
    with leak_check(tmp_path / "temporary", caplog=caplog):
        yield bench


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """What the workers of a backend said belongs to a failure."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        for worker in site.workers:
            report.sections.append((f"log of {worker.name}", worker.log()[-5000:]))
    return report
