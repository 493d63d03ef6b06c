"""Requests, as a server reads them.

Errors quote nothing of what came: there are tokens in targets and in fields, and errors go into answers and logs.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from wove.net.http1.messages import (
    BARE,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    Message,
    Parser,
    ProtocolError,
    TooLargeError,
)

__all__ = ["Request", "RequestError", "RequestParser"]

MAX_METHOD_BYTES: Final = 64

_REQUEST_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])"
)
_BEGINNING: Final = re.compile(rb"(?:\r\n)?(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: .*)?)?|\r", re.DOTALL)
"""The beginning of a request line: a method, a space, and so on. One empty line before it is skipped."""

# RFC 9112, 3.2.2: a server takes the absolute form, too, which clients use that think of us as of a proxy.
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]+", re.IGNORECASE)


class RequestError(ProtocolError):
    """The input is not a request, and *status* is the answer to that.

    Attributes:
        status: 400, or what says more.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Request(Message):
    """Request line and fields.

    Attributes:
        method: As it came; methods are case-sensitive.
        target: Path with query, not decoded; begins with a slash, or is ``*``.
    """

    __slots__ = ("method", "target")

    def __init__(self, method: str, target: str, minor: int, fields: list[tuple[str, str]]) -> None:
        super().__init__(minor, fields)
        self.method = method
        self.target = target

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class RequestParser(Parser):
    """Reads one request, fed in pieces of any size.

    It stops twice: after the head, so that whether there is to be a body can be decided first (see `admit`), and
    after the body, where the next request begins. What it did not take is in `rest` then, to be fed again.

    Attributes:
        head: Once it is there.
        rest: What the last `feed` left over.

    Example:
        >>> parser = RequestParser()
        >>> parser.feed(b"POST / HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}GET")
        []
        >>> parser.admit(1000)
        >>> parser.feed(parser.rest), parser.complete, parser.rest
        ([b'{}'], True, b'GET')
    """

    __slots__ = ("_most", "head", "rest")

    NOUN: ClassVar[str] = "the request"

    def __init__(self) -> None:
        super().__init__(RequestParser._head)
        self.head: Request | None = None
        self.rest = b""
        self._most = 0

    @property
    def begun(self) -> bool:
        """Whether a byte of it is there."""
        return self.head is not None or bool(self._pending)

    @property
    def chunked(self) -> bool:
        """Whether the length of the body is unknown."""
        return self.head is not None and self.announced is None

    def admit(self, most_body: int) -> None:
        """Set the maximum size of the body. Before this, it is 0.

        Raises:
            TooLargeError: It is known to have more.
        """
        self._most = most_body
        self._check_size(self.announced or 0)

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data* up to the next stop; give the parts of the body in it.

        Raises:
            RequestError: This is not a request. The parser must not be fed again.
            TooLargeError: The body is larger than was admitted.
        """
        pieces: list[bytes] = []
        position, size = 0, len(data)
        head = self.head

        try:
            while position < size and not self.complete and self.head is head:
                position = self._step(self, data, position, pieces)
        except (RequestError, TooLargeError):
            raise
        except ProtocolError as error:
            raise RequestError(str(error)) from None

        self.rest = data[position:] if position < size else b""
        if len(pieces) > 1:
            pieces = [b"".join(pieces)]
        return pieces

    def _quoted(self, data: bytes | bytearray) -> str:
        return ""

    def _check_size(self, size: int) -> None:
        if self.head is not None and size > self._most:
            raise TooLargeError(
                f"the body has at least {size} bytes, and {self._most} are the most"
            )

    # ------------------------------------------------------------------ head

    def _head(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        known = len(self._pending or b"")

        try:
            raw, position = self._until(
                b"\r\n\r\n", data, position, MAX_HEAD_BYTES, "the head of the request"
            )
        except ProtocolError as error:
            raise RequestError(str(error), 431) from None

        if raw is None:
            so_far = self._pending or b""
            if not _BEGINNING.fullmatch(so_far, 0, MAX_METHOD_BYTES):
                raise _no_request(so_far)
            self._refuse_bare(known)
            return position

        head = self._parsed(
            raw.removeprefix(b"\r\n")
        )  # RFC 9112, 2.2: an empty line before it is no matter
        self._begin_body(head)
        self.head = head
        return position

    def _parsed(self, raw: bytes) -> Request:
        if BARE.search(raw):
            raise self._bare(raw)
        first, *lines = raw.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise _no_request(raw)
        method, target, major, minor = match.groups()
        if major != b"1":
            raise RequestError("this is HTTP/1.1 only, and the request is of another version", 505)
        if len(lines) > MAX_FIELDS:
            raise RequestError(
                f"the request has {len(lines)} header fields; {MAX_FIELDS} are the most", 431
            )

        fields = self._fields(lines)
        request = Request(
            method.decode("ascii"), _origin_form(target.decode("ascii")), int(minor), fields
        )
        hosts = len(request.all("host"))
        if hosts > 1 or (not hosts and request.minor >= 1):  # RFC 9112, 3.2
            raise RequestError(f"a request has one Host field, and this one has {hosts}")
        return request

    def _begin_body(self, head: Request) -> None:
        """How the end of the body is found: RFC 9112, 6.3."""
        codings = head.all("transfer-encoding")
        lengths = head.all("content-length")

        if codings:
            if lengths:
                raise RequestError("the request has both Transfer-Encoding and Content-Length")
            if head.minor < 1:
                raise RequestError(
                    "the request is HTTP/1.0 and transfer-encoded, which is not possible"
                )
            if [coding.lower() for coding in codings] != ["chunked"]:
                raise RequestError(
                    "the request is transfer-encoded, and not just chunked: send it as it is", 501
                )
            self._begin_chunked()
        elif lengths:
            self._begin_counted(lengths)
        else:
            self.announced = 0
            self.complete = True


def _origin_form(target: str) -> str:
    if target == "*":
        return target
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        target = target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"

    if not target.startswith("/"):
        raise RequestError("the target of the request is not a path")
    return target


def _no_request(raw: bytes | bytearray) -> RequestError:
    if raw[:2] == b"\x16\x03":  # RFC 8446, 5.1: a handshake record
        return RequestError(
            "this is HTTP without TLS, and what came looks like TLS: use http:// in the callback_url"
        )
    return RequestError("what came is not an HTTP/1.1 request")
