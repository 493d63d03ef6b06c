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
from wove.callback.liveness import WorkerConnection
from wove.callback.routes import EventSubscriber, Route, Routes, RunStatus
from wove.callback.server import Connection
from wove.concurrency import forks
from wove.concurrency.limiter import CapacityLimiter
from wove.errors import DeliveryError
from wove.security import NetworkExecutorSecurity

__all__ = [
    "KEYS",
    "Address",
    "EventSubscriber",
    "Receiver",
    "Route",
    "RunStatus",
    "open_route",
    "read_address",
]

logger = logging.getLogger("wove")

MAX_STRANGERS: Final = 256
"""Connections that have not shown a token. With one more, the one that came first has to go."""

SMALL_ROOM: Final = 4 * 1024 * 1024
"""Bytes that small bodies have for themselves: a sign of life does not wait for a hundred megabytes."""

STRANGERS_ROOM: Final = 32 * 1024 * 1024
"""Bytes for large bodies of requests whose head does not authenticate them (see `wove.protocol.signing.BODY_DIGEST`).
One that is larger has this room to itself."""

BACKLOG: Final = 512
"""Connections that may wait to be accepted: a batch of jobs may report its start in one moment."""

ACCEPTING_TURNS: Final = 3
"""Turns of the loop after which asyncio has told of every connection that it had accepted."""

QUIET_SECONDS: Final = 60.0
"""A refusal is a warning only once in so many seconds for each status: strangers must not fill the log."""

_Key: TypeAlias = tuple[asyncio.AbstractEventLoop, str, range]

_receivers: dict[_Key, Receiver] = {}


async def open_route(
    address: Address,
    party: EventSubscriber,
    *,
    security: NetworkExecutorSecurity,
    max_message_bytes: int,
    label: str,
) -> Route:
    """Let workers post events to *party*. To be called on Wove's background loop.

    Args:
        address: From `read_address`. Routes of one host and port share a receiver.
        party: Who waits for events.
        security: What requests must show. Without it, the token alone.
        max_message_bytes: The largest body. So many bytes are also held at most, of all bodies that are on their way.
        label: Who it is for, in messages: ``"environment 'reports'"``.

    Raises:
        DeliveryError: The port is taken, or the host is not this machine's. The message says what to do.

    Example::

        address = read_address(config, what=what)
        route = await open_route(address, party, security=security, max_message_bytes=2**29, what=what)
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
    return await receiver.open(address, party, security, max_message_bytes, label)


class Receiver:
    """Listens on one address. Made by `open_route`.

    Attributes:
        loop: The loop that it lives on.
        routes: Who waits for events.
        host: What it listens on.
        port: And on which port, as soon as it does.
        large: Where bodies have their place until they are handed over.
        small: Where small ones have it.
        strangers: Where large ones have it that cannot be authenticated before they are there.
        closed: Whether it has come to its end.
    """

    def __init__(self, key: _Key) -> None:
        self.loop, self.host, self._ports = self._key = key
        self.routes = Routes()
        self.large = CapacityLimiter(0)
        self.small = CapacityLimiter(SMALL_ROOM)
        self.strangers = CapacityLimiter(STRANGERS_ROOM)
        self.closed = False
        self._users = 0  # routes that are open, or are being opened
        self._opening = asyncio.Lock()
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}
        self._quiet: asyncio.Future[None] | None = None
        self._reported: dict[int, float] = {}

    # ------------------------------------------------------------------ routes

    async def open(
        self,
        address: Address,
        party: EventSubscriber,
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
                party,
                token=address.token,
                url=address.url_for(self.port),
                port=self.port,
                security=security,
                max_message_bytes=max_message_bytes,
                label=label,
                close=self._leave,
            )
        except BaseException:
            self._forget_user()
            raise

        self.routes.add(route)
        self.large.resize(self.routes.max_message_bytes)
        return route

    async def _leave(self, route: Route) -> None:
        if not self.routes.remove(route):
            return
        self.large.resize(self.routes.max_message_bytes)
        self._forget_user()
        if not self.closed:
            return
        for _ in range(ACCEPTING_TURNS):
            await asyncio.sleep(0)
        if self._connections:
            self._quiet = self.loop.create_future()
            await self._quiet  # they are closed already, and only have to hear of it

    def _forget_user(self) -> None:
        self._users -= 1
        if self._users:
            return
        self.closed = True
        if _receivers.get(self._key) is self:
            del _receivers[self._key]
        self._deafen()
        for connection in list(self._connections):
            connection.shut()

    def _deafen(self) -> None:
        for sock in self._sockets:
            forks.untrack(sock.fileno())
        for server in self._servers:
            server.close()
        self.abandon()

    def abandon(self) -> None:
        """Stop listening, without a word to a loop that is no more."""
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

        places = [(family, place) for family, _, _, _, place in dict.fromkeys(found)]
        self._sockets = self._bound(places, label)
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
            self._deafen()
            raise

    def _bound(
        self, places: Sequence[tuple[int, tuple[Any, ...]]], label: str
    ) -> list[socket.socket]:
        """Sockets that listen, all on one port: the first that is free."""
        error: OSError | None = None

        for port in self._ports:
            for _ in range(
                4 if len(places) > 1 and not port else 1
            ):  # any port: that may be taken on the other one
                try:
                    return _listening(places, port)
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

    def arrived(self, connection: Connection) -> None:
        """Somebody has connected."""
        self._connections.add(connection)
        self._strangers[connection] = None

        if self.closed:
            connection.drop()
        elif len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.drop()

    def recognized(self, connection: Connection) -> None:
        """It is not a stranger's."""
        self._strangers.pop(connection, None)

    def left(self, connection: Connection, line: WorkerConnection) -> None:
        """It has ended."""
        self._connections.discard(connection)
        self._strangers.pop(connection, None)

        for route, run_ids in self.routes.presence.lost(line).items():
            try:
                route.party.gone(run_ids, line.worker)
            except Exception as error:
                self.report(f"the end of a worker's connection could not be told: {error}", error)

        if not self._connections and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    # ------------------------------------------------------------------ log

    def refused(self, status: int, text: str) -> None:
        """Log a refusal."""
        now = self.loop.time()
        loud = (
            status in (401, 403, 404, 413, 500)
            and now - self._reported.get(status, -QUIET_SECONDS) >= QUIET_SECONDS
        )
        if loud:
            self._reported[status] = now
        logger.log(
            logging.WARNING if loud else logging.DEBUG,
            "callback receiver, port %d: %s",
            self.port,
            _escaped(text),
        )

    def report(self, text: str, error: BaseException | None = None) -> None:
        """Log what should not be."""
        logger.error("callback receiver, port %d: %s", self.port, _escaped(text), exc_info=error)


def _escaped(text: str) -> str:
    """Return *text* with line breaks and other control characters escaped: some of it came from outside."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _listening(places: Sequence[tuple[int, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []

    with contextlib.ExitStack() as undo:
        for family, place in places:
            # asyncio sets TCP_NODELAY only where the protocol is named.
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            undo.callback(sock.close)
            if os.name == "posix":  # elsewhere it lets two processes have one port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # All of IPv6 is all of this machine, as 0.0.0.0 cannot be; one address is one address.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
            sock.setblocking(False)
            sock.bind(
                (place[0], port or (sockets[0].getsockname()[1] if sockets else 0), *place[2:])
            )
            sock.listen(
                BACKLOG
            )  # two processes may both have bound it, and only one of them may listen
            sockets.append(sock)
        undo.pop_all()

    return sockets


def reset_after_fork() -> None:
    """In a forked child: `forks` has let go of the sockets, and everything else is the parent's."""
    for receiver in _receivers.values():
        receiver.abandon()
    _receivers.clear()


forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
