"""Names that others hold on to: documented import paths, and what travels on a wire, in a job's data or in a string.

A documented name, and a name that two versions of Wove or two programs have to agree on, is pinned literally here. A
module that the code names in a string is looked up, whatever it is called, so that no move breaks the string silently.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from wove import errors
from wove.cli.worker import TRANSPORTS
from wove.executors.registry import BUILT_IN, executor_class
from wove.protocol import frames, signing
from wove.protocol.frames import Command, ErrorReport, Event
from wove.protocol.payload import VERSION, Claim
from wove.protocol.pickling import Pickled

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "wove").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

DOCUMENTED = (
    "wove.errors.UnresolvedSignatureError",
    "wove.security.NetworkExecutorSecurity",
    "wove.diagnosis.Finding",
    "wove.environment.BackendAdapterEnvironmentExecutor",
    "wove.environment.DeliveryOrphanedError",
    "wove.environment.DeliveryTimeoutError",
    "wove.environment.EnvironmentExecutionError",
    "wove.environment.EnvironmentExecutor",
    "wove.environment.GrpcEnvironmentExecutor",
    "wove.environment.HttpEnvironmentExecutor",
    "wove.environment.WebSocketEnvironmentExecutor",
    "wove.backend.build_backend_payload",
    "wove.backend.post_event",
    "wove.backend.run_backend_payload",
    "wove.backend.run_backend_payload_async",
    "wove.integrations.base.BackendAdapter",
    "wove.integrations.worker.arun",
    "wove.integrations.worker.run",
    "wove.integrations.naming.idempotency_key",
    "wove.integrations.naming.job_id",
    "wove.integrations.naming.job_name",
    "wove.integrations.arq.ARQAdapter",
    "wove.integrations.arq.worker_function",
    "wove.integrations.arq.wove_run_backend_payload",
    "wove.integrations.aws_batch.AWSBatchAdapter",
    "wove.integrations.celery.CeleryAdapter",
    "wove.integrations.celery.register",
    "wove.integrations.dask.DaskAdapter",
    "wove.integrations.kubernetes_jobs.KubernetesJobsAdapter",
    "wove.integrations.ray.RayAdapter",
    "wove.integrations.rq.RQAdapter",
    "wove.integrations.slurm.SlurmAdapter",
    "wove.integrations.slurm.job_script",
    "wove.integrations.taskiq.TaskiqAdapter",
    "wove.integrations.taskiq.register",
    "wove.integrations.temporal.RunBackendPayload",
    "wove.integrations.temporal.TemporalAdapter",
    "wove.integrations.temporal.activities",
    "wove.integrations.temporal.run_payload",
    "wove.integrations.temporal.workflows",
    "wove.services.grpc.worker_handler",
    "wove.services.http.worker_app",
    "wove.services.websocket.WorkerSocket",
)
"""What users' programs import, beside what `wove` itself has."""

COMMANDS = ("wove", "wove.backend_worker", "wove.integrations.temporal", "wove.stdio_worker")
"""What users start with ``python -m``."""

NOT_MODULES = {
    "wove.run_backend_payload",
    "wove.v1",
    "wove.service",
    "wove.recognized",
    "wove.toml",
}
"""Texts of that form which are the names of a task, a subprotocol, loggers, a key in the scope of ASGI requests, and a
file."""

ADAPTERS = {
    "arq": "ARQAdapter",
    "aws_batch": "AWSBatchAdapter",
    "celery": "CeleryAdapter",
    "dask": "DaskAdapter",
    "kubernetes_jobs": "KubernetesJobsAdapter",
    "ray": "RayAdapter",
    "rq": "RQAdapter",
    "slurm": "SlurmAdapter",
    "taskiq": "TaskiqAdapter",
    "temporal": "TemporalAdapter",
}


def resolved(path: str) -> object:
    """The module, or what is in one, at *path*, which may be written ``module:name``."""
    path = path.replace(":", ".")
    parts = path.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise  # that one is there, and needs something that is not
            continue
        for name in parts[size:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def texts(source: Path) -> Iterator[str]:
    """The string constants of a file, but the names of its loggers."""
    tree = ast.parse(source.read_text("utf-8"))
    loggers = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger") and node.args
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in loggers
        ):
            yield node.value


TELEMETRY = set(texts(ROOT / "src" / "wove" / "observe" / "otel.py"))
"""The names of attributes and metrics of OpenTelemetry, which have the same form."""

ALL_TEXTS = [(source, text) for source in SOURCES for text in texts(source)]

IN_STRINGS = sorted(
    {
        text.rstrip(".")
        for _, text in ALL_TEXTS
        if re.fullmatch(r"wove(\.\w+)+(:\w+)?\.?", text) and text not in NOT_MODULES | TELEMETRY
    }
)

IN_BACKTICKS = sorted(
    {
        found
        for file in (*SOURCES, *PAGES)
        for found in re.findall(r"`(wove(?:\.[a-zA-Z_]+)+)\b(?!/)", file.read_text("utf-8"))
        if found not in NOT_MODULES | TELEMETRY
    }
)


# ---------------------------------------------------------------- import paths


@pytest.mark.parametrize("path", DOCUMENTED)
def test_a_documented_name_is_there(path: str) -> None:
    assert resolved(path) is not None


@pytest.mark.parametrize("module", COMMANDS)
def test_a_documented_command_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
    if module != "wove" and importlib.util.find_spec(module).submodule_search_locations is not None:  # type: ignore[union-attr]
        assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_the_command_of_the_package_is_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert list(scripts) == ["wove"]
    assert callable(resolved(scripts["wove"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for module, names in re.findall(
        r"^\s*(?:>>> )?from (wove[\w.]*) import ([\w, ]+)", text, re.MULTILINE
    ):
        for name in names.split(","):
            assert resolved(f"{module}.{name.split(' as ')[0].strip()}") is not None
    for module in re.findall(r"(?:^\s*import |python -m )(wove\b(?:\.\w+)*)", text, re.MULTILINE):
        assert inspect.ismodule(resolved(module))


@pytest.mark.parametrize("path", IN_BACKTICKS)
def test_what_a_text_calls_by_its_path_is_there(path: str) -> None:
    assert resolved(path) is not None


@pytest.mark.parametrize("path", IN_STRINGS)
def test_what_the_code_names_in_a_string_is_there(path: str) -> None:
    assert resolved(path) is not None


def test_strings_are_found() -> None:
    assert {"wove.integrations.worker.run", "wove.integrations.worker", "wove.stdio_worker"} <= set(
        IN_STRINGS
    )
    assert any(text.endswith(":Request") for text in IN_STRINGS)  # of Celery's workers
    assert "wove.integrations.naming.job_id" in IN_BACKTICKS


@pytest.mark.parametrize(
    "name", [info.name for info in pkgutil.walk_packages(wove.__path__, "wove.")]
)
def test_what_a_module_says_it_has_is_there(name: str) -> None:
    if name.endswith("__main__"):
        return  # it would run
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public) is not None


# ---------------------------------------------------------------- registries


def test_the_executors_have_their_names() -> None:
    assert set(BUILT_IN) == {"stdio", "http", "https", "grpc", "websocket", *ADAPTERS}


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_executor_is_where_the_registry_says(name: str) -> None:
    assert issubclass(executor_class(name, "reports"), wove.EnvironmentExecutor)


@pytest.mark.parametrize(("backend", "adapter"), ADAPTERS.items())
def test_an_adapter_has_one_documented_path_for_each_backend(backend: str, adapter: str) -> None:
    module, name = BUILT_IN[backend]
    assert (module, name) == (f"wove.integrations.{backend}", adapter)
    assert getattr(wove.integrations, adapter) is resolved(f"{module}.{name}")


def test_the_command_line_serves_the_three_transports() -> None:
    assert {name: address for name, (_, address) in TRANSPORTS.items()} == {
        "http": "127.0.0.1:8800",
        "grpc": "127.0.0.1:8810",
        "websocket": "127.0.0.1:8820",
    }
    for module, _ in TRANSPORTS.values():
        assert callable(resolved(f"{module}.serve"))


# ---------------------------------------------------------------- the wire


def test_frames_have_their_types() -> None:
    assert sorted(frames.COMMANDS) == ["cancel_task", "resume_task", "run_task", "shutdown"]
    assert sorted(frames.TERMINAL) == ["task_cancelled", "task_error", "task_result"]
    assert sorted(frames.EVENTS - frames.TERMINAL) == [
        "heartbeat",
        "log",
        "progress",
        "task_started",
    ]
    assert frames.TERMINAL <= frames.EVENTS
    assert frames.WORKER_BUSY == "WorkerBusyError"
    assert frames.UNKNOWN_RUN == "UnknownRunError"


@pytest.mark.parametrize(
    ("frame", "fields"),
    [
        (
            Command,
            "type run_id task_id callable args callable_pickle args_pickle callable_id delivery deadline",
        ),
        (Command, "delivery_cancel_mode delivery_orphan_policy python wove"),
        (
            Event,
            "type run_id task_id result exception result_pickle exception_pickle error_pickle error",
        ),
        (Event, "host pid python wove blocked running level message"),
        (ErrorReport, "kind message traceback retryable source"),
    ],
)
def test_frames_have_their_fields(frame: Any, fields: str) -> None:
    """Fields may be added, and none may be called something else."""
    assert set(fields.split()) <= set(frame.__annotations__)


def test_payloads_have_their_fields() -> None:
    pickled = Pickled((b"abc",))
    frame = {
        "type": "run_task",
        "run_id": "9f3a-1",
        "task_id": "pdf",
        "callable_pickle": pickled,
        "args_pickle": pickled,
        "callable_id": "cafe",
        "delivery": {},
        "deadline": 1.0,
        "python": "3.11",
        "wove": "0.1",
        "traceparent": "00-1",
    }
    payload = wove.backend.build_backend_payload(
        frame,
        adapter="celery",
        callback_url="http://127.0.0.1:1/",
        claims={"args_pickle": Claim("1", "ab", 3)},
        sent_at=1.0,
        retry_seconds=2.0,
        beat_seconds=3.0,
    )
    common = "run_id task_id callable_pickle callable_id delivery deadline python wove traceparent"
    ours = "version adapter callback_url task_name claims sent_at retry_seconds beat_seconds"
    assert {*common.split(), *ours.split()} <= set(payload)
    assert payload["version"] == VERSION == 1
    assert payload["task_name"] == "pdf"
    assert {"id", "sha256", "size"} <= set(payload["claims"]["args_pickle"])


def test_a_signature_is_of_the_same_text_as_ever() -> None:
    assert signing.request_text("http", "/a?b", "1", "n", "d") == b"wove-v1\nhttp\n/a?b\n1\nn\nd"
    assert signing.reply_text("http", "/a?b", "n", 0, "d") == b"wove-v1-reply\nhttp\n/a?b\nn\n0\nd"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "X-Wove-Key",
            "X-Wove-Timestamp",
            "X-Wove-Nonce",
            "X-Wove-Body-Digest",
            "X-Wove-Size",
            "X-Wove-Signature",
            "X-Wove-Reply-Signature",
        ),  # signed
        *(
            "X-Wove-Worker",
            "X-Wove-Gone",
            "X-Wove-Cancelled",
        ),  # between a backend's worker and the receiver
        "/wove/events/",  # the path of the receiver
        *("wove", "wove.v1"),  # subprotocols of a WebSocket
        *("WOVE_BACKEND_PAYLOAD", "WOVE_WORKER_SECRET", "WOVE_STDIO_BOOT"),  # environment variables
        *("WOVE_CONFIG", "wove_config.py"),  # a user's configuration
        *("wove.run_backend_payload", "wove_run_backend_payload"),  # tasks of workers
        *("wove.integrations.worker.run", "wove_run"),  # in the data of RQ's jobs
        "wove_where",  # asked of Celery's workers
        "WOVE_PAYLOAD",  # in the scripts of Slurm's jobs
        "wove/owner",  # a label of Kubernetes' Jobs
        "wove-",  # how jobs' names begin
    ],
)
def test_a_name_that_travels_is_what_it_was(text: str) -> None:
    assert text in {found for _, found in ALL_TEXTS}


def test_the_tasks_of_workers_have_their_names() -> None:
    arq, celery, taskiq = (
        importlib.import_module(f"wove.integrations.{name}.worker")
        for name in ("arq", "celery", "taskiq")
    )
    temporal = importlib.import_module("wove.integrations.temporal")
    assert arq.FUNCTION_NAME == arq.wove_run_backend_payload.__name__ == "wove_run_backend_payload"
    assert celery.TASK_NAME == "wove.run_backend_payload"
    assert taskiq.TASK_NAME == "wove.run_backend_payload"
    assert (
        temporal.RunBackendPayload.__temporal_workflow_definition.name == "wove.run_backend_payload"
    )
    assert [activity.__temporal_activity_definition.name for activity in temporal.activities()] == [
        "wove.run_backend_payload"
    ]


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_travels_under_its_documented_path(name: str) -> None:
    assert (getattr(errors, name).__module__, getattr(errors, name).__qualname__) == (
        "wove.errors",
        name,
    )


@pytest.mark.parametrize("name", ["run", "arun"])
def test_what_workers_call_travels_under_its_documented_path(name: str) -> None:
    function = resolved(f"wove.integrations.worker.{name}")
    data = pickle.dumps(function, 0)
    assert b"wove.integrations.worker" in data
    assert pickle.loads(data) is function
