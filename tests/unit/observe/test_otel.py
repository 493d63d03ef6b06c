"""OpenTelemetry: the tree of a weave's spans, its metrics, and their way to a collector."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import attempt
from tests.support.tracing import Traced, make_span, traced

import wove
from wove import MissingDependencyError, WorkerLostError, merge, weave
from wove.testing import in_process

pytest.importorskip("opentelemetry.sdk")


@pytest.fixture(params=["with", "async with", "with in a loop"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trace() -> Iterator[Traced]:
    with traced() as found:
        yield found


def user_span(trace: Traced, name: str) -> None:
    with trace.tracers.get_tracer("user").start_as_current_span(name):
        pass


def test_one_tree_of_every_kind_of_task(form: str, trace: Traced) -> None:
    def declare(w: weave) -> None:
        @w.do
        def plain() -> int:
            user_span(trace, "in plain")
            return 1

        @w.do
        async def later(plain: int) -> int:
            await asyncio.sleep(0)
            user_span(trace, "in later")
            return 2

        @w.do(timeout=60)
        def limited(later: int) -> int:
            user_span(trace, "in limited")
            return 3

        @w.do([1], workers=1)
        def mapped(item: int, limited: int) -> None:
            user_span(trace, "in mapped")

        @w.do([1])
        async def mapped_later(item: int, mapped: Any) -> None:
            user_span(trace, "in mapped_later")

        @w.do
        def merging(mapped_later: Any) -> Any:
            def part(item: int) -> None:
                user_span(trace, "in part")

            return merge(part, [4])

        @w.do
        def nesting(merging: Any) -> None:
            with weave() as inner:
                inner.do(lambda: user_span(trace, "in inner"))

    attempt(form, declare)
    tasks = ["later", "limited", "mapped", "mapped_later", "merging", "nesting", "plain"]
    assert {parent: sorted(names) for parent, names in trace.tree().items()} == {
        "": ["weave"],
        "weave": ["task <lambda>", *(f"task {name}" for name in tasks)],
        "task plain": ["in plain"],
        "task later": ["in later"],
        "task limited": ["in limited"],
        "task mapped": ["in mapped", "items mapped"],
        "task mapped_later": ["in mapped_later", "items mapped_later"],
        "task merging": ["task part"],
        "task part": ["in part"],
        "task nesting": ["weave"],
        "task <lambda>": ["in inner"],
    }


def test_failures_and_retries(form: str, trace: Traced) -> None:
    def declare(w: weave) -> None:
        @w.do(retries=1)
        def flaky() -> None:
            raise ValueError("no")

        @w.do
        def after(flaky: None) -> None: ...

    attempt(form, declare, error_mode="return")
    assert trace.tree() == {
        "": ["weave"],
        "weave": ["task flaky"],
        "task flaky": ["run flaky", "run flaky"],
    }
    assert [span.attributes["wove.attempt"] for span in trace.spans[2:]] == [1, 2]
    for span in trace.spans:
        assert span.status.description == "ValueError: no"
        assert [event.name for event in span.events] == ["exception"]


def test_items_of_a_local_map_are_some_spans_and_not_one_each(trace: Traced) -> None:
    with weave() as w:
        w.do(range(2_500))(lambda item: item)
    batches = [span for span in trace.spans if span.name.startswith("items")]
    assert sum(span.attributes["wove.items"] for span in batches) == 2_500
    assert [span.attributes["wove.items.first"] for span in batches] == [0, 1000, 2000]
    assert all(span.start_time <= span.end_time for span in batches)
    (task,) = [span for span in trace.spans if span.name.startswith("task")]
    assert (task.attributes["wove.items"], task.attributes["wove.items.failed"]) == (2_500, 0)


@pytest.fixture
def far() -> Iterator[Any]:
    wove.config(environments={"far": {"executor": "stdio"}})
    with in_process(codec=True) as recorder:
        yield recorder


def test_a_remote_task_makes_spans_in_the_trace_of_its_weave(
    form: str, trace: Traced, far: Any
) -> None:
    done = attempt(form, lambda w: w.do([1, 2], environment="far")(spanned))
    runs = [span for span in trace.spans if span.name == "run spanned"]
    (weave_span,) = [span for span in trace.spans if span.name == "weave"]
    there = dict(zip((0, 1), done.result.spanned, strict=True))
    assert len(runs) == 2
    for run in runs:
        trace_id, parent = there[run.attributes["wove.item"]]
        assert trace_id == f"{weave_span.context.trace_id:032x}"
        assert parent == f"{run.context.span_id:016x}"
        assert run.attributes["wove.environment"] == "far"
        assert run.attributes["wove.run_id"] and run.attributes["wove.host"]
    assert trace.tree()["task spanned"] == ["run spanned", "run spanned"]


def spanned(item: int) -> tuple[str, str]:
    return make_span()


def test_metrics_of_runs(trace: Traced, far: Any) -> None:
    far.lose("lost")
    with weave(error_mode="continue") as w:
        w.do([1, 2], environment="far")(spanned)

        @w.do(environment="far")
        def lost() -> None: ...

    assert isinstance(w.result.exception, WorkerLostError)
    found = trace.metrics()
    runs = {
        (point.attributes["wove.task"], point.attributes["wove.outcome"]): point.value
        for point in found["wove.runs"]
    }
    assert runs == {("spanned", "done"): 2, ("lost", "WorkerLostError"): 1}
    assert {point.value for point in found["wove.runs.active"]} == {0}
    assert sum(point.count for point in found["wove.run.duration"]) == 3
    assert sum(point.count for point in found["wove.run.queue_time"]) >= 2
    assert all(point.value > 0 for point in found["wove.run.sent"])
    assert sum(point.value for point in found["wove.run.received"]) > 0
    assert [point.value for point in found["wove.run.losses"]] == [1]
    assert sum(point.count for point in found["wove.task.duration"]) == 2
    assert sum(point.count for point in found["wove.weave.duration"]) == 1


@pytest.mark.parametrize(
    "traceparent", ["", "x", "00-0-0-00", "01-" + "1" * 32 + "-" + "2" * 16 + "-01"]
)
def test_a_header_that_is_not_one_is_ignored(traceparent: str) -> None:
    from contextvars import copy_context

    from wove.worker.tracing import attach_parent

    context = copy_context()
    context.run(attach_parent, traceparent)
    assert context.run(make_span)[1] == ""


def test_it_ends_when_it_is_told_to(trace: Traced) -> None:
    wove.instrument(trace.tracers, trace.meters)()
    with weave() as w:
        w.do(lambda: 1)
    assert trace.spans == []


def test_without_the_package(script: Callable[..., Any]) -> None:
    done = script("""
        import sys
        sys.modules["opentelemetry"] = None
        import wove
        try:
            wove.instrument()
        except wove.MissingDependencyError as error:
            print(error)
    """)
    assert "pip install" in done.stdout and "wove[otel]" in done.stdout
    assert issubclass(MissingDependencyError, RuntimeError)


# ---------------------------------------------------------------------- a collector


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans over OTLP, as `otelcol` does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_a_collector_takes_the_spans(far: Any) -> None:
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(exporters.OTLPSpanExporter(url)))
        stop = wove.instrument(tracers)
        try:
            with weave() as w:
                w.do(environment="far")(make_span)
            assert tracers.force_flush(60_000)
        finally:
            stop()
            tracers.shutdown()
            server.shutdown()
            thread.join(60)
        received: list[tuple[str, bytes]] = server.received  # type: ignore[attr-defined]

    spans = []
    for path, body in received:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                assert scope.scope.name == "wove"
                spans += scope.spans
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"weave", "task make_span", "run make_span"}
    assert by_name["run make_span"].parent_span_id == by_name["task make_span"].span_id
    assert by_name["task make_span"].parent_span_id == by_name["weave"].span_id
    assert {span.trace_id.hex() for span in spans} == {w.result.make_span[0]}
    assert by_name["run make_span"].span_id.hex() == w.result.make_span[1]
