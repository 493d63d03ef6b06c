"""The HTTP worker service as a program: uvicorn around `wove.services.http`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from wove.errors import MissingDependencyError, install_command
from wove.net.connections import Connections, max_connections
from wove.services.forked import owns_port
from wove.services.http import WorkerApp

if TYPE_CHECKING:
    from wove.services.binding import Bind, ServerTLS
    from wove.services.options import ServiceOptions

__all__ = ["serve"]

logger = logging.getLogger("wove.service")

KEEP_ALIVE_SECONDS: Final = 75
"""How long an idle connection is kept. Clients are told a little less, so that none is closed under a request."""

MARGIN_SECONDS: Final = 5

HANDSHAKE_SECONDS: Final = 10.0
"""How long a TLS handshake may take."""

CLOSE_SECONDS: Final = 3
"""How long the last replies have to get out."""


async def serve(
    options: ServiceOptions,
    bind: Bind,
    tls: ServerTLS | None,
    *,
    started: Callable[[str], object],
    stop: asyncio.Event,
    root_path: str = "",
) -> None:
    """Serve until *stop* is set, and then until what runs has ended.

    Args:
        options: Of the service.
        bind: Where to listen.
        tls: ``None``: plaintext.
        started: Is given the URL once connections are taken.
        stop: Ends it.
        root_path: What a proxy in front takes off the beginning of the path.

    Raises:
        MissingDependencyError: uvicorn is not installed.
        OSError: It cannot listen there.
    """
    server_class = _server_class()
    import uvicorn

    from wove.services.http_protocol import limited_protocol

    app = WorkerApp(options)
    app.keep_alive = KEEP_ALIVE_SECONDS - MARGIN_SECONDS
    context = None if tls is None else tls.context(alpn=["http/1.1"])
    config = uvicorn.Config(
        app,
        lifespan="off",  # the queue is drained before the listener is closed, not after
        log_config=None,
        access_log=False,
        http=limited_protocol(Connections(max_connections(), logger=logger)),
        server_header=False,
        date_header=False,
        root_path=root_path,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ws="none",
    )
    config.load()
    config.ssl = context
    listener = bind.listen()
    at = bind.at(listener)

    with contextlib.closing(listener), owns_port(at.port):
        server = server_class(
            config, lambda: started(f"{'http' if tls is None else 'https'}://{at}")
        )
        await app.queue.start()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await app.queue.drain()
            server.should_exit = True
            await serving
        finally:
            stopping.cancel()
            await app.queue.aclose()


def _server_class() -> Any:
    try:
        import httptools  # noqa: F401  # pyright: ignore[reportUnusedImport]

        # uvicorn would take another parser, which has other limits.
        import uvicorn
    except ImportError:
        raise MissingDependencyError(
            "the HTTP worker service needs uvicorn and httptools. "
            f"Install it with: {install_command('worker')}"
        ) from None

    class Server(uvicorn.Server):
        """Leaves the signals alone, and says when it has started."""

        def __init__(self, config: uvicorn.Config, on_start: Callable[[], object]) -> None:
            super().__init__(config)
            self._on_start = on_start

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn's own lets a TLS handshake take a minute.
            await self.lifespan.startup()
            loop = asyncio.get_running_loop()

            def connection() -> asyncio.Protocol:
                protocol: Any = self.config.http_protocol_class
                made: asyncio.Protocol = protocol(
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                )
                return made

            self.servers = [
                await loop.create_server(
                    connection,
                    sock=sock,
                    ssl=self.config.ssl,
                    ssl_handshake_timeout=None if self.config.ssl is None else HANDSHAKE_SECONDS,
                    backlog=self.config.backlog,
                )
                for sock in sockets or ()
            ]
            self.started = True
            self._on_start()

    return Server
