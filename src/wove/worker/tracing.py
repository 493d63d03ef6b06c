"""The trace of a weave continues in a worker: spans of the task are children of its attempt's span."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["attach_parent"]

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""A header of W3C Trace Context, version 0."""


def attach_parent(traceparent: str) -> None:
    """Make the span of *traceparent* the current one in this context, where OpenTelemetry is installed."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return
    try:
        from opentelemetry import context, trace
    except ImportError:  # then no task makes spans
        return

    trace_id, span_id, flags = (int(text, 16) for text in found.groups())
    parent = trace.SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags)
    )
    context.attach(trace.set_span_in_context(trace.NonRecordingSpan(parent)))
