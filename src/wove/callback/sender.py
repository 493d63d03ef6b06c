"""The worker's side of the way back: a thread that posts the events of runs to the receiver.

Each process has one for each receiver that its runs report to. It keeps one connection open as long as there are such
runs: the receiver learns from its end that this process has died. Whatever comes up while a request is under way goes
in the next one, whichever run it is of.
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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from wove.callback.client import RETRY
from wove.callback.delivery_queue import DeliveryQueue
from wove.callback.link import Destination, Link, close_socket, exchange, request, socket_pair
from wove.callback.reporter import RunReporter
from wove.callback.run_events import Event, EventBatch, RunEvents
from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool
from wove.net.http1 import ProtocolError

__all__ = ["Sender", "close", "sender_for"]

_log = logging.getLogger("wove.worker")

REPLY_SECONDS: Final = 10.0
"""A receiver that says nothing for so long to a small request is asked again, over a new connection."""

STALL_SECONDS: Final = 30.0
"""As `REPLY_SECONDS`, for a large one; and it may be so long again and again, while the receiver answers heartbeats: it
takes only so many large bodies at a time."""

MAX_STALLS: Final = 20
"""So often in one request."""

IMPATIENCE_SECONDS: Final = 1.0
"""The end of a run does not wait longer than this behind a heartbeat that is not answered."""

IDLE_SECONDS: Final = 30.0
"""How long thread and connection outlive the last run, in seconds: the next run is often close behind."""

SOONEST_SECONDS: Final = 0.1
"""Between two attempts, however many runs end meanwhile and would like one."""

UPLOADS: Final = 4
"""Large events that are under way at a time. The receiver takes one after the other."""

_now = time.monotonic
_uploads: Final = ThreadPool(UPLOADS, "wove-upload")


class Sender:
    """The way to one receiver.

    `open`, `put` and `close` may be called from any thread; everything else happens in the sender's own, which is there
    while there is something to do. It is made by `sender_for`.

    Args:
        destination: Any at the receiver's origin.
        worker: The name of this process.
    """

    def __init__(self, destination: Destination, worker: str) -> None:
        self._destination = destination
        self._worker = worker
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._asleep = self._closing = False
        # The thread's own.
        self._delivery_queue = DeliveryQueue()
        self._link: Link | None = None
        self._stays = True  # the receiver has not said that it closes the connection
        self._batch: EventBatch | None = None  # what was sent, and is not yet answered
        self._failures = self._drops = 0
        self._tried_at = self._not_before = self._idle_since = 0.0

    # --- for any thread -------------------------------------------------------------------------------------

    def open(self, report: RunReporter) -> None:
        """*report* is about to have events, and they go this way. Connects, if that is not so yet."""
        report.way = self
        if self._link is None:
            self._tell(lambda: self._delivery_queue.alive.setdefault(report.run_events))

    def put(self, report: RunReporter, event: Event) -> None:
        """Send *event* of *report*, soon. Never blocks."""
        self._tell(lambda: self._take_in(report.run_events, event))

    def close(self, timeout: float) -> None:
        """End the thread as soon as it has nothing to do, waiting at most *timeout* seconds for that."""
        with self._lock:
            self._closing = True
            thread = self._thread
            self._rouse()

        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._closing = False

    def _tell(self, label: Callable[[], Any]) -> None:
        if self._pid != os.getpid():
            return  # a task has forked, and this is its child: the run is the parent's
        with self._lock:
            self._inbox.append(label)
            if self._thread is None:
                self._wake = socket_pair()
                _senders.setdefault(self._destination.origin, self)
                self._thread = threading.Thread(target=self._run, name="wove-sender", daemon=True)
                try:
                    self._thread.start()
                except (
                    RuntimeError
                ):  # the interpreter is ending, or the system has no more threads to give
                    self._inbox.pop()
                    self._hang_up()
                    raise
            else:
                self._rouse()

    def _rouse(self) -> None:
        if self._asleep and self._wake is not None:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                self._wake[1].send(b"!")

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._idle_since = _now()

        try:
            while self._turn():
                pass
        except BaseException as error:
            _log.exception("the sender of events failed")
            with self._lock:
                self._hang_up()
            self._delivery_queue.end_all(error)

    def _turn(self) -> bool:
        now = _now()
        while self._inbox:
            self._inbox.popleft()()
        self._delivery_queue.ripen(now)
        for run_events in self._delivery_queue.large:
            self._upload(run_events, now)
        self._delivery_queue.large.clear()

        if self._batch is not None:
            self._mind_unanswered(self._batch, now)
        elif now >= self._not_before:
            if self._link is None and self._wants_link():
                self._connect()
                return True  # others may have come meanwhile, and go along
            if self._link is not None and (batch := self._delivery_queue.pack(now)) is not None:
                self._post(self._link, batch, now)

        return self._wait(now)

    def _take_in(self, run_events: RunEvents, event: Event) -> None:
        now = _now()
        if self._delivery_queue.add(run_events, event, now):
            self._not_before = min(self._not_before, max(now, self._tried_at + SOONEST_SECONDS))

    # --- the connection that is kept ------------------------------------------------------------------------

    def _wants_link(self) -> bool:
        return bool(self._delivery_queue.ready or (self._delivery_queue.alive and self._stays))

    def _connect(self) -> None:
        self._tried_at = _now()

        try:
            self._link = Link(self._destination)
        except OSError as error:
            self._failed(
                f"cannot connect to {self._destination}: {error}",
                list(self._delivery_queue.ready),
                refused=isinstance(error, ConnectionRefusedError),
            )

    def _post(self, link: Link, batch: EventBatch, now: float) -> None:
        self._tried_at = batch.sent_at = now
        self._batch = batch

        try:
            link.send(_head(batch, self._worker), batch.chunks, seconds=REPLY_SECONDS)
        except (OSError, ProtocolError) as error:
            self._broke(f"{self._destination}: {error}")
        else:
            if link.cut:
                self._read(link)

    def _mind_unanswered(self, batch: EventBatch, now: float) -> None:
        if now >= batch.sent_at + REPLY_SECONDS:
            self._broke(
                f"{self._destination} does not answer: nothing came for {REPLY_SECONDS:g} s",
                stale=False,
            )
        elif not batch.ends and now >= batch.sent_at + IMPATIENCE_SECONDS:
            for run_events in [
                run_events
                for run_events in self._delivery_queue.ready
                if run_events.end is not None
            ]:
                self._upload(run_events, now)

    def _read(self, link: Link) -> None:
        """The connection has something to say."""
        if self._batch is None:
            if not link.quiet():
                self._closed_while_idle(link)
            return

        try:
            self._batch.answer += link.receive()
        except (OSError, ProtocolError) as error:
            self._broke(f"{self._destination} closed the connection: {error}")
            return

        head = link.parser.head
        if link.parser.complete and head is not None:
            batch, self._batch = self._batch, None
            self._failures = 0
            self._stays = head.persistent
            self._delivery_queue.answered(batch, head, b"".join(batch.answer), _now(), kept=True)
            if link.cut or not link.parser.reusable:
                self._drop()

    def _broke(self, trouble: str, *, stale: bool = True) -> None:
        """The connection failed in the middle of a request.

        Args:
            trouble: How.
            stale: That may be because it was closed just when it was used again.
        """
        assert self._batch is not None and self._link is not None
        batch, self._batch = self._batch, None
        # Which says nothing of the receiver. To send twice what may have arrived does no harm: it counts once.
        stale = (
            stale and self._link.answers > 0 and not self._link.parser.begun and not self._failures
        )
        self._delivery_queue.unsent(batch)
        self._drop()
        if stale:
            self._failures = 1
        else:
            self._failed(trouble, [run_events for run_events, _ in batch.items])

    def _closed_while_idle(self, link: Link) -> None:
        young = link.answers == 0 or _now() - self._tried_at < IMPATIENCE_SECONDS
        self._drops = self._drops + 1 if young else 1
        self._drop()
        if (
            self._drops > 1
        ):  # the first time at once; a peer that does this always is not to be asked all the time
            self._not_before = _now() + RETRY.delay(self._drops - 1)

    def _drop(self) -> None:
        """Close the connection. The receiver takes that for the end of this process, unless it hears more soon."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._delivery_queue.unannounced(beat=self._stays)

    def _failed(
        self, trouble: str, concerned: Sequence[RunEvents], *, refused: bool = False
    ) -> None:
        now = _now()
        self._failures += 1
        self._not_before = now + RETRY.delay(self._failures)
        (_log.info if self._failures == 1 else _log.debug)("%s; trying again", trouble)
        self._delivery_queue.missed(concerned, trouble, now, refused=refused)

    # --- connections of their own ---------------------------------------------------------------------------

    def _upload(self, run_events: RunEvents, now: float) -> None:
        batch = self._delivery_queue.pack_end(run_events, now)
        if batch is not None:
            _uploads.submit(self._carry, batch)

    def _carry(self, batch: EventBatch) -> None:
        # In a thread for it.
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
            self._tell(partial(self._lost, batch, error))
        else:
            self._tell(lambda: self._delivery_queue.answered(batch, head, body, _now(), kept=False))

    def _patience(self) -> Callable[[], bool]:
        """Whether to wait on when nothing moves: for the upload that is about to begin, in its thread."""
        stalls = itertools.count(1)
        return lambda: not self._failures and next(stalls) < MAX_STALLS

    def _lost(self, batch: EventBatch, error: Exception) -> None:
        if isinstance(error, (OSError, ProtocolError)):
            self._delivery_queue.again(
                batch,
                f"{self._destination}: {error}",
                _now(),
                refused=isinstance(error, ConnectionRefusedError),
            )
        else:
            self._delivery_queue.apart(batch, f"it cannot be sent: {error}")

    # --- waiting --------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> bool:
        """Until there is something to do. False if there will not be, and the thread is to end."""
        idle = not self._delivery_queue.alive and self._batch is None
        if not idle:
            self._idle_since = now
        poll = select.poll()

        with self._lock:
            if self._inbox:
                return True
            if idle and (
                self._closing or self._link is None or now >= self._idle_since + IDLE_SECONDS
            ):
                self._hang_up()
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
        """When there is something to do, if nothing comes."""
        moments = [self._idle_since + IDLE_SECONDS]
        if (due := self._delivery_queue.next_due()) is not None:
            moments.append(due)
        if self._batch is not None:
            moments.append(self._batch.sent_at + REPLY_SECONDS)
            if (impatient := self._batch.sent_at + IMPATIENCE_SECONDS) > now:
                moments.append(impatient)
        elif self._delivery_queue.ready or (self._link is None and self._wants_link()):
            moments.append(self._not_before)

        return min(moments)

    def _hang_up(self) -> None:
        # Called with the lock held.
        self._thread = self._batch = None
        if (
            _senders.get(self._destination.origin) is self
        ):  # a worker may see many receivers come and go
            del _senders[self._destination.origin]

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
    common = (("Content-Type", "application/json"), ("Content-Length", str(size)))
    return request(destination, "POST", (*common, ("X-Wove-Worker", worker), *signed.items()))


# --- the senders of this process --------------------------------------------------------------------------

_senders: dict[tuple[bool, str, int], Sender] = {}
_senders_lock = threading.Lock()
_worker = ""


def sender_for(destination: Destination) -> Sender:
    """The sender of this process to the receiver at *destination*."""
    global _worker

    with _senders_lock:
        sender = _senders.get(destination.origin)
        if sender is None:
            if not _worker:
                _worker = f"{socket.gethostname()}/{os.getpid()}/{os.urandom(8).hex()}"
            sender = _senders[destination.origin] = Sender(destination, _worker)
        return sender


def close(timeout: float) -> None:
    """End the threads of senders that have nothing to do, waiting at most *timeout* seconds. They start again."""
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
    _uploads.reset_after_fork()


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)
