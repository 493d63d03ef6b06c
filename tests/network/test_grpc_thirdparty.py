"""Each side of gRPC with one that somebody else wrote, from the text of the protocol alone, as its other side."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.support.services import Plan, running

import wove
from wove import EnvironmentExecutionError, TaskTimeoutError, WorkerLostError, weave

pytestmark = [pytest.mark.backend("grpc"), pytest.mark.timeout(120)]

THEIRS = Path(__file__).parents[1] / "support" / "thirdparty"
SECRET = "a secret of both sides, long enough"
SIGNED = {"type": "signed", "secret": SECRET}


@contextlib.contextmanager
def their_service(*args: str) -> Iterator[int]:
    command = [sys.executable, str(THEIRS / "grpc_service.py"), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def configure(target: str, **config: Any) -> None:
    wove.config(
        environments={
            "theirs": {"executor": "grpc", "executor_config": {"target": target, **config}}
        }
    )


@pytest.fixture(autouse=True)
def _sessions_end() -> Iterator[None]:
    yield
    wove.shutdown()


# ------------------------------------------------------------------ our executor, their service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
@pytest.mark.parametrize("form", ["object", "list", "last"])
def test_their_service_runs_our_tasks(secret: str | None, form: str) -> None:
    with their_service(*([secret] if secret else [])) as port:
        configure(
            f"127.0.0.1:{port}", security=SIGNED if secret else None, metadata={"X-Form": form}
        )
        with weave(offset=100) as w:

            @w.do(range(50), environment="theirs")
            def moved(item: int, offset: int) -> int:
                return item + offset

            @w.do(environment="theirs")
            def large(offset: int) -> bytes:
                return bytes(10_000_000)

            @w.do
            def total(moved: list[int]) -> int:
                return sum(moved)

        assert len(w.result.large) == 10_000_000
        assert w.result.total == sum(range(100, 150))


def test_over_tls_with_a_private_ca(certificates: Certificates) -> None:
    pair = certificates.server
    with their_service(SECRET, str(pair.certificate), str(pair.key)) as port:
        target = f"localhost:{port}"
        configure(
            target, secure=True, security=SIGNED, root_certificates=str(certificates.authority)
        )
        with weave() as w:

            @w.do(range(10), environment="theirs")
            def negated(item: int) -> int:
                return -item

        assert w.result.negated == [-n for n in range(10)]
        configure(
            target,
            secure=True,
            security=SIGNED,
            root_certificates=str(certificates.stranger_authority),
        )
        with pytest.raises(WorkerLostError, match=r"(?i)cannot be reached.*certificate"):
            with weave() as w:

                @w.do(environment="theirs")
                def never() -> None: ...


def test_an_exception_comes_as_itself_with_their_traceback() -> None:
    with their_service() as port:
        configure(f"127.0.0.1:{port}")
        with pytest.raises(LookupError, match="no such account") as caught:
            with weave() as w:

                @w.do(environment="theirs")
                def bad() -> None:
                    raise LookupError("no such account")

        assert "grpc_service.py" in str(caught.value.__cause__)


def test_a_wrong_secret_is_their_words() -> None:
    with their_service(SECRET) as port:
        configure(f"127.0.0.1:{port}", security={"type": "signed", "secret": "another one"})
        with pytest.raises(
            EnvironmentExecutionError,
            match="UNAUTHENTICATED: that signature is not right.*'security'",
        ):
            with weave() as w:

                @w.do(environment="theirs")
                def never() -> None: ...


def test_a_cancel_reaches_a_run_even_beyond_the_bound_of_calls() -> None:
    with their_service() as port:
        configure(f"127.0.0.1:{port}", max_concurrent_calls=1)
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            with weave(stop=None) as w:

                @w.do(environment="theirs", timeout=0.5, delivery_cancel_mode="require_ack")
                def waiting(stop: Any) -> None:
                    stop.wait(60)

        assert time.monotonic() - began < 30  # it was told to stop, and said that it has


# ------------------------------------------------------------------ their client, our service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
def test_their_client_drives_our_service(secret: str | None, tmp_path: Path) -> None:
    with running(Plan("grpc", secret=secret), tmp_path) as service:
        found = subprocess.run(
            [
                sys.executable,
                str(THEIRS / "grpc_client.py"),
                service.address,
                *([secret] if secret else []),
            ],
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert (found.returncode, found.stderr) == (0, "")
        told = json.loads(found.stdout)
    assert told["ends"] == {"one": 42, "two": "21 is too large", "three": "task_cancelled"}
    assert {kinds[-1] for kinds in told["kinds"].values()} == {
        "task_result",
        "task_error",
        "task_cancelled",
    }
    assert told["forged"] == ("UNAUTHENTICATED" if secret else "")
    serving, unknown = "0801", "NOT_FOUND"
    assert list(told["health"].values()) == [serving, serving, serving, unknown]
