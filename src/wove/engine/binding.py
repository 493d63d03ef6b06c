"""Makes calls of a node of the plan and the values that its parameters name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from wove.graph.signature import ITEM, Kind, Signature

if TYPE_CHECKING:
    from wove.graph.plan import Node

__all__ = [
    "Bound",
    "ItemCall",
    "call_here",
    "call_now",
    "item_call",
    "names_elsewhere",
    "portable",
]

Bound: TypeAlias = Callable[[], Any] | Mapping[str, Any]
"""A call that is ready to be made: in this process, a callable without arguments; elsewhere, the arguments by name."""


class ItemCall(NamedTuple):
    """How one item of a map is called.

    Attributes:
        invoke: Calls the callable with the item, in this process.
        bind: Makes of the item the call that a `Caller` takes.
    """

    invoke: Callable[[Any], Any]
    bind: Callable[[Any], Bound]

    @classmethod
    def here(cls, invoke: Callable[[Any], Any]) -> ItemCall:
        """Return the call of an item in this process by *invoke*."""
        return cls(invoke, partial(partial, invoke))

    @classmethod
    def elsewhere(
        cls, fn: Callable[[Any], Any], arguments: dict[str, Any], parameter: str
    ) -> ItemCall:
        """Return the call of an item as *parameter* of *fn* in another process, beside *arguments*."""
        return cls(fn, partial(_with_item, arguments, parameter))


def item_call(node: Node, values: Mapping[str, Any], *, local: bool) -> ItemCall:
    """Return how the items of the mapped *node* are called, in this process or elsewhere."""
    if local:
        return ItemCall.here(_invoke_item(node, values))
    return ItemCall.elsewhere(node.declaration.fn, names_elsewhere(node, values), node.item or "")


def call_here(node: Node, values: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the node's callable with all its arguments."""
    fn = node.declaration.fn
    if not node.positional and not node.keywords:
        return fn
    if node.fill:
        values = {**values, **node.fill}
    positional = [values[name] for name in node.positional]
    if not node.keywords:
        return partial(fn, *positional)
    return partial(fn, *positional, **{name: values[name] for name in node.keywords})


def call_now(node: Node, values: Mapping[str, Any]) -> Any:
    """Call the node's callable with all its arguments, and return the result."""
    if not node.positional and not node.keywords:
        return node.declaration.fn()
    if node.keywords or node.fill:
        return call_here(node, values)()
    return node.declaration.fn(*[values[name] for name in node.positional])


def _invoke_item(node: Node, values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return the node's callable with all its arguments but the item."""
    fn, item = node.declaration.fn, node.item
    if node.positional == (item,) and not node.keywords:
        return fn
    if node.fill:
        values = {**values, **node.fill}
    keywords = {name: values[name] for name in node.keywords if name != item}
    if item in node.keywords:
        positional = [values[name] for name in node.positional]
        fixed = partial(fn, *positional, **keywords)
        return lambda value: fixed(**{item: value})

    at = node.positional.index(item) if item is not None else 0
    before = [values[name] for name in node.positional[:at]]
    after = [values[name] for name in node.positional[at + 1 :]]
    return lambda value: fn(*before, value, *after, **keywords)


def names_elsewhere(node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the node's callable by name, without the item's."""
    arguments = {
        name: values[name] for name in node.arguments() if name != node.item and name in values
    }
    return {**(node.fill or {}), **arguments}


def _with_item(arguments: dict[str, Any], name: str, item: Any) -> dict[str, Any]:
    return {**arguments, name: item}


def portable(
    fn: Callable[..., Any], kind: Kind, signature: Signature, *, variadic: bool = False
) -> Callable[..., Any]:
    """Return *fn* as a worker can call it: with every argument by name, giving a value that can travel.

    Args:
        fn: The callable.
        kind: What calling it gives.
        signature: What it takes.
        variadic: Whether the item of a map goes to its ``*args``, under the name `ITEM`.
    """
    if variadic:
        fn = partial(_by_position, fn, (*signature.names[: signature.positional], ITEM))
    elif signature.positional_only:
        fn = partial(_by_position, fn, signature.names[: signature.positional_only])

    if kind is Kind.GENERATOR:
        return partial(_list_of, fn)
    if kind is Kind.ASYNC_GENERATOR:
        return partial(_list_of_async, fn)
    return fn


def _by_position(fn: Callable[..., Any], names: tuple[str, ...], /, **arguments: Any) -> Any:
    return fn(*[arguments.pop(name) for name in names if name in arguments], **arguments)


def _list_of(fn: Callable[..., Any], /, **arguments: Any) -> list[Any]:
    return list(fn(**arguments))


async def _list_of_async(fn: Callable[..., Any], /, **arguments: Any) -> list[Any]:
    return [item async for item in fn(**arguments)]
