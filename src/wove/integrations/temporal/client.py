"""Calls of Temporal's client: connecting, starting and ending workflows.

It imports Temporal's package, and is itself imported when an environment starts.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, cast
from weakref import WeakSet

from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode
from temporalio.workflow import _Definition  # pyright: ignore[reportPrivateUsage]

from wove.concurrency import forks
from wove.errors import DeliveryError
from wove.graph.rules import shown, suggest
from wove.integrations.common.submitted_keys import IsAwaited, SubmittedKeys
from wove.integrations.temporal.workflow import WORKFLOW

__all__ = [
    "RPC",
    "SETTLE_SECONDS",
    "Submission",
    "cancel",
    "check_namespace",
    "check_options",
    "connect",
    "forked",
    "keep",
    "name_of",
    "start_workflow",
    "unreachable",
]

CONNECT_SECONDS: Final = 15.0
"""How long a server may take to accept a connection and to say that it knows the namespace."""

RPC: Final = timedelta(seconds=10)
"""How long the server may take to answer a call. The client retries for ten seconds in all
(temporalio.service.RetryConfig)."""

START: Final = timedelta(seconds=30)
"""How long the server may take to start a workflow: with a thousand at once, the last ones wait."""

SUMMARY_BYTES: Final = 200
"""Maximum size of a summary, which Temporal's UI shows beside a workflow's id
(``static_summary`` of temporalio.client.Client.start_workflow)."""

SETTLE_SECONDS: Final = 0.1
"""How long to wait for Temporal's threads after the last call: an interpreter that ends earlier crashes
(github.com/temporalio/sdk-python, issue 300)."""

CANCELLED: Final = "its weave has cancelled it before a worker began it"

_keyed: Final = SubmittedKeys()
"""The submitted workflows with a key, by Temporal's run ids."""

_clients: Final[WeakSet[Client]] = WeakSet()
_runtimes: Final[set[Runtime]] = set()
"""The runtimes that environments of this process use, or have used."""


class Submission:
    """A workflow that was started.

    Attributes:
        workflow_id: Its id.
        run_id: Temporal's id of its latest run, which changes with a retry or a continuation.
        since: When it was started, on the clock of the loop.
    """

    __slots__ = ("run_id", "since", "workflow_id")

    def __init__(self, workflow_id: str, run_id: str, since: float) -> None:
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.since = since

    def __str__(self) -> str:
        return f"workflow {self.workflow_id!r}"

    def handle(self, client: Client) -> WorkflowHandle[Any, Any]:
        return client.get_workflow_handle(self.workflow_id, run_id=self.run_id)


# --- before anything is sent ------------------------------------------------------------------------------


def check_options(method: str, options: Mapping[str, Any], *, label: str) -> None:
    """Refuse options that ``Client.connect`` or ``Client.start_workflow`` of this version does not accept.

    Raises:
        ValueError: Names the option, and the nearest one that exists.
    """
    names = [
        name for name in inspect.signature(getattr(Client, method)).parameters if name != "self"
    ]

    for name in options:
        if name not in names:
            raise ValueError(
                f"{label} has {name!r}, which Temporal's Client.{method} does not take.{suggest(name, names)}"
            )


def name_of(workflow: object, *, label: str) -> str:
    """Return the type of a workflow, given by its name, its class or its run method.

    Raises:
        TypeError: It is not a workflow, or has no fixed name.
    """
    if workflow is None:
        return WORKFLOW
    if isinstance(workflow, str):
        return workflow
    found = None
    if isinstance(workflow, type):
        found = _Definition.from_class(workflow)
    elif callable(workflow):
        found = _Definition.from_run_fn(cast("Any", workflow))

    if found is None or found.name is None:
        raise TypeError(
            f"{label} must be a workflow's name, a class with @workflow.defn, or its method with @workflow.run, "
            f"not {shown(workflow)}"
        )

    return found.name


# --- connecting -------------------------------------------------------------------------------------------


async def connect(target: str, options: Mapping[str, Any], *, label: str) -> Client:
    """Return a client for *target*, after checking that the server answers and knows the namespace.

    Raises:
        DeliveryError: It does not answer, or does not know the namespace; the message says what to do.
    """
    _keep_runtime(options.get("runtime"))

    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(target, **options)
        keep(client)
        await check_namespace(client, label=label)
    except AssertionError as error:
        raise forked(label) from error
    except TimeoutError:
        raise _nowhere(label, target, f"no answer within {CONNECT_SECONDS:g} s") from None
    except DeliveryError:
        await asyncio.sleep(SETTLE_SECONDS)  # the interpreter may end right after this
        raise
    except RuntimeError as error:  # what Client.connect raises
        raise _nowhere(label, target, str(error)) from error

    return client


def keep(client: Client) -> None:
    """Keep the runtime of *client* for ever, and in a forked child *client* itself.

    Dropping a runtime waits for its threads while all of Python's threads are blocked. An interpreter that does so at
    its end crashes or hangs, and in a forked child these threads do not exist.
    """
    _clients.add(client)
    _keep_runtime(client.service_client.config.runtime)


def _keep_runtime(runtime: Runtime | None) -> None:
    runtime = runtime or Runtime.default()
    if runtime not in _runtimes:
        _runtimes.add(runtime)
        _leak(runtime)


def _leak(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forked(label: str) -> DeliveryError:
    """Return the error for an `AssertionError` of Temporal's library, which works only in the process that used it
    first.

    A second runtime in the child works only nine times in ten: its locks (parking_lot) still have entries for threads
    that wait in the parent, and follow them when the number of threads grows.
    """
    return DeliveryError(
        f"{label}: this process was forked from one that had used Temporal's library before, which does not bear that. "
        "Fork before the first run goes to Temporal, or start processes by 'spawn' or 'forkserver'"
    )


def _nowhere(label: str, target: str, said: str) -> DeliveryError:
    return DeliveryError(
        f"{label}: no Temporal server could be reached at {target}: {said}. Is it running (for development: `temporal "
        "server start-dev`), and are executor_config 'target_host' and 'connect_options' right?"
    )


async def check_namespace(client: Client, *, label: str) -> None:
    """Check that the namespace of *client* exists.

    Raises:
        DeliveryError: It does not, or the server refuses this client.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)

    try:
        await client.workflow_service.describe_namespace(request, timeout=RPC)
    except RPCError as error:
        # A client that may start workflows need not have the right to describe the namespace.
        if error.status not in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED):
            raise unreachable(error, client, label=label) from error


def unreachable(error: RPCError, client: Client, *, label: str) -> DeliveryError:
    """Return the error that a weave gets for *error*, which a call has raised."""
    remedy = ""

    if error.status is RPCStatusCode.NOT_FOUND:
        remedy = (
            f". Create it (`temporal operator namespace create {client.namespace}`), or name another one: for an "
            "environment in executor_config 'connect_options', for Wove's worker with --namespace"
        )
    elif error.status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
        remedy = ". Are the credentials in executor_config 'connect_options' right?"

    where = client.service_client.config.target_host
    return DeliveryError(
        f"{label}: Temporal at {where}, namespace {client.namespace!r}, answered {error.status.name}: {error}{remedy}"
    )


# --- workflows --------------------------------------------------------------------------------------------


async def start_workflow(
    client: Client,
    workflow: str,
    payload: Mapping[str, Any],
    *,
    workflow_id: str,
    keyed: bool,
    is_awaited: IsAwaited,
    options: Mapping[str, Any],
    label: str,
) -> Submission:
    """Start *workflow* with *payload*.

    With an idempotency key, a workflow with that id may exist. One that this environment has given up is replaced.

    Raises:
        DeliveryError: A workflow of another environment or process has that id.
        RPCError: The workflow could not be started.
    """
    task = str(payload["task_name"])
    summary = {} if "static_summary" in options else {"static_summary": _cut(task)}
    given: dict[str, Any] = {"rpc_timeout": START, **summary, **options, "id": workflow_id}
    handle: WorkflowHandle[Any, Any]

    try:
        handle = await client.start_workflow(workflow, payload, **given)
    except WorkflowAlreadyStartedError as error:
        if (whose := _keyed.who_waits(error.run_id or "", is_awaited)) is not None:
            raise DeliveryError(
                f"{label}: task {task!r} with this idempotency key is workflow {workflow_id!r} already, which {whose} "
                "has started and which goes on: its result goes there. Wait for it, terminate it, or use another key "
                "(delivery_idempotency_key)"
            ) from None
        policy = WorkflowIDConflictPolicy.TERMINATE_EXISTING
        handle = await client.start_workflow(workflow, payload, **given, id_conflict_policy=policy)

    run_id = handle.result_run_id or ""
    if keyed:
        _keyed.note(run_id, is_awaited, str(payload["run_id"]))
    return Submission(workflow_id, run_id, asyncio.get_running_loop().time())


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:SUMMARY_BYTES].decode("utf-8", "ignore")


async def cancel(client: Client, submission: Submission, *, is_ours: bool) -> bool:
    """End a workflow.

    Returns:
        Whether no worker has started it and none will.

    Raises:
        RPCError: It could not be ended.
    """
    handle = submission.handle(client)

    try:
        if await _has_started(handle, is_ours=is_ours):
            await handle.cancel(rpc_timeout=RPC)
            return False
        # Not a request to cancel, which would wait for a worker, possibly for ever.
        await handle.terminate(reason=CANCELLED, rpc_timeout=RPC)
        # The history does not change any more, so it shows whether a worker had been quicker.
        return not await _has_started(handle, is_ours=is_ours)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:  # it is over
            return False
        raise


async def _has_started(handle: WorkflowHandle[Any, Any], *, is_ours: bool) -> bool:
    """Return whether a worker has, or may have, started the run of a workflow.

    Wove's own workflow has started when its activity has. A workflow of the user's has started when any of its code
    has.
    """
    if is_ours:
        activities = (await handle.describe(rpc_timeout=RPC)).raw_description.pending_activities
        if activities:
            return any(
                each.state != PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
                for each in activities
            )
        mark = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    else:
        mark = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED

    async for event in handle.fetch_history_events(rpc_timeout=RPC):
        if event.event_type == mark:
            return True

    return False


def reset_after_fork() -> None:
    for client in list(_clients):
        _leak(client)
    _clients.clear()


forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
