"""Every test of this folder runs once for each executor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import wove
from tests.contract.links import LINKS, Bench, Link, parameters
from tests.support.leaks import leak_check
from tests.support.services import Services


@pytest.fixture(params=parameters(LINKS))
def link(request: pytest.FixtureRequest) -> Link:
    return request.param


@pytest.fixture
def bench(link: Link, services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    bench = Bench(link, services)  # before the check: the service stays for the tests to come
    with leak_check(tmp_path / "temporary"):
        yield bench
        wove.shutdown()
        # The records hold errors, those hold frames, and frames hold whatever was in use there.
        caplog.get_records("call").clear()
