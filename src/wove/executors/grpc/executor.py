"""``executor="grpc"``: a unary gRPC call to a worker service for each command."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from wove import __version__
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryTimeoutError, WorkerLostError, install_command
from wove.executors.grpc.channel import ManagedChannel, load, status_text
from wove.executors.network.executor import NetworkExecutor
from wove.executors.network.hints import start_advice
from wove.executors.network.pending import PendingRequest, Verify
from wove.protocol import signing
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES
from wove.protocol.names import GRPC_METHOD, RESUME_HEADER, STREAM_METADATA
from wove.protocol.streams import split_signature
from wove.security.endpoints import grpc_hosts, is_local, refuse_exposed, resolves_to_loopback
from wove.settings.config_readers import flag, metadata_items, number, text, whole

if TYPE_CHECKING:
    import grpc
    import grpc.aio

__all__ = ["GrpcEnvironmentExecutor"]

RESUME: Final = RESUME_HEADER.lower()
REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower()
SIZE: Final = signing.SIZE.lower()
MAX_CALLS: Final = 1000
"""A gRPC server built on its C core begins to throw calls away unseen when more than 1,000 wait for the
application (``grpc.server.max_pending_requests``, src/core/server/server.cc)."""
RECONNECT_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 360.0
"""Between two pings. Default servers count those that come within five minutes as an abuse, and hang up."""
USER_TIMEOUT_SECONDS: Final = 20.0
"""How long sent data may stay unacknowledged, or a ping unanswered."""
END_SECONDS: Final = 2.0
"""How long a call may take to end after the last event of its run."""

# Statuses that another attempt may not meet again (grpc.github.io/grpc/core/md_doc_statuscodes.html).
_PASSING: Final = frozenset({"ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"})

_HINTS: Final = {
    "UNAUTHENTICATED": "Both sides need the same executor_config 'security', and clocks that agree",
    "PERMISSION_DENIED": "Both sides need the same executor_config 'security', and clocks that agree",
    "UNIMPLEMENTED": "Is executor_config 'method' the one that the service registers?",
    "RESOURCE_EXHAUSTED": (
        "If a message was too large: raise 'max_message_bytes' on both sides, or pass large data by reference"
    ),
}


class GrpcEnvironmentExecutor(NetworkExecutor):
    """Calls ``method`` of the gRPC service at ``target`` with each command, and takes the reply as its events.

    Keys of ``executor_config``, beside those that all network executors share:

    * ``target``: as gRPC takes it, ``"workers.internal:9000"``. Required. Another machine's must be ``secure``,
      and have ``security``.
    * ``method`` (``"/wove.network_executor.WorkerService/Send"``): the full path.
    * ``secure`` (default false): TLS.
    * ``metadata`` (dict of texts, or pairs): sent with every call.
    * ``timeout`` (seconds; default none): of a call, from the moment it gets a connection.
    * ``max_concurrent_calls`` (1,000): at once, over the one connection. Others wait their turn.
    * ``reconnect_timeout`` (5): seconds for which connecting is retried with a service that was there
      before, and is perhaps being restarted. ``None``: for ever.
    * ``channel_options`` (dict or pairs): gRPC's channel arguments, over those that Wove sets.

    Example:
        >>> config = {"target": "workers.internal:9000", "secure": True, "security": "env:WOVE_WORKER_SECRET"}
        >>> environment = {"executor": "grpc", "executor_config": config}
    """

    transport: ClassVar[Literal["http", "grpc", "websocket"]] = "grpc"
    KEYS: ClassVar[tuple[str, ...]] = (
        "target",
        "method",
        "secure",
        "metadata",
        "timeout",
        "max_concurrent_calls",
        "reconnect_timeout",
        "channel_options",
    )
    REQUIRES: ClassVar[tuple[str, str] | None] = ("grpc", install_command("grpc"))

    def configure(self, label: str, config: Mapping[str, Any]) -> None:
        target = text(config, "target", label=label)
        if target is None:
            raise ValueError(
                f"{label}: executor_config 'target' is missing; give the address of the worker service, such as "
                f"'workers.internal:9000'"
            )

        try:
            hosts = grpc_hosts(target)
        except ValueError as error:
            raise ValueError(f"{label}: executor_config 'target': {error}") from None

        self.target = target
        self.secure = flag(config, "secure", False, label=label)
        if self.tls.given and not self.secure:
            raise ValueError(
                f"{label}: certificates are configured, and nothing would use them without 'secure': True"
            )

        self._hosts = hosts
        self._local = all(map(is_local, hosts))
        refuse_exposed(
            label,
            target=target,
            local=self._local,
            tls=self.secure,
            security=self.security,
            insecure=self.insecure,
            tls_remedy='"secure": True',
        )
        self.method = text(config, "method", GRPC_METHOD, label=label)
        if not re.fullmatch(r"/[!-.0-~]+/[!-.0-~]+", self.method):
            raise ValueError(
                f"{label}: executor_config 'method' must be a full path such as {GRPC_METHOD!r}, not {self.method!r}"
            )

        self.metadata = tuple(metadata_items(config.get("metadata"), label, security=self.security))
        self.confidential = [value for _, value in self.metadata if isinstance(value, str)]
        self.timeout = number(config, "timeout", None, label=label)
        self._max_calls = whole(config, "max_concurrent_calls", MAX_CALLS, label=label)
        self._reconnect = number(
            config, "reconnect_timeout", RECONNECT_SECONDS, label=label, none=True
        )
        self._options = [*self._default_options(), *_options(config.get("channel_options"), label)]

    def _default_options(self) -> list[tuple[str, Any]]:
        return [
            # The base refuses to send more than that, with a message that says what to do.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", min(self.max_message_bytes, 2**31 - 1)),
            # No attempt behind our back, not even the transparent ones: a run is sent again by those who know
            # whether it may be (grpc_types.h, GRPC_ARG_ENABLE_RETRIES; gRFC A6).
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            # gRPC's own waits grow to two minutes (doc/connection-backoff.md): a service that has been
            # restarted, perhaps under another address, is to be found sooner.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            # Otherwise channels with equal arguments share one connection, and its waits.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
            ("grpc.keepalive_timeout_ms", int(USER_TIMEOUT_SECONDS * 1000)),
            ("grpc.primary_user_agent", f"wove/{__version__}"),
            # A proxy that the environment names cannot mean this machine when we say localhost.
            *([("grpc.enable_http_proxy", 0)] if self._local else []),
        ]

    async def open(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

        if self.only_local(tls=self.secure):
            # gRPC does not say whom it has connected to, before it has sent everything.
            for host in self._hosts:
                if not await run_in_thread(resolves_to_loopback, host):
                    raise ValueError(
                        f"{self.label}: {host} is an address of another machine here, and without TLS and security "
                        f'only this machine may be connected to. Set both, or "insecure": True'
                    )

        await run_in_thread(load, self.label)
        credentials = await run_in_thread(self._credentials) if self.secure else None
        import grpc.aio

        self._rpc_error = grpc.aio.AioRpcError

        def make() -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(self.target, options=self._options)
            return grpc.aio.secure_channel(self.target, credentials, options=self._options)

        self.channel = ManagedChannel(
            make,
            self.method,
            label=self.label,
            max_calls=self._max_calls,
            reconnect=self._reconnect,
        )

    def _credentials(self) -> grpc.ChannelCredentials:
        import grpc

        roots, chain, key = self.tls.pem()
        return grpc.ssl_channel_credentials(roots, key, chain)

    def transmit(self, request: PendingRequest) -> None:
        call = request.state = _Call()
        task = call.task = self.loop.create_task(self._perform(request, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def recall(self, request: PendingRequest) -> bool:
        call: object = request.state
        return isinstance(call, _Call) and not call.sent

    def withdraw(self, request: PendingRequest) -> None:
        call, request.state = request.state, None
        if not isinstance(call, _Call):
            return
        if request.complete and call.streams:
            # The service is about to end the call. To reset it instead would count as abuse after some of them.
            call.timer = self.loop.call_later(END_SECONDS, call.task.cancel)
        else:
            call.task.cancel()

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await self.channel.close()

    # ------------------------------------------------------------------ one call

    async def _perform(self, request: PendingRequest, call: _Call) -> None:
        try:
            await self._send_call(request, call)
        except self._rpc_error as error:
            request.state = None
            if not request.over:
                self._ended_with(request, error)
        except Exception as error:
            request.state = None
            if isinstance(error, WorkerLostError):
                error = WorkerLostError(f"{self.label}: {request}: {error}{self._hint(error)}")
            self.failed(request, error)
        finally:
            if call.timer is not None:
                call.timer.cancel()

    def _hint(self, error: Exception) -> str:
        text = str(error)
        if (self.secure and "not in peer certificate" in text) or "ostname" in text:
            return (
                ". Connect to a name that is among the certificate's subjectAltNames, or give the service a "
                "certificate for this name"
            )

        if advice := start_advice("grpc", self.target, text):
            return advice
        # In TLS 1.3 the client is done before its certificate is looked at (RFC 8446, 4.4.2.4 and 2).
        if not self.secure or "Socket closed" not in str(error):
            return ""
        return (
            ". Perhaps it wants another certificate of its clients, or one at all "
            "(executor_config 'client_certificate' and 'client_key')"
        )

    async def _send_call(self, request: PendingRequest, call: _Call) -> None:
        await self.channel.acquire(urgent=request.is_cancel)

        try:
            chunks, request.chunks = request.chunks, []
            body = (
                b"".join(chunks)
                if request.size <= INLINE_BYTES
                else await run_in_thread(_joined, chunks)
            )
            chunks.clear()
            headers = self.signed_headers(request, self.method)
            metadata = (
                *self.metadata,
                (SIZE, str(request.size)),
                (STREAM_METADATA, "1"),
                *((name.lower(), value) for name, value in headers.items()),
            )
            call.sent = True
            sent = self.channel.send(body, metadata, self.timeout)
            del body
            self.report_sent(request)
            try:
                await self._read_reply(request, call, sent)
            finally:
                sent.cancel()  # of no effect on a call that has ended
        finally:
            self.channel.release()

    async def _read_reply(
        self, request: PendingRequest, call: _Call, sent: grpc.aio.UnaryStreamCall[bytes, bytes]
    ) -> None:
        """Pass the messages of a reply to `answered`, until the call has ended."""
        headers = request.sent_headers
        initial = _pairs(await sent.initial_metadata())
        call.streams = (STREAM_METADATA, "1") in initial
        if (RESUME, "1") in initial:
            self.resumption.offered = True
        whole: bytes | None = None
        number = 0

        if call.streams:
            self.report_waiting(request)
        # Not `async for`: its generator keeps the last message until it is collected.
        while isinstance(message := await sent.read(), bytes):
            if call.streams:
                self._answered_part(request, headers, message, number)
                number += 1
                continue
            if whole is not None:  # of a service that streams without having said so
                self._answered_part(request, headers, whole, number)
            whole = message

        if call.streams:
            self.answered(request, [], final=True, status="OK")
            return

        verify = None
        if self.security.signs_replies:
            trailing = _pairs(await sent.trailing_metadata())
            found = next((value for name, value in trailing if name == REPLY_SIGNATURE), None)
            signature = found if isinstance(found, str) else None
            verify = self.verifier(headers, self.method, signature)
        request.state = None
        # In pieces for the decoder, which lets other threads run between two of them.
        self.answered(request, [whole] if whole else [], final=True, status="OK", verify=verify)

    def _answered_part(
        self, request: PendingRequest, headers: Mapping[str, str], message: bytes, number: int
    ) -> None:
        verify: Verify | None = None
        chunks = [message]

        if self.security.signs_replies:
            signature, chunks = split_signature(chunks)
            verify = self.verifier(headers, self.method, signature, number)

        self.answered(request, chunks, final=False, status="OK", verify=verify)

    def _ended_with(self, request: PendingRequest, error: grpc.aio.AioRpcError) -> None:
        code, status = error.code().name, status_text(error)
        prefix = f"{self.label}: {request}"
        failure: BaseException
        # The last is what gRPC says of a reply that ended without a status, or that it could not read.
        if code in ("UNAVAILABLE", "CANCELLED") or status.startswith("UNKNOWN: Stream removed"):
            self.channel.suspect()
            failure = WorkerLostError(
                f"{prefix}: its service was lost before it had answered: {status}"
            )
        elif code == "DEADLINE_EXCEEDED" and self.timeout is not None:
            failure = DeliveryTimeoutError(
                f"{prefix}: its service did not answer within {self.timeout:g} s (executor_config 'timeout'): {status}"
            )
        else:
            hint = _HINTS.get(code)
            message = f"its service answered {status}"
            self.refused(
                request, f"{message}. {hint}" if hint else message, retryable=code in _PASSING
            )
            return

        # Without the frames: they would keep the call and its channel alive as long as the error.
        failure.__cause__ = error.with_traceback(None)
        self.failed(request, failure)


class _Call:
    """The state of one call in flight.

    Attributes:
        task: Sends it and reads its reply.
        sent: Whether it has been handed to gRPC.
        streams: Whether its service answers with several messages.
        timer: Cancels the task where the call does not end after its last event.
    """

    __slots__ = ("sent", "streams", "task", "timer")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.sent = self.streams = False
        self.timer: asyncio.TimerHandle | None = None


def _pairs(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [(name, value) for name, value in metadata or ()]


def _joined(chunks: Sequence[bytes]) -> bytes:
    """Join *chunks* as `bytes.join` does, but let other threads run between two pieces.

    `io.BytesIO` returns its contents without another copy.
    """
    buffer = io.BytesIO()
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            buffer.write(view[start : start + PIECE_BYTES])

    return buffer.getvalue()


def _options(value: object, label: str) -> list[tuple[str, Any]]:
    """The checked ``channel_options``."""
    if value is None:
        return []
    wrong = (
        f"{label}: executor_config 'channel_options' must be a dict or pairs, such as "
        f"{{'grpc.lb_policy_name': 'round_robin'}}"
    )
    pairs: object = (
        list(cast("Mapping[object, object]", value).items())
        if isinstance(value, Mapping)
        else value
    )
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(f"{wrong}, not {type(pairs).__name__}")
    options: list[tuple[str, Any]] = []

    for pair in cast("Sequence[object]", pairs):
        if not isinstance(pair, (list, tuple)) or len(cast("Sequence[object]", pair)) != 2:
            raise TypeError(wrong)
        name, held = cast("tuple[object, object]", pair)
        if (
            not isinstance(name, str)
            or isinstance(held, float)
            or not isinstance(held, (str, bytes, int))
        ):
            raise TypeError(f"{wrong}: names are texts, values are numbers or texts")
        options.append((name, held))

    return options
