"""The HTTP/1.1 codec: what is an answer, where it ends, and what is refused."""

from __future__ import annotations

import http.client
import io
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from wove.net.http1 import (
    ERROR_TEXT_BYTES,
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    ProtocolError,
    RequestHead,
    ResponseParser,
    TooLargeError,
    quoted,
)

MOST = 1_000_000

Outcome = tuple[Any, ...]


def fed(pieces: list[bytes], *, most: int = MOST) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(most)
    body = b"".join(piece for data in pieces for piece in parser.feed(data))
    return parser, body


def parsed(raw: bytes, *, most: int = MOST) -> tuple[ResponseParser, bytes]:
    return fed([raw], most=most)


def outcome(pieces: list[bytes], *, ended: bool, most: int = MOST) -> Outcome:
    """Everything that can be seen of a response that comes in *pieces*."""
    parser = ResponseParser(most)
    body = b""
    error: str | None = None
    try:
        for data in pieces:
            for piece in parser.feed(data):
                body += piece
        if ended:
            parser.close()
    except ProtocolError as raised:
        error = type(raised).__name__
    head = parser.head and (
        parser.head.minor,
        parser.head.status,
        parser.head.reason,
        tuple(parser.head.fields),
    )
    if error is not None:  # what came before the mistake is of no use to anybody
        return (head, error)
    return (
        head,
        body,
        parser.complete,
        parser.cut,
        parser.excess,
        parser.reusable,
        parser.received,
        parser.announced,
    )


def cut_up(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    return [raw[start:end] for start, end in zip(edges, edges[1:], strict=False) if end > start]


# ------------------------------------------------------------------ bytes that may be anything

token = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-_.~!#$%&'*+^`|0189", min_size=1, max_size=12)
value = st.text(
    st.characters(codec="latin-1", exclude_categories=["Cc"], exclude_characters="\xad"),
    max_size=20,
).map(lambda text: text.strip(" \t\xa0\x85"))
ours = {"content-length", "transfer-encoding", "connection"}
fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in ours), value), max_size=8)
connection = st.sampled_from([None, "close", "keep-alive", "Keep-Alive, Upgrade", "CLOSE"])
bodies = st.binary(max_size=300)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    cuts = draw(st.lists(st.integers(0, 300), max_size=5))
    raw = b""
    for piece in cut_up(body, cuts):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(piece)
        raw += (
            size
            + draw(st.sampled_from([b"", b";a", b'; n="v"', b" ;x=y"]))
            + b"\r\n"
            + piece
            + b"\r\n"
        )
    trailer = draw(st.sampled_from([b"", b"X-Digest: 1\r\n"]))
    return raw + b"0\r\n" + trailer + b"\r\n"


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A well-formed response, and whether its end is that of the connection."""
    body = draw(bodies)
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 413, 500, 503]))
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    reason = draw(st.sampled_from(["", "OK", "Not Found", "Très bien"]))
    lines = [f"HTTP/1.{minor} {status} {reason}"]
    lines += [
        f"{name}:{draw(st.sampled_from(['', ' ', '  ']))}{held}" for name, held in draw(fields)
    ]
    if (keep := draw(connection)) is not None:
        lines.append(f"Connection: {keep}")
    empty = status in (204, 304)
    framing = draw(st.sampled_from(["length", "close"] + (["chunked"] if minor else [])))
    raw_body = b"" if empty else body
    if framing == "length" and not empty:
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked" and not empty:
        lines.append("Transfer-Encoding: Chunked")
        raw_body = draw(chunked(body))
    interim = draw(
        st.sampled_from(
            [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\nX-N: 1\r\n\r\n"]
        )
    )
    raw = interim + ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + raw_body
    return raw, framing == "close" and not empty


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw, _ = draw(responses())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        taken = draw(st.integers(0, 3))
        raw = (
            raw[:at]
            + draw(st.sampled_from([b"", b"\n", b"\r", b"\r\n", b" ", b"\x00", b":", b"0", b";"]))
            + raw[at + taken :]
        )
    return raw


cuts = st.lists(st.integers(0, 2000), max_size=8)


@given(responses(), cuts, st.binary(max_size=5))
def test_any_split_of_the_bytes_gives_the_same(
    made: tuple[bytes, bool], where: list[int], after: bytes
) -> None:
    raw, ended = made
    whole = outcome([raw + after], ended=ended)
    assert outcome(cut_up(raw + after, where), ended=ended) == whole
    assert outcome([raw[i : i + 1] for i in range(len(raw))], ended=ended) == outcome(
        [raw], ended=ended
    )


@given(damaged(), cuts)
@example(b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n", [20])
@example(b"HTTP/1.1 200 OK\rA: b\r\n\r\n", [16])
def test_any_split_of_damaged_bytes_gives_the_same(raw: bytes, where: list[int]) -> None:
    assert outcome(cut_up(raw, where), ended=True) == outcome([raw], ended=True)


@given(st.binary(max_size=200), cuts)
def test_any_bytes_are_refused_or_read_and_nothing_else_happens(
    raw: bytes, where: list[int]
) -> None:
    outcome(cut_up(raw, where), ended=True)
    outcome(
        cut_up(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw, where), ended=True
    )


@given(responses(), cuts)
def test_the_standard_library_reads_the_same(made: tuple[bytes, bool], where: list[int]) -> None:
    """`http.client` is the oracle for what is well-formed. It is told of no interim response but 100."""
    raw, ended = made

    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(raw.replace(b" 102 Processing", b" 100 Continue"))

    theirs = http.client.HTTPResponse(Socket(), method="POST")  # type: ignore[arg-type]
    theirs.begin()
    body = theirs.read()
    parser, ours = fed(cut_up(raw, where))
    if ended:
        parser.close()
    assert parser.head is not None and parser.complete
    assert (parser.head.status, parser.head.minor, ours) == (
        theirs.status,
        theirs.version - 10,
        body,
    )
    assert parser.head.fields == [
        (name.lower(), held.strip(" \t")) for name, held in theirs.getheaders()
    ]
    if not ended:
        assert parser.reusable != theirs.will_close


# ------------------------------------------------------------------ one thing at a time


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not an HTTP/1.1 answer: it begins with 'SSH-2.0"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "looks like TLS. Use https://"),
        (b"HTTP/2 200 OK\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1 600 Odd\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1 200 \x1b[2J\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "end of line that is not CR LF"),
        (b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n", "end of line that is not CR LF"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "obs-fold"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "malformed: 'A : b'"),
        (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "malformed: 'nothing'"),
        (b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "malformed"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "Content-Length '2, 3'",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
            "Content-Length '2, 2'",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n", "Content-Length '2, 2'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n", "Content-Length '+2'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "Content-Length ''"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "both"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "transfer-encoded as 'gzip, chunked'",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "transfer-encoded",
        ),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoded"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switches to another protocol, unasked"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
            "101 header fields; 100 are the most",
        ),
        (
            b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
            "more than 65536 bytes without an end",
        ),
        (b"HTTP/1.1 102 Wait\r\n\r\n" * (MAX_INTERIM + 1), "more than 10000 interim answers"),
    ],
)
def test_what_is_no_head_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parsed(raw)
    assert says in str(caught.value)


@pytest.mark.parametrize("raw", [b"S", b"HTTP/1.1 200 OK\nCon", b"HTTP/1.1 200 OK\r\nA: b\rC"])
def test_it_is_refused_without_waiting_for_an_end_that_does_not_come(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parsed(raw)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"x\r\n", "begins with 'x'"),
        (b"-1\r\n", "begins with '-1'"),
        (b"0x1\r\n", "begins with '0x1'"),
        (b"1_0\r\n", "begins with '1_0'"),
        (b"\r\n", "begins with ''"),
        (b"f" * 16 + b"\r\n", "begins with"),
        (b"1;a\x00\r\n", "begins with"),
        (b"1;" + b"a" * 1024 + b"\r\n", "the line of a chunk has more than 1024 bytes"),
        (b"2\r\nabc\r\n", "what follows a chunk"),
        (b"2\r\nab\n\n", "what follows a chunk"),
        (b"0\r\n folded: x\r\n\r\n", "obs-fold"),
        (b"0\r\nno colon\r\n\r\n", "malformed"),
        (
            b"0\r\nA: " + b"b" * 16384 + b"\r\n\r\n",
            "the trailer of its answer has more than 16384 bytes",
        ),
        (
            b"0\r\n" + b"A: bcd\r\n" * 3000 + b"\r\n",
            "the trailer of its answer 200 OK exceeds 16384 bytes",
        ),
        (
            (b"1;" + b"e" * 1000 + b"\r\nx\r\n") * 1100,
            "the chunk extensions of its answer 200 OK exceed",
        ),
    ],
)
def test_what_is_no_chunk_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parsed(CHUNKED + raw)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        CHUNKED + b"3b9aca00\r\n",
        CHUNKED + b"8\r\n12345678\r\n3\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n12345678901",
    ],
)
def test_a_body_that_is_too_large_is_refused_as_soon_as_that_is_known(raw: bytes) -> None:
    with pytest.raises(TooLargeError) as caught:
        parsed(raw, most=10)
    assert "more than 10 (executor_config 'max_message_bytes')" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234567890",
        CHUNKED + b"5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n1234567890",
    ],
)
def test_a_body_of_exactly_the_limit_is_taken(raw: bytes) -> None:
    _, body = parsed(raw, most=10)
    assert body == b"1234567890"


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_of_an_error_only_the_start_is_read(framing: str) -> None:
    text = b"x" * (ERROR_TEXT_BYTES + 1000)
    head = b"HTTP/1.1 500 Oh\r\n"
    raw = {
        "length": head + b"Content-Length: 1000000000\r\n\r\n" + text,
        "chunks": head + b"Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n" + text,
        "close": head + b"\r\n" + text,
    }[framing]
    parser, body = parsed(raw, most=10)
    assert body == b"x" * ERROR_TEXT_BYTES
    assert parser.complete and parser.cut and not parser.reusable


@pytest.mark.parametrize(
    ("raw", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"HTTP/1.1 204 None\r\n\r\n", True),
        (b"HTTP/1.1 304 Same\r\nContent-Length: 7\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", False),
        (CHUNKED + b"0\r\n\r\n", True),
        (CHUNKED + b"0\r\n\r\n?", False),
    ],
)
def test_whether_another_request_may_follow(raw: bytes, reusable: bool) -> None:
    parser, _ = parsed(raw)
    assert parser.complete
    assert parser.reusable is reusable


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 O", "in the head of its answer: 'HTTP/1.1 200 O'"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{",
            "after 1 of 5 bytes of the body of its answer 200 OK",
        ),
        (CHUNKED + b"5\r\n{", "after 1 bytes of the body of its answer 200 OK"),
        (CHUNKED + b"1\r\n{\r\n0\r\n", "after 1 bytes of the body of its answer 200 OK"),
    ],
)
def test_a_connection_that_closes_too_early_says_how_far_it_got(raw: bytes, says: str) -> None:
    parser, _ = parsed(raw)
    with pytest.raises(ProtocolError) as caught:
        parser.close()
    assert str(caught.value) == says


def test_a_head_without_reason_and_final_space() -> None:
    parser, _ = parsed(b"HTTP/1.1 204\r\n\r\n")
    assert str(parser.head) == "204"


def test_fields_are_found_by_name() -> None:
    parser, _ = parsed(b"HTTP/1.1 204 N\r\nX-Two: a\r\nx-two: b\r\n\r\n")
    assert parser.head is not None
    assert (parser.head.get("x-two"), parser.head.all("x-two"), parser.head.get("x-none")) == (
        "a",
        ["a", "b"],
        None,
    )


def test_a_body_in_one_piece_is_not_copied_byte_by_byte() -> None:
    """A large body comes out in the pieces in which it came, and small chunks come out joined."""
    parser = ResponseParser(MOST)
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    piece = b"x" * 100_000
    assert parser.feed(piece) == [piece] and parser.feed(piece) == [piece]
    assert parser.complete
    parser, body = parsed(CHUNKED + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n")
    assert body == b"a" * 1000


# ------------------------------------------------------------------ requests


def test_a_request_head() -> None:
    head = RequestHead("POST", "/tasks?x=1", [("Host", "h:1")])
    assert (
        head.encode([("X-A", "é")]) == b"POST /tasks?x=1 HTTP/1.1\r\nHost: h:1\r\nX-A: \xe9\r\n\r\n"
    )
    assert head.encode([]) == b"POST /tasks?x=1 HTTP/1.1\r\nHost: h:1\r\n\r\n"


@pytest.mark.parametrize("target", ["", "tasks", "/a b", "/a\r\nX: y", "/é", "http://h/", "/\x7f"])
def test_a_target_that_would_break_the_request_line_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="not a request target"):
        RequestHead("POST", target, [])


@pytest.mark.parametrize(
    "field", [("A", "b\r\nC: d"), ("A", "b\n"), ("A b", "c"), ("", "c"), ("A", "\x00")]
)
def test_a_field_that_would_break_the_head_is_refused(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        RequestHead("POST", "/", []).encode([field])


def test_quoting_is_short_and_says_that_something_is_missing() -> None:
    assert quoted(b" Not Found\n") == "'Not Found'"
    assert quoted(b"\xff") == "'\ufffd'"
    assert len(quoted(b"x" * 1000)) < 300 and quoted(b"x" * 1000).endswith("...")
