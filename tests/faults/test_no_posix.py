"""Wove without the modules, functions and loops that Windows lacks: written for it, and run here only like this."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.scripts import Finished

pytestmark = [
    pytest.mark.backend("stdio"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at descriptors in /proc"),
]

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def _everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take it away in every process that a test starts, worker processes among them."""
    (tmp_path / "sitecustomize.py").write_text("import no_posix")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(SUPPORT))))


POOL = """
import os, sys
import wove
from wove import WorkerLostError, weave

wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 2}}})

with weave(store="runs/") as w:
    @w.do(range(20), cache=True)
    def here(n): return n

    @w.do("here", environment="pool")
    def there(n):
        print("printed")
        return n * 2, os.getpid()

    @w.do(environment="pool")
    def without(there):
        import sys
        return sys.modules["fcntl"], hasattr(os, "fork")

    @w.do(environment="pool")
    def large(there): return b"x" * 3_000_000

print(sum(n for n, _ in w.result.there), len(w.result.large), w.result.without)
assert os.getpid() not in {pid for _, pid in w.result.there}

try:
    with weave() as w:
        @w.do(environment="pool")
        def killed(): os._exit(3)
except WorkerLostError as error:
    print("exit status 3" in str(error))

with weave() as w:
    @w.do(environment="pool")
    def again(): return 1

print(w.result.again)
"""

WORKER = """
import sys
from wove.cli import main
sys.exit(main(["worker", "http", "--bind", "127.0.0.1:0", *sys.argv[1:]]))
"""

CLIENT = """
import sys
import wove
from wove import weave

wove.config(environments={"far": {"executor": "http", "executor_config": {"url": sys.argv[1] + "/wove/tasks"}}})
with weave() as w:
    @w.do(range(5), environment="far", workers=2)
    def square(n): return n * n
print(w.result.square)
"""


def test_weaves_and_the_pool(script: Callable[..., Finished]) -> None:
    ran = script(POOL)
    assert ran.stdout.splitlines() == ["380 3000000 (None, False)", "True", "1"]
    assert "printed" in ran.stderr


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_a_worker_service(
    processes: tuple[str, ...], script: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, "worker.py", *processes],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().rpartition(" ")[2].strip()
            ran = script(CLIENT, url)
            assert ran.stdout == "[0, 1, 4, 9, 16]\n"
            service.send_signal(signal.SIGTERM)
            _, said = service.communicate(timeout=30)
        finally:
            service.kill()
    assert service.returncode == 0, said
