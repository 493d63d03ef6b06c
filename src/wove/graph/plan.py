"""Makes a plan of declarations: which task needs which others, in which order, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wove.errors import UnresolvedSignatureError
from wove.graph.options import MAPPED_ONLY, suggest
from wove.graph.signature import ITEM, Kind, Signature, describe, name_of

__all__ = ["DATA", "Declaration", "ExecutionPlan", "Node", "Plan", "plan"]

DATA = "data"
"""The name under which a task gets all initial values as one dict."""


class Declaration:
    """One task as it was declared.

    Attributes:
        name: The task's name.
        fn: The callable.
        source: The items of a mapped task: an iterable, or the name of a task or value.
        mapped: Whether it has a source.
        options: The options given in the declaration, checked.
        kind: The kind of result of the callable.
        signature: The parameters of the callable.
        replaces: The mapped declaration of a parent class that this one replaces, if any. A declaration
            without a source of its own stays mapped if it has a parameter for the item.
    """

    __slots__ = ("fn", "kind", "mapped", "name", "options", "replaces", "signature", "source")

    def __init__(
        self,
        fn: Callable[..., Any],
        options: Mapping[str, Any],
        source: Any = None,
        *,
        mapped: bool = False,
        name: str | None = None,
        replaces: Declaration | None = None,
    ) -> None:
        self.fn = fn
        self.name = name_of(fn) if name is None else name
        self.options = options
        self.source = source
        self.mapped = mapped
        self.signature, self.kind = describe(fn, mapped=mapped)
        self.replaces = replaces if replaces is None else replaces.origin()

    def origin(self) -> Declaration | None:
        """Return the declaration that has the source: this one, or the one that it replaces."""
        return self if self.mapped else self.replaces

    def settled(self, *, mapped: bool) -> Declaration:
        """Return a copy with the source of the replaced declaration if *mapped*, otherwise without options of maps."""
        if mapped and self.replaces is not None:
            return self._with(self.options, self.replaces.source, mapped=True)
        return self._with(
            {name: value for name, value in self.options.items() if name not in MAPPED_ONLY}
        )

    def _with(
        self, options: Mapping[str, Any], source: Any = None, *, mapped: bool = False
    ) -> Declaration:
        return Declaration(self.fn, options, source, mapped=mapped, name=self.name)


class Node:
    """A task in its place in the graph.

    Attributes:
        index: Its place in the order of definition.
        positional: Names of the values that are passed by position, in order.
        keywords: Names of the values that are passed by name.
        fill: Default values of positional-only parameters in front of a given one.
        item: The parameter that receives the item of a mapped task.
        source: The task that is the source of a mapped task, if it is a task.
        streams: Whether items of that source can be received before it has ended.
        needs: The tasks whose results it needs.
        dependents: The tasks that need its result.

    Tasks are given by their index. Nodes that referred to each other could be freed by the garbage
    collector only, and every weave has a set of them.
    """

    __slots__ = (
        "declaration",
        "dependents",
        "fill",
        "index",
        "item",
        "keywords",
        "name",
        "needs",
        "positional",
        "source",
        "streams",
    )

    def __init__(self, index: int, declaration: Declaration) -> None:
        self.index = index
        self.name = declaration.name
        self.declaration = declaration
        self.positional: tuple[str, ...] = ()
        self.keywords: tuple[str, ...] = ()
        self.fill: dict[str, Any] | None = None
        self.item: str | None = None
        self.source: int | None = None
        self.streams = False
        self.needs: tuple[int, ...] = ()
        self.dependents: Sequence[int] = ()

    def arguments(self) -> tuple[str, ...]:
        """Return the names of all parameters that get a value, including the item's."""
        return self.positional + self.keywords


class ExecutionPlan(Mapping[str, Any]):
    """The order of the tasks, by name: which waits for which; as attributes and as a mapping.

    Attributes:
        dependencies: For each task, the tasks it waits for.
        dependents: For each task, the tasks that wait for it.
        tiers: Groups of tasks by their distance from the start. Only a view of the graph: a task runs
            as soon as its own inputs are there.
        sorted_tasks: All tasks, every one after those it waits for.
    """

    __slots__ = ("dependencies", "dependents", "sorted_tasks", "tiers")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.dependencies = {
            node.name: [nodes[i].name for i in sorted(node.needs)] for node in nodes
        }
        self.dependents = {
            node.name: [nodes[i].name for i in sorted(node.dependents)] for node in nodes
        }
        order, depth = _sort(nodes)
        self.sorted_tasks = [nodes[i].name for i in order]
        tiers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for i in sorted(order):
            tiers[depth[i]].append(nodes[i].name)
        self.tiers = tiers

    def __getitem__(self, key: str) -> Any:
        if key in self.__slots__:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__slots__)

    def __len__(self) -> int:
        return len(self.__slots__)

    def __repr__(self) -> str:
        return f"<ExecutionPlan {' -> '.join('[' + ', '.join(tier) + ']' for tier in self.tiers)}>"


class Plan:
    """The nodes of one weave in order of definition, and the first mistake in them, if any."""

    __slots__ = ("error", "nodes")

    def __init__(self, nodes: tuple[Node, ...], error: Exception | None) -> None:
        self.nodes = nodes
        self.error = error

    def execution_plan(self) -> ExecutionPlan:
        """Return the plan by names, for people and tools."""
        return ExecutionPlan(self.nodes)


def plan(declarations: Mapping[str, Declaration], values: Mapping[str, Any]) -> Plan:
    """Return the plan of *declarations*, which may depend on each other and on *values*.

    Args:
        declarations: The tasks by name, in order of definition.
        values: The initial values by name.

    Returns:
        The plan. A mistake in it (an unknown name, a cycle) is its ``error``, so that the rest of the
        graph can still be shown.
    """
    nodes = {
        name: Node(i, declaration) for i, (name, declaration) in enumerate(declarations.items())
    }
    ordered = tuple(nodes.values())
    error: Exception | None = None
    backwards = True

    for node in ordered:
        try:
            _connect(node, ordered, nodes, values)
        except (NameError, TypeError) as found:
            error = error or found
        if node.needs and max(node.needs) >= node.index:
            backwards = False

    # Only now is it known which declarations of a class stay mapped.
    for node in ordered:
        if node.streams and node.source is not None:
            source = ordered[node.source].declaration
            node.streams = source.mapped or source.kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR)

    # If all edges point backwards in the order of definition, there is no cycle.
    return Plan(ordered, error if error is not None or backwards else _find_cycle(ordered))


def _connect(
    node: Node, ordered: tuple[Node, ...], nodes: Mapping[str, Node], values: Mapping[str, Any]
) -> None:
    declaration = node.declaration
    signature = declaration.signature
    if not signature.names and not declaration.mapped:
        return
    needs: list[int] = []
    given: list[str] = []
    free: list[str] = []

    for name in signature.names:
        other = nodes.get(name)
        if other is not None:
            needs.append(other.index)
            given.append(name)
        elif name in values or name == DATA:
            given.append(name)
        else:
            free.append(name)

    if not declaration.mapped and declaration.replaces is not None:
        # A copy: further declarations before the block closes may change the result.
        declaration = declaration.settled(
            mapped=sum(name not in signature.defaults for name in free) == 1
        )
        node.declaration = declaration

    # Connected before anything is refused, because a plan with mistakes is shown too.
    if declaration.mapped and isinstance(declaration.source, str):
        source = nodes.get(declaration.source)
        if source is not None:
            node.source = source.index
            if source.index not in needs:
                node.streams = True  # unless the source turns out to be a plain task
                needs.append(source.index)
        elif declaration.source not in values and declaration.source != DATA:
            raise NameError(
                f"task {node.name!r} maps over {declaration.source!r}, which is neither a task nor an "
                f"initial value.{suggest(declaration.source, [*nodes, *values])}{_available(node, nodes, values)}"
            )

    node.needs = tuple(needs)

    for i in needs:
        dependents = ordered[i].dependents
        if isinstance(dependents, list):
            dependents.append(node.index)
        else:  # most tasks of a wide graph have none
            ordered[i].dependents = [node.index]

    if declaration.mapped:
        node.item = _item_parameter(node, signature, free)
        given = [name for name in signature.names if name in given or name == node.item]
    else:
        for name in free:
            if name not in signature.defaults:
                raise _unresolved(node, name, nodes, values)

    _place(node, signature, given)


def _item_parameter(node: Node, signature: Signature, free: list[str]) -> str:
    required = [name for name in free if name not in signature.defaults]
    candidates = required or free
    if len(candidates) == 1:
        return candidates[0]
    if not candidates and signature.variadic:
        return ITEM
    if not candidates:
        taken = ", ".join(map(repr, signature.names)) or "none at all"
        raise TypeError(
            f"mapped task {node.name!r} has no parameter for the item: a mapped task needs exactly one "
            f"parameter that names neither a task nor an initial value (its parameters: {taken})"
        )

    raise TypeError(
        f"mapped task {node.name!r} has {len(candidates)} parameters that name neither a task nor an initial "
        f"value ({', '.join(candidates)}); exactly one of them can receive the item"
    )


def _place(node: Node, signature: Signature, given: list[str]) -> None:
    """Decide how each given parameter is passed: by position until the first gap, then by name."""
    names = signature.names
    if len(given) == len(names):
        node.positional = names[: signature.positional]
        if node.item is ITEM:
            node.positional += (ITEM,)
        node.keywords = names[signature.positional :]
        return

    count = 0
    while count < signature.positional and count < len(given) and names[count] == given[count]:
        count += 1
    if count < signature.positional_only and any(
        name in given for name in names[count : signature.positional_only]
    ):
        last = max(i for i in range(signature.positional_only) if names[i] in given)
        defaults = signature.default_of or {}
        node.fill = {name: defaults[name] for name in names[: last + 1] if name not in given}
        count = last + 1

    node.positional = names[:count]
    node.keywords = tuple(name for name in names[count:] if name in given)


def _unresolved(
    node: Node, name: str, nodes: Mapping[str, Node], values: Mapping[str, Any]
) -> UnresolvedSignatureError:
    return UnresolvedSignatureError(
        f"parameter {name!r} of task {node.name!r} names neither a task nor an initial value, "
        f"and it has no default.{suggest(name, [*nodes, *values])}{_available(node, nodes, values)}"
    )


def _available(node: Node, nodes: Mapping[str, Node], values: Mapping[str, Any]) -> str:
    names = [name for name in (*values, *nodes) if name != node.name]
    return f" Available: {', '.join(names) or 'nothing'}."


def _sort(nodes: Sequence[Node]) -> tuple[list[int], dict[int, int]]:
    """Return the tasks in an order that respects the edges, and their depths, without those on a cycle."""
    waiting = [len(node.needs) for node in nodes]
    order = [node.index for node in nodes if not node.needs]
    depth = dict.fromkeys(order, 0)

    for i in order:
        for dependent in nodes[i].dependents:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                depth[dependent] = 1 + max(depth[need] for need in nodes[dependent].needs)
                order.append(dependent)

    return order, depth


def _find_cycle(nodes: Sequence[Node]) -> RuntimeError | None:
    sorted_nodes = set(_sort(nodes)[0])
    stuck = [node.index for node in nodes if node.index not in sorted_nodes]
    if not stuck:
        return None
    # Each task that is left needs another one that is left, so the way back must reach one twice.
    path: list[int] = []
    i = stuck[0]
    while i not in path:
        path.append(i)
        i = next(need for need in nodes[i].needs if need not in sorted_nodes)

    circle = [*path[path.index(i) :], i]
    circle.reverse()
    return RuntimeError(
        f"Circular dependency detected: {' -> '.join(nodes[i].name for i in circle)}"
    )
