"""Fixtures for all tests; each plugin's first lines say what it is for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest_plugins = [
    "tests.support.backends",
    "tests.support.certificates",
    "tests.support.services",
    "tests.support.scripts",
    "tests.support.leaks",
    "tests.support.forms",
    "pytester",
]


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    """`wove.config` is process-wide: what one test sets, the next must not see."""
    from wove import settings

    before = settings.current()
    yield
    settings.install(before)
