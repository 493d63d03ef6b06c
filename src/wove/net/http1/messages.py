"""The common parts of requests and responses: fields, chunks, and lines that come in pieces."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeAlias

__all__ = [
    "BARE",
    "CONTROL",
    "MAX_FIELDS",
    "MAX_HEAD_BYTES",
    "TOKEN",
    "Message",
    "Parser",
    "ProtocolError",
    "RequestHead",
    "TooLargeError",
    "quoted",
]

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 100

MAX_LINE_BYTES: Final = 1024
"""The line of a chunk: its size and its extensions, which RFC 9112 (7.1.1) tells recipients to limit."""

MAX_EXTENSION_BYTES: Final = 1024 * 1024
"""All chunk extensions of one body. A signature on every 64 KiB of a gigabyte fits in."""

MAX_TRAILER_BYTES: Final = 16 * 1024

QUOTED_BYTES: Final = 200

KNOWN_FIELDS: Final = 128
KNOWN_BYTES: Final = 100
"""Maximum number of short field lines that are remembered: the messages of one peer differ in few of them."""

# RFC 9110, 5.6.2 (token) and 5.5 (what a field value is made of: no control characters but the tab).
TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 9112, 2.2: a bare CR is never an end of line, and taking a bare LF for one is left to the recipient.
BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")


class ProtocolError(Exception):
    """The input is not an HTTP/1.1 message, or not a whole one. The text goes into a sentence."""


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
            raise ValueError(
                f"{target!r} is not a request target: a path without spaces, all of it ASCII"
            )
        if not TOKEN.fullmatch(method.encode("latin-1")):
            raise ValueError(f"{method!r} is not a method")
        self._start = f"{method} {target} HTTP/1.1\r\n".encode("ascii") + _field_lines(fields)

    def encode(self, fields: Iterable[tuple[str, str]]) -> bytes:
        """The head with these *fields* as well, up to and including the empty line."""
        return b"%b%b\r\n" % (self._start, _field_lines(fields))


def _field_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    lines: list[bytes] = []
    for name, value in fields:
        raw_name, raw_value = name.encode("ascii"), value.encode("latin-1")
        if not TOKEN.fullmatch(raw_name) or CONTROL.search(raw_value):
            raise ValueError(f"a header {name!r} cannot be sent: {value!r:.80}")
        lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
    return b"".join(lines)


class Message:
    """The fields of a message, and what they say about its connection.

    Attributes:
        minor: 1 for HTTP/1.1.
        fields: Name in lower case and value, in their order.
    """

    __slots__ = ("fields", "minor")

    def __init__(self, minor: int, fields: list[tuple[str, str]]) -> None:
        self.minor = minor
        self.fields = fields

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
        """Whether the connection stays open after this message (RFC 9112, 9.3)."""
        values = self.all("connection")
        if not values:
            return self.minor >= 1
        options = {option.strip().lower() for value in values for option in value.split(",")}
        return "close" not in options and (self.minor >= 1 or "keep-alive" in options)


def _field(line: bytes) -> tuple[str, str]:
    """Name and value; the ValueError of what is not a field goes on after "a header field of ..."."""
    if line[:1] in (b" ", b"\t"):  # RFC 9112, 5.2
        raise ValueError("goes on in the next line (obs-fold)")
    name, colon, value = line.partition(b":")
    # RFC 9112, 5.1: no whitespace between name and colon.
    if not colon or not TOKEN.fullmatch(name) or CONTROL.search(value):
        raise ValueError("is malformed")
    return name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")


_known_field: Final = functools.lru_cache(KNOWN_FIELDS)(_field)

Step: TypeAlias = "Callable[[Any, bytes, int, list[bytes]], int]"
"""Of a parser: takes data from a position on, adds what belongs to the body to a list, gives the new position."""


class Parser:
    """Reads the body of a message, and whatever else comes in lines. How it begins is for a subclass to say.

    Attributes:
        complete: Whether the message is over.
        announced: The body's length, if the head told it.
        received: Bytes of body so far.
    """

    __slots__ = ("_extensions", "_left", "_pending", "_step", "announced", "complete", "received")

    NOUN: ClassVar[str] = "the message"
    """Its name in errors."""

    def __init__(self, first: Step) -> None:
        self.complete = False
        self.announced: int | None = None
        self.received = 0
        self._left = 0  # of the body, or of the chunk
        self._extensions = 0
        self._pending: bytearray | None = None  # a head or line whose end has not come yet
        self._step: Step = first

    # ------------------------------------------------------------------ what a subclass says

    def _named(self) -> str:
        """Return the message's name in errors once its head is known."""
        return self.NOUN

    def _quoted(self, data: bytes | bytearray) -> str:
        """*data*, which is at fault, as the end of an error."""
        return f": {quoted(data)}"

    def _check_size(self, size: int) -> None:
        """Refuse a body of at least *size* bytes, if that is too much."""

    def _give(self, piece: bytes, pieces: list[bytes]) -> None:
        self.received += len(piece)
        pieces.append(piece)

    # ------------------------------------------------------------------ head

    def _fields(self, lines: list[bytes]) -> list[tuple[str, str]]:
        if len(lines) > MAX_FIELDS:
            raise ProtocolError(
                f"{self.NOUN} has {len(lines)} header fields; {MAX_FIELDS} are the most"
            )
        return [self._field(line) for line in lines]

    def _field(self, line: bytes) -> tuple[str, str]:
        try:
            return _known_field(line) if len(line) <= KNOWN_BYTES else _field(line)
        except ValueError as error:
            raise ProtocolError(
                f"a header field of {self.NOUN} {error}{self._quoted(line)}"
            ) from None

    def _begin_counted(self, lengths: list[str]) -> None:
        """The body has as many bytes as ``Content-Length`` says, which came with these values."""
        if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0].encode("latin-1")):
            raise ProtocolError(
                f"{self._named()} has the Content-Length {', '.join(lengths)!r:.80}"
            )

        self.announced = self._left = int(lengths[0])
        self._step = Parser._counted
        self._check_size(self._left)
        self.complete = self._left == 0

    def _begin_chunked(self) -> None:
        self._step = Parser._chunk_line

    # ------------------------------------------------------------------ body

    def _counted(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position : position + self._left]
        self._left -= len(piece)
        if not self._left:
            self.complete = True
        self._give(piece, pieces)
        return position + len(piece)

    def _chunk_line(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        line, position = self._until(b"\r\n", data, position, MAX_LINE_BYTES, "the line of a chunk")
        if line is None:
            return position
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"a chunk of {self._named()} begins with {quoted(line)}")
        size, extensions = match.groups()
        self._extensions += len(extensions or b"")
        if self._extensions > MAX_EXTENSION_BYTES:
            raise ProtocolError(
                f"the chunk extensions of {self._named()} exceed {MAX_EXTENSION_BYTES} bytes"
            )

        self._left = int(size, 16)
        self._check_size(self.received + self._left)

        if self._left:
            self._step = Parser._chunk
        else:
            self._extensions = 0  # from here on, those of the trailer
            self._step = Parser._trailer

        return position

    def _chunk(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position : position + self._left]
        self._left -= len(piece)
        if not self._left:
            self._step = Parser._chunk_end
        self._give(piece, pieces)
        return position + len(piece)

    def _chunk_end(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        line, position = self._until(b"\r\n", data, position, 0, "what follows a chunk")
        if line is not None:
            self._step = Parser._chunk_line
        return position

    def _trailer(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Drop a trailer field: RFC 9110, 6.5.1 allows that, and Wove uses none."""
        line, position = self._until(
            b"\r\n", data, position, MAX_TRAILER_BYTES, f"the trailer of {self.NOUN}"
        )
        if line is None:
            return position
        if not line:
            self.complete = True
            return position

        self._field(line)
        self._extensions += len(line)
        if self._extensions > MAX_TRAILER_BYTES:
            raise ProtocolError(f"the trailer of {self._named()} exceeds {MAX_TRAILER_BYTES} bytes")
        return position

    # ------------------------------------------------------------------ lines

    def _until(
        self, end: bytes, data: bytes, position: int, most: int, label: str
    ) -> tuple[bytes | None, int]:
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
            raise ProtocolError(
                f"{label} has more than {most} bytes without an end{self._quoted(pending)}"
            )

        return None, position + len(pending) - known

    def _refuse_bare(self, known: int) -> None:
        """Refuse an end of line that is none in a head whose end has not come; *known* bytes of it were looked at.

        Told at once, not when no more comes: a head without CRs has no end.
        """
        so_far = self._pending or b""
        end = len(so_far) - so_far.endswith(b"\r")  # its LF may be the next that comes
        if BARE.search(so_far, max(0, known - 1), end):
            raise self._bare(so_far)

    def _bare(self, raw: bytes | bytearray) -> ProtocolError:
        return ProtocolError(
            f"the head of {self.NOUN} has an end of line that is not CR LF{self._quoted(raw)}"
        )
