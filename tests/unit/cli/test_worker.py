"""``wove worker http`` in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.unit.services.hosts import get, post, run_task

import wove
from wove import weave
from wove.cli import main
from wove.errors import install_command

SECRET = "s" * 40


class Worker:
    """A service, and what it says."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "error",
                    "-m",
                    "wove",
                    "worker",
                    "http",
                    "--bind",
                    "127.0.0.1:0",
                    *arguments,
                ],
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.fullmatch(
            r"wove worker http: listening on (https?://127\.0\.0\.1:(\d+))\n", self.line
        )
        assert found, (self.line, self.log.read_text())
        self.url, self.port = found[1], int(found[2])

    def configure(self, **config: Any) -> None:
        wove.config(
            environments={
                "workers": {"executor": "http", "executor_config": {"url": self.url, **config}}
            }
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return self.process.wait(30)


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start_one(*arguments: str, **variables: str) -> Worker:
            worker = Worker(tmp_path, *arguments, **variables)
            assert worker.process.stdout is not None
            stack.callback(worker.process.stdout.close)
            stack.callback(worker.process.wait)
            stack.callback(worker.process.kill)
            return worker

        yield start_one
        wove.shutdown()


def in_the_background(call: Callable[[], Any]) -> Callable[[], Any]:
    """Start *call* in a thread; what is returned waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def result() -> Any:
        thread.join(30)
        return results[0]

    return result


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting_for(gate: Path, run_id: str = "r1") -> bytes:
    """The body of a run that ends when *gate* is there."""

    def wait_for(
        path: str,
    ) -> str:  # in here, so that it travels by value: the service cannot import this module
        from pathlib import Path

        while not Path(path).exists():
            time.sleep(0.002)
        return "done"

    return run_task(wait_for, run_id, args={"path": str(gate)})


def closed(port: int) -> bool:
    try:
        get(port, "/healthz")
    except OSError:
        return True
    return False


# --- service ----------------------------------------------------------------------------------------------


def test_one_command(start: Start, tmp_path: Path) -> None:
    (tmp_path / "their_module.py").write_text("def double(n):\n    return 2 * n\n")
    worker = start("--security", "env:SECRET_OF_TESTS", SECRET_OF_TESTS=SECRET)
    worker.configure(security={"type": "signed", "secret": SECRET})
    with weave() as w:

        @w.do(range(10), environment="workers")
        def doubled(n: int) -> Any:
            import their_module  # type: ignore[import-not-found]  # it is in the folder where the service was started

            return their_module.double(n), os.getpid()

    assert w.result.doubled == [(2 * n, worker.process.pid) for n in range(10)]
    assert get(worker.port, "/healthz").status == 200 and get(worker.port, "/readyz").status == 200
    assert post(worker.port, run_task(int)).status == 401
    assert worker.end() == 0
    lines = worker.log.read_text().splitlines()
    assert (
        sum("task 'doubled' from 127.0.0.1:" in line and ": ok, " in line for line in lines) == 10
    )
    assert sum("WARNING wove.service" in line and "was refused" in line for line in lines) == 1
    assert lines[-1].endswith("wove.service: stopped")


def test_tasks_in_processes_of_their_own(start: Start) -> None:
    worker = start("--processes", "2")
    worker.configure()
    with weave() as w:

        @w.do(range(8), environment="workers")
        def pids(n: int) -> int:
            time.sleep(0.1)
            return os.getpid()

    found = set(w.result.pids)
    assert worker.process.pid not in found and 1 <= len(found) <= 2
    assert worker.end() == 0
    for pid in found:
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


@pytest.mark.parametrize("options", [(), ("--processes", "1")])
def test_sigterm_lets_run_what_runs(options: tuple[str, ...], start: Start, tmp_path: Path) -> None:
    worker = start("--concurrency", "1", *options)
    gate = tmp_path / "gate"
    running = in_the_background(lambda: post(worker.port, waiting_for(gate)))
    until(lambda: json.loads(get(worker.port, "/readyz").body)["running"] == 1)
    waiting = in_the_background(lambda: post(worker.port, waiting_for(gate, "r2")))
    until(lambda: json.loads(get(worker.port, "/readyz").body)["waiting"] == 1)
    worker.process.send_signal(signal.SIGTERM)
    assert (reply := waiting()).status == 503 and reply.events[0]["error"][
        "kind"
    ] == "WorkerBusyError"
    assert get(worker.port, "/readyz").status == 503 and get(worker.port, "/healthz").status == 200
    assert post(worker.port, run_task(int)).status == 503
    assert worker.process.poll() is None
    gate.touch()
    assert running().value == "done"
    assert worker.process.wait(30) == 0
    assert closed(worker.port)


def test_what_does_not_end_in_time_is_told_so(start: Start, tmp_path: Path) -> None:
    worker = start("--drain-timeout", "0.2")
    reply = in_the_background(lambda: post(worker.port, waiting_for(tmp_path / "never")))
    until(lambda: json.loads(get(worker.port, "/readyz").body)["running"] == 1)
    assert worker.end() == 0
    assert reply().events[-1]["error"]["kind"] == "WorkerLostError"


@pytest.mark.parametrize("options", [(), ("--processes", "1")])
def test_a_second_signal_ends_at_once(
    options: tuple[str, ...], start: Start, tmp_path: Path
) -> None:
    worker = start(*options)
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    ) as connection:
        connection.request("POST", "/", waiting_for(tmp_path / "never"))
        until(lambda: json.loads(get(worker.port, "/readyz").body)["running"] == 1)
        worker.process.send_signal(signal.SIGINT)
        until(lambda: get(worker.port, "/readyz").status == 503)
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(30) == 128 + signal.SIGINT


def test_it_serves_on_after_bad_requests(start: Start) -> None:
    worker = start()
    for body in (b"", b"{}", b"\x80\x05."):
        assert post(worker.port, body).status == 400
    assert post(worker.port, run_task(lambda: 1)).value == 1
    assert worker.end() == 0
    assert "Traceback" not in worker.log.read_text()


def test_tls_with_client_certificates(start: Start, certificates: Certificates) -> None:
    pair, authority = certificates.server, str(certificates.authority)
    worker = start(
        "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--client-ca", authority
    )
    assert worker.url.startswith("https://")
    mine = {"client_certificate": str(pair.certificate), "client_key": str(pair.key)}
    worker.configure(root_certificates=authority, **mine)
    with weave() as w:

        @w.do(environment="workers")
        def one() -> int:
            return 1

    assert w.result.one == 1


def test_the_bounds_and_the_log_are_those_of_the_command_line(start: Start, tmp_path: Path) -> None:
    worker = start(
        "--concurrency",
        "1",
        "--backlog",
        "0",
        "--max-message-bytes",
        "20000",
        "--log-level",
        "warning",
    )
    gate = tmp_path / "gate"
    first = in_the_background(lambda: post(worker.port, waiting_for(gate)))
    until(lambda: get(worker.port, "/readyz").status == 503)
    assert post(worker.port, run_task(int, "r2")).status == 503  # nobody may wait
    gate.touch()
    assert first().value == "done"
    assert post(worker.port, run_task(int, "r3", args={"x": bytes(30_000)})).status == 413
    assert worker.end() == 0
    assert " INFO " not in worker.log.read_text()


def test_a_proxy_may_take_the_prefix_off(start: Start) -> None:
    from tests.unit.services.test_http import sign

    worker = start(
        "--root-path", "/api", "--security", "env:SECRET_OF_TESTS", SECRET_OF_TESTS=SECRET
    )
    body = run_task(lambda: 1)
    assert post(worker.port, body, sign(body, "/api/tasks"), path="/tasks").status == 200


def test_the_variable_may_hold_the_whole_configuration(start: Start) -> None:
    security = {"type": "signed", "secret": SECRET, "sign_replies": True}
    worker = start("--security", "env:WHOLE", WHOLE=json.dumps(security))
    worker.configure(security=security)
    with weave() as w:

        @w.do(environment="workers")
        def one() -> int:
            return 1

    assert w.result.one == 1


# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bind", "0.0.0.0:0"], "refused to listen on 0.0.0.0:0"),
        (["--bind", "0.0.0.0:0", "--tls-at-proxy"], "--security"),
        (["--bind", "8800"], "HOST:PORT"),
        (["--security", "env:WOVE_NO_SUCH_VARIABLE"], "WOVE_NO_SUCH_VARIABLE"),
        (["--security", "secret"], "env:VARIABLE"),
        (["--security", ""], "env:VARIABLE"),
        (["--insecure", "--bind", "0.0.0.0:0"], "--unauthenticated"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--processes", "-1"], "processes must be at least 1"),
        (["--tls-cert", "cert.pem"], "--tls-key"),
        (["--client-ca", "ca.pem"], "--tls-key"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "no.pem"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "http", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("wove worker http: ") and message in told.err


@pytest.mark.parametrize(
    "arguments",
    [[], ["worker"], ["worker", "smoke-signals"], ["worker", "http", "--concurrency", "x"]],
)
def test_arguments_that_are_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: wove" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--version"], wove.__version__),
        (["worker", "grpc", "--help"], "--security"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 0 and said in capsys.readouterr().out


def test_a_port_that_is_taken(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    worker = start()
    assert main(["worker", "http", "--bind", f"127.0.0.1:{worker.port}"]) == 1
    assert f"cannot listen on 127.0.0.1:{worker.port}" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_install_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["worker", "http", "--bind", "127.0.0.1:0"]) == 1
    assert install_command("worker") in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there is no root")
def test_the_first_line_of_the_log_says_what_is_risked(start: Start) -> None:
    worker = start()
    first = worker.log.read_text().splitlines()[0]
    assert "WARNING" in first and "without TLS and without --security" in first
    assert ("as root" in first) == (os.geteuid() == 0)


# --- set-up -----------------------------------------------------------------------------------------------


SETUP = """
import os

def init():
    with open("setups", "a") as file:
        file.write(f"{os.getpid()}\\n")

def broken():
    raise RuntimeError("no licence")
"""


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_set_up_once_in_each_process(
    processes: tuple[str, ...], start: Start, tmp_path: Path
) -> None:
    (tmp_path / "project_setup.py").write_text(SETUP)
    worker = start("--setup", "project_setup:init", *processes)
    wove.config(
        environments={
            "there": {
                "executor": "http",
                "executor_config": {"url": f"http://127.0.0.1:{worker.port}/wove/tasks"},
            }
        }
    )
    with weave() as w:

        @w.do(range(3), environment="there")
        def pid(_: int) -> int:
            import os

            return os.getpid()

    assert (tmp_path / "setups").read_text().split() == [str(w.result.pid[0])]


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("project_setup:broken", "the set-up 'project_setup:broken' failed"),
        ("project_setup", "--setup must be 'module:function'"),
    ],
)
def test_a_set_up_that_fails_starts_no_service(setup: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "project_setup.py").write_text(SETUP)
    done = subprocess.run(
        [sys.executable, "-m", "wove", "worker", "http", "--setup", setup],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert message in done.stderr
