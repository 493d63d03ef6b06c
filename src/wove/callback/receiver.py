"""The callback receiver: a small HTTP server that workers post events to, on Wove's background loop.

There is one per address and process, whichever environments and threads wait for events on it. It opens with the
first route and closes with the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from wove.callback.address import KEYS, Address, read_address
from wove.callback.liveness import ConnectionEnd, WorkerConnection
from wove.callback.routes import EventSubscriber, Route, Routes, RunStatus
from wove.callback.server import Connection
from wove.concurrency import forks
from wove.concurrency.limiter import CapacityLimiter
from wove.errors import DeliveryError
from wove.net.connections import Connections, max_connections
from wove.security import NetworkExecutorSecurity

__all__ = [
    "KEYS",
    "Address",
    "ConnectionEnd",
    "EventSubscriber",
    "Receiver",
    "Route",
    "RunStatus",
    "open_route",
    "read_address",
]

logger = logging.getLogger("wove")

MAX_STRANGERS: Final = 256
"""Maximum number of connections that have not shown a token. One more, and the oldest of them is aborted. All
connections together stay below this process's limit of descriptors."""

SMALL_BODIES_BYTES: Final = 4 * 1024 * 1024
"""Memory for small bodies: a heartbeat does not wait for a hundred megabytes."""

STRANGERS_BODIES_BYTES: Final = 32 * 1024 * 1024
"""Memory for large bodies of requests whose head does not authenticate them (see `wove.protocol.signing.BODY_DIGEST`).
A larger body than this is read alone."""

BACKLOG: Final = 512
"""Connections that may wait to be accepted: a batch of jobs may report its start in one moment."""

ACCEPTING_STEPS: Final = 3
"""Steps of the loop after which asyncio has reported every connection that it had accepted."""

WARNING_INTERVAL_SECONDS: Final = 60.0
"""Minimum time between two warnings about refusals with one status: strangers must not fill the log."""

_Key: TypeAlias = tuple[asyncio.AbstractEventLoop, str, range]

_receivers: dict[_Key, Receiver] = {}


async def open_route(
    address: Address,
    subscriber: EventSubscriber,
    *,
    security: NetworkExecutorSecurity,
    max_message_bytes: int,
    label: str,
) -> Route:
    """Let workers post events to *subscriber*. To be called on Wove's background loop.

    Args:
        address: From `read_address`. Routes of one host and port share a receiver.
        subscriber: Receives the events.
        security: What requests must show, beside the token.
        max_message_bytes: Maximum size of a body, and of all bodies together that are being received.
        label: Whom the route is for, in messages: ``"environment 'reports'"``.

    Raises:
        DeliveryError: The port is taken, or the host is not this machine's. The message says what to do.

    Example::

        address = read_address(config, label=label)
        route = await open_route(address, subscriber, security=security, max_message_bytes=2**29, label=label)
        payload = build(frame, adapter="celery", callback_url=route.url)
        ...
        await route.close()
    """
    loop = asyncio.get_running_loop()
    for key in [key for key in _receivers if key[0].is_closed()]:
        _receivers.pop(key).abandon()
    key = (loop, address.host, address.ports)
    receiver = _receivers.get(key)
    if receiver is None:
        receiver = _receivers[key] = Receiver(key)
    return await receiver.open(address, subscriber, security, max_message_bytes, label)


class Receiver:
    """Listens on one address. Made by `open_route`.

    Attributes:
        loop: The loop that it lives on.
        routes: The open routes.
        host: The address that it listens on.
        port: The port that it listens on; 0 before it does.
        large: Limits the memory of large bodies, until their events are delivered.
        small: Limits the memory of small bodies.
        strangers: Limits the memory of large bodies that cannot be authenticated before they have arrived.
        closed: Whether it is closed.
    """

    def __init__(self, key: _Key) -> None:
        self.loop, self.host, self._ports = self._key = key
        self.routes = Routes()
        self.large = CapacityLimiter(0)
        self.small = CapacityLimiter(SMALL_BODIES_BYTES)
        self.strangers = CapacityLimiter(STRANGERS_BODIES_BYTES)
        self.closed = False
        self._users = 0  # routes that are open, or are being opened
        self._opening = asyncio.Lock()
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._limits = Connections(
            max_connections(),
            max_strangers=MAX_STRANGERS,
            logger=logger,
            label="callback receiver: ",
        )
        self._emptied: asyncio.Future[None] | None = None
        self._reported: dict[int, float] = {}  # when a status was last warned of

    # ------------------------------------------------------------------ routes

    async def open(
        self,
        address: Address,
        subscriber: EventSubscriber,
        security: NetworkExecutorSecurity,
        max_message_bytes: int,
        label: str,
    ) -> Route:
        """See `open_route`."""
        self._users += 1

        try:
            async with self._opening:
                if not self._servers:
                    await self._listen(label)
            route = Route(
                subscriber,
                token=address.token,
                url=address.url_for(self.port),
                port=self.port,
                security=security,
                max_message_bytes=max_message_bytes,
                label=label,
                close=self._close_route,
            )
        except BaseException:
            self._release_user()
            raise

        self.routes.add(route)
        self.large.resize(self.routes.max_message_bytes)
        return route

    async def _close_route(self, route: Route) -> None:
        if not self.routes.remove(route):
            return
        self.large.resize(self.routes.max_message_bytes)
        self._release_user()
        if not self.closed:
            return
        for _ in range(ACCEPTING_STEPS):
            await asyncio.sleep(0)
        if self._connections:
            self._emptied = self.loop.create_future()
            await self._emptied  # they are closed already, but asyncio has not reported it

    def _release_user(self) -> None:
        self._users -= 1
        if self._users:
            return
        self.closed = True
        if _receivers.get(self._key) is self:
            del _receivers[self._key]
        self._stop_listening()
        for connection in list(self._connections):
            connection.close()

    def _stop_listening(self) -> None:
        for sock in self._sockets:
            forks.untrack(sock.fileno())
        for server in self._servers:
            server.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the listening sockets, without telling a loop that may be closed."""
        for sock in self._sockets:
            forks.untrack(sock.fileno())
            sock.close()
        self._servers.clear()
        self._sockets.clear()

    # ------------------------------------------------------------------ listening

    async def _listen(self, label: str) -> None:
        try:
            found = await self.loop.getaddrinfo(
                self.host,
                None,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV,
            )
        except (OSError, UnicodeError) as error:
            raise DeliveryError(
                f"{label}: there is no host {self.host!r} to listen on (executor_config 'callback_host'): {error}"
            ) from error

        addresses = [(family, address) for family, _, _, _, address in dict.fromkeys(found)]
        self._sockets = self._bound(addresses, label)
        self.port = self._sockets[0].getsockname()[1]

        try:
            for sock in self._sockets:
                forks.blank(sock.fileno())
                self._servers.append(
                    await self.loop.create_server(
                        lambda: Connection(self), sock=sock, backlog=BACKLOG
                    )
                )
        except BaseException:
            self._stop_listening()
            raise

    def _bound(
        self, addresses: Sequence[tuple[int, tuple[Any, ...]]], label: str
    ) -> list[socket.socket]:
        """Return listening sockets, all on one port: the first that is free."""
        error: OSError | None = None

        for port in self._ports:
            # Any port: the one that is found may not be free on the other address.
            for _ in range(4 if len(addresses) > 1 and not port else 1):
                try:
                    return _listening(addresses, port)
                except OSError as raised:
                    error = raised
                    if raised.errno not in (errno.EADDRINUSE, errno.EACCES):
                        break

        assert error is not None
        raise DeliveryError(f"{label}: {self._explained(error)}") from error

    def _explained(self, error: OSError) -> str:
        first, last = self._ports[0], self._ports[-1]
        ports = f"port {first}" if first == last else f"ports {first} to {last}"
        where = f"{ports} on {self.host} (executor_config 'callback_port')"
        ours = [
            other
            for other in _receivers.values()
            if other is not self and other.port in self._ports
        ]
        if error.errno == errno.EADDRINUSE and ours:
            return (
                f"another environment of this process listens on the callback port {ours[0].port} of {ours[0].host}: "
                "give both the same 'callback_host' and 'callback_port', and they share it, or give them other ports"
            )

        if error.errno == errno.EADDRINUSE:
            taken = "is taken" if first == last else "are all taken"
            return (
                f"the callback {where} {taken} by another process. Give it another port; or 0, for any; or for a "
                'server of several processes a range such as "9010-9019", of which each takes one that is free. Where '
                "'callback_url' is set, it then needs {port} in the place of the port"
            )

        if error.errno == errno.EACCES:
            return f"this process may not listen on the callback {where}: give a port above 1023"
        if error.errno == errno.EADDRNOTAVAIL:
            return (
                f"{self.host} (executor_config 'callback_host') is not an address of this machine: give one that is, "
                "or 0.0.0.0 for all; what workers call is 'callback_url'"
            )

        return f"cannot listen on the callback {where}: {error}"

    # ------------------------------------------------------------------ connections

    def add_connection(self, connection: Connection) -> None:
        """Called for each new connection."""
        self._connections.add(connection)
        if self.closed:
            connection.abort()
        else:
            self._limits.arrived(connection, connection.abort)

    def on_recognized(self, connection: Connection) -> None:
        """Called when the connection has shown that it is not a stranger's."""
        self._limits.recognized(connection)

    def remove_connection(
        self, connection: Connection, worker: WorkerConnection, end: ConnectionEnd
    ) -> None:
        """Called when the connection has ended."""
        self._connections.discard(connection)
        self._limits.left(connection)

        for route, run_ids in self.routes.liveness.remove_connection(worker).items():
            try:
                route.subscriber.on_connection_lost(run_ids, worker.worker, end)
            except Exception as error:
                self.log_error(
                    f"the end of a worker's connection could not be told: {error}", error
                )

        if not self._connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    # ------------------------------------------------------------------ log

    def log_refusal(self, status: int, text: str) -> None:
        """Log a refusal."""
        now = self.loop.time()
        warns = (
            status in (401, 403, 404, 413, 500)
            and now - self._reported.get(status, -WARNING_INTERVAL_SECONDS)
            >= WARNING_INTERVAL_SECONDS
        )
        if warns:
            self._reported[status] = now
        logger.log(
            logging.WARNING if warns else logging.DEBUG,
            "callback receiver, port %d: %s",
            self.port,
            _escaped(text),
        )

    def log_error(self, text: str, error: BaseException | None = None) -> None:
        """Log a fault of this process."""
        logger.error("callback receiver, port %d: %s", self.port, _escaped(text), exc_info=error)


def _escaped(text: str) -> str:
    """Return *text* with line breaks and other control characters escaped: some of it came from outside."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _listening(addresses: Sequence[tuple[int, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []

    with contextlib.ExitStack() as undo:
        for family, address in addresses:
            # asyncio sets TCP_NODELAY only where the protocol is given.
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            undo.callback(sock.close)
            if os.name == "posix":  # on Windows two processes could then listen on one port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
            sock.setblocking(False)
            sock.bind(
                (address[0], port or (sockets[0].getsockname()[1] if sockets else 0), *address[2:])
            )
            # Two processes may both have bound the port, but only one of them may listen.
            sock.listen(BACKLOG)
            sockets.append(sock)
        undo.pop_all()

    return sockets


def reset_after_fork() -> None:
    """In a forked child: `forks` has let go of the sockets, and everything else is the parent's."""
    for receiver in _receivers.values():
        receiver.abandon()
    _receivers.clear()


forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
