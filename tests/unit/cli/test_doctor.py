"""`wove doctor`: its output and exit status. What it finds is in tests/faults/test_doctor.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.kept import free_port

from wove import settings
from wove.cli import main
from wove.diagnosis import Finding


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = settings.installed()
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings.install(None)
    yield
    settings.install(before)


def broken() -> int:
    """Configure an environment whose service is not there; returns its port."""
    port = free_port()
    Path("wove.toml").write_text(
        "[environments.far]\nexecutor = 'grpc'\n"
        f"executor_config = {{target = '127.0.0.1:{port}'}}\n"
    )
    return port


def test_nothing_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "default"]) == 0
    text = capsys.readouterr().out
    assert "environment default\n  ok worker: tasks run in this process" in text
    assert text.endswith("0 of 2 checks failed\n")


def test_a_fault_is_status_1_and_says_what_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    port = broken()
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert f"  FAILED address: nothing listens at 127.0.0.1:{port}" in text
    assert "      to mend it: start the service or broker there" in text
    assert "\x1b" not in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    broken()
    assert main(["doctor", "far", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [set(Finding._fields)] * len(rows)
    assert [row["check"] for row in rows if row["status"] == "failed"] == ["address"]


def test_colours_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor", "default"]) == 0
    assert "\x1b[32m✓\x1b[0m worker" in capsys.readouterr().out


def test_an_unknown_environment_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nowhere"]) == 2
    assert "environment 'nowhere' is not configured" in capsys.readouterr().err
