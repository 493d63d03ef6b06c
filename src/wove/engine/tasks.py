"""The state of one task in one run."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from wove.engine.attempts import Attempts, Caller, is_plain
from wove.engine.threads import ThreadCall
from wove.graph.signature import Kind
from wove.observe.events import emit, listening
from wove.observe.reports import REPORTER

if TYPE_CHECKING:
    from wove.engine.mapping import MapItems, MapProgress
    from wove.engine.scheduler import WeaveRun
    from wove.engine.sources import Stream
    from wove.engine.threads import RunMailbox
    from wove.graph.plan import Node
    from wove.observe.reports import Report
    from wove.result import RunRecord

__all__ = ["CANCELLED", "DONE", "FAILED", "PENDING", "RUNNING", "Status", "Task"]


class Status(Enum):
    """The states of a task: PENDING, then RUNNING, then one of the others.

    A task that never runs goes from PENDING to FAILED, with an input, or to CANCELLED.
    """

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


PENDING: Final = Status.PENDING
RUNNING: Final = Status.RUNNING
DONE: Final = Status.DONE
FAILED: Final = Status.FAILED
CANCELLED: Final = Status.CANCELLED


class Task:
    """One task of a run.

    Attributes:
        waiting: How many inputs are still missing.
        started: When it began, on the clock of `time.perf_counter`; 0 before.
        ended: When it ended; 0 before.
        thread: The number of the thread that ran it; 0 where it is not known.
        settings: Its effective settings.
        plain_sync: Whether running it is only a call in a thread.
        plain_async: Whether running it is only awaiting a call.
        items: The progress of a mapped task.
        stream: The items of a generator while it runs, where a mapped task receives them.
        awaitable: The awaitable that a plain function returned, until it is awaited.
        progress: The last report of the task, or of one of its items; ``None``: none.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_caller", "awaitable", "ended", "error", "items", "name", "node", "plain_async",
        "plain_sync", "progress", "settings", "started", "status", "stream", "thread", "value", "waiting",
    )  # fmt: skip

    def __init__(self, node: Node, run: WeaveRun) -> None:
        declaration = node.declaration
        self.node = node
        self.name = node.name
        self.waiting = len(node.needs)
        self.status = PENDING
        self.thread = 0
        self.started = 0.0
        self.ended = 0.0
        self.value: Any = None
        self.error: BaseException | None = None
        self.items: MapProgress | None = None
        self.stream: Stream | None = None
        self.awaitable: Awaitable[Any] | None = None
        self.progress: Report | None = None
        self._caller: Caller | None = None
        self._attempts: Attempts | None = None

        if declaration.options or declaration.mapped:
            self.settings = run.resolver.task(
                declaration.options, declaration.mapped, f"task {node.name!r}"
            )
            plain = not declaration.mapped and is_plain(self.settings) and not self.settings.cache
        else:
            self.settings, plain = run.default_settings

        self.plain_sync = plain and declaration.kind is Kind.SYNC
        self.plain_async = plain and declaration.kind is Kind.ASYNC

    def caller(self, run: WeaveRun) -> Caller:
        """Return the caller that makes the task's calls, where that is more than a call."""
        if self._caller is None:
            declaration = self.node.declaration
            context = run.context.copy()
            context.run(REPORTER.set, ref(self))
            self._caller = Caller(
                run,
                self.name,
                declaration.fn,
                declaration.kind,
                declaration.signature,
                self.settings,
                context,
            )
            self._attempts = self._caller.attempts

        return self._caller

    def report(self, report: Report) -> None:
        """Keep the last *report* of the task or of one of its items; called in any thread."""
        self.progress = report
        if listening():
            emit("task_progress", task=self.name, **report._asdict())

    def close(self) -> None:
        """Release everything that refers to the run, which has ended."""
        self._caller = self.stream = None
        if self.items is not None:
            self.items = self.items.snapshot()

    def records(self) -> list[RunRecord]:
        """Return the records of its attempts outside this process."""
        return [] if self._attempts is None else self._attempts.records

    def attempts(self, item: int | None = None) -> int:
        """Return how many attempts the task took, or one *item* of it."""
        return 1 if self._attempts is None else 1 + self._attempts.retried.get(item, 0)

    def origin(self) -> str:
        """Return the end of the note of its failure, after its name."""
        return "" if self._attempts is None else self._attempts.origin()

    def retries(self) -> int:
        """Return how many attempts were not the first one, of all its items; may be called in any thread."""
        return 0 if self._attempts is None else sum(self._attempts.retried.copy().values())

    def begin(self) -> None:
        """Mark the task as running, from now on."""
        if self.status is PENDING:
            self.status = RUNNING
            self.started = perf_counter()

    def end(self, status: Status) -> None:
        """Mark the task as ended with *status*, now."""
        self.status = status
        if self.started:
            self.ended = perf_counter()

    def seconds(self) -> float:
        """Return how long it took: a mapped task from the start of its first item to the end of its last."""
        if self.items is not None and self.items.started:
            return max(0.0, max(self.items.ended) - min(self.items.started))
        return max(0.0, self.ended - self.started)

    def set_items(self, items: MapItems) -> None:
        """Set the items of a mapped task, which are launched from now on."""
        self.items = items

    async def stream_from(self, call: Callable[[], Any], run: WeaveRun) -> list[Any]:
        """Run a generator, adding its items to the stream as they come; returns all of them."""
        stream = self.stream
        assert stream is not None
        if self.node.declaration.kind is Kind.ASYNC_GENERATOR:
            async for item in call():
                stream.extend([item])
            return stream.items

        done = run.loop.create_future()

        def ended(succeeded: bool, value: Any) -> None:
            if not done.done():
                done.set_result((succeeded, value))

        pump = _Pump(call, stream, run.inbox)
        thread = ThreadCall(
            pump.run,
            slots=run.slots,
            inbox=run.inbox,
            context=self.caller(run).context.copy(),
            ended=ended,
        ).start()

        try:
            succeeded, value = await done
        finally:
            pump.stopped = True
            thread.abandon()

        if not succeeded:
            raise value
        return stream.items


class _Pump:
    """Advances a sync generator in a thread, and adds its items to the stream as they come."""

    __slots__ = ("call", "inbox", "items", "posted", "stopped", "stream")

    def __init__(self, call: Callable[[], Any], stream: Stream, inbox: RunMailbox) -> None:
        self.call = call
        self.stream = stream
        self.inbox = inbox
        self.items: deque[Any] = deque()
        self.posted = False
        self.stopped = False

    def run(self) -> None:
        for item in self.call():
            if self.stopped:
                return
            self.items.append(item)
            if not self.posted:
                self.posted = True
                self.inbox.post(self._hand_on)

    def _hand_on(self) -> None:
        # First the flag, then the items: one that comes between the two only has us called once more.
        self.posted = False
        self.stream.extend([self.items.popleft() for _ in range(len(self.items))])
