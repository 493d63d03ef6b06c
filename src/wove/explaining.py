"""Explains a weave: its plan, and where each of its settings came from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from wove.errors import MissingDispatchFeatureError, SerializationError
from wove.graph.plan import Node, Plan
from wove.settings.resolution import Resolver, Setting, TaskSettings

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Explanation", "describe"]


class Explanation(dict[str, dict[str, Setting]]):
    """The effective settings: by task, by setting, the value and where it came from.

    The weave's own are under ``"weave"``, unless a task has that name. ``print`` it for a table.
    """

    @classmethod
    def of(cls, nodes: Iterable[Node], resolver: Resolver) -> Self:
        """Return the settings of the tasks of a plan as *resolver* resolves them."""
        explanation = cls(weave=resolver.explain_weave())

        for node in nodes:
            declaration, label = node.declaration, f"task {node.name!r}"
            settings = resolver.explain(declaration.options, declaration.mapped, label)
            if settings["cache"].value:
                settings.update(_parts_of_key(node, label, settings["cache_key"].value))
            if _leaves_process(resolver.task(declaration.options, declaration.mapped, label)):
                settings.update(_parts_of_call(declaration.fn, label))
            explanation[node.name] = settings

        return explanation

    def __str__(self) -> str:
        lines: list[str] = []

        for name, settings in self.items():
            lines.append(name)
            lines += [
                f"  {setting:<28} {value!r:<24} {origin}"
                for setting, (value, origin) in settings.items()
            ]

        return "\n".join(lines)


def _leaves_process(settings: TaskSettings) -> bool:
    """Return whether the calls of a task are pickled."""
    environment = settings.environment
    if environment.is_local:
        return False

    from wove.executors.registry import executor_class

    try:
        return executor_class(environment.executor, environment.name).wire
    except (ValueError, TypeError):  # raised when the weave runs
        return False


def _parts_of_call(fn: Callable[..., Any], label: str) -> dict[str, Setting]:
    """Return what travels to a worker with each new callable: bytes, and what the callable captures."""
    from wove.protocol import pickling

    parts: dict[str, object] = {}
    try:
        parts["call: bytes"] = pickling.dumps(fn, label=f"the function of {label}").size
    except (SerializationError, MissingDispatchFeatureError) as error:
        parts["call: not possible"] = str(error)
    if captured := tuple(_captured(fn)):
        parts["call: captured"] = captured
    return {name: Setting(value, "code") for name, value in parts.items()}


def _captured(fn: object) -> Iterator[str]:
    """Yield the name and the size of each value that the function *fn* takes along because it travels by value."""
    from wove.protocol import pickling
    from wove.protocol.by_value import is_importable

    while isinstance(fn, partial):
        fn = cast("object", fn.func)
    function = getattr(fn, "__func__", fn)
    if not inspect.isfunction(function) or is_importable(function):
        return

    variables = inspect.getclosurevars(function)
    for name, value in {**variables.nonlocals, **variables.globals}.items():
        if inspect.ismodule(value):
            continue
        try:
            yield f"{name} ({pickling.dumps(value, label=name).size:,} bytes)"
        except SerializationError:
            yield f"{name} (cannot be pickled)"


def _parts_of_key(node: Node, label: str, cache_key: object) -> dict[str, Setting]:
    """Return what tells the kept results of a task apart."""
    from wove.cache.fingerprint import Fingerprint  # here, because most weaves keep no results

    try:
        code = Fingerprint(node.declaration.fn, label, values=cache_key is None)
    except SerializationError as error:
        return {"key: not possible": Setting(str(error), "code")}

    parts = {
        "code of": tuple(code.functions),
        "defaults of": tuple(code.defaults),
        "captured": tuple(code.captured),
        "arguments": () if cache_key is not None else node.arguments(),
    }
    return {f"key: {name}": Setting(names, "code") for name, names in parts.items() if names}


def describe(plan: Plan, resolver: Resolver) -> str:
    """Return the plan of a weave as text: one line for each task, in an order in which they could run."""
    nodes = {node.name: node for node in plan.nodes}
    shown = plan.execution_plan()
    lines = [f"weave of {len(nodes)} task(s)"]

    for depth, tier in enumerate(shown.tiers):
        for name in tier:
            declaration = nodes[name].declaration
            environment = resolver.task(
                declaration.options, declaration.mapped, f"task {name!r}"
            ).environment
            about = [declaration.kind.value, f"in {environment.name!r}"]
            if declaration.mapped:
                source = (
                    declaration.source if isinstance(declaration.source, str) else "an iterable"
                )
                about.insert(0, f"mapped over {source}")
            after = (
                f" after {', '.join(shown.dependencies[name])}" if shown.dependencies[name] else ""
            )
            lines.append(f"  {depth}: {name} ({', '.join(about)}){after}")

    if plan.error is not None:
        lines.append(f"  wrong: {plan.error}")
    return "\n".join(lines)
