"""Draws the graph of a plan, before, during and after its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wove.observe.graph import Graph
from wove.observe.sampling import Row, Sampler, length_of

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.graph.plan import Node, Plan
    from wove.settings.resolution import Resolver

__all__ = ["graph_of_plan", "graph_of_run"]


def graph_of_plan(plan: Plan, resolver: Resolver) -> Graph:
    """Return the graph of *plan*, which has not been run, with its settings.

    A plan with something wrong in it is drawn as far as it goes.
    """
    rows = [_waiting(node, resolver) for node in plan.nodes]
    return Graph(rows, [node.needs for node in plan.nodes])


def graph_of_run(run: WeaveRun) -> Graph:
    """Return the graph of *run*, with what its tasks are doing now; also from another thread."""
    return Graph(Sampler(run).rows(), [task.node.needs for task in run.tasks])


def _waiting(node: Node, resolver: Resolver) -> Row:
    declaration = node.declaration
    mapped = declaration.mapped
    try:
        environment = resolver.task(declaration.options, mapped).environment.name
    except NameError:  # it is not configured, which the block says when it closes
        environment = str(declaration.options.get("environment"))

    source: Any = declaration.source
    return Row(
        node.name,
        "waiting",
        environment=environment,
        mapped=mapped,
        total=length_of(source) if mapped and not isinstance(source, str) else None,
    )
