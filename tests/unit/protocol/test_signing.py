"""What is signed, byte for byte, and the memory of nonces."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings, strategies as st

from wove.protocol import signing
from wove.protocol.signing import Nonces

SECRET = b"correct horse"
BODY = b'{"type":"run_task"}'
BODY_DIGEST = "ca4e2a6a5e57e6132bd909b40c99784dbd035f5e440efe372a26c2362d10ddae"
OWNER = b"owner"


class TestTexts:
    """The signatures in here are from: printf LINES | openssl dgst -sha256 -hmac 'correct horse'."""

    def test_a_request(self) -> None:
        text = signing.request_text(
            "http", "/wove/tasks?x=1", "1700000000", "0123456789abcdef", signing.digest(BODY)
        )
        assert (
            text
            == f"wove-v1\nhttp\n/wove/tasks?x=1\n1700000000\n0123456789abcdef\n{BODY_DIGEST}".encode()
        )
        assert (
            signing.sign(SECRET, text)
            == "v1=b5c427560645339c218e8b241f97b234c99dc2b351a8789860a15b6bf235acd9"
        )

    def test_a_handshake_signs_an_empty_body(self) -> None:
        text = signing.request_text("websocket", "/wove", "1700000000", "n-1", signing.digest(b""))
        assert (
            signing.sign(SECRET, text)
            == "v1=308770ce52699886d1ec6952c82c5da4234c1056ccb821d00bb8f1b2d97c9477"
        )

    def test_a_reply(self) -> None:
        method = "/wove.network_executor.WorkerService/Send"
        text = signing.reply_text("grpc", method, "n-1", 7, signing.digest(BODY))
        assert (
            signing.sign(SECRET, text)
            == "v1=5b3241e5b26e818aa2b80a5bbe47b5e5b15d721e46f3c23109182d678f1d28ce"
        )

    @given(
        st.text("/abc?=%", min_size=1),
        st.integers(0, 10**12 - 1),
        st.text("0123abcd", min_size=1),
        st.binary(),
    )
    def test_as_written_down_elsewhere(
        self, target: str, timestamp: int, nonce: str, body: bytes
    ) -> None:
        lines = ["wove-v1", "grpc", target, str(timestamp), nonce, hashlib.sha256(body).hexdigest()]
        expected = hmac.new(SECRET, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
        text = signing.request_text("grpc", target, str(timestamp), nonce, signing.digest(body))
        assert signing.sign(SECRET, text) == f"v1={expected}"

    @pytest.mark.parametrize("position", range(5))
    @pytest.mark.parametrize("end", ["\n", "\r"])
    def test_no_part_may_hold_a_line_break(self, position: int, end: str) -> None:
        """With one, two requests that differ would have one signature."""
        parts = ["http", "/", "1", "n", BODY_DIGEST]
        parts[position] += end
        with pytest.raises(ValueError, match="line breaks"):
            signing.request_text(*parts)

    def test_half_characters_are_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            signing.request_text("http", "/\ud800", "1", "n", BODY_DIGEST)


class TestDigest:
    def test_chunks_count_as_one(self) -> None:
        assert signing.digest(BODY) == BODY_DIGEST
        assert signing.digest([BODY[:3], memoryview(BODY)[3:], bytearray()]) == BODY_DIGEST
        assert signing.digest(bytearray(BODY)) == signing.digest(memoryview(BODY)) == BODY_DIGEST

    def test_a_digest_stands_for_its_body(self) -> None:
        assert signing.digest(signing.digest(BODY)) == BODY_DIGEST

    @pytest.mark.parametrize("text", ["", "text", BODY_DIGEST])
    def test_text_is_no_body(self, text: str) -> None:
        with pytest.raises(TypeError):
            signing.digest(text)  # type: ignore[arg-type]


class TestMatches:
    def test_only_the_signature_itself(self) -> None:
        good = signing.sign(SECRET, b"text")
        assert signing.matches(SECRET, b"text", good)
        for bad in (
            "",
            good[:-1],
            good + "0",
            good.upper(),
            good[3:],
            "v2=" + good[3:],
            "\xff",
            "\ud800",
            "v1=\u0660",
        ):
            assert not signing.matches(SECRET, b"text", bad)
        assert not signing.matches(b"other", b"text", good)
        assert not signing.matches(SECRET, b"texu", good)


class TestSingleValues:
    NAMES = ("X-One", "X-Two")

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-one": "1", "X-TWO": "2", "x-three": "\xe9"},
            {"X-One": b"1", "X-Two": b"2"},
            [(b"x-one", b"1"), (b"x-two", b"2"), (b"cookie", b"\xff"), (b"cookie", b"\xff")],
            (pair for pair in [("x-One", "1"), ("x-tWo", "2")]),
            [["x-one", "1"], ["x-two", "2"]],
        ],
    )
    def test_any_shape_any_case(self, headers: signing.Headers) -> None:
        assert signing.single_values(headers, self.NAMES) == {"X-One": "1", "X-Two": "2"}

    @pytest.mark.parametrize(
        ("headers", "told"),
        [
            ({}, "X-One is missing"),
            ({"x-one": "1"}, "X-Two is missing"),
            ({"x-one": "1", "X-One": "1", "x-two": "2"}, "X-One came more than once"),
            ([("x-one", "1"), (b"X-ONE", b"1"), ("x-two", "2")], "X-One came more than once"),
            ({"x-one": "1\r\nx: y", "x-two": "2"}, "X-One holds control characters"),
            ({"x-one": b"\xe9", "x-two": "2"}, "X-One holds control characters"),
            ({"x-one": None, "x-two": "2"}, "X-One holds control characters"),
            ({"x-one": ["1"], "x-two": "2"}, "X-One holds control characters"),
            ({"x-one": "\u0661", "x-two": "2"}, "X-One holds control characters"),
            ({1: 2, None: 3}, "missing"),
            (None, "cannot be read"),
            (7, "cannot be read"),
            ("x-one", "cannot be read"),
            ([("x-one",)], "cannot be read"),
            ([("x-one", "1", "2")], "cannot be read"),
            ([None], "cannot be read"),
        ],
    )
    def test_everything_else_is_a_permission_error(
        self, headers: signing.Headers, told: str
    ) -> None:
        with pytest.raises(PermissionError, match=told):
            signing.single_values(headers, self.NAMES)

    def test_a_letter_that_only_looks_like_one_makes_another_name(self) -> None:
        kelvin = "X-Wove-\u212aey"
        assert kelvin.lower() == "x-wove-key"
        with pytest.raises(PermissionError, match="missing"):
            signing.single_values({kelvin: "default"}, [signing.KEY])

    def test_a_collection_that_raises_is_refused(self) -> None:
        def broken() -> Iterator[tuple[str, str]]:
            yield "x-one", "1"
            raise LookupError("two values")

        with pytest.raises(PermissionError, match="cannot be read"):
            signing.single_values(broken(), self.NAMES)


class TestNonces:
    def test_each_once(self) -> None:
        nonces = Nonces()
        assert nonces.accept(OWNER, "a", 1000, 1000.5, 300)
        assert not nonces.accept(OWNER, "a", 1000, 1000.5, 300)
        assert not nonces.accept(OWNER, "a", 1001, 1001.5, 300), "also with another timestamp"
        assert nonces.accept(b"another", "a", 1000, 1000.5, 300)
        assert nonces.accept(OWNER, "b", 1000, 1000.5, 300)

    @pytest.mark.parametrize(
        ("timestamp", "taken"), [(699, False), (700, True), (1300, True), (1301, False)]
    )
    def test_the_window(self, timestamp: int, taken: bool) -> None:
        assert Nonces().accept(OWNER, "a", timestamp, 1000, 300) is taken

    def test_what_cannot_come_again_is_forgotten(self) -> None:
        nonces = Nonces()
        for second in range(10_000):
            for each in range(3):
                assert nonces.accept(OWNER, f"{second} {each}", second, second, 100)
            assert len(nonces) <= 3 * 102
        assert not nonces.accept(OWNER, "9950 1", 9950, 9999, 100)

    def test_after_a_rest_the_old_ones_go_little_by_little(self) -> None:
        nonces = Nonces()
        for each in range(1000):
            nonces.accept(OWNER, str(each), 0, 0, 10)
        sizes = []
        for each in range(200):
            assert nonces.accept(OWNER, f"new {each}", 5000, 5000, 10)
            sizes.append(len(nonces))
        assert sizes[0] > 900, "not all at the cost of one request"
        assert sizes[-1] == 200

    def test_a_full_store_refuses_the_old_instead_of_forgetting_the_seen(self) -> None:
        nonces = Nonces(limit=10)
        for each in range(10):
            assert nonces.accept(OWNER, f"old {each}", 1000, 1000, 300)
        assert nonces.accept(OWNER, "new", 1001, 1001, 300)
        assert len(nonces) == 10
        for each in range(10):
            assert not nonces.accept(OWNER, f"old {each}", 1000, 1001, 300)
        assert not nonces.accept(OWNER, "another", 1000, 1001, 300), (
            "as old as those that may be forgotten"
        )
        assert not nonces.accept(OWNER, "new", 1001, 1001, 300)

    def test_a_store_filled_within_one_second_refuses_that_second(self) -> None:
        nonces = Nonces(limit=5)
        taken = [nonces.accept(OWNER, str(each), 1000, 1000, 300) for each in range(20)]
        assert taken == [True] * 5 + [False] * 15
        assert nonces.accept(OWNER, "next", 1001, 1001, 300)

    def test_a_clock_that_is_set_back_lets_nothing_in_again(self) -> None:
        nonces = Nonces()
        assert nonces.accept(OWNER, "a", 1000, 1000, 300)
        for each in range(10):  # an hour ahead: "a" is forgotten
            assert nonces.accept(OWNER, f"ahead {each}", 4600, 4600, 300)
        assert len(nonces) == 10
        assert not nonces.accept(OWNER, "a", 1000, 1000, 300)
        assert nonces.accept(OWNER, "b", 1001, 1001, 300), (
            "and what is newer is not shut out for an hour"
        )

    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 2**32))
    def test_nothing_is_ever_accepted_twice(self, limit: int, skew: int, seed: int) -> None:
        """Any order of timestamps, clocks that jump, stores that overflow: against a set that forgets nothing."""
        chance = random.Random(seed)
        nonces, accepted, now = Nonces(limit), set[tuple[str, int]](), 1000.0
        for _ in range(500):
            now += chance.choice([0, 0, 0, 0.5, 1, 7, -3, chance.choice([100, -100])])
            nonce, timestamp = (
                str(chance.randrange(60)),
                int(now) + chance.randrange(-skew - 2, skew + 3),
            )
            if nonces.accept(OWNER, nonce, max(timestamp, 0), now, skew):
                assert (nonce, timestamp) not in accepted
                assert abs(now - timestamp) <= skew
                accepted.add((nonce, timestamp))
            assert len(nonces) <= limit
