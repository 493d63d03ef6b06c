"""`wove cache`: what is kept, and how it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wove import CacheError, weave
from wove.cache import DirectoryStore, SQLiteStore
from wove.cli import main


def fill(store: Any) -> list[int]:
    """Keep three results of two tasks; return what had to run for it."""
    ran: list[int] = []
    with weave(store=store) as w:

        @w.do([1, 2], cache=True, cache_key="{n}")
        def pages(n: int) -> int:
            ran.append(n)
            return n

        @w.do(cache=True, cache_key="total")
        def total(pages: list[int]) -> int:
            ran.append(3)
            return sum(pages)

    return sorted(ran)


@pytest.mark.parametrize("kind", [SQLiteStore, DirectoryStore])
def test_list_and_remove(
    kind: type[SQLiteStore] | type[DirectoryStore],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path)
    assert fill(kind(path)) == [1, 2, 3]
    assert main(["cache", "ls", path]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["task", "results", "size", "newest"]
    assert [line.split()[:2] for line in lines] == [["pages", "2"], ["total", "1"]]

    assert main(["cache", "rm", path, "--older-than", "1h"]) == 0
    assert capsys.readouterr().out.startswith("0 removed from ")
    assert main(["cache", "rm", path, "pages"]) == 0
    assert capsys.readouterr().out.startswith("2 removed from ")
    assert fill(kind(path)) == [1, 2]
    assert main(["cache", "rm", path, "--all"]) == 0
    assert capsys.readouterr().out.startswith("3 removed from ")
    assert fill(kind(path)) == [1, 2, 3]


def test_what_another_has_signed_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.setenv("WOVE_CACHE_SECRET", "of someone else")
    with pytest.raises(CacheError, match="wove cache adopt"):
        fill(tmp_path)
    assert main(["cache", "adopt", str(tmp_path)]) == 0
    assert fill(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ls", "nowhere"], 1, "there is no file of that name"),
        (["rm", "nowhere", "--all"], 1, "there is no file of that name"),
        (["rm", "nowhere"], 2, "say which results"),
        (["rm", "nowhere", "pages", "--all"], 2, "do not go together"),
        (["adopt", "nowhere"], 1, "there is no file of that name"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *arguments]) == status
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_age_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["cache", "rm", "runs", "--older-than", "a year"])
    assert caught.value.code == 2
    assert "'a year' is not an age" in capsys.readouterr().err
