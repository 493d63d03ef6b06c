"""Encode commands and decode replies: on the loop where they are small, in a thread where that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from wove.concurrency import thread_pool
from wove.concurrency.mailbox import post_to
from wove.executors.base import Frame
from wove.executors.network.pending import PendingRequest, Verify
from wove.protocol import codec, signing
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.pickling import Pickled

__all__ = ["Decoded", "Encoded", "ReplyBatch", "RequestCodec"]

Encoded: TypeAlias = tuple[list[bytes] | BaseException, signing.Digest | None]
"""A command as one JSON text in chunks, or why it cannot be encoded; and its digest, if requests are signed."""

Decoded: TypeAlias = list[dict[str, Any]] | BaseException
"""The frames of a reply, or why they cannot be read."""

_MAX_INLINE_REPLY: Final = 2 * INLINE_BYTES
"""Maximum size of a reply that is decoded on the loop, in bytes."""


class ReplyBatch:
    """The messages of one connection that are being decoded in threads.

    Attributes:
        count: Number of messages.
        on_decoded: Called when none of them is left.
    """

    __slots__ = ("count", "on_decoded")

    def __init__(self) -> None:
        self.count = 0
        self.on_decoded: Callable[[], None] | None = None


class RequestCodec:
    """Encodes and decodes for one executor. All methods and callbacks are called on *loop*.

    Args:
        loop: The executor's loop.
        signs: Whether requests are signed, so that their digest is needed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, signs: bool) -> None:
        self._loop = loop
        self._signs = signs
        self._batch = ReplyBatch()

    def encode(
        self,
        request: PendingRequest,
        frame: Frame,
        on_encoded: Callable[[PendingRequest, Encoded], None],
    ) -> None:
        """Encode *frame*, the command of *request*, and pass the result to *on_encoded*."""
        if _pickled_bytes(frame) <= INLINE_BYTES:
            on_encoded(request, self._encoded(frame))
            return

        thread_pool.submit(lambda: post_to(self._loop, on_encoded, request, self._encoded(frame)))

    def decode(
        self, chunks: list[bytes], verify: Verify | None, on_decoded: Callable[[Decoded], None]
    ) -> None:
        """Decode *chunks*, one JSON text, and pass its frames to *on_decoded*."""
        if is_small(chunks):
            on_decoded(decode(chunks, verify))
            return

        batch = self._batch
        batch.count += 1
        thread_pool.submit(
            lambda: post_to(self._loop, self._decoded, batch, on_decoded, decode(chunks, verify))
        )

    def after_decoding(self, callback: Callable[[], None]) -> None:
        """Call *callback* when everything that is being decoded has been passed on; at once if nothing is."""
        # Later replies belong to the next batch: under load, there may never be a moment without decoding.
        batch, self._batch = self._batch, ReplyBatch()
        if batch.count:
            batch.on_decoded = callback
        else:
            callback()

    def decode_in_thread(
        self, chunks: list[bytes], verify: Verify | None, on_decoded: Callable[[Decoded], None]
    ) -> None:
        """Decode *chunks* in a thread, outside of the batches that `after_decoding` waits for."""
        thread_pool.submit(lambda: post_to(self._loop, on_decoded, decode(chunks, verify)))

    def _encoded(self, frame: Frame) -> Encoded:
        try:
            chunks = codec.encode(frame)
            return chunks, signing.digest(chunks) if self._signs else None
        except BaseException as error:  # MemoryError above all: it ends this run only
            return error, None

    def _decoded(
        self, batch: ReplyBatch, on_decoded: Callable[[Decoded], None], frames: Decoded
    ) -> None:
        batch.count -= 1
        try:
            on_decoded(frames)
        finally:
            if not batch.count and batch.on_decoded is not None:
                batch.on_decoded()


def is_small(chunks: list[bytes]) -> bool:
    """Return whether a reply is decoded on the loop."""
    return sum(map(len, chunks)) <= _MAX_INLINE_REPLY


def decode(chunks: list[bytes], verify: Verify | None) -> Decoded:
    """Return the frames in *chunks* after *verify* has accepted them, or the exception that says why not."""
    try:
        if verify is not None:
            verify(chunks)
        return codec.decode(chunks) if chunks else []
    except BaseException as error:  # it ends the runs that it concerns, never the reader
        return error


def _pickled_bytes(frame: Frame) -> int:
    """Return the size of the pickles in a command, in bytes."""
    arguments: Pickled | None = frame.get("args_pickle")
    function: Pickled | None = frame.get("callable_pickle")
    return (0 if arguments is None else arguments.size) + (0 if function is None else function.size)
