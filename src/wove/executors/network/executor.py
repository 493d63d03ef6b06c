"""The common part of the executors for worker services: encoding, checking what comes back, busy services, cancels."""

from __future__ import annotations

import abc
import asyncio
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias

from wove.concurrency import thread_pool
from wove.concurrency.backoff import Backoff
from wove.concurrency.mailbox import post_to
from wove.errors import (
    DeliveryError,
    EnvironmentExecutionError,
    MissingDependencyError,
    MissingDispatchFeatureError,
    SerializationError,
)
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.executors.network.pending import PendingRequest, Verify
from wove.protocol import codec, signing
from wove.protocol.frames import TERMINAL, FrameError, check_event, says_busy
from wove.protocol.limits import INLINE_BYTES, MAX_MESSAGE_BYTES
from wove.protocol.pickling import Pickled
from wove.security import NetworkExecutorSecurity
from wove.security.endpoints import missing_protection
from wove.settings.config_readers import check_keys, flag, number, tls_files, whole

__all__ = ["SHARED_KEYS", "NetworkExecutor"]

logger = logging.getLogger("wove")

SHARED_KEYS: Final = (
    "security",
    "insecure",
    "max_message_bytes",
    "root_certificates",
    "client_certificate",
    "client_key",
    "busy_timeout",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)
"""Keys of ``executor_config`` that every network executor has."""

BUSY_SECONDS: Final = 300.0
"""Default of ``busy_timeout``: so long a run is offered to a service that has no room."""

OFFER: Final = Backoff(0.05, 2.0)
"""Between two offers of a run to a busy service."""

CANCELLED_SECONDS: Final = 30.0
"""Default of ``cancel_ack_timeout``: so long a run that was cancelled may still answer."""

CANCEL_SECONDS: Final = 10.0
"""How long the service may take to answer a cancel itself."""

MASKED: Final = 8
"""Match on the first 8 characters of a credential. Shorter credentials are not treated as secrets."""

LAST_WORDS_SECONDS: Final = 2.0
"""How long cancels that are still on their way out keep the executor from stopping."""


class _Decoding:
    """The messages of one connection that are being decoded.

    Attributes:
        count: How many.
        after: What is to be done when they are.
    """

    __slots__ = ("after", "count")

    def __init__(self) -> None:
        self.count = 0
        self.after: Callable[[], None] | None = None


_Frames: TypeAlias = list[dict[str, Any]] | BaseException


class NetworkExecutor(EnvironmentExecutor):
    """Base of ``http``, ``grpc`` and ``websocket``. All is called on one loop.

    A transport says how bytes get to the service and back:

    * `configure` reads its keys, `open` and `close` frame its life;
    * `transmit` sends an exchange, `withdraw` lets go of one, `recall` takes back one that has not left yet;
    * for what comes back it calls `answered` (a reply to one exchange), `arrived` (a message that names its
      runs itself), `failed` (no answer), `refused` (an answer that is none) or `lost` (all of it is gone).

    Everything else is here: what is sent is encoded, and what comes is decoded, off the loop where that takes
    long; every reply is checked; a run that a busy service did not take is offered again; a cancel takes back
    what has not left, and tells the service of the rest.
    """

    scope: ClassVar[Literal["run", "process"]] = "process"
    wire: ClassVar[bool] = True
    cancel_reach: ClassVar[CancelReach] = "cooperative"

    transport: ClassVar[Literal["http", "grpc", "websocket"]]
    KEYS: ClassVar[tuple[str, ...]]
    """Its own keys of ``executor_config``, beside those that all share."""

    REQUIRES: ClassVar[tuple[str, str] | None] = None
    """A package that it needs, and the command that installs it."""

    def __init__(self) -> None:
        self.exchanges: dict[str, PendingRequest] = {}
        self.confidential: list[str] = []
        """Further values sent with a command that may prove the sender's identity; filled by `configure`."""

        self._cancels: set[PendingRequest] = set()
        self._inbox = EventQueue()
        self._decoding = _Decoding()
        self._quiet: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ what a transport provides

    @abc.abstractmethod
    def configure(self, label: str, config: Mapping[str, Any]) -> None:
        """Read and check the transport's own keys. No I/O.

        Args:
            label: The environment, for messages.
            config: Its ``executor_config``.
        """

    @abc.abstractmethod
    async def open(self) -> None:
        """Import what is needed and get ready to send; connecting may wait for the first exchange."""

    @abc.abstractmethod
    def transmit(self, exchange: PendingRequest) -> None:
        """Send *exchange*. Neither blocks nor raises."""

    @abc.abstractmethod
    def withdraw(self, exchange: PendingRequest) -> None:
        """Let go of whatever *exchange* holds: it is over, or about to be transmitted again."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End everything that `open` and `transmit` began."""

    def recall(self, exchange: PendingRequest) -> bool:
        """Whether *exchange*, transmitted before, was taken back without a byte of it having left."""
        del exchange
        return False

    def outgoing(self, exchange: PendingRequest) -> Frame:
        """The frame to encode for *exchange*, right before that is done."""
        return exchange.frame

    def distrusted(self, error: BaseException) -> None:
        """A message came that cannot be attributed to any run: whatever waits for it must not wait for ever."""
        del error

    def stray(self, event: dict[str, Any]) -> None:
        """*event* came, and its run is not (or no longer) waited for."""
        logger.debug(
            "%s: dropped a %s of unknown run %.100r", self.label, event["type"], event["run_id"]
        )

    # ------------------------------------------------------------------ the contract of an executor

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        config = environment_config
        label = self.label = f"environment {environment_name!r}"
        check_keys(label, self.transport, config, (*self.KEYS, *SHARED_KEYS))
        self.loop = asyncio.get_running_loop()
        self.security = NetworkExecutorSecurity.from_config(
            config.get("security"), label=f"{label}: executor_config 'security'"
        )
        self.insecure = flag(config, "insecure", False, label=label)
        self.max_message_bytes = whole(config, "max_message_bytes", MAX_MESSAGE_BYTES, label=label)
        self.busy_timeout = number(config, "busy_timeout", BUSY_SECONDS, label=label, none=True)
        self.cancel_grace = number(
            config, "cancel_ack_timeout", CANCELLED_SECONDS, label=label, none=True
        )
        self.tls = tls_files(config, label=label)
        self.configure(label, config)
        self._masked = _finder([*self._tokens(), *self.confidential])
        if importlib.util.find_spec("cloudpickle") is None:
            raise MissingDispatchFeatureError
        if self.REQUIRES is not None and importlib.util.find_spec(self.REQUIRES[0]) is None:
            package, command = self.REQUIRES
            raise MissingDependencyError(
                f"{label}: the {self.transport} executor needs the package {package}. Install it with: {command}"
            )

        await self.open()

    async def send(self, frame: Frame) -> None:
        self.send_nowait(frame)

    def send_nowait(self, frame: Frame) -> bool:
        if frame["type"] == "run_task":
            exchange = PendingRequest(frame)
            self.exchanges[exchange.run_id] = exchange
            self._prepare(exchange)
        elif frame["type"] == "cancel_task":
            self._cancel(frame)
        return True

    async def recv(self) -> list[Frame]:
        return await self._inbox.get()

    async def stop(self) -> None:
        if self._cancels:
            self._quiet = self.loop.create_future()
            await asyncio.wait({self._quiet}, timeout=LAST_WORDS_SECONDS)
        for exchange in [*self.exchanges.values(), *self._cancels]:
            self._finish(exchange)
        await self.close()

    # ------------------------------------------------------------------ out

    def _prepare(self, exchange: PendingRequest) -> None:
        exchange.timer = None
        frame = self.outgoing(exchange)
        if _bulk(frame) <= INLINE_BYTES:
            self._prepared(exchange, *self._encode(frame))
        else:
            thread_pool.submit(self._encode_elsewhere, exchange, frame)

    def _encode(self, frame: Frame) -> tuple[list[bytes] | BaseException, signing.Digest | None]:
        try:
            chunks = codec.encode(frame)
            return chunks, signing.digest(chunks) if self._signs_bodies else None
        except BaseException as error:  # memory, above all; it ends this run alone
            return error, None

    @property
    def _signs_bodies(self) -> bool:
        return self.security.kind == "signed" and self.transport != "websocket"

    def _encode_elsewhere(self, exchange: PendingRequest, frame: Frame) -> None:
        post_to(self.loop, self._prepared, exchange, *self._encode(frame))

    def _prepared(
        self,
        exchange: PendingRequest,
        chunks: list[bytes] | BaseException,
        digest: signing.Digest | None,
    ) -> None:
        if exchange.over:  # cancelled meanwhile
            return
        if isinstance(chunks, BaseException):
            self.failed(exchange, chunks)
            return

        exchange.chunks = chunks
        exchange.digest = digest
        exchange.size = sum(map(len, chunks))

        if exchange.size > self.max_message_bytes:
            self.failed(
                exchange,
                SerializationError(
                    f"{self.label}: {exchange} is a message of {exchange.size} bytes, more than "
                    f"{self.max_message_bytes} (executor_config 'max_message_bytes'). Pass large data by "
                    f"reference (a path, a key), or raise the limit on both sides."
                ),
            )
            return

        exchange.sent = True
        self.transmit(exchange)

    def _cancel(self, frame: Frame) -> None:
        exchange = self.exchanges.get(frame["run_id"])
        if exchange is None:  # its end is already on its way to the weave
            return
        if not exchange.sent or self.recall(exchange):
            self._finish(exchange)
            self._inbox.put(
                [{"type": "task_cancelled", "run_id": exchange.run_id, "task_id": exchange.task}]
            )
            return

        exchange.unwanted = True
        cancel = PendingRequest(frame)
        self._cancels.add(cancel)
        self._prepare(cancel)
        if not cancel.over:
            cancel.timer = self.loop.call_later(CANCEL_SECONDS, self._finish, cancel)
        if exchange.timer is not None:
            exchange.timer.cancel()
        if self.cancel_grace is not None:
            exchange.timer = self.loop.call_later(self.cancel_grace, self._finish, exchange)

    # ------------------------------------------------------------------ back: called by the transport

    def answered(
        self,
        exchange: PendingRequest,
        chunks: list[bytes],
        *,
        final: bool,
        status: str = "",
        verify: Verify | None = None,
    ) -> None:
        """Take a reply to *exchange*, or a part of one that holds whole events.

        Args:
            exchange: What it answers.
            chunks: One JSON text; empty if there is only the end to tell.
            final: Whether nothing more comes for it.
            status: What the transport says of it, for messages: ``"200 OK"``.
            verify: Is asked first.
        """
        if exchange.over:
            return
        if not exchange.unread and sum(map(len, chunks)) <= 2 * INLINE_BYTES:
            self._read(exchange, final, status, _decode(chunks, verify))
            return

        exchange.unread.append((chunks, final, status, verify))
        if len(exchange.unread) == 1:
            self._decode_elsewhere(exchange)

    def arrived(self, chunks: list[bytes], *, verify: Verify | None = None) -> None:
        """Take a message whose events name their runs themselves.

        Args:
            chunks: One JSON text.
            verify: Is asked first.
        """
        if sum(map(len, chunks)) <= 2 * INLINE_BYTES:
            self._take(_decode(chunks, verify))
            return

        batch = self._decoding
        batch.count += 1
        thread_pool.submit(
            lambda: post_to(self.loop, self._decoded, batch, _decode(chunks, verify))
        )

    def report_waiting(self, exchange: PendingRequest) -> None:
        """Say that the service streams the events of *exchange*, so that ``task_started`` is to come."""
        if not exchange.over:
            names = {"run_id": exchange.run_id, "task_id": exchange.task}
            self._inbox.put([{"type": "heartbeat", **names}])

    def failed(self, exchange: PendingRequest, error: BaseException) -> None:
        """No answer came for *exchange*, and none will."""
        if exchange.over:
            return
        self._finish(exchange)
        if exchange.is_cancel:
            logger.debug("%s: the %s failed: %s", self.label, exchange, error)
        else:
            self._end(exchange, error)

    def refused(
        self,
        exchange: PendingRequest,
        message: str,
        *,
        kind: str = "TransportError",
        retryable: bool = False,
    ) -> None:
        """End *exchange*: the response was not a valid answer, as *message* says."""
        text = f"{self.label}: {exchange}: {self.masked(message)}"
        self.failed(
            exchange, EnvironmentExecutionError.of_transport(text, kind=kind, retryable=retryable)
        )

    def masked(self, text: str) -> str:
        """*text*, which quotes what came, without credentials: some services repeat what they were sent."""
        return text if self._masked is None else self._masked.sub("***", text)

    def only_local(self, *, tls: bool) -> bool:
        """Whether this environment may lead to this machine alone: nothing else protects its connections."""
        return not self.insecure and bool(missing_protection(tls=tls, security=self.security))

    def _tokens(self) -> list[str]:
        if self.security.kind != "bearer":
            return []
        return list(
            self.security.headers_for(transport=self.transport, target="", body=b"").values()
        )

    def lost(
        self,
        exchanges: Iterable[PendingRequest],
        make_error: Callable[[PendingRequest], BaseException],
        *,
        untaken: bool = False,
    ) -> None:
        """A connection is gone, and with it what was sent over it and has not been answered.

        What came before is decoded first: it may hold the answers.

        Args:
            exchanges: What was sent.
            make_error: Makes the error of each.
            untaken: Whether the service has begun none of them, so that they can be sent again.
        """
        sent = list(exchanges)

        def fail() -> None:
            for exchange in sent:
                if not exchange.over and not (untaken and self._offer_again(exchange)):
                    self.failed(exchange, make_error(exchange))

        # Later replies belong to the next batch: under load, there may never be a moment without decoding.
        batch, self._decoding = self._decoding, _Decoding()
        if batch.count:
            batch.after = fail
        else:
            fail()

    def verifier(
        self, headers: Mapping[str, str], target: str, signature: str | None, sequence: int = 0
    ) -> Verify | None:
        """Return the check of a reply before it is decoded; ``None`` where replies are not signed.

        Args:
            headers: Those that the request, or the handshake, was signed with.
            target: What it was signed for.
            signature: What came with the reply, if anything did.
            sequence: The how many-th reply it is, from 0.
        """
        if not self.security.signs_replies:
            return None

        def verify(chunks: Sequence[bytes]) -> None:
            self.security.verify_reply(
                transport=self.transport,
                target=target,
                headers=headers,
                body=chunks,
                signature=signature,
                sequence=sequence,
            )

        return verify

    def signed_headers(self, exchange: PendingRequest, target: str) -> dict[str, str]:
        """The headers that authenticate *exchange* now; kept, to verify the reply."""
        headers = self.security.headers_for(
            transport=self.transport, target=target, body=exchange.digest or b""
        )
        exchange.sent_headers = headers
        return headers

    # ------------------------------------------------------------------ decoding and checking

    def _decode_elsewhere(self, exchange: PendingRequest) -> None:
        chunks, final, status, verify = exchange.unread[0]
        offer = exchange.offers
        thread_pool.submit(
            lambda: post_to(
                self.loop,
                self._decoded_reply,
                exchange,
                offer,
                final,
                status,
                _decode(chunks, verify),
            )
        )

    def _decoded_reply(
        self, exchange: PendingRequest, offer: int, final: bool, status: str, frames: _Frames
    ) -> None:
        if (
            exchange.over or offer != exchange.offers
        ):  # it is about a transmission that has been given up
            return

        exchange.unread.popleft()
        self._read(exchange, final, status, frames)
        if exchange.unread and not exchange.over:
            self._decode_elsewhere(exchange)

    def _read(self, exchange: PendingRequest, final: bool, status: str, frames: _Frames) -> None:
        if exchange.over:
            return
        said = f"its service answered {status}".rstrip()

        if exchange.is_cancel:
            if final:
                self._finish(exchange)
            self._take(frames, theirs=False)
        elif isinstance(frames, BaseException):
            self._unreadable(exchange, said, frames)
        else:
            for frame in frames:
                if says_busy(frame):  # said perhaps before the service knew which run it was
                    frame.setdefault("run_id", exchange.run_id)
                try:
                    event = check_event(frame)
                except FrameError as error:
                    self.refused(
                        exchange, f"{said} with what is not an event: {error}", kind="FrameError"
                    )
                    return
                if event["run_id"] != exchange.run_id:
                    self.refused(
                        exchange,
                        f"{said} with an event of another run, {event['run_id']!r:.100}",
                        kind="FrameError",
                    )
                    return
                if self._event(exchange, event):
                    return
            if final:
                came = "without telling how the run ended" if exchange.heard else "with nothing"
                self.refused(
                    exchange, f"{said} {came}: no task_result, task_error or task_cancelled came"
                )

    def _unreadable(self, exchange: PendingRequest, said: str, error: BaseException) -> None:
        if isinstance(error, FrameError):
            self.refused(exchange, f"{said} with what is not an event: {error}", kind="FrameError")
        elif isinstance(error, PermissionError):
            refusal = DeliveryError(
                f"{self.label}: {exchange}: {said}, and that is not authentic: {error}"
            )
            refusal.__cause__ = error
            self.failed(exchange, refusal)
        else:
            self.failed(exchange, error)

    def _decoded(self, batch: _Decoding, frames: _Frames) -> None:
        batch.count -= 1
        try:
            self._take(frames)
        finally:
            if not batch.count and batch.after is not None:
                batch.after()

    def _take(self, frames: _Frames, *, theirs: bool = True) -> None:
        """Give every event to its run. What is none ends the run that it names.

        Args:
            frames: What was decoded, or why it could not be.
            theirs: Whether runs may wait for it, so that something that names no run must be acted on.
        """
        if isinstance(frames, BaseException):
            self._nobodys(frames, theirs)
            return

        for frame in frames:
            try:
                event = check_event(frame)
            except FrameError as error:
                self._nobodys(error, theirs)
                continue
            exchange = self.exchanges.get(event["run_id"])
            if exchange is not None:
                self._event(exchange, event)
            else:
                self.stray(event)

    def _nobodys(self, error: BaseException, theirs: bool) -> None:
        exchange = self.exchanges.get(getattr(error, "run_id", None) or "")
        if exchange is not None:
            self._unreadable(exchange, "its service answered", error)
        elif theirs:
            logger.warning("%s: a message from its service cannot be used: %s", self.label, error)
            self.distrusted(error)

    def _event(self, exchange: PendingRequest, event: dict[str, Any]) -> bool:
        """Pass *event* on; whether it is the last one that this transmission brings."""
        exchange.heard = True
        over = event["type"] in TERMINAL
        if over:
            if says_busy(event) and self._offer_again(exchange):
                return True
            self._finish(exchange)

        self._inbox.put([event])
        return over

    def _offer_again(self, exchange: PendingRequest) -> bool:
        """Whether a run that a busy service did not take is transmitted once more, a little later."""
        now = self.loop.time()
        if exchange.busy_since is None:
            exchange.busy_since = now
        elif self.busy_timeout is not None and now - exchange.busy_since > self.busy_timeout:
            return False

        if exchange.unwanted:  # and has not even begun
            return False
        if not exchange.sent:  # said twice; it is going to be sent again, once
            return True
        exchange.sent = exchange.heard = False
        self.withdraw(exchange)
        exchange.unread.clear()
        exchange.offers += 1
        delay = OFFER.delay(exchange.offers)
        exchange.timer = self.loop.call_later(delay, self._prepare, exchange)
        return True

    # ------------------------------------------------------------------ ends

    def _end(self, exchange: PendingRequest, error: BaseException) -> None:
        self._inbox.put(
            [
                {
                    "type": "task_error",
                    "run_id": exchange.run_id,
                    "task_id": exchange.task,
                    "exception": error,
                }
            ]
        )

    def _finish(self, exchange: PendingRequest) -> None:
        """Nothing that comes for *exchange* counts any more."""
        if exchange.over:
            return
        exchange.over = True
        if exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None

        if exchange.is_cancel:
            self._cancels.discard(exchange)
            if not self._cancels and self._quiet is not None and not self._quiet.done():
                self._quiet.set_result(None)
        elif self.exchanges.get(exchange.run_id) is exchange:
            del self.exchanges[exchange.run_id]

        if exchange.sent:
            self.withdraw(exchange)
        exchange.chunks = []
        exchange.unread.clear()


def _finder(values: Iterable[str]) -> re.Pattern[str] | None:
    """Finds each of *values* (its last word: ``Bearer`` and ``Basic`` say nothing), also one that is cut short."""
    words = {value.split()[-1] for value in values if value.strip()}
    found = [re.escape(word[:MASKED]) + r"[^\s\"'<>&,]*" for word in words if len(word) >= MASKED]
    return re.compile("|".join(found)) if found else None


def _decode(chunks: list[bytes], verify: Verify | None) -> _Frames:
    try:
        if verify is not None:
            verify(chunks)
        return codec.decode(chunks) if chunks else []
    except BaseException as error:  # it ends the runs it concerns, never the one who reads
        return error


def _bulk(frame: Frame) -> int:
    """Bytes of the pickles in a command."""
    arguments: Pickled | None = frame.get("args_pickle")
    function: Pickled | None = frame.get("callable_pickle")
    return (0 if arguments is None else arguments.size) + (0 if function is None else function.size)
