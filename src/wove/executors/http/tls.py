"""TLS of one connection, without input or output.

asyncio's own closes the connection before the data that arrived last can be read: a refusal (413) of a request that
is still being written would be lost. And it does not tell a connection that was closed in good
order from one that was cut off.
"""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["TLS"]

READ_BYTES: Final = 256 * 1024
WRITE_BYTES: Final = 256 * 1024
"""Encrypted in one go: a fraction of a millisecond."""


class TLS:
    """The client's end.

    Args:
        context: What is trusted, and who one is.
        host: Whom the certificate must name.

    Attributes:
        secured: The handshake is over.
        ended: The other side has said that no more comes (``close_notify``).
        failure: What is wrong with what came after something good.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "failure", "secured")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.secured = self.ended = False
        self.failure: ssl.SSLError | None = None

    def hello(self) -> bytes:
        """Return the bytes to send first."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.pending()

    def decrypt(self, data: bytes) -> bytes:
        """Decrypt *data*. Afterwards, `pending` may have something to send.

        Raises:
            ssl.SSLError: The handshake failed, or what came is not authentic.
        """
        self._incoming.write(data)

        if not self.secured:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                return b""
            self.secured = True

        pieces: list[bytes] = []

        try:
            while piece := self._object.read(READ_BYTES):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            if not pieces:
                raise
            self.failure = error  # but what came before it is good

        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def encrypt(self, data: bytes) -> bytes:
        """Return the bytes to send for *data*."""
        for start in range(0, len(data), WRITE_BYTES):
            self._object.write(memoryview(data)[start : start + WRITE_BYTES])
        return self.pending()

    def pending(self) -> bytes:
        """Return the bytes that are still to be sent."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """``close_notify`` (RFC 8446, 6.1); its answer is not waited for."""
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):  # it waits for the answer, or the other side was faster
            pass
        return self.pending()
