"""One connection to the receiver: requests one after the other, within limits of time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from wove.callback.body import Body
from wove.callback.liveness import ConnectionEnd, WorkerConnection
from wove.callback.replies import Refusal, Reply, bulk_head
from wove.concurrency import forks, thread_pool
from wove.concurrency.deadline import Deadline
from wove.concurrency.mailbox import post_to
from wove.net.http1 import Request, RequestError, RequestParser, TooLargeError
from wove.net.keepalive import UNACKNOWLEDGED_SECONDS, keep_alive
from wove.protocol.limits import INLINE_BYTES

if TYPE_CHECKING:
    from wove.callback.receiver import Receiver
    from wove.callback.routes import AuthorizedRequest
    from wove.concurrency.limiter import CapacityLimiter

__all__ = ["SMALL_BYTES", "Connection"]

HEAD_SECONDS: Final = 10.0
"""How long a head may take from its first byte on; the first one of a connection, from the connecting on."""

IDLE_SECONDS: Final = 75.0
"""How long a connection is kept without a request, unless its worker has runs."""

BODY_SECONDS: Final = 30.0
"""How long a body may pause, and how long it may take as a whole beyond the time that `MIN_BYTES_PER_SECOND` gives it:
other bodies may wait for the memory that it holds."""

MIN_BYTES_PER_SECOND: Final = 4096
"""Minimum rate at which a body may arrive."""

WRITE_SECONDS: Final = 60.0
"""How long a client may stop reading before the connection is aborted."""

LINGER_SECONDS: Final = 2.0
"""How long the rest of a request is read and dropped after a refusal: closing at once would reset the connection, and
the refusal could be lost (RFC 9112, 9.6)."""

SMALL_BYTES: Final = INLINE_BYTES
"""Maximum size of a small body: it does not wait for large ones, and is read to its end if it is refused."""

PIECE_BYTES: Final = 256 * 1024
"""Size of the pieces in which a large response is written."""

BURST_BYTES: Final = 1024 * 1024
"""How much of a large response is written before other connections have their turn."""

MAX_STEPS: Final = 128
"""How many heads and bodies of one connection are handled before other connections have their turn."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _State(enum.Enum):
    """The state of a connection.

    ========  ==============================================  ======================
    from      when                                            to
    ========  ==============================================  ======================
    `HEAD`    a head is authorized, and its body is large     `WAIT`, then `BODY`
    `HEAD`    a head is authorized                            `BODY`
    `HEAD`    a head is refused, and its body is small        `SKIP`
    `BODY`    a large body has arrived                        `WORK`
    `BODY`    a small body has arrived and was answered       `HEAD`
    `BODY`    the request fetches a claim                     `SEND`
    `SKIP`    the body has arrived                            `HEAD`
    `WORK`    the request is answered                         `HEAD`
    `SEND`    the claim is written                            `HEAD`
    any       the connection is not to be kept                `LINGER`
    ========  ==============================================  ======================
    """

    HEAD = enum.auto()
    """Between two requests, or in a head."""
    WAIT = enum.auto()
    """A body waits for memory."""
    BODY = enum.auto()
    """A body arrives."""
    SKIP = enum.auto()
    """A body that was refused arrives, and is dropped."""
    WORK = enum.auto()
    """A large body is verified and decoded in a thread."""
    SEND = enum.auto()
    """A claim is sent."""
    LINGER = enum.auto()
    """The last response is written, and what still arrives is dropped."""


_READS: Final = frozenset({_State.HEAD, _State.BODY, _State.SKIP, _State.LINGER})


class Connection(asyncio.Protocol):
    """A connection to *receiver*. It handles one request at a time; the next one waits in the kernel's buffers.

    Attributes:
        recognized: Whether a request has been authorized: the connection is not a stranger's.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.recognized = False
        self._receiver = receiver
        self._loop = receiver.loop
        self._worker = WorkerConnection()
        self._parser = RequestParser()
        self._request: AuthorizedRequest | None = None
        self._state = _State.HEAD
        self._started = False  # the first byte of a head has arrived
        self._unread = b""  # received, and not parsed yet
        self._body = Body()
        self._outgoing: Iterator[bytes | memoryview] | None = None
        self._congested = self._paused = self._ended = self._lost = self._working = False
        self._unsent = 0  # bytes, when last measured
        self._began_at = self._progress_at = self._loop.time()
        self._timer = Deadline(self._loop, self._due, self._expire)

    # ------------------------------------------------------------------ begin and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock: Any = transport.get_extra_info("socket")
        self._descriptor = sock.fileno()
        forks.blank(self._descriptor)
        with contextlib.suppress(OSError):  # it may be over already
            keep_alive(sock, unacknowledged=UNACKNOWLEDGED_SECONDS)
        self._peer = str((transport.get_extra_info("peername") or ("?",))[0])
        self._transport.set_write_buffer_limits(high=PIECE_BYTES)
        self._receiver.add_connection(self)
        self._timer.update()

    def eof_received(self) -> bool:
        self._ended = True
        # A client that only closes its sending side still gets the responses.
        return self._state in (_State.WORK, _State.SEND) or self._congested or bool(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        forks.untrack(self._descriptor)
        self._lost = True
        self._end = ConnectionEnd(
            by_peer=self._ended or isinstance(exc, (ConnectionResetError, BrokenPipeError)),
            silent_seconds=self._loop.time() - self._progress_at,
        )
        self._unread = b""
        self._outgoing = None
        self._timer.cancel()
        if not self._working:  # events that are being decoded are delivered all the same
            self._release()

    def _release(self) -> None:
        self._body.drop()
        self._receiver.remove_connection(self, self._worker, self._end)

    def close(self) -> None:
        """Close the connection because the receiver closes; abort it if a request is under way."""
        if (
            self._state in (_State.HEAD, _State.LINGER)
            and not self._transport.get_write_buffer_size()
        ):
            self._transport.close()
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    # ------------------------------------------------------------------ in

    def data_received(self, data: bytes) -> None:
        self._progress_at = self._loop.time()
        if self._state is _State.LINGER:
            return
        self._unread = self._unread + data if self._unread else data
        self._advance()

    def _advance(self) -> None:
        """Handle what has arrived, as far as that is possible now."""
        steps = 0

        while self._unread and self._state in _READS and not self._congested:
            if self._transport.is_closing():
                self._unread = b""
                break
            steps += 1
            if steps > MAX_STEPS:
                self._loop.call_soon(self._resume)
                break
            try:
                self._step()
            except TooLargeError:
                self._too_large()
            except RequestError as error:
                self._refuse(Refusal(error.status, f"This cannot be read: {error}."), broken=True)

        if self._state is _State.HEAD and not self._started and self._parser.begun:
            self._started = True
            self._began_at = self._loop.time()

        if self._ended and not self._unread and self._state is _State.HEAD and not self._congested:
            self._transport.close()
        self._update_reading()
        self._timer.update()

    def _update_reading(self) -> None:
        """Pause or resume reading: only what can be handled now is read from the kernel."""
        pause = self._congested or bool(self._unread) or self._state not in _READS
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _step(self) -> None:
        parser = self._parser
        if self._state is _State.LINGER:
            self._unread = b""
            return

        pieces = parser.feed(self._unread)
        self._unread = parser.rest

        if self._state is _State.HEAD:
            if parser.head is not None:
                self._on_head(parser.head)
        elif self._state is _State.SKIP:
            if parser.complete:
                self._next()
        else:
            for piece in pieces:
                self._body.add(piece)
            if parser.complete:
                self._on_request()
            elif (
                parser.chunked
                and parser.received > SMALL_BYTES
                and self._body.limiter is self._receiver.small
            ):
                # Its size is not known, so that memory for the largest body is reserved.
                self._body.release()
                assert self._request is not None
                self._reserve(self._limiter_for(self._request), self._request.max_body_bytes)

    def _on_head(self, head: Request) -> None:
        parser = self._parser
        expects = head.get("expect")

        try:
            request = self._receiver.routes.authorize(head)
            if expects is not None and expects.lower() != "100-continue":  # RFC 9110, 10.1.1
                raise Refusal(417, "Nothing is expected here but 100-continue.")
        except Refusal as refusal:
            self._refuse(refusal)
            return

        self._request = request
        if not self.recognized:
            self.recognized = True
            self._receiver.on_recognized(self)

        self._worker.on_request(head)
        parser.admit(request.max_body_bytes)  # TooLargeError: 413
        if parser.complete:
            self._on_request()
            return

        size = parser.announced
        self._state = _State.BODY

        if size is not None and size <= len(self._unread):  # it has arrived
            self._began_at = self._loop.time()
        elif size is None or size <= SMALL_BYTES:
            self._reserve(self._receiver.small, SMALL_BYTES)
        else:
            self._reserve(self._limiter_for(request), size)

    def _limiter_for(self, request: AuthorizedRequest) -> CapacityLimiter:
        """Return what limits a large body. A stranger's body never takes the memory of a worker's."""
        return self._receiver.large if request.authenticated else self._receiver.strangers

    # ------------------------------------------------------------------ a body

    def _reserve(self, limiter: CapacityLimiter, size: int) -> None:
        """Go on when *size* bytes are reserved."""
        if self._body.reserve(limiter, size, self._on_reserved):
            self._granted()
        else:
            self._state = _State.WAIT

    def _on_reserved(self) -> None:
        """Called when the memory is reserved. Goes on a little later: the caller is busy releasing it."""
        self._granted()
        self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._lost:
            self._advance()

    def _granted(self) -> None:
        self._state = _State.BODY
        self._began_at = self._progress_at = self._loop.time()
        head = self._parser.head
        assert head is not None

        if (
            head.get("expect") is not None
            and head.minor >= 1
            and not self._parser.received
            and not self._unread
        ):
            self._transport.write(_CONTINUE)

    def _on_request(self) -> None:
        """Handle a request that has arrived whole."""
        request = self._request
        assert request is not None
        chunks = self._body.take()

        if request.claim_id is not None:
            self._send_claim(request)
        elif self._parser.received <= 2 * INLINE_BYTES:
            self._handle(request, request.read(chunks))
        else:
            self._state = _State.WORK
            self._working = True
            thread_pool.submit(self._read_in_thread, request, chunks)

    def _read_in_thread(self, request: AuthorizedRequest, chunks: list[bytes]) -> None:
        outcome = request.read(chunks)
        post_to(self._loop, self._on_read, request, outcome)

    def _on_read(self, request: AuthorizedRequest, outcome: list[dict[str, Any]] | Refusal) -> None:
        self._working = False
        self._handle(request, outcome)
        if self._lost:
            self._release()
        else:
            self._advance()

    def _handle(self, request: AuthorizedRequest, outcome: list[dict[str, Any]] | Refusal) -> None:
        if self._receiver.closed:
            return
        if isinstance(outcome, Refusal):
            self._log(outcome)
            if outcome.ends is not None:
                self._deliver(request, [outcome.ends])
            reply = outcome.reply
        else:
            reply = self._deliver(request, outcome)

        self._body.release()
        if not self._lost:
            self._respond(reply)

    def _deliver(self, request: AuthorizedRequest, events: list[dict[str, Any]]) -> Reply:
        try:
            return request.deliver(events, self._worker)
        except Exception as error:
            self._receiver.log_error(
                f"events could not be taken: {type(error).__name__}: {error}", error
            )
            return Reply(500, "The events could not be taken; the log of the other side says why.")

    # ------------------------------------------------------------------ out

    def _respond(self, reply: Reply) -> None:
        """Respond to a request that has arrived whole."""
        head = self._parser.head
        assert head is not None
        keep = head.persistent
        self._transport.write(
            reply.encode(minor=head.minor, keep=keep, bodiless=head.method == "HEAD")
        )
        self._finish(keep=keep)

    def _finish(self, *, keep: bool) -> None:
        if keep:
            self._next()
        else:
            self._linger()

    def _next(self) -> None:
        self._parser = RequestParser()
        self._request = None
        self._state = _State.HEAD
        self._started = False
        self._began_at = self._progress_at

    def _too_large(self) -> None:
        assert self._request is not None
        maximum = self._request.max_body_bytes
        text = f"The body has more than {maximum} bytes: pass large data by reference, or raise 'max_message_bytes'."
        self._refuse(Refusal(413, text))

    def _refuse(self, refusal: Refusal, *, broken: bool = False) -> None:
        """Respond before the request is whole. If it is *broken*, it is not known where the next one begins."""
        self._log(refusal)
        self._body.drop()
        parser, head = self._parser, self._parser.head
        if head is None or broken:
            keep, minor, bodiless = False, 1, head is not None and head.method == "HEAD"
        else:
            small = parser.announced is not None and parser.announced <= SMALL_BYTES
            # A client that waits for 100 may send the body or not, after this.
            keep = head.persistent and small and (parser.complete or head.get("expect") is None)
            minor, bodiless = head.minor, head.method == "HEAD"

        self._transport.write(refusal.reply.encode(minor=minor, keep=keep, bodiless=bodiless))

        if not keep:
            self._linger()
        elif parser.complete:
            self._next()
        else:
            self._state = _State.SKIP
            self._began_at = self._loop.time()

    def _linger(self) -> None:
        self._state = _State.LINGER
        self._began_at = self._loop.time()
        self._unread = b""
        if self._ended:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def _log(self, refusal: Refusal) -> None:
        text = refusal.why or refusal.reply.text
        self._receiver.log_refusal(
            refusal.reply.status, f"{refusal.reply.status} to {self._peer}: {text}"
        )

    # ------------------------------------------------------------------ claims

    def _send_claim(self, request: AuthorizedRequest) -> None:
        try:
            chunks = request.claimed_chunks()
        except Refusal as refusal:
            self._log(refusal)
            self._respond(refusal.reply)
            return

        head = self._parser.head
        assert head is not None
        self._state = _State.SEND
        self._progress_at = self._loop.time()
        self._outgoing = _pieces(
            bulk_head(sum(map(len, chunks)), minor=head.minor, keep=head.persistent), chunks
        )
        self._pump()

    def _pump(self) -> None:
        """Write as much of the claim as can be written now."""
        outgoing = self._outgoing
        written = 0

        while outgoing is not None and not self._congested and not self._transport.is_closing():
            piece = next(outgoing, None)
            if piece is None:
                self._outgoing = None
                head = self._parser.head
                assert head is not None
                self._finish(keep=head.persistent)
                self._loop.call_soon(self._resume)
                return
            self._progress_at = self._loop.time()
            self._transport.write(piece)
            written += len(piece)
            if written >= BURST_BYTES:
                self._loop.call_soon(self._pump)
                return

    def pause_writing(self) -> None:
        self._congested = True
        self._unsent = self._transport.get_write_buffer_size()
        self._update_reading()

    def resume_writing(self) -> None:
        self._congested = False
        self._progress_at = self._loop.time()
        if self._state is _State.SEND:
            self._pump()
        else:
            self._loop.call_soon(self._resume)

    # ------------------------------------------------------------------ time

    def _due(self) -> float | None:
        """Return when the connection's time is over, in the loop's time; ``None``: there is no limit."""
        if self._lost:
            return None
        if self._congested and (unsent := self._transport.get_write_buffer_size()) < self._unsent:
            self._unsent = unsent  # slow, but it makes progress
            self._progress_at = self._loop.time()

        if self._congested or self._state is _State.SEND:
            return self._progress_at + WRITE_SECONDS
        if self._state is _State.HEAD:
            if self._started or not self.recognized:
                return self._began_at + HEAD_SECONDS
            return None if self._worker.runs else self._progress_at + IDLE_SECONDS

        if self._state in (_State.BODY, _State.SKIP):
            pace = self._began_at + BODY_SECONDS + self._parser.received / MIN_BYTES_PER_SECOND
            return min(self._progress_at + BODY_SECONDS, pace)

        return self._began_at + LINGER_SECONDS if self._state is _State.LINGER else None

    def _expire(self) -> None:
        if self._congested or self._state in (_State.SKIP, _State.SEND, _State.LINGER):
            self._transport.abort()
        elif self._state is _State.HEAD and not self._started:
            self._transport.close()
        else:
            self._refuse(
                Refusal(408, "This came too slowly: send it again, in one go."), broken=True
            )
            self._timer.update()


def _pieces(head: bytes, chunks: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield head
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
