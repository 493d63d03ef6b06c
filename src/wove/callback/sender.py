"""A worker's thread that posts the events of runs to their receiver.

Each process has one sender for each receiver that its runs report to. The sender keeps one connection open as long as
there are such runs: the receiver learns from its end that this process has died. Events that come up while a request
is under way go in the next one, whichever run they are of.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from wove.callback.client import RETRY
from wove.callback.delivery_queue import DeliveryQueue
from wove.callback.event_batch import EventBatch
from wove.callback.link import Destination, Link, close_socket, exchange, request, socket_pair
from wove.callback.reporter import RunReporter
from wove.callback.run_events import Event, RunEvents, RunState
from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool
from wove.net.http1 import ProtocolError
from wove.protocol.frames import TERMINAL
from wove.protocol.names import EVENT_METHOD, JSON_TYPE, WORKER_HEADER

__all__ = ["Sender", "close", "sender_for"]

_log = logging.getLogger("wove.worker")

REPLY_SECONDS: Final = 10.0
"""How long the receiver may take to answer a small request. Then it is asked again, over a new connection."""

STALL_SECONDS: Final = 30.0
"""How long an upload may make no progress. It may stall up to `MAX_STALLS` times while the receiver answers
heartbeats, as the receiver reads only a few large bodies at a time."""

MAX_STALLS: Final = 20
"""Maximum number of stalls in one upload."""

IMPATIENCE_SECONDS: Final = 1.0
"""How long the end of a run waits behind a heartbeat that is not answered. Then it goes over a connection of its
own."""

IDLE_SECONDS: Final = 30.0
"""How long thread and connection outlive the last run: the next run is often close behind."""

MIN_RETRY_SECONDS: Final = 0.1
"""Minimum time between two attempts, however many runs end meanwhile and ask for one."""

MAX_UPLOADS: Final = 4
"""Maximum number of uploads at a time. The receiver takes one large body after the other."""

_now = time.monotonic
_uploads: Final = ThreadPool(MAX_UPLOADS, "wove-upload")


class Sender:
    """Posts events to one receiver.

    `open`, `ask`, `put` and `close` may be called from any thread; everything else happens in the sender's own thread,
    which exists while there is something to do. `sender_for` makes senders.

    Args:
        destination: Any at the receiver's origin.
        worker: The name of this process.
    """

    def __init__(self, destination: Destination, worker: str) -> None:
        self._destination = destination
        self._worker = worker
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()  # to be made by the thread
        self._thread: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._asleep = self._closing = False
        # The thread's own.
        self._queue = DeliveryQueue()
        self._link: Link | None = None
        self._batch: EventBatch | None = None  # sent over the link, and not answered
        self._persistent = True  # the receiver keeps the connection open after a response
        self._failures = 0  # attempts since the last response
        self._early_closes = 0  # connections in a row that were closed soon after their last use
        self._tried_at = self._not_before = self._idle_since = 0.0

    # --- for any thread -------------------------------------------------------------------------------------

    def open(self, report: RunReporter) -> None:
        """Prepare for events of *report*: connect, unless there is a connection."""
        report.sender = self
        if self._link is None:
            self._post(lambda: self._queue.register(report.run_events))

    def ask(self, report: RunReporter) -> None:
        """Ask soon whether the run of *report* is awaited. Never blocks."""
        self._post(lambda: self._queue.ask(report.run_events, _now()))

    def put(self, report: RunReporter, event: Event) -> None:
        """Send *event* of *report* soon. Never blocks."""
        self._post(lambda: self._add(report.run_events, event))

    def close(self, timeout: float) -> None:
        """End the thread as soon as it has nothing to do, and wait at most *timeout* seconds for that."""
        with self._lock:
            self._closing = True
            thread = self._thread
            self._rouse()

        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._closing = False

    def _post(self, call: Callable[[], Any]) -> None:
        """Have *call* made by the thread, which is started if there is none."""
        if self._pid != os.getpid():
            return  # a task has forked, and this is its child: the run is the parent's

        with self._lock:
            self._calls.append(call)
            if self._thread is not None:
                self._rouse()
                return
            self._wake = socket_pair()
            _senders.setdefault(self._destination.origin, self)
            # Not from a pool: it serves a connection while anything runs, and `close` joins it.
            self._thread = threading.Thread(target=self._run, name="wove-sender", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending, or the system has no more threads
                self._calls.pop()
                self._release()
                raise

    def _rouse(self) -> None:
        # Called with the lock held.
        if self._asleep and self._wake is not None:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                self._wake[1].send(b"!")

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._idle_since = _now()

        try:
            while self._step():
                pass
        except BaseException as error:
            _log.exception("the sender of events failed")
            with self._lock:
                self._release()
            self._queue.settle_all(error)

    def _step(self) -> bool:
        """Do what there is to do, then wait. Return False if the thread is to end."""
        now = _now()
        while self._calls:
            self._calls.popleft()()
        self._queue.run_timers(now)
        self._start_uploads(self._queue.uploads, now)
        self._queue.uploads.clear()

        if self._batch is not None:
            self._check_reply(self._batch, now)
        elif now >= self._not_before:
            if self._link is None and self._needs_link():
                self._connect()
                return True  # other events may have come meanwhile, and join the request
            if self._link is not None and (batch := self._queue.next_batch(now)) is not None:
                self._send(self._link, batch, now)

        return self._wait(now)

    def _add(self, run_events: RunEvents, event: Event) -> None:
        now = _now()
        self._queue.add(run_events, event, now)
        if event["type"] in TERMINAL:  # worth an attempt before the pause is over
            soonest = max(now, self._tried_at + MIN_RETRY_SECONDS)
            self._not_before = min(self._not_before, soonest)

    # --- the connection that is kept ------------------------------------------------------------------------

    def _needs_link(self) -> bool:
        return bool(self._queue.ready or (self._queue.alive and self._persistent))

    def _connect(self) -> None:
        self._tried_at = _now()

        try:
            self._link = Link(self._destination)
        except OSError as error:
            self._on_failure(
                f"cannot connect to {self._destination}: {error}",
                self._queue.ready,
                refused=isinstance(error, ConnectionRefusedError),
            )

    def _send(self, link: Link, batch: EventBatch, now: float) -> None:
        self._tried_at = batch.sent_at = now
        self._batch = batch

        try:
            link.send(_head(batch, self._worker), batch.chunks, seconds=REPLY_SECONDS)
        except (OSError, ProtocolError) as error:
            self._on_link_failure(f"{self._destination}: {error}")
        else:
            if link.cut:
                self._read(link)

    def _check_reply(self, batch: EventBatch, now: float) -> None:
        """Give up the connection, or pass it by, if the receiver takes too long to answer *batch*."""
        if now >= batch.sent_at + REPLY_SECONDS:
            self._on_link_failure(
                f"{self._destination} does not answer: nothing came for {REPLY_SECONDS:g} s",
                perhaps_stale=False,
            )
        elif not batch.has_end and now >= batch.sent_at + IMPATIENCE_SECONDS:
            ended = [each for each in self._queue.ready if each.state is RunState.ENDED]
            self._start_uploads(ended, now)

    def _read(self, link: Link) -> None:
        """Read from the connection, which is readable."""
        if self._batch is None:
            if not link.quiet():
                self._on_idle_close(link)
            return

        try:
            self._batch.response_body += link.receive()
        except (OSError, ProtocolError) as error:
            self._on_link_failure(f"{self._destination} closed the connection: {error}")
            return

        head = link.parser.head
        if link.parser.complete and head is not None:
            batch, self._batch = self._batch, None
            self._failures = 0
            self._persistent = head.persistent
            self._queue.on_response(batch, head, b"".join(batch.response_body), _now(), kept=True)
            if link.cut or not link.parser.reusable:
                self._drop_link()

    def _on_link_failure(self, trouble: str, *, perhaps_stale: bool = True) -> None:
        """The connection failed in the middle of a request.

        Args:
            trouble: How.
            perhaps_stale: Whether the receiver may have closed it just when it was used again.
        """
        assert self._batch is not None and self._link is not None
        batch, self._batch = self._batch, None
        link = self._link
        # A stale connection says nothing of the receiver, which may be asked again at once.
        stale = perhaps_stale and link.answers > 0 and not link.parser.begun and not self._failures

        self._queue.put_back(batch)  # events that arrive twice do no harm: they count once
        self._drop_link()
        if stale:
            self._failures = 1
        else:
            self._on_failure(trouble, [run_events for run_events, _ in batch.items])

    def _on_idle_close(self, link: Link) -> None:
        """The receiver closed the connection between two requests."""
        early = link.answers == 0 or _now() - self._tried_at < IMPATIENCE_SECONDS
        self._early_closes = self._early_closes + 1 if early else 1
        self._drop_link()
        if (
            self._early_closes > 1
        ):  # a receiver that does this always is not to be asked all the time
            self._not_before = _now() + RETRY.delay(self._early_closes - 1)

    def _drop_link(self) -> None:
        """Close the connection. The receiver takes that for the end of this process, unless it hears more soon."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._queue.on_connection_lost(beat=self._persistent)

    def _on_failure(
        self, trouble: str, concerned: Iterable[RunEvents], *, refused: bool = False
    ) -> None:
        """The receiver could not be asked, on behalf of the runs in *concerned*."""
        now = _now()
        self._failures += 1
        self._not_before = now + RETRY.delay(self._failures)
        (_log.info if self._failures == 1 else _log.debug)("%s; trying again", trouble)
        self._queue.add_failures(concerned, trouble, now, refused=refused)

    # --- uploads: connections of their own ------------------------------------------------------------------

    def _start_uploads(self, runs: Iterable[RunEvents], now: float) -> None:
        for run_events in runs:
            if (batch := self._queue.end_batch(run_events, now)) is not None:
                _uploads.submit(self._upload, batch)

    def _upload(self, batch: EventBatch) -> None:
        # In a thread of the pool.
        try:
            if not batch.chunks:
                batch.encode()
            head, body = exchange(
                batch.destination,
                _head(batch, self._worker),
                batch.chunks,
                stall_seconds=STALL_SECONDS,
                patience=self._patience(),
            )
        except Exception as error:
            self._post(partial(self._on_upload_failure, batch, error))
        else:
            self._post(lambda: self._queue.on_response(batch, head, body, _now(), kept=False))

    def _patience(self) -> Callable[[], bool]:
        """Return a function that an upload calls when it stalls: whether to wait on."""
        stalls = itertools.count(1)
        return lambda: not self._failures and next(stalls) < MAX_STALLS

    def _on_upload_failure(self, batch: EventBatch, error: Exception) -> None:
        if isinstance(error, (OSError, ProtocolError)):
            self._queue.retry_later(
                batch,
                f"{self._destination}: {error}",
                _now(),
                refused=isinstance(error, ConnectionRefusedError),
            )
        else:
            self._queue.split(batch, f"it cannot be sent: {error}")

    # --- waiting --------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> bool:
        """Wait until there is something to do. Return False if there will not be, and the thread is to end."""
        idle = not self._queue.alive and self._batch is None
        if not idle:
            self._idle_since = now
        poll = select.poll()

        with self._lock:
            if self._calls:
                return True
            if idle and (
                self._closing or self._link is None or now >= self._idle_since + IDLE_SECONDS
            ):
                self._release()
                return False
            self._asleep = True
            assert self._wake is not None
            poll.register(self._wake[0], select.POLLIN)

        if self._link is not None:
            poll.register(self._link, select.POLLIN)
        events = dict(poll.poll(max(0.0, self._next(now) - now) * 1000))
        self._asleep = False
        if self._wake[0].fileno() in events:
            with contextlib.suppress(BlockingIOError):
                self._wake[0].recv(4096)

        if self._link is not None and self._link.fileno() in events:
            self._read(self._link)
        return True

    def _next(self, now: float) -> float:
        """Return when there is something to do, if neither a call nor a response comes."""
        moments = [self._idle_since + IDLE_SECONDS]
        if (due := self._queue.next_timer()) is not None:
            moments.append(due)
        if self._batch is not None:
            moments.append(self._batch.sent_at + REPLY_SECONDS)
            if (impatient := self._batch.sent_at + IMPATIENCE_SECONDS) > now:
                moments.append(impatient)
        elif self._queue.ready or (self._link is None and self._needs_link()):
            moments.append(self._not_before)

        return min(moments)

    def _release(self) -> None:
        """Close everything, at the end of the thread. Called with the lock held."""
        self._thread = self._batch = None
        if _senders.get(self._destination.origin) is self:
            del _senders[self._destination.origin]  # a worker may see many receivers come and go

        if self._link is not None:
            self._link.close()
            self._link = None

        for each in self._wake or ():
            close_socket(each)
        self._wake = None


def _head(batch: EventBatch, worker: str) -> bytes:
    destination = batch.destination
    signed: dict[str, str] = {}
    if batch.security.authenticates:
        signed = batch.security.headers_for(
            transport="http", target=destination.target, body=batch.chunks
        )

    size = sum(map(len, batch.chunks))
    common = (("Content-Type", JSON_TYPE), ("Content-Length", str(size)))
    return request(destination, EVENT_METHOD, (*common, (WORKER_HEADER, worker), *signed.items()))


# --- the senders of this process --------------------------------------------------------------------------

_senders: dict[tuple[bool, str, int], Sender] = {}
_senders_lock = threading.Lock()
_worker = ""


def sender_for(destination: Destination) -> Sender:
    """Return the sender of this process to the receiver at *destination*."""
    global _worker

    with _senders_lock:
        sender = _senders.get(destination.origin)
        if sender is None:
            if not _worker:
                _worker = f"{socket.gethostname()}/{os.getpid()}/{os.urandom(8).hex()}"
            sender = _senders[destination.origin] = Sender(destination, _worker)
        return sender


def close(timeout: float) -> None:
    """End the threads of senders that have nothing to do, waiting at most *timeout* seconds for each.

    They start again when they are needed.
    """
    with _senders_lock:
        senders = list(_senders.values())
    for sender in senders:
        sender.close(timeout)
    _uploads.close(timeout)


def reset_after_fork() -> None:
    global _senders_lock, _worker
    _senders.clear()
    _senders_lock = threading.Lock()
    _worker = ""


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)
