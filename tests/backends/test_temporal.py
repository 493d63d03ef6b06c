"""Temporal, with the real server: what is special about it beside what the contract suite asks of every backend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up, sleep_and_tell
from tests.contract.test_contract import eventually, lines
from tests.support import workers
from tests.support.elsewhere import ways
from tests.support.kept import free_port
from tests.support.scripts import run_script
from tests.support.servers import Servers, temporal
from tests.support.servers.temporal import Temporal
from tests.support.workers import Worker
from wove import WorkerLostError, weave
from wove.errors import DeliveryError, DeliveryTimeoutError

pytestmark = [pytest.mark.backend("temporal"), pytest.mark.timeout(120)]

READY = "takes runs from task queue"

OWN_WORKER = """
import asyncio
import base64
import sys
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from tests.support import temporal_codec
from wove.integrations.temporal import run_payload


@workflow.defn
class Audited:
    def __init__(self) -> None:
        self.steps = []

    @workflow.run
    async def run(self, payload: dict[str, Any]) -> None:
        self.steps.append("begun")
        await run_payload(payload)


async def main(address: str, queue: str) -> None:
    from wove.integrations.temporal import activities, workflows

    client = await Client.connect(address, data_converter=temporal_codec.CONVERTER)
    worker = Worker(client, task_queue=queue, workflows=[Audited, *workflows()], activities=activities())
    async with worker:
        print("takes runs from task queue", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server(servers: Servers) -> Temporal:
    return servers.temporal


@pytest.fixture
def queue() -> str:
    return f"queue-{secrets.token_hex(4)}"


@pytest.fixture
def configure(server: Temporal, queue: str) -> Iterator[Callable[..., None]]:
    """Configures the environment "there"."""

    def configure(**config: Any) -> None:
        given = {
            "task_queue": queue,
            **({} if "client" in config else {"target_host": server.address}),
            **config,
        }
        wove.config(environments={"there": {"executor": "temporal", "executor_config": given}})

    configure()
    yield configure
    wove.shutdown()


def start_worker(server: Temporal, queue: str, folder: Path, *options: str, **more: Any) -> Worker:
    command = workers.module(
        "wove.integrations.temporal",
        "--task-queue",
        queue,
        "--target-host",
        server.address,
        *options,
        ready=READY,
    )
    return Worker.start(command, folder / "worker", **more)


@pytest.fixture
def worker(server: Temporal, queue: str, tmp_path: Path) -> Iterator[Worker]:
    with start_worker(server, queue, tmp_path, environ={"WOVE_WORKER_SECRET": None}) as worker:
        yield worker


@pytest.fixture
def own_worker(server: Temporal, queue: str, tmp_path: Path) -> Iterator[Worker]:
    """A worker of the user's own, whose client encodes what it sends."""
    command = workers.module("own_worker", server.address, queue, ready=READY)
    with Worker.start(command, tmp_path / "worker", modules={"own_worker": OWN_WORKER}) as worker:
        yield worker


there_is, there_will_be, _ = ways("there")


async def connected(server: Temporal, **options: Any) -> Any:
    from temporalio.client import Client

    return await Client.connect(server.address, **options)


async def found(client: Any, queue: str) -> list[Any]:
    return [each async for each in client.list_workflows(f"TaskQueue = '{queue}'")]


async def the_one(client: Any, queue: str) -> Any:
    """The one workflow in *queue*, as soon as it is to be seen."""
    deadline = time.monotonic() + 20
    while not (seen := await found(client, queue)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    [one] = seen
    return one


async def status_of(client: Any, one: Any) -> str:
    return str((await client.get_workflow_handle(one.id, run_id=one.run_id).describe()).status.name)


async def until_status(client: Any, one: Any, status: str) -> None:
    deadline = time.monotonic() + 30
    while (now := await status_of(client, one)) != status:
        assert time.monotonic() < deadline, now
        await asyncio.sleep(0.05)


# ------------------------------------------------------------------------------------- what Temporal is told


def test_nothing_but_a_task_queue(tmp_path: Path) -> None:
    """As in the example with which the documentation of remote environments begins."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 7233))
        except OSError:
            pytest.skip("something listens where Temporal listens by default")
    command = workers.module(
        "wove.integrations.temporal", "--task-queue", "wove-reports", ready=READY
    )
    with (
        temporal.running(tmp_path / "server", port=7233),
        Worker.start(command, tmp_path / "worker"),
    ):
        wove.config(
            environments={
                "default": {"executor": "local", "max_workers": 64},
                "reports": {
                    "executor": "temporal",
                    "executor_config": {"task_queue": "wove-reports"},
                    "retries": 3,
                    "timeout": 120.0,
                    "delivery_timeout": 20.0,
                    "delivery_cancel_mode": "best_effort",
                },
            },
        )
        with weave(environment="default") as w:

            @w.do
            def account_ids() -> list[str]:
                return ["acct_1", "acct_2", "acct_3"]

            @w.do("account_ids", workers=4, environment="reports")
            def report(item: str) -> dict[str, str]:
                return {"account_id": item, "status": "ready"}

            @w.do
            def report_index(report: list[dict[str, str]]) -> dict[str, dict[str, str]]:
                return {row["account_id"]: row for row in report}

        wove.shutdown()
    assert list(w.result.report_index) == ["acct_1", "acct_2", "acct_3"]


def test_what_a_workflow_looks_like(
    server: Temporal, queue: str, worker: Worker, configure: Callable[..., None]
) -> None:
    configure(workflow_id_prefix="shop/", start_options={"memo": {"team": "billing"}})
    assert there_is(add_one, item=1) == 2

    async def look() -> None:
        client = await connected(server)
        one = await the_one(client, queue)
        assert one.id.startswith("shop/")
        assert one.workflow_type == "wove.run_backend_payload"
        description = await client.get_workflow_handle(one.id).describe()
        assert await description.memo() == {"team": "billing"}
        assert await description.static_summary() == "add_one"
        await until_status(client, one, "COMPLETED")

    asyncio.run(look())


def test_large_values_stay_out_of_temporal(
    server: Temporal, queue: str, worker: Worker, configure: Callable[..., None]
) -> None:
    with weave(content=os.urandom(1 << 20) * 50) as w:

        @w.do(environment="there")
        def reverse(content: bytes) -> bytes:
            return content[::-1]

    assert bool(w.result.reverse == w.result.content[::-1])

    async def look() -> None:
        client = await connected(server)
        handle = client.get_workflow_handle((await the_one(client, queue)).id)
        assert (await handle.fetch_history()).to_json().__len__() < 64 * 1024

    asyncio.run(look())


# ------------------------------------------------------------------------------------------ what is the user's


def test_a_client_and_a_codec_of_ones_own(
    server: Temporal, queue: str, own_worker: Worker, configure: Callable[..., None]
) -> None:
    from tests.support import temporal_codec

    async def main() -> None:
        client = await connected(server, data_converter=temporal_codec.CONVERTER)
        configure(client=client)
        temporal_codec.threads.clear()
        assert await there_will_be(add_one, item=1) == 2
        assert temporal_codec.threads == {threading.get_ident()}  # on the loop of whoever made it
        plain = await connected(server)
        history = await plain.get_workflow_handle((await the_one(plain, queue)).id).fetch_history()
        assert "callable_pickle" not in history.to_json()

    asyncio.run(main())


def test_a_client_whose_loop_has_ended(
    server: Temporal, worker: Worker, configure: Callable[..., None]
) -> None:
    configure(client=asyncio.run(connected(server)))
    assert there_is(add_one, item=1) == 2
    assert asyncio.run(there_will_be(add_one, item=2)) == 3
    assert asyncio.run(there_will_be(add_one, item=3)) == 4


@pytest.mark.parametrize("given", ["name", "class", "method"])
def test_a_workflow_of_ones_own(
    server: Temporal, queue: str, own_worker: Worker, configure: Callable[..., None], given: str
) -> None:
    from tests.support import temporal_codec
    from tests.support.temporal_codec import Audited

    chosen = {"name": "Audited", "class": Audited, "method": Audited.run}[given]
    configure(workflow=chosen, connect_options={"data_converter": temporal_codec.CONVERTER})
    assert there_is(add_one, item=1) == 2

    async def look() -> None:
        client = await connected(server)
        assert (await the_one(client, queue)).workflow_type == "Audited"

    asyncio.run(look())


def test_something_that_is_no_workflow(configure: Callable[..., None]) -> None:
    configure(workflow=add_one)
    with pytest.raises(
        TypeError, match=r"'workflow' must be a workflow's name, a class with @workflow\.defn"
    ):
        there_is(add_one, item=1)


@pytest.mark.parametrize("key", ["start_options", "connect_options"])
def test_an_option_that_temporal_does_not_know(configure: Callable[..., None], key: str) -> None:
    configure(**{key: {"rpc_metadta": {}}})
    with pytest.raises(
        ValueError, match=rf"'{key}' has 'rpc_metadta'.*Did you mean 'rpc_metadata'"
    ):
        there_is(add_one, item=1)


# ------------------------------------------------------------------------------------- what cannot be reached


def test_no_server(configure: Callable[..., None]) -> None:
    address = f"127.0.0.1:{free_port()}"
    configure(target_host=address)
    with pytest.raises(
        DeliveryError, match=rf"no Temporal server could be reached at {address}.*start-dev"
    ):
        there_is(add_one, item=1)


def test_no_namespace(configure: Callable[..., None]) -> None:
    configure(connect_options={"namespace": "nowhere"})
    with pytest.raises(
        DeliveryError, match=r"namespace 'nowhere'.*temporal operator namespace create nowhere"
    ):
        there_is(add_one, item=1)


def test_no_worker(
    configure: Callable[..., None], queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wove"), pytest.raises(DeliveryTimeoutError):
        there_is(add_one, item=1, options={"delivery_timeout": 6.0, "delivery_notice_seconds": 0.5})
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "no Temporal worker polls" in record.getMessage()
    ]
    assert len(warnings) == 1
    assert f"--task-queue {queue}" in warnings[0]


# ----------------------------------------------------------------------------------- what happens in Temporal


async def _terminate(client: Any, one: Any) -> None:
    await client.get_workflow_handle(one.id).terminate(reason="the budget is spent")


async def _cancel(client: Any, one: Any) -> None:
    await client.get_workflow_handle(one.id).cancel()


async def _delete(client: Any, one: Any) -> None:
    from temporalio.api.common.v1 import WorkflowExecution
    from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest

    where = WorkflowExecution(workflow_id=one.id, run_id=one.run_id)
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=where)
    )


Deed = Callable[[Any, Any], Awaitable[None]]


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        (_terminate, r"was terminated by \S+@\S+: the budget is spent"),
        (_cancel, "was cancelled in Temporal"),
        (_delete, "terminated|gone from Temporal|has ended in Temporal"),
    ],
)
@pytest.mark.parametrize("when", ["waits", "runs"])
def test_a_workflow_that_somebody_else_ends(
    server: Temporal,
    queue: str,
    configure: Callable[..., None],
    tmp_path: Path,
    when: str,
    deed: Deed,
    words: str,
) -> None:
    async def main() -> None:
        values = {"path": str(tmp_path / "path"), "told": str(tmp_path / "told")}
        with contextlib.ExitStack() as stack:
            if when == "runs":
                stack.enter_context(start_worker(server, queue, tmp_path))
            running = asyncio.create_task(there_will_be(sleep_and_tell, **values))
            client = await connected(server)
            one = await the_one(client, queue)
            if when == "runs":
                await eventually(lambda: lines(tmp_path / "path"))
            await deed(client, one)
            if when == "waits" and deed is _cancel:  # a worker is needed to carry it out
                stack.enter_context(await asyncio.to_thread(start_worker, server, queue, tmp_path))
            with pytest.raises(WorkerLostError, match=words):
                await running
            if when == "runs":
                await eventually(lambda: lines(tmp_path / "told") == ["cancelled"])

    asyncio.run(main())


def test_a_workflow_that_times_out(configure: Callable[..., None]) -> None:
    from datetime import timedelta

    configure(start_options={"execution_timeout": timedelta(seconds=1)})
    with pytest.raises(WorkerLostError, match="timed out in Temporal"):
        there_is(add_one, item=1)


def test_a_workflow_that_is_tried_again(
    server: Temporal, queue: str, own_worker: Worker, configure: Callable[..., None], tmp_path: Path
) -> None:
    """The user's own retry policy: not lost as long as there is another run of it."""
    from datetime import timedelta

    from temporalio.common import RetryPolicy

    from tests.support import temporal_codec

    source = OWN_WORKER.replace('self.steps.append("begun")', "await self.fail_twice()").replace(
        "    @workflow.run",
        textwrap.indent(
            textwrap.dedent(
                """
                async def fail_twice(self):
                    from temporalio.exceptions import ApplicationError
                    if workflow.info().attempt < 3:
                        raise ApplicationError("not yet")

                @workflow.run"""
            ),
            "    ",
        ),
    )
    own_worker.stop()
    configure(
        workflow="Audited",
        connect_options={"data_converter": temporal_codec.CONVERTER},
        start_options={
            "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=5)
        },
    )
    command = workers.module("retrying", server.address, queue, ready=READY)
    with Worker.start(command, tmp_path / "retrying", modules={"retrying": source}):
        assert there_is(add_one, item=1) == 2


def test_a_payload_that_is_refused(
    server: Temporal, queue: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    with start_worker(server, queue, tmp_path, environ={"WOVE_WORKER_SECRET": "another"}):
        with pytest.raises(WorkerLostError, match=r"failed: PermissionError: .*sign"):
            there_is(add_one, item=1)
        configure(security={"type": "signed", "secret": "wrong"})
        with pytest.raises(WorkerLostError, match=r"failed: PermissionError: .*"):
            there_is(add_one, item=1)
        configure(security={"type": "signed", "secret": "another"})
        assert there_is(add_one, item=1) == 2


def test_an_activity_that_no_worker_knows(
    server: Temporal, queue: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    source = OWN_WORKER.replace("activities=activities()", "activities=[other]").replace(
        "async def main",
        "from temporalio import activity\n\n@activity.defn\nasync def other() -> None: ...\n\nasync def main",
    )
    from tests.support import temporal_codec

    configure(connect_options={"data_converter": temporal_codec.CONVERTER})
    command = workers.module("lacking", server.address, queue, ready=READY)
    with Worker.start(command, tmp_path / "lacking", modules={"lacking": source}):
        with pytest.raises(
            WorkerLostError,
            match=r"Activity function wove\.run_backend_payload .* is not registered",
        ):
            there_is(add_one, item=1)


def test_a_stuck_workflow_is_not_left_behind(
    server: Temporal, queue: str, worker: Worker, configure: Callable[..., None]
) -> None:
    configure(workflow="Unknown")
    with pytest.raises(
        WorkerLostError, match=r"of type 'Unknown' cannot be run: .*Unknown is not registered"
    ):
        there_is(add_one, item=1)

    async def look() -> None:
        client = await connected(server)
        await until_status(client, await the_one(client, queue), "TERMINATED")

    asyncio.run(look())


# ---------------------------------------------------------------------------------------------------- cancel


def test_a_cancelled_run_that_no_worker_has_begun(
    server: Temporal, queue: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    options = {"delivery_timeout": 2.0, "delivery_cancel_mode": "require_ack"}
    with pytest.raises(DeliveryTimeoutError, match="did not finish within"):
        there_is(count_up, path=str(tmp_path / "never"), options=options)

    async def look() -> None:
        client = await connected(server)
        await until_status(client, await the_one(client, queue), "TERMINATED")

    asyncio.run(look())
    with start_worker(server, queue, tmp_path):
        assert there_is(add_one, item=1) == 2
    assert not lines(tmp_path / "never")


def test_a_cancelled_run_is_cancelled_in_temporal(
    server: Temporal, queue: str, worker: Worker, configure: Callable[..., None], tmp_path: Path
) -> None:
    async def main() -> None:
        values = {"path": str(tmp_path / "path"), "told": str(tmp_path / "told")}
        running = asyncio.create_task(there_will_be(sleep_and_tell, **values))
        await eventually(lambda: lines(tmp_path / "path"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: lines(tmp_path / "told") == ["cancelled"])
        client = await connected(server)
        one = await the_one(client, queue)
        deadline = time.monotonic() + 30
        while (status := await status_of(client, one)) == "RUNNING":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert status in ("CANCELED", "COMPLETED")  # as Temporal or Wove told its worker first

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ keys


def test_a_key_that_another_process_uses(
    server: Temporal, queue: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    async def start() -> None:
        from wove.integrations.naming import job_id

        frame = {
            "run_id": "r",
            "task_id": "add_one",
            "delivery": {"delivery_idempotency_key": "one"},
        }
        client = await connected(server)
        await client.start_workflow(
            "wove.run_backend_payload", {}, id=job_id(frame, most=255), task_queue=queue
        )

    asyncio.run(start())
    with pytest.raises(DeliveryError, match=r"another process has started"):
        there_is(add_one, item=1, options={"delivery_idempotency_key": "one"})


def test_a_key_that_another_environment_uses(
    server: Temporal, queue: str, worker: Worker, tmp_path: Path
) -> None:
    there = {
        "executor": "temporal",
        "executor_config": {"task_queue": queue, "target_host": server.address},
    }
    wove.config(environments={"there": there, "beside": there})

    async def main() -> None:
        values = {"path": str(tmp_path / "path"), "until": str(tmp_path / "until")}
        options = {"delivery_idempotency_key": "one"}
        running = asyncio.create_task(there_will_be(block, **values, options=options))
        await eventually(lambda: lines(tmp_path / "path"))
        with pytest.raises(DeliveryError, match="another environment of this process has started"):
            await ways("beside").there_will_be(block, **values, options=options)
        (tmp_path / "until").touch()
        assert await running == "done"

    try:
        asyncio.run(main())
    finally:
        wove.shutdown()


def test_a_key_whose_run_was_lost(
    server: Temporal, queue: str, worker: Worker, configure: Callable[..., None], tmp_path: Path
) -> None:
    """Temporal has not noticed yet when the run is submitted again."""
    worker.stop()
    pids, until = str(tmp_path / "pids"), str(tmp_path / "until")

    async def main() -> None:
        options = {"delivery_idempotency_key": "once", "delivery_orphan_policy": "requeue"}
        with start_worker(server, queue, tmp_path, restarts=True) as worker:
            running = asyncio.create_task(
                there_will_be(block, path=pids, until=until, options=options)
            )
            await eventually(lambda: lines(Path(pids)))
            await asyncio.to_thread(worker.kill)
            await eventually(lambda: len(lines(Path(pids))) == 2)
            Path(until).touch()
            assert await running == "done"

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------- beginnings, ends


@pytest.mark.parametrize("policy", ["cancel", "requeue"])
def test_a_worker_that_is_stopped(
    server: Temporal, queue: str, configure: Callable[..., None], tmp_path: Path, policy: str
) -> None:
    pids, until = str(tmp_path / "pids"), tmp_path / "until"

    async def main() -> None:
        with start_worker(
            server, queue, tmp_path, "--drain-timeout", "0.5", restarts=True
        ) as worker:
            options = {"delivery_orphan_policy": policy}
            running = asyncio.create_task(
                there_will_be(block, path=pids, until=str(until), options=options)
            )
            [pid] = await eventually(lambda: lines(Path(pids)))
            os.kill(int(pid), 15)
            if policy == "requeue":
                await eventually(lambda: len(lines(Path(pids))) == 2)
                until.touch()
                assert await running == "done"
            else:
                with pytest.raises(WorkerLostError, match="the worker is shutting down"):
                    await running
                until.touch()
            assert "Traceback" not in worker.log()

    asyncio.run(main())


def test_a_worker_without_its_namespace(server: Temporal) -> None:
    options = ("--task-queue", "q", "--target-host", server.address, "--namespace", "nowhere")
    command = [sys.executable, "-m", "wove.integrations.temporal", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"Namespace nowhere is not found.*with --namespace", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_worker_that_comes_before_its_server_and_ends_when_told(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = workers.module(
        "wove.integrations.temporal",
        "--task-queue",
        "q",
        "--target-host",
        address,
        ready="cannot be reached",
    )
    with Worker.start(command, tmp_path / "worker") as worker:
        assert worker.stop() == 0


_SCRIPT = """
import os, sys
from wove.errors import DeliveryError
import wove
from wove import weave

wove.config(environments={{"there": {{
    "executor": "temporal", "executor_config": {{"task_queue": {queue!r}, "target_host": {address!r}}}
}}}})

def one():
    with weave(number=1) as w:
        @w.do(environment="there")
        def more(number):
            return number + 1
    return w.result.more

if __name__ == "__main__":
    print(one())
"""


def test_an_interpreter_ends_well(
    server: Temporal, queue: str, worker: Worker, tmp_path: Path
) -> None:
    script = tmp_path / "ends.py"
    script.write_text(_SCRIPT.format(queue=queue, address=server.address))
    for _ in range(5):
        done = run_script(script, cwd=tmp_path, timeout=60)
        assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="os.fork with threads warns")
def test_forks(server: Temporal, queue: str, worker: Worker, tmp_path: Path) -> None:
    """Before the first run, a child is as good as its parent; later it is told why not, and ends well."""
    script = tmp_path / "forks.py"
    forking = """
    def fork():
        child = os.fork()
        if child == 0:
            try:
                print("child", one(), flush=True)
            except DeliveryError as error:
                print(error, flush=True)
            sys.exit(0)
        print("parent", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), one())

    fork()
    fork()
"""
    script.write_text(
        _SCRIPT.format(queue=queue, address=server.address).replace("    print(one())\n", "")
        + forking
    )
    done = run_script(script, cwd=tmp_path, timeout=60)
    first, parent, second, parent_again = done.stdout.splitlines()
    assert (first, parent, parent_again) == ("child 2", "parent 0 2", "parent 0 2"), done.stderr
    assert "forked from one that had used Temporal's library" in second
