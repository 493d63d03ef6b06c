"""The texts that are signed, and their signatures. Clock, randomness and configuration are in `wove.security`.

A request is signed with HMAC-SHA256 (RFC 2104) over six lines joined by line feeds::

    wove-v1
    http | grpc | websocket
    /path?query
    <Unix seconds>
    <nonce>
    <SHA-256 of the body, in hex>

and a reply, where replies are signed, over another six, whose first line keeps one from passing for the other::

    wove-v1-reply
    http | grpc | websocket
    /path?query
    <nonce of the request>
    <number of the reply, from 0>
    <SHA-256 of the body, in hex>
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final, TypeAlias, cast

__all__ = [
    "AUTHORIZATION",
    "BODY_DIGEST",
    "KEY",
    "NONCE",
    "REPLY_SIGNATURE",
    "REQUEST_NAMES",
    "SIGNATURE",
    "SIZE",
    "TIMESTAMP",
    "Body",
    "Digest",
    "Headers",
    "Nonces",
    "check_signed",
    "digest",
    "given_digest",
    "is_key_id",
    "matches",
    "payload_text",
    "reply_text",
    "request_text",
    "sign",
    "single_values",
]

KEY: Final = "X-Wove-Key"
TIMESTAMP: Final = "X-Wove-Timestamp"
NONCE: Final = "X-Wove-Nonce"
SIGNATURE: Final = "X-Wove-Signature"
SIZE: Final = "X-Wove-Size"
"""Size of the body, where the transport does not tell it. It is not signed: memory is reserved by it, nothing else."""

REPLY_SIGNATURE: Final = "X-Wove-Reply-Signature"
AUTHORIZATION: Final = "Authorization"

REQUEST_NAMES: Final = (KEY, TIMESTAMP, NONCE, SIGNATURE)
"""The headers of a signed request. In gRPC metadata the same names are in lower case."""


BODY_DIGEST: Final = "X-Wove-Body-Digest"
"""The SHA-256 of a body in hex, which its signature covers: with it, a request is authenticated by its head alone."""


class Digest(str):
    """The SHA-256 of a body in hex. `digest` accepts it in place of the body."""

    __slots__ = ()


Body: TypeAlias = Digest | bytes | bytearray | memoryview | Sequence[bytes | bytearray | memoryview]
"""A message: whole, in chunks, or as its digest."""

Headers: TypeAlias = Mapping[str, str | bytes] | Iterable[tuple[str | bytes, str | bytes]]
"""Headers or metadata as servers provide them, with names in any case."""

_KEY_ID: Final = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
_NONCE: Final = re.compile(
    r"[\x21-\x2b\x2d-\x7e]{1,128}"
)  # no comma: it joins two headers of one name
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"v1=[0-9a-f]{64}")


def digest(body: Body) -> Digest:
    """Return the SHA-256 of *body*. Chunks count as one body; a digest is returned as it is.

    Other threads run meanwhile, so that the digest of a large body can be made in a thread.

    Raises:
        TypeError: *body* is text.
    """
    if isinstance(body, Digest):
        return body
    if isinstance(cast("object", body), str):
        raise TypeError("the body of a message must be bytes, not text")
    if isinstance(body, (bytes, bytearray, memoryview)):
        return Digest(hashlib.sha256(body).hexdigest())
    total = hashlib.sha256()
    for chunk in body:
        total.update(chunk)
    return Digest(total.hexdigest())


def request_text(
    transport: str, target: str, timestamp: str, nonce: str, body_digest: str
) -> bytes:
    """Return the text that the signature of a request covers.

    Raises:
        ValueError: A part holds a line break, with which two different requests could have one text.
    """
    return _lines("wove-v1", transport, target, timestamp, nonce, body_digest)


def reply_text(transport: str, target: str, nonce: str, sequence: int, body_digest: str) -> bytes:
    """Return the text that a reply's signature covers: the request's *nonce*, and the reply's number among its replies.

    Raises:
        ValueError: As `request_text`.
    """
    return _lines("wove-v1-reply", transport, target, nonce, str(sequence), body_digest)


def payload_text(adapter: str, run_id: str, body_digest: str) -> bytes:
    """Return the text that the signature of a backend's payload covers. It has no time of its own: a
    queue may hold the payload for long.

    Raises:
        ValueError: As `request_text`.
    """
    return _lines("wove-v1-payload", adapter, run_id, body_digest)


def _lines(*parts: str) -> bytes:
    for part in parts:
        if "\n" in part or "\r" in part:
            raise ValueError("what is signed must not hold line breaks")
    return "\n".join(parts).encode()


def sign(secret: bytes, text: bytes) -> str:
    """Return the signature of *text*: ``v1=`` and 64 hex digits."""
    return "v1=" + hmac.digest(secret, text, "sha256").hex()


def matches(secret: bytes, text: bytes, signature: str) -> bool:
    """Return whether *signature* is that of *text*, in a time that does not depend on where they differ."""
    # As bytes: compare_digest takes no text outside ASCII.
    return hmac.compare_digest(sign(secret, text).encode(), signature.encode("utf-8", "replace"))


def is_key_id(name: str) -> bool:
    """Return whether *name* can be the id of a key. It must pass every proxy and every log unchanged."""
    return _KEY_ID.fullmatch(name) is not None


def single_values(
    headers: object, names: Collection[str], *, optional: Collection[str] = ()
) -> dict[str, str]:
    """Return the values of *names*, each of which must occur once, as printable ASCII; *optional* ones may be missing.

    Raises:
        PermissionError: A header is missing or odd, or *headers* cannot be read.
    """
    wanted = {name.lower(): name for name in (*names, *optional)}
    found: dict[str, str] = {}

    try:
        items = cast(
            "Iterable[object]", headers.items() if isinstance(headers, Mapping) else headers
        )
        for item in items:
            raw_name, raw_value = cast("tuple[object, object]", item)
            if (name := wanted.get(_text(raw_name).lower())) is None:
                continue
            if name in found:
                raise PermissionError(f"the header {name} came more than once")
            found[name] = _text(raw_value)
            if not found[name].isascii() or not found[name].isprintable():
                raise PermissionError(
                    f"the header {name} holds control characters or letters outside ASCII"
                )
    except PermissionError:
        raise
    except Exception:
        # Some collections of headers raise errors of their own for a header that came twice.
        raise PermissionError("the headers cannot be read") from None

    for name in names:
        if name not in found:
            raise PermissionError(f"the header {name} is missing")

    return found


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    # Such a text matches nothing. Otherwise lower() would make a "k" of the Kelvin sign.
    return value if isinstance(value, str) and value.isascii() else "\x00"


def check_signed(values: Mapping[str, str]) -> int:
    """Check the form of the values of `REQUEST_NAMES`.

    Returns:
        The timestamp, in Unix seconds.

    Raises:
        PermissionError: A value has another form.
    """
    for name, form, hint in (
        (KEY, _KEY_ID, "the id of a key"),
        (TIMESTAMP, _TIMESTAMP, "whole Unix seconds"),
        (NONCE, _NONCE, "1 to 128 visible characters without commas"),
        (SIGNATURE, _SIGNATURE, "v1= and 64 hex digits in lower case"),
    ):
        if not form.fullmatch(values[name]):
            raise PermissionError(f"the header {name} is not {hint}")

    return int(values[TIMESTAMP])


def given_digest(values: Mapping[str, str]) -> Digest | None:
    """Return the digest that the headers name; ``None`` if they name none.

    Raises:
        PermissionError: It has another form.
    """
    value = values.get(BODY_DIGEST)
    if value is None:
        return None
    if not _DIGEST.fullmatch(value):
        raise PermissionError(f"the header {BODY_DIGEST} is not 64 hex digits in lower case")
    return Digest(value)


class Nonces:
    """The nonces of the accepted requests, for as long as their timestamps are valid.

    A nonce takes about 130 bytes, so that the default *limit* takes 130 MB at most: enough for 1,600 requests a
    second in the ten minutes in which a timestamp is valid. A full store drops the oldest nonces, and from then on
    refuses every request of that age: the window becomes shorter, but no request is accepted twice.

    Not thread-safe. The cost of a call does not depend on the number of nonces.

    Args:
        limit: Maximum number of nonces.
    """

    __slots__ = ("_buckets", "_count", "_floor", "_limit", "_order", "_seen")

    def __init__(self, limit: int = 1_000_000) -> None:
        self._limit = limit
        self._count = 0
        self._floor = -1  # older timestamps are refused: their nonces may have been dropped
        self._buckets: dict[int, list[bytes]] = {}
        self._order: list[int] = []  # a heap of the timestamps in _buckets
        # Many small sets: a large one would be copied as a whole now and then, within one call.
        self._seen: list[set[bytes]] = [set() for _ in range(256)]

    def __len__(self) -> int:
        return self._count

    def accept(self, key: bytes, nonce: str, timestamp: int, now: float, skew: float) -> bool:
        """Return whether *nonce* is new, and keep it if it is.

        Args:
            key: Whose nonce it is. It is derived from the secret, not from its id: one secret under two ids must
                not accept a request twice.
            nonce: The request's nonce.
            timestamp: The request's, in Unix seconds.
            now: The present, in Unix seconds.
            skew: How far the two may be apart, in seconds.
        """
        if abs(now - timestamp) > skew or timestamp < self._floor:
            return False
        mark = hashlib.blake2b(
            nonce.encode("utf-8", "replace"), digest_size=16, key=key[:64]
        ).digest()
        seen = self._seen[mark[0]]
        if mark in seen:
            return False
        self._make_room(now - skew)
        if timestamp < self._floor:
            return False
        bucket = self._buckets.get(timestamp)
        if bucket is None:
            bucket = self._buckets[timestamp] = []
            heappush(self._order, timestamp)

        bucket.append(mark)
        seen.add(mark)
        self._count += 1
        return True

    def _make_room(self, horizon: float) -> None:
        # A few in each call: more than are added, and so few that no request pays for all before it.
        for _ in range(8):
            if not self._order or (self._order[0] >= horizon and self._count < self._limit):
                return
            oldest = self._order[0]
            # Also if the clock is set back later: a dropped nonce must not be accepted again.
            self._floor = max(self._floor, oldest + 1)
            bucket = self._buckets[oldest]
            mark = bucket.pop()
            self._seen[mark[0]].discard(mark)
            self._count -= 1
            if not bucket:
                heappop(self._order)
                del self._buckets[oldest]
