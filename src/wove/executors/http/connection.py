"""One HTTP/1.1 connection: one request at a time, and its response."""

from __future__ import annotations

import asyncio
import enum
import os
import re
import select
import ssl
from typing import TYPE_CHECKING, Any, Final, cast

from wove.concurrency import forks
from wove.concurrency.deadline import Deadline
from wove.net.chunk_buffer import ChunkBuffer
from wove.net.http1 import ProtocolError, ResponseParser, quoted
from wove.net.keepalive import UNACKNOWLEDGED_SECONDS, keep_alive
from wove.protocol.limits import INLINE_BYTES

if TYPE_CHECKING:
    from wove.executors.http.pool import Call, FailureKind, Pool
    from wove.executors.http.tls import TLS
    from wove.net.http1 import Head

__all__ = ["Connection"]

IDLE_SECONDS: Final = 4.0
"""How long a connection is kept for the next request, in seconds. uvicorn closes after 5 s; the client closes
first, so that no request gets lost in between."""

MAX_IDLE_SECONDS: Final = 60.0
"""Maximum of that, even if the server promises more: routers on the way drop idle connections silently."""

UNIT_SECONDS: Final = 10.0
MIN_BYTES_PER_SECOND: Final = 1024
"""A unit whose first byte has arrived (a head, a body, a line of a stream) must be complete within `UNIT_SECONDS`,
and a second more for each `MIN_BYTES_PER_SECOND` bytes. Its first byte may take as long as the task does."""

REST_SECONDS: Final = 0.1
"""How long a withdrawn response may take to end, so that its connection can be kept."""

HEAD_UNIT: Final = -1
BODY_UNIT: Final = 0
"""The unit that arrives, where it is not a line; lines are numbered from 1."""

READ_BYTES: Final = 64 * 1024
"""Maximum number of bytes of one read after the connection broke."""

HINT_SECONDS: Final = 3.0
"""How long after a request its lost connection may be due to TLS settings that do not match."""

_TIMEOUT: Final = re.compile(r"\btimeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class State(enum.Enum):
    """The state of a connection.

    ========== ===================================== ==============================
    state      event                                 next state
    ========== ===================================== ==============================
    IDLE       `Connection.secure`                   HANDSHAKE
    IDLE       `Connection.start`                    HEAD
    IDLE       data without a request                CLOSED
    HANDSHAKE  handshake complete                    IDLE
    HEAD       head of a response to stream          STREAM
    HEAD       head of another response              BODY
    BODY       end of the response                   IDLE, CLOSED if not reusable
    STREAM     end of the response                   IDLE, CLOSED if not reusable
    STREAM     call withdrawn, request fully written DRAIN
    HEAD, BODY call withdrawn                        CLOSED
    STREAM     call withdrawn, request not written   CLOSED
    DRAIN      end of the response                   IDLE, CLOSED if not reusable
    DRAIN      `REST_SECONDS` later                  CLOSED
    any        invalid data, a limit, loss, `abort`  CLOSED
    ========== ===================================== ==============================
    """

    IDLE = enum.auto()
    HANDSHAKE = enum.auto()
    HEAD = enum.auto()
    """A request is being sent, or its response has not begun."""
    BODY = enum.auto()
    """The body of the response is collected."""
    STREAM = enum.auto()
    """The body of the response is passed on as it arrives."""
    DRAIN = enum.auto()
    """The call was withdrawn, and the rest of its response is dropped."""
    CLOSED = enum.auto()


class Connection(asyncio.Protocol):
    """A connection of *pool*; `State` has its transitions.

    Attributes:
        idle_until: When to close it while it is idle, in the loop's time.
        unsolicited: Data that arrived without a request.
    """

    __slots__ = (
        "_answers",
        "_began",
        "_body",
        "_call",
        "_descriptor",
        "_drained_since",
        "_ended",
        "_handshake",
        "_loop",
        "_parser",
        "_paused",
        "_poll",
        "_pool",
        "_rest",
        "_state",
        "_timer",
        "_tls",
        "_transport",
        "_unit",
        "_unit_bytes",
        "_unit_since",
        "idle_until",
        "unsolicited",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._call: Call | None = None
        self._parser: ResponseParser | None = None
        self._body: ChunkBuffer | None = None
        self._rest: list[bytes] = []  # of the request, last chunk first
        self._state = State.IDLE
        self._paused = self._ended = False
        self._answers = 0
        self._began = 0.0
        self.idle_until = self._loop.time() + IDLE_SECONDS
        self.unsolicited = b""
        self._tls: TLS | None = None
        self._handshake: asyncio.Future[None] | None = None
        self._drained_since = 0.0
        self._timer = Deadline(self._loop, self._due, self._expire)
        # The unit that is arriving: see UNIT_SECONDS.
        self._unit: int | None = None  # HEAD_UNIT, BODY_UNIT, or the number of a line
        self._unit_since = 0.0
        self._unit_bytes = 0

    # ------------------------------------------------------------------ out

    def start(self, call: Call) -> None:
        """Send the request of *call*. The connection must be idle."""
        self._call = call
        call.connection = self
        self._began = self._loop.time()
        self._parser = ResponseParser(self._pool.origin.max_body_bytes, self._headed)
        self._state = State.HEAD
        self._unit = None

        try:
            head, chunks = call.begin()
        except Exception as error:  # what cannot even be signed
            self._settle(
                "refused", f"the request could not be made: {type(error).__name__}: {error}", error
            )
            return

        if len(chunks) == 1 and len(chunks[0]) <= INLINE_BYTES:
            self._write(head + chunks[0])
        else:
            self._rest = [*reversed(chunks), head]
            self._pump()

        if call.limit is not None:
            self._timer.update()

    def _pump(self) -> None:
        while self._rest and not self._paused and not self._transport.is_closing():
            self._write(self._rest.pop())

    def _write(self, data: bytes) -> None:
        if self._tls is not None:
            try:
                data = self._tls.encrypt(data)
            except ssl.SSLError as error:
                self._failed(error)
                return
        self._transport.write(data)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    # ------------------------------------------------------------------ in

    def data_received(self, data: bytes) -> None:
        tls = self._tls
        if tls is None:
            self._received(data)
            return

        try:
            plain = tls.decrypt(data)
        except ssl.SSLError as error:
            self._transport.write(tls.pending())  # an alert, which tells the other side why
            self._failed(error)
            return

        if pending := tls.pending():
            self._transport.write(pending)
        if self._handshake is not None and tls.secured:
            handshake, self._handshake = self._handshake, None
            self._state = State.IDLE
            if not handshake.done():
                handshake.set_result(None)

        if plain:
            self._received(plain)
        if tls.failure is not None:
            self._failed(tls.failure)
        elif tls.ended:
            self.eof_received()

    async def secure(self, tls: TLS) -> None:
        """Make it a TLS connection.

        Raises:
            ssl.SSLError: The other side cannot, or is not to be trusted.
            OSError: The connection was lost.
        """
        self._tls = tls
        self._state = State.HANDSHAKE
        self._handshake = self._loop.create_future()

        try:
            self._transport.write(tls.hello())
            await self._handshake
        except BaseException:
            self._transport.abort()
            raise

    def _received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            # Not an answer to anything (RFC 9112, 9.2): the notice of a server that gives the connection up.
            self.unsolicited = data
            self.abort()
            return

        try:
            pieces = parser.feed(data)
        except ProtocolError as error:
            self._settle("refused", str(error), error)
            return

        line = 0

        if self._state is State.STREAM or self._state is State.DRAIN:
            for piece in pieces:
                if self._call is not None:  # withdrawn because of a piece before
                    line = self._call.part(piece)
        elif pieces:
            if parser.complete and self._body is None:
                self._complete(parser, pieces)
                return
            if self._body is None:
                self._body = ChunkBuffer()
            for piece in pieces:
                self._body.add(piece)

        if self._parser is not parser:
            return
        if parser.complete:
            self._complete(parser, self._body.take() if self._body is not None else [])
        else:
            self._progressed(parser, line)

    def _headed(self, head: Head) -> bool:
        streams = self._call is not None and self._call.streams(head)
        self._state = State.STREAM if streams else State.BODY
        return streams

    def _complete(self, parser: ResponseParser, body: list[bytes]) -> None:
        call, head = self._call, parser.head
        self._call = self._parser = self._body = None
        self._state = State.IDLE
        if call is not None:
            call.connection = None
        written = not self._rest and not self._transport.get_write_buffer_size()
        keep = parser.reusable and written and not self._ended and not self.stale()
        if call is not None and head is not None:
            call.answered(head, body, cut=parser.cut)
            keep = keep and not call.tainted

        if keep and head is not None:
            self._answers += 1
            self.idle_until = self._loop.time() + _idle_seconds(head.get("keep-alive"))
            self._pool.on_idle(self)
        else:
            self.abort()

    def _settle(
        self, failure: FailureKind, message: str, cause: BaseException | None = None
    ) -> None:
        """Fail the call and close the connection."""
        call, parser = self._call, self._parser
        body = self._body.take() if self._body is not None else []
        self._call = self._parser = self._body = None
        self.abort()
        if call is None:
            return
        call.connection = None

        if (
            parser is not None
            and parser.head is not None
            and parser.head.status >= 300
            and failure != "late"
        ):
            # The response was cut off, but its status says more than the way in which it ended.
            call.answered(parser.head, body, cut=True)
        else:
            call.failed(failure, message, cause)

    # ------------------------------------------------------------------ time

    def _progressed(self, parser: ResponseParser, line: int) -> None:
        """Note which unit is arriving, and since when."""
        unit: int | None = None

        if parser.head is None:
            unit = HEAD_UNIT if parser.begun else None
        elif self._state is State.BODY:
            unit = BODY_UNIT if parser.announced is not None or parser.received else None
        else:
            unit = line or None

        if unit == self._unit:
            return
        self._unit = unit
        if unit is not None:
            self._unit_since = self._loop.time()
            self._unit_bytes = parser.received
            self._timer.update()

    def _due(self) -> float | None:
        """Return when the earliest limit passes; ``None`` if there is none, or no request."""
        if self._parser is None:
            return None
        limits: list[float] = []
        if self._state is State.DRAIN:
            limits.append(self._drained_since + REST_SECONDS)
        if (late := self._late_at()) is not None:
            limits.append(late)
        if self._unit is not None:
            came = self._parser.received - self._unit_bytes
            limits.append(self._unit_since + UNIT_SECONDS + came / MIN_BYTES_PER_SECOND)

        return min(limits, default=None)

    def _late_at(self) -> float | None:
        """Return when the time of the call is over; ``None`` if it has no limit."""
        return (
            None
            if self._call is None or self._call.limit is None
            else self._began + self._call.limit
        )

    def _expire(self) -> None:
        parser, due, late = self._parser, self._due(), self._late_at()
        if parser is None or due is None:
            return
        call = self._call
        if call is None:
            self.abort()
        elif late is not None and late <= due:
            self._settle(
                "late", f"no whole answer within {call.limit:g} s (executor_config 'timeout')"
            )
        else:
            seconds = self._loop.time() - self._unit_since
            self._settle(
                "lost",
                f"its answer came too slowly, and was given up {seconds:.0f} s {parser.progress()}",
            )

    # ------------------------------------------------------------------ ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock: Any = transport.get_extra_info("socket")
        self._descriptor = sock.fileno()
        forks.blank(self._descriptor)
        keep_alive(sock, unacknowledged=UNACKNOWLEDGED_SECONDS)
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)

    @property
    def peer(self) -> object:
        """The address of the server, as the socket knows it."""
        return self._transport.get_extra_info("peername")

    def stale(self) -> bool:
        """Return whether data, or the end, has arrived since the last response, so that it cannot be used again.

        The loop may not have read it yet, and a request must not be lost on a connection that the kernel knows to
        be closed.
        """
        if self._transport.is_closing():
            return True
        if self._poll is not None:
            return bool(self._poll.poll(0))
        sock = self._transport.get_extra_info("socket")
        return bool(select.select([sock], [], [], 0)[0])

    def broken(self) -> Exception | None:
        """Return why it cannot take a first request; ``None`` if it can."""
        if self.unsolicited:
            return ConnectionError(f"before any request it sent {quoted(self.unsolicited)}")
        return (
            ConnectionResetError("it was closed at once") if self._transport.is_closing() else None
        )

    def detach(self, *, keep: bool) -> None:
        """Drop the call, which was withdrawn. To *keep* the connection, wait for the end of its response."""
        parser = self._parser
        self._call = None

        if keep and parser is not None and self._state is State.STREAM and not self._rest:
            self._state = State.DRAIN
            self._drained_since = self._loop.time()
            if not parser.complete:
                self._pool.on_draining(self)
                self._timer.update()
        elif parser is not None:
            self.abort()

    def close(self) -> None:
        """Close the connection: with TLS's ``close_notify`` if it is idle."""
        if self._state is not State.IDLE:
            self.abort()
            return

        self._state = State.CLOSED
        self._pool.on_closing(self)
        if self._tls is not None:
            self._transport.write(self._tls.goodbye())
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        self._state = State.CLOSED
        self._call = self._parser = self._body = None
        self._rest = []
        self._timer.cancel()
        self._pool.on_closing(self)
        self._transport.abort()

    def eof_received(self) -> None:
        if self._ended:
            return
        self._ended = True

        if self._tls is not None and not self._tls.ended:
            # RFC 9112, 9.8: what ends with the connection has then come to no end.
            self._failed(ConnectionAbortedError("it was cut off, without TLS's close_notify"))
        else:
            self._lost(None)

    def _failed(self, error: Exception) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is None:
            self._lost(error)
        elif not handshake.done():
            handshake.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        forks.untrack(self._descriptor)
        if exc is not None and self._parser is not None:
            self._read_rest()
        if self._handshake is not None:
            self._failed(exc or ConnectionAbortedError("it was closed"))
        else:
            self._lost(exc)

        self._timer.cancel()
        self._pool.on_closed(self)

    def _read_rest(self) -> None:
        """Read the data that arrived before the connection broke.

        A server that refuses a body (413) answers and closes without reading it. Its reset then meets our
        next write, which fails before the answer is read, although that is there (RFC 9112, 9.6).
        """
        sock: Any = self._transport.get_extra_info("socket")

        try:
            while self._parser is not None and (data := os.read(sock.fileno(), READ_BYTES)):
                self.data_received(data)
        except OSError:
            pass

    def _lost(self, exc: Exception | None) -> None:
        parser = self._parser
        if parser is None:
            self.abort()
            return

        if exc is None:
            try:
                parser.close()
            except ProtocolError:
                pass
            else:
                self._complete(parser, self._body.take() if self._body is not None else [])
                return

        how = (
            "closed the connection"
            if exc is None
            else f"lost the connection ({type(exc).__name__}: {exc})"
        )
        text = f"its service {how} {parser.progress()}"
        if self._rest:
            text += ", before the request was written"
        if self._answers and not parser.begun:
            text += (
                ". The connection had been used before; the service may have closed it as idle while the request was "
                "on its way, or have begun the run: it is not sent again unasked"
            )
        elif not parser.begun and self._loop.time() - self._began < HINT_SECONDS:
            text += f". {self._pool.origin.hint()}"

        self._settle("lost", text, exc)


def _idle_seconds(promised: str | None) -> float:
    """Return how long the connection is kept, by the response's ``Keep-Alive`` (RFC 2068, 19.7.1.1)."""
    match = _TIMEOUT.search(promised or "")
    if match is None:
        return IDLE_SECONDS
    seconds = float(match[1])
    return min(MAX_IDLE_SECONDS, max(seconds - 1.0, seconds / 2))
