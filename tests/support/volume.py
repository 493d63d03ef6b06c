"""How much is done by tests that repeat one thing: all of it in ``make test-full``, about a tenth in ``make test``.

The environment variable WOVE_TEST_VOLUME decides: ``full``, or ``quick``, which is the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import pytest

__all__ = ["volume"]

VARIABLE = "WOVE_TEST_VOLUME"

T = TypeVar("T", int, float)


def volume(full: T, quick: T, environ: Mapping[str, str] = os.environ) -> T:
    """Return *full* where the full volume is asked for, otherwise *quick*.

    Raises:
        pytest.UsageError: WOVE_TEST_VOLUME is neither ``full`` nor ``quick``.
    """
    wanted = environ.get(VARIABLE, "quick")
    if wanted not in ("full", "quick"):
        raise pytest.UsageError(f"{VARIABLE} must be 'full' or 'quick', not {wanted!r}")
    return full if wanted == "full" else quick


def pytest_report_header() -> str:
    """Return the line at the top of a run that says which volume it has."""
    return ("volume: quick (all of it: make test-full)", "volume: full")[volume(1, 0)]
