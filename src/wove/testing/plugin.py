"""The plugin for pytest, found by its entry point wherever Wove is installed.

``wove.config`` is process-wide, so what one test sets, the next would see: it is restored after each
test. The fixture ``wove_environments`` runs all configured environments in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wove.testing.recorder import Recorder

__all__ = ["wove_environments"]

# Failures of the contract suite show the values that were compared, as those of test files do.
pytest.register_assert_rewrite("wove.testing.contract")


@pytest.fixture(autouse=True)
def _wove_configuration() -> Iterator[None]:
    from wove import settings

    before = settings.installed()
    yield
    settings.install(before)


@pytest.fixture
def wove_environments() -> Iterator[Recorder]:
    """Run the tasks of every configured environment in this process; see `wove.testing.in_process`."""
    from wove.testing import in_process

    with in_process() as recorder:
        yield recorder
