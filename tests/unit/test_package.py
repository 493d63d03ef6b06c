"""The package as such: what importing it costs, which names it has, what its wheel holds."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import wove
from wove import errors

ROOT = Path(__file__).parents[2]


def python(*args: str) -> str:
    return subprocess.run(
        [sys.executable, *args], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_it_is_this_checkout_that_is_tested() -> None:
    assert Path(wove.__file__).is_relative_to(ROOT / "src")


def test_importing_wove_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import wove; print(sorted(set(sys.modules) - before))"
    assert ast.literal_eval(python("-I", "-c", code)) == ["wove"]


def test_listing_and_missing_names_import_nothing_either() -> None:
    code = (
        "import sys, wove; before = set(sys.modules); dir(wove); hasattr(wove, 'nope'); "
        "print(sorted(set(sys.modules) - before))"
    )
    assert ast.literal_eval(python("-I", "-c", code)) == []


def test_importing_wove_is_cheap() -> None:
    def best(statement: str) -> int:
        """Microseconds of the import, the best of three."""
        code = f"import time; t = time.perf_counter_ns(); {statement}; print((time.perf_counter_ns() - t) // 1000)"
        return min(int(python("-I", "-c", code)) for _ in range(3))

    assert best("import wove") <= 0.3 * best("import asyncio, concurrent.futures.thread")


@pytest.mark.parametrize("name", wove.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(wove, name) is not None
    assert name in dir(wove)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(wove.__all__)
    for name in errors.__all__:
        assert getattr(wove, name) is getattr(errors, name)
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == "wove.errors"
    }
    assert classes == set(errors.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING, `__all__` and what is there at run time agree."""
    tree = ast.parse(Path(wove.__file__).read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            told[alias.asname or alias.name] = statement.module
    for name in wove.__all__:
        if name != "__version__":
            assert getattr(importlib.import_module(told[name] or ""), name) is getattr(wove, name)
    for name in set(told) - set(wove.__all__):
        assert getattr(wove, name) is importlib.import_module(f"wove.{name}")


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from wove import *", namespace)
    assert set(wove.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'wove' has no attribute 'nope'"):
        wove.nope  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from wove import nope")


def test_submodules_are_reached_through_the_package() -> None:
    assert (
        python("-I", "-c", "import wove; print(wove.errors.WorkerLostError.__name__)").strip()
        == "WorkerLostError"
    )


def test_no_submodule_takes_a_public_name_away() -> None:
    """Importing `wove.x` binds `x` in the package; that must never hide a public name."""
    modules = [
        info.name
        for info in pkgutil.walk_packages(wove.__path__, "wove.")
        if not info.name.endswith("_worker")
    ]
    code = (
        "import importlib, types, wove\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in wove.__all__ if isinstance(getattr(wove, name), types.ModuleType)])\n"
    )
    assert ast.literal_eval(python("-c", code)) == []
    assert "wove.errors" in modules


def test_no_module_has_a_name_that_users_import() -> None:
    for info in pkgutil.iter_modules(wove.__path__):
        assert info.name not in wove.__all__


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"wove-{wove.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        meta = archive.read(f"wove-{wove.__version__}.dist-info/METADATA").decode()
    assert "wove/py.typed" in names
    assert {path for path in names if ".dist-info/" not in path} == {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "wove").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"Version: {wove.__version__}" in meta
    required = [line for line in meta.splitlines() if line.startswith("Requires-Dist:")]
    assert all("extra ==" in line for line in required), "the core has no required dependency"


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## {wove.__version__}" in (ROOT / "CHANGELOG.md").read_text()
