"""The commands in requests, and the events that a service itself makes.

Call nothing here with data that has not been verified: decoding is cheap, but it is code that an attacker could feed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

from wove.protocol import codec, signing
from wove.protocol.completed_runs import bulk
from wove.protocol.frames import UNKNOWN_RUN, WORKER_BUSY, FrameError
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.pickling import Pickled, dumps

__all__ = [
    "busy_error",
    "check_command",
    "decode_command",
    "digest_of",
    "executor_error",
    "is_big",
    "is_big_reply",
    "no_room",
    "unknown_run",
]

RUN_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
"""Wove's own run ids are up to 48 of ``[A-Za-z0-9_-]``. Others may be longer, but nothing that breaks a log line."""

MAX_TASK_CHARACTERS: Final = 200
MAX_CHARACTERS: Final = 200
"""Of any other text in a command: what waits for its turn is counted by its pickles alone."""

MAX_RECEIVED: Final = 1000
"""Maximum number of ended runs whose results one command acknowledges."""

MAX_FIELDS: Final = 50
_CHECKED: Final = (
    "type",
    "run_id",
    "task_id",
    "callable_pickle",
    "callable_id",
    "args_pickle",
    "delivery",
    "received",
)

MAX_SECONDS: Final = 1e9
NO_ARGUMENTS: Final = dumps({}, label="no arguments")


def is_big(size: int) -> bool:
    """Whether a body of *size* bytes is to be verified and decoded off the loop."""
    return size > 2 * INLINE_BYTES


def is_big_reply(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether *events* are to be encoded off the loop."""
    return sum(map(bulk, events)) > INLINE_BYTES


def decode_command(chunks: Sequence[bytes]) -> dict[str, Any]:
    """The one ``run_task`` or ``cancel_task`` frame in *chunks*, checked and put in order.

    Args:
        chunks: One JSON text. It must have been verified.

    Raises:
        FrameError: It is something else. Its ``run_id`` is there if it could be made out.

    Returns:
        The frame. A ``run_task`` has ``run_id``, ``task_id``, ``delivery``, ``callable_pickle``, ``args_pickle``,
        a ``callable_id`` that is right, and a ``deadline`` only if it is a number of seconds.
    """
    frames = codec.decode(chunks)
    if len(frames) != 1:
        raise FrameError(f"one command at a time, and these are {len(frames)}")
    return check_command(frames[0])


def check_command(frame: dict[str, Any], *, callable_id: str | None = None) -> dict[str, Any]:
    """*frame* itself, checked and put in order as `decode_command` says.

    Args:
        frame: A frame as the codec gives it.
        callable_id: That of its callable, if it is known; else it is found out, from every byte.

    Raises:
        FrameError: It is not a command.
    """
    run_id = frame.get("run_id")
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise FrameError("a command needs a run_id: 1 to 200 ASCII characters without spaces")
    kind = frame.get("type")
    if kind not in ("run_task", "resume_task", "cancel_task"):
        raise FrameError(
            f"{kind!r:.100} is not a command of a worker service: run_task, resume_task, cancel_task",
            run_id,
        )

    task_id = frame.get("task_id")
    frame["task_id"] = (
        task_id[:MAX_TASK_CHARACTERS] if isinstance(task_id, str) and task_id else "?"
    )
    if kind == "run_task":
        _put_in_order(frame, run_id, callable_id)
    elif kind == "resume_task":
        frame["delivery"] = _delivery(frame)
    received: object = frame.get("received")
    if received is not None:
        known = cast("list[object]", received) if isinstance(received, list) else []
        frame["received"] = [name for name in known[:MAX_RECEIVED] if isinstance(name, str)]
    return frame


def _delivery(frame: dict[str, Any]) -> dict[str, Any]:
    """Return the delivery options of a command, with the fields that are of use."""
    delivery: object = frame.get("delivery")
    policy = cast("dict[str, Any]", delivery) if isinstance(delivery, dict) else {}
    key: object = policy.get("delivery_idempotency_key")
    if isinstance(key, str) and len(key) > MAX_CHARACTERS:
        policy["delivery_idempotency_key"] = hashlib.sha256(
            key.encode("utf-8", "surrogatepass")
        ).hexdigest()

    _keep_small(policy)
    _keep_seconds(policy, "delivery_heartbeat_seconds")
    _keep_seconds(policy, "delivery_reconnect_seconds")
    return policy


def _put_in_order(frame: dict[str, Any], run_id: str, callable_id: str | None) -> None:
    function = frame.get("callable_pickle")
    if not isinstance(function, Pickled):
        raise FrameError("a run_task needs a callable_pickle", run_id)
    # Runs whose callables have the same id share one, so it is not for the sender to say.
    frame["callable_id"] = callable_id or digest_of(function)
    if not isinstance(frame.get("args_pickle"), Pickled):
        frame["args_pickle"] = NO_ARGUMENTS
    frame["delivery"] = _delivery(frame)
    _keep_small(frame, but=_CHECKED)
    # Live values are for executors that stay in their process; there is nothing to call in JSON.
    frame.pop("callable", None)
    frame.pop("args", None)
    _keep_seconds(frame, "deadline")


def _keep_small(fields: dict[str, Any], but: Collection[str] = ()) -> None:
    """Drop what is not a number or a short text, and what is one field too many."""
    for number, (name, value) in enumerate(list(fields.items())):
        small = (
            len(value) <= MAX_CHARACTERS
            if isinstance(value, str)
            else isinstance(value, (int, float, type(None)))
        )
        if name not in but and (not small or len(name) > MAX_CHARACTERS or number >= MAX_FIELDS):
            del fields[name]


def digest_of(pickled: Pickled) -> str:
    """The ``callable_id`` of a callable's pickle."""
    return str(signing.digest(pickled.chunks))


def _keep_seconds(fields: dict[str, Any], name: str) -> None:
    """Drop the field if it is not a number that clocks and timers can deal with."""
    value = fields.get(name)
    if value is not None and (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= MAX_SECONDS
    ):
        del fields[name]


def executor_error(
    frame: Mapping[str, Any], kind: str, message: str, *, retryable: bool
) -> dict[str, Any]:
    """The ``task_error`` event for a run that the service itself has ended."""
    return {
        "type": "task_error",
        "run_id": frame["run_id"],
        "task_id": frame["task_id"],
        "error": {"kind": kind, "message": message, "retryable": retryable, "source": "executor"},
    }


def no_room() -> dict[str, Any]:
    """Return the `busy_error` for a request that has not been verified, so that its run is not known."""
    message = (
        "this worker service has no room for more requests. Send the run again, a little later"
    )
    error = {"kind": WORKER_BUSY, "message": message, "retryable": True, "source": "executor"}
    return {"type": "task_error", "error": error}


def busy_error(frame: Mapping[str, Any], message: str) -> dict[str, Any]:
    """Return the event that asks to send the run again, a little later."""
    return executor_error(frame, WORKER_BUSY, message, retryable=True)


def unknown_run(frame: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a ``resume_task`` for a run that this service does not have."""
    message = "this worker service does not know the run that is to be resumed"
    return executor_error(frame, UNKNOWN_RUN, message, retryable=True)
