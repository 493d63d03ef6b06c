"""Spans and metrics in memory, and a task that makes a span where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import wove

__all__ = ["Traced", "make_span", "traced"]


class Traced:
    """Spans and metrics of the weaves meanwhile."""

    def __init__(self) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def spans(self) -> list[Any]:
        """The spans that have ended, in the order in which they began."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: int(span.start_time))

    def tree(self) -> dict[str, list[str]]:
        """Return the names of the children of each span, by the span's name."""
        names = {span.context.span_id: span.name for span in self.spans}
        found: dict[str, list[str]] = {}
        for span in self.spans:
            parent = names[span.parent.span_id] if span.parent else ""
            found.setdefault(parent, []).append(span.name)
        return found

    def metrics(self) -> dict[str, list[Any]]:
        """Return the points of each instrument, by its name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def traced() -> Iterator[Traced]:
    """Trace weaves meanwhile."""
    found = Traced()
    stop = wove.instrument(found.tracers, found.meters)
    try:
        yield found
    finally:
        stop()
        found.meters.shutdown()


def make_span() -> tuple[str, str]:
    """Make a span, and return its trace id and the id of its parent, in hexadecimal."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("user")
    with tracer.start_as_current_span("user") as span:
        parent: Any = getattr(span, "parent", None)
        trace_id = span.get_span_context().trace_id
        return f"{trace_id:032x}", f"{parent.span_id:016x}" if parent else ""
