"""A worker service as a gRPC handler: for ``wove worker grpc``, and to mount in a `grpc.aio` server of your own.

Importing this module needs grpcio.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Unpack
from urllib.parse import unquote

from wove.concurrency.thread_pool import run_in_thread
from wove.errors import MissingDependencyError, install_command
from wove.protocol import signing
from wove.protocol.codec import encode_events
from wove.protocol.frames import TERMINAL, FrameError
from wove.services.forked import owns_port
from wove.services.options import ServiceKeywords, ServiceOptions, service_options
from wove.services.queue import RunQueue
from wove.services.strangers import max_connections
from wove.services.wire import decode_command, is_big, is_big_reply, no_room

try:
    import grpc
    import grpc.aio
except ImportError:
    raise MissingDependencyError(
        f"the gRPC worker service needs the package grpc. Install it with: {install_command('grpc')}"
    ) from None

if TYPE_CHECKING:
    from wove.services.binding import Bind, ServerTLS

__all__ = ["WorkerHandler", "serve", "worker_handler"]

logger = logging.getLogger("wove.service")

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

DEFAULT_METHOD: Final = "/wove.network_executor.WorkerService/Send"
REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower()

# grpc/health/v1/health.proto: HealthCheckRequest has the text `service` as field 1, HealthCheckResponse the
# enumeration `status` as field 1, SERVING = 1 and NOT_SERVING = 2.
HEALTH: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = b"\x08\x01"
NOT_SERVING: Final = b"\x08\x02"
LIVENESS: Final = "liveness"
"""The name to ask for whether the service is there at all, whether or not it has room."""

STOP_SECONDS: Final = 3.0
"""How long the last replies have to get out."""

PING_SECONDS: Final = 20.0
"""A client that does not answer this ping is gone, and its runs are given up."""

HANDSHAKE_SECONDS: Final = 10.0
"""How long a connection may take until HTTP/2 is spoken over it, TLS included."""

MAX_METADATA_BYTES: Final = 64 * 1024

MAX_PENDING: Final = 100_000

NOTHING: Final = b'{"events":[]}'


def worker_handler(
    options: ServiceOptions | None = None,
    /,
    *,
    method: str = DEFAULT_METHOD,
    **keywords: Unpack[ServiceKeywords],
) -> WorkerHandler:
    """A handler that runs the tasks it is sent, for ``server.add_generic_rpc_handlers((handler,))``.

    Make the `grpc.aio` server with the options ``grpc.max_receive_message_length`` and
    ``grpc.max_send_message_length`` of -1: gRPC takes 4 MiB otherwise, and the handler has its own limit.

    Args:
        options: Checked options; or give them as keywords.
        method: The full path of the method that takes commands.
        keywords: See `ServiceOptions`. ``security`` is required.

    Raises:
        TypeError: An option is unknown, missing or of the wrong type.
        ValueError: An option is out of range.

    Example::

        handler = worker_handler(security="env:WOVE_WORKER_SECRET")
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ...])
        server.add_generic_rpc_handlers((handler,))
        ...
        await handler.desk.drain()
        await server.stop(grace=5)
        await handler.desk.aclose()
    """
    return WorkerHandler(service_options(**keywords) if options is None else options, method)


class WorkerHandler(grpc.GenericRpcHandler):
    """The generic handler that `worker_handler` makes.

    It answers its own method, and ``/grpc.health.v1.Health/Check``: ``SERVING`` while it would take a run, and
    for the service name ``"liveness"`` as long as it is there.

    Attributes:
        desk: Where the runs go.
    """

    def __init__(self, options: ServiceOptions, method: str) -> None:
        self.desk = RunQueue(options)
        self._method = method
        self._security = options.security
        self._most = options.max_message_bytes
        self._send: Any = grpc.unary_unary_rpc_method_handler(self._serve)
        self._health: Any = grpc.unary_unary_rpc_method_handler(self._check)
        # It takes a stream so that not even the request is read.
        self._refusal: Any = grpc.stream_unary_rpc_method_handler(self._refuse)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Who answers a call; ``None`` for a method that is not ours."""
        handler: grpc.RpcMethodHandler[bytes, bytes] | None = None
        if handler_call_details.method == self._method:
            handler = self._send
            if self._security.authenticates:
                try:
                    self._security.screen_metadata(
                        metadata=_pairs(handler_call_details.invocation_metadata)
                    )
                except PermissionError:
                    handler = self._refusal
        elif handler_call_details.method == HEALTH:
            handler = self._health
        return handler

    async def _refuse(self, request: object, context: Context) -> bytes:
        del request
        try:
            self._security.screen_metadata(metadata=_pairs(context.invocation_metadata()))
        except PermissionError as error:
            await self._not_allowed(context, error)
        raise AssertionError("what was refused a moment ago is not any more")

    async def _check(self, request: bytes, context: Context) -> bytes:
        name = _service_name(request)
        if name == LIVENESS:
            return SERVING
        if name in ("", self._method[1:].partition("/")[0]):
            return SERVING if self.desk.ready else NOT_SERVING
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        raise AssertionError

    async def _serve(self, request: bytes, context: Context) -> bytes:
        # gRPC makes objects of it at each asking; nobody asks for them without authentication.
        metadata = _pairs(context.invocation_metadata()) if self._security.authenticates else []
        frame = await self._command(request, metadata, context)
        size = len(request)
        del request  # it may be large, and the run may take long
        if frame is None:
            return b"".join(encode_events([no_room()]))
        if isinstance(frame, FrameError):
            logger.warning("a call of %s (%d bytes) was refused: %s", _peer(context), size, frame)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(frame)[:1000])
            raise AssertionError
        owner = self._security.principal(headers=metadata)
        if frame["type"] == "cancel_task":
            self.desk.cancel(frame, owner=owner)
            return self._signed([NOTHING], metadata, context)
        events = [await self._run(frame, owner, context)]
        del frame
        if not is_big_reply(events):
            return self._signed(encode_events(events), metadata, context)
        return await run_in_thread(lambda: self._signed(encode_events(events), metadata, context))

    async def _command(
        self, request: bytes, metadata: _Pairs, context: Context
    ) -> dict[str, Any] | FrameError | None:
        """The frame, once it has been verified; ``None`` if there is no room for that.

        Nobody has looked into it before.
        """
        size = len(request)
        if size > self._most:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the request has {size} bytes, more than {self._most}, the limit of this worker service",
            )
        if not is_big(size):
            try:
                self._verify(request, metadata)
            except PermissionError as error:
                await self._not_allowed(context, error)
            return _decode(request)
        if not self.desk.unverified.try_acquire(size):
            return None
        try:
            await run_in_thread(self._verify, request, metadata)
        except PermissionError as error:
            await self._not_allowed(context, error)
        finally:
            self.desk.unverified.release(size)
        return await run_in_thread(_decode, request)

    def _verify(self, request: bytes, metadata: _Pairs) -> None:
        self._security.verify_metadata(
            transport="grpc", target=self._method, body=request, metadata=metadata
        )

    async def _run(self, frame: dict[str, Any], owner: str, context: Context) -> dict[str, Any]:
        """The last event of a run. Who waits for one reply learns from that, too, where it ran."""
        place: dict[str, Any] = {}
        last: dict[str, Any] | None = None
        over: asyncio.Future[None] | None = None

        def tell(event: dict[str, Any]) -> None:
            nonlocal last
            if event["type"] == "task_started":
                place.update({name: event[name] for name in ("host", "pid") if name in event})
            elif event["type"] in TERMINAL:
                last = event
                if over is not None and not over.done():
                    over.set_result(None)

        ticket = self.desk.take(frame, tell, peer=_peer(context), owner=owner)
        del frame
        if last is None:
            over = asyncio.get_running_loop().create_future()
            try:
                await over
            finally:
                # grpc.aio cancels a handler whose client has gone.
                self.desk.leave(ticket)
        assert last is not None
        return {**last, **place}

    def _signed(self, chunks: Sequence[bytes], metadata: _Pairs, context: Context) -> bytes:
        """The reply as one; its signature goes to the trailing metadata."""
        signature = self._security.reply_signature(
            transport="grpc", target=self._method, headers=metadata, body=chunks, sequence=0
        )
        if signature is not None:
            context.set_trailing_metadata(((REPLY_SIGNATURE, signature),))
        if len(chunks) == 1:
            return chunks[0]
        # Not bytes.join: the loop's thread gets the interpreter lock between two writes.
        buffer = io.BytesIO()
        for chunk in chunks:
            buffer.write(chunk)
        return buffer.getvalue()

    async def _not_allowed(self, context: Context, error: PermissionError) -> None:
        logger.warning("a call of %s was refused: %s", _peer(context), error)
        # The reason is for the log alone: it would tell an attacker how far the request got.
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not authorized")


async def serve(
    options: ServiceOptions,
    bind: Bind,
    tls: ServerTLS | None,
    *,
    started: Callable[[str], object],
    stop: asyncio.Event,
    method: str = DEFAULT_METHOD,
) -> None:
    """Serve until *stop* is set, and then until what runs has ended.

    Args:
        options: Of the service.
        bind: Where to listen.
        tls: ``None``: plaintext.
        started: Is given the ``target`` for clients once connections are taken.
        stop: Ends it.
        method: The full path of the method that takes commands.

    Raises:
        OSError: It cannot listen there.
    """
    handler = WorkerHandler(options, method)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", min(options.max_message_bytes, 2**31 - 1)),
            ("grpc.max_send_message_length", -1),
            # Many clients at once may send more than the C core queues by default (1,000, then chance): what is
            # too much gets "busy" from the desk, which senders understand.
            ("grpc.server.max_pending_requests", MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
            # Otherwise a second service on this port would get every other connection.
            ("grpc.so_reuseport", 0),
            # A run is one long silence: clients may ping as they like, and are pinged.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", int(PING_SECONDS * 1000)),
            ("grpc.keepalive_timeout_ms", int(PING_SECONDS * 1000)),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            ("grpc.max_allowed_incoming_connections", max_connections()),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ]
    )
    server.add_generic_rpc_handlers((handler,))
    port = _listen(server, bind, tls)
    await handler.desk.start()
    try:
        await server.start()
        with owns_port(port):
            started(str(type(bind)(bind.host, port)))
            await stop.wait()
            await handler.desk.drain()
    finally:
        await server.stop(STOP_SECONDS)
        await handler.desk.aclose()


def _listen(server: grpc.aio.Server, bind: Bind, tls: ServerTLS | None) -> int:
    try:
        if tls is None:
            port = server.add_insecure_port(str(bind))
        else:
            certificate, key, client_ca = tls.pem()
            credentials = grpc.ssl_server_credentials(
                [(key, certificate)],
                root_certificates=client_ca,
                require_client_auth=client_ca is not None,
            )
            port = server.add_secure_port(str(bind), credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {bind}: {error}") from error
    if port == 0:
        raise OSError(
            f"cannot listen on {bind}: another program listens there, or it is no address of this machine"
        )
    return port


_Pairs: TypeAlias = list[tuple[str, str | bytes]]


def _pairs(metadata: Any) -> _Pairs:
    return [(name, value) for name, value in metadata or ()]


def _decode(request: bytes) -> dict[str, Any] | FrameError:
    try:
        return decode_command([request])
    except FrameError as error:
        return error


def _peer(context: Context) -> str:
    """``10.0.0.7:51322``: gRPC says ``ipv4:10.0.0.7:51322`` and ``ipv6:%5B::1%5D:51322``."""
    return unquote(context.peer()).partition(":")[2] or "?"


def _service_name(request: bytes) -> str | None:
    """Field 1 of a HealthCheckRequest; ``None`` if it is odd."""
    if not request:
        return ""
    if len(request) < 2 or request[0] != 0x0A or request[1] != len(request) - 2 or request[1] > 127:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        return request[2:].decode("utf-8")
    return None
