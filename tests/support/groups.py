"""Which tests share a process of pytest-xdist, and which are handed out first.

Tests that share what is costly to start (a server, a backend's workers, services on two hosts) are a group, and run in
one process. What takes long is handed out first: so nothing is left alone at the end, and as most of it waits for
others, the short tests that compute fill the time.

This is a scheduler of its own, as the marker ``xdist_group`` has no effect with pytest 9.2: pytest-xdist 3.8 writes the
groups to where that does not read them.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from tests.backends import contract_rows

__all__ = ["group_of"]

FIRST = (
    "tests/faults/test_backend_restarts.py",
    "tests/contract/test_backends.py",
    "tests/backends/",
    "tests/network/",
    "tests/browser/",
    "tests/faults/test_fuzz.py",
    "tests/faults/test_receiver_fuzz.py",
    "tests/faults/test_restarts.py",
    "tests/typing/",
    "tests/docs/",
    "tests/faults/",
    "tests/contract/",
)
"""The beginnings of tests' ids, in the order in which they are handed out; all others follow."""

FILES = (
    "tests/backends/",
    "tests/browser/",
    "tests/faults/test_grpc_peers.py",
    "tests/network/",
    "tests/typing/",
)
"""The beginnings of the ids of tests of which each file is one group."""


def group_of(nodeid: str) -> str:
    """Return the name of the group of a test: its own id where it runs wherever there is room."""
    path, _, rest = nodeid.partition("::")
    if path.startswith("tests/contract/"):
        for row in _rows():
            if re.search(rf"[\[-]{re.escape(row)}[]-]", rest):
                return f"contract of {row}"
    return path if path.startswith(FILES) else nodeid


@functools.cache
def _rows() -> list[str]:
    """The rows of both contracts, the longest name first, as one may be the beginning of another."""
    from tests.contract.links import LINKS

    return sorted({*map(str, contract_rows()), *map(str, LINKS)}, key=len, reverse=True)


def _turn(item: pytest.Item) -> int:
    turns = (turn for turn, start in enumerate(FIRST) if item.nodeid.startswith(start))
    return next(turns, len(FIRST))


class Plugin:
    """What is registered where there is a pytest-xdist."""

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        class GroupScheduling(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return group_of(nodeid)

        if config.getoption("dist") != "loadgroup":
            return None
        config.option.loadscopereorder = False  # they are in order already
        return GroupScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Plugin())


@pytest.hookimpl(trylast=True)  # after pytest has put together what has a parameter in common
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)
