"""Executors of other packages: found by name, and refused with the reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wove
from wove import weave
from wove.executors.registry import BUILT_IN, executor_class

MODULE = """
import asyncio
from wove import BackendAdapter, EnvironmentExecutor

class Inline(EnvironmentExecutor):
    async def start(self, *, environment_name, environment_config, run_config):
        self.events = asyncio.Queue()

    async def send(self, frame):
        if frame["type"] == "run_task":
            result = frame["callable"](**frame["args"])
            await self.events.put({"type": "task_result", "run_id": frame["run_id"], "result": result})

    async def recv(self):
        return await self.events.get()

    async def stop(self):
        pass

class Adapter(BackendAdapter):
    name = "adapted"

neither = 7
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages that declare executors of the module ``plugged``."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plugged.py").write_text(MODULE)

    def install(package: str, **entries: str) -> None:
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[wove.executors]", *lines]))

    yield install
    sys.modules.pop("plugged", None)


def test_a_declared_executor_runs_tasks(install: Install) -> None:
    install("one", inline="plugged:Inline", adapted="plugged:Adapter")
    wove.config(environments={"far": {"executor": "inline"}})
    with weave() as w:

        @w.do([1, 2], environment="far")
        def doubled(n: int) -> int:
            return 2 * n

    assert w.result.doubled == [2, 4]
    assert executor_class("inline", "far") is executor_class("inline", "far")
    assert executor_class("adapted", "far").__name__ == "AdapterExecutor"


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (
            "plugged:Missing",
            ImportError,
            r"executor 'mine' of the package 'one' cannot be loaded from",
        ),
        ("nowhere:Missing", ImportError, "No module named 'nowhere'"),
        (
            "plugged:neither",
            TypeError,
            "must be a subclass of EnvironmentExecutor or BackendAdapter, not 7",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(
    value: str, kind: type[Exception], message: str, install: Install
) -> None:
    install("one", mine=value)
    with pytest.raises(kind, match=message) as caught:
        executor_class("mine", "far")
    assert caught.value.__notes__ == ["for environment 'far'"]


def test_a_name_of_two_packages_is_refused(install: Install) -> None:
    install("one", mine="plugged:Inline")
    install("two", mine="plugged:Adapter")
    with pytest.raises(ValueError, match=r"'mine' is declared by several packages \(one, two\)"):
        executor_class("mine", "far")


def test_a_built_in_name_stays_ours(install: Install) -> None:
    install("one", stdio="plugged:Inline")
    assert executor_class("stdio", "far").__module__ == BUILT_IN["stdio"][0]


def test_an_unknown_name_lists_those_of_packages(install: Install) -> None:
    install("one", inline="plugged:Inline")
    with pytest.raises(
        ValueError, match=r"Did you mean 'inline'\?.* Installed packages add: .*inline"
    ):
        executor_class("inlin", "far")
