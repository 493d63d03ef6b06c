"""Every example of the documentation runs, and prints what the page says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs import clusters
from tests.docs.pages import PAGES, ROOT, Page, check_command
from tests.docs.stage import needs, staged
from tests.support.scripts import run_script
from tests.support.servers import Servers


def _each() -> list[Any]:
    """The pages, each with what its workers need."""
    pages = [(path, Page.read(path.read_text())) for path in PAGES]
    return [
        pytest.param(
            path, page, id=path.name, marks=pytest.mark.backend(*needs(page), *clusters.needs(page))
        )
        for path, page in pages
    ]


@pytest.mark.backend("stdio")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("path", "page"), _each())
def test_page(path: Path, page: Page, tmp_path: Path, servers: Servers) -> None:
    assert [
        (command, wrong) for command in page.commands if (wrong := check_command(command))
    ] == []
    with staged(page, servers, tmp_path) as ready:
        for name, text in ready.files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        if not ready.script.strip():
            return
        # Not the name of the page alone: the folder is where imports look first, and "http" is a module.
        script = tmp_path / f"page_{path.stem}.py"
        script.write_text(ready.script)
        done = run_script(script, cwd=tmp_path, timeout=90, env=clusters.environ(page, servers))
        assert ready.differences(done.stdout) == []
        assert "Traceback" not in done.stderr


def test_readme_starts_with_the_two_commands() -> None:
    assert Page.read((ROOT / "README.md").read_text()).commands[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        target for target in targets if "://" not in target and not (path.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.backend("stdio")
def test_demo_on_a_small_folder(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("import os\n\ndef f(x):\n    return 1 if x and os else 2\n")
    (tmp_path / "copy.py").write_text("import os\n\ndef f(x):\n    return 1 if x and os else 2\n")
    (tmp_path / "bad.py").write_text("print 'hello'\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.stdlib_report", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Its worker service warns of that, where the tests run as root.
    said = [line for line in done.stderr.splitlines() if "runs as root" not in line]
    assert (done.returncode, said) == (0, [])
    assert re.search(r"3 files", done.stdout)
    assert re.search(r"pool: .* process", done.stdout)
