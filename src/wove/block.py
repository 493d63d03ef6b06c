"""The `weave` block: tasks are declared inside, and run when it closes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from os import PathLike
from types import FunctionType, MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack, overload

from wove.background import Background, Detached, Threaded, report, report_awaiting
from wove.concurrency.thread_pool import run_in_thread
from wove.engine.execution import Execution
from wove.engine.loops import refuse_green_threads, run_awaiting, run_blocking
from wove.engine.sources import is_iterable, is_task
from wove.errors import WeaveStateError
from wove.explaining import Explanation, describe
from wove.graph.options import (
    UNSET,
    OrphanPolicy,
    TaskOptions,
    Unset,
    check_task_options,
    check_value_name,
    check_weave_options,
    shown,
)
from wove.graph.plan import DATA, Declaration, ExecutionPlan, Plan, plan
from wove.graph.signature import name_of
from wove.result import RESERVED, WoveResult
from wove.settings import current
from wove.settings.resolution import Resolver

if TYPE_CHECKING:
    from wove.cache import ResultStore
    from wove.engine.completions import ResultStream
    from wove.engine.execution import Display
    from wove.engine.scheduler import WeaveRun
    from wove.graph.resources import Resources, ResourcesDict
    from wove.graph.rules import IdempotencyKey
    from wove.observe.graph import Graph
    from wove.observe.timeline import Timeline
    from wove.workflow import Weave

__all__ = ["weave"]

F = TypeVar("F", bound=Callable[..., Any])

_NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})

_NEW, _OPEN, _RUNNING, _OVER = "new", "open", "running", "over"


class weave:  # noqa: N801 - it is used like a function
    """A block of tasks that run when it closes; edges come from the names of their parameters.

    Use it with ``with``, anywhere, or with ``async with`` in a coroutine, where it never blocks the
    loop. Leaving the block with an exception runs nothing.

    Args:
        parent: A `Weave` subclass whose tasks are part of this weave.
        debug: Print the plan before it runs.
        environment: The environment of the tasks that name none.
        max_workers: Maximum number of threads for its sync tasks (256).
        background: Leave the block at once and run the tasks in a thread.
        fork: With *background*: run them in a detached process instead.
        on_done: Called with the result when everything has ended, however it ended; may be a
            coroutine function. What it raises is logged.
        max_pending: Maximum number of items of a mapped task.
        error_mode: ``"raise"`` the first failure out of the block; ``"return"`` it when the failed
            task is read; ``"continue"`` as that, and run all that does not depend on it.
        progress: Show on stderr what the tasks are doing: redrawn in place on a terminal, in a notebook
            as an output, otherwise a line when a task ends.
        record: Write the timeline of the run to this file when it has ended, however it ended: a page
            (``.html``), or a Chrome trace (``.json``).
        store: Where the results of tasks with ``cache=True`` are kept: the path of a folder or of a
            SQLite file, or a store of `wove.cache`.
        remote_logs: Bring home what remote tasks log and print.
        resources: What remote tasks ask their environments for: ``{"cpus": 4, "memory": "8GiB", "gpus": 1, "time":
            "2h", "disk": "10GiB"}``, or some of these.
        delivery_timeout: Seconds from the hand-over of a remote run to its end.
        delivery_idempotency_key: Text with ``{parameter}`` fields, or a callable of the arguments.
        delivery_cancel_mode: ``"best_effort"`` or ``"require_ack"``.
        delivery_heartbeat_seconds: Seconds without a sign of life, after which a started run is lost.
        delivery_notice_seconds: Seconds after which a warning tells of a run that no worker has begun (10).
        delivery_max_in_flight: Maximum number of remote runs of one environment at once in this process.
        delivery_orphan_policy: ``"cancel"``, ``"fail"``, ``"requeue"`` or ``"detach"``.
        delivery_reconnect_seconds: Seconds for which a remote run survives the loss of its connection.
        values: More initial values, whatever their names. A mapping from names to values.
        **initial_values: Values that tasks can name; all together they are the dict ``data``.

    Raises:
        NameError: An initial value has a name that is taken.
        TypeError, ValueError: An option is wrong; the message names it. An initial value that is
            called as an option of `do`, or nearly as one of the weave's own, belongs in *values*.

    Example:
        >>> with weave(n=3) as w:
        ...     @w.do
        ...     def squares(n): return [i * i for i in range(n)]
        ...     @w.do("squares")
        ...     async def text(item): return str(item)
        >>> w.result.text
        ['0', '1', '4']
    """

    def __init__(
        self,
        parent: type[Weave] | None = None,
        *,
        debug: bool = False,
        environment: str | Unset | None = UNSET,
        max_workers: int | Unset | None = UNSET,
        background: bool | Unset | None = UNSET,
        fork: bool | Unset | None = UNSET,
        on_done: Callable[[WoveResult], Any] | None = None,
        max_pending: int | Unset | None = UNSET,
        error_mode: Literal["raise", "return", "continue"] | Unset | None = UNSET,
        progress: bool | None = None,
        record: str | PathLike[str] | None = None,
        store: str | PathLike[str] | ResultStore | Unset | None = UNSET,
        values: Mapping[str, Any] | None = None,
        remote_logs: bool | Unset | None = UNSET,
        resources: ResourcesDict | Resources | Unset | None = UNSET,
        delivery_timeout: float | Unset | None = UNSET,
        delivery_idempotency_key: IdempotencyKey | Unset | None = UNSET,
        delivery_cancel_mode: Literal["best_effort", "require_ack"] | Unset | None = UNSET,
        delivery_heartbeat_seconds: float | Unset | None = UNSET,
        delivery_notice_seconds: float | Unset | None = UNSET,
        delivery_max_in_flight: int | Unset | None = UNSET,
        delivery_orphan_policy: OrphanPolicy | Unset | None = UNSET,
        delivery_reconnect_seconds: float | Unset | None = UNSET,
        **initial_values: Any,
    ) -> None:
        given: dict[str, Any] = {}

        # One comparison instead of fifteen: most weaves set none of them.
        if not (
            environment is max_workers is background is fork is max_pending is error_mode is remote_logs
            is delivery_timeout is delivery_idempotency_key is delivery_cancel_mode is delivery_heartbeat_seconds
            is delivery_notice_seconds is delivery_max_in_flight is delivery_orphan_policy
            is delivery_reconnect_seconds is store is resources is UNSET
        ):  # fmt: skip
            options: dict[str, Any] = {
                "environment": environment,
                "max_workers": max_workers,
                "background": background,
                "fork": fork,
                "max_pending": max_pending,
                "error_mode": error_mode,
                "remote_logs": remote_logs,
                "resources": resources,
                "delivery_timeout": delivery_timeout,
                "delivery_idempotency_key": delivery_idempotency_key,
                "delivery_cancel_mode": delivery_cancel_mode,
                "delivery_heartbeat_seconds": delivery_heartbeat_seconds,
                "delivery_notice_seconds": delivery_notice_seconds,
                "delivery_max_in_flight": delivery_max_in_flight,
                "delivery_orphan_policy": delivery_orphan_policy,
                "delivery_reconnect_seconds": delivery_reconnect_seconds,
                "store": store,
            }
            given = {name: value for name, value in options.items() if value is not UNSET}

        self._options = check_weave_options(given) if given else given
        if on_done is not None and not callable(on_done):
            raise TypeError(f"weave: on_done must be callable, not {shown(on_done)}")
        if progress is not None and not isinstance(progress, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"weave: progress must be True, False or None, not {shown(progress)}")
        self._debug = debug
        self._on_done = on_done
        self._watchers = _NOBODY if not progress and record is None else _watchers(progress, record)
        self._execution: Execution | None = None
        self._state = _NEW
        self._values = _initial_values(initial_values, values)
        self._declarations: dict[str, Declaration] = {}
        self._inherited: set[str] = set()
        self._plan: Plan | None = None
        self._result: WoveResult | None = None
        self._background: Background | None = None
        for name in self._values:
            if name in RESERVED or name == DATA:
                raise _taken("an initial value", name)

        if parent is not None:
            self._inherit(parent)

    def _inherit(self, parent: type[Weave]) -> None:
        from wove.workflow import declarations_of

        self._declarations = declarations_of(parent)
        self._inherited = set(self._declarations)

        for name in self._values:
            if name in self._declarations:
                raise NameError(
                    f"{name!r} is a task of {parent.__name__} and an initial value: one of the two would be lost"
                )

    # ------------------------------------------------------------------ declaring

    @overload
    def do(self, fn: F, /) -> F: ...

    @overload
    def do(
        self,
        source: str | Iterable[Any] | AsyncIterable[Any] = ...,
        /,
        **options: Unpack[TaskOptions],
    ) -> Callable[[F], F]: ...

    def do(self, source: Any = UNSET, /, **options: Unpack[TaskOptions]) -> Any:
        """Declare a task: ``@w.do``, ``@w.do(**options)`` or, mapped, ``@w.do(source, **options)``.

        The task's parameters name what it needs: other tasks, initial values, or ``data``. One that
        has a default and names neither keeps it. A mapped task runs once per item of *source*, an
        iterable, an async iterable, or the name of a task or initial value; its one parameter that
        names nothing receives the item, and its result is the list of results in the items' order.

        Args:
            source: What to map over. A callable alone is the task itself, also one that can be
                iterated: map over ``iter(callable)`` to have its items.
            **options: ``retries`` more attempts, ``retry_delay`` seconds apart (or ``"exponential"``, or
                a callable of the attempt), after the exceptions of ``retry_on``; ``timeout`` seconds for
                each; ``workers`` items at once and ``limit_per_minute`` launches; the ``environment``
                that runs it; ``delivery_*``, as for `weave`; ``keep=False`` to release its result when the
                tasks that need it have it; and ``cache=True`` to keep its results in the weave's
                ``store``, with ``cache_key`` and ``cache_version``.

        Returns:
            The callable itself, or a decorator that returns it.

        Raises:
            NameError: The task's name is taken.
            TypeError, ValueError: An option is wrong; the message names it.
            WeaveStateError: The block is not open.
        """
        if not options and (type(source) is FunctionType or is_task(source)):
            self._declare(source, UNSET, _NO_OPTIONS)
            return source

        if source is not UNSET and not is_iterable(source):
            raise TypeError(
                f"@w.do maps over an iterable or the name of a task, not over {shown(source)}"
            )

        def decorate(fn: F) -> F:
            self._declare(fn, source, options)
            return fn

        return decorate

    def _declare(self, fn: Callable[..., Any], source: Any, options: Any) -> None:
        if self._state is not _OPEN:
            raise WeaveStateError(_NOT_OPEN[self._state])
        if not callable(fn):
            raise TypeError(f"@w.do declares a callable, not {shown(fn)}")
        name = name_of(fn)
        mapped = source is not UNSET
        replaces: Declaration | None = None

        if name in self._inherited:
            self._inherited.discard(name)
            replaces = self._declarations[name]
        elif name in self._declarations:
            raise NameError(
                f"task {name!r} is declared twice: one of the two would be lost. Rename one of them"
            )
        elif name in RESERVED or name == DATA or name in self._values:
            raise _taken("a task", name)

        if options:
            maps = mapped or (replaces is not None and replaces.origin() is not None)
            options = check_task_options(options, mapped=maps, label=f"task {name!r}")

        if replaces is not None:
            options = {**replaces.options, **options}
        self._declarations[name] = Declaration(
            fn, options, source if mapped else None, mapped=mapped, name=name, replaces=replaces
        )

    # ------------------------------------------------------------------ the block

    def __enter__(self) -> Self:
        if self._state is not _NEW:
            raise WeaveStateError("this weave was used before: each block needs a weave of its own")
        self._state = _OPEN
        return self

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise WeaveStateError(_NOT_ASYNCIO) from None
        return self.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._state = _OVER
            return

        execution = self._prepare()
        if execution is None:
            if self._background is not None:
                self._background.launch()
                self._state = _RUNNING
            return

        try:
            if (check := execution.preflight()) is not None:
                check()
            run_blocking(execution.make_run)
        finally:
            self._conclude(execution)
            if self._on_done is not None and self._result is not None:
                report(self._on_done, self._result)

        _raise(execution)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._state = _OVER
            return

        execution = self._prepare()
        if execution is None:
            if self._background is not None:
                await self._background.launch_awaiting()
                self._state = _RUNNING
            return

        try:
            try:
                if (check := execution.preflight()) is not None:
                    await run_in_thread(check)  # it imports executors
                await run_awaiting(execution.make_run)
            finally:
                await execution.unwatch()
        finally:
            self._conclude(execution)
            if self._on_done is not None and self._result is not None:
                await report_awaiting(
                    self._on_done, self._result
                )  # also where the block was cancelled

        _raise(execution)

    def _prepare(self) -> Execution | None:
        """Plan the weave, and return what is to be run now; ``None`` where it runs in the background."""
        self._state = _OVER  # in case planning fails
        refuse_green_threads()
        watchers = self._watchers
        if _SHOWN or "wove.observe.dashboard" in sys.modules:
            watchers = (*watchers, _live())
        execution = Execution(self._declarations, self._values, self._options, current(), watchers)
        self._plan = execution.plan
        self._execution = execution
        if self._debug:
            print(describe(execution.plan, execution.resolver))  # noqa: T201 - what debug=True is for
        settings = execution.settings
        if not settings.background:
            if self._options.get("fork"):
                raise ValueError(
                    "weave: fork=True says which kind of background it is to run in; give background=True as well"
                )
            if execution.plan.error is not None:
                raise execution.plan.error
            self._state = _RUNNING
            return execution

        self._background = (Detached if settings.fork else Threaded)(execution, self._on_done)
        return None

    def _conclude(self, execution: Execution) -> None:
        self._state = _OVER
        self._result = execution.result()

    # ------------------------------------------------------------------ afterwards

    @property
    def result(self) -> WoveResult:
        """Return the results, once the tasks have run.

        Raises:
            WeaveStateError: The tasks have not run, or not in this process.
        """
        if self._result is None and self._background is not None:
            self._result = self._background.result()
        if self._result is None:
            raise WeaveStateError(_NO_RESULT[self._state])
        return self._result

    @property
    def execution_plan(self) -> ExecutionPlan:
        """Return which task waits for which; also inside the block, and when planning or running failed."""
        return self._planned().execution_plan()

    def _planned(self) -> Plan:
        return self._plan or plan(self._declarations, self._values)

    @property
    def graph(self) -> Graph:
        """Return the tasks, their dependencies, and what each task is doing at the moment.

        Also inside the block, while a weave runs in the background, and afterwards; what a notebook
        shows for the weave. Of a weave with ``fork=True``, the graph does not know what runs.
        """
        if self._execution is not None:
            return self._execution.graph()
        from wove.engine.picture import graph_of_plan

        return graph_of_plan(self._planned(), Resolver(current(), self._options))

    def timeline(self) -> Timeline:
        """Return when and where each run took place, as a page and as a Chrome trace.

        Raises:
            WeaveStateError: The tasks have not run, or not in this process.
        """
        from wove.engine.recording import title_of
        from wove.observe.timeline import Timeline

        return Timeline(self.result.run_records, title_of(self._declarations))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {**self.graph.mimebundle(), "text/plain": repr(self)}

    def explain(self) -> Explanation:
        """Return every effective setting of the weave and of each task, and where it came from. Runs nothing."""
        return Explanation.of(self._planned().nodes, Resolver(current(), self._options))

    def done(self) -> bool:
        """Return whether everything has ended."""
        return self._background.done() if self._background is not None else self._state is _OVER

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a background weave has ended.

        Args:
            timeout: Seconds to wait at most; ``None`` for as long as it takes.

        Returns:
            Whether it has ended.
        """
        return self._background.wait(timeout) if self._background is not None else self.done()

    def stream(self, name: str, *, ordered: bool = False) -> ResultStream:
        """Return the results of a map of a background weave as they come, to iterate by ``for`` or ``async for``.

        Args:
            name: The name of the mapped task.
            ordered: Whether they come in the order of the source, otherwise in the order of completion.

        Returns:
            An iterable of ``(position, value)``. It ends when the map does, and raises the map's exception.

        Raises:
            WeaveStateError: The weave has no ``background=True``, has ``fork=True``, or its block has not ended.
            ValueError: There is no map of that name, or it has ``keep=False``.
        """
        if not isinstance(self._background, Threaded) or self._state is not _RUNNING:
            raise WeaveStateError(
                "w.stream follows a weave with background=True in this process, after its block"
            )
        return self._background.stream(name, ordered=ordered)

    def __repr__(self) -> str:
        return f"<weave of {len(self._declarations)} task(s), {_STATES[self._state]}>"


_NOT_ASYNCIO = (
    "async with weave() runs on asyncio, and no loop of asyncio runs here. Under another event loop, "
    "such as trio's, run a plain `with weave()` in a thread: await trio.to_thread.run_sync(function)"
)

_STATES = {_NEW: "not entered", _OPEN: "open", _RUNNING: "running", _OVER: "over"}

_NOT_OPEN = {
    _NEW: "tasks are declared inside the block: with weave() as w: ...",
    _RUNNING: "this weave is running already: declare every task inside the block, or use merge() in a task",
    _OVER: "this weave is over: declare every task inside its block",
}

_NO_RESULT = {
    _NEW: "there is no result yet: the tasks run when the block closes, and it was not even entered",
    _OPEN: "there is no result yet: the tasks run when the block closes. Read it after the block",
    _RUNNING: "there is no result yet: the tasks are running. In a task, name what you need as a parameter",
    _OVER: "there is no result: the block did not get to running its tasks",
}


_NOBODY: Final[tuple[Callable[[WeaveRun], Display], ...]] = ()
"""Return the observers of a run where nothing is switched on."""

_SHOWN: Final = "WOVE_DASHBOARD" in os.environ


def _live() -> Callable[[WeaveRun], Display]:
    """Return the observer that shows a run on the live page of this process, if there is a page."""
    if _SHOWN:
        from wove.observe.dashboard import start_as_configured

        start_as_configured()

    from wove.engine.live import LiveView

    return LiveView


def _watchers(
    progress: bool | None, record: str | PathLike[str] | None
) -> tuple[Callable[[WeaveRun], Display], ...]:
    """Return the observers of the run. Imported here, because most weaves have none."""
    watchers: list[Callable[[WeaveRun], Display]] = []
    if progress:
        from wove.observe.progress import Progress

        watchers.append(Progress)

    if record is not None:
        from wove.engine.recording import Recorder

        watchers.append(Recorder(record))

    return tuple(watchers)


def _raise(execution: Execution) -> None:
    error = execution.error()
    if error is not None:
        try:
            raise error
        finally:
            del error, execution  # otherwise the traceback would keep itself alive


def _initial_values(named: dict[str, Any], values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the initial values of both ways to give them."""
    for name in named:
        check_value_name(name, _PARAMETERS)
    if values is None:
        return named
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"weave: values must be a mapping from names to values, not {shown(values)}"
        )

    for name in values:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"weave: the names in values are text, not {shown(name)}")
        if name in named:
            raise TypeError(f"weave: {name!r} is given twice, by itself and in values")

    return {**named, **values}


_PARAMETERS: Final = frozenset(weave.__init__.__kwdefaults__ or ())
"""The options of ``weave(...)``."""


def _taken(label: str, name: str) -> NameError:
    if name == DATA:
        return NameError(f"{name!r} cannot name {label}: it is the dict of all initial values")
    if name in RESERVED:
        return NameError(
            f"{name!r} cannot name {label}: it is an attribute of the result. Choose another name"
        )

    return NameError(
        f"{name!r} is an initial value and a task: one of the two would be lost. Rename one of them"
    )
