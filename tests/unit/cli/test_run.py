"""`wove run` and `wove graph`: what goes where, and the exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wove.cli import main

FLOWS = str(Path(__file__).with_name("flows_of_cli_tests.py"))


@pytest.fixture(autouse=True)
def _path_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_results_are_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{FLOWS}:Report", "month=May", "accounts=[1, 2]"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"rows": ["May 1", "May 2"], "total": 2}
    assert "a line that a task prints" in said.err


def test_one_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", f"{FLOWS}:Report", "month=May", "accounts=[1]", "--print", "total"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "1\n"


def test_progress_and_a_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "run.json"
    arguments = ["run", f"{FLOWS}:Report", "month=1", "accounts=[1]", "--progress"]
    assert main([*arguments, "--record", str(record)]) == 0
    said = capsys.readouterr()
    assert "total" in said.err and json.loads(said.out)["total"] == 1
    assert "traceEvents" in json.loads(record.read_text())


def test_a_failed_task_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{FLOWS}:Broken"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" in said.err and "ValueError: no such month" in said.err


def test_what_succeeded_is_printed_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{FLOWS}:Broken", "--error-mode", "continue"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"good": 3, "odd": {"(1, 2)": "{3}", "inf": "inf"}}
    assert "wove run: task bad: no such month" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{FLOWS}:Nothing"], "'Nothing' is not a Weave class"),
        ([FLOWS], "names no class. Weave classes there: "),
        (["nowhere.py:Report"], "there is no file 'nowhere.py'"),
        (["no_such_module:Report"], "there is no module 'no_such_module'"),
        (["no_such.module:Report"], "there is no module 'no_such.module'"),
        ([f"{FLOWS}:Report", "month"], "'month' is not KEY=VALUE"),
        ([f"{FLOWS}:Report", "month=1", "month=2"], "month is given twice"),
        ([f"{FLOWS}:Report", "month=May"], "accounts"),
        (
            [f"{FLOWS}:Broken", "--environment", "no_such"],
            "environment 'no_such' is not configured",
        ),
        ([f"{FLOWS}:Broken", "--print", "nothing"], "there is no task 'nothing': bad, good, odd"),
        ([f"{FLOWS}:Broken", "--record", "x.png"], "x.png"),
    ],
)
def test_what_cannot_be_run_is_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and "Traceback" not in said.err


def test_a_module_that_fails_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken_flow_of_cli_tests.py"
    broken.write_text("1 / 0")
    assert main(["run", f"{broken}:Report"]) == 2
    assert f'File "{broken}", line 1' in capsys.readouterr().err


def test_graph_without_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", f"{FLOWS}:Report"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("flowchart") and "rows" in text and "total" in text
    assert main(["graph", f"{FLOWS}:Report", "-o", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert main(["graph", f"{FLOWS}:Report", "--format", "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg")
    assert main(["graph", f"{FLOWS}:Report", "-o", "a.png"]) == 2
    assert "say --format" in capsys.readouterr().err


def test_an_interrupt_is_status_130(tmp_path: Path) -> None:
    flow = tmp_path / "flow.py"
    flow.write_text(
        "import os, signal, time\nfrom wove import Weave\n"
        "class Slow(Weave):\n"
        "    @Weave.do\n"
        "    def task(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "wove", "run", "flow.py:Slow"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wove", "run", f"{FLOWS}:Report", "month=May"]
    items = json.dumps(list(range(20_000)))  # more than a pipe holds
    process = subprocess.Popen(
        [*command, f"accounts={items}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["run"], ["graph"], ["env"], ["completion"], ["worker"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
        assert "examples:\n" in capsys.readouterr().out
