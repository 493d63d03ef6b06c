"""What holds for the tests of single parts."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from types import TracebackType

import pytest


@pytest.fixture(autouse=True)
def _errors_are_pickled_as_python_does() -> Iterator[None]:
    """Dask, imported by another test of the process, has changed that for every class of exception there was
    (tblib.pickling_support.install, in distributed/utils.py): they carry more, and more of them can be pickled."""
    table = copyreg.dispatch_table
    changed = {
        kind: table.pop(kind)
        for kind in list(table)
        if issubclass(kind, (BaseException, TracebackType))
    }
    yield
    for kind, reduce in changed.items():
        table.setdefault(kind, reduce)
