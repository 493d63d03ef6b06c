"""A worker service as an ASGI application: for ``wove worker http``, and to mount in an application of your own.

Frames come in POST requests, on any path. ``GET .../healthz`` and ``.../readyz`` are for monitoring.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from email.utils import formatdate
from typing import Any, Final, TypeAlias, Unpack

from wove.concurrency.thread_pool import run_in_thread
from wove.protocol.frames import FrameError
from wove.protocol.signing import Digest
from wove.services.asgi import RETRY_AFTER, Refusal, Request, ResponseStream
from wove.services.event_buffer import ClientGone
from wove.services.options import ServiceKeywords, ServiceOptions, service_options
from wove.services.queue import RunQueue
from wove.services.wire import decode_command, is_big, no_room

__all__ = ["WorkerApp", "worker_app"]

logger = logging.getLogger("wove.service")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 30.0
"""How long a body, and each part of it, may take to come. The whole gets more time, the more has come."""

BODY_BYTES_PER_SECOND: Final = 1024
"""How fast the rest must come."""


def worker_app(
    options: ServiceOptions | None = None, /, **keywords: Unpack[ServiceKeywords]
) -> WorkerApp:
    """An ASGI application that runs the tasks it is sent.

    Args:
        options: Checked options; or give them as keywords.
        keywords: See `ServiceOptions`. ``security`` is required.

    Raises:
        TypeError: An option is unknown, missing or of the wrong type.
        ValueError: An option is out of range.

    Example::

        from fastapi import FastAPI
        from wove.services.http import worker_app

        worker = worker_app(security="env:WOVE_WORKER_SECRET")
        app = FastAPI(lifespan=worker.lifespan)
        app.mount("/wove", worker)
    """
    return WorkerApp(service_options(**keywords) if options is None else options)


class WorkerApp:
    """The ASGI application that `worker_app` makes.

    Attributes:
        queue: Where the runs go.
        keep_alive: Seconds that the server keeps an idle connection, to tell clients; ``None``: not known.
    """

    def __init__(self, options: ServiceOptions) -> None:
        self.queue = RunQueue(options)
        self.keep_alive: int | None = None
        self._security = options.security
        self._max_bytes = options.max_message_bytes

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Start and end with an application: its ``lifespan``, or an ``async with`` in it.

        A mounted application is told of neither, and does without: it starts with the first run. But then
        nothing lets its runs end when the application stops.
        """
        del app
        await self.queue.start()

        try:
            yield
        finally:
            await self.queue.drain()
            await self.queue.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await self._serve(Request(scope, receive, send, keep_alive=self.keep_alive))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before accept: it becomes a 403

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.queue.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.queue.drain()
                await self.queue.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, request: Request) -> None:
        try:
            if request.method == "POST":
                await self._post(request)
            elif not await self._health(request):
                raise Refusal(
                    405, "commands come as POST", headers=((b"allow", b"POST"),), text=True
                )
        except ClientGone:
            pass
        except Refusal as refusal:
            await request.refuse(refusal)
        except Exception:
            logger.exception("a request of %s failed", request.peer)
            if not request.answered:
                await request.refuse(Refusal(500, "the worker service failed; its log says why"))

    async def _health(self, request: Request) -> bool:
        if request.method not in ("GET", "HEAD"):
            return False
        name = request.path.rpartition("/")[2]
        if name == "healthz":
            await request.reply(200, [b'{"status":"ok"}'])
        elif name == "readyz":
            status = self.queue.status()
            await request.reply(200 if self.queue.ready else 503, [json.dumps(status).encode()])
        else:
            return False

        return True

    async def _post(self, request: Request) -> None:
        if request.length is not None and request.length > self._max_bytes:
            raise self._too_large()
        if request.browser and not self._security.authenticates:
            # Any web page can make the browser of someone on this machine post here.
            logger.warning("a request of a web page was refused, from %s", request.peer)
            raise Refusal(
                403, "requests of web pages are refused where there is no security", early=True
            )

        try:
            digest = self._security.verify_head(
                transport="http", target=request.target, headers=request.headers
            )
        except PermissionError as error:
            raise self._not_allowed(request, error, early=True) from None

        request.recognized()
        request.sign = self._sign if self._security.signs_replies else None
        frame = await self._command(request, digest)
        if isinstance(frame, FrameError):
            logger.warning("a request of %s was refused: %s", request.peer, frame)
            raise Refusal(400, str(frame))

        owner = self._security.principal(headers=request.headers)

        if frame["type"] == "cancel_task":
            self.queue.cancel(frame, owner=owner)
            await request.reply(200, [b'{"events":[]}'])
        else:
            await ResponseStream(request).run(self.queue, frame, owner)

    async def _command(
        self, request: Request, digest: Digest | None
    ) -> dict[str, Any] | FrameError:
        """The command in the body. Nobody looks into it before it is known to be the one that was signed."""
        share = self.queue.arriving.open()
        chunks: list[bytes] = []

        async def accept(chunk: bytes) -> None:
            if request.size > self._max_bytes:
                raise self._too_large()
            if not await share.acquire(len(chunk)):
                raise Refusal(503, "no room", headers=RETRY_AFTER, reply=no_room(), early=True)
            chunks.append(chunk)

        try:
            await request.read(accept, BODY_SECONDS, BODY_BYTES_PER_SECOND)
            if not is_big(request.size):
                self._security.verify_body(digest, chunks)
                return _decode(chunks)
            await run_in_thread(self._security.verify_body, digest, chunks)
            return await run_in_thread(_decode, chunks)
        except PermissionError as error:
            raise self._not_allowed(request, error, early=False) from None
        finally:
            share.close()

    def _sign(self, request: Request, chunks: Sequence[bytes], sequence: int) -> str | None:
        return self._security.reply_signature(
            transport="http",
            target=request.target,
            headers=request.headers,
            body=chunks,
            sequence=sequence,
        )

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the body has more than {self._max_bytes} bytes, the limit of this worker service",
            early=True,
        )

    def _not_allowed(self, request: Request, error: PermissionError, *, early: bool) -> Refusal:
        logger.warning("a request of %s was refused: %s", request.peer, error)
        scheme = b"Bearer" if self._security.kind == "bearer" else b"Wove"
        # The reason is for the log alone: it would tell an attacker how far the request got. The date shows a client
        # whose clock is wrong.
        date = formatdate(usegmt=True).encode("ascii")
        headers = ((b"www-authenticate", scheme), (b"date", date))
        return Refusal(401, "not authorized", headers=headers, early=early)


def _decode(chunks: Sequence[bytes]) -> dict[str, Any] | FrameError:
    try:
        return decode_command(chunks)
    except FrameError as error:
        return error
