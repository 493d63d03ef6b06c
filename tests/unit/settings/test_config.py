"""The public `wove.config`: calls add up, a failing one changes nothing, and files are read with care."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wove import settings
from wove.settings import config, current, install
from wove.settings.loading import locate
from wove.settings.model import BUILT_IN


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    before = current()
    install(BUILT_IN)
    monkeypatch.chdir(tmp_path)
    yield
    install(before)


def write(text: str, path: str = "wove_config.py") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


# ------------------------------------------------------------------ calls


def test_calls_add_up() -> None:
    config(default_environment="reports", retries=1)
    config(environments={"reports": {"executor": "http"}}, timeout=3)
    assert current().default_environment == "reports"
    assert current().defaults == {"retries": 1, "timeout": 3.0}
    assert set(current().environments) == {"default", "reports"}


def test_a_snapshot_does_not_change() -> None:
    before = current()
    config(retries=1)
    assert before.defaults == {}
    assert current() is not before


@pytest.mark.parametrize(
    "bad",
    [
        {"retires": 1},
        {"timeout": -1},
        {"environments": {"b": {"executor": "http"}, "c": {"executor": 3}}},
        {"environments": {"b": {}, "nowhere": None}},
    ],
)
def test_a_failing_call_changes_nothing(bad: dict[str, Any]) -> None:
    config(environments={"a": {}})
    before = current()
    given: dict[str, Any] = {"retries": 2, "default_environment": "a", **bad}
    with pytest.raises((TypeError, ValueError)):
        config(**given)
    assert current() is before


def test_the_default_environment_cannot_be_removed() -> None:
    config(environments={"a": {}, "b": {}}, default_environment="a")
    with pytest.raises(
        ValueError, match="environment 'a' cannot be removed while it is the default"
    ):
        config(environments={"a": None})
    with pytest.raises(ValueError, match="cannot be removed"):
        config(environments={"b": None}, default_environment="b")
    config(environments={"a": None}, default_environment="b")
    assert set(current().environments) == {"default", "b"}


def test_install_puts_a_configuration_back() -> None:
    before = current()
    config(retries=1)
    install(before)
    assert current() is before


def test_threads_lose_nothing() -> None:
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for item in range(25):
            config(environments={f"{number}-{item}": {"executor": "http"}})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(current().environments) == 1 + 8 * 25


# ------------------------------------------------------------------ finding the file


def test_it_is_found_in_the_nearest_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    write("retries = 1")
    write("retries = 2", "project/wove_config.py")
    deep = Path("project/src/package")
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    config()
    assert current().defaults == {"retries": 2}


def test_a_folder_of_that_name_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    write("retries = 1")
    Path("sub/wove_config.py").mkdir(parents=True)
    monkeypatch.chdir("sub")
    config()
    assert current().defaults == {"retries": 1}


def test_no_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        config()
    assert str(tmp_path) in str(caught.value)
    assert "config_file=" in str(caught.value)


def test_config_file_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("retries = 4", "conf/live.py")
    config(config_file="conf/live.py")
    assert current().defaults == {"retries": 4}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(Path("~/conf/live.py")) == tmp_path / "conf/live.py"


def test_config_file_that_is_none() -> None:
    Path("folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config_file '.*missing\.py' does not exist"):
        config(config_file="missing.py", retries=1)
    with pytest.raises(FileNotFoundError, match="is a directory"):
        config(config_file="folder")
    with pytest.raises(TypeError, match="config_file must be a path, not 3"):
        config(config_file=3)  # type: ignore[arg-type]
    assert current() is BUILT_IN


# ------------------------------------------------------------------ reading the file


def test_module_level_names() -> None:
    write(
        "from __future__ import annotations\n"
        "import os\n"
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "BROKER = 'redis://x'\n"
        "BASE_DIR = Path(__file__).parent\n"
        "here = BASE_DIR\n"
        "_private = 3\n"
        "@dataclass\n"
        "class Helper:\n"
        "    name: str\n"
        "def retry_delay(attempt): return attempt * 2\n"
        "default_environment = 'reports'\n"
        "environments = {'reports': {'executor': 'celery', 'executor_config': {'broker_url': BROKER}}}\n"
        "retries = 2\n"
        "retry_on = OSError\n"
    )
    config()
    assert current().default_environment == "reports"
    assert current().environments["reports"].executor_config == {"broker_url": "redis://x"}
    assert current().defaults["retries"] == 2
    assert current().defaults["retry_on"] == (OSError,)
    assert current().defaults["retry_delay"](3) == 6


def test_the_dict_alone_counts_where_there_is_one() -> None:
    write("retires = 3\ntimeout = 9\nWOVE_CONFIG = {'retries': 1}\n")
    config()
    assert current().defaults == {"retries": 1}


def test_an_empty_file_sets_nothing() -> None:
    write("")
    config()
    assert current() == BUILT_IN


def test_the_file_adds_to_what_was_configured() -> None:
    config(timeout=5, retries=1)
    write("retries = 2")
    config()
    assert current().defaults == {"timeout": 5.0, "retries": 2}


def test_what_is_passed_beside_a_file_wins() -> None:
    write(
        "retries = 2\ntimeout = 3\nenvironments = {'a': {'executor': 'http', 'retries': 1}}\n",
        "base.py",
    )
    config(config_file="base.py", retries=7, environments={"a": {"retries": 5}})
    assert current().defaults == {"retries": 7, "timeout": 3.0}
    assert current().environments["a"].executor == "http"
    assert current().environments["a"].defaults == {"retries": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retires = 1", r"wove_config\.py: unknown setting 'retires'\. Did you mean 'retries'\?"),
        ("RETRIES = 1", "unknown setting 'RETRIES'. Did you mean 'retries'?"),
        ("ENVIROMENTS = {}", "Did you mean 'environments'?"),
        ("WOVE_CONFG = {}", "Did you mean 'WOVE_CONFIG'?"),
        ("wove_config = {}", "Did you mean 'WOVE_CONFIG'?"),
        (
            "concurrency = 8",
            "unknown setting 'concurrency'.*leading underscore|begins with an underscore",
        ),
        ("WOVE_CONFIG = [1]", "WOVE_CONFIG must be a dict, not"),
        ("WOVE_CONFIG = {'retires': 1}", r"wove_config\.py: unknown option 'retires'"),
        ("WOVE_CONFIG = {'config_file': 'x'}", "unknown option 'config_file'"),
        ("retries = 'many'", r"wove_config\.py: retries must be a whole number"),
        (
            "environments = {'a': {'executer': 'x'}}",
            r"wove_config\.py: environment 'a': unknown option 'executer'",
        ),
    ],
)
def test_what_a_file_must_not_hold(text: str, message: str) -> None:
    write(text)
    with pytest.raises(TypeError, match=message):
        config()
    assert current() is BUILT_IN


@pytest.mark.parametrize(
    "text",
    [
        "REGION = 'eu'",
        "IMAGE = 'x:1'",
        "DEBUG = True",
        "HOSTS = ['a']",
        "_retires = 1",
        "import os as retires",
    ],
)
def test_what_is_the_file_s_own_affair(text: str) -> None:
    write(text)
    config()
    assert current() == BUILT_IN


def test_an_exception_of_the_file_says_which_file(tmp_path: Path) -> None:
    write("x = 1\nraise LookupError('boom')\n")
    with pytest.raises(LookupError, match="boom") as caught:
        config(retries=1, config_file="wove_config.py")
    assert any(str(tmp_path / "wove_config.py") in note for note in caught.value.__notes__)
    assert caught.traceback[-1].lineno == 1  # counted from 0: the line in the file
    assert current() is BUILT_IN


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    write("retries = 1\nretries = = 2\n")
    with pytest.raises(SyntaxError) as caught:
        config()
    assert (caught.value.filename, caught.value.lineno) == (str(tmp_path / "wove_config.py"), 2)


def test_the_file_must_not_configure_by_itself() -> None:
    write("from wove.settings import config\nconfig()\n")
    with pytest.raises(RuntimeError, match=r"wove_config\.py calls wove\.config\(\)"):
        config()
    config(retries=1)  # and afterwards everything works as before
    assert current().defaults == {"retries": 1}


def test_running_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    write("import json\nretries = 1\n")
    modules, path = set(sys.modules), list(sys.path)
    config()
    assert {name for name in set(sys.modules) - modules if "wove_config" in name} == set()
    assert sys.path == path
    assert [entry.name for entry in tmp_path.iterdir()] == ["wove_config.py"]


def test_the_file_s_own_future_imports_and_encoding() -> None:
    Path("wove_config.py").write_bytes(
        b"# -*- coding: latin-1 -*-\n"
        b"def _f(x: int): ...\n"
        b"assert _f.__annotations__ == {'x': int}\n"
        b"delivery_idempotency_key = 'caf\xe9'\n"
    )
    config()
    assert current().defaults == {"delivery_idempotency_key": "café"}


def test_public_names() -> None:
    assert set(settings.__all__) == {
        "Configuration",
        "Environment",
        "config",
        "current",
        "install",
        "installed",
    }
