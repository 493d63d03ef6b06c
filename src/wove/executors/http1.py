"""HTTP/1.1 as a client speaks it, without input or output: bytes in, bytes and facts out.

Strict on purpose. What is not plainly an answer is an error that says what came, because a lenient reader and
a lenient proxy that differ in what they let pass are how one answer is taken for two (RFC 9112, section 11).
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

__all__ = [
    "ERROR_TEXT_BYTES",
    "Head",
    "ProtocolError",
    "RequestHead",
    "ResponseParser",
    "TooLargeError",
    "quoted",
]

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_FIELDS: Final = 100
MOST_INTERIM: Final = 10_000
"""Interim (1xx) responses before the answer. ``102 Processing`` is used as a sign of life, once in some seconds."""

MOST_LINE_BYTES: Final = 1024
"""The line of a chunk: its size and its extensions, which RFC 9112 (7.1.1) tells recipients to limit."""

MOST_EXTENSION_BYTES: Final = 1024 * 1024
"""All chunk extensions of one body. A signature on every 64 KiB of a gigabyte fits in."""

MOST_TRAILER_BYTES: Final = 16 * 1024
ERROR_TEXT_BYTES: Final = 64 * 1024
"""Of an answer that is an error anyway, no more than this much text is read."""

QUOTED_BYTES: Final = 200

KNOWN_FIELDS: Final = 64
KNOWN_BYTES: Final = 100
"""So many short field lines are remembered: the answers of one service differ in few of them."""

# RFC 9110, 5.6.2 (token) and 5.5 (what a field value is made of: no control characters but the tab).
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 9112, 2.2: a bare CR is never an end of line, and taking a bare LF for one is left to the recipient.
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: ([^\r\n]*))?")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")


class ProtocolError(Exception):
    """What came is not an HTTP/1.1 response, or not a whole one. The message goes into a sentence."""


class TooLargeError(ProtocolError):
    """The body is larger than it may be. Raised before it is read, if its length was announced."""


def quoted(data: bytes | bytearray | memoryview) -> str:
    """The start of *data* for a message: ``'Not Found'``, at most 200 bytes, ``...`` where something is missing."""
    text = bytes(data[:QUOTED_BYTES]).decode("utf-8", "replace").strip()
    return repr(text) + ("..." if len(data) > QUOTED_BYTES else "")


class RequestHead:
    """The heads of requests that differ in a few fields only.

    Args:
        method: ``"POST"``.
        target: Path with query; begins with a slash.
        fields: Those of every request, ``Host`` among them.

    Raises:
        ValueError: The target or a field has a character that HTTP does not allow there.

    Example:
        >>> head = RequestHead("POST", "/tasks", [("Host", "workers.internal")])
        >>> head.encode([("Content-Length", "2")])
        b'POST /tasks HTTP/1.1\\r\\nHost: workers.internal\\r\\nContent-Length: 2\\r\\n\\r\\n'
    """

    __slots__ = ("_start",)

    def __init__(self, method: str, target: str, fields: Iterable[tuple[str, str]]) -> None:
        if not _TARGET.fullmatch(target):
            raise ValueError(f"{target!r} is no request target: a path without spaces, all of it ASCII")
        if not _TOKEN.fullmatch(method.encode("latin-1")):
            raise ValueError(f"{method!r} is no method")
        self._start = f"{method} {target} HTTP/1.1\r\n".encode("ascii") + _field_lines(fields)

    def encode(self, fields: Iterable[tuple[str, str]]) -> bytes:
        """The head with these *fields* as well, up to and including the empty line."""
        return b"%b%b\r\n" % (self._start, _field_lines(fields))


def _field_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    lines: list[bytes] = []
    for name, value in fields:
        raw_name, raw_value = name.encode("ascii"), value.encode("latin-1")
        if not _TOKEN.fullmatch(raw_name) or _CONTROL.search(raw_value):
            raise ValueError(f"a header {name!r} cannot be sent: {value!r:.80}")
        lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
    return b"".join(lines)


class Head:
    """Status line and fields of a response.

    Attributes:
        minor: 1 for HTTP/1.1.
        status: 100 to 599.
        reason: The words after it; may be empty.
        fields: Name in lower case and value, in their order.
    """

    __slots__ = ("fields", "minor", "reason", "status")

    def __init__(self, minor: int, status: int, reason: str, fields: list[tuple[str, str]]) -> None:
        self.minor = minor
        self.status = status
        self.reason = reason
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.status} {self.reason}".rstrip()

    def get(self, name: str) -> str | None:
        """The value of the first field *name* (lower case)."""
        for known, value in self.fields:
            if known == name:
                return value
        return None

    def all(self, name: str) -> list[str]:
        """The values of all fields *name* (lower case)."""
        return [value for known, value in self.fields if known == name]

    @property
    def persistent(self) -> bool:
        """Whether the connection stays open after this response (RFC 9112, 9.3)."""
        options = {option.strip().lower() for value in self.all("connection") for option in value.split(",")}
        return "close" not in options and (self.minor >= 1 or "keep-alive" in options)

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """From its bytes, without the empty line.

        Raises:
            ProtocolError: It is none.
        """
        if _BARE.search(raw):
            raise ProtocolError(f"the head of its answer has an end of line that is not CR LF: {quoted(raw)}")
        lines = raw.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None or _CONTROL.search(lines[0]):
            raise ProtocolError(f"what came is no HTTP/1.1 answer: {_guess(raw)}")
        minor, status, reason = match.groups()
        if len(lines) - 1 > MOST_FIELDS:
            raise ProtocolError(f"its answer has {len(lines) - 1} header fields; {MOST_FIELDS} are the most")
        fields = [_known_field(line) if len(line) <= KNOWN_BYTES else _field(line) for line in lines[1:]]
        return cls(int(minor), int(status), (reason or b"").decode("latin-1").strip(), fields)


def _field(line: bytes) -> tuple[str, str]:
    if line[:1] in (b" ", b"\t"):  # RFC 9112, 5.2
        raise ProtocolError(f"a header field of its answer goes on in the next line (obs-fold): {quoted(line)}")
    name, colon, value = line.partition(b":")
    # RFC 9112, 5.1: no whitespace between name and colon.
    if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise ProtocolError(f"a header field of its answer is malformed: {quoted(line)}")
    return name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")


_known_field: Final = functools.lru_cache(KNOWN_FIELDS)(_field)


def _guess(raw: bytes | bytearray) -> str:
    """What these bytes may be, if not HTTP/1."""
    if raw[:2] in (b"\x15\x03", b"\x16\x03"):  # RFC 8446, 5.1: alert and handshake records
        return "it looks like TLS. Use https:// in the url"
    return f"it begins with {quoted(raw)}"


_Step: TypeAlias = "Callable[[ResponseParser, bytes, int, list[bytes]], int]"


class ResponseParser:
    """Reads one response, fed in pieces of any size.

    Args:
        most_body: A successful answer may have so many bytes of body. That of any other status is cut after
            `ERROR_TEXT_BYTES` instead: what it says is an error message.
        streams: Whether the body of an answer with this head is a stream, which may be of any length.

    Attributes:
        head: Once it is there; interim (1xx) responses are skipped.
        complete: Whether the response is over.
        announced: The body's length, if the head told it.
        received: Bytes of body so far.
        cut: The body was cut.
        excess: Something came after the end. Whose answer is that? The connection is good for nothing more.

    Example:
        >>> parser = ResponseParser(1000)
        >>> parser.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
        [b'{}']
        >>> parser.complete, parser.reusable
        (True, True)
    """

    __slots__ = (
        "_extensions",
        "_interim",
        "_left",
        "_most",
        "_pending",
        "_step",
        "_streams",
        "announced",
        "complete",
        "cut",
        "excess",
        "head",
        "received",
    )

    def __init__(self, most_body: int, streams: Callable[[Head], bool] | None = None) -> None:
        self.head: Head | None = None
        self.complete = self.cut = self.excess = False
        self.announced: int | None = None
        self.received = 0
        self._most = most_body
        self._streams = streams
        self._left = 0  # of the body, or of the chunk
        self._interim = self._extensions = 0
        self._pending: bytearray | None = None  # a head or line whose end has not come yet
        self._step: _Step = ResponseParser._head

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
            ProtocolError: This is no response. The parser must not be fed again.
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
            return f"in the head of its answer: {quoted(self._pending)}" if self._pending else "without an answer"
        of = f" of {self.announced}" if self.announced is not None else ""
        return f"after {self.received}{of} bytes of the body of its answer {self.head}"

    # ------------------------------------------------------------------ head

    def _head(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        known = len(self._pending or b"")
        raw, position = self._until(b"\r\n\r\n", data, position, MOST_HEAD_BYTES, "the head of its answer")
        if raw is None:
            # Told at once, not when no more comes: a head without CRs has no end.
            so_far = self._pending or b""
            if not so_far.startswith(b"HTTP/1."[: len(so_far)]):
                raise ProtocolError(f"what came is no HTTP/1.1 answer: {_guess(so_far)}")
            end = len(so_far) - so_far.endswith(b"\r")  # its LF may be the next that comes
            if _BARE.search(so_far, max(0, known - 1), end):
                raise ProtocolError(f"the head of its answer has an end of line that is not CR LF: {quoted(so_far)}")
            return position
        head = Head.parse(raw)
        if head.status == 101:  # RFC 9110, 15.2.2: only for those who asked
            raise ProtocolError(f"it switches to another protocol, unasked: {head}")
        if head.status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise ProtocolError(f"more than {MOST_INTERIM} interim answers came, the last one {head}")
            return position
        self.head = head
        if self._streams is not None and self._streams(head):
            self._most = sys.maxsize
        self._begin_body(head)
        return position

    def _begin_body(self, head: Head) -> None:
        """How the end of the body is found: RFC 9112, 6.3."""
        codings = head.all("transfer-encoding")
        lengths = head.all("content-length")
        if head.status in (204, 304):
            self.complete = True
        elif codings:
            if lengths:
                raise ProtocolError(f"its answer {head} has both Transfer-Encoding and Content-Length")
            if head.minor < 1 or [coding.lower() for coding in codings] != ["chunked"]:
                raise ProtocolError(f"its answer {head} is transfer-encoded as {', '.join(codings)!r:.80}, not chunked")
            self._step = ResponseParser._chunk_line
        elif lengths:
            if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0].encode("latin-1")):
                raise ProtocolError(f"its answer {head} has the Content-Length {', '.join(lengths)!r:.80}")
            self.announced = self._left = int(lengths[0])
            self._step = ResponseParser._counted
            self._check_size(self._left)
            self.complete = self._left == 0
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
        self.received += len(piece)
        if self.head is not None and self.head.status >= 300 and self.received > ERROR_TEXT_BYTES:
            piece = piece[: len(piece) - (self.received - ERROR_TEXT_BYTES)]
            self.received = ERROR_TEXT_BYTES
            self.complete = self.cut = True
        pieces.append(piece)

    def _counted(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position : position + self._left]
        self._left -= len(piece)
        if not self._left:
            self.complete = True
        self._give(piece, pieces)
        return position + len(piece)

    def _until_close(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position:]
        self._check_size(self.received + len(piece))
        self._give(piece, pieces)
        return len(data)

    def _chunk_line(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        line, position = self._until(b"\r\n", data, position, MOST_LINE_BYTES, "the line of a chunk")
        if line is None:
            return position
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"a chunk of its answer {self.head} begins with {quoted(line)}")
        size, extensions = match.groups()
        self._extensions += len(extensions or b"")
        if self._extensions > MOST_EXTENSION_BYTES:
            raise ProtocolError(f"the chunk extensions of its answer {self.head} exceed {MOST_EXTENSION_BYTES} bytes")
        self._left = int(size, 16)
        self._check_size(self.received + self._left)
        if self._left:
            self._step = ResponseParser._chunk
        else:
            self._extensions = 0  # from here on, those of the trailer
            self._step = ResponseParser._trailer
        return position

    def _chunk(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position : position + self._left]
        self._left -= len(piece)
        if not self._left:
            self._step = ResponseParser._chunk_end
        self._give(piece, pieces)
        return position + len(piece)

    def _chunk_end(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        line, position = self._until(b"\r\n", data, position, 0, "what follows a chunk")
        if line is not None:
            self._step = ResponseParser._chunk_line
        return position

    def _trailer(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Read and forgotten: RFC 9110, 6.5.1 allows that, and nothing of ours is in a trailer."""
        line, position = self._until(b"\r\n", data, position, MOST_TRAILER_BYTES, "the trailer of its answer")
        if line is None:
            return position
        if not line:
            self.complete = True
            return position
        _field(line)
        self._extensions += len(line)
        if self._extensions > MOST_TRAILER_BYTES:
            raise ProtocolError(f"the trailer of its answer {self.head} exceeds {MOST_TRAILER_BYTES} bytes")
        return position

    # ------------------------------------------------------------------ lines

    def _until(self, end: bytes, data: bytes, position: int, most: int, what: str) -> tuple[bytes | None, int]:
        """The bytes before the next *end*, and the position after it; ``None`` while it has not come."""
        if not self._pending:
            found = data.find(end, position, position + most + len(end))
            if found >= 0:
                return data[position:found], found + len(end)
            self._pending = bytearray()
        pending = self._pending
        known = len(pending)
        pending += data[position : position + most + len(end) - known]
        found = pending.find(end, max(0, known - len(end) + 1))
        if found >= 0:
            self._pending = None
            return bytes(pending[:found]), position + found + len(end) - known
        # A part of the end may be there already, and be no part of the *most* bytes.
        if len(pending) >= most + len(end):
            raise ProtocolError(f"{what} has more than {most} bytes without an end: {quoted(pending)}")
        return None, position + len(pending) - known
