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
from wove.protocol.frames import condensed, says_busy
from wove.protocol.names import JSON_TYPE, LINES_TYPE, RESUME_HEADER, SIGNED_LINES_TYPE
from wove.protocol.streams import add_signature
from wove.services.event_buffer import PATIENCE_SECONDS, ClientGone, EventBuffer
from wove.services.queue import RunQueue
from wove.services.wire import is_big, is_big_reply

__all__ = ["RECOGNIZED", "RETRY_AFTER", "Refusal", "Request", "ResponseStream"]

Headers: TypeAlias = list[tuple[bytes, bytes]]
Message: TypeAlias = MutableMapping[str, Any]

LINGER_SECONDS: Final = 2.0
"""How long the rest of a request is read and dropped after an early refusal, in seconds. Closing at once would reset
the connection, and the client might never read the reply (RFC 9112, section 9.6)."""

RETRY_AFTER: Final = ((b"retry-after", b"1"),)
"""Of a reply that says "busy", in seconds."""

_JSON: Final = JSON_TYPE.encode("ascii")
_RESUME: Final = RESUME_HEADER.lower().encode("ascii")
RECOGNIZED: Final = "wove-recognized"
"""Key of the ASGI scope: what the server wants called once the client has shown who it is."""

REPLY_SIGNATURE: Final = signing.REPLY_SIGNATURE.lower().encode("ascii")


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
        browser: Whether a web page sent it. Browsers say so with every POST (Fetch, section 3.1, "Origin").
        answered: Whether the reply has begun.
        sign: Returns the signature of a part of the reply, by its number; ``None`` where replies are not signed.
    """

    __slots__ = (
        "_accept",
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
        self._accept = b""
        self.browser = False

        for name, value in self.headers:
            if name == b"content-length":
                self.length = int(value) if value.isdigit() else None
            elif name == b"accept":
                self._accept = value
            elif name == b"origin" or name == b"sec-fetch-site":
                self.browser = True

        self.size = 0
        self.answered = False
        self.sign: Callable[[Request, Sequence[bytes], int], str | None] | None = None

    @property
    def streams(self) -> bool:
        """Whether the client takes this reply in lines."""
        kind = LINES_TYPE if self.sign is None else SIGNED_LINES_TYPE
        return kind.encode("ascii") in self._accept

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
                await run_in_thread(self.sign, self, chunks, 0)
                if is_big(size)
                else self.sign(self, chunks, 0)
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
        headers = [*headers, (_RESUME, b"1")]

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
    """The reply to a run, from its request to its end."""

    __slots__ = ("_buffer", "_request", "_sequence")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._buffer = EventBuffer()
        self._sequence = 0

    async def run(self, queue: RunQueue, frame: dict[str, Any], owner: str) -> None:
        """Have *frame* run, and answer.

        Raises:
            ClientGone: The client has gone.
        """
        buffer, request = self._buffer, self._request
        subscription = queue.enqueue(frame, buffer.add, peer=request.peer, owner=owner)
        watch: asyncio.Task[None] | None = None

        try:
            await buffer.wait_for_end(PATIENCE_SECONDS)
            if not buffer.over:
                # Only now: to watch the connection costs a task.
                watch = asyncio.get_running_loop().create_task(request.gone())
                watch.add_done_callback(self._left)
                if request.streams:
                    await self._stream()
                    return
                await buffer.wait_for_end()
            await self._answer()
        finally:
            queue.unsubscribe(subscription)
            if watch is not None:
                watch.cancel()

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            watch.exception()  # whatever it is: the client cannot be answered
            self._buffer.leave()

    async def _answer(self) -> None:
        events = self._buffer.take()
        # A client that takes lines is Wove's own, and content with an end that says where the run was.
        shown = condensed(events) if self._request.streams else events
        if is_big_reply(events):
            chunks = await run_in_thread(encode_events, shown)
        else:
            chunks = encode_events(shown)

        if says_busy(events[-1]):
            await self._request.reply(503, chunks, RETRY_AFTER)
        else:
            await self._request.reply(200, chunks)

    async def _stream(self) -> None:
        buffer = self._buffer
        buffer.streams = True
        kind = LINES_TYPE if self._request.sign is None else SIGNED_LINES_TYPE
        await self._request.begin(200, [(b"content-type", kind.encode("ascii"))])

        while True:
            events, over = buffer.take(), buffer.over
            if events:
                await self._send_lines(events, over)
            if over:
                return
            await buffer.wait_for_event()

    async def _send_lines(self, events: list[dict[str, Any]], last: bool) -> None:
        if is_big_reply(events):
            chunks = await run_in_thread(self._lines, events)
        else:
            chunks = [b"".join(self._lines(events))]
        for chunk in chunks[:-1]:
            await self._request.send(chunk)
        await self._request.send(chunks[-1], last=last)

    def _lines(self, events: Sequence[dict[str, Any]]) -> list[bytes]:
        chunks: list[bytes] = []

        for event in events:
            text = codec.encode(event)
            if self._request.sign is not None:
                text = add_signature(text, self._request.sign(self._request, text, self._sequence))
                self._sequence += 1
            chunks.extend(text)
            chunks.append(b"\n")

        return chunks
