"""OpenTelemetry: spans of weaves, tasks and attempts, and metrics of runs. ``pip install "wove[otel]"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Final

from wove import __version__
from wove.errors import MissingDependencyError, install_command
from wove.observe.tracing import ItemsView, set_tracing

try:
    from opentelemetry import context as contexts, metrics, trace
except ImportError as error:
    raise MissingDependencyError(
        f"wove.instrument needs opentelemetry-api: {install_command('otel')}"
    ) from error

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["instrument"]

MAX_BATCHES: Final = 100
"""Most spans that stand for the items of one map in this process."""

MIN_BATCH: Final = 1000
"""Fewest items that one of these spans stands for: a span for each would take longer than most items."""


def instrument(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Callable[[], None]:
    """Have every weave traced and measured with OpenTelemetry from now on.

    A weave, each task in it, and each attempt of a remote task is a span; so is each attempt of a local task that
    may be tried again, and each batch of items of a local map. The trace continues in every worker where
    OpenTelemetry is installed: spans that a task makes there are children of its attempt.

    Args:
        tracer_provider: Makes the spans; ``None``: the global one.
        meter_provider: Takes the metrics; ``None``: the global one.

    Returns:
        A call that ends this.

    Raises:
        MissingDependencyError: ``opentelemetry-api`` is not installed.

    Example:
        >>> stop = wove.instrument()
        >>> stop()
    """
    tracer = trace.get_tracer("wove", __version__, tracer_provider)
    meters = _Meters(metrics.get_meter("wove", __version__, meter_provider))

    def begin(names: Sequence[str]) -> _WeaveTracer:
        return _WeaveTracer(tracer, meters, names)

    set_tracing(begin)
    return lambda: set_tracing(None)


class _Meters:
    """The instruments."""

    def __init__(self, meter: metrics.Meter) -> None:
        self.runs = meter.create_counter(
            "wove.runs", "{run}", "Runs outside this process that have ended"
        )
        self.active = meter.create_up_down_counter(
            "wove.runs.active", "{run}", "Runs outside this process that have not ended"
        )
        self.duration = meter.create_histogram(
            "wove.run.duration", "s", "From the beginning of an attempt to its end"
        )
        self.queue_time = meter.create_histogram(
            "wove.run.queue_time", "s", "From the hand-over of a run until its worker began it"
        )
        self.sent = meter.create_counter("wove.run.sent", "By", "Bytes of callables and arguments")
        self.received = meter.create_counter("wove.run.received", "By", "Bytes of results")
        self.losses = meter.create_counter("wove.run.losses", "{run}", "Runs whose worker was lost")
        self.tasks = meter.create_histogram(
            "wove.task.duration", "s", "From the beginning of a task to its end"
        )
        self.weaves = meter.create_histogram(
            "wove.weave.duration", "s", "From the beginning of a weave to its end"
        )


class _WeaveTracer:
    """One weave."""

    def __init__(self, tracer: trace.Tracer, meters: _Meters, names: Sequence[str]) -> None:
        self._tracer = tracer
        self._meters = meters
        self._began = perf_counter()
        self._span = tracer.start_span("weave", attributes={"wove.tasks": tuple(names)})
        self._context = trace.set_span_in_context(self._span)
        contexts.attach(self._context)  # in the context of the weave, which ends with it

    def begin_task(
        self, name: str, environment: str, /, *, mapped: bool, nested: bool = False
    ) -> _TaskTracer:
        parent = contexts.get_current() if nested else self._context
        return _TaskTracer(self._tracer, self._meters, parent, name, environment, mapped=mapped)

    def end(self, error: BaseException | None, /) -> None:
        _end(self._span, error)
        attributes = {"wove.outcome": _outcome(error)}
        self._meters.weaves.record(perf_counter() - self._began, attributes, self._context)


class _TaskTracer:
    """One task."""

    def __init__(
        self,
        tracer: trace.Tracer,
        meters: _Meters,
        parent: Context,
        name: str,
        environment: str,
        *,
        mapped: bool,
    ) -> None:
        self._tracer = tracer
        self._meters = meters
        self._name = name
        self._attributes = {"wove.task": name, "wove.environment": environment}
        self._began = perf_counter()
        self._span = tracer.start_span(
            f"task {name}", parent, attributes={**self._attributes, "wove.mapped": mapped}
        )
        self._context = trace.set_span_in_context(self._span)

    def attach(self) -> Token[Context]:
        return contexts.attach(self._context)

    def detach(self, token: Token[Context], /) -> None:
        contexts.detach(token)

    def begin_run(self, item: int | None, attempt: int, /, *, is_remote: bool) -> _RunTracer:
        attributes: dict[str, Any] = {**self._attributes, "wove.attempt": attempt}
        if item is not None:
            attributes["wove.item"] = item
        kind = trace.SpanKind.CLIENT if is_remote else trace.SpanKind.INTERNAL
        span = self._tracer.start_span(
            f"run {self._name}", self._context, kind=kind, attributes=attributes
        )
        return _RunTracer(span, self._meters, self._attributes, is_remote=is_remote)

    def end(self, error: BaseException | None, items: ItemsView | None, /) -> None:
        if items is not None:
            self._span.set_attributes(
                {"wove.items": len(items.started), "wove.items.failed": len(items.errors)}
            )
            if self._span.is_recording():
                self._add_batches(items)
        _end(self._span, error)
        attributes = {**self._attributes, "wove.outcome": _outcome(error)}
        self._meters.tasks.record(perf_counter() - self._began, attributes, self._context)

    def _add_batches(self, items: ItemsView) -> None:
        """Make the spans of the items, some thousand in each: they have no cost while the items run."""
        offset = time_ns() - int(perf_counter() * 1e9)
        count = len(items.started)
        size = max(MIN_BATCH, -(-count // MAX_BATCHES))

        for first in range(0, count, size):
            started = items.started[first : first + size]
            ended = items.ended[first : first + size]
            span = self._tracer.start_span(
                f"items {self._name}",
                self._context,
                attributes={"wove.items.first": first, "wove.items": len(started)},
                start_time=offset + int(min(started) * 1e9),
            )
            span.end(offset + int(max(*ended, min(started)) * 1e9))


class _RunTracer:
    """One attempt."""

    def __init__(
        self, span: Span, meters: _Meters, attributes: dict[str, str], *, is_remote: bool
    ) -> None:
        self._span = span
        self._meters = meters if is_remote else None
        self._attributes = attributes
        self._began = perf_counter()
        where = span.get_span_context()
        self.traceparent = (
            f"00-{where.trace_id:032x}-{where.span_id:016x}-{where.trace_flags:02x}"
            if where.is_valid
            else ""
        )
        if is_remote:
            meters.active.add(1, attributes)

    def end(self, facts: Mapping[str, Any], error: BaseException | None, /) -> None:
        span, meters = self._span, self._meters
        if span.is_recording():
            span.set_attributes({f"wove.{name}": value for name, value in facts.items() if value})
        _end(span, error)
        if meters is None:
            return

        context = trace.set_span_in_context(span)  # for the exemplars
        attributes = {**self._attributes, "wove.outcome": _outcome(error)}
        meters.active.add(-1, self._attributes, context)
        meters.runs.add(1, attributes, context)
        meters.duration.record(perf_counter() - self._began, attributes, context)
        meters.sent.add(facts.get("bytes_out", 0), self._attributes, context)
        meters.received.add(facts.get("bytes_in", 0), self._attributes, context)
        if facts.get("queue_seconds") is not None:
            meters.queue_time.record(facts["queue_seconds"], self._attributes, context)
        losses = facts.get("losses", 0) + (type(error).__name__ == "WorkerLostError")
        if losses:
            meters.losses.add(losses, self._attributes, context)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None and span.is_recording():
        span.record_exception(error)
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    span.end()


def _outcome(error: BaseException | None) -> str:
    return "done" if error is None else type(error).__name__
