"""A gRPC channel over its whole life: opened when it is needed, watched, and closed before a fork.

gRPC can hold calls back until there is a connection (``wait_for_ready``), but does not say whether a call has left,
and a held call may wait for ever. So calls wait here, and are handed to gRPC when the channel is ready; from then on
each ends with a status.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from wove.concurrency import forks
from wove.concurrency.mailbox import post_to
from wove.errors import DeliveryError, WorkerLostError

if TYPE_CHECKING:
    import grpc
    import grpc.aio

__all__ = ["ManagedChannel", "Metadata", "load", "status_text"]

logger = logging.getLogger("wove")

Metadata: TypeAlias = Sequence[tuple[str, "str | bytes"]]

NUDGE_SECONDS: Final = 15.0
"""How long a connection may be silent while calls are under way, until something is sent over it."""

NUDGE_METHOD: Final = "/wove.network_executor.Liveness/Nudge"
"""A method that no service has: servers answer UNIMPLEMENTED without asking the application, which may be busy."""

WHY_SECONDS: Final = 5.0
FIRST_SECONDS: Final = 20.0
"""A first connection comes about or fails sooner, by gRPC's own time limit."""

SETTLE_SECONDS: Final = 0.02
SUSPECT_SECONDS: Final = 0.05
"""How long calls are held back after one was lost. Its connection may be about to end, and gRPC counts it as ready
until then: another call would be lost with it."""

FORK_SECONDS: Final = 1.0
"""How long a fork waits for idle channels to be closed."""


class ManagedChannel:
    """The channel to one service, for one loop.

    A host that vanishes (a cable, a firewall, a crash) is noticed by the kernel: data that is not acknowledged within
    TCP_USER_TIMEOUT ends the connection (gRFC A18; gRPC sets it where keepalive is
    configured). So that there is something to acknowledge, a silent connection with calls under way gets a tiny
    call now and then. Its answer does not matter: a service whose event loop is blocked is busy, not dead. gRPC's
    own keepalive pings must not come more often than every five minutes, or default servers hang up on them
    (GOAWAY "too_many_pings"; github.com/grpc/grpc, doc/keepalive.md).

    Args:
        make: Returns a new channel.
        method: The method to call.
        label: The beginning of messages.
        max_calls: Maximum number of calls at once; others wait here.
        reconnect: Seconds for which connecting is tried again once there was a connection; ``None``: for ever.
    """

    def __init__(
        self,
        make: Callable[[], grpc.aio.Channel],
        method: str,
        *,
        label: str,
        max_calls: int,
        reconnect: float | None,
    ) -> None:
        import grpc

        self._ready_state = grpc.ChannelConnectivity.READY
        self._failure_state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        self._rpc_error = grpc.aio.AioRpcError
        self._make = make
        self._method = method
        self._label = label
        self._max_calls = max_calls
        self._reconnect = reconnect
        self._down_since = math.inf
        self._loop = asyncio.get_running_loop()
        self._channel: grpc.aio.Channel | None = None
        self._send: Any = _no_channel
        self._watcher: asyncio.Task[None] | None = None
        self._diagnosis: asyncio.Task[None] | None = None
        self._queue: dict[asyncio.Future[None], float] = {}
        self._under_way = 0
        self._had_connection = False
        self._heard = 0.0
        self._nudging: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._suspicion: asyncio.TimerHandle | None = None
        self._nudge: Any = None
        self._closed = False
        _channels.add(self)

    # ------------------------------------------------------------------ calls

    async def acquire(self, *, urgent: bool = False) -> None:
        """Wait until a call can be sent. To be followed by `release`.

        Args:
            urgent: Whether it may go beyond the bound of calls.

        Raises:
            WorkerLostError: There will be no connection.
        """
        if self._closed:
            raise WorkerLostError("it was stopped")
        channel = self._channel or self._open()
        ready = channel.get_state(try_to_connect=True) is self._ready_state
        if ready and self._suspicion is None and (urgent or self._under_way < self._max_calls):
            self._under_way += 1
            return

        turn: asyncio.Future[None] = self._loop.create_future()
        self._queue[turn] = self._loop.time()
        if not ready:
            self._start_patience()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()  # its turn came in the moment in which it was given up
            raise
        finally:
            self._queue.pop(turn, None)

    def send(
        self, body: bytes, metadata: Metadata, timeout: float | None
    ) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """Begin a call, after `acquire`."""
        if (
            self._channel is None
        ):  # it was let go before a fork, in the moment in which this one was let in
            self._open()

        if self._nudging is None:
            self._nudging = self._loop.call_later(NUDGE_SECONDS, self._check_silence)
        call: grpc.aio.UnaryStreamCall[bytes, bytes] = self._send(
            body, metadata=metadata, timeout=timeout
        )
        return call

    def release(self) -> None:
        """A call that was let in is over."""
        self._under_way -= 1
        self._heard = self._loop.time()
        if self._queue:
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit waiting calls, up to the maximum."""
        if self._suspicion is not None or not self._is_ready():
            return
        while self._queue and self._under_way < self._max_calls:
            turn = next(iter(self._queue))
            del self._queue[turn]
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)

    def suspect(self) -> None:
        """Hold back the next calls after a call was lost, until its connection has proved to be usable."""
        if self._suspicion is None and self._channel is not None:
            self._suspicion = self._loop.call_later(SUSPECT_SECONDS, self._trust)

    def _trust(self) -> None:
        if self._suspicion is not None:
            self._suspicion.cancel()
            self._suspicion = None
        self._admit_waiting()
        self._start_patience()

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        self._fail_queue(0.0, "it was stopped")
        _channels.discard(self)
        await self._drop()

    # ------------------------------------------------------------------ the channel

    def _open(self) -> grpc.aio.Channel:
        _refuse_after_fork(self._label)
        channel = self._channel = self._make()
        # A unary service answers such a call, too: with a stream of one message.
        self._send = channel.unary_stream(self._method)
        self._watcher = self._loop.create_task(self._watch(channel))
        return channel

    async def _drop(self) -> None:
        """Close the channel, and with it everything that gRPC runs for it."""
        for timer in (self._nudging, self._patience, self._suspicion):
            if timer is not None:
                timer.cancel()

        self._nudging = self._patience = self._suspicion = self._nudge = None
        self._send = _no_channel
        channel, self._channel = self._channel, None
        watcher, self._watcher = self._watcher, None
        diagnosis, self._diagnosis = self._diagnosis, None
        if channel is None or watcher is None:
            return
        if diagnosis is not None and diagnosis is not asyncio.current_task():
            diagnosis.cancel()
        await channel.close()
        # gRPC has one queue of completions for all loops of the process. What comes for a loop that has been
        # closed meanwhile is an error in the log of another one, perhaps the user's. So wait for what is due:
        # the watcher, whom closing wakes, and after it the calls that closing has cancelled.
        await asyncio.wait({watcher}, timeout=1.0)
        await asyncio.sleep(SETTLE_SECONDS)

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)

        while channel is self._channel:
            if state is self._ready_state:
                self._had_connection = True
                self._down_since = math.inf
                self._stop_patience()
                self._trust()  # it is a fresh one
            elif self._had_connection:
                self._down_since = min(self._down_since, self._loop.time())
                self._start_patience()
            elif state is self._failure_state and self._diagnosis is None:
                self._diagnosis = self._loop.create_task(self._give_up(channel))
            try:
                await channel.wait_for_state_change(state)
            except Exception as error:  # it is being closed; UsageError is not a RuntimeError
                logger.debug("%s: its channel is not watched any more: %s", self._label, error)
                return
            state = channel.get_state(try_to_connect=bool(self._queue))

    # ------------------------------------------------------------------ no connection

    def _start_patience(self) -> None:
        """Start the timer for the calls that wait for a connection."""
        if self._patience is not None or not self._queue or self._is_ready():
            return
        oldest = next(iter(self._queue.values()))

        if not self._had_connection:
            self._patience = self._loop.call_at(oldest + FIRST_SECONDS, self._never_heard)
        elif self._reconnect is not None:
            due = self._without_connection(oldest) + self._reconnect
            self._patience = self._loop.call_at(due, self._out_of_patience)

    def _is_ready(self) -> bool:
        return self._channel is not None and self._channel.get_state() is self._ready_state

    def _without_connection(self, since: float) -> float:
        """Return since when a call that has waited since *since* has had no connection."""
        return since if self._down_since == math.inf else max(since, self._down_since)

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _never_heard(self) -> None:
        self._patience = None
        self._fail_queue(
            FIRST_SECONDS,
            f"gRPC reports neither a connection nor a failure after {FIRST_SECONDS:g} s. If this process was forked "
            f"while its parent used grpc.aio, gRPC does not work in it: start it anew instead ('spawn', subprocess)",
        )
        self._start_patience()

    def _out_of_patience(self) -> None:
        self._patience = None
        if self._channel is not None and self._queue and self._diagnosis is None:
            self._diagnosis = self._loop.create_task(self._give_up(self._channel))

    async def _give_up(self, channel: grpc.aio.Channel) -> None:
        """Fail the calls that have waited long enough, with the reason why there is no connection."""
        try:
            why = await self._failure_reason(channel)
            if channel is not self._channel or why is None:
                return
            if self._had_connection:
                assert self._reconnect is not None
                self._fail_queue(
                    self._reconnect, f"{why} (for {self._reconnect:g} s: reconnect_timeout)"
                )
            else:
                self._fail_queue(0.0, why)
            if not self._queue and not self._under_way:
                # gRPC waits longer and longer between its attempts. The next call shall not have to.
                await self._drop()
        finally:
            if self._diagnosis is asyncio.current_task():
                self._diagnosis = None
            self._start_patience()

    async def _failure_reason(self, channel: grpc.aio.Channel) -> str | None:
        """Return why there is no connection; ``None`` if there is one."""
        if channel.get_state() is self._ready_state:
            return None
        try:
            async with asyncio.timeout(2 * WHY_SECONDS):
                await _nudge(channel, WHY_SECONDS)
        except TimeoutError:
            return "gRPC does not say why"
        except self._rpc_error as error:
            if channel.get_state() is self._ready_state:
                return None
            return status_text(error)

        return None

    def _fail_queue(self, waited: float, why: str) -> None:
        now = self._loop.time()
        for turn, since in list(self._queue.items()):
            if not turn.done() and now - self._without_connection(since) >= waited - 0.001:
                turn.set_exception(WorkerLostError(f"its service cannot be reached: {why}"))
                turn.exception()  # who waited for it may have left in the same moment

    # ------------------------------------------------------------------ silence

    def _check_silence(self) -> None:
        self._nudging = None
        if not self._under_way or self._channel is None:
            return
        now = self._loop.time()
        due = self._heard + NUDGE_SECONDS
        if due <= now:
            due = now + NUDGE_SECONDS
            self._nudge = _nudge(self._channel, NUDGE_SECONDS)

        self._nudging = self._loop.call_at(due, self._check_silence)

    # ------------------------------------------------------------------ forks

    def close_before_fork(self, done: threading.Event) -> None:
        """Close the channel before a fork, if nothing is under way. From any thread."""

        def begin() -> None:
            if self._under_way or self._queue:
                done.set()
            else:
                task = self._loop.create_task(self._drop())
                _closing_channels.add(task)
                task.add_done_callback(_closing_channels.discard)
                task.add_done_callback(lambda _: done.set())

        if not post_to(self._loop, begin):
            done.set()

    @property
    def is_open(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None


def _no_channel(*_: object, **__: object) -> Any:
    raise DeliveryError("there is no channel")


def _nudge(channel: grpc.aio.Channel, timeout: float) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(NUDGE_METHOD)
    return method(b"", timeout=timeout)


_channels: weakref.WeakSet[ManagedChannel] = weakref.WeakSet()
_closing_channels: set[asyncio.Task[None]] = set()
_broken = False
_hooked = False


def _before_fork() -> None:
    # gRPC's threads do not exist in the child, and its locks may be held there. Without an open channel there
    # are none of them (github.com/grpc/grpc, doc/fork_support.md: "forking with active channels").
    events: list[threading.Event] = []
    for channel in list(_channels):
        if channel.is_open:
            events.append(threading.Event())
            channel.close_before_fork(events[-1])
    for event in events:
        event.wait(FORK_SECONDS)


def reset_after_fork() -> None:
    global _broken
    for channel in list(_channels):
        if channel.is_open:
            _broken = True
    _channels.clear()


def _refuse_after_fork(label: str) -> None:
    if _broken:
        raise DeliveryError(
            f"{label}: gRPC cannot be used in this process: it was forked while its parent had runs under way over "
            f"gRPC, whose threads and locks do not survive that. Fork when none are, start the process anew "
            f"(multiprocessing's 'spawn', subprocess), or use executor 'http' or 'websocket'"
        )


def load(label: str) -> None:
    """Import grpc. Takes a while: not for a loop.

    Raises:
        DeliveryError: It cannot be used in this process.
    """
    global _hooked
    _refuse_after_fork(label)

    with forks.importing:
        importlib.import_module("grpc.aio")
        if not _hooked:
            # After the import of grpc, whose own hooks must find nothing under way.
            forks.before_foreign_hooks(_before_fork)
            forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
            _hooked = True


def status_text(error: grpc.aio.AioRpcError) -> str:
    """Return the status of a call, for a message: ``UNAVAILABLE: connection refused``."""
    details = " ".join((error.details() or "").split())
    text = details if len(details) <= 500 else f"{details[:500]}..."
    return f"{error.code().name}: {text}" if text else error.code().name
