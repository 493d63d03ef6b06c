"""``executor="websocket"``: one connection to a worker service, for all runs of an environment."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from wove import __version__
from wove.concurrency import forks, thread_pool
from wove.concurrency.backoff import Backoff
from wove.concurrency.mailbox import post_to
from wove.errors import (
    DeliveryError,
    DeliveryTimeoutError,
    EnvironmentExecutionError,
    SerializationError,
    WorkerLostError,
    install_command,
)
from wove.executors.network.executor import NetworkExecutor
from wove.executors.network.hints import start_advice
from wove.executors.network.pending import PendingRequest, Verify
from wove.protocol import codec
from wove.protocol.callables import CallableCache
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.pickling import Pickled
from wove.protocol.streams import split_signature
from wove.protocol.websocket import GOODBYE, KEPT_BYTES, OFFERED, OURS, joined
from wove.security.endpoints import parse_url, refuse_exposed
from wove.settings.config_readers import header_items, number

if TYPE_CHECKING:
    import ssl

    from wove.executors.base import Frame
    from wove.executors.websocket.connection import Connection

__all__ = ["WebSocketEnvironmentExecutor"]

OPEN_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = 5.0

ARRIVAL_SECONDS: Final = 0.25
"""How long an attempt to connect may still succeed when the executor is stopped, in seconds. One that is cancelled in
the moment of its success loses its socket: asyncio lets go of it unclosed (`asyncio.staggered`)."""

RECONNECT: Final = Backoff(0.1, 5.0)
"""Between two attempts to connect again."""

# RFC 9110, 15.5 and 15.6; RFC 6585, 4: the handshake was not carried out, and may be in a moment.
_PASSING: Final = frozenset({408, 425, 429, 502, 503, 504})

_HINTS: Final = {
    401: ". Both sides need the same executor_config 'security', and clocks that agree",
    403: ". Both sides need the same executor_config 'security', and clocks that agree",
    404: ". Is the path in the url right?",
}


class WebSocketEnvironmentExecutor(NetworkExecutor):
    """Sends commands to the worker service at ``url`` as messages, and takes its messages as their events.

    One connection carries all runs of the environment. It is opened when there is something to send, and again when
    it was lost.

    Keys of ``executor_config``, beside those that all network executors share:

    * ``url``: the endpoint. Required. Another machine's must be ``wss://``, and have ``security``.
    * ``headers`` (dict of texts, or pairs): more headers of the handshake.
    * ``open_timeout`` (seconds; default 10; ``None``: no limit): for connecting, TLS and the handshake included.
    * ``reconnect_timeout`` (5): seconds for which connecting is retried with a service that was there before, and
      is perhaps being restarted. ``None``: for ever.

    Example:
        >>> import wove
        >>> wove.config(environments={"sockets": {
        ...     "executor": "websocket",
        ...     "executor_config": {"url": "wss://workers.internal/wove", "security": "env:WOVE_WORKER_SECRET"},
        ... }})
    """

    transport: ClassVar[Literal["http", "grpc", "websocket"]] = "websocket"
    KEYS: ClassVar[tuple[str, ...]] = ("url", "headers", "open_timeout", "reconnect_timeout")
    REQUIRES: ClassVar[tuple[str, str] | None] = (
        "websockets",
        install_command("websocket"),
    )

    def configure(self, label: str, config: Mapping[str, Any]) -> None:
        url = self._url = parse_url(config.get("url"), ("ws", "wss"), label=label)
        # Without the query, which may hold a key, and with it every message would.
        self._address = f"{url.scheme}://{url.authority}{url.target.partition('?')[0]}"
        self._connect_to: str = config["url"]
        refuse_exposed(
            label,
            target=self._address,
            local=url.local,
            tls=url.tls,
            security=self.security,
            insecure=self.insecure,
            tls_remedy="a wss:// URL",
        )

        if self.tls.given and not url.tls:
            raise ValueError(
                f"{label}: executor_config 'root_certificates' and 'client_certificate' are for wss://, and the url "
                f"is {self._address!r}"
            )

        self._headers = header_items(
            config.get("headers"),
            label,
            security=self.security,
            reserved={"sec-websocket-*", "user-agent"},
        )
        self.confidential = [value for _, value in self._headers]
        self._open_seconds = number(config, "open_timeout", OPEN_SECONDS, label=label, none=True)
        self._reconnect_seconds = number(
            config, "reconnect_timeout", RECONNECT_SECONDS, label=label, none=True
        )

    async def open(self) -> None:
        self._unsent: dict[PendingRequest, float] = {}  # what is to be sent, and since when
        self._sent: dict[PendingRequest, None] = {}  # the runs that this connection has, or had
        self._kept = CallableCache[bool](size=KEPT_BYTES)
        self._connection: Connection | None = None
        self._closing_connections: set[Connection] = set()
        self._batches = False
        self._connecting: asyncio.Task[None] | None = None
        self._was_connected = self._closing = self._scheduled = self._said_goodbye = False
        self._distrust: BaseException | None = None
        self._encoding: PendingRequest | None = None
        self._sequence = 0
        self._handshake: dict[str, str] = {}
        self._context: ssl.SSLContext | None = await thread_pool.run_in_thread(self._load)

    def _load(self) -> ssl.SSLContext | None:
        """Do what takes its time: import the library, and read certificates."""
        with forks.importing:
            importlib.import_module("wove.executors.websocket.connection")
        return self.tls.context() if self._url.tls else None

    # ------------------------------------------------------------------ out

    def frame_to_send(self, request: PendingRequest) -> Frame:
        frame = request.frame
        if isinstance(frame.get("callable_id"), str) and isinstance(
            frame.get("callable_pickle"), Pickled
        ):
            # Whether the service has it already is known when the frame leaves.
            frame = frame.copy()
            del frame["callable_pickle"]

        return frame

    def transmit(self, request: PendingRequest) -> None:
        if request.is_cancel and self._connection is None and not self.resumption.offered:
            # The run that it is to cancel was lost with the connection.
            self.answered(request, [], final=True)
            return
        self._unsent[request] = self.loop.time()
        self._wake()

    def recall(self, request: PendingRequest) -> bool:
        return self._unsent.pop(request, None) is not None

    def withdraw(self, request: PendingRequest) -> None:
        self._unsent.pop(request, None)
        self._sent.pop(request, None)
        request.state = None

    def _wake(self) -> None:
        # All that is to be sent in this turn of the loop goes out together.
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        connection = self._connection
        if connection is None:
            if self._unsent and self._connecting is None and not self._closing:
                self._connecting = self.loop.create_task(self._connect())
            return

        batch: list[bytes] = []
        size = 0

        while self._unsent and connection.writable:
            request = next(iter(self._unsent))
            chunks = self._text(request)
            if chunks is None:
                break
            if request.over:  # it is too large, and has been taken out
                continue
            del self._unsent[request]
            length = sum(map(len, chunks))
            if batch and size + length > INLINE_BYTES:
                self._send(connection, batch)
                batch, size = [], 0
            if length > 2 * INLINE_BYTES:
                connection.send_pieces(chunks, self._wake)
            else:
                batch.append(chunks[0] if len(chunks) == 1 else b"".join(chunks))
                size += length
            self._on_sent(request)

        if batch:
            self._send(connection, batch)

    def _send(self, connection: Connection, batch: list[bytes]) -> None:
        if self._batches and len(batch) > 1:
            connection.send([b"[" + b",".join(batch) + b"]"])
        else:
            connection.send(batch)

    def _on_sent(self, request: PendingRequest) -> None:
        request.chunks = []
        request.state = None
        if request.is_cancel:
            self.answered(request, [], final=True)  # it gets no answer of its own
        else:
            self._sent[request] = None
            request.left = True

    def _text(self, request: PendingRequest) -> list[bytes] | None:
        """The command as it is to be sent now; ``None`` if that is not ready yet."""
        known, pickled = request.frame.get("callable_id"), request.frame.get("callable_pickle")
        if not isinstance(known, str) or not isinstance(pickled, Pickled):
            return request.chunks
        if self._batches and self._kept.get(known):
            return request.chunks
        if pickled.size <= INLINE_BYTES:
            text = codec.encode({"callable_pickle": pickled})
        elif request.state is None:
            if self._encoding is not request:
                self._encoding = request
                thread_pool.submit(self._encode_callable, request, pickled)
            return None
        else:
            text = request.state

        size = request.size + sum(map(len, text))
        if size > self.max_message_bytes:
            self.failed(request, SerializationError(f"{self.label}: {request} is a message of {size} bytes, more "
                f"than {self.max_message_bytes} (executor_config 'max_message_bytes'). Its function holds that much: "
                f"pass large data by reference (a path, a key), or raise the limit on both sides."))  # fmt: skip
            return []

        if self._batches:
            self._kept.put(known, True, pickled.size)
        return joined(request.chunks, text)

    def _encode_callable(self, request: PendingRequest, pickled: Pickled) -> None:
        text: list[bytes] | BaseException
        try:
            text = codec.encode({"callable_pickle": pickled})
        except BaseException as error:  # memory, above all; it ends this run alone
            text = error
        post_to(self.loop, self._callable_encoded, request, text)

    def _callable_encoded(self, request: PendingRequest, text: list[bytes] | BaseException) -> None:
        self._encoding = None
        if isinstance(text, BaseException):
            self.failed(request, text)
        elif request in self._unsent:
            request.state = text
        self._pump()

    # ------------------------------------------------------------------ back

    def message(self, connection: Connection, chunks: list[bytes]) -> None:
        """A message has come; called by the connection."""
        if connection is not self._connection:
            return
        verify: Verify | None = None
        if self.security.signs_replies:
            signature, chunks = split_signature(chunks)
            verify = self.verifier(self._handshake, self._url.target, signature, self._sequence)
            self._sequence += 1

        if self._batches and b"".join(chunks[:2]) == GOODBYE:
            self._goodbye(chunks, verify)
        else:
            self.received(chunks, verify=verify)

    def _goodbye(self, chunks: list[bytes], verify: Verify | None) -> None:
        """The service has answered all runs that it took; the others it has not begun."""
        try:
            if verify is not None:
                verify(chunks)
        except PermissionError as error:
            self.on_unattributable(error)
        else:
            self._said_goodbye = True

    def on_unattributable(self, error: BaseException) -> None:
        if self._connection is not None:
            self._distrust = error
            # RFC 6455, section 7.4.1: 1008 for a message that violates the receiver's policy, 1007 for one
            # whose data are not what they should be.
            code = 1008 if isinstance(error, PermissionError) else 1007
            self._connection.fail(code, f"what it sent cannot be used: {error}")

    def on_unknown_run(self, event: dict[str, Any]) -> None:
        # Late events of runs that were given up are usual. But an event of another client's run means that the service
        # mixes up its clients, so that the run which this event belongs to would wait for ever.
        origin = event["run_id"].rpartition("-")[0]
        if self._sent and all(
            request.run_id.rpartition("-")[0] != origin for request in self._sent
        ):
            self.on_unattributable(
                DeliveryError(
                    f"a {event['type']} of run {event['run_id']!r:.100}, which it never got"
                )
            )
        else:
            super().on_unknown_run(event)

    def writable(self, connection: Connection) -> None:
        """There is room again; called by the connection."""
        if connection is self._connection:
            self._pump()

    def gone(self, connection: Connection, why: str) -> None:
        """The connection is over; called by the connection."""
        self._closing_connections.add(connection)
        connection.ended.add_done_callback(lambda _: self._closing_connections.discard(connection))
        if connection is not self._connection:
            return
        self._connection = None
        sent, self._sent = list(self._sent), {}
        distrust, self._distrust = self._distrust, None
        self.lost(
            sent,
            partial(self._lost, why, distrust),
            not_begun=self._said_goodbye,
        )
        if not self.resumption.offered:
            for request in [request for request in self._unsent if request.is_cancel]:
                self.answered(request, [], final=True)
        if self._unsent:
            self._wake()

    def _lost(
        self, why: str, distrust: BaseException | None, request: PendingRequest
    ) -> BaseException:
        text = f"{self.label}: {request} was lost: {self._address}: {self.masked(why)}"
        if distrust is None:
            return WorkerLostError(text)
        error: BaseException
        if isinstance(distrust, PermissionError):
            error = DeliveryError(f"{text} (it is not authentic)")
        else:
            error = EnvironmentExecutionError.of_transport(text, kind="FrameError")

        error.__cause__ = distrust
        return error

    # ------------------------------------------------------------------ connecting

    async def _connect(self) -> None:
        from wove.executors.websocket.connection import HandshakeRefused

        failures = 0

        try:
            while self._unsent:
                try:
                    connection = await self._attempt()
                except Exception as error:  # a resolver may raise UnicodeError, too
                    passing = isinstance(error, (WorkerLostError, DeliveryTimeoutError))
                    if isinstance(error, HandshakeRefused):
                        passing = error.status in _PASSING
                    self._not_connected(error, passing)
                    failures += 1
                    await asyncio.sleep(RECONNECT.delay(failures) if self._unsent else 0)
                    continue
                self._opened(connection)
                return
        finally:
            self._connecting = None
            if self._unsent:
                self._wake()

    async def _attempt(self) -> Connection:
        from wove.executors.websocket.connection import connect

        self._handshake = self.security.headers_for(
            transport="websocket", target=self._url.target, body=b""
        )
        return await connect(
            self._connect_to,
            self,
            headers=[
                *self._headers,
                ("User-Agent", f"wove/{__version__}"),
                *self._handshake.items(),
            ],
            subprotocols=OFFERED,
            max_size=self.max_message_bytes,
            context=self._context,
            seconds=self._open_seconds,
            only_local=self.only_local(tls=self._url.tls),
        )

    def _opened(self, connection: Connection) -> None:
        self._was_connected = True
        self._connection = connection
        self._said_goodbye = False
        self._batches = connection.subprotocol == OURS
        self.resumption.offered = connection.resumes
        self._kept = CallableCache[bool](size=KEPT_BYTES)
        self._sequence = 0
        self._pump()

    def _not_connected(self, error: Exception, passing: bool) -> None:
        """Fail what will not, or no longer, be tried again."""
        now = self.loop.time()
        patience = self._reconnect_seconds
        hint = _HINTS.get(getattr(error, "status", 0), "")

        for request, since in list(self._unsent.items()):
            if passing and request.loss is not None:  # it decides how long it is patient
                self.failed(request, WorkerLostError(str(error)))
                continue
            if passing and self._was_connected and (patience is None or now - since < patience):
                continue
            if isinstance(error, EnvironmentExecutionError):
                self.refused(request, f"{self._address}: {error}{hint}", retryable=passing)
                continue
            ours = isinstance(error, DeliveryError)
            kind = type(error) if isinstance(error, DeliveryError) else WorkerLostError
            said = (
                str(error)
                if ours
                else f"there is no connection to it: {type(error).__name__}: {error}"
            )
            said += start_advice("websocket", f"{self._url.bracketed}:{self._url.port}", said)
            failure = kind(f"{self.label}: {request} could not be sent: {self._address}: {said}")
            failure.__cause__ = error.__cause__ if ours else error
            self.failed(request, failure)

    async def close(self) -> None:
        self._closing = True
        if (connecting := self._connecting) is not None:
            await asyncio.wait({connecting}, timeout=ARRIVAL_SECONDS)
            connecting.cancel()
            await asyncio.wait({connecting})

        if self._connection is not None:
            self._connection.close()
            self._closing_connections.add(self._connection)

        ends = {connection.ended for connection in self._closing_connections}
        if ends:
            await asyncio.wait(ends)  # each sees to it that this is soon
