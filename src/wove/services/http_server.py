"""The HTTP worker service as a program: uvicorn around `wove.services.http`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from wove.errors import MissingDependencyError, install_command
from wove.services.http import WorkerApp

if TYPE_CHECKING:
    from wove.services.binding import Bind, ServerTLS
    from wove.services.options import ServiceOptions

__all__ = ["serve"]

KEEP_ALIVE_SECONDS: Final = 75
"""How long an idle connection is kept. Clients are told a little less, so that none is closed under a request."""

MARGIN_SECONDS: Final = 5

HEAD_SECONDS: Final = 10.0
"""A connection is closed when it has been without a complete request head this often in a row, twice."""

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

    app = WorkerApp(options)
    app.keep_alive = KEEP_ALIVE_SECONDS - MARGIN_SECONDS
    context = None if tls is None else tls.context(alpn=["http/1.1"])
    config = uvicorn.Config(
        app,
        lifespan="off",  # the desk is drained before the listener is closed, not after
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        root_path=root_path,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ws="none",
    )
    config.load()
    config.ssl = context
    config.http_protocol_class = _guarded(config.http_protocol_class)
    listener = bind.listen()
    with contextlib.closing(listener):
        at = bind.at(listener)
        server = server_class(
            config, lambda: started(f"{'http' if tls is None else 'https'}://{at}")
        )
        await app.desk.start()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await app.desk.drain()
            server.should_exit = True
            await serving
        finally:
            stopping.cancel()
            await app.desk.aclose()


def _server_class() -> Any:
    try:
        import uvicorn
    except ImportError:
        raise MissingDependencyError(
            f"the HTTP worker service needs uvicorn. Install it with: {install_command('worker')}"
        ) from None

    class Server(uvicorn.Server):
        """Leaves the signals alone, and says when it has started."""

        def __init__(self, config: uvicorn.Config, tell: Callable[[], object]) -> None:
            super().__init__(config)
            self._tell = tell

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                self._tell()

    return Server


def _guarded(protocol: Any) -> Any:
    """*protocol*, giving up connections whose request never gets complete; uvicorn would keep them for ever."""

    class Guarded(protocol):  # type: ignore[misc]  # it is only known at run time
        def connection_made(self, transport: Any) -> None:
            parent: Any = super()
            parent.connection_made(transport)
            self._guard(False)

        def _guard(self, overdue: bool) -> None:
            if self.transport.is_closing():
                return
            # Between two requests uvicorn's own timer runs, and during one there is a cycle that is not complete.
            between = self.timeout_keep_alive_task is not None
            served = self.cycle is not None and not self.cycle.response_complete
            if overdue and not (between or served):
                self.transport.close()
                return
            self.loop.call_later(HEAD_SECONDS, self._guard, not (between or served))

    return Guarded
