"""`merge`: call something from inside a task as if it were a task of the weave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from wove.concurrency.mailbox import post_to
from wove.engine.attempts import CHILD_CALLS, Caller, ChildCalls, in_own_task
from wove.engine.binding import ItemCall
from wove.engine.loops import run_awaiting, run_blocking
from wove.engine.mapping import map_items
from wove.engine.scheduler import WeaveRun, current_run, stopped
from wove.graph.options import TaskOptions, check_task_options, shown
from wove.graph.plan import plan
from wove.graph.signature import ITEM, describe, name_of
from wove.settings import current
from wove.settings.resolution import Resolver

if TYPE_CHECKING:
    from wove.graph.signature import Signature
    from wove.observe.tracing import WeaveTracer

__all__ = ["MERGE_DEPTH", "Merged", "merge"]

T = TypeVar("T")

MERGE_DEPTH = 200
"""Maximum depth of nested merges. From sync tasks, each level holds a thread."""

_depth: ContextVar[int] = ContextVar("wove_merge_depth", default=0)

if TYPE_CHECKING:

    class Merged(list[T], Awaitable[list[T]]):
        """For type checkers: the result, a list in a sync caller and an awaitable of it in an async one."""

        def __await__(self) -> Generator[Any, None, list[T]]: ...

else:
    Merged = list


@overload
def merge(
    fn: Callable[[Any], Coroutine[Any, Any, T]],
    /,
    iterable: Iterable[Any] | AsyncIterable[Any],
    **options: Unpack[TaskOptions],
) -> Merged[T]: ...


@overload
def merge(
    fn: Callable[[Any], T],
    /,
    iterable: Iterable[Any] | AsyncIterable[Any],
    **options: Unpack[TaskOptions],
) -> Merged[T]: ...


@overload
def merge(
    fn: Callable[[], Any], /, iterable: None = None, **options: Unpack[TaskOptions]
) -> Any: ...


def merge(fn: Callable[..., Any], /, iterable: Any = None, **options: Unpack[TaskOptions]) -> Any:
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
    mapped = iterable is not None
    name = name_of(fn)
    checked = (
        check_task_options(options, mapped=mapped, label=f"merge of {name!r}") if options else {}
    )
    if not checked.get("keep", True):
        raise ValueError(
            f"merge of {name!r}: keep=False concerns tasks; a merge returns its result"
        )
    depth = _depth.get() + 1
    if depth > MERGE_DEPTH:
        raise RecursionError(f"merge of {name!r}: merges are nested more than {MERGE_DEPTH} deep")
    context = copy_context()
    context.run(_depth.set, depth)
    call = partial(_merge, fn=fn, name=name, iterable=iterable, options=checked, context=context)
    here: asyncio.AbstractEventLoop | None = None
    with contextlib.suppress(RuntimeError):
        here = asyncio.get_running_loop()
    run = current_run()
    if run is None or (run.closed and not run.stopped):
        return _alone(call, context) if here is None else _alone_awaiting(call, context)
    if here is None:
        return _wait_for(run, partial(call, run), context)
    return call(run) if here is run.loop else _from_other_loop(run, partial(call, run), context)


async def _merge(
    run: WeaveRun,
    *,
    fn: Callable[..., Any],
    name: str,
    iterable: Any,
    options: dict[str, Any],
    context: Context,
) -> Any:
    """Run the call on the loop of the weave."""
    if run.closed:
        raise stopped()
    child_calls, context = ChildCalls(), context.copy()
    context.run(CHILD_CALLS.set, child_calls)
    try:
        return await _call(run, fn, name, iterable, options, context)
    finally:
        child_calls.end()


async def _call(
    run: WeaveRun,
    fn: Callable[..., Any],
    name: str,
    iterable: Any,
    options: dict[str, Any],
    context: Context,
) -> Any:
    mapped = iterable is not None
    settings = run.resolver.task(options, mapped, f"merge of {name!r}")
    signature, kind = describe(fn, mapped=True)
    caller = Caller(run, name, fn, kind, signature, settings, context)
    run.merges.append(caller.attempts)
    if not settings.cache:
        return await _attempt(caller, iterable)

    from wove.engine.caching import cached_task  # here, because most merges do without

    item = _item_name(fn, name, signature) if mapped else None
    cache = cached_task(run.store, name, fn, settings, {}, item)
    if not mapped:
        return await cache.run(partial(_attempt, caller, None))
    async with cache:
        caller.cache = cache
        return await _attempt(caller, iterable)


async def _attempt(caller: Caller, iterable: Any) -> Any:
    """Call once, or once for each item of *iterable*."""
    if caller.run.tracer is not None and caller.tracer is None:
        return await _traced(caller.run.tracer, caller, iterable)

    run, fn, settings = caller.run, caller.fn, caller.settings
    if iterable is None:
        # In a task of its own, because its changes of context variables are not the caller's.
        call = caller(fn if settings.is_local else {})
        return await in_own_task(call, run.loop, caller.context)

    if settings.is_local:
        item_call = ItemCall.here(fn)
    else:
        item = _item_name(fn, caller.name, caller.signature)
        item_call = ItemCall.elsewhere(fn, {}, item)

    return await map_items(run, caller, iterable, item_call)


async def _traced(tracer: WeaveTracer, caller: Caller, iterable: Any) -> Any:
    """Call inside a span of its own."""
    environment, mapped = caller.settings.environment.name, iterable is not None
    trace = caller.tracer = tracer.begin_task(caller.name, environment, mapped=mapped, nested=True)
    caller.context.run(trace.attach)
    failure: BaseException | None = None

    try:
        return await _attempt(caller, iterable)
    except BaseException as error:
        failure = error
        raise
    finally:
        trace.end(failure, None)
        failure = None  # it would be part of a reference cycle


def _item_name(fn: Callable[..., Any], name: str, signature: Signature) -> str:
    if not signature.names:
        if signature.variadic:
            return ITEM
        raise TypeError(f"merge of {name!r}: it takes no parameter for the item")

    required = [parameter for parameter in signature.names if parameter not in signature.defaults]
    return (required or signature.names)[0]


def _wait_for(run: WeaveRun, call: Callable[[], Coroutine[Any, Any, Any]], context: Context) -> Any:
    """Run *call* on the loop of the weave, and wait. Called in a thread."""
    ended = threading.Lock()
    ended.acquire()
    outcome: list[tuple[bool, Any]] = []

    def settle(succeeded: bool, value: Any) -> None:
        outcome.append((succeeded, value))
        ended.release()

    if not run.run_coroutine(call, context, settle):
        raise stopped()
    # The thread does nothing but wait, so its slot is free for the calls it waits for.
    with run.slots.given_up():
        ended.acquire()
    succeeded, value = outcome.pop()
    if not succeeded:
        raise value
    return value


async def _from_other_loop(
    run: WeaveRun, call: Callable[[], Coroutine[Any, Any, Any]], context: Context
) -> Any:
    """Run the call from a loop that is not the weave's, as under `asyncio.run` in a sync task."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[bool, Any]] = loop.create_future()

    def tell(succeeded: bool, value: Any) -> None:
        if not future.done():
            future.set_result((succeeded, value))

    def settle(succeeded: bool, value: Any) -> None:
        post_to(loop, tell, succeeded, value)

    if not run.run_coroutine(call, context, settle):
        raise stopped()
    # The thread may have more to do, but waiting for a slot that it holds itself could take for ever.
    with run.slots.given_up():
        succeeded, value = await future
    if not succeeded:
        raise value
    return value


class _Alone(WeaveRun):
    """Run a merge outside of any weave as a weave of its own."""

    def __init__(
        self, call: Callable[[WeaveRun], Coroutine[Any, Any, Any]], **arguments: Any
    ) -> None:
        super().__init__(plan({}, {}), {}, Resolver(current(), {}), **arguments)
        self._call = partial(call, self)
        self._outcome: tuple[bool, Any] | None = None

    def start(self) -> None:
        self.remaining = 1
        super().start()
        self.run_coroutine(self._call, self.context.copy(), self._settle)

    def _settle(self, succeeded: bool, value: Any) -> None:
        self._outcome = (succeeded, value)
        self.remaining = 0

    def outcome(self) -> Any:
        if self.cancelled_by is not None:
            raise self.cancelled_by
        succeeded, value = self._outcome or (False, stopped())
        if not succeeded:
            raise value
        return value


def _alone(call: Callable[[WeaveRun], Coroutine[Any, Any, Any]], context: Context) -> Any:
    made: list[_Alone] = []
    run_blocking(partial(_make_alone, call, context, made))
    return made[0].outcome()


async def _alone_awaiting(
    call: Callable[[WeaveRun], Coroutine[Any, Any, Any]], context: Context
) -> Any:
    made: list[_Alone] = []
    await run_awaiting(partial(_make_alone, call, context, made))
    return made[0].outcome()


def _make_alone(
    call: Callable[[WeaveRun], Coroutine[Any, Any, Any]],
    context: Context,
    made: list[_Alone],
    loop: asyncio.AbstractEventLoop,
    finished: Callable[[], object],
) -> _Alone:
    made.append(_Alone(call, loop=loop, context=context, finished=finished))
    return made[0]
