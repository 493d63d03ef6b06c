"""What users write is checked as they write it: by mypy --strict and by pyright --strict.

Scripts in ``accepted`` must pass both. In ``rejected`` each line with the comment ``# error`` must be complained about
by both checkers, and no other line by either.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ACCEPTED = sorted((HERE / "accepted").glob("*.py"))
REJECTED = sorted((HERE / "rejected").glob("*.py"))

Complaints = dict[tuple[str, int], str]


def mypy(paths: list[Path], cwd: Path) -> Complaints:
    """What mypy says, by file name and line."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--hide-error-context",
        "--no-pretty",
    ]
    command += ["--config-file=", f"--cache-dir={cwd / 'cache'}", *map(str, paths)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Complaints = {}
    for line in done.stdout.splitlines():
        match = re.match(r"(.+?):(\d+): error: (.*)", line)
        if match:
            found[Path(match[1]).name, int(match[2])] = match[3]
    return found


def pyright(paths: list[Path], cwd: Path) -> Complaints:
    """What pyright says, by file name and line."""
    for path in paths:  # pyright looks only at what lies under its configuration
        shutil.copy(path, cwd)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (cwd / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        f"--pythonpath={sys.executable}",
        "-p",
        str(cwd),
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(paths)
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def complaints(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Complaints:
    """What a checker says of all scripts. It runs once: most of its time goes into Wove itself."""
    return request.param([*ACCEPTED, *REJECTED], tmp_path_factory.mktemp("checker"))


@pytest.mark.timeout(300)
def test_scripts_are_accepted(complaints: Complaints) -> None:
    accepted = {path.name for path in ACCEPTED}
    assert {place: said for place, said in complaints.items() if place[0] in accepted} == {}


@pytest.mark.timeout(300)
def test_mistakes_are_rejected(complaints: Complaints) -> None:
    rejected = {path.name for path in REJECTED}
    wanted = {
        (path.name, number)
        for path in REJECTED
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# error")
    }
    found = {place: said for place, said in complaints.items() if place[0] in rejected}
    assert wanted
    assert {place: found[place] for place in found.keys() - wanted} == {}, "not asked for"
    assert wanted - found.keys() == set(), "mistakes that pass"


@pytest.mark.backend("stdio")
@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.name)
def test_accepted_scripts_also_run(path: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", str(path)], check=True, cwd=tmp_path, timeout=60)
