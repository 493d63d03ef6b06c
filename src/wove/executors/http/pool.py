"""A pool of HTTP/1.1 connections to one origin, which assigns requests to them."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from wove.concurrency.backoff import Backoff
from wove.executors.http.connection import Connection
from wove.executors.http.tls import TLS
from wove.executors.network.hints import advice_for_certificate, says_refused, start_advice
from wove.net.http1 import Head
from wove.security.endpoints import refuse_foreign_peer

__all__ = ["Call", "FailureKind", "Origin", "Pool"]

logger = logging.getLogger("wove")

URGENT_CONNECTIONS: Final = 8
"""Maximum number of connections beyond ``max_connections``, for cancels: a cancel must not wait for runs to end."""

RECONNECT: Final = Backoff(0.05, 0.5)
"""The delay between two attempts to connect to a service that is down."""

NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address is tried before the next one is tried beside it (RFC 8305, section 5)."""

GOODBYE_SECONDS: Final = 1.0
"""How long connections may take to close when the pool is closed."""

ARRIVAL_SECONDS: Final = 0.25
"""How long an attempt to connect may still succeed when the pool is closed, in seconds. One that is cancelled in the
moment of its success loses its socket: asyncio lets go of it unclosed (`asyncio.staggered`)."""

FailureKind: TypeAlias = Literal["lost", "late", "refused"]
"""How a request failed: no response, none in time, or not a valid one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The server to connect to.

    Attributes:
        host: Name or address, without brackets.
        port: Its port.
        tls: The context, for ``https``.
        max_body_bytes: Maximum size of a response body, in bytes.
        only_local: Whether the connection must lead to this machine.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    max_body_bytes: int
    only_local: bool = False

    @property
    def address(self) -> str:
        """``HOST:PORT``, an IPv6 address in brackets."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls is not None else 'http'}://{self.address}"

    def hint(self) -> str:
        """Return why a service may close a fresh connection without an answer."""
        if self.tls is None:
            return f"If {self} expects TLS, its url begins with https://"
        # In TLS 1.3 the client is done before its certificate is looked at (RFC 8446, 4.4.2.4 and 2).
        return (
            f"Perhaps {self} wants another certificate of its clients, or one at all "
            "(executor_config 'client_certificate' and 'client_key')"
        )


class Call(abc.ABC):
    """One request and its answer. Exactly one of `answered` and `failed` is called, once.

    Attributes:
        urgent: Whether it may have a connection beyond the limit.
        limit: Seconds from getting a connection to the end of the answer; ``None`` for no limit.
        connection: The connection that carries it, once there is one.
        queued_at: When it was submitted, in the loop's time.
        down_since: When connecting failed for the first time since then.
        patient: Whether a refused connection is tried again.
        tainted: Whether the response was invalid, so that its connection is not used again.
    """

    __slots__ = (
        "connection",
        "down_since",
        "limit",
        "patient",
        "tainted",
        "queued",
        "queued_at",
        "urgent",
    )

    def __init__(self, *, urgent: bool, limit: float | None) -> None:
        self.urgent = urgent
        self.limit = limit
        self.tainted = self.queued = False
        self.patient = True
        self.connection: Connection | None = None
        self.queued_at = 0.0
        self.down_since: float | None = None

    @abc.abstractmethod
    def begin(self) -> tuple[bytes, list[bytes]]:
        """Head and body, asked for when they are about to be sent."""

    @abc.abstractmethod
    def streams(self, head: Head) -> bool:
        """Whether `part` takes the body of this answer as it comes."""

    @abc.abstractmethod
    def part(self, piece: bytes) -> int:
        """Process a piece of the body. Return the number of the incomplete line, from 1; 0 if there is none."""

    @abc.abstractmethod
    def answered(self, head: Head, body: list[bytes], *, cut: bool) -> None:
        """Called at the end of the answer. *body* was not passed to `part`; *cut* says that more was dropped."""

    @abc.abstractmethod
    def failed(
        self, failure: FailureKind, message: str, cause: BaseException | None = None
    ) -> None:
        """Called when there is no answer. *message* completes a sentence whose subject is the request."""


class Pool:
    """A pool of at most *max_connections* connections to *origin*, for one loop.

    Args:
        origin: The server to connect to.
        max_connections: Maximum number of connections; calls beyond that wait for one.
        connect_seconds: How long connecting may take, TLS included; ``None`` for no limit.
        reconnect_seconds: How long connecting is retried with a service that was there before; ``None`` for no
            limit.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        max_connections: int,
        connect_seconds: float | None,
        reconnect_seconds: float | None,
    ) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self._max_connections = max_connections
        self._connect_seconds = connect_seconds
        self._reconnect_seconds = reconnect_seconds
        self._queue: deque[Call] = deque()
        self._urgent: deque[Call] = deque()
        self._idle: list[Connection] = []  # the one that was used last is taken first
        self._open: set[Connection] = set()
        self._draining: set[Connection] = set()
        self._closing: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._failures = 0  # of connecting, in a row
        self._was_there = False
        self._closed: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ calls

    def submit(self, call: Call) -> None:
        """Send *call* over the connection that is free, or the next one that is."""
        queue = self._urgent if call.urgent else self._queue
        if not queue:
            connection = self._free()
            if connection is not None:
                connection.start(call)
                return

        call.queued_at = self.loop.time()
        call.queued = True
        queue.append(call)
        self._connect()

    def recall(self, call: Call) -> bool:
        """Whether *call* was still waiting, and has been taken back."""
        if not call.queued:
            return False
        call.queued = False
        (self._urgent if call.urgent else self._queue).remove(call)
        return True

    def withdraw(self, call: Call) -> None:
        """Give up *call*: neither of its methods is called any more."""
        connection = call.connection
        if connection is not None:
            call.connection = None
            connection.detach(keep=not call.tainted)
        else:
            self.recall(call)

    async def close(self) -> None:
        """Close all connections. No call may be waiting."""
        self._closed = (
            self.loop.create_future()
        )  # a connection that comes about now is closed at once
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=ARRIVAL_SECONDS)
        for handle in (self._sweep, self._retry):
            if handle is not None:
                handle.cancel()

        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=GOODBYE_SECONDS)
        self._closed = self.loop.create_future()
        for connection in list(self._open):
            connection.close()
        if self._closing:
            await asyncio.wait({self._closed}, timeout=GOODBYE_SECONDS)
        for connection in list(self._closing):
            connection.abort()
        while self._closing:
            self._closed = self.loop.create_future()
            await asyncio.wait({self._closed}, timeout=GOODBYE_SECONDS)

    # ------------------------------------------------------------------ called by connections

    def on_idle(self, connection: Connection) -> None:
        """Called when *connection* can take another request."""
        self._draining.discard(connection)
        surplus = len(self._open) > self._max_connections

        if self._urgent:
            connection.start(self._next(self._urgent))
        elif surplus or self._closed is not None:
            connection.close()
        elif self._queue:
            connection.start(self._next(self._queue))
        else:
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = self.loop.call_at(connection.idle_until, self._close_expired)

    def _next(self, queue: deque[Call]) -> Call:
        call = queue.popleft()
        call.queued = False
        return call

    def on_draining(self, connection: Connection) -> None:
        """Called when *connection* is about to become idle or to be closed, so that a call may wait for it."""
        self._draining.add(connection)

    def on_closing(self, connection: Connection) -> None:
        """Called when *connection* takes no more requests and is being closed."""
        if connection in self._open:
            self._open.remove(connection)
            self._draining.discard(connection)
            self._closing.add(connection)
            with contextlib.suppress(ValueError):
                self._idle.remove(connection)
            self._connect()

    def on_closed(self, connection: Connection) -> None:
        """Called when *connection* is closed."""
        self.on_closing(connection)
        self._closing.discard(connection)
        if not self._closing and self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def close_idle(self) -> None:
        """Close idle connections after a request failed: they may be as broken, so the next call gets a fresh one."""
        for connection in list(self._idle):
            connection.close()

    # ------------------------------------------------------------------ idle connections

    def _free(self) -> Connection | None:
        now = self.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_until > now and not connection.stale():
                return connection
            connection.close()
        return None

    def _close_expired(self) -> None:
        self._sweep = None
        now = self.loop.time()
        for connection in [known for known in self._idle if known.idle_until <= now]:
            connection.close()
        if self._idle:
            self._sweep = self.loop.call_at(
                min(known.idle_until for known in self._idle), self._close_expired
            )

    # ------------------------------------------------------------------ connecting

    def _connect(self) -> None:
        """Start an attempt for each waiting call, within the limits; one at a time while the service is down."""
        if self._closed is not None:
            return
        waiting = len(self._queue) + len(self._urgent) - len(self._draining)
        room = (
            self._max_connections + (min(URGENT_CONNECTIONS, len(self._urgent))) - len(self._open)
        )
        if self._failures:
            room = 0 if self._retry is not None else min(room, 1)
        while len(self._connecting) < min(waiting, room):
            task = self.loop.create_task(self._attempt())
            self._connecting.add(task)

    async def _attempt(self) -> None:
        began = self.loop.time()
        connection: Connection | None = None
        error: Exception | None = None
        try:
            connection = await self._connected()
        except Exception as raised:  # a resolver may raise UnicodeError, too
            error = raised

        self._connecting.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if error is None and connection is not None:
            error = connection.broken()
        if error is not None or connection is None:
            assert error is not None
            self._unconnected(
                began, f"no connection to {self.origin}: {self._describe(error)}", error
            )
            return

        self._failures = 0
        self._was_there = True
        self._open.add(connection)
        self.on_idle(connection)
        self._connect()

    async def _connected(self) -> Connection:
        origin = self.origin

        async with asyncio.timeout(self._connect_seconds):
            _, connection = await self.loop.create_connection(
                lambda: Connection(self),
                origin.host,
                origin.port,
                happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
            )
            if origin.only_local:
                try:
                    refuse_foreign_peer(connection.peer, origin.host)
                except ValueError:
                    connection.abort()
                    raise
            if origin.tls is not None:
                await connection.secure(TLS(origin.tls, origin.host))

        return connection

    def _unconnected(self, began: float, message: str, error: Exception) -> None:
        """Fail the calls that waited for the attempt of time *began*, or schedule another attempt."""
        # Neither a certificate nor a name will be another one in a second.
        untrusted = isinstance(error, (ssl.SSLError, ValueError))
        hopeless = untrusted or not self._was_there
        now = self.loop.time()
        failing: list[Call] = []

        for queue in (self._urgent, self._queue):
            for call in [known for known in queue if known.queued_at <= began]:
                if call.down_since is None:
                    call.down_since = began
                patience = self._reconnect_seconds
                if not call.patient and says_refused(message):
                    patience = 0.0
                if hopeless or (patience is not None and now - call.down_since >= patience):
                    self.recall(call)
                    failing.append(call)

        if not hopeless:
            logger.debug("%s; trying again", message)
            self._failures += 1
            if self._retry is None:
                delay = RECONNECT.delay(self._failures)
                self._retry = self.loop.call_later(delay, self._try_again)

        for call in failing:
            call.failed("refused" if untrusted else "lost", message, error)
        self._connect()

    def _try_again(self) -> None:
        self._retry = None
        self._connect()

    def _describe(self, error: Exception) -> str:
        """Return the message of the system or of OpenSSL, with advice."""
        if isinstance(error, TimeoutError) and not error.args:
            return f"none within {self._connect_seconds:g} s (executor_config 'connect_timeout')"
        if isinstance(error, ssl.SSLCertVerificationError):
            return advice_for_certificate(error)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS. If that is meant, use http:// in the url"
        if isinstance(error, ValueError):
            return str(error)
        advice = start_advice("http", self.origin.address, str(error))
        return f"{type(error).__name__}: {error}{advice}" if str(error) else type(error).__name__
