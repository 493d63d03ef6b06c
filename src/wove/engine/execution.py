"""Takes a weave from its declarations to its result, in the block, a thread or a detached process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from wove.engine.outcome import failed_before_running, result_of
from wove.engine.scheduler import WeaveRun
from wove.graph.plan import Declaration, plan
from wove.settings.resolution import Resolver

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from wove.engine.completions import CompletionLog
    from wove.observe.graph import Graph
    from wove.result import WoveResult
    from wove.settings.model import Configuration, Environment

__all__ = ["Display", "Execution"]


class Display(Protocol):
    """Shows a run in progress."""

    def close(self) -> None:
        """End the display of a run that has ended; must return soon."""

    async def aclose(self) -> None:
        """`close`, without blocking the loop."""


class Execution:
    """The plan and the settings of one weave's run. It can be pickled if its tasks and values can.

    Args:
        declarations: The tasks by name, in order of definition.
        values: The initial values by name.
        options: The checked options of the weave.
        configuration: What ``wove.config`` held when the block closed.
        watch: Each is called with the run before it begins, and returns a display that ends with the run.

    Attributes:
        plan: The graph; its ``error`` is the first mistake in it.
        resolver: The settings.
        settings: The weave's own settings.
        logs: The logs of the maps that other threads may follow, by name.
        context: The context variables of the code that closed the block.

    Raises:
        NameError: The weave's environment is not configured.
    """

    def __init__(
        self,
        declarations: Mapping[str, Declaration],
        values: Mapping[str, Any],
        options: Mapping[str, Any],
        configuration: Configuration,
        watch: Sequence[Callable[[WeaveRun], Display]] = (),
    ) -> None:
        self._parts = (declarations, values, options, configuration, watch)
        self.values = values
        self.configuration = configuration
        self.plan = plan(declarations, values)
        self.resolver = Resolver(configuration, options)
        self.settings = self.resolver.weave()
        self.context = copy_context()
        self.logs: dict[str, CompletionLog] = {}
        self._run: WeaveRun | None = None
        self._watch = watch
        self._displays: Sequence[Display] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Execution, self._parts)

    def make_run(self, loop: AbstractEventLoop, finished: Callable[[], object]) -> WeaveRun:
        """Return the run, to be started on *loop*.

        Raises:
            NameError: The environment of a task is not configured.
        """
        self._run = WeaveRun(
            self.plan,
            self.values,
            self.resolver,
            loop=loop,
            context=self.context,
            finished=finished,
        )
        self._run.logs = self.logs
        if self._watch:
            self._displays = [watch(self._run) for watch in self._watch]
        return self._run

    def preflight(self) -> Callable[[], None] | None:
        """Return the check of the environments of its tasks that is to be made before the first task runs.

        ``None``: there is nothing to check, as for most weaves. A configuration is checked once. The check does no I/O
        but imports, for which it may take long at the first time; call it in a thread where that matters.
        """
        resolved = self.configuration.resolved
        unchecked: dict[str, Environment] | None = resolved.get("unchecked")
        if unchecked is None:
            environments = self.configuration.environments
            unchecked = resolved["unchecked"] = {
                name: each for name, each in environments.items() if not each.is_local
            }
        if not unchecked:
            return None

        usual = self.settings.environment.name
        names = {node.declaration.options.get("environment", usual) for node in self.plan.nodes}
        wanted = [unchecked[name] for name in names if name in unchecked]
        return partial(_check, wanted, unchecked) if wanted else None

    def log_completions(self) -> None:
        """Log in which order the items of maps are completed, where their results are kept."""
        from wove.engine.completions import CompletionLog  # here, because most weaves do without

        for node in self.plan.nodes:
            if node.declaration.mapped and node.declaration.options.get("keep", True):
                self.logs[node.name] = CompletionLog(node.name)

    async def unwatch(self) -> None:
        """End the displays of the run, which has ended, without blocking the loop. `result` ends them too."""
        for display in self._displays:
            await display.aclose()

    def result(self) -> WoveResult | None:
        """Return the run's result, when it has ended; ``None`` where it was never made."""
        self._close_displays()
        return None if self._run is None else result_of(self._run, self.values)

    def failed(self, error: BaseException) -> WoveResult:
        """Return the result of a weave that could not run because of *error*."""
        self._close_displays()
        return failed_before_running(
            self.plan, self.values, error, self.settings.error_mode != "raise"
        )

    def _close_displays(self) -> None:
        for display in self._displays:
            display.close()

    def graph(self) -> Graph:
        """Return the graph, with what the tasks are doing now."""
        # Imported here, because most weaves are never drawn.
        from wove.engine.picture import graph_of_plan, graph_of_run

        if self._run is not None:
            return graph_of_run(self._run)
        return graph_of_plan(self.plan, self.resolver)

    def error(self) -> BaseException | None:
        """Return the exception that the block raises."""
        run = self._run
        if run is None:
            return None
        if run.cancelled_by is None:
            return run.error if self.settings.error_mode == "raise" else None
        if isinstance(run.cancelled_by, KeyboardInterrupt) and isinstance(
            run.error, KeyboardInterrupt
        ):
            return run.error  # a second Ctrl-C got into a task, and shows where that was

        return run.cancelled_by


def _check(environments: Sequence[Environment], unchecked: dict[str, Environment]) -> None:
    from wove.concurrency import forks

    with forks.importing:
        from wove.delivery import check_environment

    for environment in environments:
        check_environment(environment)
        unchecked.pop(environment.name, None)
