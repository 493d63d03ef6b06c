"""The configuration of the AWS Batch adapter, the requests it makes, and how it reads what Batch says."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.errors import DeliveryError
from wove.integrations.aws_batch import client as aws_batch_api
from wove.integrations.aws_batch.adapter import (
    BATCH_BYTES,
    MAX_OVERRIDES,
    OPTIONS,
    RESERVED,
    AWSBatchAdapter,
)
from wove.integrations.aws_batch.client import Api
from wove.integrations.aws_batch.states import status_of
from wove.protocol.names import PAYLOAD_VARIABLE
from wove.protocol.payload import ENVELOPE_BYTES

pytest.importorskip("boto3")

PAYLOAD = {
    "run_id": "abc-1",
    "task_id": "Täsk 1",
    "task_name": "Täsk 1",
    "delivery": {},
    "retry_seconds": 60,
}


def configured(**config: Any) -> AWSBatchAdapter:
    adapter = AWSBatchAdapter(
        "jobs", {"job_queue": "reports", "job_definition": "worker:3", **config}
    )
    adapter.configure()
    return adapter


def request(
    payload: dict[str, Any] = PAYLOAD, task: str = "Täsk 1", **config: Any
) -> dict[str, Any]:
    return configured(**config).request(
        payload, {"run_id": "abc-1", "task_id": task, "delivery": {}}
    )


def variables(count: int, size: int) -> list[dict[str, str]]:
    return [{"name": f"V{number}", "value": "x" * size} for number in range(count)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"job_queue": None}, "needs 'job_queue'"),
        ({"job_definition": None}, "needs 'job_definition'"),
        ({"job_name_prefix": "ü"}, "'job_name_prefix' must be at most 60"),
        ({"job_name_prefix": "x" * 61}, "'job_name_prefix'"),
        ({"command": ["a"], "container_overrides": {"command": ["b"]}}, "leave one out"),
        (
            {"container_overrides": {"environment": [{"name": PAYLOAD_VARIABLE, "value": ""}]}},
            "that is the payload",
        ),
        ({"container_overrides": {"environment": variables(6, 1000)}}, "of a job may have 8,192"),
        (
            {"submit_job_options": {"arrayProperties": {"size": 2}}},
            "cannot set 'arrayProperties': a run is one job",
        ),
        ({"submit_job_options": {"tagz": {}}}, "no option 'tagz'. Did you mean 'tags'"),
        (
            {"client": SimpleNamespace(submit_job=print), "client_options": {"region_name": "x"}},
            "leave out 'client_opt",
        ),
    ],
)
def test_wrong_values(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"environment 'jobs': .*{words}"):
        configured(**config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"command": [1]}, "'command'"),
        ({"container_overrides": []}, "'container_overrides' must be a dict"),
        ({"container_overrides": {"environment": {"A": "1"}}}, "must be a list of"),
        ({"client": object()}, r"must be a boto3\.client"),
    ],
)
def test_wrong_types(config: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"environment 'jobs': .*{words}"):
        configured(**config)


def test_the_options_are_those_of_boto3() -> None:
    import botocore.session

    model = botocore.session.get_session().get_service_model("batch").operation_model("SubmitJob")
    assert set(OPTIONS) | set(RESERVED) >= set(model.input_shape.members)


# ------------------------------------------------------------------------------------------------- requests


@given(st.text())
def test_any_task_has_a_legal_name(task: str) -> None:
    for prefix in ("wove-", "x" * 60):
        assert re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}",
            request(task=task, job_name_prefix=prefix)["jobName"],
        )


def test_overrides_are_merged() -> None:
    made = request(
        command="python -m wove.backend_worker",
        container_overrides={
            "environment": [{"name": "LEVEL", "value": "3"}],
            "resourceRequirements": [{"type": "MEMORY", "value": "4096"}],
        },
        submit_job_options={"tags": {"team": "data"}, "retryStrategy": {"attempts": 2}},
    )
    overrides = made["containerOverrides"]
    assert [each["name"] for each in overrides["environment"]] == [PAYLOAD_VARIABLE, "LEVEL"]
    assert json.loads(overrides["environment"][0]["value"]) == PAYLOAD
    assert overrides["command"] == ["python", "-m", "wove.backend_worker"]
    assert overrides["resourceRequirements"] == [{"type": "MEMORY", "value": "4096"}]
    assert (made["tags"], made["retryStrategy"]) == ({"team": "data"}, {"attempts": 2})
    assert "timeout" not in made


@pytest.mark.parametrize(
    "environment", [[], [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]]
)
def test_no_override_takes_the_payloads_place(environment: list[dict[str, str]]) -> None:
    made = request(container_overrides={"environment": environment})["containerOverrides"][
        "environment"
    ]
    assert [each["name"] for each in made] == [
        PAYLOAD_VARIABLE,
        *(each["name"] for each in environment),
    ]


def test_a_request_is_measured_as_it_is_sent() -> None:
    """With spaces between its members, of which such a list has many."""
    tags = {f"key-{number}": "x" for number in range(2000)}
    made = {"tags": tags, "containerOverrides": request()["containerOverrides"]}
    compact = len(json.dumps(made, separators=(",", ":")))
    assert compact < 30 * 1024 < len(json.dumps(made))
    with pytest.raises(ValueError, match="SubmitJob request of its job would have 3"):
        request(submit_job_options={"tags": tags})


def test_a_time_limit_comes_after_that_of_the_run_and_is_one_that_batch_takes() -> None:
    assert request({**PAYLOAD, "deadline": 12.5})["timeout"] == {"attemptDurationSeconds": 103}
    assert request({**PAYLOAD, "deadline": 1, "retry_seconds": 0})["timeout"] == {
        "attemptDurationSeconds": 60
    }


def test_what_is_inline_leaves_room_for_overrides() -> None:
    assert configured().inline_bytes >= 2 * ENVELOPE_BYTES
    adapter = configured(container_overrides={"environment": variables(3, 1000)})
    assert ENVELOPE_BYTES <= adapter.inline_bytes < configured().inline_bytes
    # A payload of that size fits, even if it is full of quotes.
    payload = {**PAYLOAD, "names": ["x"] * 60, "args_pickle": "x" * (adapter.inline_bytes - 600)}
    made = adapter.request(payload, {"run_id": "abc-1", "task_id": "t", "delivery": {}})
    assert (
        len(json.dumps(made["containerOverrides"], separators=(",", ":")))
        <= MAX_OVERRIDES - BATCH_BYTES
    )


def test_a_payload_that_cannot_fit_names_the_limit() -> None:
    long = {**PAYLOAD, "delivery": {"delivery_idempotency_key": "x" * 8000}}
    with pytest.raises(
        ValueError, match=r"container overrides of its job would have 8,\d+ .*may have 7,168"
    ):
        request(long)
    with pytest.raises(
        ValueError, match=r"SubmitJob request of its job would have 4\d,\d+ .*may have 30,720"
    ):
        request(submit_job_options={"parameters": {"x": "y" * 40_000}})


# ---------------------------------------------------------------------------------------- answers and fates


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"statusReason": "Host EC2 (instance i-1) terminated."},
            r"Host EC2 \(instance i-1\) terminated\.",
        ),
        (
            {
                "statusReason": "Essential container in task exited",
                "container": {
                    "exitCode": 137,
                    "reason": "OutOfMemoryError: Container killed",
                    "logStreamName": "w/1",
                },
            },
            "Essential container in task exited; OutOfMemoryError: Container killed; exit code 137; its log.* w/1$",
        ),
        (
            {"attempts": [{"container": {"reason": "CannotPullContainerError: no"}}]},
            "CannotPullContainerError: no",
        ),
        ({"statusReason": "x", "container": {"exitCode": 77}}, "exit code 77 .*refused"),
        ({}, "no reason is given"),
    ],
)
def test_a_job_that_failed(job: dict[str, Any], words: str) -> None:
    fate = status_of({"jobId": "1", "status": "FAILED", **job})
    assert fate is not None and fate.state == "lost" and re.search(words, fate.reason)


@pytest.mark.parametrize("status", ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"])
def test_a_job_that_is_not_over(status: str) -> None:
    assert status_of({"jobId": "1", "status": status}) is None


def client_error(code: str) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code, "Message": "Rate exceeded"}}, "SubmitJob")


def test_throttling_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr(aws_batch_api.time, "sleep", delays.append)
    answers: list[Any] = [client_error("TooManyRequestsException")] * 8 + [{"jobId": "1"}]

    def submit_job(**_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert Api(SimpleNamespace(submit_job=submit_job), label="x").submit({"jobName": "n"}) == "1"
    assert len(delays) == 8 and len(set(delays)) == 8
    assert all(0 <= delay <= aws_batch_api.THROTTLE.maximum for delay in delays)


@pytest.mark.parametrize("code", ["ClientException", "ServerException", "AccessDeniedException"])
def test_what_may_have_been_heard_is_not_submitted_twice(code: str) -> None:
    calls: list[Any] = []

    def submit_job(**options: Any) -> Any:
        calls.append(options)
        raise client_error(code)

    with pytest.raises(
        DeliveryError, match=rf"x: AWS Batch refused to submit job n: Rate exceeded \({code}\)"
    ):
        Api(SimpleNamespace(submit_job=submit_job), label="x").submit({"jobName": "n"})
    assert len(calls) == 1


def test_a_hundred_ids_a_call() -> None:
    calls: list[list[str]] = []

    def describe_jobs(jobs: list[str]) -> Any:
        calls.append(jobs)
        return {"jobs": [{"jobId": job} for job in jobs]}

    found = Api(SimpleNamespace(describe_jobs=describe_jobs), label="x").describe(
        map(str, range(250))
    )
    assert len(found) == 250 and [len(each) for each in calls] == [100, 100, 50]


# ------------------------------------------------------------------------------------------------ preflight

QUEUE = {
    "jobQueueName": "reports",
    "jobQueueArn": "a",
    "state": "ENABLED",
    "status": "VALID",
    "priority": 1,
    "computeEnvironmentOrder": [],
}
DEFINITION = {
    "jobDefinitionName": "worker",
    "jobDefinitionArn": "a",
    "revision": 3,
    "type": "container",
}


def started(queue: Any, definition: Any = None) -> AWSBatchAdapter:
    """An adapter that was started with a client of boto3 that is answered so; a text is the code of an error."""
    import boto3
    from botocore.stub import Stubber

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    client = boto3.client("batch", region_name="eu-central-1", **keys)
    stubber = Stubber(client)
    lists = {"describe_job_queues": "jobQueues", "describe_job_definitions": "jobDefinitions"}
    for (method, name), answer in zip(lists.items(), (queue, definition), strict=True):
        if isinstance(answer, str):
            stubber.add_client_error(method, answer, "not authorized to perform it", 403)
        elif answer is not None:
            stubber.add_response(method, {name: [answer]})
    adapter = configured(client=client)
    try:
        with stubber:
            asyncio.run(adapter.start())
            stubber.assert_no_pending_responses()
    finally:
        client.close()
    return adapter


@pytest.mark.parametrize(
    ("queue", "definition", "words"),
    [
        (
            {**QUEUE, "state": "DISABLED"},
            None,
            "job queue 'reports' of AWS Batch takes no jobs: it is DISABLED, VALID",
        ),
        (
            {**QUEUE, "status": "INVALID", "statusReason": "no compute environment"},
            None,
            "takes no jobs: it is ENABLED, INVALID: no compute environment",
        ),
        (
            QUEUE,
            {**DEFINITION, "type": "multinode"},
            "'worker:3' has no containerProperties: .*one container",
        ),
    ],
)
def test_what_can_take_no_job(queue: Any, definition: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"environment 'jobs': .*{words}"):
        started(queue, definition)


def test_resources_are_requirements_and_a_time_limit() -> None:
    frame = {
        "run_id": "abc-1",
        "task_id": "t",
        "delivery": {},
        "resources": {"cpus": 2, "time": 90},
    }
    made = configured().request(PAYLOAD, frame)
    asked = [{"type": "VCPU", "value": "2"}]
    assert made["containerOverrides"]["resourceRequirements"] == asked
    assert made["timeout"] == {"attemptDurationSeconds": 90}

    ours = {"resourceRequirements": [{"type": "VCPU", "value": "8"}]}
    made = configured(container_overrides=ours).request(PAYLOAD, frame)
    assert made["containerOverrides"]["resourceRequirements"] == ours["resourceRequirements"]


def test_the_command_is_that_of_the_job_definition_if_it_has_one() -> None:
    frame = {"run_id": "abc-1", "task_id": "t", "delivery": {}}
    with_one = started(QUEUE, {**DEFINITION, "containerProperties": {"command": ["worker"]}})
    assert "command" not in with_one.request(PAYLOAD, frame)["containerOverrides"]
    without = started(QUEUE, {**DEFINITION, "containerProperties": {"command": []}})
    command = ["python", "-m", "wove.backend_worker"]
    assert without.request(PAYLOAD, frame)["containerOverrides"]["command"] == command


def test_rights_that_are_for_these_checks_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "wove")
    started("AccessDeniedException", "AccessDeniedException")
    assert (
        "not checked beforehand: environment 'jobs': AWS Batch refused to describe job queue reports"
        in caplog.text
    )
    with pytest.raises(ValueError, match="no containerProperties"):
        started("AccessDeniedException", {**DEFINITION, "type": "multinode"})


# ------------------------------------------------------------------------------------- Batch that is away


class Batch:
    """A client of AWS Batch whose answers can be lost."""

    def __init__(self, *, delays: int = 0, carried_out: bool = True) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self._unanswered = delays
        self._carried_out = carried_out

    def submit_job(self, **request: Any) -> dict[str, Any]:
        from botocore.exceptions import ReadTimeoutError

        self.requests += 1
        unanswered, self._unanswered = self._unanswered, self._unanswered - 1
        if unanswered <= 0 or self._carried_out:
            job = {"jobId": f"job-{self.requests}", "jobName": request["jobName"]}
            self.jobs[job["jobId"]] = {**job, "status": "RUNNABLE", "createdAt": time.time() * 1000}
        if unanswered > 0:
            raise ReadTimeoutError(endpoint_url="https://batch")
        return {"jobId": f"job-{self.requests}"}

    def list_jobs(self, **_: Any) -> dict[str, Any]:
        return {"jobSummaryList": list(self.jobs.values())}

    def terminate_job(self, *, jobId: str, reason: str) -> dict[str, Any]:  # noqa: N803
        del reason
        self.jobs[jobId]["status"] = "FAILED"
        return {}

    def describe_job_queues(self, **_: Any) -> dict[str, Any]:
        return {"jobQueues": [QUEUE]}

    def describe_job_definitions(self, **_: Any) -> dict[str, Any]:
        container = {"containerProperties": {"command": ["worker"]}}
        return {"jobDefinitions": [{**DEFINITION, **container}]}

    def live(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job["status"] != "FAILED"]


@pytest.fixture
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.integrations.aws_batch.adapter.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("wove.integrations.common.withdrawals.INTERVAL_SECONDS", 0.01)


FRAME = {"run_id": "abc-1", "task_id": "t", "delivery": {}}


def submitted(batch: Batch, *, patience: float, until: Callable[[], bool] = lambda: True) -> str:
    """Submit one job, and wait for a condition before the environment is closed."""

    async def main() -> str:
        adapter = configured(client=batch)
        adapter.submit_patience_seconds = patience
        await adapter.start()
        try:
            return await asyncio.to_thread(adapter.submit, PAYLOAD, FRAME)
        finally:
            async with asyncio.timeout(30):
                while not until():
                    await asyncio.sleep(0.005)
            await adapter.close()

    return asyncio.run(main())


@pytest.mark.usefixtures("_prompt")
def test_a_job_whose_submission_was_not_answered_is_used() -> None:
    batch = Batch(delays=1)
    assert submitted(batch, patience=30.0) == "job-1"
    assert batch.requests == 1 and batch.live() == ["job-1"]


@pytest.mark.usefixtures("_prompt")
def test_a_submission_waits_while_batch_does_not_answer() -> None:
    batch = Batch(delays=3, carried_out=False)
    assert submitted(batch, patience=30.0) == "job-4"
    assert batch.live() == ["job-4"]


@pytest.mark.usefixtures("_prompt")
def test_a_job_that_appears_after_it_was_given_up_is_terminated() -> None:
    batch = Batch(delays=1_000_000, carried_out=False)

    def appears() -> bool:
        if not batch.jobs:
            batch.jobs["late"] = {
                "jobId": "late",
                "jobName": configured().request(PAYLOAD, FRAME)["jobName"],
                "status": "RUNNABLE",
                "createdAt": time.time() * 1000,
            }
        return batch.live() == []

    with pytest.raises(DeliveryError, match="could not be asked to submit job .*Read timeout"):
        submitted(batch, patience=0.02, until=appears)


@pytest.mark.usefixtures("_prompt")
def test_of_two_jobs_of_one_run_one_stays() -> None:
    """The first request was carried out late, after the second one."""
    batch = Batch(delays=1, carried_out=False)
    name = configured().request(PAYLOAD, FRAME)["jobName"]

    def one_is_left() -> bool:
        if "late" not in batch.jobs:
            now = time.time() * 1000
            batch.jobs["late"] = {
                "jobId": "late",
                "jobName": name,
                "status": "SUBMITTED",
                "createdAt": now,
            }
        return len(batch.live()) == 1

    assert submitted(batch, patience=30.0, until=one_is_left) == "job-2"
    assert batch.live() == ["job-2"]
