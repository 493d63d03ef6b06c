"""The package of ``examples/plugin``, built and installed as a user would, and an environment with its executor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT
from tests.support.scripts import run_script

SCRIPT = """
import threading
import wove
from wove import weave

wove.config(environments={"own": {"executor": "threads", "executor_config": {"threads": 2}}})

with weave() as w:
    @w.do(range(4), environment="own")
    def square(n):
        return n * n, threading.current_thread().name.split("_")[0]

print(w.result.square)
wove.config(environments={"own": {"executor": "thread"}})
try:
    with weave() as w:
        @w.do(environment="own")
        def nothing(): ...
except ValueError as error:
    print(error)
"""


def test_a_package_adds_an_executor(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(installed), str(source)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr

    ran = run_script(SCRIPT, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    squares, refusal = ran.stdout.splitlines()
    assert squares == "[(0, 'own'), (1, 'own'), (4, 'own'), (9, 'own')]"
    assert refusal.startswith(
        "environment 'own': there is no executor 'thread'. Did you mean 'threads'? Built in are: local, "
    )
    assert refusal.endswith(". Installed packages add: threads")
