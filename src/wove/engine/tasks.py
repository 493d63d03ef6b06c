"""The state of one task in one run."""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from wove.engine.attempts import Attempts, Caller, is_plain
from wove.engine.sources import generator_source
from wove.engine.streams import GeneratorStream, Stream, StreamReader
from wove.graph.signature import Kind
from wove.observe.events import emit, listening
from wove.observe.reports import REPORTER

if TYPE_CHECKING:
    from wove.engine.mapping import MapItems, MapProgress
    from wove.engine.scheduler import WeaveRun
    from wove.graph.plan import Node
    from wove.observe.reports import Report
    from wove.observe.tracing import TaskTracer
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
        stream: The items of a generator or of a mapped task, while it runs, for the maps over it.
        kept: Whether the items' results are needed after the maps over it have received them.
        reader: The source of a mapped task that receives the items of another task while that runs.
        awaitable: The awaitable that a plain function returned, until it is awaited.
        tracer: Traces it while it runs; ``None`` where nothing does.
        progress: The last report of the task, or of one of its items; ``None``: none.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_caller", "awaitable", "ended", "error", "items", "kept", "name", "node",
        "plain_async", "plain_sync", "progress", "reader", "settings", "started", "status", "stream", "thread",
        "tracer", "value",
        "waiting",
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
        self.kept = True
        self.reader: StreamReader | None = None
        self.awaitable: Awaitable[Any] | None = None
        self.progress: Report | None = None
        self.tracer: TaskTracer | None = None
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
            if self.tracer is not None:
                context.run(self.tracer.attach)
            self._caller = Caller(
                run,
                self.name,
                declaration.fn,
                declaration.kind,
                declaration.signature,
                self.settings,
                context,
                self.tracer,
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
        self._caller = self.stream = self.reader = None
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

    def end_trace(self, error: BaseException | None) -> None:
        """End its span, if it is traced: it has ended, with *error* if it failed."""
        tracer, self.tracer = self.tracer, None
        if tracer is not None:
            one_by_one = not self.settings.is_local or self.settings.retries > 0
            tracer.end(error, None if one_by_one else self.items)

    def seconds(self) -> float:
        """Return how long it took: a mapped task from the start of its first item to the end of its last."""
        if self.items is not None and self.items.started:
            # Positions without a start: their items failed in the map that is the source.
            return max(
                0.0, max(self.items.ended) - min(filter(None, self.items.started), default=0.0)
            )
        return max(0.0, self.ended - self.started)

    def set_items(self, items: MapItems) -> None:
        """Set the items of a mapped task, which are launched from now on."""
        self.items = items

    def read(self, source: Task, max_workers: int) -> None:
        """Receive the items of *source* while it runs; called before anything runs.

        Args:
            source: The task that is the source of this one.
            max_workers: Maximum number of threads of the weave.
        """
        mapped = source.node.declaration.mapped
        if source.stream is None:
            source.stream = Stream() if mapped else GeneratorStream()
        # A map has as many items as its source.
        max_items = source.settings.max_pending if mapped else None
        threads = self.settings.is_local and self.node.declaration.kind is Kind.SYNC
        unbounded = max_workers if threads else float("inf")
        self.reader = source.stream.reader(self.settings.workers or unbounded, max_items)
        self.waiting -= 1

    def reads(self, source: Task) -> bool:
        """Return whether the task receives the items of *source* while that runs."""
        return self.node.streams and self.node.source == source.node.index

    async def run_stream(self, generator: Any, run: WeaveRun) -> list[Any]:
        """Run the generator in step with the maps over it, and return all its items."""
        assert isinstance(self.stream, GeneratorStream)
        source = generator_source(
            generator,
            workers=self.stream.workers,
            loop=run.loop,
            inbox=run.inbox,
            limiter=run.slots,
            context=self.caller(run).context,
        )
        return await self.stream.run(source)
