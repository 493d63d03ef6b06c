"""The common part of the executors for worker services: requests, the check of replies, busy services, cancels."""

from __future__ import annotations

import abc
import asyncio
import importlib.util
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from wove.errors import (
    DeliveryError,
    EnvironmentExecutionError,
    MissingDependencyError,
    MissingDispatchFeatureError,
    SerializationError,
    WorkerLostError,
)
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.executors.network.codec import Decoded, Encoded, RequestCodec, decode, is_small
from wove.executors.network.hints import credential_pattern
from wove.executors.network.pending import PendingRequest, Verify
from wove.executors.network.retry import BUSY_SECONDS, BusyRetry, Resumption
from wove.protocol.frames import TERMINAL, FrameError, check_event, says_busy, says_unknown
from wove.protocol.limits import MAX_MESSAGE_BYTES
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

CANCELLED_SECONDS: Final = 30.0
"""Default of ``cancel_ack_timeout``: how long a cancelled run may take to answer."""

CANCEL_SECONDS: Final = 10.0
"""How long the service may take to answer the cancel itself."""

MAX_RECEIVED: Final = 1000
"""Maximum number of ended runs that are remembered, to be acknowledged with the next command."""

CANCEL_FLUSH_SECONDS: Final = 2.0
"""How long the executor waits for cancels that are being sent before it stops."""


class NetworkExecutor(EnvironmentExecutor):
    """Base of ``http``, ``grpc`` and ``websocket``. All methods are called on one loop.

    A transport moves bytes to the service and back:

    * `configure` reads its keys; `open` and `close` begin and end it;
    * `transmit` sends a request, `withdraw` releases one, `recall` takes back one that has not left yet;
    * for what the service sends it calls `answered` (a reply to one request), `received` (a message that names
      its runs itself), `failed` (no answer), `refused` (not a valid answer) or `lost` (a connection is gone).

    The rest is here: commands are encoded and replies decoded, off the loop where that takes long; every reply is
    checked; a run that a busy service declined is offered again; a cancel takes back a command that has not left,
    and is sent to the service otherwise.
    """

    scope: ClassVar[Literal["run", "process"]] = "process"
    wire: ClassVar[bool] = True
    says_started: ClassVar[bool] = True
    external_workers: ClassVar[bool] = True
    cancel_reach: ClassVar[CancelReach] = "cooperative"

    transport: ClassVar[Literal["http", "grpc", "websocket"]]
    KEYS: ClassVar[tuple[str, ...]]
    """Keys of ``executor_config`` that only this transport has."""

    REQUIRES: ClassVar[tuple[str, str] | None] = None
    """The package that the transport needs, and the command that installs it."""

    def __init__(self) -> None:
        self.requests: dict[str, PendingRequest] = {}
        self.confidential: list[str] = []
        """Values sent with commands that may be credentials, beside those of `security`; filled by `configure`."""

        self.resumption = Resumption()
        self._cancels: set[PendingRequest] = set()
        self._received: list[str] = []  # ended runs that the service need not keep any longer
        self._inbox = EventQueue()
        self._cancels_done: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ what a transport provides

    @abc.abstractmethod
    def configure(self, label: str, config: Mapping[str, Any]) -> None:
        """Read and check the transport's own keys. No I/O.

        Args:
            label: The name of the environment in messages.
            config: Its ``executor_config``.
        """

    @abc.abstractmethod
    async def open(self) -> None:
        """Import the transport's package and get ready to send; connecting may wait for the first request."""

    @abc.abstractmethod
    def transmit(self, request: PendingRequest) -> None:
        """Send *request*. Neither blocks nor raises."""

    @abc.abstractmethod
    def withdraw(self, request: PendingRequest) -> None:
        """Release what *request* holds: it has ended, or is about to be transmitted again."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End everything that `open` and `transmit` began."""

    def recall(self, request: PendingRequest) -> bool:
        """Take back *request* if no byte of it has left, and return whether it was."""
        del request
        return False

    def frame_to_send(self, request: PendingRequest) -> Frame:
        """Return the frame to encode for *request*; called right before it is encoded."""
        return request.frame

    def on_unattributable(self, error: BaseException) -> None:
        """Called with the error of a message that names no run. Runs that may wait for it must not wait for ever."""
        del error

    def on_unknown_run(self, event: dict[str, Any]) -> None:
        """Called with an event of a run that is not, or no longer, awaited."""
        logger.debug(
            "%s: dropped a %s of unknown run %.100r", self.label, event["type"], event["run_id"]
        )

    # ------------------------------------------------------------------ the contract of an executor

    def check(self, environment_name: str, environment_config: Mapping[str, Any]) -> None:
        type(self)()._read_config(environment_name, environment_config)

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        self._read_config(environment_name, environment_config)
        self.loop = asyncio.get_running_loop()
        signs = self.security.kind == "signed" and self.transport != "websocket"
        self._codec = RequestCodec(self.loop, signs=signs)
        await self.open()

    def _read_config(self, environment_name: str, config: Mapping[str, Any]) -> None:
        """Read and check *config*, and look for the packages."""
        label = self.label = f"environment {environment_name!r}"
        check_keys(label, self.transport, config, (*self.KEYS, *SHARED_KEYS))
        self.security = NetworkExecutorSecurity.from_config(
            config.get("security"), label=f"{label}: executor_config 'security'"
        )
        self.insecure = flag(config, "insecure", False, label=label)
        self.max_message_bytes = whole(config, "max_message_bytes", MAX_MESSAGE_BYTES, label=label)
        self._busy_retry = BusyRetry(
            number(config, "busy_timeout", BUSY_SECONDS, label=label, none=True)
        )
        self.cancel_grace = number(
            config, "cancel_ack_timeout", CANCELLED_SECONDS, label=label, none=True
        )
        self.tls = tls_files(config, label=label)
        self.configure(label, config)
        self._masked = credential_pattern([*self._tokens(), *self.confidential])
        if importlib.util.find_spec("cloudpickle") is None:
            raise MissingDispatchFeatureError
        if self.REQUIRES is not None and importlib.util.find_spec(self.REQUIRES[0]) is None:
            package, command = self.REQUIRES
            raise MissingDependencyError(
                f"{label}: the {self.transport} executor needs the package {package}. Install it with: {command}"
            )

    async def send(self, frame: Frame) -> None:
        self.send_nowait(frame)

    def send_nowait(self, frame: Frame) -> bool:
        if frame["type"] == "run_task":
            request = PendingRequest(frame)
            self.requests[request.run_id] = request
            self._prepare(request)
        elif frame["type"] == "cancel_task":
            self._cancel(frame)
        return True

    async def recv(self) -> list[Frame]:
        return await self._inbox.get()

    async def why_waiting(self, run_ids: Collection[str]) -> str:
        waiting = [self.requests[run_id] for run_id in run_ids if run_id in self.requests]
        declined = sum(request.busy_since is not None and not request.sent for request in waiting)
        unsent = sum(request.busy_since is None and not request.left for request in waiting)
        queued = len(waiting) - declined - unsent
        reasons = {
            f"{queued} in the queue of the service, which is busy with others": queued,
            f"{declined} declined by the service, whose queue is full": declined,
            f"{unsent} not sent yet, for want of a connection": unsent,
        }
        return ", ".join(reason for reason, count in reasons.items() if count)

    async def stop(self) -> None:
        if self._cancels:
            self._cancels_done = self.loop.create_future()
            await asyncio.wait({self._cancels_done}, timeout=CANCEL_FLUSH_SECONDS)
        for request in [*self.requests.values(), *self._cancels]:
            self._finish(request)
        await self.close()

    # ------------------------------------------------------------------ out

    def _prepare(self, request: PendingRequest) -> None:
        request.timer = None
        frame = self.frame_to_send(request)
        if self._received:
            frame = {**frame, "received": self._received}
            self._received = []
        self._codec.encode(request, frame, self._prepared)

    def _prepared(self, request: PendingRequest, encoded: Encoded) -> None:
        if request.over:  # cancelled meanwhile
            return
        chunks, digest = encoded
        if isinstance(chunks, BaseException):
            self.failed(request, chunks)
            return

        request.chunks = chunks
        request.digest = digest
        request.size = sum(map(len, chunks))

        if request.size > self.max_message_bytes:
            self.failed(
                request,
                SerializationError(
                    f"{self.label}: {request} is a message of {request.size} bytes, more than "
                    f"{self.max_message_bytes} (executor_config 'max_message_bytes'). Pass large data by "
                    f"reference (a path, a key), or raise the limit on both sides."
                ),
            )
            return

        request.sent = True
        self.transmit(request)

    def _cancel(self, frame: Frame) -> None:
        request = self.requests.get(frame["run_id"])
        if request is None:  # its end is already on its way to the weave
            return
        if request.loss is None and (not request.sent or self.recall(request)):
            self._finish(request)
            self._inbox.put(
                [{"type": "task_cancelled", "run_id": request.run_id, "task_id": request.task}]
            )
            return

        request.cancelling = True
        cancel = PendingRequest(frame)
        self._cancels.add(cancel)
        self._prepare(cancel)
        if not cancel.over:
            cancel.timer = self.loop.call_later(CANCEL_SECONDS, self._finish, cancel)
        if request.timer is not None:
            request.timer.cancel()
        if self.cancel_grace is not None:
            request.timer = self.loop.call_later(self.cancel_grace, self._finish, request)

    # ------------------------------------------------------------------ back: called by the transport

    def answered(
        self,
        request: PendingRequest,
        chunks: list[bytes],
        *,
        final: bool,
        status: str = "",
        verify: Verify | None = None,
    ) -> None:
        """Process a reply to *request*, or a part of a reply that holds whole events.

        Args:
            request: The request that it answers.
            chunks: One JSON text; empty for the mere end of the reply.
            final: Whether it is the last part.
            status: The transport's status, for messages: ``"200 OK"``.
            verify: Checks the signature before anything is decoded.
        """
        if request.over:
            return
        if not request.unread and is_small(chunks):
            self._read(request, final, status, decode(chunks, verify))
            return

        request.unread.append((chunks, final, status, verify))
        if len(request.unread) == 1:
            self._decode_next(request)

    def received(self, chunks: list[bytes], *, verify: Verify | None = None) -> None:
        """Process a message whose events name their runs themselves.

        Args:
            chunks: One JSON text.
            verify: Checks the signature before anything is decoded.
        """
        self._codec.decode(chunks, verify, self._dispatch)

    def report_sent(self, request: PendingRequest) -> None:
        """Report that *request* has left, to a service that may not say when its run begins."""
        request.left = True
        if not request.over and not request.is_cancel and request.loss is None:
            names = {"run_id": request.run_id, "task_id": request.task}
            self._inbox.put([{"type": "task_sent", **names}])

    def report_waiting(self, request: PendingRequest) -> None:
        """Report that the service will send ``task_started`` for *request* when the run begins."""
        if not request.over and not request.is_cancel:
            names = {"run_id": request.run_id, "task_id": request.task}
            self._inbox.put([{"type": "heartbeat", **names}])

    def failed(self, request: PendingRequest, error: BaseException) -> None:
        """End *request* with *error*: no answer has come, and none will."""
        if request.over:
            return
        if isinstance(error, WorkerLostError) and self._resume(request, error):
            return
        if request.loss is not None and not isinstance(error, PermissionError):
            error = request.loss  # not why it could not be resumed
        self._finish(request)
        if request.is_cancel:
            logger.debug("%s: the %s failed: %s", self.label, request, error)
        else:
            self._end(request, error)

    def refused(
        self,
        request: PendingRequest,
        message: str,
        *,
        kind: str = "TransportError",
        retryable: bool = False,
    ) -> None:
        """End *request*: the response was not a valid answer, as *message* says."""
        text = f"{self.label}: {request}: {self.masked(message)}"
        if request.loss is not None and retryable:  # a proxy whose way to the service is cut
            self.failed(request, WorkerLostError(text))
            return
        self.failed(
            request, EnvironmentExecutionError.of_transport(text, kind=kind, retryable=retryable)
        )

    def masked(self, text: str) -> str:
        """Return *text* with credentials replaced: some services repeat in an error what they were sent."""
        return text if self._masked is None else self._masked.sub("***", text)

    def only_local(self, *, tls: bool) -> bool:
        """Return whether connections must lead to this machine, because nothing else protects them."""
        return not self.insecure and bool(missing_protection(tls=tls, security=self.security))

    def _tokens(self) -> list[str]:
        if self.security.kind != "bearer":
            return []
        return list(
            self.security.headers_for(transport=self.transport, target="", body=b"").values()
        )

    def lost(
        self,
        requests: Iterable[PendingRequest],
        make_error: Callable[[PendingRequest], BaseException],
        *,
        not_begun: bool = False,
    ) -> None:
        """End the requests whose connection was lost.

        Replies that arrived before are decoded first.

        Args:
            requests: The requests that were sent over the connection.
            make_error: Returns the error of each request that has no reply.
            not_begun: Whether the service has begun none of their runs, so that they can be sent again.
        """
        sent = list(requests)

        def fail() -> None:
            for request in sent:
                if not request.over and not (not_begun and self._offer_again(request)):
                    self.failed(request, make_error(request))

        self._codec.after_decoding(fail)

    def verifier(
        self, headers: Mapping[str, str], target: str, signature: str | None, sequence: int = 0
    ) -> Verify | None:
        """Return the check of a reply before it is decoded; ``None`` where replies are not signed.

        Args:
            headers: The headers with which the request, or the handshake, was signed.
            target: The target for which it was signed.
            signature: The signature of the reply, if it has one.
            sequence: The number of the reply, from 0.
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

    def signed_headers(self, request: PendingRequest, target: str) -> dict[str, str]:
        """Return the headers that authenticate *request* now, and keep them to verify the reply."""
        headers = self.security.headers_for(
            transport=self.transport, target=target, body=request.digest or b""
        )
        request.sent_headers = headers
        return headers

    # ------------------------------------------------------------------ decoding and checking

    def _decode_next(self, request: PendingRequest) -> None:
        chunks, final, status, verify = request.unread[0]
        offer = request.offers

        def on_decoded(frames: Decoded) -> None:
            if request.over or offer != request.offers:  # of a transmission that was given up
                return
            request.unread.popleft()
            self._read(request, final, status, frames)
            if request.unread and not request.over:
                self._decode_next(request)

        self._codec.decode_in_thread(chunks, verify, on_decoded)

    def _read(self, request: PendingRequest, final: bool, status: str, frames: Decoded) -> None:
        if request.over:
            return
        said = f"its service answered {status}".rstrip()

        if request.is_cancel:
            if final:
                self._finish(request)
            self._dispatch(frames, awaited=False)
        elif isinstance(frames, BaseException):
            self._unreadable(request, said, frames)
        else:
            for frame in frames:
                if says_busy(frame):  # the service may not have known the run
                    frame.setdefault("run_id", request.run_id)
                try:
                    event = check_event(frame)
                except FrameError as error:
                    self.refused(
                        request, f"{said} with what is not an event: {error}", kind="FrameError"
                    )
                    return
                if event["run_id"] != request.run_id:
                    self.refused(
                        request,
                        f"{said} with an event of another run, {event['run_id']!r:.100}",
                        kind="FrameError",
                    )
                    return
                if self._event(request, event):
                    return
            if final:
                came = "without telling how the run ended" if request.heard else "with nothing"
                self.refused(
                    request, f"{said} {came}: no task_result, task_error or task_cancelled came"
                )

    def _unreadable(self, request: PendingRequest, said: str, error: BaseException) -> None:
        if isinstance(error, FrameError):
            self.refused(request, f"{said} with what is not an event: {error}", kind="FrameError")
        elif isinstance(error, PermissionError):
            refusal = DeliveryError(
                f"{self.label}: {request}: {said}, and that is not authentic: {error}"
            )
            refusal.__cause__ = error
            self.failed(request, refusal)
        else:
            self.failed(request, error)

    def _dispatch(self, frames: Decoded, *, awaited: bool = True) -> None:
        """Pass each event to its run. A frame that is not an event ends the run that it names.

        Args:
            frames: The decoded frames, or why they could not be decoded.
            awaited: Whether runs may wait for them, so that a frame that names no run must be acted on.
        """
        if isinstance(frames, BaseException):
            self._unattributed(frames, awaited)
            return

        for frame in frames:
            try:
                event = check_event(frame)
            except FrameError as error:
                self._unattributed(error, awaited)
                continue
            request = self.requests.get(event["run_id"])
            if request is not None:
                self._event(request, event)
            else:
                self.on_unknown_run(event)

    def _unattributed(self, error: BaseException, awaited: bool) -> None:
        request = self.requests.get(getattr(error, "run_id", None) or "")
        if request is not None:
            self._unreadable(request, "its service answered", error)
        elif awaited:
            logger.warning("%s: a message from its service cannot be used: %s", self.label, error)
            self.on_unattributable(error)

    def _event(self, request: PendingRequest, event: dict[str, Any]) -> bool:
        """Pass *event* on, and return whether it is the last one of this transmission."""
        request.heard = True
        over = event["type"] in TERMINAL
        if over:
            if says_busy(event) and self._offer_again(request):
                return True
            if request.loss is not None and says_unknown(event):
                self.failed(request, EnvironmentExecutionError("the run is not known any more"))
                return True
            request.complete = True
            if self.resumption.offered and len(self._received) < MAX_RECEIVED:
                self._received.append(request.run_id)
            self._finish(request)

        self._inbox.put([event])
        return over

    def _offer_again(self, request: PendingRequest) -> bool:
        """Schedule another transmission of a run that the service has not begun, and return whether there is one."""
        if not self._busy_retry.permits(request, self.loop.time()):
            return False
        if not request.sent:  # declined twice; it is already about to be sent again
            return True
        request.sent = request.heard = False
        self.withdraw(request)
        request.unread.clear()
        self.report_waiting(request)
        delay = self._busy_retry.next_delay(request)
        request.timer = self.loop.call_later(delay, self._prepare, request)
        return True

    def _resume(self, request: PendingRequest, error: WorkerLostError) -> bool:
        """Ask the service for a run whose connection was lost, a little later, and return whether that is done."""
        if not self.resumption.begin(request, error, self.loop.time()):
            return False
        logger.debug(
            "%s: %s lost its connection, and is to be resumed: %s", self.label, request, error
        )
        request.sent = request.heard = False
        self.withdraw(request)
        request.chunks = []
        request.unread.clear()
        delay = self.resumption.next_delay(request)
        request.timer = self.loop.call_later(delay, self._prepare, request)
        return True

    # ------------------------------------------------------------------ ends

    def _end(self, request: PendingRequest, error: BaseException) -> None:
        self._inbox.put(
            [
                {
                    "type": "task_error",
                    "run_id": request.run_id,
                    "task_id": request.task,
                    "exception": error,
                }
            ]
        )

    def _finish(self, request: PendingRequest) -> None:
        """End *request*: replies to it are ignored from now on."""
        if request.over:
            return
        request.over = True
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None

        if request.is_cancel:
            self._cancels.discard(request)
            if (
                not self._cancels
                and self._cancels_done is not None
                and not self._cancels_done.done()
            ):
                self._cancels_done.set_result(None)
        elif self.requests.get(request.run_id) is request:
            del self.requests[request.run_id]

        if request.sent:
            self.withdraw(request)
        request.chunks = []
        request.unread.clear()
