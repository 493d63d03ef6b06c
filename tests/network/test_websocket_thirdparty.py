"""Each side of websocket with one that somebody else wrote, from the text of the protocol alone, as its other side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.support.services import Plan, running

import wove
from wove import EnvironmentExecutionError, TaskTimeoutError, WorkerLostError, weave

pytestmark = [pytest.mark.backend("websocket"), pytest.mark.timeout(120)]

THEIRS = Path(__file__).parents[1] / "support" / "thirdparty"
SECRET = "a secret of both sides, long enough"
SIGNED = {"type": "signed", "secret": SECRET}


@contextlib.contextmanager
def their_service(*args: str) -> Iterator[int]:
    command = [sys.executable, str(THEIRS / "websocket_service.py"), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def configure(port: int, target: str = "/", **config: Any) -> None:
    executor_config = {"url": f"ws://127.0.0.1:{port}{target}", **config}
    wove.config(
        environments={"theirs": {"executor": "websocket", "executor_config": executor_config}}
    )


@pytest.fixture(autouse=True)
def _sessions_end() -> Iterator[None]:
    yield
    wove.shutdown()


# ------------------------------------------------------------------ our executor, their service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
def test_their_service_runs_our_tasks(secret: str | None, no_leaks: None) -> None:
    with their_service(*([secret] if secret else [])) as port:
        configure(port, "/any/path?tenant=1", security=SIGNED if secret else None)
        with weave(offset=100) as w:

            @w.do(range(50), environment="theirs")
            def moved(item: int, offset: int) -> int:
                return item + offset

            @w.do(environment="theirs")
            async def large(offset: int) -> bytes:
                return bytes(3_000_000)

            @w.do
            def total(moved: list[int]) -> int:
                return sum(moved)

        assert len(w.result.large) == 3_000_000
        assert w.result.total == sum(range(100, 150))
        wove.shutdown()


def test_each_run_of_a_large_function_has_it_all(no_leaks: None) -> None:
    """What two sides of ours leave out, they get."""
    ballast = os.urandom(1_000_000)
    with their_service() as port:
        configure(port)
        with weave() as w:

            @w.do(range(5), environment="theirs")
            def weighed(item: int) -> int:
                return item + len(ballast)

        assert w.result.weighed == [n + 1_000_000 for n in range(5)]
        wove.shutdown()


def test_an_exception_comes_with_its_report(no_leaks: None) -> None:
    with their_service() as port:
        configure(port)
        with pytest.raises(EnvironmentExecutionError, match="no such account") as caught:
            with weave() as w:

                @w.do(environment="theirs")
                def bad() -> None:
                    raise LookupError("no such account")

        assert caught.value.payload["kind"] == "LookupError"
        assert "websocket_service.py" in caught.value.payload["traceback"]
        wove.shutdown()


def test_a_wrong_secret_is_their_words(no_leaks: None) -> None:
    with their_service(SECRET) as port:
        configure(port, security={"type": "signed", "secret": "another one"})
        with pytest.raises(
            EnvironmentExecutionError, match="403 Forbidden: 'that signature is not right'"
        ):
            with weave() as w:

                @w.do(environment="theirs")
                def never() -> None: ...

        wove.shutdown()


def test_a_message_too_large_for_them_is_their_words(no_leaks: None) -> None:
    with their_service() as port:
        configure(port)
        with pytest.raises(WorkerLostError, match="code 1009 .*too large"):
            with weave(bulk=bytes(60_000_000)) as w:

                @w.do(environment="theirs")
                def never(bulk: bytes) -> None: ...

        with weave() as w:

            @w.do(environment="theirs")
            def again() -> int:
                return 1

        assert w.result.again == 1
        wove.shutdown()


def test_a_cancel_reaches_them(no_leaks: None) -> None:
    with their_service() as port:
        configure(port)
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            with weave() as w:

                @w.do(environment="theirs", timeout=0.5, delivery_cancel_mode="require_ack")
                async def waiting() -> None:
                    import asyncio

                    await asyncio.sleep(60)

        assert time.monotonic() - began < 30  # it was told to stop, and said that it has
        wove.shutdown()


def test_they_beat_while_a_task_blocks(no_leaks: None) -> None:
    with their_service() as port:
        configure(port)
        with weave() as w:

            @w.do(environment="theirs", delivery_heartbeat_seconds=0.6)
            def patient() -> str:
                import time

                time.sleep(1.5)
                return "done"

        assert w.result.patient == "done"
        wove.shutdown()


def test_many_threads_share_one_connection(no_leaks: None) -> None:
    with their_service() as port:
        configure(port)
        seen: list[set[int]] = []

        def work(start: int) -> None:
            with weave() as w:

                @w.do(range(start, start + 50), environment="theirs")
                def same(item: int) -> int:
                    return item

            seen.append(set(w.result.same))

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1000, 2000, 3000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(min, seen)) == [0, 1000, 2000, 3000]
        assert all(len(found) == 50 for found in seen)
        assert connections_to(port) == 1
        wove.shutdown()


def connections_to(port: int) -> int:
    """Established TCP connections of this machine to *port* of 127.0.0.1, as /proc/net/tcp has them."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        line.split()[2] == f"0100007F:{port:04X}" and line.split()[3] == "01" for line in lines
    )


# ------------------------------------------------------------------ their client, our service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
@pytest.mark.parametrize("processes", [None, 1], ids=["threads", "processes"])
def test_their_client_drives_our_service(
    secret: str | None, processes: int | None, tmp_path: Path
) -> None:
    with running(Plan("websocket", secret=secret, processes=processes), tmp_path) as service:
        told = drive(service.address, secret)
        assert told["ends"] == {"one": 42, "two": "21 is too large", "three": "task_cancelled"}
        assert {name: kinds[0] for name, kinds in told["kinds"].items()} == dict.fromkeys(
            told["ends"], "task_started"
        )
        log = service.log()
        assert (
            len(
                [line for line in log.splitlines() if " run " in line and "from 127.0.0.1:" in line]
            )
            == 3
        )


def test_their_client_over_tls(tmp_path: Path, certificates: Certificates) -> None:
    with running(Plan("websocket", secret=SECRET, tls=True), tmp_path, certificates) as service:
        told = drive(
            service.address_at("localhost"), SECRET, SSL_CERT_FILE=str(certificates.authority)
        )
        assert told["ends"] == {"one": 42, "two": "21 is too large", "three": "task_cancelled"}


def drive(url: str, secret: str | None, **environ: str) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, str(THEIRS / "websocket_client.py"), url, *([secret] if secret else [])],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **environ},
    )
    assert (found.returncode, found.stderr) == (0, "")
    told: dict[str, Any] = json.loads(found.stdout)
    return told
