"""The client of one weave: runs requests in their environments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from wove.concurrency.mailbox import LoopMailbox
from wove.delivery import manager as process
from wove.delivery.keys import shared
from wove.delivery.remote_logs import lines_home
from wove.delivery.run import CANCELLED, Ending, Outcome, RemoteRun, State, Waiter
from wove.graph.templates import render

if TYPE_CHECKING:
    from wove.delivery.request import Request
    from wove.delivery.sessions import ExecutorSession
    from wove.settings.model import Environment

__all__ = ["DeliveryClient"]

LEAVE_SECONDS: Final = 5.0
"""How long the waiter of a cancelled run waits for the table, beyond the wait for an acknowledgement."""


class DeliveryClient:
    """Runs requests in their environments, for one weave.

    All methods must be called on the loop of the weave.

    Args:
        loop: The loop of the weave.
        shared: Whether that is a loop of the user, which runs more than the weave.

    Example:
        >>> client = DeliveryClient(asyncio.get_running_loop())
        >>> try:
        ...     value = await client.run(Request(Call(fn, "task"), {"item": 1}, settings))
        ... finally:
        ...     await client.aclose()
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, shared: bool = False) -> None:
        self._loop = loop
        self._shared = shared
        self._mailbox = LoopMailbox(loop)
        self._manager = process.manager
        # By identity: a weave resolves each of its environments once. The environment is kept with its
        # session, so that its id stays its own.
        self._sessions: dict[int, tuple[Environment, ExecutorSession]] = {}
        self._state: Mapping[str, Any] | None = None
        self._brings_logs = False

    async def run(self, request: Request) -> Any:
        """Return the value of *request* in its environment, or raise the exception that it raises there.

        Raises:
            DeliveryTimeoutError: The run did not end in time, gave no sign of life in time, or its cancel was
                not acknowledged.
            DeliveryOrphanedError: The run was cancelled under the orphan policies ``fail`` or ``detach``.
            WorkerLostError: The worker of the run is gone.
            asyncio.CancelledError: This call was cancelled.
        """
        policy = request.settings.delivery
        self._brings_logs = self._brings_logs or request.settings.remote_logs
        key = None
        if policy.idempotency_key is not None:
            key = render(policy.idempotency_key, request.args, request, "delivery_idempotency_key")
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
            # Otherwise the run is gone: its session closed before the run got there, or the run that it was
            # to share had just ended. So it is submitted once more.

    async def aclose(self) -> None:
        """Give the sessions back, and stop the executors that were started for this weave alone.

        Takes as long as those executors need, at most their ``stop_timeout``.
        """
        if self._brings_logs:
            await lines_home.flush()
        sessions, self._sessions = self._sessions, {}
        if self._manager is not process.manager:  # in a forked child: the sessions are the parent's
            return
        closing = [self._manager.release(session) for _, session in sessions.values()]
        futures = [future for future in closing if future is not None]
        if futures:
            await asyncio.wait(futures)

    # ------------------------------------------------------------------ sessions

    def _session(self, environment: Environment) -> ExecutorSession:
        if self._manager is not process.manager:
            self._manager = process.manager
            self._sessions.clear()

        known = self._sessions.get(id(environment))
        if known is not None:
            if known[1].closed is None:
                return known[1]
            self._drop(environment)

        session = self._manager.lease(
            environment, self._loop, self._process_state, shared=self._shared
        )
        self._sessions[id(environment)] = (environment, session)
        return session

    def _process_state(self) -> Mapping[str, Any]:
        if self._state is None:
            self._state = process.process_state()
        return self._state

    def _drop(self, environment: Environment) -> None:
        """Use another session for *environment* from now on."""
        _, session = self._sessions.pop(id(environment))
        self._manager.release(session)

    # ------------------------------------------------------------------ runs

    def _waiter(self, run: RemoteRun, working: Callable[[bool], object] | None) -> Waiter:
        return Waiter(self._mailbox, run.table.home.loop, working)

    def _submit(self, session: ExecutorSession, run: RemoteRun, waiter: Waiter) -> bool:
        run.waiters.append(waiter)
        if session.submit(run, here=session.home.loop is self._loop):
            return True
        # The run has not got there, and only the waiters that share its key still know it.
        self._manager.discard(session)
        self._drop(run.request.settings.environment)
        shared.drop(run)
        run.state = State.OVER
        for other in run.waiters:
            other.settle_gone()
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
            outcome = await self._leave(request, run, waiter)
            if outcome.ending is Ending.ERROR:
                raise outcome.value from None
            raise
        finally:
            if request.record is not None:
                request.record.run_id = run.run_id or None
                request.record.losses, request.record.trip = run.losses, run.trip()
                request.record.host, request.record.pid = run.host, run.pid
                request.record.bytes_out, request.record.bytes_in = run.bytes_out, run.bytes_in

    async def _leave(self, request: Request, run: RemoteRun, waiter: Waiter) -> Outcome:
        """Stop waiting, and return how the run ends for this weave."""
        delivery = request.settings.delivery
        policy = "cancel" if request.expired else delivery.orphan_policy
        table = run.table
        waiter.wait_again()
        if table.home.loop is self._loop:
            table.abandon(run, waiter, policy)
        elif not table.home.post(table.abandon, run, waiter, policy):
            return CANCELLED

        if delivery.cancel_mode == "best_effort" and policy in ("cancel", "requeue"):
            return CANCELLED
        limit = table.acknowledge_seconds
        await asyncio.wait(
            {waiter.future}, timeout=None if limit is None else limit + LEAVE_SECONDS
        )
        return waiter.future.result() if waiter.future.done() else CANCELLED
