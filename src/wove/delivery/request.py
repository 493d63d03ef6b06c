"""The engine's requests to run a call elsewhere: one call, and one attempt of it."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wove.concurrency import forks, thread_pool

if TYPE_CHECKING:
    from wove.delivery.shared_arguments import SharedArguments
    from wove.observe.reports import FindReporter
    from wove.protocol.pickling import Pickled
    from wove.result import RunRecord
    from wove.settings.resolution import TaskSettings

__all__ = ["Call", "Request"]


class Call:
    """The callable of a task, pickled at most once, however many runs need it.

    Args:
        fn: The callable; it is called with keyword arguments.
        task: The task's name.

    Attributes:
        pickled: Its pickle; ``None`` until it has been made.
        callable_id: The SHA-256 of the pickle, in hexadecimal.
        failure: Why it cannot be pickled.
        shared: What its items have in common, once one of them was pickled.
    """

    __slots__ = (
        "_is_started",
        "_lock",
        "_settled",
        "_waiting",
        "callable_id",
        "failure",
        "fn",
        "pickled",
        "shared",
        "task",
    )

    def __init__(self, fn: Callable[..., Any], task: str) -> None:
        self.fn = fn
        self.task = task
        self.pickled: Pickled | None = None
        self.callable_id = ""
        self.failure: BaseException | None = None
        self.shared: SharedArguments | None = None
        self._waiting: list[Callable[[], object]] = []
        self._is_started = self._settled = False
        self._lock = threading.Lock()

    def when_pickled(self, ready: Callable[[], object]) -> bool:
        """Return whether `pickled` or `failure` is set. If not, *ready* is called in another thread once it is."""
        with self._lock:
            if self._settled:
                return True
            self._waiting.append(ready)
        self.start()
        return False

    def start(self) -> None:
        """Start to pickle the callable, which is going to be needed."""
        with self._lock:
            if self._is_started:
                return
            self._is_started = True
        thread_pool.submit(self._pickle)

    def _pickle(self) -> None:
        try:
            with forks.importing:
                from wove.protocol import pickling, signing

                with contextlib.suppress(ImportError):  # `dumps` says so, if it is needed
                    importlib.import_module("cloudpickle")
            pickled = pickling.dumps(self.fn, label=f"the function of task {self.task!r}")
            self.callable_id = str(signing.digest(pickled.chunks))
            self.pickled = pickled
        except (
            BaseException
        ) as error:  # whatever it is, it belongs to the runs that need the callable
            self.failure = error

        with self._lock:
            self._settled = True
            waiting, self._waiting = self._waiting, []

        for ready in waiting:
            ready()


class Request:
    """One attempt of one task, or of one item of a mapped task, to run in its environment.

    Args:
        call: The task's callable.
        args: The keyword arguments.
        settings: The effective settings of the task, with its environment.
        item: The position of the item in a mapped task, from 0; ``None`` for an unmapped task.
        attempt: Counted from 1.
        timeout: Seconds this attempt may take from the moment that its worker begins it. The worker
            is told. ``None`` for no limit.
        record: Where the run's id, worker and sizes are noted, if anywhere.
        find_reporter: Finds what receives the progress that the run reports, if anything does.

    Attributes:
        working: Called on the weave's loop: with true whenever a worker begins the run, with false
            when the run is lost and waits for another worker. ``None``: nobody wants to know.
        traceparent: The span of the attempt, for spans of the task; empty where nothing is traced.
        expired: Set before the run is cancelled because the time of the attempt is over. Such a run is
            always cancelled, whatever the orphan policy is: its weave continues.
    """

    __slots__ = (
        "args",
        "attempt",
        "call",
        "expired",
        "find_reporter",
        "item",
        "record",
        "settings",
        "timeout",
        "traceparent",
        "working",
    )

    def __init__(
        self,
        call: Call,
        args: dict[str, Any],
        settings: TaskSettings,
        item: int | None = None,
        attempt: int = 1,
        timeout: float | None = None,
        record: RunRecord | None = None,
        find_reporter: FindReporter | None = None,
    ) -> None:
        self.call = call
        self.args = args
        self.settings = settings
        self.item = item
        self.attempt = attempt
        self.timeout = timeout
        self.record = record
        self.find_reporter = find_reporter
        self.working: Callable[[bool], object] | None = None
        self.expired = False
        self.traceparent = ""

    def __str__(self) -> str:
        """Return its name in messages: ``task 'pdf'`` or ``item 3 of task 'pdf'``."""
        if self.item is None:
            return f"task {self.call.task!r}"
        return f"item {self.item} of task {self.call.task!r}"
