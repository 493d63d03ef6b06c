"""Where tracing hooks in: what a run tells of its tasks and attempts, where somebody traces it.

Nothing here knows OpenTelemetry; `otel` does. Without `wove.instrument`, a weave has no tracer, and asks once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from contextvars import Context
from typing import Any, Protocol, TypeAlias

__all__ = ["BeginWeave", "RunTracer", "TaskTracer", "WeaveTracer", "set_tracing", "tracer_of_weave"]


class ItemsView(Protocol):
    """The items of a map, as far as they are traced; times are those of `time.perf_counter`."""

    @property
    def started(self) -> Sequence[float]: ...
    @property
    def ended(self) -> Sequence[float]: ...
    @property
    def errors(self) -> Sized: ...


class RunTracer(Protocol):
    """Traces one attempt."""

    @property
    def traceparent(self) -> str:
        """The header of W3C Trace Context that makes spans elsewhere its children."""
        ...

    def end(self, facts: Mapping[str, Any], error: BaseException | None, /) -> None:
        """The attempt has ended.

        Args:
            facts: What is known about it; see `otel`.
            error: What it ended with.
        """


class TaskTracer(Protocol):
    """Traces one task."""

    def attach(self) -> Any:
        """Make the task's span the current one; returns what `detach` takes."""

    def detach(self, token: Any, /) -> None:
        """Put back what was current before `attach`."""

    def begin_run(self, item: int | None, attempt: int, /, *, is_remote: bool) -> RunTracer:
        """An attempt of the task, or of one of its items, begins."""
        ...

    def end(self, error: BaseException | None, items: ItemsView | None, /) -> None:
        """The task has ended.

        Args:
            error: What it ended with.
            items: The items of a map whose calls have not been traced one by one.
        """


class WeaveTracer(Protocol):
    """Traces one weave."""

    def begin_task(
        self, name: str, environment: str, /, *, mapped: bool, nested: bool = False
    ) -> TaskTracer:
        """Begin to trace a task; where it is *nested* (a merge), inside the current span."""
        ...

    def end(self, error: BaseException | None, /) -> None:
        """The weave has ended."""


BeginWeave: TypeAlias = Callable[[Sequence[str]], WeaveTracer]
"""Begins to trace a weave of tasks of these names, and makes its span the current one. Called in its context."""

_begin: BeginWeave | None = None


def set_tracing(begin: BeginWeave | None) -> None:
    """Have *begin* called for each weave from now on; ``None``: none is traced."""
    global _begin
    _begin = begin


def tracer_of_weave(names: Sequence[str], context: Context) -> WeaveTracer | None:
    """Return the tracer of a weave that begins; ``None`` where nothing is traced."""
    return None if _begin is None else context.run(_begin, names)
