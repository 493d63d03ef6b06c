"""HTTP/1.1 without input or output: bytes in, bytes and facts out.

Strict on purpose. What is not plainly a message is an error that says what came, because a lenient reader and
a lenient proxy that differ in what they let pass are how one message is taken for two (RFC 9112, section 11).

`messages` is what both directions share; `responses` is what a client reads, `requests` what a server reads.
"""

from __future__ import annotations

from wove.net.http1.messages import (
    MAX_HEAD_BYTES,
    ProtocolError,
    RequestHead,
    TooLargeError,
    quoted,
)
from wove.net.http1.requests import Request, RequestError, RequestParser
from wove.net.http1.responses import ERROR_TEXT_BYTES, MAX_INTERIM, Head, ResponseParser

__all__ = [
    "ERROR_TEXT_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_INTERIM",
    "Head",
    "ProtocolError",
    "Request",
    "RequestError",
    "RequestHead",
    "RequestParser",
    "ResponseParser",
    "TooLargeError",
    "quoted",
]
