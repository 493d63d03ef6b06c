"""`wove.toml`, `[tool.wove]` in `pyproject.toml` and `WOVE_*` variables: what counts, and what an error names."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wove import WoveWarning, settings, weave
from wove.settings import config, current, install
from wove.settings.sources import read_sources


@pytest.fixture(autouse=True)
def _unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = settings.installed()
    (tmp_path / ".git").mkdir()  # nothing above it counts
    monkeypatch.chdir(tmp_path)
    install(None)
    yield
    install(before)


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def variables(**values: str) -> settings.Configuration:
    return read_sources(values, None)


# ------------------------------------------------------------------ order


def test_each_source_lies_over_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    write("wove.toml", "retries = 1\ntimeout = 1\nworkers = 1\nmax_workers = 1")
    write("pyproject.toml", "[tool.wove]\ntimeout = 2\nworkers = 2\nmax_workers = 2")
    monkeypatch.setenv("WOVE_WORKERS", "3")
    monkeypatch.setenv("WOVE_MAX_WORKERS", "3")
    config(max_workers=4)

    assert current().defaults == {"retries": 1, "timeout": 2.0, "workers": 3, "max_workers": 4}
    here = os.getcwd()
    assert current().origins == {
        "retries": f"{here}/wove.toml",
        "timeout": f"{here}/pyproject.toml [tool.wove]",
        "workers": "variable WOVE_WORKERS",
        "max_workers": "wove.config",
    }


def test_a_weave_that_nobody_configured_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    write("wove.toml", "retries = 2")
    monkeypatch.setenv("WOVE_DEFAULT_ENVIRONMENT", "fast")
    monkeypatch.setenv("WOVE_ENVIRONMENTS__FAST__TIMEOUT", "9")
    with weave() as w:

        @w.do
        def task() -> int:
            return 1

        explained = w.explain()

    assert explained["task"]["retries"] == (2, f"{os.getcwd()}/wove.toml")
    assert explained["task"]["environment"] == ("fast", "variable WOVE_DEFAULT_ENVIRONMENT")
    assert explained["task"]["timeout"] == (9.0, "environment 'fast'")


def test_they_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current().defaults == {}
    monkeypatch.setenv("WOVE_RETRIES", "1")
    assert current().defaults == {}
    install(None)
    assert current().defaults == {"retries": 1}


def test_importing_reads_nothing() -> None:
    write("wove.toml", "not TOML")
    code = "import wove, wove.block; from wove import weave, config; weave()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_origins_travel_with_the_configuration() -> None:
    write(
        "wove.toml",
        "retries = 1\n[environments.far]\nexecutor = 'stdio'\nexecutor_config = {processes = 1}",
    )
    copy = pickle.loads(pickle.dumps(current()))
    assert copy == current() and copy.origins == current().origins
    assert copy.environments["far"].origins == current().environments["far"].origins
    assert set(copy.environments["far"].origins) == {"executor", "executor_config.processes"}


def test_another_executor_forgets_the_origins_of_its_keys() -> None:
    write("wove.toml", "[environments.far]\nexecutor = 'stdio'\nexecutor_config = {processes = 1}")
    config(environments={"far": {"executor": "http"}})
    assert current().environments["far"].origins == {"executor": "wove.config"}


# ------------------------------------------------------------------ files


def test_the_nearest_file_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    write("wove.toml", "retries = 1")
    write("a/wove.toml", "retries = 2")
    write("a/b/pyproject.toml", "[project]\nname = 'x'\ndependencies = ['wove']")
    write("pyproject.toml", "[tool.wove]\ntimeout = 3")
    monkeypatch.chdir("a/b")
    assert current().defaults == {"retries": 2, "timeout": 3.0}


def test_nothing_above_the_repository_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    write("wove.toml", "retries = 1")
    Path("repository/.git").mkdir(parents=True)
    monkeypatch.chdir("repository")
    assert current().defaults == {}


@pytest.mark.parametrize(
    "text",
    [
        "[tool.wove]\nretries = 5",
        "[ tool . 'wove' ]\nretries = 5",
        "[tool]\nwove = {retries = 5}",
        "tool.wove.retries = 5",
        "tool = {wove = {retries = 5}}",
    ],
)
def test_every_spelling_of_the_table(text: str) -> None:
    write("pyproject.toml", text)
    assert current().defaults == {"retries": 5}


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_in_a_parent_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(write("wove.toml", "retries = 1"), 12345, -1)
    Path("a").mkdir()
    monkeypatch.chdir("a")
    with pytest.warns(WoveWarning, match=r"wove\.toml belongs to another user and is ignored"):
        assert current().defaults == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "wove.toml",
            "retries == 1",
            r"wove\.toml is not valid TOML: .*line 1.* Correct or remove",
        ),
        (
            "wove.toml",
            "retires = 1",
            r"wove\.toml: unknown option 'retires'. Did you mean 'retries'",
        ),
        ("wove.toml", "retries = 'x'", r"wove\.toml: retries must be a whole number, not 'x'"),
        (
            "wove.toml",
            "[environments.a]\nexecutr = 'x'",
            r"wove\.toml: environment 'a': unknown option",
        ),
        ("pyproject.toml", "[tool]\nwove = 3", r"pyproject\.toml \[tool\.wove\] must be a table"),
        (
            "pyproject.toml",
            "[tool.wove]\ntimeout = 0",
            r"pyproject\.toml \[tool\.wove\]: timeout must",
        ),
    ],
)
def test_an_error_names_file_and_key(name: str, text: str, message: str) -> None:
    file = write(name, text)
    with pytest.raises((TypeError, ValueError), match=message):
        current()
    with pytest.raises((TypeError, ValueError), match=message):
        config(retries=1)

    file.write_text("")
    assert current().defaults == {}  # it is read again


# ------------------------------------------------------------------ variables


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3.0), (" 2.5 ", 2.5), ("null", None), ("None", None), ("", "unset")],
)
def test_values_are_json(text: str, value: object) -> None:
    assert variables(WOVE_TIMEOUT=text).defaults.get("timeout", "unset") == value


def test_keys_of_an_environment() -> None:
    environment = variables(
        WOVE_ENVIRONMENTS__REPORTS__EXECUTOR="celery",
        WOVE_ENVIRONMENTS__REPORTS__EXECUTOR_CONFIG='{"queue": "slow", "task_name": "t"}',
        WOVE_ENVIRONMENTS__REPORTS__EXECUTOR_CONFIG__QUEUE="fast",
        WOVE_ENVIRONMENTS__REPORTS__EXECUTOR_CONFIG__SEND_TASK_OPTIONS__PRIORITY="3",
        WOVE_ENVIRONMENTS__REPORTS__EXECUTOR_CONFIG__CALLBACK_TOKEN='"12345"',
        WOVE_ENVIRONMENTS__REPORTS__RETRIES="2",
    ).environments["reports"]
    assert environment.executor == "celery" and environment.defaults == {"retries": 2}
    assert environment.executor_config == {
        "queue": "fast",
        "task_name": "t",
        "send_task_options": {"priority": 3},
        "callback_token": "12345",
    }


def test_a_variable_changes_one_key_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        "wove.toml",
        "[environments.my-Reports]\nexecutor = 'celery'\n"
        "[environments.my-Reports.executor_config]\nqueue = 'a'\nsend_task_options = {priority = 1, x = 2}",
    )
    prefix = "WOVE_ENVIRONMENTS__MY_REPORTS__EXECUTOR_CONFIG__"
    monkeypatch.setenv(f"{prefix}SEND_TASK_OPTIONS__PRIORITY", "9")
    environment = current().environments["my-Reports"]
    assert environment.executor_config == {
        "queue": "a",
        "send_task_options": {"priority": 9, "x": 2},
    }
    assert environment.origins["executor_config.queue"].endswith("wove.toml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "WOVE_RETRIES",
            "many",
            "variable WOVE_RETRIES: retries must be a whole number, not 'many'",
        ),
        ("WOVE_ENVIRONMENTS__A__RETIRES", "1", "unknown option 'retires'. Did you mean 'retries'"),
        ("WOVE_ENVIRONMENTS__A", "stdio", "environment 'a' must be a dict"),
        ("WOVE_ENVIRONMENTS____A", "1", "a part of the name is empty. Two underscores separate"),
        ("WOVE_ENVIRONMENTS__A__TIMEOUT__B", "1", "timeout must be a number"),
    ],
)
def test_an_error_names_the_variable(name: str, value: str, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        variables(**{name: value})
    assert name in str(caught.value)


def test_a_slip_is_told_and_variables_of_the_application_are_left_alone() -> None:
    with pytest.warns(WoveWarning, match="WOVE_RETIRES is not a setting .* Did you mean 'retries'"):
        assert variables(WOVE_RETIRES="1").defaults == {}
    assert variables(WOVE_WORKER_SECRET="x" * 40, WOVE_DASHBOARD=":1", WOVE_X__Y="1").defaults == {}
