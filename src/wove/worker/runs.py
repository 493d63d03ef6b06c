"""A run of a task in a worker."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from wove.errors import SerializationError
from wove.protocol.heartbeats import spacing
from wove.protocol.pickling import Pickled, loads

if TYPE_CHECKING:
    from wove.worker.interrupts import Interruptible
    from wove.worker.reports import RunReports

__all__ = ["ExecutingRun", "SharedCallable", "SharedValues"]


class SharedCallable:
    """A callable that is unpickled at its first use, once for all its runs."""

    __slots__ = ("_function", "_is_async", "_lock", "_pickled")

    def __init__(self, pickled: Pickled) -> None:
        self._pickled: Pickled | None = pickled
        self._lock = threading.Lock()
        self._function: Callable[..., Any] | None = None
        self._is_async = False

    def load(self, task: str) -> tuple[Callable[..., Any], bool]:
        """Return the callable, and whether calling it makes a coroutine."""
        if self._function is None:
            with self._lock:
                self._load(f"the callable of task {task!r}")
        assert self._function is not None
        return self._function, self._is_async

    def _load(self, label: str) -> None:
        if self._pickled is None:
            return
        function = loads(self._pickled, label=label)
        if not callable(function):
            raise SerializationError(f"{label} is not callable but {type(function).__name__}")
        called = getattr(type(function), "__call__", None)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            called
        )
        self._function = function
        self._pickled = None  # its bytes are not needed any more


class SharedValues:
    """Arguments that are unpickled at their first use, once for all items of a map."""

    __slots__ = ("_lock", "_pickled", "_values")

    def __init__(self, pickled: Pickled) -> None:
        self._pickled: Pickled | None = pickled
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}

    def load(self, label: str) -> dict[str, Any]:
        """Return the arguments by parameter name."""
        with self._lock:
            if self._pickled is not None:
                self._values = loads(self._pickled, label=label)
                self._pickled = None
        return self._values


class ExecutingRun:
    """The state of one run.

    Attributes:
        names: The fields that all its events have.
        slot: Its slot in `RunMarks`; -1: none.
        seconds: How long the attempt may take once it has begun; ``None``: no limit.
        heartbeat_seconds: The time between two heartbeats; ``None``: it sends none.
        begun: Whether it has left the queue.
        ended: Whether its terminal event is decided.
        began: When it left the queue, in seconds since the epoch.
        ticks: When it left the queue, when its call began, and when that ended, as `time.perf_counter`.
        setup: What its process calls before its first task; ``None``: nothing.
        log_level: The level from which its log records are sent home; ``None``: neither these nor its output.
        reports: What it has reported; ``None``: nothing.
        traceparent: The span of the weave's side; empty: none.
        stopping: ``"cancel"`` or ``"deadline"`` once it has been told to stop; otherwise ``None``.
    """

    __slots__ = (
        "began",
        "begun",
        "callable",
        "cancel_coroutine",
        "ended",
        "frame",
        "heartbeat_seconds",
        "log_level",
        "setup",
        "names",
        "reports",
        "run_id",
        "seconds",
        "section",
        "shared",
        "slot",
        "stopping",
        "task",
        "ticks",
        "traceparent",
    )

    def __init__(
        self, run_id: str, frame: Mapping[str, Any], heartbeat_seconds: float | None = None
    ) -> None:
        self.run_id = run_id
        self.frame: Mapping[str, Any] = frame
        self.task = str(frame.get("task_id") or "?")
        self.names = {"run_id": run_id, "task_id": self.task}
        self.seconds = _seconds(frame.get("deadline"))
        slot: object = frame.get("slot")
        self.slot = slot if isinstance(slot, int) else -1
        self.traceparent = str(frame.get("traceparent") or "")
        level: object = frame.get("remote_logs")
        setup: object = frame.get("setup")
        self.setup = setup if isinstance(setup, str) else None
        self.log_level = level if isinstance(level, int) and not isinstance(level, bool) else None
        delivery: Any = frame.get("delivery")
        policy = cast(dict[str, Any], delivery) if isinstance(delivery, dict) else None
        self.heartbeat_seconds = heartbeat_seconds or spacing(policy)
        self.callable: SharedCallable | None = None
        self.shared: SharedValues | None = None
        self.section: Interruptible | None = None
        self.cancel_coroutine: Callable[[], None] | None = None
        self.begun = self.ended = False
        self.reports: RunReports | None = None
        self.stopping: str | None = None
        self.began = 0.0
        self.ticks: list[float] = []

    def timing(self, now: float) -> list[float] | None:
        """Return the ``timing`` of its end, which is at *now*; ``None`` where its call never began."""
        if len(self.ticks) < 3:
            return None
        began, called, returned = self.ticks
        spent = (called - began, returned - called, now - returned)
        return [round(seconds, 6) for seconds in (self.began, *spent)]

    def load_callable(self) -> tuple[Callable[..., Any], bool]:
        assert self.callable is not None
        return self.callable.load(self.task)

    def load_arguments(self) -> dict[str, Any]:
        pickled: Pickled | None = self.frame.get("args_pickle")
        self.frame = {}  # so that the bytes do not stay beside the values they became
        if pickled is None:
            return {}
        label = f"the arguments of task {self.task!r}"
        arguments = loads(pickled, label=label)
        if not isinstance(arguments, dict):
            raise SerializationError(
                f"{label} are not a dict by parameter name but {type(arguments).__name__}"
            )

        own = cast(dict[str, Any], arguments)
        return own if self.shared is None else {**self.shared.load(label), **own}


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    return None
