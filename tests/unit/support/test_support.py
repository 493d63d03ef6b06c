"""The tests' own tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import backends
from tests.support.kept import gone
from tests.support.leaks import leak_check
from tests.support.scripts import Finished, run_script

PLUGIN = """
    import pytest
    from tests.support import backends
    backends.BACKENDS = {"there": lambda: None, "absent": lambda: "no server on this machine"}
    from tests.support.backends import *
"""
TESTS = """
    import pytest

    @pytest.mark.backend("there")
    def test_runs(): pass

    @pytest.mark.backend("there", "absent")
    def test_needs_both(): raise AssertionError("must not run")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(Path(backends.__file__).parents[2]))
    monkeypatch.delenv("WOVE_REQUIRE_BACKENDS", raising=False)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(TESTS)
    return pytester


def test_a_missing_backend_is_named_at_the_end(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["not run: absent (no server on this machine; 1 test)"])
    assert "passed" in result.outlines[-1], "pytest's closing line is the last"
    assert result.ret == 0


def test_the_parallel_runner_names_it_too(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["not run: absent (no server on this machine; 1 test)"])


@pytest.mark.parametrize("required", ["all", "absent", "there, absent"])
def test_a_required_backend_that_is_missing_is_a_failure(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("WOVE_REQUIRE_BACKENDS", required)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*WOVE_REQUIRE_BACKENDS wants absent, but no server on this machine*"]
    )
    assert result.ret == 1


def test_requiring_an_unknown_backend_is_an_error(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WOVE_REQUIRE_BACKENDS", "redsi")
    result = suite.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*names redsi; known are: all, absent, there*"])


def test_a_test_cannot_name_a_backend_that_nobody_checks(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.backend('typo')\ndef test_it(): pass\n")
    suite.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(errors=1)


def test_a_script_tells_how_it_ended(script: Callable[..., Finished]) -> None:
    done = script(
        "import sys; print(sys.argv[1]); print('!', file=sys.stderr); sys.exit(3)",
        "hello",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr, done.orphans) == (3, "hello\n", "!\n", ())


def test_a_script_that_hangs_shows_its_stacks(tmp_path: Path) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"did not end within 1 s(.|\n)*line 2 in forever"
    ):
        run_script("import time\ndef forever(): time.sleep(60)\nforever()", cwd=tmp_path, timeout=1)


def test_a_script_that_leaves_a_process_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.scripts.GRACE", 0.2)
    source = "import subprocess; subprocess.Popen(['sleep', '60'])"
    with pytest.raises(pytest.fail.Exception, match="left processes behind"):
        run_script(source, cwd=tmp_path, flags=())


def test_a_warning_in_a_script_is_an_error(script: Callable[..., Finished]) -> None:
    assert script("import warnings; warnings.warn('x')", check=False).returncode == 1


@pytest.mark.usefixtures("no_leaks")
def test_nothing_left_behind_is_fine() -> None:
    threading.Thread(target=lambda: None).start()


def test_what_is_left_behind_is_named(tmp_path: Path) -> None:
    go = threading.Event()
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(pytest.fail.Exception) as failure, leak_check(tmp_path / "t", grace=0.1):
        thread = threading.Thread(target=go.wait, name="lingering")
        thread.start()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        (tmp_path / "t" / "rubbish").touch()
    os.close(reader)
    go.set()
    thread.join()
    child.communicate(b"\n")
    for word in ("lingering", "pipe:", "input()", "rubbish"):
        assert word in str(failure.value)


KEEPER = Path(backends.__file__).with_name("keeper.py")


def kept(folder: Path, restart: str, script: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-I",
        str(KEEPER),
        str(folder / "status"),
        str(folder / "log"),
        restart,
    ]
    return subprocess.Popen([*command, sys.executable, "-c", script], stdin=subprocess.PIPE)


def status(folder: Path, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        found = json.loads((folder / "status").read_text()) if (folder / "status").exists() else {}
        if found and condition(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.005)


def test_what_is_kept_comes_again_until_its_keeper_is_told_to_stop(tmp_path: Path) -> None:
    keeper = kept(tmp_path, "restart", "import time; print('ready', flush=True); time.sleep(60)")
    first = status(tmp_path, lambda found: found["line"] == "ready")
    os.kill(first["pid"], signal.SIGKILL)
    second = status(tmp_path, lambda found: found["starts"] == 2 and found["line"])
    assert second["ended"] == [-signal.SIGKILL]
    assert keeper.stdin is not None
    keeper.stdin.close()  # as when whoever started it dies
    keeper.wait(20)
    assert status(tmp_path, lambda found: True)["ended"] == [-signal.SIGKILL, -signal.SIGTERM]
    assert gone(first["pid"]) and gone(second["pid"])


def test_what_is_left_behind_is_told_and_ended(tmp_path: Path) -> None:
    child = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    )
    keeper = kept(tmp_path, "once", child)
    assert keeper.wait(30) == 0
    found = status(tmp_path, lambda found: True)
    assert found["ended"] == [0] and found["starts"] == 1
    assert len(found["left"]) == 1 and "sleep" in found["left"][0]
    assert gone(int((tmp_path / "log").read_text()))
    assert keeper.stdin is not None
    keeper.stdin.close()
