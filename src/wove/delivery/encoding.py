"""Between runs and frames: the bytes of calls, the frames that delivery makes, the outcomes that come back.

What may take long, or runs code of the user's, happens in a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from wove import __version__
from wove.concurrency import thread_pool
from wove.delivery.run import Ending, Outcome
from wove.delivery.shared_arguments import SharedArguments, SharedPickle
from wove.errors import EnvironmentExecutionError, WorkerLostError
from wove.protocol import codec, faults, pickling
from wove.protocol.frames import PYTHON, check_python

if TYPE_CHECKING:
    from wove.concurrency.mailbox import LoopMailbox
    from wove.delivery.run import RemoteRun
    from wove.graph.options import DeliveryPolicy
    from wove.protocol.pickling import Pickled

__all__ = ["EncodedCall", "RunEncoder", "cancel_task", "reported_loss", "unknown_event"]

SMALL_BYTES: Final = 4096
"""Up to this size, a plain result is unpickled on the background loop: that takes less time than waking a thread."""

EncodedCall: TypeAlias = dict[str, Any]
"""The fields of a ``run_task`` frame with the callable and its arguments."""


class RunEncoder:
    """Encodes the runs of one table, and decodes their outcomes. For the loop of that table.

    Args:
        home: Calls back on that loop.
        wire: Whether frames leave the process. Then values are pickled, and each frame says what made it.
        shares: Whether what the items of a map have in common goes in fields of its own.
        inline: Whether small plain values may be pickled and unpickled on that loop itself. Never true for a loop that
            runs code of the user's.
    """

    __slots__ = ("_common", "_delivery", "_home", "_inline", "_policy", "_shares", "_wire")

    def __init__(self, home: LoopMailbox, *, wire: bool, inline: bool, shares: bool) -> None:
        self._shares = shares
        self._home = home
        self._wire = wire
        self._inline = inline
        self._common: dict[str, Any] = {"python": PYTHON, "wove": __version__} if wire else {}
        # The policy of the last frame and its encoded fields: the runs of a map, one after the other, share it.
        self._policy: DeliveryPolicy | None = None
        self._delivery: dict[str, Any] = {}

    # ------------------------------------------------------------------ on the way out

    def encode(
        self, run: RemoteRun, ready: Callable[[EncodedCall | BaseException], object]
    ) -> None:
        """Call *ready* on the loop, perhaps at once, with the encoded call of *run* or with the reason against it."""
        call = run.request.call

        if not self._wire:
            ready({"callable": call.fn, "args": run.request.args})
        elif call.when_pickled(lambda: self._home.post(self.encode, run, ready)):
            if call.failure is not None:
                ready(call.failure)
            else:
                self._pickle_arguments(run, ready)

    def _pickle_arguments(
        self, run: RemoteRun, ready: Callable[[EncodedCall | BaseException], object]
    ) -> None:
        request = run.request
        plain = pickling.dumps_plain(request.args) if self._inline else None
        if plain is not None:
            _join(run, ready, plain)
            return

        call = request.call
        if self._shares and request.item is not None and call.shared is None:
            call.shared = SharedArguments()

        def dump() -> None:
            result: Pickled | BaseException
            shared: SharedPickle | None = None
            label = f"the arguments of {request}"

            try:
                args = request.args
                if call.shared is not None:
                    args, shared = call.shared.split(args, label)
                result = pickling.dumps(args, label=label)
            except BaseException as error:  # whatever it is, it belongs to the run
                result = error

            self._home.post(_join, run, ready, result, shared)

        thread_pool.submit(dump)

    def run_task(self, run: RemoteRun, call: EncodedCall) -> dict[str, Any]:
        """Return the frame that hands *run* over."""
        policy = run.request.settings.delivery
        if policy is not self._policy:
            self._policy = policy
            fields = _fields(policy)
            self._delivery = codec.Encoded(fields) if self._wire else fields

        delivery = self._delivery
        if run.key is not None:
            delivery = {**delivery, "delivery_idempotency_key": run.key}
        elif not self._wire:  # the frame stays in this process, where its receiver may change it
            delivery = dict(delivery)

        frame: dict[str, Any] = {
            "type": "run_task",
            "run_id": run.run_id,
            "task_id": run.request.call.task,
            **call,
            "delivery": delivery,
            **self._common,
        }
        if run.request.timeout is not None:
            frame["deadline"] = run.request.timeout
        if run.request.traceparent:
            frame["traceparent"] = run.request.traceparent
        if run.request.settings.remote_logs:
            frame["remote_logs"] = logging.getLogger().getEffectiveLevel()
        if run.request.settings.setup is not None:
            frame["setup"] = run.request.settings.setup
        if run.request.settings.resources is not None:
            frame["resources"] = run.request.settings.resources.given()
        return frame

    # ------------------------------------------------------------------ on the way back

    def decode(
        self, event: dict[str, Any], task: str, count: int, ready: Callable[[list[Outcome]], object]
    ) -> None:
        """Call *ready* on the loop, perhaps at once, with *count* outcomes made from a terminal *event*.

        Each outcome is made on its own, so that waiters that share a run share no mutable value. A live value, from
        an executor in this process, is the same object for all of them.
        """
        if event["type"] == "task_result":
            pickled = event.get("result_pickle")
            if pickled is None:
                ready([_live_result(event, task)] * count)
                return
            if self._inline and count == 1 and pickled.size <= SMALL_BYTES:
                try:
                    value = pickling.loads_plain(pickled)
                except pickling.NotPlainError:
                    pass
                else:
                    ready([Outcome(Ending.VALUE, value)])
                    return
        else:
            exception = event.get("exception")
            if isinstance(exception, BaseException):
                ready([Outcome(Ending.ERROR, exception)] * count)
                return

        def load() -> None:
            self._home.post(ready, [_decode(event, task) for _ in range(count)])

        thread_pool.submit(load)


def cancel_task(run: RemoteRun) -> dict[str, Any]:
    """Return the frame that tells the worker of *run* to end it."""
    policy = run.request.settings.delivery
    return {
        "type": "cancel_task",
        "run_id": run.run_id,
        "task_id": run.request.call.task,
        "delivery_cancel_mode": policy.cancel_mode,
        "delivery_orphan_policy": policy.orphan_policy,
    }


def unknown_event(kind: object) -> dict[str, Any]:
    """Return the terminal event of a run whose worker sent an event of a type that does not exist."""
    message = f"its worker sent an event of unknown type {kind!r}"
    return {
        "type": "task_error",
        "exception": EnvironmentExecutionError.of_transport(message, kind="FrameError"),
    }


def reported_loss(event: dict[str, Any]) -> WorkerLostError | None:
    """Return the loss that *event* reports: of a worker of the executor, or of one of a service. ``None``: no loss."""
    error = event.get("exception")
    if isinstance(error, WorkerLostError):
        return error
    report = event.get("error")
    if isinstance(report, dict):
        said = cast("dict[str, Any]", report)
        # Not by its name alone: a task that runs a weave of its own may have lost a worker there.
        if said.get("source") == "executor" and str(said.get("kind")).endswith("WorkerLostError"):
            return WorkerLostError(str(said.get("message")))

    return None


def _join(
    run: RemoteRun,
    ready: Callable[[EncodedCall | BaseException], object],
    args: Pickled | BaseException,
    shared: SharedPickle | None = None,
) -> None:
    call = run.request.call

    if isinstance(args, BaseException):
        ready(args)
    elif call.pickled is not None:
        run.bytes_out = call.pickled.size + args.size
        fields: EncodedCall = {
            "callable_pickle": call.pickled,
            "callable_id": call.callable_id,
            "args_pickle": args,
        }
        if shared is not None:
            fields["shared_pickle"], fields["shared_id"] = shared
        ready(fields)


def _fields(policy: DeliveryPolicy) -> dict[str, Any]:
    """Return the ``delivery`` of a frame, without the options that are not set."""
    fields = {
        "delivery_timeout": policy.timeout,
        "delivery_heartbeat_seconds": policy.heartbeat_seconds,
        "delivery_cancel_mode": policy.cancel_mode,
        "delivery_max_in_flight": policy.max_in_flight,
        "delivery_orphan_policy": policy.orphan_policy,
        "delivery_reconnect_seconds": policy.reconnect_seconds,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _live_result(event: dict[str, Any], task: str) -> Outcome:
    if "result" in event:
        return Outcome(Ending.VALUE, event["result"])
    message = f"task {task!r}: its worker sent a task_result without a result"
    return Outcome(Ending.ERROR, EnvironmentExecutionError.of_transport(message, kind="FrameError"))


def _decode(event: dict[str, Any], task: str) -> Outcome:
    try:
        if event["type"] == "task_result":
            check_python(event, label=f"the result of task {task!r}")
            return Outcome(
                Ending.VALUE,
                pickling.loads(event["result_pickle"], label=f"the result of task {task!r}"),
            )
        return Outcome(Ending.ERROR, faults.to_exception(event, task=task))
    except (
        BaseException
    ) as error:  # a hostile __setstate__ may raise anything; this run alone ends with it
        return Outcome(Ending.ERROR, error)
