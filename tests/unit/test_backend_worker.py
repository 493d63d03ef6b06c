"""``python -m wove.backend_worker``, as a backend starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.callback_peer import Answer, Peer, Request, make_payload

from wove.errors import WorkerLostError
from wove.integrations.common.exit_codes import REFUSED, UNREADABLE, UNREPORTED
from wove.protocol.faults import to_exception
from wove.protocol.pickling import loads

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start it in a folder of its own; ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> Any:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("WOVE_")
        }
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "wove.backend_worker", *arguments],
            cwd=tmp_path,
            env={**inherited, **(env or {})},
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        if stdin is not None and process.stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
            process.stdin = None
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


def value_of(peer: Peer, payload: Mapping[str, Any]) -> Any:
    return loads(peer.end(payload["run_id"])["result_pickle"], label="the result")


@pytest.mark.parametrize("way", ["variable", "argument", "stdin"])
def test_where_the_payload_comes_from(peer: Peer, start: Start, way: str) -> None:
    def task(word: str) -> tuple[str, bool]:
        return word[::-1], "WOVE_BACKEND_PAYLOAD" in os.environ

    payload = make_payload(peer, task, word="evow")
    text = json.dumps(payload)
    if way == "variable":
        process = start("ignored", env={"WOVE_BACKEND_PAYLOAD": text})
    elif way == "argument":
        process = start(text)
    else:
        process = start(stdin=text + "\n")
    assert ended(process) == (0, "", "")
    assert value_of(peer, payload) == ("wove", False)
    # With the start of the run, or where that was too short for one, with its end.
    assert [event["pid"] for event in peer.events if "pid" in event] == [process.pid]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(start: Start, flag: str) -> None:
    status, stdout, stderr = ended(start(flag))
    assert (status, stderr) == (0, "")
    assert stdout.startswith("usage: python -m wove.backend_worker [-h] [PAYLOAD]\n")
    assert "WOVE_BACKEND_PAYLOAD" in stdout and max(map(len, stdout.splitlines())) <= 120


def test_a_task_that_fails_was_reported(peer: Peer, start: Start) -> None:
    def task() -> None:
        raise SystemExit(7)

    payload = make_payload(peer, task)
    assert ended(start(json.dumps(payload))) == (0, "", "")
    assert isinstance(to_exception(peer.end(payload["run_id"]), task="pdf"), SystemExit)


def test_what_the_task_prints_is_the_jobs_output(peer: Peer, start: Start) -> None:
    payload = make_payload(peer, lambda: print("hello"))
    assert ended(start(json.dumps(payload))) == (0, "hello\n", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "",
            "there is no payload: it goes into the environment variable WOVE_BACKEND_PAYLOAD, the first argument or",
        ),
        ("{", "the payload is not JSON: "),
        ("{}", "a payload without a run_id"),
    ],
)
def test_one_clear_line(start: Start, text: str, says: str) -> None:
    status, stdout, stderr = ended(start(stdin=text))
    assert (status, stdout) == (UNREADABLE, "")
    assert stderr.startswith(f"wove.backend_worker: {says}") and stderr.count("\n") == 1


def test_an_end_that_could_not_be_reported(peer: Peer, start: Start) -> None:
    payload = make_payload(peer, lambda: 1, retry_seconds=0.2)
    peer.stop()
    status, _, stderr = ended(start(json.dumps(payload)))
    assert status == UNREPORTED and stderr.count("\n") == 1
    assert stderr.startswith(
        f"wove.backend_worker: run {payload['run_id']} of task 'pdf' is not begun: its weave is gone, or its "
    )


def test_a_payload_that_is_refused(peer: Peer, start: Start) -> None:
    payload = make_payload(peer, lambda: 1)
    status, _, stderr = ended(start(json.dumps(payload), env={"WOVE_WORKER_SECRET": "s"}))
    assert (status, peer.opened) == (REFUSED, 0)
    assert stderr == (
        "wove.backend_worker: the payload is not signed, and this worker takes signed ones only: set 'security' in the "
        "executor_config of its environment as well\n"
    )


def test_a_signed_payload(peer: Peer, start: Start) -> None:
    payload = make_payload(peer, lambda: 1, security={"type": "signed", "secret": "s"})
    assert ended(start(json.dumps(payload), env={"WOVE_WORKER_SECRET": "s"})) == (0, "", "")
    assert "x-wove-signature" in peer.requests[-1].headers


def test_modules_beside_it_are_found(peer: Peer, start: Start, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")

    def task() -> str:
        import beside  # type: ignore[import-not-found]

        word: str = beside.WORD
        return word

    payload = make_payload(peer, task)
    assert ended(start(json.dumps(payload))) == (0, "", "")
    assert value_of(peer, payload) == "found"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("kind", ["sync", "coroutine"])
def test_a_signal_stops_the_run_and_that_is_reported(
    peer: Peer, start: Start, number: signal.Signals, status: int, kind: str
) -> None:
    def sync_task() -> None:
        for _ in range(3000):
            time.sleep(0.01)

    async def task() -> None:
        import asyncio

        await asyncio.sleep(30)

    payload = make_payload(peer, sync_task if kind == "sync" else task)
    process = start(json.dumps(payload))
    peer.until(lambda: "task_started" in peer.of(payload["run_id"]))
    process.send_signal(number)
    assert ended(process) == (status, "", "")
    lost = to_exception(peer.end(payload["run_id"]), task="pdf")
    assert isinstance(lost, WorkerLostError)
    assert (
        str(lost)
        == f"task 'pdf': its worker was stopped in the middle of it (Signal: {number.name})"
    )


def test_a_cancelled_run_ends_the_process(peer: Peer, start: Start) -> None:
    def answer(request: Request) -> Answer:
        told = len(peer.requests) > 2 and "heartbeat" in request.types
        return Answer(410) if told else Answer()

    peer.answer = answer

    async def task() -> None:
        import asyncio

        await asyncio.sleep(30)

    payload = {**make_payload(peer, task), "beat_seconds": 0.1}
    assert ended(start(json.dumps(payload))) == (0, "", "")
    assert peer.end(payload["run_id"])["type"] == "task_cancelled"


def test_the_end_of_the_process_ends_its_connection(peer: Peer, start: Start) -> None:
    payload = make_payload(peer, lambda: time.sleep(30))
    process = start(json.dumps(payload))
    peer.until(lambda: "task_started" in peer.of(payload["run_id"]))
    process.kill()
    peer.until(lambda: not peer.connections)


@pytest.mark.timeout(120)
def test_a_hundred_megabytes_each_way(peer: Peer, start: Start) -> None:
    def task(data: bytes) -> tuple[bytes, int]:
        import resource

        return data, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    data = os.urandom(100_000_000)
    payload = make_payload(peer, task, data=data, claim=["args_pickle"])
    began = time.monotonic()
    assert ended(start(json.dumps(payload))) == (0, "", "")
    elapsed = time.monotonic() - began
    returned, resident = value_of(peer, payload)
    assert returned == data
    print(f"{elapsed:.1f} s, {resident / 1024:.0f} MiB resident before the result was pickled")
