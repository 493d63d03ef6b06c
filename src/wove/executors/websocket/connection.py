"""One WebSocket connection of a client, on a loop: handshake, messages, signs of life.

The protocol itself is that of the `websockets` package, by its documented Sans-I/O layer. Its ready-made client would
follow redirects, with the credentials, and costs a task's turn per message. This module imports the package, so it is
itself imported only when an executor starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from wove.concurrency import forks
from wove.errors import DeliveryTimeoutError, WorkerLostError
from wove.executors.network.hints import advice_for_certificate
from wove.executors.websocket.errors import HandshakeRefused, close_code_meaning, handshake_error
from wove.protocol.names import RESUME_HEADER
from wove.security.endpoints import refuse_foreign_peer

__all__ = ["Connection", "HandshakeRefused", "connect"]

PING_SECONDS: Final = 20.0
"""How long between two pings, and how long a ping may go unanswered: the defaults of the websockets package."""

LOOK_SECONDS: Final = 5.0
"""How often the limits on a silent or slow service are checked."""

MIN_BYTES_PER_SECOND: Final = 1024
"""Minimum rate at which a message must arrive once its first byte has."""

TRICKLE_SECONDS: Final = 10.0
"""How long a message may take before `MIN_BYTES_PER_SECOND` is enforced."""

CLOSE_SECONDS: Final = 1.0
"""How long the service may take to close its side. By RFC 6455, section 7.1.1, the server closes the TCP connection."""

WRITE_BYTES: Final = 256 * 1024
"""Number of bytes that may wait for the network before the rest of a message is held back."""

NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address is tried before the next one is tried beside it (RFC 8305, section 8)."""


class Owner(Protocol):
    """The user of a connection."""

    def message(self, connection: Connection, chunks: list[bytes]) -> None:
        """Called with a whole message."""

    def writable(self, connection: Connection) -> None:
        """Called when a message may be sent again."""

    def gone(self, connection: Connection, why: str) -> None:
        """Called at the end; *why* completes a sentence whose subject is the service."""


async def connect(
    url: str,
    owner: Owner,
    *,
    headers: Iterable[tuple[str, str]],
    subprotocols: Sequence[str],
    max_size: int,
    context: ssl.SSLContext | None,
    seconds: float | None,
    only_local: bool = False,
) -> Connection:
    """Open a connection.

    Args:
        url: Where to, ``ws://`` or ``wss://``.
        owner: Called with what arrives.
        headers: For the handshake.
        subprotocols: To offer.
        max_size: Maximum size of a message from the service, in bytes.
        context: For TLS.
        seconds: How long connecting may take, handshake included; ``None`` for no limit.
        only_local: Whether the connection must lead to this machine.

    Raises:
        WorkerLostError: Nothing listens there, or the connection was lost meanwhile.
        DeliveryTimeoutError: It took too long.
        HandshakeRefused: The answer is something else than a WebSocket connection, or the certificate is not accepted.
    """
    uri = parse_uri(url)
    loop = asyncio.get_running_loop()
    connection: Connection | None = None

    def make() -> Connection:
        protocol = ClientProtocol(
            uri, subprotocols=[Subprotocol(name) for name in subprotocols], max_size=max_size
        )
        return Connection(protocol, owner, headers, only_local=uri.host if only_local else None)

    try:
        async with asyncio.timeout(seconds):
            _, connection = await loop.create_connection(
                make,
                uri.host,
                uri.port,
                ssl=context,
                server_hostname=uri.host if context is not None else None,
                happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
            )
            await connection.opened
        if not connection.is_open:
            raise WorkerLostError(connection.why)
        return connection
    except TimeoutError:
        how = (
            "no connection came about"
            if connection is None
            else "its answer to the handshake " + connection.so_far()
        )
        raise DeliveryTimeoutError(
            f"{how} within {seconds or 0.0:g} s (executor_config 'open_timeout')"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise HandshakeRefused.of(
            advice_for_certificate(error),
            0,
        ) from error
    except OSError as error:
        where = "there is no connection to it"
        if context is not None and isinstance(
            error, (ssl.SSLError, ConnectionResetError, ConnectionAbortedError)
        ):
            where = "the TLS handshake with it came to nothing (is it wss?)"
        raise WorkerLostError(f"{where}: {str(error) or type(error).__name__}") from error
    finally:
        if connection is not None and not connection.is_open:
            connection.abort("")


class Connection(asyncio.Protocol):
    """A connection, made by `connect`.

    Attributes:
        opened: Done when the handshake is; its exception says why the handshake failed.
        is_open: Whether messages can be sent and received: from the handshake until the end.
        resumes: Whether the service keeps runs whose connection is lost.
        busy: Whether a message is being sent in pieces.
        why: Why the connection has ended.
        ended: Done when the TCP connection is closed.
    """

    def __init__(
        self,
        protocol: ClientProtocol,
        owner: Owner,
        headers: Iterable[tuple[str, str]],
        *,
        only_local: str | None = None,
    ) -> None:
        self._protocol = protocol
        self._owner = owner
        self._headers = headers
        self._only_local = only_local  # the host, if it must be this machine
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.is_open = self.resumes = False
        self._transport: asyncio.Transport | None = None
        self._descriptor = -1
        self._paused = False
        self._pieces: deque[bytes] = deque()
        self._written: Callable[[], None] | None = None
        self._parts: list[bytes] = []
        self._received = 0
        self._alive_at = 0.0
        self._pinged = False
        self._began: tuple[float, int] | None = (
            None  # when the message that is coming in did, and after what
        )
        self.why = ""
        self._look: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    @property
    def subprotocol(self) -> str | None:
        """Return the subprotocol that the service chose."""
        return self._protocol.subprotocol

    @property
    def busy(self) -> bool:
        return bool(self._pieces) or self._written is not None

    @property
    def writable(self) -> bool:
        """Whether a message may be sent."""
        return self.is_open and not self._paused and not self.busy

    def so_far(self) -> str:
        """Return the part of the handshake's answer that has arrived, for a message."""
        return (
            "did not come"
            if not self._received
            else f"was not complete after {self._received} bytes"
        )

    # ------------------------------------------------------------------ out

    def send(self, texts: Iterable[bytes]) -> None:
        """Send each text as a message."""
        for text in texts:
            self._protocol.send_text(text)
        self._flush()

    def send_pieces(self, pieces: Iterable[bytes], written: Callable[[], None]) -> None:
        """Send a large text in fragments (RFC 6455, section 5.4), as fast as they are taken.

        Args:
            pieces: The text.
            written: Called when the last piece is out.
        """
        self._pieces.extend(pieces)
        self._written = written
        self._protocol.send_text(self._pieces.popleft(), fin=not self._pieces)
        self._flush()
        self._send_more()

    def _send_more(self) -> None:
        while self._pieces and not self._paused and self.is_open:
            self._protocol.send_continuation(self._pieces.popleft(), fin=not self._pieces)
            self._flush()
        if not self._pieces and self._written is not None:
            written, self._written = self._written, None
            written()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        writes = self._protocol.data_to_send()
        ends = (
            bool(writes) and not writes[-1]
        )  # an empty one says that nothing more is to be written
        if ends:
            writes.pop()
        if writes and not transport.is_closing():
            transport.write(writes[0] if len(writes) == 1 else b"".join(writes))
        if ends and not transport.is_closing():
            if transport.can_write_eof():
                with contextlib.suppress(OSError):  # the other side has reset it
                    transport.write_eof()
            else:
                transport.close()

    def close(self) -> asyncio.Future[None]:
        """Begin the closing handshake; the future is done when the connection is closed."""
        if self.is_open and not self.busy:
            self._leave("it was closed here")
            self._protocol.send_close(1000)
            self._flush()
            self._expect_end()
        else:
            self.abort("it was closed here")

        return self.ended

    def fail(self, code: int, why: str) -> None:
        """End the connection with close code *code*; the owner is called at once."""
        if not self.is_open:
            return
        if not self.busy:
            self._protocol.send_close(code)
            self._flush()

        self._expect_end()
        self._gone(why)

    def abort(self, why: str) -> None:
        """End the connection without a closing handshake."""
        self.why = self.why or why
        if self._transport is not None:
            self._transport.abort()

    def _leave(self, why: str) -> None:
        self.why = self.why or why
        self.is_open = False

    # ------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._descriptor = sock.fileno()
            forks.blank(self._descriptor)

        if self._only_local is not None:
            try:
                refuse_foreign_peer(transport.get_extra_info("peername"), self._only_local)
            except ValueError as error:  # before anything is said: a token would be given away
                self._not_opened(HandshakeRefused.of(str(error), 0))
                self._transport.abort()
                return

        request = self._protocol.connect()
        for name, value in self._headers:
            request.headers[name] = value
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._alive_at = self._loop.time()
        self._pinged = False
        self._protocol.receive_data(data)
        whole = self._process()
        if whole or not self.is_open:
            self._began = None
        elif self._began is None:
            self._began = (self._alive_at, self._received)

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        self._process()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        forks.untrack(self._descriptor)
        self._protocol.receive_eof()
        self._process()
        for timer in (self._look, self._end):
            if timer is not None:
                timer.cancel()

        if not self.opened.done():
            how = f": {exc}" if exc is not None else ""
            self._not_opened(
                WorkerLostError(f"it closed the connection before the handshake was done{how}")
            )

        self._gone(self._close_reason(exc))
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_more()
        if self.writable:
            self._owner.writable(self)

    # ------------------------------------------------------------------ in

    def _process(self) -> bool:
        """Process the received bytes. Return whether they completed a message, a control frame or the handshake."""
        whole = False

        for event in self._protocol.events_received():
            if isinstance(event, Response):
                whole = True
                self.resumes = RESUME_HEADER in event.headers
                self._handshaken()
            elif isinstance(event, Frame):
                whole = self._frame(event) or whole

        self._flush()
        if not self.opened.done() and self._protocol.handshake_exc is not None:
            self._not_opened(handshake_error(self._protocol.handshake_exc))
        if self.is_open and (
            self._protocol.close_expected() or self._protocol.state is State.CLOSED
        ):
            # Queued messages cannot be sent any more, and need not wait until the service has closed its side.
            self._expect_end()
            self._gone(self._close_reason(None))

        return whole

    def _handshaken(self) -> None:
        if self._protocol.handshake_exc is not None or self.opened.done():
            return
        self.is_open = True
        self.opened.set_result(None)
        self._look = self._loop.call_later(
            LOOK_SECONDS, self._watch, self._loop.time() + PING_SECONDS
        )

    def _frame(self, frame: Frame) -> bool:
        if frame.opcode is Opcode.CLOSE:
            return True
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return not self._parts  # a ping or pong begins no message, and may stand within one
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return False
        parts, self._parts = self._parts, []
        if self.is_open:
            self._owner.message(self, parts)
        return True

    # ------------------------------------------------------------------ whether it is alive

    def _watch(self, ping_at: float) -> None:
        """Check the time limits; *ping_at* is when the next ping is due, or the answer to the last one overdue."""
        if not self.is_open:
            return
        now = self._loop.time()

        if self._began is not None:
            since, received = self._began
            seconds, size = now - since, self._received - received
            if seconds >= TRICKLE_SECONDS and size < MIN_BYTES_PER_SECOND * seconds:
                self._cut(f"it trickles: {size} bytes of a message in {seconds:.0f} s")
                return

        if now >= ping_at:
            if self._pinged:
                self._cut(f"it gave no sign of life for {PING_SECONDS:g} s after a ping")
                return
            self._pinged = True
            self._protocol.send_ping(b"wove")
            self._flush()
            ping_at = now + PING_SECONDS

        self._look = self._loop.call_later(LOOK_SECONDS, self._watch, ping_at)

    def _cut(self, why: str) -> None:
        self._gone(why)
        self.abort(why)

    # ------------------------------------------------------------------ ends

    def _not_opened(self, error: BaseException) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # the one who waited may have given up
        self._expect_end()

    def _expect_end(self) -> None:
        if self._end is None and self._transport is not None:
            self._end = self._loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def _gone(self, why: str) -> None:
        if self.is_open:
            self._leave(why)
            self._pieces.clear()
            self._written = None
            self._owner.gone(self, self.why)

    def _close_reason(self, exc: Exception | None) -> str:
        received, sent = self._protocol.close_rcvd, self._protocol.close_sent
        if received is not None:
            reason = f" ({received.reason!r:.200})" if received.reason else ""
            return f"it closed the connection with code {received.code}{reason}{close_code_meaning(received.code)}"

        if sent is not None and sent.code != 1000:
            limit = ": executor_config 'max_message_bytes'" if sent.code == 1009 else ""
            return f"what it sent ended the connection: {sent.reason or 'no reason'} (code {sent.code}{limit})"

        return "the connection was lost" + (
            f": {exc}" if exc is not None else " without a closing handshake"
        )
