"""Every test of this folder runs once for each executor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import wove
from tests.contract.links import LINKS, Bench, Link


@pytest.fixture(params=LINKS, ids=str)
def link(request: pytest.FixtureRequest) -> Link:
    return request.param


@pytest.fixture
def bench(link: Link, no_leaks: None) -> Iterator[Bench]:
    if link.pickles:
        pytest.importorskip("cloudpickle")
    yield Bench(link)
    wove.shutdown()
