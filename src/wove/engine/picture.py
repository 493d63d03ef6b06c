"""The graph of a plan, before, during and after its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wove.observe.sampling import Row, Sampler, length_of

if TYPE_CHECKING:
    from wove.engine.scheduler import WeaveRun
    from wove.graph.plan import Node, Plan
    from wove.observe.graph import Graph
    from wove.settings.resolution import Resolver

__all__ = ["graph_of"]


def graph_of(plan: Plan, resolver: Resolver, run: WeaveRun | None = None) -> Graph:
    """Return the graph of *plan*.

    Args:
        plan: The tasks. A plan with something wrong in it is drawn as far as it goes.
        resolver: Their settings.
        run: What they are doing, once they are run.
    """
    from wove.observe.graph import Graph

    rows = [_waiting(node, resolver) for node in plan.nodes] if run is None else Sampler(run).rows()
    return Graph(rows, [node.needs for node in plan.nodes])


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
