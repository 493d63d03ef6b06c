"""The HTTP/1.1 codec as a server uses it: what is a request, where it ends, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, strategies as st
from tests.unit.net.test_http1_responses import (
    bodies,
    chunked,
    connection,
    cut_up,
    cuts,
    fields,
    token,
)

from wove.net.http1 import MAX_HEAD_BYTES, RequestError, RequestHead, RequestParser, TooLargeError

MOST = 1_000_000

Outcome = list[tuple[Any, ...]]


def outcome(pieces: list[bytes], *, most: int = MOST) -> Outcome:
    """Everything that can be seen of requests that come in *pieces*."""
    found: Outcome = []
    parser, body = RequestParser(), b""
    try:
        for piece in pieces:
            data = piece
            while data:
                head = parser.head
                body += b"".join(parser.feed(data))
                data = parser.rest
                if parser.head is not head:
                    parser.admit(most)
                if parser.complete:
                    found.append((*seen(parser), body))
                    parser, body = RequestParser(), b""
    except (RequestError, TooLargeError) as error:
        found.append((type(error).__name__,))
    else:
        found.append((parser.begun, parser.head and seen(parser), body))
    return found


def seen(parser: RequestParser) -> tuple[Any, ...]:
    head = parser.head
    assert head is not None
    return (
        head.method,
        head.target,
        head.minor,
        head.persistent,
        tuple(head.fields),
        parser.received,
        parser.chunked,
    )


targets = st.text("abc/-._~%?=&{}|", max_size=20).map(lambda text: f"/{text}")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A well-formed request."""
    body = draw(bodies)
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    lines = [f"{draw(token)} {draw(targets)} HTTP/1.{minor}", "Host: x"]
    lines += [f"{name}:{held}" for name, held in draw(fields) if name.lower() != "host"]
    if (keep := draw(connection)) is not None:
        lines.append(f"Connection: {keep}")
    framing = draw(st.sampled_from(["length", "none"] + (["chunked"] if minor else [])))
    raw_body = b""
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
        raw_body = body
    elif framing == "chunked":
        lines.append("Transfer-Encoding: Chunked")
        raw_body = draw(chunked(body))
    return (
        draw(st.sampled_from([b"", b"\r\n"]))
        + ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        + raw_body
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw = draw(requests())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        put = draw(st.sampled_from([b"", b"\n", b"\r", b"\r\n", b" ", b"\x00", b":", b"0", b";"]))
        raw = raw[:at] + put + raw[at + draw(st.integers(0, 3)) :]
    return raw


@given(st.lists(requests(), min_size=1, max_size=3), cuts)
def test_any_split_of_requests_in_a_row_gives_the_same(made: list[bytes], where: list[int]) -> None:
    raw = b"".join(made)
    whole = outcome([raw])
    assert len(whole) == len(made) + 1 and whole[-1] == (False, None, b"")
    assert outcome(cut_up(raw, where)) == whole
    assert outcome([raw[i : i + 1] for i in range(len(raw))]) == whole


@given(damaged(), cuts)
@example(b"POST / HTTP/1.1\r\nHost: x\nContent-Length: 0\r\n\r\n", [20])
@example(b"\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n", [1, 2, 3])
@example(b"\rPOST / HTTP/1.1\r\nHost: x\r\n\r\n", [1])
def test_any_split_of_damaged_bytes_gives_the_same(raw: bytes, where: list[int]) -> None:
    whole = outcome([raw])
    split = outcome(cut_up(raw, where))
    if whole[-1] != split[-1]:
        # What can be no request any more is refused as soon as that is seen; in one piece, that is the whole of it.
        assert whole[-1][0] is True or split[-1][0] == "RequestError"
    else:
        assert split == whole


@given(st.binary(max_size=200), cuts)
def test_any_bytes_are_refused_or_read_and_nothing_else_happens(
    raw: bytes, where: list[int]
) -> None:
    outcome(cut_up(raw, where))
    outcome(
        cut_up(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + raw, where)
    )


def test_what_we_send_we_read() -> None:
    head = RequestHead("POST", "/wove/events/t?x=1", [("Host", "h:1")]).encode(
        [("X-A", "é"), ("Content-Length", "2")]
    )
    parser = RequestParser()
    assert parser.feed(head + b"{}next") == [] and parser.head is not None and not parser.complete
    assert (parser.head.method, parser.head.target, parser.head.path) == (
        "POST",
        "/wove/events/t?x=1",
        "/wove/events/t",
    )
    assert (parser.head.get("x-a"), parser.announced, parser.chunked) == ("é", 2, False)
    parser.admit(2)
    assert parser.feed(parser.rest) == [b"{}"] and parser.complete and parser.rest == b"next"


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"GET\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET  / HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1 \r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / http/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"G@T / HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"\x16\x03\x01\x02", 400, "use http:// in the callback_url"),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "is not a path"),
        (b"GET ftp://h/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "is not a path"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "another version"),
        (b"GET / HTTP/0.9\r\n\r\n", 505, "another version"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "this one has 0"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400, "this one has 2"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "end of line that is not CR LF"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, "obs-fold"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431, "101 header fields; 100 are the most"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, "more than 65536 bytes"),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, 431, "more than 65536 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n", 400, "Content-Length '+2'"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n", 400, "Content-Length '2, 2'"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n", 400, "Content-Length '2, 2'"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "both"),
        (b"GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "HTTP/1.0"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "not just chunked"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "not just"),
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(raw: bytes, status: int, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        RequestParser().feed(raw)
    assert caught.value.status == status and says in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"\x00", b" GET", b"{", b"GET\t", b"\rG", b"\n", b"GET / HTTP/1.1\nH", b"\x80" * 3]
)
def test_it_is_refused_without_waiting_for_an_end_that_does_not_come(raw: bytes) -> None:
    with pytest.raises(RequestError):
        RequestParser().feed(raw)


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("/a?b", "/a?b"),
        ("http://h:1/a?b", "/a?b"),
        ("HTTPS://h", "/"),
        ("http://h?b", "/?b"),
        ("*", "*"),
    ],
)
def test_targets(target: str, read: str) -> None:
    parser = RequestParser()
    parser.feed(f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert parser.head is not None and parser.head.target == read


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /secret",
        b"POST /secret HTTP/1.1\r\nHost: x\r\nsecret\r\n\r\n",
        b"POST /secret HTTP/1.1\nsecret",
    ],
)
def test_errors_do_not_quote_secrets(raw: bytes) -> None:
    parser = RequestParser()
    with pytest.raises(RequestError) as caught:
        for data in (raw, b"\n" * MAX_HEAD_BYTES):
            parser.feed(data)
    assert "secret" not in str(caught.value)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [b"x\r\n", b"\r\n", b"2\r\nabc\r\n", b"0\r\nno colon\r\n\r\n", b"1;" + b"a" * 2000 + b"\r\n"],
)
def test_what_is_no_chunk_is_refused(raw: bytes) -> None:
    assert outcome([CHUNKED + raw]) == [("RequestError",)]


@pytest.mark.parametrize(
    ("raw", "fine"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1234567890", True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n", False),
        (CHUNKED + b"5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n", True),
        (CHUNKED + b"5\r\n12345\r\n6\r\n", False),
        (CHUNKED + b"3b9aca00\r\n", False),
    ],
)
def test_the_limit_of_a_body(raw: bytes, fine: bool) -> None:
    assert (outcome([raw], most=10)[-1] != ("TooLargeError",)) is fine


def test_before_it_is_admitted_a_body_may_have_nothing() -> None:
    parser = RequestParser()
    parser.feed(CHUNKED)
    with pytest.raises(TooLargeError):
        parser.feed(b"1\r\n")
