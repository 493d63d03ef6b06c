"""What worker processes do before their first task: once in each, and a failure is the run's error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.scripts import Finished

import wove
from wove import WorkerSetupError, weave
from wove.graph.options import check_defaults

pytestmark = pytest.mark.backend("stdio")

MODULE = """
import os

ready = []

def init():
    ready.append(os.getpid())
    with open("setups", "a") as file:
        file.write(f"{os.getpid()}\\n")

def broken():
    with open("setups", "a") as file:
        file.write("broken\\n")
    raise RuntimeError("no licence")

number = 5
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project_setup.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def ready(_: int) -> tuple[int, list[int]]:
    import os

    import project_setup  # type: ignore[import-not-found]

    return os.getpid(), project_setup.ready


def configure(setup: str | None, processes: int = 2) -> None:
    wove.config(
        environments={
            "pool": {
                "executor": "stdio",
                "executor_config": {"processes": processes},
                "setup": setup,
            }
        }
    )


def test_once_in_each_process_before_its_first_task(tmp_path: Path) -> None:
    configure("project_setup:init")
    for _ in range(2):
        with weave() as w:
            w.do(range(20), environment="pool")(ready)
        assert all(calls == [pid] for pid, calls in w.result.ready)
    called = (tmp_path / "setups").read_text().split()
    assert len(called) == len(set(called)) >= 1
    assert w.explain()["ready"]["setup"] == ("project_setup:init", "environment 'pool'")


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (
            "project_setup:broken",
            "'project_setup:broken' failed in its worker: RuntimeError: no licence",
        ),
        (
            "project_setup:missing",
            "AttributeError: module 'project_setup' has no attribute 'missing'",
        ),
        ("nowhere:init", "ModuleNotFoundError: No module named 'nowhere'"),
        ("project_setup:number", "TypeError: project_setup:number is not a function but int"),
    ],
)
def test_a_set_up_that_fails_is_the_error_of_the_run(setup: str, message: str) -> None:
    configure(setup, processes=1)
    with pytest.raises(WorkerSetupError) as caught, weave() as w:

        @w.do(environment="pool")
        def one() -> int:
            return 1

    assert message in str(caught.value)
    configure(None, processes=1)
    with weave() as w:

        @w.do(environment="pool")
        def two() -> int:
            return 2

    assert w.result.two == 2


@pytest.mark.parametrize("value", ["init", "a:", ":b", "a b:c", "a:b-c"])
def test_it_must_name_a_function(value: str) -> None:
    with pytest.raises(ValueError, match="setup must be 'module:function'"):
        check_defaults({"setup": value}, "environment 'pool'")
    with pytest.raises(TypeError, match="setup must be text"):
        check_defaults({"setup": 5}, "environment 'pool'")


DJANGO = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "project_settings"
import wove
from wove import weave

wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})

with weave() as w:
    @w.do(environment="pool")
    def there():
        import builtins
        from django.contrib.contenttypes.models import ContentType
        from django.db import connections
        builtins.used = connections["default"]
        builtins.used.ensure_connection()
        return ContentType.__name__, builtins.used.connection is not None

    @w.do(environment="pool")
    def after(there):
        import builtins
        return builtins.used.connection

print(w.result.there, w.result.after)

import django
django.setup()
from django.db import connection, connections

with weave() as w:
    @w.do
    def here():
        used = connections["default"]
        used.ensure_connection()
        return used

    @w.do([1, 2], workers=1)
    def each(n):
        used = connections["default"]
        used.ensure_connection()
        return used

print([used.connection for used in (w.result.here, *w.result.each)])
connection.ensure_connection()
with weave() as w:
    @w.do
    def other(): ...
print(connection.connection is not None)
"""

SETTINGS = """
SECRET_KEY = "an example"
INSTALLED_APPS = ["django.contrib.contenttypes"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}}
USE_TZ = True
"""


def test_django_is_set_up_and_its_connections_are_closed(
    script: Callable[..., Finished], tmp_path: Path
) -> None:
    pytest.importorskip("django")
    (tmp_path / "project_settings.py").write_text(SETTINGS)
    ran = script(DJANGO, flags=())
    assert ran.stdout.splitlines() == [
        "('ContentType', True) None",
        "[None, None, None]",
        "True",
    ]


def test_django_settings_that_are_wrong_are_named(script: Callable[..., Finished]) -> None:
    pytest.importorskip("django")
    wrong = DJANGO.replace("project_settings", "no_such_settings")
    ran = script(wrong, flags=(), check=False)
    assert (
        "WorkerSetupError: the set-up of Django failed in its worker: ModuleNotFoundError"
        in ran.stderr
    )
    assert "No module named 'no_such_settings'" in ran.stderr
