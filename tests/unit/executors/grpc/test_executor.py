"""`executor="grpc"`: its configuration, its one connection, and processes that fork or end with a channel open."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.support.forms import soon
from tests.support.scripts import Finished, needs_threads_at_the_end
from tests.support.services import Plan, Service, running

import wove
from wove import DeliveryTimeoutError, EnvironmentExecutionError, SerializationError, weave
from wove.errors import install_command
from wove.executors.grpc.executor import GrpcEnvironmentExecutor

pytestmark = pytest.mark.backend("grpc")

Script = Callable[..., Finished]
STRICT = ("-X", "dev", "-W", "error")
# Python 3.12 and later warn of a fork in a process with threads; that is what is tried here.
FORKS = (*STRICT, "-W", "ignore:This process:DeprecationWarning")


def started(**config: Any) -> GrpcEnvironmentExecutor:
    """An executor that was started, and stopped again."""
    executor = GrpcEnvironmentExecutor()

    async def main() -> None:
        await executor.start(environment_name="w", environment_config=config, run_config={})
        await executor.stop()

    asyncio.run(main())
    return executor


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(Plan("grpc"), tmp_path / "service") as found:
        yield found
    wove.shutdown()


def configure(service: Service, **config: Any) -> None:
    wove.config(
        environments={"w": {"executor": "grpc", "executor_config": service.config(**config)}}
    )


# ------------------------------------------------------------------ configuration

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValueError, "executor_config 'target' is missing"),
    ({"target": 9000}, TypeError, "'target' must be text"),
    ({"target": "a host:1"}, ValueError, "'target': 'a host:1' is not a gRPC target"),
    (
        {"target": "localhost:1", "secured": True},
        ValueError,
        "no executor_config key 'secured'.*secure",
    ),
    ({"target": "localhost:1", "secure": "yes"}, TypeError, "'secure'"),
    (
        {"target": "localhost:1", "method": "Send"},
        ValueError,
        "'method' must be a full path such as '/wove",
    ),
    ({"target": "localhost:1", "method": "/a b/c"}, ValueError, "'method'"),
    ({"target": "localhost:1", "timeout": 0}, ValueError, "'timeout'"),
    (
        {"target": "localhost:1", "metadata": {"x-wove-key": "k"}},
        ValueError,
        "'metadata': 'x-wove-key' is set by Wove",
    ),
    (
        {"target": "localhost:1", "metadata": {"a\nb": "k"}},
        ValueError,
        "is not a name for metadata",
    ),
    (
        {"target": "localhost:1", "channel_options": [1]},
        TypeError,
        "'channel_options' must be a dict or pairs",
    ),
    (
        {"target": "localhost:1", "channel_options": {"a": 1.5}},
        TypeError,
        "'channel_options'.*values are",
    ),
    ({"target": "localhost:1", "channel_options": 7}, TypeError, "'channel_options'.*not int"),
    ({"target": "localhost:1", "max_concurrent_calls": 0}, ValueError, "'max_concurrent_calls'"),
    ({"target": "localhost:1", "root_certificates": "x.pem"}, ValueError, "without 'secure': True"),
    (
        {"target": "localhost:1", "secure": True, "root_certificates": "/none.pem"},
        ValueError,
        "'root_certificates'",
    ),
    ({"target": "workers.internal:9000"}, ValueError, 'has no TLS and no security.*"secure": True'),
    ({"target": "workers.internal:9000", "secure": True}, ValueError, "has no security"),
    ({"target": "ipv4:127.0.0.1:1,10.0.0.1:1"}, ValueError, "is not on this machine"),
    ({"target": "dns://10.0.0.1/localhost:1"}, ValueError, "is not on this machine"),
]


@pytest.mark.parametrize(("config", "kind", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said(config: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        started(**config)
    assert str(caught.value).startswith("environment 'w': ")


@pytest.mark.parametrize(
    "config",
    [
        {"target": "localhost:1"},
        {"target": "[::1]:1", "metadata": [("X-Project", "reports"), ("trace-bin", b"\x00")]},
        {"target": "unix:/nowhere"},
        {"target": "workers.internal:1", "insecure": True},
        {
            "target": "workers.internal:1",
            "secure": True,
            "security": {"type": "bearer", "token": "t"},
        },
        {
            "target": "localhost:1",
            "channel_options": [("grpc.lb_policy_name", "round_robin")],
            "timeout": 1,
        },
    ],
    ids=str,
)
def test_what_is_right(config: dict[str, Any]) -> None:
    started(**config)


def test_options_of_the_channel() -> None:
    here = dict(started(target="localhost:1", channel_options={"grpc.enable_retries": 1})._options)
    assert here["grpc.enable_retries"] == 1  # the user's word is the last one
    assert here["grpc.enable_http_proxy"] == 0
    there = dict(started(target="workers.internal:1", insecure=True)._options)
    assert there["grpc.enable_retries"] == 0
    assert "grpc.enable_http_proxy" not in there


def test_without_grpc_it_says_how_to_install_it(script: Script, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    source = Path(wove.__file__).parent
    for module in (source, Path(cloudpickle.__file__).parent):
        (only / module.name).symlink_to(module)
    found = script(
        """
        import wove
        from wove import MissingDependencyError, weave
        wove.config(environments={"w": {"executor": "grpc", "executor_config": {"target": "localhost:1"}}})
        try:
            with weave() as w:
                @w.do(environment="w")
                def never():
                    return 1
        except MissingDependencyError as error:
            print(error)
        try:
            import wove.services.grpc
        except MissingDependencyError as error:
            print(error)
        """,
        flags=("-S",),
        env={"PYTHONPATH": str(only)},
    )
    assert found.stdout.count(install_command("grpc")) == 2
    assert found.stdout.startswith("environment 'w': the grpc executor needs the package grpc")


def test_grpc_is_imported_when_the_executor_starts(script: Script) -> None:
    found = script(
        """
        import sys
        import wove
        from wove import weave

        wove.GrpcEnvironmentExecutor
        wove.config(environments={"w": {"executor": "grpc", "executor_config": {"target": "localhost:1"}}})
        with weave() as w:
            @w.do
            def here():
                return "grpc" in sys.modules
        print(w.result.here)
        """
    )
    assert found.stdout == "False\n"


# ------------------------------------------------------------------ one connection


def peers(service: Service) -> set[str]:
    """The client addresses in the service's log: one for each connection."""
    return set(re.findall(r"run \S+ task \S+ from (\S+):", service.log()))


def test_two_hundred_runs_and_three_weaves_are_one_connection(service: Service) -> None:
    configure(service)
    for start in (0, 100, 200):
        with weave() as w:

            @w.do(range(start, start + 100), workers=1, environment="w")
            def same(item: int) -> int:
                return item

        assert w.result.same == list(range(start, start + 100))
    assert len(peers(service)) == 1


def test_a_thousand_runs_in_flight(tmp_path: Path) -> None:
    with running(Plan("grpc", concurrency=1000), tmp_path / "service") as service:
        configure(service)
        with weave() as w:

            @w.do(range(1000), environment="w")
            async def slow(item: int) -> int:
                import asyncio

                await asyncio.sleep(1)
                return item

        assert w.result.slow == list(range(1000))
        assert len(peers(service)) == 1
        wove.shutdown()


def test_beyond_the_bound_runs_wait_and_are_taken_back_unsent(
    service: Service, tmp_path: Path
) -> None:
    configure(service, max_concurrent_calls=1)
    started, over = tmp_path / "started", tmp_path / "over"

    def occupy() -> None:
        with weave(started=started, over=over) as w:

            @w.do(environment="w")
            def first(started: Path, over: Path) -> None:
                import time

                started.touch()
                while not over.exists():
                    time.sleep(0.01)

    thread = threading.Thread(target=occupy)
    thread.start()
    try:
        soon(started.exists)
        with weave(error_mode="continue") as w:

            @w.do(range(3), environment="w", delivery_timeout=0.7)
            def waiting(item: int) -> int:
                return item

        assert isinstance(w.result.exception, DeliveryTimeoutError)
    finally:
        over.touch()
        thread.join()
    assert "task 'waiting'" not in service.log()


def test_thirty_megabytes_there_and_back(service: Service) -> None:
    configure(service)
    data = bytes(range(256)) * 120_000
    with weave(blob=data) as w:

        @w.do(environment="w")
        def echo(blob: bytes) -> bytes:
            return blob

        @w.do(range(20), environment="w")
        def small(item: int) -> int:
            return item

    assert w.result.echo == data
    assert w.result.small == list(range(20))


def test_more_than_is_allowed_is_not_sent(service: Service) -> None:
    configure(service, max_message_bytes=100_000)
    with pytest.raises(
        SerializationError, match=r"more than 100000 \(executor_config 'max_message_bytes'\)"
    ):
        with weave(blob=bytes(100_000)) as w:

            @w.do(environment="w")
            def never(blob: bytes) -> None: ...

    with pytest.raises(
        EnvironmentExecutionError, match="RESOURCE_EXHAUSTED.*'max_message_bytes' on both sides"
    ):
        with weave() as w:

            @w.do(environment="w")
            def large() -> bytes:
                return bytes(200_000)


def test_metadata_and_another_method(tmp_path: Path) -> None:
    """With a server of the user's own, and a handler of ours in it."""
    import grpc.aio

    from wove.services.grpc import worker_handler

    seen: dict[str, Any] = {}
    ready, over = threading.Event(), threading.Event()
    port = 0

    class Watcher(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.update(details.invocation_metadata)
            return await continuation(details)

    async def main() -> None:
        nonlocal port
        handler = worker_handler(security="none", method="/our.own.Workers/Run")
        server = grpc.aio.server(interceptors=[Watcher()])
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.01)
        await server.stop(1)
        await handler.queue.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(30)
        config = {
            "target": f"localhost:{port}",
            "method": "/our.own.Workers/Run",
            "metadata": {"X-Project": "reports", "trace-bin": b"\x00\xff"},
        }
        wove.config(environments={"w": {"executor": "grpc", "executor_config": config}})
        with weave() as w:

            @w.do(environment="w")
            def answer() -> int:
                return 42

        assert w.result.answer == 42
        wove.shutdown()
    finally:
        over.set()
        thread.join()
    assert seen["x-project"] == "reports" and seen["trace-bin"] == b"\x00\xff"
    assert seen["user-agent"].startswith(f"wove/{wove.__version__} grpc-")


# ------------------------------------------------------------------ forks and ends

PREAMBLE = """
import os, sys, threading, time
import wove
from wove import weave
wove.config(environments={"w": {"executor": "grpc", "executor_config": {"target": sys.argv[1]}}})

def run(what):
    with weave() as w:
        @w.do(environment="w")
        def answer():
            return what
    return w.result.answer

def run_until_forked():
    with weave(folder=os.getcwd()) as w:
        @w.do(environment="w")
        def wait(folder):
            import os, time
            open(os.path.join(folder, "started"), "x").close()
            while not os.path.exists(os.path.join(folder, "forked")):
                time.sleep(0.01)

def fork():
    child = os.fork()
    if child == 0:
        try:
            print(run("child"), flush=True)
        except wove.DeliveryError as error:
            print(error, flush=True)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def script_of(
    script: Script, service: Service, source: str, flags: Sequence[str] = STRICT, **options: Any
) -> Finished:
    return script(PREAMBLE + source, service.address, flags=flags, **options)


def test_a_fork_between_runs(service: Service, script: Script) -> None:
    found = script_of(
        script,
        service,
        'print(run("parent"))\nsys.stdout.flush()\nfor _ in range(3):\n    fork()\nprint(run("parent"))',
        flags=FORKS,
    )
    assert found.stdout.split() == ["parent", *["child", "7"] * 3, "parent"]
    assert found.complaints == []


def test_a_fork_under_a_run_is_an_error_in_the_child(
    service: Service, script: Script, tmp_path: Path
) -> None:
    # With a call in flight, up to half of the children of a process with nothing but grpc.aio are killed inside gRPC
    # (1.85), in a thread of its own: SIGSEGV on Python 3.11, mostly SIGABRT from 3.12 on ("Check failed:
    # next_worker->state == KICKED"). Whether Python code of ours ran before is chance. Try again then.
    for _ in range(12):
        for name in ("started", "forked"):
            (tmp_path / name).unlink(missing_ok=True)
        found = script_of(
            script,
            service,
            "other = threading.Thread(target=run_until_forked)\nother.start()\n"
            "while not os.path.exists('started'):\n    time.sleep(0.01)\n"
            'fork()\nopen("forked", "x").close()\nother.join()\nprint(run("parent"))',
            flags=FORKS,
        )
        *error, status, last = found.stdout.splitlines()
        assert last == "parent"
        if status not in (str(-signal.SIGSEGV), str(-signal.SIGABRT)):
            break
    assert status == "7"
    assert (
        "gRPC cannot be used in this process: it was forked while its parent had runs under way"
        in error[0]
    )


@pytest.mark.parametrize(
    "source",
    [
        'print(run("done"))',
        'print(run("done"))\nwove.shutdown()\nprint(run("done"))',
        'print(run("done"), flush=True)\nos.kill(os.getpid(), 15)',
        # A weave that runs in the background until the process has ended everything else.
        pytest.param(
            'with weave(background=True) as w:\n    @w.do(environment="w")\n    def task():\n        pass\n'
            'print("done")',
            marks=needs_threads_at_the_end,
        ),
    ],
    ids=["idle", "shut down", "killed", "in flight"],
)
def test_the_end_of_a_process_is_silent(service: Service, script: Script, source: str) -> None:
    found = script_of(script, service, source, check=False)
    assert found.stdout.startswith("done")
    assert found.returncode in (0, -15)
    assert found.complaints == []
    assert found.seconds < 20


def test_a_thread_that_is_left_behind_ends_with_the_process(
    service: Service, script: Script
) -> None:
    found = script_of(
        script,
        service,
        """
def wait():
    try:
        run_until_forked()
    except wove.WorkerLostError as error:
        print(error, flush=True)

threading.Thread(target=wait, daemon=True).start()
while not os.path.exists("started"):
    time.sleep(0.01)
""",
    )
    assert found.seconds < 20 and found.complaints == []
    soon(lambda: "task 'wait' from" in service.log())  # cancelled there, too: its client is gone
    assert "cancelled" in service.log()
