"""Small functions for shaping data between tasks, and for calling sync code from async code.

All of them take any iterable, generators included, keep the order, and return new lists or dicts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from itertools import islice
from operator import index
from typing import Any, ParamSpec, TypeVar, cast, overload

from wove.concurrency.mailbox import post_to

__all__ = ["batch", "denone", "flatten", "fold", "redict", "sync_to_async", "undict"]

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Whole = TypeVar("Whole", bound=bytes | bytearray | Mapping[Any, Any])


@overload
def flatten(items: Iterable[str]) -> list[str]: ...
@overload
def flatten(items: Iterable[Whole]) -> list[Whole]: ...
@overload
def flatten(items: Iterable[Iterable[T]]) -> list[T]: ...
@overload
def flatten(items: Iterable[Any]) -> list[Any]: ...
def flatten(items: Iterable[Any]) -> list[Any]:
    """Return one list of the items of every iterable in *items*: one level, not more.

    Text, bytes and mappings are items and stay whole, and so does what is not iterable.

    Raises:
        TypeError: *items* is not iterable.

    Example:
        >>> flatten([[1], [2, 3]])
        [1, 2, 3]
        >>> flatten([["a", ["b"]], "cd", None])
        ['a', ['b'], 'cd', None]
    """
    flat: list[Any] = []

    for item in _iterate("flatten", items):
        if isinstance(item, Iterable) and not isinstance(item, (str, bytes, bytearray, Mapping)):
            flat.extend(cast("Iterable[object]", item))
        else:
            flat.append(item)

    return flat


def fold(items: Iterable[T], size: int) -> list[list[T]]:
    """Return *items* in lists of *size*; the last list may be shorter.

    Args:
        items: Any iterable.
        size: Items per list, at least 1.

    Raises:
        TypeError: *items* is not iterable, or *size* is not a whole number.
        ValueError: *size* is less than 1.

    Example:
        >>> fold([1, 2, 3, 4, 5], 2)
        [[1, 2], [3, 4], [5]]
    """
    size = _count("fold: size", size)
    source = _iterate("fold", items)
    # islice, not slices of a list: the items are held once, in their groups.
    return list(iter(lambda: list(islice(source, size)), []))


def batch(items: Iterable[T], count: int) -> list[list[T]]:
    """Return *items* in *count* lists of nearly equal length: none is longer than another by more than 1.

    With fewer items than *count* there are as many lists as items, none of them empty.

    Args:
        items: Any iterable.
        count: Number of lists, at least 1.

    Raises:
        TypeError: *items* is not iterable, or *count* is not a whole number.
        ValueError: *count* is less than 1.

    Example:
        >>> batch([1, 2, 3, 4, 5], 3)
        [[1, 2], [3, 4], [5]]
    """
    count = _count("batch: count", count)
    held = list(_iterate("batch", items))
    if not held:
        return []
    count = min(count, len(held))
    size, longer = divmod(len(held), count)  # the first `longer` lists have one item more
    source = iter(held)
    return [list(islice(source, size + (number < longer))) for number in range(count)]


def undict(mapping: Mapping[K, V]) -> list[tuple[K, V]]:
    """Return the ``(key, value)`` pairs of *mapping*, to map over; :func:`redict` turns them back.

    Raises:
        TypeError: *mapping* is not a mapping.

    Example:
        >>> undict({"a": 1, "b": 2})
        [('a', 1), ('b', 2)]
    """
    if not isinstance(cast("object", mapping), Mapping):
        raise TypeError(
            f"undict: a mapping is needed, such as a dict, not {type(mapping).__name__}"
        )

    return list(mapping.items())


def redict(pairs: Iterable[tuple[K, V]]) -> dict[K, V]:
    """Return a dict of ``(key, value)`` pairs; of pairs with the same key, the last one counts.

    Raises:
        TypeError: *pairs* is not iterable, one of them is not a pair, or a key has no hash.

    Example:
        >>> redict([("a", 1), ("b", 2)])
        {'a': 1, 'b': 2}
    """
    made: dict[K, V] = {}

    for position, pair in enumerate(_iterate("redict", pairs)):
        try:
            if isinstance(pair, (str, bytes)):  # a text of two letters would pass for a pair
                raise TypeError
            key, value = pair
        except (TypeError, ValueError):
            raise TypeError(
                f"redict: item {position} is not a (key, value) pair: {pair!r:.80}"
            ) from None
        made[key] = value

    return made


def denone(items: Iterable[T | None]) -> list[T]:
    """Return *items* without those that are ``None``; other false values stay.

    Raises:
        TypeError: *items* is not iterable.

    Example:
        >>> denone([0, None, "", 1])
        [0, '', 1]
    """
    return [item for item in _iterate("denone", items) if item is not None]


@overload
def sync_to_async(
    fn: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def sync_to_async(fn: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]: ...
def sync_to_async(fn: Callable[P, Any]) -> Callable[P, Coroutine[Any, Any, Any]]:
    """Return a coroutine function that runs *fn* in a thread, so that the event loop goes on meanwhile.

    The thread sees the caller's context variables; what *fn* sets in them stays there. A coroutine
    function comes back unchanged, and what a sync function returns that can be awaited is awaited. A
    caller that is cancelled stops waiting at once; *fn* itself runs to its end, and its outcome is
    dropped.

    Args:
        fn: Any callable.

    Raises:
        TypeError: *fn* is not callable.

    Example:
        >>> read = sync_to_async(open)
        >>> async def main():
        ...     file = await read("report.txt")
    """
    import inspect

    if not callable(fn):
        raise TypeError(f"sync_to_async: a callable is needed, not {type(fn).__name__}")
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
        return fn

    @functools.wraps(fn)
    async def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        succeeded, value = await _in_thread(functools.partial(fn, *args, **kwargs))
        if not succeeded:
            try:
                raise value
            finally:
                del value  # otherwise the exception and this frame would keep each other alive
        return await value if inspect.isawaitable(value) else value

    return run


async def _in_thread(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Return whether *call* succeeded, and its result or exception.

    It runs in a thread, with a copy of the caller's context. A pair, and not a raised exception, because
    a future refuses to hold a StopIteration.
    """
    import asyncio
    import contextvars

    from wove.engine.threads import start_thread

    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[bool, Any]] = loop.create_future()
    context = contextvars.copy_context()
    # The frame of `job` lives as long as the traceback of what `call` raises. So that the two do not keep
    # each other alive, it lets go of the outcome in the end, and of the future that holds it.
    waiting = [outcome]

    def settle(succeeded: bool, value: Any) -> None:
        future = waiting.pop()
        if not future.done():
            future.set_result((succeeded, value))

    def job() -> None:
        try:
            ended = (True, context.run(call))
        except BaseException as error:  # SystemExit, too, belongs to the caller that awaits
            ended = (False, error)
        if not post_to(loop, settle, *ended):
            waiting.clear()
        del ended

    start_thread(job)
    return await outcome


def _iterate(name: str, items: Iterable[T]) -> Iterator[T]:
    try:
        return iter(items)
    except TypeError:
        raise TypeError(f"{name}: an iterable is needed, not {type(items).__name__}") from None


def _count(name: str, value: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        count = index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number, not {value!r:.80} ({type(value).__name__})"
        ) from None

    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
    return count
