"""Each example runs with the one command that its page names, and prints what it should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.support.scripts import run_script
from tests.support.servers import Servers

PAGE = ROOT / "docs" / "examples.md"


def example(name: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """What ``python -m examples.NAME`` prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fastapi_view() -> None:
    page, *streamed = example("fastapi_view").splitlines()
    assert page == "{'name': 'Ada', 'orders': [30, 50, 80], 'total': 160}"
    assert sorted(streamed) == [
        f"the report of {month} is ready" for month in ("july", "june", "may")
    ]


def test_django_view() -> None:
    page, *rows = example("django_view").splitlines()
    assert "'orders': [30, 50, 80]" in page and "'weather': 'not available: no answer'" in page
    assert sorted(rows) == ["0,0", "1,1", "2,4"]


def test_crawler() -> None:
    assert example("crawler").splitlines()[0] == "3 the"


@pytest.mark.backend("stdio")
def test_thumbnails(tmp_path: Path) -> None:
    assert "8 thumbnails" in example("thumbnails", str(tmp_path))
    made = sorted(tmp_path.glob("*.png"))
    assert len(made) == 8
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in made)


@pytest.mark.backend("stdio")
def test_slurm_study_resumes(tmp_path: Path) -> None:
    assert "computed 6 points" in example("slurm_study", "--local", str(tmp_path))
    next(tmp_path.glob("*.json")).unlink()
    assert "computed 1 points" in example("slurm_study", "--local", str(tmp_path))


@pytest.mark.backend("slurm")
def test_slurm_study(tmp_path: Path, servers: Servers) -> None:
    tmp_path.chmod(0o755)
    said = example("slurm_study", str(tmp_path / "results"), env={**servers.slurm.environ})
    assert "the best is {'rate': 2, 'depth': 4, 'loss': 1}" in said


@pytest.mark.backend("redis", "celery")
def test_celery_report(servers: Servers) -> None:
    lines = example("celery_report", servers.redis.url).splitlines()
    assert lines == ["Ada has 3 orders.", "Bob has 3 orders.", "Cyd has 3 orders."]


@pytest.mark.backend("dask")
def test_parquet_etl(tmp_path: Path) -> None:
    assert example("parquet_etl", str(tmp_path)).splitlines() == ["ada 60", "bob 15"]


@pytest.mark.backend("stdio")
def test_the_cells_of_the_notebook(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "pi.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert run_script("\n\n".join(cells), cwd=tmp_path).stdout == "pi is about 3.1\n"


def test_each_example_is_on_the_page() -> None:
    there = {path.stem for path in (ROOT / "examples").iterdir() if path.name[0] not in "_."}
    assert there == set(re.findall(r"examples[./](\w+)", PAGE.read_text()))
