"""The worker's side of the way back: posts events to the receiver, and fetches what a payload only refers to.

Each process has one thread for each receiver that its runs report to. The thread keeps one connection open as long as
there are such runs: the receiver learns from its end that this process has died. Whatever waits while a request is
under way goes in the next one, whichever run it is of.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from wove.callback.client import backoff, may_come_right, shown
from wove.callback.link import Destination, Link, close_socket, exchange, request, socket_pair
from wove.callback.outbox import Event, Outbox, Parcel
from wove.callback.report import Delivered, Report
from wove.errors import DeliveryError, SerializationError
from wove.executors.http1 import Head, ProtocolError
from wove.executors.offload import Offload
from wove.protocol import codec
from wove.protocol.frames import TERMINAL
from wove.protocol.memory import bulk
from wove.security import NetworkExecutorSecurity

__all__ = ["Sender", "close", "sender_for"]

_log = logging.getLogger("wove.worker")

REPLY_SECONDS: Final = 10.0
"""A receiver that says nothing for so long to a small request is asked again, over a new connection."""

STALL_SECONDS: Final = 60.0
"""As `REPLY_SECONDS`, for a large one: the receiver takes large bodies one after the other, and decodes them."""

IMPATIENCE_SECONDS: Final = 1.0
"""The end of a run does not wait longer than this behind a heartbeat that is not answered."""

IDLE_SECONDS: Final = 30.0
"""So long thread and connection outlive the last run: the next one is often close behind."""

SOONEST_SECONDS: Final = 0.1
"""Between two attempts, however many runs end meanwhile and would like one."""

MOST_BYTES: Final = 1024 * 1024
MOST_RUNS: Final = 1000
"""What goes in one request."""

UPLOADS: Final = 4
"""Large events that are under way at a time. The receiver takes one after the other."""

GONE: Final = "x-wove-gone"

_now = time.monotonic
_uploads: Final = Offload(UPLOADS, "wove-upload")


class Sender:
    """The way to one receiver.

    `put` may be called from any thread; everything else happens in the sender's own. It is made by `sender_for`.

    Args:
        destination: Any at the receiver's origin.
        worker: The name of this process.
    """

    def __init__(self, destination: Destination, worker: str) -> None:
        self._destination = destination
        self._worker = worker
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inbox: deque[tuple[Outbox, Event | None] | Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._asleep = self._closing = False
        # The thread's own.
        self._alive: dict[Outbox, None] = {}
        self._ready: dict[Outbox, None] = {}
        self._later: list[tuple[float, int, Outbox]] = []
        self._numbers = itertools.count()
        self._link: Link | None = None
        self._stays = True
        self._parcel: Parcel | None = None
        self._failures = self._drops = 0
        self._tried_at = self._not_before = 0.0
        self._idle_since = _now()

    # --- for any thread -------------------------------------------------------------------------------------

    def open(self, report: Report) -> None:
        """*report* is about to have events: connect, if that is not so yet."""
        report.way = self
        if self._link is None:
            self._tell((report.outbox, None))

    def put(self, report: Report, event: Event) -> None:
        """Send *event* of *report*, soon. Never blocks."""
        self._tell((report.outbox, event))

    def close(self, timeout: float) -> None:
        """End the thread as soon as it has nothing to do, waiting at most *timeout* seconds for that."""
        with self._lock:
            self._closing = True
            thread = self._thread
            self._rouse()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._closing = False

    def _tell(self, item: tuple[Outbox, Event | None] | Callable[[], None]) -> None:
        if self._pid != os.getpid():
            return  # a task has forked, and this is its child: the run is the parent's
        with self._lock:
            self._inbox.append(item)
            if self._thread is None:
                self._wake = socket_pair()
                self._thread = threading.Thread(target=self._run, name="wove-sender", daemon=True)
                self._thread.start()
            else:
                self._rouse()

    def _rouse(self) -> None:
        if self._asleep and self._wake is not None:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                self._wake[1].send(b"!")

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            _log.exception("the sender of events failed")
            self._give_all_up(error)

    def _turn(self) -> bool:
        now = _now()
        self._take_in(now)
        while self._later and self._later[0][0] <= now:
            self._ripen(heapq.heappop(self._later)[2], now)
        if self._parcel is not None:
            self._mind_unanswered(self._parcel, now)
        elif now >= self._not_before:
            if self._link is None and (self._ready or (self._alive and self._stays)):
                self._connect()
                return True  # others may have come meanwhile, and go along
            if self._link is not None and self._ready:
                self._post(self._link, now)
        return self._wait(now)

    def _take_in(self, now: float) -> None:
        while True:
            try:
                item = self._inbox.popleft()
            except IndexError:
                return
            if callable(item):
                item()
                continue
            outbox, event = item
            self._alive[outbox] = None
            if event is None:
                continue
            outbox.add(event, now)
            if event["type"] in TERMINAL:
                self._not_before = min(self._not_before, max(now, self._tried_at + SOONEST_SECONDS))
                self._ripen(outbox, now)
            elif outbox.started_due > now:
                self._at(outbox, outbox.started_due)
            else:
                self._ready[outbox] = None

    def _at(self, outbox: Outbox, moment: float) -> None:
        heapq.heappush(self._later, (moment, next(self._numbers), outbox))

    def _ripen(self, outbox: Outbox, now: float) -> None:
        """Something of *outbox* is due: an event, or giving up."""
        if outbox not in self._alive:
            return
        if outbox.end is not None and not outbox.end_is_out and outbox.attempts and now >= outbox.give_up_at:
            self._give_up(outbox)
        elif outbox.end is not None and outbox.large:
            self._upload(outbox, now)
        else:
            self._ready[outbox] = None

    # --- the connection -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._tried_at = _now()
        try:
            self._link = Link(self._destination)
        except OSError as error:
            self._failed(f"cannot connect to {self._destination}: {error}", list(self._ready))

    def _drop(self) -> None:
        """Close the connection. The receiver will take that for the end of this process, unless it hears more."""
        if self._link is not None:
            self._link.close()
            self._link = None
        for outbox in self._alive:
            if outbox.announced:
                outbox.announced = False
                if self._stays:
                    outbox.beat()
                    self._ready[outbox] = None

    def _failed(self, trouble: str, concerned: Sequence[Outbox]) -> None:
        """An attempt came to nothing, through no fault of what was to be sent."""
        now = _now()
        self._failures += 1
        self._not_before = now + backoff(self._failures)
        (_log.info if self._failures == 1 else _log.debug)("%s; trying again", trouble)
        for outbox in concerned:
            self._missed(outbox, trouble, now)

    def _missed(self, outbox: Outbox, trouble: str, now: float) -> None:
        """What *outbox* has to say did not get through."""
        if outbox.end is None:
            return
        outbox.trouble = trouble
        outbox.attempts += 1
        if now >= outbox.give_up_at:
            self._give_up(outbox)
        elif outbox.attempts == 1:
            self._at(outbox, outbox.give_up_at)

    def _closed_while_idle(self) -> None:
        assert self._link is not None
        young = self._link.answers == 0 or _now() - self._tried_at < IMPATIENCE_SECONDS
        self._drops = self._drops + 1 if young else 1
        self._drop()
        if self._drops > 1:  # the first time at once; a peer that does this always is not to be asked all the time
            self._not_before = _now() + backoff(self._drops - 1)

    # --- requests -------------------------------------------------------------------------------------------

    def _post(self, link: Link, now: float) -> None:
        parcel = self._pack(now)
        if parcel is None:
            return
        self._tried_at = parcel.sent_at = now
        self._parcel = parcel
        destination, security = _way_of(parcel)
        fields = _fields(parcel, destination, security)
        head = request(destination, "POST", (*fields, ("X-Wove-Worker", self._worker)))
        try:
            link.send(head, parcel.chunks, seconds=REPLY_SECONDS)
        except OSError as error:
            self._broke(f"{self._destination}: {error}")

    def _pack(self, now: float) -> Parcel | None:
        """What is ready, as far as it goes in one request."""
        items: list[tuple[Outbox, list[Event]]] = []
        size = 0
        first: Report | None = None
        for outbox in list(self._ready):
            report = outbox.report
            if first is not None and (outbox.alone or report.security is not first.security):
                continue
            if first is not None and report.destination != first.destination:
                continue
            del self._ready[outbox]
            events = outbox.take(now)
            if not events:
                continue
            first = report
            items.append((outbox, events))
            size += sum(map(bulk, events))
            if outbox.alone or size >= MOST_BYTES or len(items) >= MOST_RUNS:
                break
        if not items:
            return None
        parcel = Parcel(items)
        try:
            parcel.encode()
        except codec.FrameError as error:
            self._apart(parcel, f"it cannot be encoded: {error}")
            return None
        return parcel

    def _mind_unanswered(self, parcel: Parcel, now: float) -> None:
        if now >= parcel.sent_at + REPLY_SECONDS:
            self._broke(f"{self._destination} does not answer: nothing came for {REPLY_SECONDS:g} s")
        elif not parcel.ends and now >= parcel.sent_at + IMPATIENCE_SECONDS:
            for outbox in [outbox for outbox in self._ready if outbox.end is not None]:
                self._upload(outbox, now)

    def _read(self) -> None:
        """The connection has something to say."""
        assert self._link is not None
        if self._parcel is None:
            if not self._link.quiet():
                self._closed_while_idle()
            return
        try:
            body = self._link.receive()
        except (OSError, ProtocolError) as error:
            self._broke(f"{self._destination} closed the connection: {error}")
            return
        parser = self._link.parser
        if not parser.complete or parser.head is None:
            return
        parcel, self._parcel = self._parcel, None
        self._failures = 0
        self._stays = parser.head.persistent
        self._answered(parcel, parser.head, b"".join(body), over=self._link)
        if not parser.reusable:
            self._drop()

    def _broke(self, trouble: str) -> None:
        """The connection failed in the middle of a request."""
        parcel, self._parcel = self._parcel, None
        assert parcel is not None and self._link is not None
        # One that was kept may have been closed just when it was used again: that says nothing of the receiver.
        stale = self._link.answers > 0 and not self._link.parser.begun and not self._failures
        for outbox, events in parcel.items:
            outbox.put_back(events)
            self._ready[outbox] = None
        self._drop()
        if stale and _now() < parcel.sent_at + REPLY_SECONDS:
            self._failures, self._not_before = 1, 0.0
        else:
            self._failed(trouble, [outbox for outbox, _ in parcel.items])

    # --- large ones -----------------------------------------------------------------------------------------

    def _upload(self, outbox: Outbox, now: float) -> None:
        """Send what *outbox* has over a connection of its own."""
        self._ready.pop(outbox, None)
        if events := outbox.take(now):
            parcel = outbox.parcel or Parcel([(outbox, events)])
            if outbox.large:
                outbox.keep(parcel)
            _uploads.submit(self._carry, parcel)

    def _carry(self, parcel: Parcel) -> None:
        # In a thread of its own.
        destination, security = _way_of(parcel)
        answer: tuple[Head, bytes] | Exception
        try:
            if not parcel.chunks:
                parcel.encode()
            head = request(destination, "POST", _fields(parcel, destination, security))
            answer = exchange(destination, head, parcel.chunks, stall_seconds=STALL_SECONDS)
        except Exception as error:
            answer = error
        self._tell(lambda: self._carried(parcel, answer))

    def _carried(self, parcel: Parcel, answer: tuple[Head, bytes] | Exception) -> None:
        if not isinstance(answer, Exception):
            self._answered(parcel, *answer, over=None)
        elif isinstance(answer, (OSError, ProtocolError)):
            self._again(parcel, f"{self._destination}: {answer}")
        else:
            self._apart(parcel, f"it cannot be sent: {answer!r}")

    # --- answers --------------------------------------------------------------------------------------------

    def _answered(self, parcel: Parcel, head: Head, body: bytes, *, over: Link | None) -> None:
        status = head.status
        if 200 <= status < 300 or status == 410:
            gone = set((head.get(GONE) or "").replace(",", " ").split())
            for outbox, events in parcel.items:
                if status == 410 or outbox.report.run_id in gone:
                    self._gone(outbox, events)
                else:
                    self._taken(outbox, events, announced=over is not None)
            return
        trouble = shown(self._destination, head, body)
        if may_come_right(status):
            self._again(parcel, trouble)
        elif len(parcel.items) > 1:
            self._apart(parcel, trouble)
        else:
            ((outbox, events),) = parcel.items
            self._refused(outbox, events, status, trouble)

    def _apart(self, parcel: Parcel, trouble: str) -> None:
        """Something in the request is not right: each run's events are to be sent by themselves."""
        for outbox, events in parcel.items:
            if len(parcel.items) == 1:
                self._end(outbox, Delivered(error=DeliveryError(f"{_what(outbox)} is lost: {trouble}")))
            else:
                outbox.alone = True
                outbox.put_back(events)
                self._ready[outbox] = None

    def _taken(self, outbox: Outbox, events: Sequence[Event], *, announced: bool) -> None:
        outbox.alone = False
        if _has_end(events):
            self._end(outbox, Delivered())
        elif announced:
            outbox.announced = True

    def _gone(self, outbox: Outbox, events: Sequence[Event]) -> None:
        """Nobody waits for the run."""
        if _has_end(events):
            _log.info("%s is dropped: nobody waits for it any more", _what(outbox))
            self._end(outbox, Delivered(gone=True))
        elif not outbox.quiet:
            outbox.hush()
            if not outbox.report.detached:
                _log.info("nobody waits for run %s of task %r any more", outbox.report.run_id, outbox.report.task)
                outbox.report.cancel()

    def _again(self, parcel: Parcel, trouble: str) -> None:
        """The request is to be sent again, a little later."""
        now = _now()
        _log.info("%s; trying again", trouble)
        for outbox, events in parcel.items:
            outbox.put_back(events)
            self._missed(outbox, trouble, now)
            outbox.not_before = now + backoff(outbox.attempts)
            self._at(outbox, outbox.not_before)

    def _refused(self, outbox: Outbox, events: Sequence[Event], status: int, trouble: str) -> None:
        if not _has_end(events):
            _log.warning("%s; run %s goes on", trouble, outbox.report.run_id)
            outbox.hush()
        elif status == 413 and not outbox.shortened:
            _log.error("%s", trouble)
            outbox.replace(_too_large(outbox))
            self._ready[outbox] = None
        else:
            self._end(outbox, Delivered(error=DeliveryError(f"{_what(outbox)} is lost: {trouble}")))

    def _give_up(self, outbox: Outbox) -> None:
        seconds = outbox.report.retry_seconds
        text = f"{_what(outbox)} could not be reported within {seconds:g} s: {outbox.trouble}"
        self._end(outbox, Delivered(error=DeliveryError(text)))

    def _end(self, outbox: Outbox, delivered: Delivered) -> None:
        if delivered.error is not None:
            _log.error("%s", delivered.error)
        self._alive.pop(outbox, None)
        self._ready.pop(outbox, None)
        outbox.forget()
        self._idle_since = _now()
        outbox.report.settle(delivered)

    def _give_all_up(self, error: BaseException) -> None:
        with self._lock:
            self._thread = None
            self._hang_up()
        self._parcel = None
        for outbox in list(self._alive):
            self._end(outbox, Delivered(error=DeliveryError(f"{_what(outbox)} is lost: the sender failed: {error!r}")))

    # --- waiting --------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> bool:
        """Until there is something to do. False if there will not be, and the thread is to end."""
        until = self._idle_since + IDLE_SECONDS
        if self._later:
            until = self._later[0][0] if self._alive else min(until, self._later[0][0])
        elif self._alive:
            until = now + IDLE_SECONDS
        if self._parcel is not None:
            impatient = self._parcel.sent_at + IMPATIENCE_SECONDS
            until = min(until, self._parcel.sent_at + REPLY_SECONDS, impatient if impatient > now else until)
        elif self._ready or (self._alive and self._link is None and self._stays):
            until = min(until, max(now, self._not_before))
        poll = select.poll()
        with self._lock:
            if self._inbox:
                return True
            idle = not self._alive and self._parcel is None
            if idle and (self._closing or now >= self._idle_since + IDLE_SECONDS):
                self._thread = None
                self._hang_up()
                return False
            self._asleep = True
            assert self._wake is not None
            poll.register(self._wake[0], select.POLLIN)
        if self._link is not None:
            poll.register(self._link, select.POLLIN)
        woken = dict(poll.poll(max(0.0, until - now) * 1000))
        self._asleep = False
        if self._wake[0].fileno() in woken:
            with contextlib.suppress(BlockingIOError):
                self._wake[0].recv(4096)
        if self._link is not None and self._link.fileno() in woken:
            self._read()
        return True

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        for each in self._wake or ():
            close_socket(each)
        self._wake = None
        self._later.clear()


# --- the pieces of a request ------------------------------------------------------------------------------


def _way_of(parcel: Parcel) -> tuple[Destination, NetworkExecutorSecurity]:
    report = parcel.items[0][0].report
    return report.destination, report.security


def _fields(parcel: Parcel, destination: Destination, security: NetworkExecutorSecurity) -> tuple[tuple[str, str], ...]:
    signed = security.headers_for(transport="http", target=destination.target, body=parcel.chunks)
    return (
        ("Content-Type", "application/json"),
        ("Content-Length", str(sum(map(len, parcel.chunks)))),
        *signed.items(),
    )


def _has_end(events: Sequence[Event]) -> bool:
    return any(event["type"] in TERMINAL for event in events)


def _what(outbox: Outbox) -> str:
    return f"the end of run {outbox.report.run_id} of task {outbox.report.task!r}"


def _too_large(outbox: Outbox) -> Event:
    error = SerializationError(
        f"what task {outbox.report.task!r} has to report is pickled {outbox.size} bytes, more than the receiver takes "
        "in one message (executor_config 'max_message_bytes'). Have the task store it, and return where it is"
    )
    return outbox.report.failure(error, source="config", retryable=False)


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


def _renew() -> None:
    global _senders_lock, _worker
    _senders.clear()
    _senders_lock = threading.Lock()
    _worker = ""
    _uploads.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
