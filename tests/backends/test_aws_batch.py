"""AWS Batch, as moto speaks it, with jobs that are processes: what goes wrong there, and what it costs to notice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, die
from tests.contract.test_contract import eventually, lines
from tests.support.elsewhere import ways
from tests.support.kept import free_port
from tests.support.leaks import leak_check
from tests.support.receiving import eventually as finished
from tests.support.servers import aws_batch
from tests.support.servers.aws_batch import AWSBatch
from tests.support.volume import volume
from wove import WorkerLostError, weave
from wove.errors import DeliveryError

pytestmark = [pytest.mark.backend("aws_batch"), pytest.mark.timeout(120)]

JOBS = volume(200, 40)
WORKER = ["python", "-m", "wove.backend_worker"]
Configure = Callable[..., None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AWSBatch]:
    with aws_batch.running(tmp_path_factory.mktemp("batch"), slots=4) as found:
        found.queue("reports")
        found.definition("worker", WORKER)
        yield found


@pytest.fixture
def there(
    server: AWSBatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    base = {
        "client_options": server.client_options,
        "job_queue": "reports",
        "job_definition": "worker",
    }

    def configure(**more: Any) -> None:
        config = {key: value for key, value in {**base, **more}.items() if value is not None}
        wove.config(environments={"there": {"executor": "aws_batch", "executor_config": config}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("there")


def test_a_definition_whose_image_is_not_there(there: Configure, server: AWSBatch) -> None:
    server.definition("no-image", WORKER, image="no.such/image:1")
    there(job_definition="no-image")
    with pytest.raises(
        WorkerLostError, match=r"job \S+ failed: CannotPullContainerError: pull access denied"
    ):
        there_is(add_one, item=1)


def test_a_command_that_fails_says_how(there: Configure) -> None:
    there(command="sh -c 'exit 7'")
    with pytest.raises(WorkerLostError, match=r"Essential container in task exited; exit code 7"):
        there_is(add_one, item=1)


def test_a_command_of_its_own_where_the_definition_has_none(
    there: Configure, server: AWSBatch
) -> None:
    server.definition("bare", [])
    there(job_definition="bare")
    assert there_is(add_one, item=1) == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"job_queue": "no-such"}, "AWS Batch has no job queue 'no-such'"),
        ({"job_definition": "no-such"}, "AWS Batch has no active job definition 'no-such'"),
    ],
)
def test_a_wrong_name(there: Configure, config: dict[str, Any], words: str) -> None:
    there(**config)
    with pytest.raises(ValueError, match=words):
        there_is(add_one, item=1)


def test_a_place_where_nobody_answers(there: Configure, server: AWSBatch) -> None:
    port = free_port()
    there(client_options={**server.client_options, "endpoint_url": f"http://127.0.0.1:{port}"})
    with pytest.raises(
        DeliveryError, match=f"describe job queue reports: EndpointConnectionError: .*{port}"
    ):
        there_is(add_one, item=1)


def test_options_that_are_none(there: Configure, server: AWSBatch) -> None:
    there(client_options={**server.client_options, "no_such_option": 1})
    with pytest.raises(ValueError, match="no client of AWS Batch could be made.*no_such_option"):
        there_is(add_one, item=1)
    there(submit_job_options={"timeout": {"attemptDurationSeconds": "an hour"}})
    with pytest.raises(
        ValueError, match=r"(?s)not a request that AWS Batch takes.*attemptDurationSeconds"
    ):
        there_is(add_one, item=1)


def test_resources_of_tasks(there: Configure, server: AWSBatch) -> None:
    there(job_name_prefix="asking-")
    asked = {"resources": {"cpus": 2, "memory": "512MiB", "time": "10m"}}
    assert there_is(add_one, item=1, options=asked) == 2
    client = server.client()

    def ended() -> list[str]:
        jobs = client.list_jobs(jobQueue="reports", jobStatus="SUCCEEDED")["jobSummaryList"]
        return [each["jobId"] for each in jobs if each["jobName"].startswith("asking-")]

    [shown] = client.describe_jobs(jobs=finished(ended))["jobs"]
    client.close()
    assert shown["timeout"] == {"attemptDurationSeconds": 600}
    with pytest.raises(ValueError, match="cannot ask for disk"):
        there_is(add_one, item=1, options={"resources": {"disk": "1GiB"}})


def test_a_client_of_the_users_own(there: Configure, server: AWSBatch) -> None:
    client = server.client()
    there(client=client, client_options=None)
    assert there_is(add_one, item=1) == 2
    wove.shutdown()
    assert client.describe_job_queues()["jobQueues"]
    client.close()


def test_a_job_that_others_terminate(there: Configure, server: AWSBatch, tmp_path: Path) -> None:
    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))

        def terminate() -> None:
            client = server.client()

            def ours() -> list[Any]:
                jobs = client.list_jobs(jobQueue="reports", jobStatus="RUNNING")["jobSummaryList"]
                return [job for job in jobs if job["jobName"].startswith("wove-block-")]

            [job] = asyncio.run(eventually(ours))
            client.terminate_job(jobId=job["jobId"], reason="nobody needs it")
            client.close()

        await asyncio.to_thread(terminate)
        with pytest.raises(
            WorkerLostError,
            match="task 'block' was lost: job .* failed: nobody needs it; exit code 137",
        ):
            await running

    asyncio.run(main())


def test_a_key_that_another_process_uses(
    there: Configure, server: AWSBatch, tmp_path: Path
) -> None:
    """Another environment is as another process: it does not know of the first one's runs."""
    config = {
        "client_options": server.client_options,
        "job_queue": "reports",
        "job_definition": "worker",
    }
    environment = {"executor": "aws_batch", "executor_config": config}
    wove.config(environments={"there": environment, "elsewhere": environment})
    values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
    options = {"delivery_idempotency_key": secrets.token_hex(4)}

    async def main() -> None:
        first = begin(block, options=options, **values)
        await eventually(lambda: lines(tmp_path / "pids"))
        with pytest.raises(
            DeliveryError,
            match=r"is already job \S+ of AWS Batch \(\w+\), submitted by another process",
        ):
            await ways("elsewhere").there_will_be(block, options=options, **values)
        (tmp_path / "until").touch()
        assert await first == "done"

    asyncio.run(main())


def test_a_lost_run_with_a_key_is_submitted_again(there: Configure, tmp_path: Path) -> None:
    options = {
        "delivery_idempotency_key": secrets.token_hex(4),
        "delivery_orphan_policy": "requeue",
    }
    assert (
        there_is(die, path=str(tmp_path / "pids"), times=1, after=0.3, options=options)
        == "survived"
    )


@pytest.mark.timeout(400)
def test_many_jobs_take_few_calls_to_watch(there: Configure, server: AWSBatch) -> None:
    calls: list[str] = []
    client = server.client()
    client.meta.events.register("before-call.batch", lambda model, **_: calls.append(model.name))
    there(client=client, client_options=None)
    began = time.monotonic()
    with weave() as w:
        w.do(range(JOBS), environment="there")(add_one)
    assert w.result.add_one == list(range(1, JOBS + 1))
    minutes = max(1.0, (time.monotonic() - began) / 60)
    watching = len([name for name in calls if name.startswith(("Describe", "List"))])
    print(f"{JOBS} jobs in {(time.monotonic() - began):.0f} s, {watching} calls to watch them")
    assert watching <= 20 * minutes
    wove.shutdown()
    client.close()
