"""One client of a WebSocket worker service: its commands in, its events out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from websockets.exceptions import ConnectionClosed

from wove.concurrency.thread_pool import run_in_thread
from wove.errors import EnvironmentExecutionError
from wove.protocol import codec, websocket as sockets
from wove.protocol.callables import CallableCache
from wove.protocol.completed_runs import bulk
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, TERMINAL, FrameError, condensed
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.pickling import Pickled
from wove.protocol.streams import add_signature
from wove.protocol.waiting import size_of_lines, without_lines
from wove.services.websocket_connection import LimitedConnection
from wove.services.wire import check_command, digest_of, is_big

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

    from wove.services.queue import RunQueue
    from wove.services.queued_runs import Subscription

__all__ = ["Peer", "Sign"]

logger = logging.getLogger("wove.service")

Sign: TypeAlias = Callable[[Sequence[bytes], int], str | None]
"""Makes the signature of a message, given its text and its number on the connection."""

OVERHEAD_BYTES: Final = 512
"""Number of bytes that a waiting event counts beside its pickle."""

# RFC 6455, section 7.4.1
INVALID: Final = 1007
FAILED: Final = 1011

REASON_BYTES: Final = 120
"""A close frame has room for 123 bytes of reason (RFC 6455, section 5.5)."""


class Peer:
    """A connected client. For one loop.

    Args:
        connection: Its connection, whose handshake has been verified.
        queue: Where its runs go.
        name: Its address, for the log.
        owner: Who it is, as `NetworkExecutorSecurity.principal` says.
        sign: Signs messages; ``None``: nothing is signed.
    """

    def __init__(
        self,
        connection: ServerConnection,
        queue: RunQueue,
        name: str,
        owner: str,
        sign: Sign | None,
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._owner = owner
        self._sign = sign
        self._sequence = 0
        self._name = name
        self._kept = CallableCache[tuple[Pickled, str]](size=sockets.KEPT_BYTES)
        self._subscriptions: dict[str, Subscription] = {}
        self._out: deque[tuple[dict[str, Any], int]] = deque()  # and what each counts
        self._held = 0
        self._most_held = queue.options.max_message_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._draining = self._over = False

    async def serve(self) -> None:
        """Until it has gone."""
        writer = asyncio.create_task(self._write())

        try:
            while not self._over:
                chunks = [chunk async for chunk in self._connection.recv_streaming(decode=False)]
                size = sum(map(len, chunks))
                if is_big(size):
                    frames = await run_in_thread(self._read, chunks)
                else:
                    frames = self._read(chunks)
                chunks.clear()
                if isinstance(self._connection, LimitedConnection):  # a mounted one may not be
                    self._connection.consumed(size)
                for frame in frames:
                    await self._take(frame)
        except ConnectionClosed as error:
            logger.debug("client %s has gone: %s", self._name, error)
        except Exception:
            logger.exception(
                "the connection of client %s is closed because of an error here", self._name
            )
            await self._connection.close(FAILED)
        finally:
            self._over = True
            subscriptions, self._subscriptions = self._subscriptions, {}
            for subscription in subscriptions.values():
                self._queue.unsubscribe(subscription)
            self._out.clear()
            writer.cancel()
            await asyncio.wait({writer})

    def drain(self) -> None:
        """Close the connection as soon as nothing of this client runs, and everything has been told."""
        self._draining = True
        self._wake()

    # ------------------------------------------------------------------ in

    def _read(self, chunks: list[bytes]) -> list[dict[str, Any] | FrameError]:
        """The commands of a message. Called for one message after the other, in a thread where it is large."""
        try:
            found = codec.decode(chunks)
        except FrameError as error:
            return [error]

        frames: list[dict[str, Any] | FrameError] = []

        for frame in found:
            try:
                frames.append(check_command(frame, callable_id=self._complete(frame)))
            except FrameError as error:
                frames.append(error)

        return frames

    def _complete(self, frame: dict[str, Any]) -> str | None:
        """Put in the callable that has come before; the id of the callable, where it has been worked out before."""
        name, pickled = frame.get("callable_id"), frame.get("callable_pickle")
        if not isinstance(name, str):
            return None
        if isinstance(pickled, Pickled):
            digest = digest_of(pickled)
            self._kept.put(name, (pickled, digest), pickled.size)
            return digest

        kept = self._kept.get(name)
        if kept is None:
            return None
        frame["callable_pickle"], digest = kept
        return digest

    async def _take(self, frame: dict[str, Any] | FrameError) -> None:
        if isinstance(frame, FrameError):
            await self._refuse(frame)
        elif frame["type"] == "cancel_task":
            self._queue.cancel(frame, owner=self._owner)
        elif self._over:
            return
        elif frame["run_id"] in self._subscriptions:
            logger.debug("run %s came twice; it runs once", frame["run_id"])
        else:
            subscription = self._queue.enqueue(
                frame, self._deliver, peer=self._name, owner=self._owner
            )
            if not subscription.over:
                self._subscriptions[subscription.run_id] = subscription

    async def _refuse(self, error: FrameError) -> None:
        logger.warning("a message of client %s was refused: %s", self._name, error)

        if error.run_id is None:  # the run that waits for the answer is not known
            self._over = True
            reason = str(error).encode("ascii", "replace")[:REASON_BYTES].decode()
            await self._connection.close(INVALID, reason)
            return

        refusal = EnvironmentExecutionError(
            f"the worker service could not read the command: {error}"
        )
        fields = from_exception(refusal, task="?", source="transport")
        self._deliver({"type": "task_error", "run_id": error.run_id, **fields, "python": PYTHON})

    # ------------------------------------------------------------------ out

    def _deliver(self, event: dict[str, Any]) -> None:
        if event["type"] in TERMINAL:
            self._subscriptions.pop(event["run_id"], None)
        if self._over:
            return
        if "lines" in event and self._held > self._most_held // 2:
            event = without_lines(event)
        size = bulk(event) + size_of_lines(event) + OVERHEAD_BYTES
        self._out.append((event, size))
        self._held += size

        if self._held > self._most_held and len(self._out) > 1:
            logger.warning(
                "client %s does not read: %d bytes wait for it, and its connection is closed",
                self._name,
                self._held,
            )
            self._over = True
            self._connection.transport.abort()  # a close frame would have to wait behind all that
            return

        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _write(self) -> None:
        try:
            while not self._over:
                if not self._out:
                    if self._draining and not self._subscriptions:
                        self._over = True
                        if self._connection.subprotocol == sockets.OURS:
                            number, self._sequence = self._sequence, self._sequence + 1
                            chunks = self._signed([sockets.GOODBYE], number)
                            await self._connection.send(b"".join(chunks), text=True)
                        await self._connection.close(
                            sockets.RESTARTING, "this worker service is about to stop"
                        )
                        return
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
                    continue
                for events, size in self._groups():
                    self._held -= size  # what is on its way is bounded by being one message
                    await self._send(events, size)
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception(
                "the connection of client %s is closed because of an error here", self._name
            )
            self._connection.transport.abort()

    def _groups(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Events that go out as one message, and what they count: many small ones, or one large one."""
        events: list[dict[str, Any]] = []
        size = 0

        while self._out:
            event, more = self._out.popleft()
            if events and size + more > INLINE_BYTES:
                yield events, size
                events, size = [], 0
            events.append(event)
            size += more

        if events:
            yield events, size

    async def _send(self, events: list[dict[str, Any]], size: int) -> None:
        number, self._sequence = self._sequence, self._sequence + 1
        if size > INLINE_BYTES:
            chunks = await run_in_thread(self._message, events, number)
            events.clear()
            await self._connection.send(iter(chunks), text=True)
        else:
            await self._connection.send(b"".join(self._message(events, number)), text=True)

    def _shortened(self, events: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return condensed(events) if self._connection.subprotocol == sockets.OURS else events

    def _message(self, events: Sequence[dict[str, Any]], number: int) -> list[bytes]:
        if len(events) == 1:
            chunks = codec.encode(events[0])
        else:
            chunks = [
                b"["
                + b",".join([b"".join(codec.encode(event)) for event in self._shortened(events)])
                + b"]"
            ]

        return self._signed(chunks, number)

    def _signed(self, chunks: list[bytes], number: int) -> list[bytes]:
        return chunks if self._sign is None else add_signature(chunks, self._sign(chunks, number))
