"""One blocking HTTP connection from a worker to the receiver of its events, for one request at a time.

It uses sockets of the standard library. No proxy is used, whatever the environment variables say: a callback URL is an
address that Wove made for this very worker.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from wove.concurrency import forks
from wove.net.http1 import Head, RequestHead, ResponseParser
from wove.net.keepalive import keep_alive
from wove.protocol.limits import INLINE_BYTES

if TYPE_CHECKING:
    import ssl

__all__ = [
    "REFUSED_SECONDS",
    "Destination",
    "Link",
    "close_socket",
    "exchange",
    "request",
    "socket_pair",
]

CONNECT_SECONDS: Final = 5.0
"""How long connecting to one address of a host may take. A lost SYN is sent again after 1 and 3 s (RFC 6298, 2)."""

REFUSED_SECONDS: Final = 10.0
"""How long each connection may be refused before the end of a run, or a fetch, is given up. The receiver listens as
long as its weave lives; only a proxy in front of it may be restarting."""

ANSWER_BYTES: Final = 64 * 1024
"""Maximum size of a response's body, unless a request says otherwise."""

READ_BYTES: Final = 256 * 1024
"""Maximum number of bytes of one read."""

_now = time.monotonic


class Destination(NamedTuple):
    """The parts of a callback URL.

    Attributes:
        secure: Whether it is https.
        host: Name or address, without brackets.
        port: Its port.
        authority: What goes into the ``Host`` header.
        target: Path and query, as requested and as signed.
    """

    secure: bool
    host: str
    port: int
    authority: str
    target: str

    @classmethod
    def parse(cls, url: str) -> Destination:
        """Return the parts of *url*.

        Raises:
            ValueError: It cannot be posted to.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r:.200} is not an http:// or https:// URL")
        secure = parts.scheme == "https"
        host = parts.hostname
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        port = parts.port or (443 if secure else 80)
        authority = f"[{host}]" if ":" in host else host
        if parts.port is not None:
            authority = f"{authority}:{parts.port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        RequestHead(
            "POST", target, [("Host", authority)]
        )  # complains about what HTTP does not allow
        return cls(secure, host, port, authority, target)

    @property
    def origin(self) -> tuple[bool, str, int]:
        """Return what two destinations must agree on to share a connection."""
        return self[:3]

    def __str__(self) -> str:
        # Without the path, which contains the token: this text goes into messages.
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


def request(
    destination: Destination,
    method: str,
    fields: Iterable[tuple[str, str]],
    *,
    target: str | None = None,
) -> bytes:
    """Return the head of a request to *destination*; *target*: another path there."""
    return RequestHead(
        method, target or destination.target, [("Host", destination.authority)]
    ).encode(fields)


class Link:
    """A connection. Making one connects, which takes at most `CONNECT_SECONDS` for each address.

    Args:
        destination: Where to connect.

    Attributes:
        parser: Parses the response to the last request.
        answers: How many responses have arrived.
        cut: Whether a request was not sent to its end, so that the connection takes no other.

    Raises:
        OSError: Connecting failed.
    """

    __slots__ = ("_early", "_sock", "answers", "cut", "parser")

    def __init__(self, destination: Destination) -> None:
        self.parser = ResponseParser(ANSWER_BYTES)
        self.answers = 0
        self.cut = False
        self._early: list[bytes] = []
        self._sock = _connected(destination)

    def fileno(self) -> int:
        """The descriptor, for polling."""
        return self._sock.fileno()

    def send(
        self,
        head: bytes,
        chunks: Sequence[bytes],
        *,
        seconds: float,
        patience: Callable[[], bool] = bool,
        most_answer: int = ANSWER_BYTES,
    ) -> None:
        """Send a request, in one piece if it is small. If the response arrives meanwhile, the rest is not sent.

        Args:
            head: Up to and including the empty line.
            chunks: The body.
            seconds: How long no byte may be sent.
            patience: Called after that time; whether to wait as long once more. By default not.
            most_answer: Maximum size of the response's body.

        Raises:
            OSError: The connection is lost, and there is no response to read.
            ProtocolError: The peer sent something else than a response.
        """
        self.parser = ResponseParser(most_answer)
        self._early.clear()
        self._sock.settimeout(seconds)
        if sum(map(len, chunks)) <= INLINE_BYTES:
            self._sock.sendall(b"".join((head, *chunks)))
            return

        try:
            for chunk in (head, *chunks):
                view = memoryview(chunk)
                while view:
                    if self._readable() and self._answering():
                        self.cut = True
                        return
                    self._sock.settimeout(seconds)
                    try:
                        view = view[self._sock.send(view) :]
                    except TimeoutError:
                        if not patience():
                            raise
        except TimeoutError:
            raise
        except OSError:
            # A receiver that refuses the body responds and closes: its response may still be readable.
            if not self._readable():
                raise
            self.cut = True

    def receive(self, seconds: float = 0.0) -> list[bytes]:
        """Return the part of the answer's body that has arrived, after waiting for at most *seconds*; the head goes
        to the parser.

        Raises:
            ProtocolError: What came is not an answer, or not a whole one.
            OSError: The connection is gone, or (`TimeoutError`) nothing came.
        """
        pieces, self._early = self._early, []
        self._sock.settimeout(seconds)

        while not self.parser.complete:
            try:
                data = self._sock.recv(READ_BYTES)
            except _nothing_there:
                break  # over TLS, data may be the protocol's own
            if data:
                pieces += self.parser.feed(data)
            else:
                self.parser.close()
            self.answers += self.parser.complete
            if not self._pending():
                break

        return pieces

    def quiet(self) -> bool:
        """Return whether the connection, which polling reports as readable, is open and has no data."""
        self._sock.settimeout(0.0)
        try:
            self._sock.recv(1)
        except OSError as error:
            return isinstance(error, _nothing_there)
        return False

    def close(self) -> None:
        """Close the connection at once."""
        close_socket(self._sock)

    def _pending(self) -> bool:
        pending: Any = getattr(
            self._sock, "pending", None
        )  # of TLS: data that is decrypted and not yet read
        return pending is not None and pending() > 0

    def _answering(self) -> bool:
        """Return whether the response has begun. Over TLS, what can be read may be the protocol's own data."""
        self._early = self.receive()
        return self.parser.begun

    def _readable(self) -> bool:
        if self._pending():
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))


def exchange(
    destination: Destination,
    head: bytes,
    chunks: Sequence[bytes],
    *,
    stall_seconds: float,
    patience: Callable[[], bool] = bool,
) -> tuple[Head, bytes]:
    """Send one request over a connection of its own, and return its response.

    Args:
        destination: Where to.
        head: As `Link.send`.
        chunks: As `Link.send`.
        stall_seconds: As the ``seconds`` of `Link.send`, and for the answer.
        patience: As `Link.send`.

    Raises:
        OSError: Connecting failed, or the connection was lost or stalled.
        ProtocolError: The peer sent something else than an HTTP response.
    """
    link = Link(destination)

    try:
        link.send(head, chunks, seconds=stall_seconds, patience=patience)
        body = link.receive()
        while not link.parser.complete:
            try:
                body += link.receive(stall_seconds)
            except TimeoutError:
                if not patience():
                    raise
        assert link.parser.head is not None
        return link.parser.head, b"".join(body)
    finally:
        link.close()


# --- sockets, and their copies in forked children ----------------------------------------------------------

# A copy in a child would keep a connection open after this process has died, and its end is what the other side
# learns of that from. The objects are closed, not their numbers: those may be other files' by the time that the
# objects are garbage. The lock is held over a fork, so that no socket is on its way into the set just then.
_sockets: set[socket.socket] = set()
_lock = threading.Lock()


def close_socket(sock: socket.socket) -> None:
    """Close *sock*, which this module has made."""
    with _lock:
        _sockets.discard(sock)
    sock.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return a pair of sockets that do not block, and that a forked child closes."""
    with _lock:
        pair = socket.socketpair()
        _sockets.update(pair)
    for each in pair:
        each.setblocking(False)
    return pair


def reset_after_fork() -> None:
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            sock.close()
    _sockets.clear()


forks.hold(_lock)
forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)


def _connected(destination: Destination) -> socket.socket:
    # Bytes: for text Python loads its IDNA codec, an import that a fork could catch half way.
    host = destination.host.encode("ascii")
    failure: OSError = OSError(f"the name {destination.host!r} has no address")

    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, destination.port, type=socket.SOCK_STREAM
    ):
        with _lock:
            sock = socket.socket(family, kind, protocol)
            _sockets.add(sock)
        try:
            _configure(sock)
            sock.connect(address)
            return _secured(sock, destination.host) if destination.secure else sock
        except OSError as error:
            failure = error
            close_socket(sock)
        except BaseException:  # an interrupt of whoever waits here
            close_socket(sock)
            raise

    raise failure


def _configure(sock: socket.socket) -> None:
    sock.settimeout(CONNECT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)


# --- TLS --------------------------------------------------------------------------------------------------

_context: ssl.SSLContext | None = None
_nothing_there: tuple[type[OSError], ...] = (BlockingIOError,)
"""The errors of a non-blocking socket that has nothing to read or no room to write."""


def _secured(sock: socket.socket, host: str) -> socket.socket:
    global _context, _nothing_there

    if _context is None:
        with forks.importing:
            import ssl

            from wove.net.tls import TLSFiles

            _nothing_there = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
            _context = TLSFiles().context()

    with _lock:
        secured = _context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        _sockets.discard(sock)
        _sockets.add(secured)

    try:
        secured.do_handshake()
    except BaseException:
        close_socket(secured)
        raise

    return secured
