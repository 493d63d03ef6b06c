"""One weave's way to the outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from wove.concurrency.mailbox import LoopMailbox
from wove.delivery import manager as process
from wove.delivery.keys import render, shared
from wove.delivery.run import CANCELLED, Ending, Outcome, RemoteRun, State, Waiter

if TYPE_CHECKING:
    from wove.delivery.request import Request
    from wove.delivery.sessions import ExecutorSession
    from wove.settings.model import Environment

__all__ = ["DeliveryClient"]

PARTING_SECONDS: Final = 5.0
"""How long a cancelled run waits for its table to answer, beyond the wait for an acknowledgement."""


class DeliveryClient:
    """Runs requests in their environments, for one weave.

    Everything is to be called on the weave's own loop.

    Args:
        loop: The weave's loop.
        shared: Whether it is the user's own loop, with more on it than the weave.

    Example:
        >>> scope = Scope(asyncio.get_running_loop())
        >>> try:
        ...     value = await scope.run(Request(Call(fn, "task"), {"item": 1}, settings))
        ... finally:
        ...     await scope.aclose()
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, shared: bool = False) -> None:
        self._loop = loop
        self._shared = shared
        self._mailbox = LoopMailbox(loop)
        self._hub = process.hub
        # By identity: a weave resolves each of its environments once. The environment is kept with its
        # session, so that its id stays its own.
        self._sessions: dict[int, tuple[Environment, ExecutorSession]] = {}
        self._state: Mapping[str, Any] | None = None

    async def run(self, request: Request) -> Any:
        """The value that *request* returns in its environment, or the exception that it raises there.

        Raises:
            DeliveryTimeoutError: It did not end, or did not beat, in time; or its cancel was to be
                acknowledged and was not.
            DeliveryOrphanedError: It was cancelled under the orphan policies ``fail`` or ``detach``.
            WorkerLostError: Its worker is gone.
            asyncio.CancelledError: It was cancelled.
        """
        policy = request.settings.delivery
        key = None
        if policy.idempotency_key is not None:
            key = render(policy.idempotency_key, request.args, request)
        while True:
            session = self._session(request.settings.environment)
            run = RemoteRun(request, session.table, key)
            owner = (
                run if key is None else shared.claim(request.settings.environment.name, key, run)
            )
            waiter = self._waiter(owner, request.working)
            if owner is run:
                submitted = self._submit(session, run, waiter)
            else:
                submitted = self._join(owner, waiter)
            if submitted:
                outcome = await self._outcome(request, owner, waiter)
                if outcome.ending is Ending.VALUE:
                    return outcome.value
                if outcome.ending is Ending.ERROR:
                    raise outcome.value
            # Else it is gone: its session was closed before it got there, or the run that it was to share
            # had just ended. Then it is submitted anew.

    async def aclose(self) -> None:
        """Give back what this weave used, and stop the executors that were started for it alone.

        Takes as long as they need, within their ``stop_timeout``.
        """
        sessions, self._sessions = self._sessions, {}
        if self._hub is not process.hub:  # in a forked child: they are the parent's
            return
        closing = [self._hub.release(session) for _, session in sessions.values()]
        futures = [future for future in closing if future is not None]
        if futures:
            await asyncio.wait(futures)

    # ------------------------------------------------------------------ sessions

    def _session(self, environment: Environment) -> ExecutorSession:
        if self._hub is not process.hub:
            self._hub = process.hub
            self._sessions.clear()
        known = self._sessions.get(id(environment))
        if known is not None:
            if known[1].closed is None:
                return known[1]
            self._drop(environment)
        session = self._hub.lease(environment, self._loop, self._process_state, shared=self._shared)
        self._sessions[id(environment)] = (environment, session)
        return session

    def _process_state(self) -> Mapping[str, Any]:
        if self._state is None:
            self._state = process.process_state()
        return self._state

    def _drop(self, environment: Environment) -> None:
        """Use another session for *environment* from now on."""
        _, session = self._sessions.pop(id(environment))
        self._hub.release(session)

    # ------------------------------------------------------------------ runs

    def _waiter(self, run: RemoteRun, working: Callable[[bool], object] | None) -> Waiter:
        return Waiter(self._mailbox, run.table.home.loop, working)

    def _submit(self, session: ExecutorSession, run: RemoteRun, waiter: Waiter) -> bool:
        run.waiters.append(waiter)
        if session.submit(run, here=session.home.loop is self._loop):
            return True
        # It has not got there, and nobody else looks at it any more but those that share its key.
        self._hub.discard(session)
        self._drop(run.request.settings.environment)
        shared.drop(run)
        run.state = State.OVER
        for other in run.waiters:
            other.disappoint()
        return False

    def _join(self, run: RemoteRun, waiter: Waiter) -> bool:
        if run.table.home.post(run.table.attach, run, waiter):
            return True
        shared.drop(run)
        return False

    async def _outcome(self, request: Request, run: RemoteRun, waiter: Waiter) -> Outcome:
        try:
            return await waiter.future
        except asyncio.CancelledError:
            outcome = await self._part(request, run, waiter)
            if outcome.ending is Ending.ERROR:
                raise outcome.value from None
            raise
        finally:
            if request.record is not None:
                request.record.run_id = run.run_id or None
                request.record.losses, request.record.trip = run.losses, run.trip()
                request.record.host, request.record.pid = run.host, run.pid
                request.record.bytes_out, request.record.bytes_in = run.bytes_out, run.bytes_in

    async def _part(self, request: Request, run: RemoteRun, waiter: Waiter) -> Outcome:
        """The weave stops waiting: how that ends."""
        delivery = request.settings.delivery
        policy = "cancel" if request.expired else delivery.orphan_policy
        table = run.table
        waiter.renew()
        if table.home.loop is self._loop:
            table.abandon(run, waiter, policy)
        elif not table.home.post(table.abandon, run, waiter, policy):
            return CANCELLED
        if delivery.cancel_mode == "best_effort" and policy in ("cancel", "requeue"):
            return CANCELLED
        limit = table.acknowledge_seconds
        await asyncio.wait(
            {waiter.future}, timeout=None if limit is None else limit + PARTING_SECONDS
        )
        return waiter.future.result() if waiter.future.done() else CANCELLED
