"""The scripts of `wove completion`, run by the shells that this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from wove.cli import main, make_parser
from wove.cli.completion import SHELLS, script_for


def completed(*words: str) -> list[str]:
    """What bash offers for the last of *words*."""
    line = " ".join(f"'{word}'" for word in ("wove", *words))
    code = (
        f"{script_for('bash', make_parser())}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _wove; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"run", "graph", "env", "worker"} <= set(completed(""))
    assert completed("wor") == ["worker"]
    assert completed("worker", "") == ["-h", "--help", "http", "grpc", "websocket"]
    assert completed("worker", "http", "--bi") == ["--bind"]
    assert completed("run", "module:Flow", "--rec") == ["--record"]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.toml").touch()
    assert completed("env", "--config", "fi") == ["file.toml"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("run", "graph", "env", "websocket", "tls-cert"):
        assert word in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n", "-c", script], check=True, timeout=30)
