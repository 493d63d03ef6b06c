"""The process's ways to the outside: the background loop, and the sessions of all environments."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from wove.concurrency import forks, thread_pool
from wove.concurrency.mailbox import LoopMailbox
from wove.delivery.background_loop import BackgroundLoop
from wove.delivery.run import GONE, Ending, Outcome
from wove.delivery.sessions import ExecutorSession
from wove.errors import DeliveryError, WorkerLostError
from wove.executors.base import EnvironmentExecutor
from wove.executors.registry import executor_class

if TYPE_CHECKING:
    import concurrent.futures

    from wove.graph.resources import Resources
    from wove.settings.model import Environment

__all__ = [
    "check_resources",
    "is_prepared",
    "manager",
    "prepare",
    "process_state",
    "run_in_background",
    "shutdown",
]

T = TypeVar("T")

NOT_COMPARED: Final = frozenset({"PYTEST_CURRENT_TEST"})
"""Environment variables that change all the time and mean nothing to a task: not a reason to replace its workers."""

EXIT_SECONDS: Final = 5.0
"""How long the end of the interpreter waits for sessions to stop."""


_prepared: set[str] = set()


def prepare(environment: Environment) -> None:
    """Import the executor of *environment*, in a thread where a pause does not matter.

    Raises:
        ValueError: There is no executor of that name.
        TypeError: The executor is neither a name nor an executor.
    """
    with forks.importing:
        executor_class(environment.executor, environment.name)
    if isinstance(environment.executor, str):
        _prepared.add(environment.executor)


def is_prepared(environment: Environment) -> bool:
    """Return whether `prepare` has nothing to do, so that it need not be called in another thread."""
    executor = environment.executor
    return (
        executor in _prepared
        if isinstance(executor, str)
        else isinstance(executor, EnvironmentExecutor)
    )


def check_resources(environment: Environment, resources: Resources, task: str) -> None:
    """Refuse what *environment*, whose executor is imported, cannot ask for.

    Args:
        environment: The environment in which the task runs.
        resources: What the task asks for.
        task: The task's name, for the message.

    Raises:
        ValueError: The executor has no words for one of the resources.
    """
    known = executor_class(environment.executor, environment.name).resources
    unknown = [name for name in resources.given() if name not in known]
    if unknown:
        able = f"It can ask for: {', '.join(sorted(known))}" if known else "It can ask for none"
        raise ValueError(
            f"task {task!r}: resources: environment {environment.name!r} (executor {environment.executor!r}) cannot "
            f"ask for {' and '.join(unknown)}. {able}. Leave {'it' if len(unknown) == 1 else 'them'} out, or choose "
            "another environment"
        )


def process_state() -> dict[str, Any]:
    """Return what workers take over from this process, for executors with `EnvironmentExecutor.inherits`."""
    try:
        cwd = os.getcwd()
    except OSError:  # it was removed
        cwd = None
    return {"cwd": cwd, "environ": dict(os.environ), "path": tuple(sys.path)}


class ExecutorManager:
    """The sessions of one process. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._background: BackgroundLoop | None = None
        self._shared: dict[str, list[ExecutorSession]] = {}
        self._own: dict[int, ExecutorSession] = {}
        self._at_exit = False

    def lease(
        self,
        environment: Environment,
        loop: asyncio.AbstractEventLoop,
        state: Callable[[], Mapping[str, Any]],
        *,
        shared: bool = False,
    ) -> ExecutorSession:
        """Return the session for *environment*. Give it back with :meth:`release`.

        Args:
            environment: The environment in which a weave runs a task.
            loop: The loop of the weave.
            state: Returns the :func:`process_state` of the weave; called only where it matters.
            shared: Whether *loop* is a loop of the user, to which clients of the user may be bound.

        Raises:
            ValueError: There is no executor of that name.
            DeliveryError: The executor instance is in use on another loop.
        """
        with forks.importing:
            kind = executor_class(environment.executor, environment.name)
        with self._lock:
            if kind.scope == "process":
                session = self._shared_session(
                    environment, state() if kind.inherits else {}, loop if shared else None
                )
            else:
                session = self._own_session(environment, loop)
            session.leases += 1
            return session

    def release(self, session: ExecutorSession) -> asyncio.Future[None] | None:
        """Give a lease back.

        Returns:
            A future that is done when the executor is closed, if that happens on the loop of the caller.
        """
        with self._lock:
            session.leases -= 1
            if session.leases > 0:
                return None
            if self._own.get(id(session.environment.executor)) is session:
                closing = session.begin_close(GONE)
                closing.add_done_callback(lambda _: self._forget_own(session))
                return closing
            if session.retired:  # otherwise it waits for the next weave
                session.home.post(self._close_if_unused, session)

        return None

    def discard(self, session: ExecutorSession) -> None:
        """Do not lease *session* again: its loop takes no calls any more."""
        with self._lock:
            sessions = self._shared.get(session.environment.name, [])
            if session in sessions:
                sessions.remove(session)
            if self._background is not None and self._background.mailbox is session.home:
                self._background = None

    # ------------------------------------------------------------------ sessions of the process

    def _shared_session(
        self,
        environment: Environment,
        state: Mapping[str, Any],
        caller_loop: asyncio.AbstractEventLoop | None,
    ) -> ExecutorSession:
        sessions = self._shared.setdefault(environment.name, [])
        found = next((one for one in sessions if _serves(one, environment, state)), None)
        if found is None:
            found = ExecutorSession(
                environment,
                self._open().mailbox,
                background=True,
                run_config=state,
                caller_loop=caller_loop,
                on_empty=self._close_if_unused,
            )
            sessions.append(found)

        found.retired = False
        for other in sessions:
            if other is not found and not other.retired:  # it closes after its weaves and runs
                other.retired = True
                other.home.post(self._close_if_unused, other)

        return found

    def _close_if_unused(self, session: ExecutorSession) -> None:
        with self._lock:
            if not session.retired or session.leases > 0 or len(session.table) > 0:
                return
            sessions = self._shared.get(session.environment.name, [])
            if session in sessions:
                sessions.remove(session)
        session.begin_close(GONE)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run *coroutine* on the background loop, where executors live that serve the whole process."""
        with self._lock:
            loop = self._open().loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def _open(self) -> BackgroundLoop:
        if self._background is None:
            self._background = BackgroundLoop()
            if not self._at_exit:
                self._at_exit = True
                # Called when all threads that are not daemons have ended: none of them loses its loop.
                atexit.register(_at_exit)
        return self._background

    # ------------------------------------------------------------------ sessions of one loop

    def _own_session(
        self, environment: Environment, loop: asyncio.AbstractEventLoop
    ) -> ExecutorSession:
        current = self._own.get(id(environment.executor))
        after = None

        if current is not None:
            if (
                current.closed is None
                and current.home.loop is loop
                and _serves(current, environment, {})
            ):
                return current
            if current.closed is not None and current.home.loop is loop:
                after = current
            elif (
                current.closed is None or not current.closed.done()
            ) and not current.home.loop.is_closed():
                where = (
                    "in the same loop with other settings"
                    if current.home.loop is loop
                    else "on another loop"
                )
                raise DeliveryError(
                    f"environment {environment.name!r}: its executor instance {environment.executor!r} is in "
                    f"use {where}, by another weave, and one instance cannot serve both at once. Declare "
                    f"scope = 'process' on its class, if it can be shared, or configure an instance for each"
                )

        session = ExecutorSession(
            environment, LoopMailbox(loop), background=False, run_config={}, after=after
        )
        self._own[id(environment.executor)] = session
        return session

    def _forget_own(self, session: ExecutorSession) -> None:
        with self._lock:
            if self._own.get(id(session.environment.executor)) is session:
                del self._own[id(session.environment.executor)]

    # ------------------------------------------------------------------ end

    def shutdown(self, timeout: float, reason: str) -> None:
        """End every session and the background loop, within about *timeout* seconds; *reason* is for messages."""
        with self._lock:
            background, self._background = self._background, None
            sessions = [session for several in self._shared.values() for session in several]
            self._shared = {}
            own = list(self._own.values())

        outcome = Outcome(Ending.ERROR, WorkerLostError(f"{reason} while this run was in flight"))
        for session in own:
            session.home.post(session.begin_close, outcome)
        if background is None:
            return

        async def farewell() -> None:
            closing = [session.begin_close(outcome, timeout * 0.8) for session in sessions]
            if closing:
                await asyncio.wait(closing)

        background.stop(farewell, timeout)

    def abandon(self) -> None:
        """Release the background loop in a forked child, where it is the parent's."""
        if self._background is not None:
            self._background.abandon()


def _serves(session: ExecutorSession, environment: Environment, state: Mapping[str, Any]) -> bool:
    """Return whether *session* is the one that a weave with these settings would start."""
    if session.closed is not None:
        return False
    mine = session.environment
    if mine is not environment:
        same_executor = mine.executor is environment.executor or (
            isinstance(mine.executor, str) and mine.executor == environment.executor
        )
        if mine.name != environment.name or not same_executor:
            return False
        try:
            if not bool(dict(mine.executor_config) == dict(environment.executor_config)):
                return False
        except Exception:  # objects that do not compare: only the same object would do
            return False

    return _same_state(session.run_config, state)


def _same_state(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    if mine == theirs:
        return True
    if not mine or not theirs or (mine["cwd"], mine["path"]) != (theirs["cwd"], theirs["path"]):
        return False
    names = (mine["environ"].keys() | theirs["environ"].keys()) - NOT_COMPARED
    return all(mine["environ"].get(name) == theirs["environ"].get(name) for name in names)


manager = ExecutorManager()

_left_behind: list[ExecutorManager] = []


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Run *coroutine* on Wove's background loop, and return its future. May be called from any other thread.

    Raises:
        DeliveryError: The interpreter is ending.
    """
    return manager.run(coroutine)


def shutdown(timeout: float = 10.0) -> None:
    """End every session, worker process and background thread of Wove.

    Runs in flight end with `WorkerLostError`. A later weave starts new sessions. Calling this is optional: it
    happens by itself when the interpreter ends. Calling it twice, or from a task, does no harm.

    Args:
        timeout: Seconds to wait for executors to stop. Afterwards they are left alone.

    Example:
        >>> import wove
        >>> wove.shutdown()
    """
    _shutdown(timeout, "wove.shutdown() was called")


def _at_exit() -> None:
    _shutdown(EXIT_SECONDS, "the interpreter ended")


def _shutdown(timeout: float, reason: str) -> None:
    manager.shutdown(timeout, reason)
    # This process may itself be the worker of a backend, and then its own runs continue.
    worker: Any = sys.modules.get("wove.integrations.worker")
    if worker is not None:
        worker.close(min(timeout, 1.0))
    page: Any = sys.modules.get("wove.observe.dashboard")
    if page is not None:
        page.close()
    thread_pool.close(min(timeout, 1.0))


def reset_after_fork() -> None:
    global manager
    old, manager = manager, ExecutorManager()
    old.abandon()
    # Kept: coroutines suspended on the loop of the parent would run their `finally` blocks here when they are freed.
    _left_behind.append(old)


forks.after_in_child(forks.Phase.LOOPS, reset_after_fork)
