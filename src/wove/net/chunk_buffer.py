"""Texts that come in pieces."""

from __future__ import annotations

from typing import Final

__all__ = ["ChunkBuffer"]

SMALL_BYTES: Final = 4096
JOINED_BYTES: Final = 64 * 1024


class ChunkBuffer:
    """Pieces of a text, in chunks that are worth their overhead, however small the pieces are.

    Attributes:
        size: Bytes of all of it.
    """

    __slots__ = ("_chunks", "_small", "size")

    def __init__(self) -> None:
        self.size = 0
        self._chunks: list[bytes] = []
        self._small = bytearray()

    def add(self, piece: bytes) -> None:
        """Append *piece*."""
        self.size += len(piece)

        if len(piece) < SMALL_BYTES:
            self._small += piece
            if len(self._small) < JOINED_BYTES:
                return
            piece = b""

        if self._small:
            self._chunks.append(bytes(self._small))
            self._small.clear()

        if piece:
            self._chunks.append(piece)

    def take(self) -> list[bytes]:
        """All of it; what follows is a new text."""
        self.size = 0
        chunks, self._chunks = self._chunks, []
        if self._small:
            chunks.append(bytes(self._small))
            self._small = bytearray()
        return chunks
