"""Responses, as a client reads them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import ClassVar, Final

from wove.net.http1.messages import (
    BARE,
    CONTROL,
    MAX_HEAD_BYTES,
    Message,
    Parser,
    ProtocolError,
    TooLargeError,
    quoted,
)

__all__ = ["ERROR_TEXT_BYTES", "MAX_INTERIM", "Head", "ResponseParser"]

MAX_INTERIM: Final = 10_000
"""Interim (1xx) responses before the answer. ``102 Processing`` is used as a sign of life, once in some seconds."""

ERROR_TEXT_BYTES: Final = 64 * 1024
"""Of an answer that is an error anyway, no more than this much text is read."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: ([^\r\n]*))?")


class Head(Message):
    """Status line and fields of a response.

    Attributes:
        status: 100 to 599.
        reason: The words after it; may be empty.
    """

    __slots__ = ("reason", "status")

    def __init__(self, minor: int, status: int, reason: str, fields: list[tuple[str, str]]) -> None:
        super().__init__(minor, fields)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status} {self.reason}".rstrip()


def _guess(raw: bytes | bytearray) -> str:
    """Return a guess at what these bytes are, if not HTTP/1."""
    if raw[:2] in (b"\x15\x03", b"\x16\x03"):  # RFC 8446, 5.1: alert and handshake records
        return "it looks like TLS. Use https:// in the url"
    return f"it begins with {quoted(raw)}"


class ResponseParser(Parser):
    """Reads one response, fed in pieces of any size.

    Args:
        most_body: Maximum size of the body of a successful answer, in bytes. That of any other status is cut after
            `ERROR_TEXT_BYTES` instead: what it says is an error message.
        streams: Whether the body of an answer with this head is a stream, which may be of any length.

    Attributes:
        head: Once it is there; interim (1xx) responses are skipped.
        cut: The body was cut.
        excess: Something came after the end. Whose answer is that? The connection is good for nothing more.

    Example:
        >>> parser = ResponseParser(1000)
        >>> parser.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
        [b'{}']
        >>> parser.complete, parser.reusable
        (True, True)
    """

    __slots__ = ("_interim", "_most", "_streams", "cut", "excess", "head")

    NOUN: ClassVar[str] = "its answer"

    def __init__(self, most_body: int, streams: Callable[[Head], bool] | None = None) -> None:
        super().__init__(ResponseParser._head)
        self.head: Head | None = None
        self.cut = self.excess = False
        self._most = most_body
        self._streams = streams
        self._interim = 0

    @property
    def begun(self) -> bool:
        """Whether a byte of the head that comes next, or of the response, is there."""
        return self.head is not None or bool(self._pending)

    @property
    def pending(self) -> bytes:
        """The start of a head that is not whole yet, for a message."""
        return bytes(self._pending or b"")

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the connection."""
        if self.head is None or not self.complete or self.cut or self.excess:
            return False
        return self._step is not ResponseParser._until_close and self.head.persistent

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data*; give the parts of the body in it.

        Raises:
            ProtocolError: This is not a response. The parser must not be fed again.
        """
        pieces: list[bytes] = []
        position, size = 0, len(data)
        while position < size:
            if self.complete:
                self.excess = True
                break
            position = self._step(self, data, position, pieces)

        if len(pieces) > 1:  # many small chunks: one piece is kinder to who collects them
            pieces = [b"".join(pieces)]
        return pieces

    def close(self) -> None:
        """The connection was closed in good order.

        Raises:
            ProtocolError: In the middle of the response.
        """
        if self.complete:
            return
        if self._step is ResponseParser._until_close:
            self.complete = True
            return

        raise ProtocolError(self.progress())

    def progress(self) -> str:
        """How far the response got, for a message."""
        if self.head is None:
            return (
                f"in the head of its answer: {quoted(self._pending)}"
                if self._pending
                else "without an answer"
            )

        of = f" of {self.announced}" if self.announced is not None else ""
        return f"after {self.received}{of} bytes of the body of its answer {self.head}"

    def _named(self) -> str:
        return f"its answer {self.head}"

    # ------------------------------------------------------------------ head

    def _head(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        known = len(self._pending or b"")
        raw, position = self._until(
            b"\r\n\r\n", data, position, MAX_HEAD_BYTES, "the head of its answer"
        )
        if raw is None:
            so_far = self._pending or b""
            if not so_far.startswith(b"HTTP/1."[: len(so_far)]):
                raise ProtocolError(f"what came is not an HTTP/1.1 answer: {_guess(so_far)}")
            self._refuse_bare(known)
            return position

        head = self._parsed(raw)
        if head.status == 101:  # RFC 9110, 15.2.2: only for those who asked
            raise ProtocolError(f"it switches to another protocol, unasked: {head}")
        if head.status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ProtocolError(
                    f"more than {MAX_INTERIM} interim answers came, the last one {head}"
                )
            return position

        self.head = head
        if self._streams is not None and self._streams(head):
            self._most = sys.maxsize
        self._begin_body(head)
        return position

    def _parsed(self, raw: bytes) -> Head:
        """The head from its bytes, without the empty line."""
        if BARE.search(raw):
            raise self._bare(raw)
        first, *lines = raw.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None or CONTROL.search(first):
            raise ProtocolError(f"what came is not an HTTP/1.1 answer: {_guess(raw)}")
        minor, status, reason = match.groups()
        return Head(
            int(minor), int(status), (reason or b"").decode("latin-1").strip(), self._fields(lines)
        )

    def _begin_body(self, head: Head) -> None:
        """How the end of the body is found: RFC 9112, 6.3."""
        codings = head.all("transfer-encoding")
        lengths = head.all("content-length")

        if head.status in (204, 304):
            self.complete = True
        elif codings:
            if lengths:
                raise ProtocolError(
                    f"its answer {head} has both Transfer-Encoding and Content-Length"
                )
            if head.minor < 1 or [coding.lower() for coding in codings] != ["chunked"]:
                raise ProtocolError(
                    f"its answer {head} is transfer-encoded as {', '.join(codings)!r:.80}, not chunked"
                )
            self._begin_chunked()
        elif lengths:
            self._begin_counted(lengths)
        else:
            self._step = ResponseParser._until_close

    def _check_size(self, size: int) -> None:
        """Refuse a body of *size* bytes, if it is the answer that was asked for."""
        if size > self._most and self.head is not None and self.head.status < 300:
            raise TooLargeError(
                f"its answer {self.head} has a body of at least {size} bytes, more than {self._most} "
                f"(executor_config 'max_message_bytes')"
            )

    # ------------------------------------------------------------------ body

    def _give(self, piece: bytes, pieces: list[bytes]) -> None:
        super()._give(piece, pieces)
        if self.head is not None and self.head.status >= 300 and self.received > ERROR_TEXT_BYTES:
            pieces[-1] = piece[: len(piece) - (self.received - ERROR_TEXT_BYTES)]
            self.received = ERROR_TEXT_BYTES
            self.complete = self.cut = True

    def _until_close(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position:]
        self._check_size(self.received + len(piece))
        self._give(piece, pieces)
        return len(data)
