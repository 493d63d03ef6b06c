"""One HTTP request and its reply, as ASGI has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from wove.concurrency.thread_pool import run_in_thread
from wove.protocol import codec, signing
from wove.protocol.codec import encode_events
from wove.protocol.frames import TERMINAL, condensed, says_busy
from wove.protocol.names import JSON_TYPE, LINES_TYPE
from wove.protocol.waiting import add_waiting
from wove.services.queue import RunQueue
from wove.services.wire import is_big, is_big_reply

__all__ = ["RECOGNIZED", "RETRY_AFTER", "ClientGone", "Refusal", "Request", "ResponseStream"]

Headers: TypeAlias = list[tuple[bytes, bytes]]
Message: TypeAlias = MutableMapping[str, Any]

PATIENCE_SECONDS: Final = 0.05
"""A run that ends within this time is answered with its events in one piece; of a longer one they are streamed."""

LINGER_SECONDS: Final = 2.0
"""How long the rest of a request is read and dropped after an early refusal, in seconds. Closing at once would reset
the connection, and the client might never read the reply (RFC 9112, section 9.6)."""

RETRY_AFTER: Final = ((b"retry-after", b"1"),)
"""Of a reply that says "busy", in seconds."""

_JSON: Final = JSON_TYPE.encode()
_LINES: Final = LINES_TYPE.encode()
RECOGNIZED: Final = "wove-recognized"
"""Key of the ASGI scope: what the server wants called once the client has shown who it is."""

REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower().encode("ascii")


class ClientGone(Exception):
    """The client has closed the connection."""


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        message: What is wrong.
        headers: More headers of the reply.
        text: As plain text; else as JSON.
        reply: That JSON; ``None``: ``{"error": message}``.
        early: Whether the request's body may not have been read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        text: bool = False,
        reply: dict[str, Any] | None = None,
        early: bool = False,
    ) -> None:
        super().__init__(message)
        self.json = {"error": message} if reply is None else reply
        self.status = status
        self.headers = headers
        self.text = text
        self.early = early


class Request:
    """A request.

    Attributes:
        method: ``"POST"``.
        headers: As they came.
        length: Its ``Content-Length``.
        size: How many bytes of the body have come.
        streams: Whether the client takes a reply in lines.
        browser: Whether a web page sent it. Browsers say so with every POST (Fetch, section 3.1, "Origin").
        answered: Whether the reply has begun.
        sign: Makes the signature of a reply.
    """

    __slots__ = (
        "_keep_alive",
        "_receive",
        "_scope",
        "_send",
        "answered",
        "browser",
        "headers",
        "length",
        "method",
        "sign",
        "size",
        "streams",
    )

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        *,
        keep_alive: int | None,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._keep_alive = keep_alive
        self.method: str = scope["method"]
        self.headers: Headers = list(scope["headers"])
        self.length: int | None = None
        self.streams = self.browser = False

        for name, value in self.headers:
            if name == b"content-length":
                self.length = int(value) if value.isdigit() else None
            elif name == b"accept":
                self.streams = _LINES in value
            elif name == b"origin" or name == b"sec-fetch-site":
                self.browser = True

        self.size = 0
        self.answered = False
        self.sign: Callable[[Request, Sequence[bytes]], str | None] | None = None

    @property
    def path(self) -> str:
        """The path, decoded."""
        path: str = self._scope["path"]
        return path

    @property
    def peer(self) -> str:
        """The client's address, for the log."""
        client = self._scope.get("client")
        return f"{client[0]}:{client[1]}" if client else "?"

    def recognized(self) -> None:
        """Tell the server that the client has shown who it is."""
        on_recognized: Callable[[], object] | None = self._scope.get(RECOGNIZED)
        if on_recognized is not None:
            on_recognized()

    @property
    def target(self) -> str:
        """Return the target that a signature covers: the path as it was sent, with the query."""
        raw: bytes | None = self._scope.get("raw_path")
        # ASGI makes raw_path optional; without it, an escape that the client need not have made is lost.
        path = quote(self.path, safe="/:@!$&'()*+,;=~") if raw is None else raw.decode("latin-1")
        path = path.partition("?")[0] or "/"  # some servers include the query
        query: bytes = self._scope.get("query_string", b"")
        return f"{path}?{query.decode('latin-1')}" if query else path

    async def read(
        self,
        accept: Callable[[bytes], Awaitable[object]],
        seconds: float,
        bytes_per_second: float,
    ) -> None:
        """Give the chunks of the body to *accept*.

        Args:
            accept: Its exception ends the reading. Its time does not count.
            seconds: How long the body may take to come, and each part of it.
            bytes_per_second: Each this many bytes that have come give the whole a second more.

        Raises:
            ClientGone: The client has gone.
            Refusal: It comes too slowly.
        """
        clock = asyncio.get_running_loop().time
        due = clock() + seconds

        try:
            while True:
                async with asyncio.timeout_at(
                    min(due + self.size / bytes_per_second, clock() + seconds)
                ):
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                self.size += len(chunk)
                if chunk:
                    before = clock()
                    await accept(chunk)
                    due += clock() - before
                if not message.get("more_body", False):
                    return
        except TimeoutError:
            raise Refusal(
                408, "the body came too slowly", headers=((b"connection", b"close"),)
            ) from None

    async def gone(self) -> None:
        """Wait until the client has gone. To be called after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(
        self,
        status: int,
        chunks: Sequence[bytes],
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        kind: bytes = _JSON,
    ) -> None:
        """Send a whole reply."""
        size = sum(map(len, chunks))
        fields: Headers = [(b"content-type", kind), (b"content-length", b"%d" % size), *headers]

        if self.sign is not None:
            signature = (
                await run_in_thread(self.sign, self, chunks)
                if is_big(size)
                else self.sign(self, chunks)
            )
            if signature is not None:
                fields.append((REPLY_SIGNATURE, signature.encode("ascii")))

        await self.begin(status, fields)
        for chunk in chunks[:-1]:
            await self.send(chunk)
        await self.send(chunks[-1], last=True)

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error."""
        if refusal.text:
            await self.reply(
                refusal.status, [f"{refusal}\n".encode()], refusal.headers, kind=b"text/plain"
            )
            return

        body = json.dumps(refusal.json).encode()
        if not refusal.early:
            await self.reply(refusal.status, [body], refusal.headers)
            return

        fields = [
            (b"content-type", _JSON),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await self.begin(refusal.status, [*fields, *refusal.headers])
        await self.send(body)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break

        await self.send(b"", last=True)

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head of a reply."""
        self.answered = True

        if self._scope.get("http_version", "1.1") not in ("1.0", "1.1"):
            # RFC 9113, section 8.2.2: there are no such headers in HTTP/2, nor in HTTP/3.
            headers = [field for field in headers if field[0] != b"connection"]
        elif self._keep_alive is not None and (b"connection", b"close") not in headers:
            headers.append((b"keep-alive", b"timeout=%d" % self._keep_alive))

        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, chunk: bytes, *, last: bool = False) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})


class ResponseStream:
    """A run, from its request to the end of the reply."""

    __slots__ = (
        "_events",
        "_gone",
        "_loop",
        "_over",
        "_patient",
        "_request",
        "_streaming",
        "_waiter",
    )

    def __init__(self, request: Request) -> None:
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._events: list[dict[str, Any]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._patient = True
        self._over = self._gone = self._streaming = False

    async def run(self, queue: RunQueue, frame: dict[str, Any], owner: str) -> None:
        """Have *frame* run, and answer."""
        subscription = queue.enqueue(frame, self._deliver, peer=self._request.peer, owner=owner)
        watch: asyncio.Task[None] | None = None

        try:
            if not self._over:
                # Most runs end soon. To watch the connection costs a task, and streaming costs packets.
                timer = self._loop.call_later(PATIENCE_SECONDS, self._lose_patience)
                await self._wait_for_event()
                timer.cancel()
            if not self._over:
                watch = self._loop.create_task(self._request.gone())
                watch.add_done_callback(self._left)
                if self._request.streams and self._request.sign is None:
                    await self._stream()
                    return
                while not self._over:
                    await self._wait_for_event()
            await self._answer()
        finally:
            queue.unsubscribe(subscription)
            if watch is not None:
                watch.cancel()

    def _deliver(self, event: dict[str, Any]) -> None:
        if event["type"] == "heartbeat" and (
            not self._streaming or (self._events and self._events[-1]["type"] == "heartbeat")
        ):
            return  # of no use in a reply that comes at the end; and one is enough for a client that reads slowly

        add_waiting(self._events, event)

        if event["type"] in TERMINAL:
            self._over = True
            self._wake()
        elif not self._patient:
            self._wake()

    def _lose_patience(self) -> None:
        self._patient = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            watch.exception()  # it is of no interest: either way there is nobody to talk to
            self._gone = True
            self._wake()

    async def _wait_for_event(self) -> None:
        """Wait for an event, the end of the patience, or the client's leaving.

        Raises:
            ClientGone: The client has gone.
        """
        self._waiter = self._loop.create_future()

        try:
            if not self._gone:
                await self._waiter
        finally:
            self._waiter = None

        if self._gone and not self._over:
            raise ClientGone

    async def _answer(self) -> None:
        # Who reads lines is one of us, and content with an end that says where the run was.
        events = condensed(self._events) if self._request.streams else self._events
        if is_big_reply(self._events):
            chunks = await run_in_thread(encode_events, events)
        else:
            chunks = encode_events(events)

        if says_busy(self._events[-1]):
            await self._request.reply(503, chunks, RETRY_AFTER)
        else:
            await self._request.reply(200, chunks)

    async def _stream(self) -> None:
        self._streaming = True
        await self._request.begin(200, [(b"content-type", _LINES)])

        while True:
            events, self._events = self._events, []
            over = self._over
            if events:
                await self._send_lines(events, over)
            if over:
                return
            if not self._events:
                await self._wait_for_event()

    async def _send_lines(self, events: list[dict[str, Any]], last: bool) -> None:
        if is_big_reply(events):
            chunks = await run_in_thread(_lines, events)
        else:
            chunks = [b"".join(_lines(events))]
        for chunk in chunks[:-1]:
            await self._request.send(chunk)
        await self._request.send(chunks[-1], last=last)


def _lines(events: Sequence[dict[str, Any]]) -> list[bytes]:
    chunks: list[bytes] = []
    for event in events:
        chunks.extend(codec.encode(event))
        chunks.append(b"\n")
    return chunks
