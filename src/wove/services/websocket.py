"""A worker service over WebSockets: for ``wove worker websocket``, and to mount in a server of your own.

Commands come as messages, on any path. ``GET .../healthz`` and ``.../readyz`` are for monitoring.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack
from weakref import WeakKeyDictionary

from wove.errors import MissingDependencyError, install_command
from wove.net.connections import Connections, max_connections
from wove.protocol import websocket as sockets
from wove.protocol.names import JSON_TYPE, RESUME_HEADER
from wove.services.forked import owns_port
from wove.services.options import ServiceKeywords, ServiceOptions, service_options
from wove.services.queue import RunQueue

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response
    from websockets.typing import Subprotocol

    from wove.services.binding import Bind, ServerTLS
    from wove.services.websocket_peer import Peer

__all__ = ["WorkerSocket", "serve"]

logger = logging.getLogger("wove.service")

CLOSE_SECONDS: Final = 3.0
"""How long the last events have to get out."""

NOT_ALLOWED: Final = 1008
"""Close code "policy violation" (RFC 6455, section 7.4.1)."""

PING_SECONDS: Final = 15.0
PONG_SECONDS: Final = 20.0
"""Between two pings, and how long the answer to one may take."""

OPEN_SECONDS: Final = 10.0
"""How long a client may take for its handshake."""


class WorkerSocket:
    """The handler and the options of a `websockets` server that runs the tasks it is sent.

    Args:
        options: Checked options; or give them as keywords.
        keywords: See `ServiceOptions`. ``security`` is required.

    Raises:
        TypeError: An option is unknown, missing or of the wrong type.
        ValueError: An option is out of range.

    Attributes:
        queue: Where the runs go.

    Example::

        from websockets.asyncio.server import serve
        from wove.services.websocket import WorkerSocket

        async def main():
            async with WorkerSocket(security="env:WOVE_WORKER_SECRET") as worker:
                async with serve(worker.handler, "127.0.0.1", 9000, **worker.settings):
                    await asyncio.Event().wait()
    """

    def __init__(
        self, options: ServiceOptions | None = None, /, **keywords: Unpack[ServiceKeywords]
    ) -> None:
        self.queue = RunQueue(service_options(**keywords) if options is None else options)
        self._security = self.queue.options.security
        self._admitted: WeakKeyDictionary[ServerConnection, None] = WeakKeyDictionary()
        self._serving: dict[asyncio.Future[None], Peer] = {}
        self._connections = Connections(max_connections(), logger=logger)
        self._draining = False

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords for `websockets.asyncio.server.serve`.

        They may be left out, or changed: without ``process_request`` there are no health checks, and handshakes are
        verified in the handler; without ``process_response`` runs are lost with their connection; without
        ``select_subprotocol`` each command is one message; without
        ``create_connection`` neither the connections nor the bytes that arrive over all of them are bounded; and a
        server's own ``max_size`` is 1 MiB.
        """
        from wove.services.websocket_connection import limited_connection

        return {
            "create_connection": limited_connection(self.queue.arriving, self._connections),
            "process_request": self.process_request,
            "process_response": self.process_response,
            "select_subprotocol": self.select_subprotocol,
            "max_size": self.queue.options.max_message_bytes,
            # A client that is gone without a word is noticed within 40 s, where TCP does not notice it sooner.
            "ping_interval": PING_SECONDS,
            "ping_timeout": PONG_SECONDS,
            "compression": None,  # pickles in base64 gain little, for much time
        }

    async def __aenter__(self) -> Self:
        self._draining = False
        await self.queue.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.drain()
        await self.queue.aclose()

    async def drain(self, seconds: float | None = None) -> None:
        """Take no more runs, let those that run end, and close the connections.

        Args:
            seconds: How long the runs have; ``None``: the ``drain_timeout`` of the options.
        """
        self._draining = True
        for peer in self._serving.values():
            peer.drain()
        await self.queue.drain(seconds)
        if self._serving:
            await asyncio.wait(set(self._serving), timeout=CLOSE_SECONDS)

    # ------------------------------------------------------------------ called by the server

    def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks, and refuse handshakes that are not authentic."""
        name = request.path.partition("?")[0].rpartition("/")[2]
        if name == "healthz":
            return _json(connection, 200, {"status": "ok"})
        if name == "readyz":
            return _json(connection, 200 if self.queue.ready else 503, self.queue.status())
        if self._draining:
            return connection.respond(503, "this worker service is about to stop\n")
        if not self._verified(connection, request):
            # The reason is for the log alone: it would tell an attacker how far the request got.
            response = connection.respond(401, "not authorized\n")
            response.headers["WWW-Authenticate"] = (
                "Bearer" if self._security.kind == "bearer" else "Wove"
            )
            return response

        self._admitted[connection] = None
        self._connections.recognized(connection)
        return None

    def process_response(
        self, connection: ServerConnection, request: Request, response: Response
    ) -> None:
        """Tell the client that its runs survive the loss of this connection."""
        del connection, request
        response.headers[RESUME_HEADER] = "1"

    def select_subprotocol(
        self, connection: ServerConnection, subprotocols: Sequence[Subprotocol]
    ) -> Subprotocol | None:
        """Choose what only Wove's own clients offer."""
        del connection
        return next((name for name in subprotocols if name == sockets.OURS), None)

    async def handler(self, connection: ServerConnection) -> None:
        """Serve a client."""
        from wove.services.websocket_peer import Peer

        request = connection.request
        assert request is not None  # there is no connection without
        if connection not in self._admitted and not self._verified(connection, request):
            await connection.close(NOT_ALLOWED, "not authorized")
            return

        headers = list(request.headers.raw_items())
        owner = self._security.principal(headers=headers)
        sign = partial(self._sign, request.path, headers) if self._security.signs_replies else None
        peer = Peer(connection, self.queue, name_of(connection), owner, sign)
        done = asyncio.get_running_loop().create_future()
        self._serving[done] = peer
        if self._draining:
            peer.drain()
        try:
            await peer.serve()
        finally:
            del self._serving[done]
            done.set_result(None)

    # ------------------------------------------------------------------ security

    def _verified(self, connection: ServerConnection, request: Request) -> bool:
        if not self._security.authenticates and "Origin" in request.headers:
            # Any web page can make the browser of someone on this machine connect here. Browsers say so with every
            # handshake (RFC 6455, section 10.2).
            logger.warning("a handshake of a web page was refused, from %s", name_of(connection))
            return False

        try:
            self._security.verify_headers(
                transport="websocket",
                target=request.path,
                body=b"",
                headers=list(request.headers.raw_items()),
            )
        except PermissionError as error:
            logger.warning("a handshake of %s was refused: %s", name_of(connection), error)
            return False

        return True

    def _sign(
        self, target: str, headers: list[tuple[str, str]], chunks: Sequence[bytes], number: int
    ) -> str | None:
        return self._security.reply_signature(
            transport="websocket", target=target, headers=headers, body=chunks, sequence=number
        )


def name_of(connection: ServerConnection) -> str:
    """Return the address of the peer, for the log."""
    address: object = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address or "?")


def _json(connection: ServerConnection, status: int, value: dict[str, Any]) -> Response:
    response = connection.respond(status, json.dumps(value))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = JSON_TYPE
    return response


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """Logs the messages of the websockets package for debugging only: it counts every malformed request as an error."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        del level
        super().log(logging.DEBUG, msg, *args, **kwargs)


async def serve(
    options: ServiceOptions,
    bind: Bind,
    tls: ServerTLS | None,
    *,
    started: Callable[[str], object],
    stop: asyncio.Event,
) -> None:
    """Serve until *stop* is set, and then until what runs has ended.

    Args:
        options: Of the service.
        bind: Where to listen.
        tls: ``None``: plaintext.
        started: Is given the URL once connections are taken.
        stop: Ends it.

    Raises:
        MissingDependencyError: websockets is not installed.
        OSError: It cannot listen there.
    """
    try:
        from websockets.asyncio.server import serve as listen
    except ImportError:
        raise MissingDependencyError(
            "the WebSocket worker service needs the package websockets. "
            f"Install it with: {install_command('websocket')}"
        ) from None

    listener = bind.listen()
    at = bind.at(listener)

    with contextlib.closing(listener), owns_port(at.port):
        context = None if tls is None else tls.context()
        async with WorkerSocket(options) as worker:
            server = await listen(
                worker.handler,
                sock=listener,
                ssl=context,
                open_timeout=OPEN_SECONDS,
                server_header=None,
                logger=_Quiet(logging.getLogger("wove.service.connections"), {}),
                **worker.settings,
            )
            try:
                started(f"{'ws' if tls is None else 'wss'}://{at}")
                await stop.wait()
                await worker.drain()
            finally:
                server.close()
                await server.wait_closed()
