"""Each side of http with one that somebody else wrote, from the text of the protocol alone, as its other side."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Certificates
from tests.support.services import Plan, running

import wove
from wove import EnvironmentExecutionError, TaskTimeoutError, weave

pytestmark = [pytest.mark.backend("http"), pytest.mark.timeout(120)]

THEIRS = Path(__file__).parents[1] / "support" / "thirdparty"
SECRET = "a secret of both sides, long enough"
SIGNED = {"type": "signed", "secret": SECRET}


@contextlib.contextmanager
def their_service(*args: str) -> Iterator[int]:
    command = [sys.executable, str(THEIRS / "http_service.py"), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def configure(url: str, **config: Any) -> None:
    wove.config(
        environments={"theirs": {"executor": "http", "executor_config": {"url": url, **config}}}
    )


@pytest.fixture(autouse=True)
def _sessions_end() -> Iterator[None]:
    yield
    wove.shutdown()


# ------------------------------------------------------------------ our executor, their service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
def test_their_service_runs_our_tasks(secret: str | None, no_leaks: None) -> None:
    with their_service(*([secret] if secret else [])) as port:
        configure(f"http://127.0.0.1:{port}/any/path?tenant=1", security=SIGNED if secret else None)
        with weave(offset=100) as w:

            @w.do(range(50), environment="theirs")
            def moved(item: int, offset: int) -> int:
                return item + offset

            @w.do(environment="theirs")
            def large(offset: int) -> bytes:
                return bytes(3_000_000)

            @w.do
            def total(moved: list[int]) -> int:
                return sum(moved)

        assert len(w.result.large) == 3_000_000
        assert w.result.total == sum(range(100, 150))
        wove.shutdown()


def test_over_tls_with_a_private_ca(certificates: Certificates, no_leaks: None) -> None:
    pair = certificates.server
    with their_service(SECRET, str(pair.certificate), str(pair.key)) as port:
        url = f"https://localhost:{port}/"
        configure(url, security=SIGNED, root_certificates=str(certificates.authority))
        with weave() as w:

            @w.do(range(10), environment="theirs")
            def negated(item: int) -> int:
                return -item

        assert w.result.negated == [-n for n in range(10)]
        configure(url, security=SIGNED, root_certificates=str(certificates.stranger_authority))
        with pytest.raises(
            EnvironmentExecutionError, match="its certificate was not accepted.*'root_certificates'"
        ):
            with weave() as w:

                @w.do(environment="theirs")
                def never() -> None: ...

        wove.shutdown()


def test_two_hundred_runs_one_after_the_other_are_one_connection(no_leaks: None) -> None:
    with their_service() as port:
        configure(f"http://127.0.0.1:{port}/")
        with weave() as w:

            @w.do(range(200), workers=1, environment="theirs")
            def same(item: int) -> int:
                return item

        assert w.result.same == list(range(200))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/connections", timeout=30) as response:
            assert int(response.read()) == 1 + 1  # and this one
        wove.shutdown()


def test_an_exception_comes_as_itself_with_their_traceback(no_leaks: None) -> None:
    with their_service() as port:
        configure(f"http://127.0.0.1:{port}/")
        with pytest.raises(LookupError, match="no such account") as caught:
            with weave() as w:

                @w.do(environment="theirs")
                def bad() -> None:
                    raise LookupError("no such account")

        assert "http_service.py" in str(caught.value.__cause__)
        wove.shutdown()


def test_a_wrong_secret_is_their_words(no_leaks: None) -> None:
    with their_service(SECRET) as port:
        configure(f"http://127.0.0.1:{port}/", security={"type": "signed", "secret": "another one"})
        with pytest.raises(
            EnvironmentExecutionError, match="403 Forbidden: 'that signature is not right'"
        ):
            with weave() as w:

                @w.do(environment="theirs")
                def never() -> None: ...

        wove.shutdown()


def test_a_cancel_reaches_a_run_that_holds_the_only_connection(no_leaks: None) -> None:
    with their_service() as port:
        configure(f"http://127.0.0.1:{port}/", max_connections=1)
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            with weave(stop=None) as w:

                @w.do(environment="theirs", timeout=0.5, delivery_cancel_mode="require_ack")
                def waiting(stop: Any) -> None:
                    stop.wait(60)

        assert time.monotonic() - began < 30  # it was told to stop, and said that it has
        wove.shutdown()


# ------------------------------------------------------------------ an application that keeps its own threads busy


def test_a_saturated_default_thread_pool_delays_nothing(script: Any) -> None:
    """`asyncio.to_thread` has few threads, and they are the application's."""
    with their_service() as port:
        found = script(
            f"""
            import asyncio, threading, time
            import wove
            from wove import weave

            url = "http://localhost:{port}/"
            wove.config(environments={{"theirs": {{"executor": "http", "executor_config": {{"url": url}}}}}})

            async def main():
                over = threading.Event()
                busy = [asyncio.create_task(asyncio.to_thread(over.wait)) for _ in range(200)]
                await asyncio.sleep(0.1)
                try:
                    async with weave() as w:
                        @w.do(range(20), environment="theirs")
                        def squared(n):
                            return n * n
                        @w.do
                        def last(squared):
                            return sum(squared)
                    print(w.result.last)
                finally:
                    over.set()
                    await asyncio.gather(*busy)

            asyncio.run(main())
            print(sorted(t.name for t in threading.enumerate() if "ThreadPool" in t.name))
            """
        )
    assert found.stdout.splitlines() == [str(sum(n * n for n in range(20))), "[]"]


# ------------------------------------------------------------------ their client, our service


@pytest.mark.parametrize("secret", [None, SECRET], ids=["open", "signed"])
def test_their_client_drives_our_service(secret: str | None, tmp_path: Path) -> None:
    with running(Plan("http", secret=secret), tmp_path) as service:
        found = subprocess.run(
            [
                sys.executable,
                str(THEIRS / "http_client.py"),
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
    assert told["forged"] in ((401, 403) if secret else (None,))


def test_many_threads_share_one_environment(no_leaks: None) -> None:
    with their_service() as port:
        configure(f"http://127.0.0.1:{port}/", max_connections=4)
        sums: list[int] = []

        def work(start: int) -> None:
            with weave() as w:

                @w.do(range(start, start + 50), environment="theirs")
                def same(item: int) -> int:
                    return item

            sums.append(sum(w.result.same))

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1000, 2000, 3000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sums) == [sum(range(start, start + 50)) for start in (0, 1000, 2000, 3000)]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/connections", timeout=30) as response:
            assert int(response.read()) <= 4 + 1
        wove.shutdown()
