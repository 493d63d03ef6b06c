"""The frames that delivery makes itself."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from wove import __version__
from wove.errors import EnvironmentExecutionError, WorkerLostError
from wove.protocol import codec
from wove.protocol.frames import PYTHON

if TYPE_CHECKING:
    from wove.delivery.run import RemoteRun
    from wove.graph.options import DeliveryPolicy

__all__ = ["Commands", "cancel_task", "reported_loss", "unknown_event"]


class Commands:
    """Makes ``run_task`` frames.

    Args:
        wire: Whether they leave the process; then they say what made them.
    """

    __slots__ = ("_common", "_fields", "_policy")

    def __init__(self, *, wire: bool) -> None:
        self._common: dict[str, Any] = {"python": PYTHON, "wove": __version__} if wire else {}
        self._policy: DeliveryPolicy | None = None
        self._fields: dict[str, Any] = {}

    def run_task(self, run: RemoteRun, call: dict[str, Any]) -> dict[str, Any]:
        """The frame that hands *run* over; *call* is its callable and arguments, in whatever form."""
        policy = run.request.settings.delivery
        if policy is not self._policy:  # the runs of a map, one after the other, have the same one
            self._policy = policy
            self._fields = codec.Encoded(_fields(policy)) if self._common else _fields(policy)
        delivery = self._fields
        if run.key is not None:
            delivery = {**delivery, "delivery_idempotency_key": run.key}
        elif not self._common:  # it stays in this process, where somebody may change it
            delivery = dict(delivery)
        frame: dict[str, Any] = {
            "type": "run_task",
            "run_id": run.run_id,
            "task_id": run.request.call.task,
            **call,
            "delivery": delivery,
            **self._common,
        }
        if run.deadline is not None:
            frame["deadline"] = max(0.0, round(run.deadline - monotonic(), 3))
        return frame


def cancel_task(run: RemoteRun) -> dict[str, Any]:
    """The frame that tells the worker of *run* to end it."""
    policy = run.request.settings.delivery
    return {
        "type": "cancel_task",
        "run_id": run.run_id,
        "task_id": run.request.call.task,
        "delivery_cancel_mode": policy.cancel_mode,
        "delivery_orphan_policy": policy.orphan_policy,
    }


def unknown_event(kind: object) -> dict[str, Any]:
    """The end of a run whose worker sent an event of a type that does not exist."""
    message = f"its worker sent an event of unknown type {kind!r}"
    return {
        "type": "task_error",
        "exception": EnvironmentExecutionError.of_transport(message, kind="FrameError"),
    }


def reported_loss(event: dict[str, Any]) -> WorkerLostError | None:
    """The loss that *event* reports, if it does: of an executor's own worker, or of one that a service has."""
    error = event.get("exception")
    if isinstance(error, WorkerLostError):
        return error
    report = event.get("error")
    if isinstance(report, dict):
        said = cast("dict[str, Any]", report)
        # Not by its name alone: a task that weaves by itself may have lost a worker of its own.
        if said.get("source") == "executor" and str(said.get("kind")).endswith("WorkerLostError"):
            return WorkerLostError(str(said.get("message")))
    return None


def _fields(policy: DeliveryPolicy) -> dict[str, Any]:
    """The ``delivery`` of a frame, without what is not set."""
    fields = {
        "delivery_timeout": policy.timeout,
        "delivery_heartbeat_seconds": policy.heartbeat_seconds,
        "delivery_cancel_mode": policy.cancel_mode,
        "delivery_max_in_flight": policy.max_in_flight,
        "delivery_orphan_policy": policy.orphan_policy,
    }
    return {name: value for name, value in fields.items() if value is not None}
