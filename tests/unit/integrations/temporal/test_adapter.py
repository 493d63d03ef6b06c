"""The configuration of the Temporal adapter, and what is importable where; without a server."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from wove.errors import DeliveryError
from wove.integrations.common.timing import longest_seconds
from wove.integrations.temporal import TemporalAdapter
from wove.integrations.temporal.adapter import PREFIX_CHARACTERS, RESERVED, TARGET_HOST


def configured(**config: Any) -> TemporalAdapter:
    adapter = TemporalAdapter("reports", config)
    adapter.configure()
    return adapter


def test_a_task_queue_is_enough() -> None:
    adapter = configured(task_queue="wove-reports")
    assert adapter._target == TARGET_HOST == "localhost:7233"


def test_a_task_queue_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"environment 'reports': temporal needs executor_config 'task_queue'"
    ):
        configured()


@pytest.mark.parametrize("key", ["target_host", "connect_options"])
def test_a_client_and_how_to_connect(key: str) -> None:
    client = SimpleNamespace(start_workflow=print)
    configured(task_queue="q", client=client)
    with pytest.raises(ValueError, match=f"'client' is connected already: leave out {key}"):
        configured(task_queue="q", client=client, **{key: "h:1" if key == "target_host" else {}})


def test_a_client_that_is_none() -> None:
    with pytest.raises(
        TypeError,
        match=r"'client' must be what `await Client\.connect\(\.\.\.\)` gives, not 'h:7233'",
    ):
        configured(task_queue="q", client="h:7233")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_options_that_are_not_the_users(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'start_options' cannot set '{name}': "):
        configured(task_queue="q", start_options={name: 1})


@pytest.mark.parametrize("key", ["start_options", "connect_options"])
@pytest.mark.parametrize("value", [[], "memo", {1: 2}])
def test_options_that_are_no_dict(key: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"'{key}' must be a dict"):
        configured(task_queue="q", **{key: value})


def test_a_prefix_that_leaves_no_room() -> None:
    configured(task_queue="q", workflow_id_prefix="p" * PREFIX_CHARACTERS)
    with pytest.raises(ValueError, match="'workflow_id_prefix' has 151 characters; at most 150"):
        configured(task_queue="q", workflow_id_prefix="p" * (PREFIX_CHARACTERS + 1))


@pytest.mark.parametrize("value", [7, b"Audited"])
def test_a_workflow_that_is_none(value: object) -> None:
    with pytest.raises(TypeError, match="'workflow' must be text"):
        configured(task_queue="q", workflow=value)


def test_options_that_temporal_takes() -> None:
    calls = pytest.importorskip("wove.integrations.temporal.client", exc_type=ImportError)
    calls.check_options(
        "start_workflow", {"memo": {}, "execution_timeout": timedelta(1)}, label="l"
    )
    assert set(RESERVED) <= set(calls.inspect.signature(calls.Client.start_workflow).parameters)
    with pytest.raises(ValueError, match=r"l has 'namspace'.*Did you mean 'namespace'"):
        calls.check_options("connect", {"namspace": "n"}, label="l")


def test_summaries_are_cut_between_characters() -> None:
    calls = pytest.importorskip("wove.integrations.temporal.client", exc_type=ImportError)
    assert calls._cut("x" + "ü" * 200) == "x" + "ü" * 99


def test_words() -> None:
    exceptions = pytest.importorskip("temporalio.exceptions")
    from wove.integrations.temporal.states import failure_text

    inner = exceptions.ApplicationError("no signature", type="PermissionError")
    outer = exceptions.ApplicationError("gave up")
    outer.__cause__ = inner
    assert failure_text(outer) == "gave up, because of PermissionError: no signature"
    assert failure_text(exceptions.ApplicationError("x" * 10_000)) == "x" * 2000


@pytest.mark.parametrize(
    ("delivery", "deadline", "seconds"),
    [
        ({}, None, float("inf")),
        ({}, 10.5, 70.5),
        ({"delivery_timeout": 5}, 10.5, 65.0),
        ({"delivery_timeout": 500, "delivery_orphan_policy": "detach"}, None, float("inf")),
        ({"delivery_timeout": 5, "delivery_orphan_policy": "detach"}, 10.0, 70.0),
    ],
)
def test_how_long_anybody_waits(
    delivery: dict[str, Any], deadline: float | None, seconds: float
) -> None:
    payload = {"delivery": delivery, "retry_seconds": 60.0}
    assert (
        longest_seconds(payload if deadline is None else {**payload, "deadline": deadline})
        == seconds
    )


def test_configuring_imports_nothing_of_temporal() -> None:
    script = """
import sys
from wove.errors import DeliveryError
from wove.integrations.temporal import TemporalAdapter
TemporalAdapter("reports", {"task_queue": "q"}).configure()
assert "temporalio" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_workflow_code_gets_little_of_wove() -> None:
    pytest.importorskip("temporalio")
    script = """
import sys
from wove.integrations.temporal import activities, run_payload, workflows
got = {name for name in sys.modules if name.startswith("wove.")}
assert got <= {
    "wove.integrations",
    "wove.integrations.common",
    "wove.integrations.temporal",
    "wove.integrations.temporal.workflow",
    "wove.integrations.common.timing",
    "wove.lazy_exports",
}, got
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--task-queue"),
        (["--task-queue", "q", "--max-concurrent", "0"], "at least 1"),
        (["--task-queue", "q", "--tls-cert", "c.pem"], "both --tls-cert and --tls-key"),
        (["--task-queue", "q", "--tls-ca", "/no/such/file"], "/no/such/file"),
        (
            ["--task-queue", "q", "--api-key-env", "WOVE_TEST_NO_SUCH"],
            "WOVE_TEST_NO_SUCH is not set",
        ),
        (["--task-queue", "q", "--security", "env:WOVE_TEST_NO_SUCH"], "WOVE_TEST_NO_SUCH"),
    ],
)
def test_a_command_that_is_wrong(arguments: list[str], said: str) -> None:
    pytest.importorskip("temporalio")
    command = [sys.executable, "-m", "wove.integrations.temporal", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pytest.importorskip("wove.integrations.temporal.client", exc_type=ImportError)
    monkeypatch.setattr(calls, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            DeliveryError, match=rf"could be reached at {address}: no answer within 0\.5 s\. Is it"
        ):
            asyncio.run(calls.connect(address, {}, label="environment 'reports'"))
