"""`merge`: call something from inside a task as if it were a task of the weave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from wove.engine.attempts import Caller
from wove.engine.mapping import map_items
from wove.engine.scheduler import CURRENT, Run
from wove.graph.options import UNSET, TaskOptions, check_task_options, shown
from wove.graph.signature import Kind, kind_of, name_of, read

if TYPE_CHECKING:
    from wove.graph.signature import Signature

__all__ = ["MERGE_DEPTH", "Merged", "merge"]

T = TypeVar("T")

MERGE_DEPTH = 200
"""How deep merges may nest. From sync tasks, each level holds a thread."""

_depth: ContextVar[int] = ContextVar("wove_merge_depth", default=0)

if TYPE_CHECKING:

    class Merged(list[T], Awaitable[list[T]]):
        """For type checkers: the list itself in a sync caller, an awaitable of it in an async one."""

        def __await__(self) -> Generator[Any, None, list[T]]: ...

else:
    Merged = list


@overload
def merge(
    fn: Callable[[Any], Coroutine[Any, Any, T]],
    iterable: Iterable[Any] | AsyncIterable[Any],
    /,
    **options: Unpack[TaskOptions],
) -> Merged[T]: ...


@overload
def merge(
    fn: Callable[[Any], T], iterable: Iterable[Any] | AsyncIterable[Any], /, **options: Unpack[TaskOptions]
) -> Merged[T]: ...


@overload
def merge(fn: Callable[[], Any], /, **options: Unpack[TaskOptions]) -> Any: ...


def merge(fn: Callable[..., Any], iterable: Any = UNSET, /, **options: Unpack[TaskOptions]) -> Any:
    """Call *fn*, once for each item of *iterable*, from inside a task.

    The calls use the weave's threads, loop, environments and settings as tasks do, and end with it.
    Outside of any weave they run as a weave of their own.

    Args:
        fn: Any callable, sync or async; it takes the item, or nothing where there is no *iterable*.
        iterable: What to map over; any iterable or async iterable.
        **options: As for `weave.do`.

    Returns:
        In a sync caller the list of results in the items' order, or without *iterable* the one
        result. In an async caller, an awaitable of that.

    Raises:
        RecursionError: Merges are nested more than 200 deep.
        BaseException: The first error of *fn*.

    Example:
        >>> with weave() as w:
        ...     @w.do
        ...     def lengths(): return merge(len, ["a", "bb"])
        >>> w.result.lengths
        [1, 2]
    """
    if not callable(fn):
        raise TypeError(f"merge calls a callable, not {shown(fn)}")
    mapped = iterable is not UNSET
    name = name_of(fn)
    checked = check_task_options(options, mapped=mapped, what=f"merge of {name!r}") if options else {}
    depth = _depth.get() + 1
    if depth > MERGE_DEPTH:
        raise RecursionError(f"merge of {name!r}: merges are nested more than {MERGE_DEPTH} deep")
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    run = CURRENT.get()
    if run is None or run.closed:
        return _alone(fn, iterable, checked, here is not None)
    call = partial(_merge, run, fn, name, iterable, checked, depth)
    if here is None:
        return _wait_for(run, call)
    return call() if here is run.loop else _from_other_loop(run, call)


async def _merge(
    run: Run, fn: Callable[..., Any], name: str, iterable: Any, options: dict[str, Any], depth: int
) -> Any:
    """On the weave's loop."""
    _depth.set(depth)
    mapped = iterable is not UNSET
    settings = run.resolver.task(options, mapped, f"merge of {name!r}")
    kind = kind_of(fn)
    caller = Caller(run, name, fn, kind, read(fn, mapped=True), settings)
    run.merges.append(caller)
    if not mapped:
        return await caller(fn if settings.is_local else {})
    invoke: Callable[[Any], Any] = fn
    if not settings.is_local:
        invoke = partial(_by_name, _item_name(fn, name, caller.signature))
    elif not caller.plain or kind not in (Kind.SYNC, Kind.ASYNC):
        invoke = partial(partial, fn)
    return await map_items(run, caller, iterable, invoke, in_place=False)


def _item_name(fn: Callable[..., Any], name: str, signature: Signature) -> str:
    if not signature.names:
        raise TypeError(f"merge of {name!r}: it takes no parameter for the item")
    required = [parameter for parameter in signature.names if parameter not in signature.defaults]
    return (required or signature.names)[0]


def _by_name(name: str, item: Any) -> dict[str, Any]:
    return {name: item}


def _wait_for(run: Run, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """In a sync task: run *call* on the weave's loop, and wait."""
    ended = threading.Lock()
    ended.acquire()
    outcome: list[tuple[bool, Any]] = []

    def settle(task: asyncio.Task[tuple[bool, Any]]) -> None:
        outcome.append((False, asyncio.CancelledError()) if task.cancelled() else task.result())
        ended.release()

    run.inbox.post(run.attend, partial(_guarded, call), copy_context(), settle)
    # The thread does nothing but wait, so its slot is free for the calls it waits for.
    run.slots.leave()
    try:
        ended.acquire()
    finally:
        run.slots.enter()
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    return value


async def _guarded(call: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, Any]:
    try:
        return True, await call()
    except BaseException as error:  # raised again in the thread that waits
        return False, error


async def _from_other_loop(run: Run, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """In a loop that is not the weave's, as under `asyncio.run` in a sync task."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[bool, Any]] = loop.create_future()

    def tell(result: tuple[bool, Any]) -> None:
        if not future.done():
            future.set_result(result)

    def settle(task: asyncio.Task[tuple[bool, Any]]) -> None:
        result = (False, asyncio.CancelledError()) if task.cancelled() else task.result()
        loop.call_soon_threadsafe(tell, result)

    run.inbox.post(run.attend, partial(_guarded, call), copy_context(), settle)
    succeeded, value = await future
    if not succeeded:
        raise value
    return value


def _alone(fn: Callable[..., Any], iterable: Any, options: Any, awaitable: bool) -> Any:
    """Outside of any weave."""
    from wove.block import weave

    block = weave()

    def declare() -> None:
        if iterable is UNSET:
            block.do(**options)(fn)
        else:
            block.do(iterable, **options)(fn)

    async def run() -> Any:
        async with block:
            declare()
        return block.result.final

    if awaitable:
        return run()
    with block:
        declare()
    return block.result.final
