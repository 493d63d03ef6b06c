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
from wove.protocol.frames import TERMINAL, says_busy
from wove.services.byte_budget import ByteBudget
from wove.services.options import ServiceOptions
from wove.services.queued_runs import Name, QueuedRun, Subscription
from wove.services.wire import busy_error, executor_error, unknown_run
from wove.services.workers import ProcessBackend, ThreadBackend, WorkerBackend

__all__ = ["OnEvent", "RunQueue"]

logger = logging.getLogger("wove.service")

OnEvent: TypeAlias = Callable[[dict[str, Any]], object]

MAX_EARLY_CANCELS: Final = 1000
"""Maximum number of cancels that are remembered for runs that have not arrived yet."""

EARLY_CANCEL_SECONDS: Final = 60.0
"""For so long; a run that comes later is another one of the same name."""

MAX_UNACKNOWLEDGED: Final = 10_000
UNACKNOWLEDGED_SECONDS: Final = 60.0
"""How many ends of runs are kept, and for how long, until their client has acknowledged them: the connection over which
they were sent may be lost."""

MAX_ENDED: Final = 1000
"""Maximum number of ended runs that are remembered: a cancel that comes too late is not an early one."""


class RunQueue:
    """Accepts runs, has workers run them, and passes their events to their clients. For one loop at a time.

    A service has one. It starts with the first run, because an application that is mounted in another one may
    never be told that it starts.

    Args:
        options: See `service_options`.

    Attributes:
        options: Those.
        arriving: The bytes of requests that arrive. All authenticated connections share them.

    Example::

        queue = RunQueue(service_options(security="env:WOVE_WORKER_SECRET"))
        subscription = queue.enqueue(frame, send_event, peer="10.0.0.7:51322")
        ...
        queue.unsubscribe(subscription)      # the client has gone
    """

    def __init__(self, options: ServiceOptions) -> None:
        self.options = options
        self.arriving = ByteBudget(options.max_message_bytes)
        self._memory = CompletedRuns(
            runs=options.remembered_runs,
            size=options.remembered_bytes,
            seconds=options.remembered_seconds,
        )
        self._unacknowledged = CompletedRuns(
            runs=MAX_UNACKNOWLEDGED,
            size=options.remembered_bytes,
            seconds=UNACKNOWLEDGED_SECONDS,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: WorkerBackend | None = None
        self._runs: dict[str, QueuedRun] = {}  # all, by the run id that the workers know
        self._by_name: dict[Name, QueuedRun] = {}
        self._by_key: dict[tuple[str, str, str], QueuedRun] = {}
        self._waiting: OrderedDict[str, QueuedRun] = OrderedDict()
        self._waiting_bytes = 0
        self._early_cancels = BoundedDict[Name, float](MAX_EARLY_CANCELS)  # and until when
        self._ended = BoundedDict[Name, None](MAX_ENDED)
        self._draining = self._closed = False
        self._drained: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Get ready now, instead of with the first run. Possible after `aclose`, too."""
        self._closed = self._draining = False
        self._open()

    @property
    def ready(self) -> bool:
        """Return whether it would accept a run."""
        return not (self._draining or self._closed or self._is_full())

    def status(self) -> dict[str, Any]:
        """Return the numbers for ``/readyz``."""
        running = len(self._runs) - len(self._waiting)
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
        """Accept no more runs, decline those that wait, and let those that run end.

        What does not end in time is answered with an error that says so, and that it may be tried again.

        Args:
            seconds: How long they have; ``None``: the ``drain_timeout`` of the options.

        Returns:
            Whether everything has ended by itself.
        """
        self._draining = True

        for run in list(self._waiting.values()):
            self._unqueue(run)
            self._end(
                run,
                busy_error(
                    run.names, "this worker service is about to stop, and has not begun the run"
                ),
            )

        if seconds is None:
            seconds = self.options.drain_timeout
        if not self._is_drained():
            logger.info("draining: %d runs have %g s to end", len(self._runs), seconds)
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._drained}, timeout=seconds)
            self._drained = None

        late = [run for run in self._runs.values() if run.matters]
        for run in late:
            text = f"this worker service stopped, and run {run.run_id} had not ended within {seconds:g} s"
            self._end(run, executor_error(run.names, "WorkerLostError", text, retryable=True))
            self._stop(run)

        return not late

    async def aclose(self) -> None:
        """End everything at once. `drain` before, to let it end by itself."""
        self._closed = True
        await self.drain(0.0)
        workers, self._workers, self._loop = self._workers, None, None
        if workers is not None:
            await workers.close()
        self._draining = False

    def _is_drained(self) -> bool:
        """Return whether no run is left whose end is of interest."""
        return not any(run.matters for run in self._runs.values())

    def _check_drained(self) -> None:
        if self._drained is not None and not self._drained.done() and self._is_drained():
            self._drained.set_result(None)

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
        ):  # its clients are gone (test clients have a loop for each request)
            self._workers.abandon()

        for table in (self._runs, self._by_name, self._by_key, self._waiting):
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

    def enqueue(
        self, frame: dict[str, Any], on_event: OnEvent, *, peer: str, owner: str = ""
    ) -> Subscription:
        """Take a ``run_task`` frame.

        Args:
            frame: From `decode_command`. It belongs to the queue from now on.
            on_event: Is given the events of the run on the loop, and may be before this returns. The last one is
                a ``task_result``, ``task_error`` or ``task_cancelled``. It must neither raise nor block, nor
                change an event: others may get the same one.
            peer: Who sent it, for the log.
            owner: Who sent it, as `NetworkExecutorSecurity.principal` says. Nobody else can cancel or join it.

        Returns:
            What `unsubscribe` takes when the client has gone.
        """
        subscription = Subscription(frame, on_event, peer, owner)
        self._acknowledge(frame, owner)
        frame.pop("received", None)
        if self._closed:
            self._decline(subscription, "this worker service has stopped")
            return subscription

        if asyncio.get_running_loop() is not self._loop:
            self._open()
        if frame["type"] == "resume_task":
            self._resume(subscription)
            return subscription
        if self._early_cancels and self._early_cancels.pop(subscription.name, 0.0) > self._now():
            self._deliver_end(subscription, {"type": "task_cancelled", **subscription.names})
            return subscription

        run = QueuedRun(frame, subscription, self._now())
        if run.key is not None and self._answered_before(run.key, subscription):
            return subscription
        if self._draining:
            self._decline(subscription, "this worker service is about to stop")
        elif (
            self._is_full()
            or self._waiting_bytes + run.size_in > 2 * self.options.max_message_bytes
        ):
            self._decline(
                subscription,
                f"this worker service has no room: {len(self._waiting)} runs wait already",
            )
        else:
            self._add(run, subscription)

        return subscription

    def cancel(self, frame: Mapping[str, Any], *, owner: str = "") -> None:
        """Take a ``cancel_task`` frame from `decode_command`."""
        self._acknowledge(frame, owner)
        name = (owner, frame["run_id"])
        run = self._by_name.get(name)
        if run is None:
            if name not in self._ended:  # it may be behind its cancel, on another connection
                self._early_cancels[name] = self._now() + EARLY_CANCEL_SECONDS
            return

        if any(
            subscription.name != name for subscription in run.subscriptions
        ):  # the others still want it
            self._forget(run, name)
            for subscription in [
                subscription for subscription in run.subscriptions if subscription.name == name
            ]:
                run.subscriptions.remove(subscription)
                self._deliver_end(subscription, {"type": "task_cancelled", **subscription.names})
        else:
            self._cancel(run)

    def unsubscribe(self, subscription: Subscription) -> None:
        """The client of *subscription* has gone. Its run goes on if it has an idempotency key or is to be detached."""
        run, subscription.run = subscription.run, None
        if run is None or subscription.over:
            return
        subscription.over = True
        run.subscriptions.remove(subscription)

        if run.subscriptions:
            if all(other.name != subscription.name for other in run.subscriptions):
                self._forget(run, subscription.name)
        elif run.outlives_its_client:
            return
        elif run.hold_seconds:
            run.hold = asyncio.get_running_loop().call_later(run.hold_seconds, self._give_up, run)
        else:
            self._give_up(run)

    def _give_up(self, run: QueuedRun) -> None:
        """Cancel a run whose client has not come back."""
        run.hold = None
        self._cancel(run)
        self._check_drained()

    def _forget(self, run: QueuedRun, name: Name) -> None:
        """Remove *name* from the names of *run*."""
        if self._by_name.get(name) is run:
            del self._by_name[name]
        run.known_as.discard(name)
        self._ended[name] = None

    # ------------------------------------------------------------------ clients that come back

    def _resume(self, subscription: Subscription) -> None:
        """Subscribe a client that has lost its connection to its run again."""
        name = subscription.name
        event = self._unacknowledged.get((*name, ""), self._now())
        run = self._by_name.get(name)

        if event is not None:
            self._deliver_end(subscription, {**event, **subscription.names})
        elif run is None or run.stopping:
            self._deliver_end(subscription, unknown_run(subscription.names))
        else:
            # The loss of the old connection may not have been noticed here yet.
            for stale in [each for each in run.subscriptions if each.name == name]:
                run.subscriptions.remove(stale)
                stale.over, stale.run = True, None
            logger.info(
                "run %s task %r from %s: its client has come back",
                subscription.run_id,
                subscription.task_id,
                subscription.peer,
            )
            self._subscribe(run, subscription)
            self._advance()

    def _acknowledge(self, frame: Mapping[str, Any], owner: str) -> None:
        """Forget the ends of the runs that the sender of *frame* has received."""
        for run_id in frame.get("received") or ():
            self._unacknowledged.drop((owner, run_id, ""))

    # ------------------------------------------------------------------ queue

    def _add(self, run: QueuedRun, subscription: Subscription) -> None:
        # Two senders may have made the same run id, and the workers know runs by that alone.
        inner = run.run_id
        number = 1
        while inner in self._runs:
            number += 1
            inner = f"{run.run_id}.{number}"

        run.frame["run_id"] = run.inner = inner
        self._runs[inner] = run
        self._by_name[subscription.name] = run
        subscription.run = run
        if run.key is not None:
            self._by_key[run.key] = run
        if len(self._runs) - len(self._waiting) <= self.options.concurrency and not self._waiting:
            self._begin(run)
            return

        self._waiting[inner] = run
        self._waiting_bytes += run.size_in
        self._advance()  # those before it may all wait for their clients

    def _is_full(self) -> bool:
        return len(self._runs) >= self.options.concurrency + self.options.backlog

    def _begin(self, run: QueuedRun) -> None:
        now = self._now()
        run.submitted_at = now
        frame, run.frame = (
            run.frame,
            run.names,
        )  # its arguments are the workers' to keep, as long as they need them
        assert self._workers is not None
        self._workers.submit(frame)

    def _unqueue(self, run: QueuedRun) -> None:
        if self._waiting.pop(run.inner, None) is not None:
            self._waiting_bytes -= run.size_in

    def _advance(self) -> None:
        while (
            self._waiting
            and not self._draining
            and len(self._runs) - len(self._waiting) < self.options.concurrency
        ):
            # A run whose client has gone is not begun before the client comes back.
            run = next((each for each in self._waiting.values() if each.hold is None), None)
            if run is None:
                return
            self._unqueue(run)
            self._begin(run)

    def _cancel(self, run: QueuedRun) -> None:
        if run.inner in self._waiting:
            self._unqueue(run)
            self._end(run, {"type": "task_cancelled", **run.names})
        else:
            self._stop(run)

    def _stop(self, run: QueuedRun) -> None:
        if run.stopping:
            return
        run.stopping = True  # a client that sends the run or its key again must not get this end
        if run.key is not None and self._by_key.get(run.key) is run:
            del self._by_key[run.key]
        if self._workers is not None:
            self._workers.cancel(run.inner)

    # ------------------------------------------------------------------ the same run twice

    def _answered_before(self, key: tuple[str, str, str], subscription: Subscription) -> bool:
        event = self._memory.get(key, self._now())
        if event is not None:
            logger.info(
                "run %s task %r from %s: its result is remembered",
                subscription.run_id,
                subscription.task_id,
                subscription.peer,
            )
            self._deliver_end(subscription, {**event, **subscription.names})
            return True

        run = self._by_key.get(key)
        if run is None:
            return False
        if len(run.subscriptions) >= self.options.concurrency + self.options.backlog:
            self._decline(
                subscription,
                f"this worker service has no room: {len(run.subscriptions)} wait for the same run already",
            )
        else:
            self._join(run, subscription)

        return True

    def _join(self, run: QueuedRun, subscription: Subscription) -> None:
        logger.info(
            "run %s task %r from %s: joins run %s",
            subscription.run_id,
            subscription.task_id,
            subscription.peer,
            run.run_id,
        )
        if not run.subscriptions:  # they have all gone, and will not ask for it by these names
            for name in list(run.known_as):
                self._forget(run, name)

        self._subscribe(run, subscription)

    def _subscribe(self, run: QueuedRun, subscription: Subscription) -> None:
        if run.hold is not None:
            run.hold.cancel()
            run.hold = None
        run.subscriptions.append(subscription)
        run.known_as.add(subscription.name)
        subscription.run = run
        self._by_name[subscription.name] = run
        if run.started is not None:
            self._deliver(run, subscription, run.started)

    # ------------------------------------------------------------------ out

    def _event(self, event: dict[str, Any]) -> None:
        run = self._runs.get(event["run_id"])
        if run is None:
            return
        kind = event["type"]
        if kind in TERMINAL:
            self._end(run, event)
            return

        if kind == "task_started":
            run.started, run.started_at = event, self._now()
        elif kind == "heartbeat" and "blocked" in event:  # the pool's own business
            return

        for subscription in run.subscriptions:
            self._deliver(run, subscription, event)

    def _end(self, run: QueuedRun, event: dict[str, Any]) -> None:
        if self._runs.pop(run.inner, None) is None:
            return
        now = self._now()

        if run.key is not None:
            if self._by_key.get(run.key) is run:
                del self._by_key[run.key]
            if event["type"] == "task_result":
                self._memory.put(run.key, event, now)

        if run.hold is not None:
            run.hold.cancel()
            run.hold = None
        if run.hold_seconds and not says_busy(event):
            for owner, run_id in run.known_as:
                self._unacknowledged.put((owner, run_id, ""), event, now)

        for subscription in run.subscriptions:
            self._deliver_end(
                subscription,
                {**event, **subscription.names} if run.is_shared(subscription) else event,
            )
        for name in list(run.known_as):
            self._forget(run, name)
        if logger.isEnabledFor(logging.INFO):
            _log(run, event, now)
        if self._waiting:
            self._advance()
        else:
            self._check_drained()

    def _deliver(self, run: QueuedRun, subscription: Subscription, event: dict[str, Any]) -> None:
        if event["type"] == "task_started" and not run.beats_for(subscription):
            return  # from then on its sender would expect heartbeats that do not come
        try:
            subscription.on_event(
                {**event, **subscription.names} if run.is_shared(subscription) else event
            )
        except Exception:
            logger.exception(
                "cannot tell %s of run %s to %s",
                event["type"],
                subscription.run_id,
                subscription.peer,
            )

    def _deliver_end(self, subscription: Subscription, event: dict[str, Any]) -> None:
        subscription.over = True
        subscription.run = None

        try:
            subscription.on_event(event)
        except Exception:
            logger.exception(
                "cannot tell %s of run %s to %s",
                event["type"],
                subscription.run_id,
                subscription.peer,
            )

    def _decline(self, subscription: Subscription, why: str) -> None:
        logger.debug(
            "run %s task %r from %s: busy: %s",
            subscription.run_id,
            subscription.task_id,
            subscription.peer,
            why,
        )
        self._deliver_end(
            subscription,
            busy_error(subscription.names, f"{why}. Send the run again, a little later"),
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def _log(run: QueuedRun, event: dict[str, Any], now: float) -> None:
    kind = event["type"]
    outcome = "cancelled" if kind == "task_cancelled" else "ok"
    if kind == "task_error":
        report: dict[str, Any] = event.get("error") or {}
        outcome = f"error {report.get('kind', '')}"

    began = run.started_at or run.submitted_at or now
    logger.info(
        "run %s task %r from %s: %s, %.3f s queued, %.3f s run, %d bytes in, %d bytes out",
        run.run_id, run.task_id, run.peer, _UNPRINTABLE.sub("?", outcome), began - run.arrived_at, now - began,
        run.size_in, bulk(event),
    )  # fmt: skip
