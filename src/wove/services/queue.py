"""The queue of a worker service's runs, whatever transport brought them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from wove.concurrency.bounded import BoundedDict
from wove.protocol.completed_runs import CompletedRuns, bulk
from wove.protocol.frames import TERMINAL
from wove.services.byte_budget import ByteBudget
from wove.services.options import ServiceOptions
from wove.services.queued_runs import Name, QueuedRun, Subscription
from wove.services.wire import busy_error, executor_error
from wove.services.workers import ProcessBackend, ThreadBackend, WorkerBackend

__all__ = ["RunQueue", "Tell"]

logger = logging.getLogger("wove.service")

Tell: TypeAlias = Callable[[dict[str, Any]], object]

MAX_EARLY_CANCELS: Final = 1000
"""Maximum number of cancels that are remembered for runs that have not arrived yet."""

EARLY_CANCEL_SECONDS: Final = 60.0
"""For so long; a run that comes later is another one of the same name."""

MAX_ENDED: Final = 1000
"""Maximum number of ended runs that are remembered: a cancel that comes too late is not an early one."""


class RunQueue:
    """Takes runs, has them run, and tells those who wait what becomes of them. For one loop at a time.

    A service has one. It starts with the first run, because an application that is mounted in another one may
    never be told that it starts.

    Args:
        options: See `service_options`.

    Attributes:
        options: Those.
        arriving: Room for requests that arrive. All connections share it, and no stranger has any of it.

    Example::

        desk = Desk(service_options(security="env:WOVE_WORKER_SECRET"))
        ticket = desk.take(frame, send_event, peer="10.0.0.7:51322")
        ...
        desk.leave(ticket)      # the client has gone
    """

    def __init__(self, options: ServiceOptions) -> None:
        self.options = options
        self.arriving = ByteBudget(options.max_message_bytes)
        self._memory = CompletedRuns(
            runs=options.remembered_runs,
            size=options.remembered_bytes,
            seconds=options.remembered_seconds,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: WorkerBackend | None = None
        self._jobs: dict[str, QueuedRun] = {}  # all, by the run id that the workers know
        self._by_name: dict[Name, QueuedRun] = {}
        self._by_key: dict[tuple[str, str, str], QueuedRun] = {}
        self._waiting: OrderedDict[str, QueuedRun] = OrderedDict()
        self._waiting_bytes = 0
        self._early_cancels = BoundedDict[Name, float](MAX_EARLY_CANCELS)  # and until when
        self._ended = BoundedDict[Name, None](MAX_ENDED)
        self._draining = self._closed = False
        self._quiet: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Get ready now, and not with the first run. Also after `aclose`."""
        self._closed = self._draining = False
        self._open()

    @property
    def ready(self) -> bool:
        """Whether it would take a run."""
        return not (self._draining or self._closed or self._is_full())

    def status(self) -> dict[str, Any]:
        """Numbers for whoever watches the service."""
        running = len(self._jobs) - len(self._waiting)
        return {
            "status": "draining"
            if self._draining or self._closed
            else "full"
            if self._is_full()
            else "ready",
            "running": running,
            "waiting": len(self._waiting),
            "concurrency": self.options.concurrency,
        }

    async def drain(self, seconds: float | None = None) -> bool:
        """Take no more runs, hand back those that wait, and let those that run end.

        What does not end in time is answered with an error that says so, and that it may be tried again.

        Args:
            seconds: How long they have; ``None``: the ``drain_timeout`` of the options.

        Returns:
            Whether everything has ended by itself.
        """
        self._draining = True

        for job in list(self._waiting.values()):
            self._unqueue(job)
            self._end(
                job,
                busy_error(
                    job.names, "this worker service is about to stop, and has not begun the run"
                ),
            )

        if seconds is None:
            seconds = self.options.drain_timeout
        if not self._is_quiet():
            logger.info("draining: %d runs have %g s to end", len(self._jobs), seconds)
            self._quiet = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._quiet}, timeout=seconds)
            self._quiet = None

        late = [job for job in self._jobs.values() if job.matters]
        for job in late:
            text = f"this worker service stopped, and run {job.run_id} had not ended within {seconds:g} s"
            self._end(job, executor_error(job.names, "WorkerLostError", text, retryable=True))
            self._stop(job)

        return not late

    async def aclose(self) -> None:
        """End everything at once. `drain` before, to let it end by itself."""
        self._closed = True
        await self.drain(0.0)
        workers, self._workers, self._loop = self._workers, None, None
        if workers is not None:
            await workers.close()
        self._draining = False

    def _is_quiet(self) -> bool:
        """Whether nothing runs any more that anybody waits for."""
        return not any(job.matters for job in self._jobs.values())

    def _look_for_quiet(self) -> None:
        if self._quiet is not None and not self._quiet.done() and self._is_quiet():
            self._quiet.set_result(None)

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._workers is not None and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                "a worker service is used on one event loop, and this is another one: "
                "make a service for each, or close it on the first one before"
            )

        if (
            self._workers is not None
        ):  # nobody waits any more (test clients have a loop for each request)
            self._workers.abandon()

        for table in (self._jobs, self._by_name, self._by_key, self._waiting):
            table.clear()
        self._waiting_bytes = 0
        processes = self.options.processes
        self._workers = (
            ThreadBackend(self._event)
            if processes is None
            else ProcessBackend(self._event, processes)
        )
        self._loop = loop

    # ------------------------------------------------------------------ in

    def take(
        self, frame: dict[str, Any], tell: Tell, *, peer: str, owner: str = ""
    ) -> Subscription:
        """Take a ``run_task`` frame.

        Args:
            frame: From `decode_command`. It belongs to the desk from now on.
            tell: Is given the events of the run on the loop, and may be before this returns. The last one is
                a ``task_result``, ``task_error`` or ``task_cancelled``. It must neither raise nor block, nor
                change an event: others may get the same one.
            peer: Who sent it, for the log.
            owner: Who sent it, as `NetworkExecutorSecurity.principal` says. Nobody else can cancel or join it.

        Returns:
            What `leave` takes when the client has gone.
        """
        ticket = Subscription(frame, tell, peer, owner)
        if self._closed:
            self._decline(ticket, "this worker service has stopped")
            return ticket

        if asyncio.get_running_loop() is not self._loop:
            self._open()
        if self._early_cancels and self._early_cancels.pop(ticket.name, 0.0) > self._now():
            self._tell_last(ticket, {"type": "task_cancelled", **ticket.names})
            return ticket

        job = QueuedRun(frame, ticket, self._now())
        if job.key is not None and self._answered_before(job.key, ticket):
            return ticket
        if self._draining:
            self._decline(ticket, "this worker service is about to stop")
        elif (
            self._is_full()
            or self._waiting_bytes + job.size_in > 2 * self.options.max_message_bytes
        ):
            self._decline(
                ticket, f"this worker service has no room: {len(self._waiting)} runs wait already"
            )
        else:
            self._add(job, ticket)

        return ticket

    def cancel(self, frame: Mapping[str, Any], *, owner: str = "") -> None:
        """Take a ``cancel_task`` frame from `decode_command`."""
        name = (owner, frame["run_id"])
        job = self._by_name.get(name)
        if job is None:
            if name not in self._ended:  # it may be behind its cancel, on another connection
                self._early_cancels[name] = self._now() + EARLY_CANCEL_SECONDS
            return

        if any(ticket.name != name for ticket in job.tickets):  # the others still want it
            self._forget(job, name)
            for ticket in [ticket for ticket in job.tickets if ticket.name == name]:
                job.tickets.remove(ticket)
                self._tell_last(ticket, {"type": "task_cancelled", **ticket.names})
        else:
            self._cancel(job)

    def leave(self, ticket: Subscription) -> None:
        """The client of *ticket* has gone. Its run goes on if it has an idempotency key or is to be detached."""
        job, ticket.job = ticket.job, None
        if job is None or ticket.over:
            return
        ticket.over = True
        job.tickets.remove(ticket)

        if job.tickets:
            if all(other.name != ticket.name for other in job.tickets):
                self._forget(job, ticket.name)
        elif not job.outlives_its_client:
            self._cancel(job)
            self._look_for_quiet()

    def _forget(self, job: QueuedRun, name: Name) -> None:
        """*job* is not known by *name* any more."""
        if self._by_name.get(name) is job:
            del self._by_name[name]
        job.known_as.discard(name)
        self._ended[name] = None

    # ------------------------------------------------------------------ queue

    def _add(self, job: QueuedRun, ticket: Subscription) -> None:
        # Two senders may have made the same run id, and the workers know runs by that alone.
        inner = job.run_id
        number = 1
        while inner in self._jobs:
            number += 1
            inner = f"{job.run_id}.{number}"

        job.frame["run_id"] = job.inner = inner
        self._jobs[inner] = job
        self._by_name[ticket.name] = job
        ticket.job = job
        if job.key is not None:
            self._by_key[job.key] = job
        if len(self._jobs) - len(self._waiting) <= self.options.concurrency and not self._waiting:
            self._begin(job)
            return

        self._waiting[inner] = job
        self._waiting_bytes += job.size_in

    def _is_full(self) -> bool:
        return len(self._jobs) >= self.options.concurrency + self.options.backlog

    def _begin(self, job: QueuedRun) -> None:
        now = self._now()
        job.begun = now
        frame, job.frame = (
            job.frame,
            job.names,
        )  # its arguments are the workers' to keep, as long as they need them
        assert self._workers is not None
        self._workers.submit(frame)

    def _unqueue(self, job: QueuedRun) -> None:
        if self._waiting.pop(job.inner, None) is not None:
            self._waiting_bytes -= job.size_in

    def _advance(self) -> None:
        while (
            self._waiting
            and not self._draining
            and len(self._jobs) - len(self._waiting) < self.options.concurrency
        ):
            job = next(iter(self._waiting.values()))
            self._unqueue(job)
            self._begin(job)

    def _cancel(self, job: QueuedRun) -> None:
        if job.inner in self._waiting:
            self._unqueue(job)
            self._end(job, {"type": "task_cancelled", **job.names})
        else:
            self._stop(job)

    def _stop(self, job: QueuedRun) -> None:
        if job.stopping:
            return
        job.stopping = True  # whoever sends the run or its key again must not get this end of it
        if job.key is not None and self._by_key.get(job.key) is job:
            del self._by_key[job.key]
        if self._workers is not None:
            self._workers.cancel(job.inner)

    # ------------------------------------------------------------------ the same run twice

    def _answered_before(self, key: tuple[str, str, str], ticket: Subscription) -> bool:
        event = self._memory.get(key, self._now())
        if event is not None:
            logger.info(
                "run %s task %r from %s: its result is remembered",
                ticket.run_id,
                ticket.task_id,
                ticket.peer,
            )
            self._tell_last(ticket, {**event, **ticket.names})
            return True

        job = self._by_key.get(key)
        if job is None:
            return False
        if len(job.tickets) >= self.options.concurrency + self.options.backlog:
            self._decline(
                ticket,
                f"this worker service has no room: {len(job.tickets)} wait for the same run already",
            )
        else:
            self._join(job, ticket)

        return True

    def _join(self, job: QueuedRun, ticket: Subscription) -> None:
        logger.info(
            "run %s task %r from %s: joins run %s",
            ticket.run_id,
            ticket.task_id,
            ticket.peer,
            job.run_id,
        )
        if not job.tickets:  # they have all gone, and will not ask for it by these names
            for name in list(job.known_as):
                self._forget(job, name)

        job.tickets.append(ticket)
        job.known_as.add(ticket.name)
        ticket.job = job
        self._by_name[ticket.name] = job
        if job.started is not None:
            self._tell(job, ticket, job.started)

    # ------------------------------------------------------------------ out

    def _event(self, event: dict[str, Any]) -> None:
        job = self._jobs.get(event["run_id"])
        if job is None:
            return
        kind = event["type"]
        if kind in TERMINAL:
            self._end(job, event)
            return

        if kind == "task_started":
            job.started, job.began = event, self._now()
        elif kind == "heartbeat" and "blocked" in event:  # the pool's own business
            return

        for ticket in job.tickets:
            self._tell(job, ticket, event)

    def _end(self, job: QueuedRun, event: dict[str, Any]) -> None:
        if self._jobs.pop(job.inner, None) is None:
            return
        now = self._now()

        if job.key is not None:
            if self._by_key.get(job.key) is job:
                del self._by_key[job.key]
            if event["type"] == "task_result":
                self._memory.put(job.key, event, now)

        for ticket in job.tickets:
            self._tell_last(ticket, {**event, **ticket.names} if job.is_shared(ticket) else event)
        for name in list(job.known_as):
            self._forget(job, name)
        if logger.isEnabledFor(logging.INFO):
            _log(job, event, now)
        if self._waiting:
            self._advance()
        else:
            self._look_for_quiet()

    def _tell(self, job: QueuedRun, ticket: Subscription, event: dict[str, Any]) -> None:
        if event["type"] == "task_started" and not job.beats_for(ticket):
            return  # from then on its sender would expect heartbeats that do not come
        try:
            ticket.tell({**event, **ticket.names} if job.is_shared(ticket) else event)
        except Exception:
            logger.exception(
                "cannot tell %s of run %s to %s", event["type"], ticket.run_id, ticket.peer
            )

    def _tell_last(self, ticket: Subscription, event: dict[str, Any]) -> None:
        ticket.over = True
        ticket.job = None

        try:
            ticket.tell(event)
        except Exception:
            logger.exception(
                "cannot tell %s of run %s to %s", event["type"], ticket.run_id, ticket.peer
            )

    def _decline(self, ticket: Subscription, why: str) -> None:
        logger.debug(
            "run %s task %r from %s: busy: %s", ticket.run_id, ticket.task_id, ticket.peer, why
        )
        self._tell_last(
            ticket, busy_error(ticket.names, f"{why}. Send the run again, a little later")
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def _log(job: QueuedRun, event: dict[str, Any], now: float) -> None:
    kind = event["type"]
    outcome = "cancelled" if kind == "task_cancelled" else "ok"
    if kind == "task_error":
        report: dict[str, Any] = event.get("error") or {}
        outcome = f"error {report.get('kind', '')}"

    began = job.began or job.begun or now
    logger.info(
        "run %s task %r from %s: %s, %.3f s queued, %.3f s run, %d bytes in, %d bytes out",
        job.run_id, job.task_id, job.peer, _UNPRINTABLE.sub("?", outcome), began - job.arrived, now - began,
        job.size_in, bulk(event),
    )  # fmt: skip
