"""`wove env`: what holds in a folder, and where each value was set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from wove import settings
from wove.cli import main


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = settings.installed()
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings.install(None)
    yield
    settings.install(before)


def test_every_value_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wove.toml").write_text(
        "retries = 1\n[environments.reports]\nexecutor = 'celery'\n"
        "executor_config = {broker_url = 'redis://:hunter2@redis/0'}\n"
    )
    Path("tasks_of_env_test.py").write_text(
        "import wove\nwove.config(environments={'reports': {'retry_on': OSError}})\n"
    )
    monkeypatch.setenv("WOVE_TIMEOUT", "5")
    assert main(["env", "--import", "tasks_of_env_test", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    file = str(tmp_path / "wove.toml")
    assert report["defaults"]["retries"] == {"value": 1, "origin": file}
    assert report["defaults"]["timeout"] == {"value": 5.0, "origin": "variable WOVE_TIMEOUT"}
    assert report["defaults"]["max_workers"] == {"value": 256, "origin": "built-in"}
    assert report["environments"]["reports"] == {
        "executor": {"value": "celery", "origin": file},
        "executor_config.broker_url": {"value": "redis://:***@redis/0", "origin": file},
        "retry_on": {"value": ["OSError"], "origin": "wove.config"},
    }

    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "hunter2" not in text
    assert f"{'executor':<30} {json.dumps('celery'):<32} {file}" in text


def test_another_configuration_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("live.py").write_text("retries = 7\n")
    assert main(["env", "--config", "live.py", "--json"]) == 0
    retries = json.loads(capsys.readouterr().out)["defaults"]["retries"]
    assert retries == {"value": 7, "origin": str(Path("live.py").absolute())}


def test_a_wrong_file_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wove.toml").write_text("retires = 1")
    assert main(["env"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("wove env: ") and "Did you mean 'retries'" in said.err
