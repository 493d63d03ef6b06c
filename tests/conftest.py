"""Fixtures for all tests; each plugin's first lines say what it is for."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long it takes to make an example, or to try one, says something of the machine and of what else it does.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Tests, and the scripts and pages that they run, leave no secret in the home of whoever runs them.
os.environ.setdefault("WOVE_CACHE_SECRET", "the secret of the tests")

pytest_plugins = [
    "tests.support.servers",
    "tests.support.backends",
    "tests.support.groups",
    "tests.support.certificates",
    "tests.support.services",
    "tests.support.scripts",
    "tests.support.leaks",
    "tests.support.callback_peer",
    "tests.support.receiving",
    "tests.support.forms",
    "tests.support.volume",
    "pytester",
]


@pytest.fixture(autouse=True)
def _garbage_is_collected_unwatched(request: pytest.FixtureRequest) -> Iterator[None]:
    """hypothesis times the garbage collector in a callback, from its first test in the process on. Python drops an
    exception that arrives there, and so the interrupt of a task: in users' processes nothing calls back like that."""
    if request.node.get_closest_marker("hypothesis"):
        yield
        return
    watching, gc.callbacks[:] = gc.callbacks[:], []
    yield
    gc.callbacks[:0] = watching


def pytest_collection_finish() -> None:
    """Take what the collection made, all tests among it, out of what `gc.collect` looks at: tests call that often."""
    gc.collect()
    gc.freeze()
