"""A worker service as a gRPC handler: for ``wove worker grpc``, and to mount in a `grpc.aio` server of your own.

Importing this module needs grpcio.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Unpack
from urllib.parse import unquote

from wove.concurrency.thread_pool import run_in_thread
from wove.errors import MissingDependencyError, install_command
from wove.net.connections import max_connections
from wove.protocol import signing
from wove.protocol.codec import encode_events
from wove.protocol.frames import FrameError, condensed
from wove.protocol.names import GRPC_METHOD, RESUME_HEADER, STREAM_METADATA
from wove.protocol.streams import add_signature
from wove.services.byte_budget import ByteBudget
from wove.services.event_buffer import PATIENCE_SECONDS, EventBuffer
from wove.services.forked import owns_port
from wove.services.options import ServiceKeywords, ServiceOptions, service_options
from wove.services.queue import RunQueue
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

RESUME: Final = RESUME_HEADER.lower()
REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower()
SIZE: Final = signing.SIZE.lower()

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

READ_SECONDS: Final = 30.0
READ_BYTES_PER_SECOND: Final = 1024
"""How long a message may take to come: gRPC does not tell how far it has got. The second counts from the size that a
client announces; a stranger's has the first alone."""

HEALTH_SECONDS: Final = 5.0
"""How long a question of a health check may take to come."""

LOOKAHEAD_BYTES: Final = 64 * 1024
"""Number of bytes of a call that are taken before its message is asked for."""

IDLE_SECONDS: Final = 60.0
"""How long a connection without calls is kept. Clients open another one with their next call."""

MAX_STREAMS: Final = 2000
"""Calls at once over one connection; Wove's own clients have up to 1,000, and their cancels."""

MAX_PENDING: Final = 100_000


def worker_handler(
    options: ServiceOptions | None = None,
    /,
    *,
    method: str = GRPC_METHOD,
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
        await handler.queue.drain()
        await server.stop(grace=5)
        await handler.queue.aclose()
    """
    return WorkerHandler(service_options(**keywords) if options is None else options, method)


class WorkerHandler(grpc.GenericRpcHandler):
    """The generic handler that `worker_handler` makes.

    It answers its own method, and ``/grpc.health.v1.Health/Check``: ``SERVING`` while it would take a run, and
    for the service name ``"liveness"`` as long as it is there.

    Attributes:
        queue: Where the runs go.
    """

    def __init__(self, options: ServiceOptions, method: str) -> None:
        self.queue = RunQueue(options)
        self._method = method
        self._security = options.security
        self._max_bytes = options.max_message_bytes
        # Streams in, of which nothing is read before it is asked for: a unary handler is given the whole message of
        # any sender. A stream of one message out is what a unary call expects.
        self._send: Any = grpc.stream_stream_rpc_method_handler(self._serve)
        self._health: Any = grpc.stream_unary_rpc_method_handler(self._check)
        self._health_room = ByteBudget(options.max_message_bytes)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Return the handler of a call; ``None`` for a method that is not ours."""
        handler: grpc.RpcMethodHandler[bytes, bytes] | None = None
        if handler_call_details.method == self._method:
            handler = self._send
        elif handler_call_details.method == HEALTH:
            handler = self._health
        return handler

    async def _check(self, requests: object, context: Context) -> bytes:
        del requests
        share = self._health_room.open()

        try:
            if not await share.acquire(self._max_bytes):
                return NOT_SERVING
            name = _service_name(await self._read(None, HEALTH_SECONDS, context))
        finally:
            share.close()

        if name == LIVENESS:
            return SERVING
        if name in ("", self._method[1:].partition("/")[0]):
            return SERVING if self.queue.ready else NOT_SERVING
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        raise AssertionError

    async def _serve(self, requests: object, context: Context) -> None:
        del requests
        metadata = _pairs(context.invocation_metadata())

        try:
            digest = self._security.verify_head(
                transport="grpc", target=self._method, headers=metadata
            )
        except PermissionError as error:
            await self._not_allowed(context, str(error))
            raise AssertionError from None

        frame = await self._command(metadata, digest, context)
        if isinstance(frame, FrameError):
            logger.warning("a call of %s was refused: %s", _peer(context), frame)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(frame)[:1000])
            raise AssertionError

        if frame is None:
            await self._reply([no_room()], metadata, context)
            return
        owner = self._security.principal(headers=metadata)
        if frame["type"] == "cancel_task":
            self.queue.cancel(frame, owner=owner)
            await self._reply([], metadata, context)
        else:
            await self._run(frame, owner, metadata, context)

    async def _command(
        self,
        metadata: _Pairs,
        digest: signing.Digest | None,
        context: Context,
    ) -> dict[str, Any] | FrameError | None:
        """The command, once it has been verified; ``None`` if there is no room for it.

        Nobody looks into it before. gRPC does not tell how large a message is that has not been read: one whose sender
        does not say so may be as large as the limit.
        """
        size = _announced(metadata)
        if size is not None and size > self._max_bytes:
            await self._too_large(size, context)
        share = self.queue.arriving.open()

        try:
            seconds = READ_SECONDS + (size or 0) / READ_BYTES_PER_SECOND
            if not await share.acquire(self._max_bytes if size is None else size):
                return None
            request = await self._read(size, seconds, context)
            refusal = (
                await run_in_thread(self._refusal, request, digest)
                if is_big(len(request))
                else self._refusal(request, digest)
            )
            if refusal is not None:
                del request  # an exception's frames would keep it until garbage is collected
                await self._not_allowed(context, refusal)
                raise AssertionError
            if not is_big(len(request)):
                return _decode(request)
            return await run_in_thread(_decode, request)
        finally:
            share.close()

    async def _read(
        self,
        size: int | None,
        seconds: float,
        context: Context,
    ) -> bytes:
        """The one message of a call."""
        try:
            async with asyncio.timeout(seconds):
                # Not from the iterator: that is a generator, and keeps the message until it is collected.
                request: Any = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message came too slowly")
            raise AssertionError from None

        if not isinstance(request, bytes):  # grpc.aio.EOF
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            raise AssertionError

        max_bytes = self._max_bytes if size is None else size
        if len(request) > max_bytes:
            await self._too_large(len(request), context)
        return request

    async def _too_large(self, size: int, context: Context) -> None:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the request has {size} bytes, more than {self._max_bytes}, the limit of this worker service, "
            f"or more than it announced",
        )

    def _refusal(self, request: bytes, digest: signing.Digest | None) -> str | None:
        """Why the message is refused; ``None`` if it is not."""
        try:
            self._security.verify_body(digest, request)
        except PermissionError as error:
            return str(error)
        return None

    async def _run(
        self, frame: dict[str, Any], owner: str, metadata: _Pairs, context: Context
    ) -> None:
        """Have *frame* run, and answer."""
        buffer = EventBuffer()
        subscription = self.queue.enqueue(frame, buffer.add, peer=_peer(context), owner=owner)
        del frame

        try:
            await buffer.wait_for_end(PATIENCE_SECONDS)
            if not buffer.over and (STREAM_METADATA, "1") in metadata:
                await self._stream(buffer, metadata, context)
                return
            await buffer.wait_for_end()
        finally:
            # grpc.aio cancels a handler whose client has gone.
            self.queue.unsubscribe(subscription)

        await self._reply(condensed(buffer.take()), metadata, context)

    async def _stream(self, buffer: EventBuffer, metadata: _Pairs, context: Context) -> None:
        """Send the events of a run as they come."""
        buffer.streams = True
        await context.send_initial_metadata(((STREAM_METADATA, "1"), (RESUME, "1")))
        number = 0

        while True:
            events, over = buffer.take(), buffer.over
            if events:
                if is_big_reply(events):
                    message = await run_in_thread(self._part, events, metadata, number)
                else:
                    message = self._part(events, metadata, number)
                await context.write(message)
                number += 1
            if over:
                return
            await buffer.wait_for_event()

    def _part(self, events: Sequence[dict[str, Any]], metadata: _Pairs, number: int) -> bytes:
        """Return message *number* of a reply in several, signed where replies are."""
        chunks = encode_events(events)
        return _joined(add_signature(chunks, self._signature(chunks, metadata, number)))

    async def _reply(
        self, events: Sequence[Mapping[str, Any]], metadata: _Pairs, context: Context
    ) -> None:
        """Send a reply in one message; its signature goes to the trailing metadata."""

        def signed() -> tuple[bytes, str | None]:
            chunks = encode_events(events)
            return _joined(chunks), self._signature(chunks, metadata, 0)

        message, signature = await run_in_thread(signed) if is_big_reply(events) else signed()
        if signature is not None:
            context.set_trailing_metadata(((REPLY_SIGNATURE, signature),))
        await context.send_initial_metadata(((RESUME, "1"),))
        await context.write(message)

    def _signature(self, chunks: Sequence[bytes], metadata: _Pairs, number: int) -> str | None:
        return self._security.reply_signature(
            transport="grpc", target=self._method, headers=metadata, body=chunks, sequence=number
        )

    async def _not_allowed(self, context: Context, why: str) -> None:
        logger.warning("a call of %s was refused: %s", _peer(context), why)
        # The reason is for the log alone: it would tell an attacker how far the request got.
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not authorized")


async def serve(
    options: ServiceOptions,
    bind: Bind,
    tls: ServerTLS | None,
    *,
    started: Callable[[str], object],
    stop: asyncio.Event,
    method: str = GRPC_METHOD,
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
            # too much gets "busy" from the queue, which senders understand.
            ("grpc.server.max_pending_requests", MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
            # Otherwise a second service on this port would get every other connection.
            ("grpc.so_reuseport", 0),
            # A run is one long silence: clients may ping as they like, and are pinged.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", int(PING_SECONDS * 1000)),
            ("grpc.keepalive_timeout_ms", int(PING_SECONDS * 1000)),
            ("grpc.max_connection_idle_ms", int(IDLE_SECONDS * 1000)),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            ("grpc.max_allowed_incoming_connections", max_connections()),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # Otherwise gRPC reads megabytes of each call before its message is asked for.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ]
    )
    server.add_generic_rpc_handlers((handler,))
    port = _listen(server, bind, tls)
    await handler.queue.start()

    try:
        await server.start()
        with owns_port(port):
            started(str(type(bind)(bind.host, port)))
            await stop.wait()
            await handler.queue.drain()
    finally:
        await server.stop(STOP_SECONDS)
        await handler.queue.aclose()


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
            f"cannot listen on {bind}: another program listens there, or it is not an address of this machine"
        )

    return port


_Pairs: TypeAlias = list[tuple[str, str | bytes]]


def _joined(chunks: Sequence[bytes]) -> bytes:
    if len(chunks) == 1:
        return chunks[0]
    # Not bytes.join: the loop's thread gets the interpreter lock between two writes.
    buffer = io.BytesIO()
    for chunk in chunks:
        buffer.write(chunk)
    return buffer.getvalue()


def _pairs(metadata: Any) -> _Pairs:
    return [(name, value) for name, value in metadata or ()]


def _announced(metadata: _Pairs) -> int | None:
    """The size that the sender says its message has; ``None`` if it does not say so in order."""
    found = [value for name, value in metadata if name == SIZE]
    if len(found) != 1 or not isinstance(found[0], str):
        return None
    return int(found[0]) if re.fullmatch(r"[0-9]{1,12}", found[0]) else None


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
