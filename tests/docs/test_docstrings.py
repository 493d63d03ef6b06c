"""The examples in the docstrings of public names, which the reference shows, run too."""

from __future__ import annotations

import asyncio
import doctest
from pathlib import Path

import pytest

import wove


@pytest.mark.parametrize("name", [name for name in wove.__all__ if not name.startswith("__")])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {public: getattr(wove, public) for public in wove.__all__} | {
        "wove": wove,
        "asyncio": asyncio,
    }
    told: list[str] = []
    for test in doctest.DocTestFinder().find(getattr(wove, name), name, module=False, globs=names):
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert told == []
