"""``executor="http"`` and ``"https"``: a POST to a worker service for each command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from wove import __version__
from wove.concurrency.thread_pool import run_in_thread
from wove.errors import DeliveryTimeoutError, WorkerLostError
from wove.executors.http.pool import Call, FailureKind, Origin, Pool
from wove.executors.network.executor import NetworkExecutor
from wove.executors.network.pending import PendingRequest, Verify
from wove.net.chunk_buffer import ChunkBuffer
from wove.net.http1 import RequestHead, quoted
from wove.protocol import signing
from wove.protocol.names import JSON_TYPE, LINES_TYPE, RESUME_HEADER, SIGNED_LINES_TYPE
from wove.protocol.streams import split_signature
from wove.security.endpoints import parse_url, refuse_exposed
from wove.settings.config_readers import header_items, number, whole

if TYPE_CHECKING:
    from wove.net.http1 import Head

__all__ = ["HttpEnvironmentExecutor", "HttpsEnvironmentExecutor"]

CONNECTIONS: Final = 100
CONNECT_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = 5.0

RESUME: Final = RESUME_HEADER.lower()
REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower()

# RFC 9110, 15.5 and 15.6; RFC 6585, 4: the request was not carried out, and may be in a moment.
_PASSING: Final = frozenset({408, 425, 429, 502, 503, 504})

_HINTS: Final = {
    401: "Both sides need the same executor_config 'security', and clocks that agree",
    403: "Both sides need the same executor_config 'security', and clocks that agree",
    404: "Is the path in the url right?",
    405: "Is the path in the url right?",
    413: "The service takes no body of that size: raise its limit, or pass large data by reference (a path, a key)",
}


class HttpEnvironmentExecutor(NetworkExecutor):
    """Posts commands to the worker service at ``url``, and takes its answers as their events.

    Keys of ``executor_config``, beside those that all network executors share:

    * ``url``: the endpoint. Required. Another machine's must be ``https://``, and have ``security``.
    * ``headers`` (dict of texts, or pairs): sent with every request.
    * ``timeout`` (seconds; default none): from the moment a request gets a connection to the end of its answer.
    * ``max_connections`` (default 100): connections, and so requests, at once. Others wait their turn.
    * ``connect_timeout`` (10): seconds for connecting, TLS included.
    * ``reconnect_timeout`` (5): seconds for which connecting is retried with a service that was there
      before, and is perhaps being restarted. ``None``: for ever.

    Example:
        >>> config = {"url": "https://workers.internal/wove/tasks", "security": "env:WOVE_WORKER_SECRET"}
        >>> environment = {"executor": "http", "executor_config": config}
    """

    transport: ClassVar[Literal["http", "grpc", "websocket"]] = "http"
    KEYS: ClassVar[tuple[str, ...]] = (
        "url",
        "headers",
        "timeout",
        "max_connections",
        "connect_timeout",
        "reconnect_timeout",
    )
    SCHEMES: ClassVar[tuple[str, ...]] = ("http", "https")

    def configure(self, label: str, config: Mapping[str, Any]) -> None:
        url = self.url = parse_url(config.get("url"), self.SCHEMES, label=label)
        refuse_exposed(
            label,
            target=f"{url.scheme}://{url.authority}",
            local=url.local,
            tls=url.tls,
            security=self.security,
            insecure=self.insecure,
            tls_remedy="an https:// url",
        )
        extra = header_items(config.get("headers"), label, security=self.security)
        self.confidential = [value for _, value in extra]
        given = {name.lower() for name, _ in extra}
        self.lines = SIGNED_LINES_TYPE if self.security.signs_replies else LINES_TYPE
        ours = [
            ("Content-Type", JSON_TYPE),
            ("Accept", f"{JSON_TYPE}, {self.lines}"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", f"wove/{__version__}"),
        ]
        self.head = RequestHead(
            "POST",
            url.target,
            [
                ("Host", url.authority),
                *((name, value) for name, value in ours if name.lower() not in given),
                *extra,
            ],
        )
        self.timeout = number(config, "timeout", None, label=label)
        self._max_connections = whole(config, "max_connections", CONNECTIONS, label=label)
        self._connect_seconds = number(
            config, "connect_timeout", CONNECT_SECONDS, label=label, none=True
        )
        self._reconnect_seconds = number(
            config, "reconnect_timeout", RECONNECT_SECONDS, label=label, none=True
        )

    async def open(self) -> None:
        context = await run_in_thread(self.tls.context, ["http/1.1"]) if self.url.tls else None
        self.pool = Pool(
            Origin(
                self.url.host,
                self.url.port,
                context,
                self.max_message_bytes,
                only_local=self.only_local(tls=self.url.tls),
            ),
            max_connections=self._max_connections,
            connect_seconds=self._connect_seconds,
            reconnect_seconds=self._reconnect_seconds,
        )

    def transmit(self, request: PendingRequest) -> None:
        call = request.state = _Post(self, request)
        self.pool.submit(call)

    def recall(self, request: PendingRequest) -> bool:
        call = request.state
        return isinstance(call, _Post) and self.pool.recall(call)

    def failed(self, request: PendingRequest, error: BaseException) -> None:
        if isinstance(request.state, _Post):
            request.state.tainted = True
        if request.sent and not request.over and not request.is_cancel:
            self.pool.close_idle()
        super().failed(request, error)

    def withdraw(self, request: PendingRequest) -> None:
        call, request.state = request.state, None
        if isinstance(call, _Post):
            self.pool.withdraw(call)

    async def close(self) -> None:
        await self.pool.close()


class HttpsEnvironmentExecutor(HttpEnvironmentExecutor):
    """As ``http``; its ``url`` must begin with ``https://``.

    Example:
        >>> config = {"url": "https://workers.internal/wove/tasks", "security": "env:WOVE_WORKER_SECRET"}
        >>> environment = {"executor": "https", "executor_config": config}
    """

    SCHEMES: ClassVar[tuple[str, ...]] = ("https",)


class _Post(Call):
    """The HTTP request for a command, and its response."""

    __slots__ = (
        "_executor",
        "_line",
        "_lines",
        "_request",
        "_sequence",
        "_signature",
        "_status",
    )

    def __init__(self, executor: HttpEnvironmentExecutor, request: PendingRequest) -> None:
        super().__init__(urgent=request.is_cancel, limit=executor.timeout)
        self._executor = executor
        self._request = request
        self.patient = request.loss is None
        self._line: ChunkBuffer | None = None  # of a stream: what has come of the line
        self._lines = 0
        self._signature: list[bytes] | None = None  # the line that signs the next one
        self._sequence = 0
        self._status = ""

    def begin(self) -> tuple[bytes, list[bytes]]:
        executor, request = self._executor, self._request
        # Signed only now: after a long wait for a connection the time in the signature would be an old one.
        fields = executor.signed_headers(request, executor.url.target)
        executor.report_sent(request)
        head = executor.head.encode([("Content-Length", str(request.size)), *fields.items()])
        chunks, request.chunks = request.chunks, []
        return head, chunks

    def streams(self, head: Head) -> bool:
        if head.get(RESUME):
            self._executor.resumption.offered = True
        if head.status >= 300 or _media_type(head) != self._executor.lines:
            return False

        self._line = ChunkBuffer()
        self._status = str(head)
        self._executor.report_waiting(self._request)
        return True

    def part(self, piece: bytes) -> int:
        line = self._line
        assert line is not None
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            line.add(piece[start:end])
            start = end + 1
            self._event(line.take(), final=False)
            self._lines += 1

        if start < len(piece):
            line.add(piece[start:] if start else piece)
        most = self._executor.max_message_bytes
        if line.size > most:
            self._executor.refused(
                self._request,
                f"its service answered {self._status} with a line of more than {most} bytes "
                f"(executor_config 'max_message_bytes')",
            )

        return self._lines + 1 if line.size else 0

    def answered(self, head: Head, body: list[bytes], *, cut: bool) -> None:
        if self._line is not None:
            self._event(self._line.take(), final=True)
            return

        executor, request = self._executor, self._request

        if head.status < 300 or (head.status == 503 and not cut and _media_type(head) == JSON_TYPE):
            coding = head.get("content-encoding") or "identity"
            if coding.lower() != "identity":
                executor.refused(
                    request, f"its service answered {head} in the encoding {coding!r:.80}, unasked"
                )
                return
            executor.answered(
                request, body, final=True, status=str(head), verify=self._verifier(head)
            )
            return

        executor.refused(request, _refusal(head, body), retryable=head.status in _PASSING)

    def failed(
        self, failure: FailureKind, message: str, cause: BaseException | None = None
    ) -> None:
        executor, request = self._executor, self._request
        text = f"{executor.label}: {request}: {executor.masked(message)}"
        if failure == "refused":
            executor.refused(request, message)
            return

        error = WorkerLostError(text) if failure == "lost" else DeliveryTimeoutError(text)
        error.__cause__ = cause
        executor.failed(request, error)

    def _verifier(self, head: Head) -> Verify | None:
        executor = self._executor
        return executor.verifier(
            self._request.sent_headers, executor.url.target, head.get(REPLY_SIGNATURE)
        )

    def _event(self, line: list[bytes], *, final: bool) -> None:
        chunks = [] if len(line) == 1 and not line[0].strip() else line
        verify: Verify | None = None

        if chunks and self._executor.security.signs_replies:
            if self._signature is None and not final:
                self._signature = chunks
                return
            signature, chunks = split_signature([*(self._signature or []), b"\n", *chunks])
            verify = self._executor.verifier(
                self._request.sent_headers, self._executor.url.target, signature, self._sequence
            )
            self._signature = None
            self._sequence += 1

        if chunks or final:
            self._executor.answered(
                self._request, chunks, final=final, status=self._status, verify=verify
            )


def _media_type(head: Head) -> str:
    """Return the body's media type (RFC 9110, 8.3), without parameters."""
    return (head.get("content-type") or "").partition(";")[0].strip().lower()


def _refusal(head: Head, body: list[bytes]) -> str:
    """Return what a response that is not a valid answer says: its status and the beginning of its text."""
    text = f"its service answered {head}"
    start = b"".join(body[:16])
    if start.strip():
        text += f": {quoted(start)}"
    location = head.get("location")
    if 300 <= head.status < 400:
        where = f" to {location!r:.300}" if location else ""
        return f"{text}. Redirects{where} are not followed: tasks and credentials are for the url that is configured"

    hint = _HINTS.get(head.status)
    return f"{text}. {hint}" if hint else text
