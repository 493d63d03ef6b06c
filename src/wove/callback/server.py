"""One connection to the receiver: requests in their order, time limits, and no more memory than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from wove.callback.body import Body
from wove.callback.liveness import WorkerConnection
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
"""A head must be whole so many seconds after its first byte; a stranger's first one after connecting."""

IDLE_SECONDS: Final = 75.0
"""A connection is kept so long without a request, unless a worker shows with it that its runs go on."""

BODY_SECONDS: Final = 30.0
SLOWEST_BYTES: Final = 4096
"""A body must never pause for so many seconds; and it must be there after so many, and one more for each so many
bytes: others may wait for the room that it takes."""

WRITE_SECONDS: Final = 60.0
"""How long a client may stop reading before the connection is aborted, in seconds."""

LINGER_SECONDS: Final = 2.0
"""How long the rest of a request is read and dropped after a refusal, in seconds: closing at once would reset the
connection, and the refusal could be lost (RFC 9112, 9.6)."""

SMALL_BYTES: Final = INLINE_BYTES
"""A body up to this size does not wait for the room of large ones, and one that is refused is skipped."""

PIECE_BYTES: Final = 256 * 1024
BURST_BYTES: Final = 1024 * 1024
"""Large answers are written in pieces; after so many bytes it is somebody else's turn."""

MAX_STEPS: Final = 128
"""Heads and bodies that came in one go are worked on in a row; then it is somebody else's turn."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _State(enum.Enum):
    HEAD = enum.auto()
    """Between two requests, or in a head."""
    WAIT = enum.auto()
    """A body waits for room."""
    BODY = enum.auto()
    SKIP = enum.auto()
    """A body that was refused comes, and is dropped."""
    WORK = enum.auto()
    """A large body is verified and decoded in another thread."""
    SEND = enum.auto()
    """A claim goes out."""
    LINGER = enum.auto()
    """All is said, and what still comes is dropped."""


_READS: Final = frozenset({_State.HEAD, _State.BODY, _State.SKIP, _State.LINGER})


class Connection(asyncio.Protocol):
    """A connection to *receiver*. One request at a time: what comes meanwhile waits, in the kernel above all."""

    def __init__(self, receiver: Receiver) -> None:
        self.known = False
        """Whether a request has been admitted: it is not a stranger's."""
        self._receiver = receiver
        self._loop = receiver.loop
        self._line = WorkerConnection()
        self._parser = RequestParser()
        self._visit: AuthorizedRequest | None = None
        self._state = _State.HEAD
        self._started = False  # of a head: its first byte is there
        self._rest = b""  # what came and was not looked at
        self._body = Body()
        self._out: Iterator[bytes | memoryview] | None = None
        self._congested = self._paused = self._ended = self._lost = self._working = False
        self._unsent = 0  # bytes, when last looked at
        self._since = self._heard = self._loop.time()
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
        self._receiver.arrived(self)
        self._timer.update()

    def eof_received(self) -> bool:
        self._ended = True
        # Whoever only says that no more requests come still gets the answers.
        return self._state in (_State.WORK, _State.SEND) or self._congested or bool(self._rest)

    def connection_lost(self, exc: Exception | None) -> None:
        forks.untrack(self._descriptor)
        self._lost = True
        self._rest = b""
        self._out = None
        self._timer.cancel()
        if not self._working:  # what is being decoded is taken all the same
            self._let_go()

    def _let_go(self) -> None:
        self._body.drop()
        self._receiver.left(self, self._line)

    def shut(self) -> None:
        """The receiver closes. In good order, if nothing is under way."""
        if (
            self._state in (_State.HEAD, _State.LINGER)
            and not self._transport.get_write_buffer_size()
        ):
            self._transport.close()
        else:
            self._transport.abort()

    def drop(self) -> None:
        """End it: there are too many strangers."""
        self._transport.abort()

    # ------------------------------------------------------------------ in

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._state is _State.LINGER:
            return
        self._rest = self._rest + data if self._rest else data
        self._advance()

    def _advance(self) -> None:
        """Go on with what is there, as far as that is possible now."""
        steps = 0

        while self._rest and self._state in _READS and not self._congested:
            if self._transport.is_closing():
                self._rest = b""
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
            self._since = self._loop.time()

        if self._ended and not self._rest and self._state is _State.HEAD and not self._congested:
            self._transport.close()
        self._flow()
        self._timer.update()

    def _flow(self) -> None:
        """Read from the kernel only what can be gone on with."""
        pause = self._congested or bool(self._rest) or self._state not in _READS
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _step(self) -> None:
        parser = self._parser
        if self._state is _State.LINGER:
            self._rest = b""
            return

        pieces = parser.feed(self._rest)
        self._rest = parser.rest

        if self._state is _State.HEAD:
            if parser.head is not None:
                self._headed(parser.head)
        elif self._state is _State.SKIP:
            if parser.complete:
                self._next()
        else:
            for piece in pieces:
                self._body.add(piece)
            if parser.complete:
                self._received()
            elif (
                parser.chunked
                and parser.received > SMALL_BYTES
                and self._body.room is self._receiver.small
            ):
                # Nobody knows how large it gets, so it needs room for the largest.
                self._body.release()
                assert self._visit is not None
                self._reserve(self._large_room(self._visit), self._visit.most)

    def _headed(self, head: Request) -> None:
        parser = self._parser
        expects = head.get("expect")

        try:
            visit = self._receiver.routes.visit(head)
            if expects is not None and expects.lower() != "100-continue":  # RFC 9110, 10.1.1
                raise Refusal(417, "Nothing is expected here but 100-continue.")
        except Refusal as refusal:
            self._refuse(refusal)
            return

        self._visit = visit
        if not self.known:
            self.known = True
            self._receiver.recognized(self)

        self._line.note(head)
        parser.admit(visit.most)  # TooLargeError: 413
        if parser.complete:
            self._received()
            return

        size = parser.announced
        self._state = _State.BODY

        if size is not None and size <= len(self._rest):  # it is here already
            self._since = self._loop.time()
        elif size is None or size <= SMALL_BYTES:
            self._reserve(self._receiver.small, SMALL_BYTES)
        else:
            self._reserve(self._large_room(visit), size)

    def _large_room(self, visit: AuthorizedRequest) -> CapacityLimiter:
        """Return where a large body has its place: a stranger's never takes that of a worker's."""
        return self._receiver.large if visit.authenticated else self._receiver.strangers

    # ------------------------------------------------------------------ a body

    def _reserve(self, room: CapacityLimiter, size: int) -> None:
        """Go on when there is a place for *size* bytes."""
        if self._body.reserve(room, size, self._come):
            self._granted()
        else:
            self._state = _State.WAIT

    def _come(self) -> None:
        """It is its turn. Not at once: whoever made room is in the middle of something."""
        self._granted()
        self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._lost:
            self._advance()

    def _granted(self) -> None:
        self._state = _State.BODY
        self._since = self._heard = self._loop.time()
        head = self._parser.head
        assert head is not None

        if (
            head.get("expect") is not None
            and head.minor >= 1
            and not self._parser.received
            and not self._rest
        ):
            self._transport.write(_CONTINUE)

    def _received(self) -> None:
        """The request is whole."""
        visit = self._visit
        assert visit is not None
        chunks = self._body.take()

        if visit.claim_id is not None:
            self._send_claim(visit)
        elif self._parser.received <= 2 * INLINE_BYTES:
            self._settle(visit, visit.read(chunks))
        else:
            self._state = _State.WORK
            self._working = True
            thread_pool.submit(self._read_elsewhere, visit, chunks)

    def _read_elsewhere(self, visit: AuthorizedRequest, chunks: list[bytes]) -> None:
        found = visit.read(chunks)
        post_to(self._loop, self._worked, visit, found)

    def _worked(self, visit: AuthorizedRequest, found: list[dict[str, Any]] | Refusal) -> None:
        self._working = False
        self._settle(visit, found)
        if self._lost:
            self._let_go()
        else:
            self._advance()

    def _settle(self, visit: AuthorizedRequest, found: list[dict[str, Any]] | Refusal) -> None:
        if self._receiver.closed:
            return
        if isinstance(found, Refusal):
            self._log(found)
            if found.ends is not None:
                self._take(visit, [found.ends])
            reply = found.reply
        else:
            reply = self._take(visit, found)

        self._body.release()
        if not self._lost:
            self._answer(reply)

    def _take(self, visit: AuthorizedRequest, events: list[dict[str, Any]]) -> Reply:
        try:
            return visit.settle(events, self._line)
        except Exception as error:
            self._receiver.report(
                f"events could not be taken: {type(error).__name__}: {error}", error
            )
            return Reply(500, "The events could not be taken; the log of the other side says why.")

    # ------------------------------------------------------------------ out

    def _answer(self, reply: Reply) -> None:
        """Answer the request, which is whole."""
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
        self._visit = None
        self._state = _State.HEAD
        self._started = False
        self._since = self._heard

    def _too_large(self) -> None:
        assert self._visit is not None
        most = self._visit.most
        text = f"The body has more than {most} bytes: pass large data by reference, or raise 'max_message_bytes'."
        self._refuse(Refusal(413, text))

    def _refuse(self, refusal: Refusal, *, broken: bool = False) -> None:
        """Answer before the request is whole; if it is *broken*, nobody knows where the next one begins."""
        self._log(refusal)
        self._body.drop()
        parser, head = self._parser, self._parser.head
        if head is None or broken:
            keep, minor, bodiless = False, 1, head is not None and head.method == "HEAD"
        else:
            small = parser.announced is not None and parser.announced <= SMALL_BYTES
            # Who waits for 100 may send the body or not, after this.
            keep = head.persistent and small and (parser.complete or head.get("expect") is None)
            minor, bodiless = head.minor, head.method == "HEAD"

        self._transport.write(refusal.reply.encode(minor=minor, keep=keep, bodiless=bodiless))

        if not keep:
            self._linger()
        elif parser.complete:
            self._next()
        else:
            self._state = _State.SKIP
            self._since = self._loop.time()

    def _linger(self) -> None:
        self._state = _State.LINGER
        self._since = self._loop.time()
        self._rest = b""
        if self._ended:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def _log(self, refusal: Refusal) -> None:
        text = refusal.why or refusal.reply.text
        self._receiver.refused(
            refusal.reply.status, f"{refusal.reply.status} to {self._peer}: {text}"
        )

    # ------------------------------------------------------------------ claims

    def _send_claim(self, visit: AuthorizedRequest) -> None:
        try:
            chunks = visit.claimed()
        except Refusal as refusal:
            self._log(refusal)
            self._answer(refusal.reply)
            return

        head = self._parser.head
        assert head is not None
        self._state = _State.SEND
        self._heard = self._loop.time()
        self._out = _pieces(
            bulk_head(sum(map(len, chunks)), minor=head.minor, keep=head.persistent), chunks
        )
        self._pump()

    def _pump(self) -> None:
        """Write what can be written now."""
        out = self._out
        written = 0

        while out is not None and not self._congested and not self._transport.is_closing():
            piece = next(out, None)
            if piece is None:
                self._out = None
                head = self._parser.head
                assert head is not None
                self._finish(keep=head.persistent)
                self._loop.call_soon(self._resume)
                return
            self._heard = self._loop.time()
            self._transport.write(piece)
            written += len(piece)
            if written >= BURST_BYTES:
                self._loop.call_soon(self._pump)
                return

    def pause_writing(self) -> None:
        self._congested = True
        self._unsent = self._transport.get_write_buffer_size()
        self._flow()

    def resume_writing(self) -> None:
        self._congested = False
        self._heard = self._loop.time()
        if self._state is _State.SEND:
            self._pump()
        else:
            self._loop.call_soon(self._resume)

    # ------------------------------------------------------------------ time

    def _due(self) -> float | None:
        """Return when patience ends, in the loop's time; ``None``: not because of this connection."""
        if self._lost:
            return None
        if self._congested and (unsent := self._transport.get_write_buffer_size()) < self._unsent:
            self._unsent = unsent  # slow, but not stuck
            self._heard = self._loop.time()

        if self._congested or self._state is _State.SEND:
            return self._heard + WRITE_SECONDS
        if self._state is _State.HEAD:
            if self._started or not self.known:
                return self._since + HEAD_SECONDS
            return None if self._line.runs else self._heard + IDLE_SECONDS

        if self._state in (_State.BODY, _State.SKIP):
            pace = self._since + BODY_SECONDS + self._parser.received / SLOWEST_BYTES
            return min(self._heard + BODY_SECONDS, pace)

        return self._since + LINGER_SECONDS if self._state is _State.LINGER else None

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
