"""The frames: commands to a worker, and events from it.

A frame is a dict with a ``type``. On the wire it is one JSON object; the fields whose names end in
``_pickle`` are base64 of a pickle there, and :class:`~wove.protocol.pickling.Pickled` in memory. Fields that
a receiver does not know are ignored.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, TypeGuard, cast

from wove.errors import OTHER_WOVE, SerializationError, is_other_wove
from wove.protocol.pickling import Pickled

__all__ = [
    "COMMANDS",
    "EVENTS",
    "PYTHON",
    "READY",
    "TERMINAL",
    "UNKNOWN_RUN",
    "WORKER_BUSY",
    "Command",
    "ErrorReport",
    "Event",
    "FrameError",
    "check_event",
    "check_python",
    "condensed",
    "is_timing",
    "says_busy",
    "says_unknown",
]

COMMANDS: Final = frozenset({"run_task", "resume_task", "cancel_task", "shutdown"})

#: Events after which nothing more is heard of a run.
TERMINAL: Final = frozenset({"task_result", "task_error", "task_cancelled"})

EVENTS: Final = TERMINAL | {"task_started", "heartbeat", "progress", "log"}

#: The first event of a worker behind a launcher, for the pool of the executor
#: ``stdio`` alone: it concerns no run.
READY: Final = "ready"

#: The ``kind`` of the ``error`` with which a worker service declines a run that it has no room for. It has not
#: begun the run, so that sending it again is safe.
WORKER_BUSY: Final = "WorkerBusyError"

#: The ``kind`` of the ``error`` with which a worker service answers a ``resume_task`` for a run that it does not know.
UNKNOWN_RUN: Final = "UnknownRunError"

#: This interpreter's version, as it stands in the ``python`` field of a frame.
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


class Command(TypedDict, total=False):
    """A command, as a worker receives it. ``run_task`` and ``cancel_task`` always have a ``run_id``.

    ``python`` (``"3.11"``) is the version that pickled the frame, ``wove`` the sender's version, ``deadline``
    the seconds that the attempt may take once it has begun, ``callable_id`` the SHA-256 (hex) of the callable's pickle.
    ``shared_pickle`` holds the arguments that all items of a map share, ``shared_id`` its SHA-256; only executors whose
    `shares_arguments` says so get these.
    ``traceparent`` is the span of the attempt, as the header of W3C Trace Context has it.
    ``remote_logs`` asks for what the task logs and prints, and is the lowest level of the records.
    ``setup`` is what the worker process calls before its first task, as ``module:function``.
    ``resources`` has what the task asks for, as far as it says: ``cpus``, ``memory`` (bytes), ``gpus``, ``time``
    (seconds) and ``disk`` (bytes).
    ``resume_task`` asks a worker service for a run whose connection was lost; ``received`` names runs whose end it need
    not keep any longer.
    ``callable`` and ``args`` hold live values for executors that keep frames in this process.
    """

    type: str
    run_id: str
    task_id: str
    callable: Any
    args: Any
    callable_pickle: Pickled
    args_pickle: Pickled
    callable_id: str
    shared_pickle: Pickled
    shared_id: str
    delivery: dict[str, Any]
    received: list[str]
    delivery_cancel_mode: str | None
    delivery_orphan_policy: str | None
    deadline: float | None
    remote_logs: int
    setup: str
    traceparent: str
    resources: dict[str, float]
    python: str
    wove: str


class ErrorReport(TypedDict, total=False):
    """An error in plain JSON: the ``error`` of a ``task_error``.

    ``source`` says whose fault it was: ``"task"``, ``"executor"``, ``"transport"`` or ``"config"``; ``lacking``,
    why no exception object comes with it.
    """

    lacking: str
    kind: str
    message: str
    traceback: str
    retryable: bool
    source: str


class Event(TypedDict, total=False):
    """An event, as a worker sends it. Every event has the ``run_id`` of the command it answers.

    ``host`` and ``pid`` come with ``task_started``, or with the end of a run that was over too soon for one.
    ``timing`` comes with the end: when the worker began the run, in seconds since the epoch, and for how many
    seconds it then unpickled the call, ran it, and pickled the result.
    A ``log`` with ``lines`` carries what the task logged and printed: for each line the time (in seconds since the
    epoch), the level (0 for output), the name of the logger or stream, and the text. ``dropped`` counts lines that
    are missing.
    ``progress`` carries the last report of `wove.progress`: ``done``, ``total`` and ``note``.
    A ``heartbeat`` with ``blocked`` says that none of the ``running`` tasks of that process computes at the
    moment: they wait.
    """

    type: str
    run_id: str
    task_id: str
    result: Any
    exception: Any
    result_pickle: Pickled
    exception_pickle: Pickled
    error_pickle: Pickled
    error: ErrorReport
    host: str
    pid: int
    python: str
    wove: str
    timing: list[float]
    blocked: bool
    running: int
    done: float | None
    total: float | None
    note: str
    lines: list[list[Any]]
    dropped: int
    level: str
    message: str


class FrameError(ValueError):
    """Something arrived that is not a frame.

    Attributes:
        run_id: The run that it was about, as far as that could be made out.
    """

    def __init__(self, message: str, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.run_id))


def check_event(frame: Mapping[str, Any]) -> dict[str, Any]:
    """Return *frame* as a dict, if it is an event.

    Raises:
        FrameError: Its type is unknown, or it names no run.
    """
    run_id = frame.get("run_id")
    if not isinstance(run_id, str) or not run_id:
        raise FrameError(f"an event without a run_id: {_outline(frame)}")
    kind = frame.get("type")
    if not isinstance(kind, str):  # it may be something that cannot even be looked up, or shown
        raise FrameError(f"an event whose type is not text: {_outline(frame)}", run_id)
    if kind not in EVENTS:
        known = ", ".join(sorted(EVENTS))
        raise FrameError(
            f"{kind!r:.100} is not a type of event (the types are {known}): {_outline(frame)}",
            run_id,
        )

    return frame if isinstance(frame, dict) else dict(frame)


def is_timing(value: object) -> TypeGuard[list[float]]:
    """Return whether *value* can be the ``timing`` of an event."""
    if not isinstance(value, list) or len(cast("list[object]", value)) != 4:
        return False
    return all(
        isinstance(number, (int, float)) and 0 <= number < math.inf
        for number in cast("list[object]", value)
    )


def says_unknown(event: Mapping[str, Any]) -> bool:
    """Return whether *event* says that its service does not know the run that was to be resumed."""
    return _is_report(event, UNKNOWN_RUN)


def says_busy(event: Mapping[str, Any]) -> bool:
    """Return whether *event* declines its run because there is no room for it now."""
    return _is_report(event, WORKER_BUSY)


def _is_report(event: Mapping[str, Any], kind: str) -> bool:
    """Return whether *event* has an error of *kind* that comes from the service itself."""
    error: object = event.get("error")
    if not isinstance(error, dict):
        return False
    report = cast("dict[str, object]", error)
    # A task's own exception may have the same name; its source is "task".
    return report.get("kind") == kind and report.get("source") == "executor"


def condensed(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """*events*, which go out together, without the start of runs that have ended: their end says where that was."""
    starts = {event["run_id"]: event for event in events if event["type"] == "task_started"}
    if not starts or len(events) == 1:
        return list(events)
    found: list[Mapping[str, Any]] = []

    for event in events:
        if event["type"] in TERMINAL and (start := starts.pop(event["run_id"], None)) is not None:
            found.append(
                {**event, **{name: start[name] for name in ("host", "pid") if name in start}}
            )
        elif event["type"] != "task_started":
            found.append(event)

    return [*starts.values(), *found]


def check_python(frame: Mapping[str, Any], *, label: str) -> None:
    """Refuse a pickle of another Python minor version, or of another package named ``wove``, before it is unpickled.

    A frame that does not say its versions is not checked.

    Args:
        frame: The frame; its fields ``python`` and ``wove`` are looked at.
        label: What the frame carries, for the message: ``"task 'pdf'"``.

    Raises:
        SerializationError: The versions differ. The message names both.
    """
    if is_other_wove(frame.get("wove")):
        raise SerializationError(f"{label} was sent by wove {frame['wove']}. {OTHER_WOVE}.")
    theirs = frame.get("python")
    if isinstance(theirs, str) and theirs.split(".")[:2] != PYTHON.split("."):
        raise SerializationError(
            f"{label} was pickled by Python {theirs}, and Python {PYTHON} received it: pickled functions and "
            f"classes hold bytecode, which only the same minor version can run. Use Python {theirs} or "
            f"Python {PYTHON} on both sides."
        )


def _outline(frame: Mapping[str, Any]) -> str:
    """The frame's fields without their bulk: ``type='x', run_id='1', result_pickle=...``."""
    shown = [
        f"{name}={value!r}"
        if isinstance(value, (str, int)) and len(str(value)) <= 60
        else f"{name}=..."
        for name, value in list(frame.items())[:8]
    ]
    return ", ".join(shown) or "an empty object"
