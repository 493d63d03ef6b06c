"""NetworkExecutorSecurity: what it lets through, what it refuses and how, and that it keeps its secrets."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import hmac
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings, strategies as st

import wove
from wove.protocol.signing import Digest, Headers, digest
from wove.security import NetworkExecutorSecurity

SECRET = "correct horse battery staple"
TARGET = "/wove/tasks?x=1"
BODY = b'{"type":"run_task"}'
WHAT = "environment 'x': executor_config 'security'"


def security(config: Any = None, **keys: Any) -> NetworkExecutorSecurity:
    if config is None:
        config = {"type": "signed", "secret": SECRET, **keys}
    return NetworkExecutorSecurity.from_config(config, label=WHAT)


def by_hand(
    secret: str = SECRET,
    *,
    key: str = "default",
    transport: str = "http",
    target: str = TARGET,
    body: bytes = BODY,
    timestamp: object = None,
    nonce: str | None = None,
) -> dict[str, str]:
    """The headers of a signed request as somebody makes them who has read nothing but the documentation."""
    stamp = str(int(time.time()) if timestamp is None else timestamp)
    nonce = os.urandom(8).hex() if nonce is None else nonce
    text = "\n".join(["wove-v1", transport, target, stamp, nonce, hashlib.sha256(body).hexdigest()])
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {
        "X-Wove-Key": key,
        "X-Wove-Timestamp": stamp,
        "X-Wove-Nonce": nonce,
        "X-Wove-Body-Digest": hashlib.sha256(body).hexdigest(),
        "X-Wove-Signature": f"v1={signature}",
    }


def verify(
    service: NetworkExecutorSecurity,
    headers: Headers,
    *,
    transport: str = "http",
    target: str = TARGET,
    body: Any = BODY,
) -> None:
    service.verify_headers(transport=transport, target=target, body=body, headers=headers)


class TestSigned:
    def test_what_we_sign_is_what_the_documentation_says(self) -> None:
        headers = security(key="k1").headers_for(transport="http", target=TARGET, body=BODY)
        again = by_hand(
            key="k1", timestamp=headers["X-Wove-Timestamp"], nonce=headers["X-Wove-Nonce"]
        )
        assert headers == again
        assert abs(int(headers["X-Wove-Timestamp"]) - time.time()) < 60

    def test_what_somebody_else_signs_is_accepted(self) -> None:
        verify(security(), by_hand())
        verify(
            security(), by_hand(transport="grpc", target="/a/b"), transport="grpc", target="/a/b"
        )

    @pytest.mark.parametrize(
        "body", [BODY, [BODY[:5], BODY[5:]], memoryview(BODY), bytearray(BODY), digest(BODY)]
    )
    def test_bodies_of_every_kind(self, body: Any) -> None:
        client, service = security(), security()
        verify(service, client.headers_for(transport="http", target=TARGET, body=body), body=BODY)
        verify(service, client.headers_for(transport="http", target=TARGET, body=BODY), body=body)

    def test_metadata_has_lower_case_names(self) -> None:
        client = security()
        metadata = client.metadata_for(transport="grpc", target="/a/b", body=BODY)
        assert [name for name, _ in metadata] == [
            "x-wove-key",
            "x-wove-timestamp",
            "x-wove-nonce",
            "x-wove-body-digest",
            "x-wove-signature",
        ]
        service = security()
        service.screen_metadata(metadata=metadata)
        service.verify_metadata(transport="grpc", target="/a/b", body=BODY, metadata=metadata)
        with pytest.raises(PermissionError, match="has been here before"):
            service.verify_metadata(transport="grpc", target="/a/b", body=BODY, metadata=metadata)

    @pytest.mark.parametrize(
        "changed",
        [
            {"transport": "grpc"},
            {"target": "/wove/tasks"},
            {"target": TARGET + "&y"},
            {"body": BODY + b" "},
            {"body": b""},
        ],
    )
    def test_whatever_is_changed_is_refused(self, changed: Mapping[str, Any]) -> None:
        service, headers = security(), by_hand()
        with pytest.raises(PermissionError, match="signature is not that of this request"):
            verify(service, headers, **changed)
        verify(service, headers)  # a refused request uses nothing up

    def test_timestamp_and_nonce_are_covered(self) -> None:
        service, headers = security(), by_hand()
        for change in (
            {"X-Wove-Timestamp": str(int(headers["X-Wove-Timestamp"]) + 1)},
            {"X-Wove-Nonce": "another"},
        ):
            with pytest.raises(PermissionError, match="signature"):
                verify(service, headers | change)

    def test_another_secret_is_refused(self) -> None:
        with pytest.raises(PermissionError, match="different secrets"):
            verify(security(), by_hand("guessed"))

    def test_a_replay_is_refused(self) -> None:
        service, headers = security(), by_hand()
        verify(service, headers)
        with pytest.raises(PermissionError, match="has been here before"):
            verify(service, headers)
        with pytest.raises(PermissionError, match="has been here before"):
            verify(service, by_hand(nonce=headers["X-Wove-Nonce"], body=b"other"), body=b"other")

    def test_without_memory_it_is_not(self) -> None:
        service, headers = security(remember_nonces=False), by_hand()
        verify(service, headers)
        verify(service, headers)

    def test_one_of_many_threads_gets_through(self) -> None:
        service = security()
        for _ in range(20):
            headers, passed, gate = by_hand(), list[int](), threading.Barrier(8)

            def attempt(
                headers: dict[str, str] = headers, passed: list[int] = passed, gate: Any = gate
            ) -> None:
                gate.wait()
                try:
                    verify(service, headers)
                except PermissionError:
                    return
                passed.append(1)

            threads = [threading.Thread(target=attempt) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert passed == [1]

    @pytest.mark.parametrize(
        ("off", "told"), [(-400, "behind this machine's clock"), (400, "ahead of this machine")]
    )
    def test_clocks_apart(self, off: int, told: str) -> None:
        headers = by_hand(timestamp=int(time.time()) + off)
        with pytest.raises(PermissionError, match=told):
            verify(security(), headers)
        with pytest.raises(PermissionError, match=told):
            security().screen_headers(headers=headers)
        verify(security(clock_skew_seconds=500), headers)

    @pytest.mark.parametrize(
        "name", ["X-Wove-Key", "X-Wove-Timestamp", "X-Wove-Nonce", "X-Wove-Signature"]
    )
    def test_each_header_once(self, name: str) -> None:
        service, headers = security(), by_hand()
        with pytest.raises(PermissionError, match=f"{name} is missing"):
            verify(service, {each: value for each, value in headers.items() if each != name})
        with pytest.raises(PermissionError, match=f"{name} came more than once"):
            verify(service, [*headers.items(), (name.lower(), headers[name])])
        verify(service, headers)

    @pytest.mark.parametrize(
        "odd",
        [
            {"X-Wove-Timestamp": ""},
            {"X-Wove-Timestamp": "-1"},
            {"X-Wove-Timestamp": "+1700000000"},
            {"X-Wove-Timestamp": "1_7"},
            {"X-Wove-Timestamp": "nan"},
            {"X-Wove-Timestamp": "1e9"},
            {"X-Wove-Timestamp": "1700000000.5"},
            {"X-Wove-Timestamp": "9" * 5000},
            {"X-Wove-Nonce": ""},
            {"X-Wove-Nonce": "n" * 129},
            {"X-Wove-Nonce": "a b"},
            {"X-Wove-Nonce": "a,b"},
            {"X-Wove-Key": ""},
            {"X-Wove-Key": "default, default"},
            {"X-Wove-Key": "other"},
            {"X-Wove-Signature": ""},
            {"X-Wove-Signature": "v1="},
            {"X-Wove-Signature": "v2=" + "0" * 64},
            {"X-Wove-Signature": "v1=" + "0" * 63},
            {"X-Wove-Signature": "v1=" + "G" * 64},
            {"X-Wove-Signature": "\u0660" * 67},
        ],
    )
    def test_odd_values_are_refused_before_the_body_is_there(self, odd: dict[str, str]) -> None:
        service, headers = security(), by_hand() | odd
        with pytest.raises(PermissionError):
            service.screen_headers(headers=headers)
        with pytest.raises(PermissionError):
            verify(service, headers)

    def test_odd_targets_are_refused(self) -> None:
        for target in ("/a\nb", "/\ud800"):
            with pytest.raises(PermissionError, match="target"):
                verify(security(), by_hand(), target=target)
            with pytest.raises(ValueError, match="signed|surrogates"):
                security().headers_for(transport="http", target=target)

    def test_principal(self) -> None:
        assert security(key="k").principal(headers=by_hand(key="k")) == "k"
        assert security("none").principal(headers={}) == ""


class TestRotation:
    def test_old_and_new_ids(self) -> None:
        service = security(key="new", accepted=[{"key": "old", "secret": "old secret"}])
        verify(service, by_hand(key="new"))
        verify(service, by_hand("old secret", key="old"))
        for wrong in (by_hand("old secret", key="new"), by_hand(key="old")):
            with pytest.raises(PermissionError):
                verify(service, wrong)
        assert service.headers_for(transport="http", target="/")["X-Wove-Key"] == "new"

    def test_two_secrets_under_one_id(self) -> None:
        service = security(accepted=[{"secret": "old secret"}])
        verify(service, by_hand())
        verify(service, by_hand("old secret"))
        with pytest.raises(PermissionError):
            verify(service, by_hand("older secret"))
        headers = service.headers_for(transport="http", target=TARGET, body=BODY)
        verify(security(), headers)  # the first one signs

    def test_one_secret_under_two_ids_does_not_let_a_request_in_twice(self) -> None:
        service = security(key="new", accepted=[{"key": "old", "secret": SECRET}])
        headers = by_hand(key="new")
        verify(service, headers)
        with pytest.raises(PermissionError, match="has been here before"):
            verify(service, headers | {"X-Wove-Key": "old"})

    def test_tokens(self) -> None:
        service = security({"type": "bearer", "token": "new", "accepted": [{"token": "old"}]})
        for token in ("new", "old"):
            service.verify_headers(
                transport="http", target="/", headers={"authorization": f"Bearer {token}"}
            )
        assert service.headers_for(transport="http", target="/") == {"Authorization": "Bearer new"}


class TestBearer:
    SERVICE = NetworkExecutorSecurity.from_config({"type": "bearer", "token": "abc-123"})

    @pytest.mark.parametrize(
        "headers", [{"Authorization": "Bearer abc-123"}, [(b"authorization", b"bearer  abc-123")]]
    )
    def test_the_token(self, headers: Headers) -> None:
        self.SERVICE.screen_headers(headers=headers)
        self.SERVICE.verify_headers(transport="http", target="/", body=BODY, headers=headers)
        self.SERVICE.verify_metadata(transport="grpc", target="/", body=BODY, metadata=headers)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "abc-123"},
            {"Authorization": "Basic abc-123"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer abc-12"},
            {"Authorization": "Bearer abc-1234"},
            {"Authorization": "Bearer abc-123 "},
            {"Authorization": "Bearer ABC-123"},
            {"Authorization": "Bearer \xe9"},
            [("Authorization", "Bearer abc-123"), ("authorization", "Bearer abc-123")],
        ],
    )
    def test_anything_else(self, headers: Headers) -> None:
        for check in (
            lambda: self.SERVICE.screen_headers(headers=headers),
            lambda: self.SERVICE.verify_headers(
                transport="http", target="/", body=BODY, headers=headers
            ),
            lambda: self.SERVICE.verify_metadata(
                transport="grpc", target="/", body=BODY, metadata=headers
            ),
        ):
            with pytest.raises(PermissionError) as caught:
                check()
            assert "abc-123" not in str(caught.value)

    def test_principals_differ_and_do_not_tell_the_token(self) -> None:
        service = security({"type": "bearer", "token": "abc-123", "accepted": [{"token": "def"}]})
        one, two = (
            service.principal(headers={"authorization": f"Bearer {token}"})
            for token in ("abc-123", "def")
        )
        assert one != two
        assert hashlib.blake2b(b"abc-123", digest_size=16).hexdigest() != one


class TestReplies:
    KEYS: ClassVar = {"transport": "http", "target": TARGET}

    def pair(self) -> tuple[NetworkExecutorSecurity, NetworkExecutorSecurity, dict[str, str]]:
        client, service = security(sign_replies=True), security(sign_replies=True)
        headers = client.headers_for(**self.KEYS, body=BODY)
        verify(service, headers)
        return client, service, headers

    def test_there_and_back(self) -> None:
        client, service, headers = self.pair()
        for sequence in range(3):
            signature = service.reply_signature(
                **self.KEYS, headers=headers, body=b"{}", sequence=sequence
            )
            client.verify_reply(
                **self.KEYS,
                headers=headers,
                body=[b"{", b"}"],
                signature=signature,
                sequence=sequence,
            )

    def test_as_the_documentation_says(self) -> None:
        _, service, headers = self.pair()
        lines = [
            "wove-v1-reply",
            "http",
            TARGET,
            headers["X-Wove-Nonce"],
            "2",
            hashlib.sha256(b"{}").hexdigest(),
        ]
        expected = hmac.new(SECRET.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        assert (
            service.reply_signature(**self.KEYS, headers=raw, body=b"{}", sequence=2)
            == f"v1={expected}"
        )

    def test_whatever_is_changed_is_refused(self) -> None:
        client, service, headers = self.pair()
        good = service.reply_signature(**self.KEYS, headers=headers, body=b"{}")
        arguments: dict[str, Any] = {
            **self.KEYS,
            "headers": headers,
            "body": b"{}",
            "signature": good,
        }
        client.verify_reply(**arguments)
        others = client.headers_for(**self.KEYS, body=BODY)
        for changed in (
            {"body": b"{ }"},
            {"sequence": 1},
            {"target": "/other"},
            {"transport": "grpc"},
            {"headers": others},
            {"headers": {}},
            {"signature": headers["X-Wove-Signature"]},
            {"signature": "v1=\xe9"},
            {"signature": "," * 100_000},
            {"signature": ""},
            {"signature": None},
        ):
            with pytest.raises(PermissionError):
                client.verify_reply(**(arguments | changed))

    def test_an_unsigned_reply_is_refused_with_the_remedy(self) -> None:
        client, _, headers = self.pair()
        with pytest.raises(PermissionError, match="set it in the service's security as well"):
            client.verify_reply(**self.KEYS, headers=headers, body=b"{}", signature=None)

    def test_in_the_midst_of_a_rotation_each_client_can_verify(self) -> None:
        service = security(
            sign_replies=True, accepted=[{"secret": "old"}, {"key": "older", "secret": "older"}]
        )
        for secret, key in ((SECRET, "default"), ("old", "default"), ("older", "older")):
            client = security(
                {"type": "signed", "secret": secret, "key": key, "sign_replies": True}
            )
            headers = client.headers_for(**self.KEYS)
            signature = service.reply_signature(**self.KEYS, headers=headers, body=b"{}")
            client.verify_reply(**self.KEYS, headers=headers, body=b"{}", signature=signature)

    def test_where_replies_are_not_signed_nothing_is_looked_at(self) -> None:
        for each in (security(), security("none"), security({"type": "bearer", "token": "t"})):
            assert each.signs_replies is False
            assert each.reply_signature(**self.KEYS, headers={}, body=b"") is None
            each.verify_reply(**self.KEYS, headers={}, body=b"", signature=None)


def test_none_lets_everything_through() -> None:
    for config in (None, "none", {"type": "none"}):
        each = NetworkExecutorSecurity.from_config(config)
        assert (each.kind, each.authenticates) == ("none", False)
        assert each.headers_for(transport="http", target="/", body=b"") == {}
        assert each.metadata_for(transport="grpc", target="/", body=b"") == []
        each.screen_headers(headers={"x": "\xe9"})
        each.verify_headers(transport="http", target="/", body=b"", headers=[("x", "y")])


ODD_TEXT = st.one_of(
    st.text(max_size=40),
    st.text("0123456789", max_size=40),
    st.text("0123456789abcdefv=", max_size=80),
    st.sampled_from(
        [
            "default",
            "v1=" + "0" * 64,
            "Bearer abc",
            "bearer",
            "NaN",
            "\x00",
            "\ud800",
            "\u0661",
            "9" * 5000,
        ]
    ),
    st.builds(lambda: str(int(time.time()))),
)
ODD_VALUE = st.one_of(
    ODD_TEXT, st.binary(max_size=40), st.none(), st.integers(), st.lists(ODD_TEXT, max_size=2)
)
NAMES = [
    "X-Wove-Key",
    "x-wove-timestamp",
    "X-WOVE-NONCE",
    "x-Wove-Signature",
    "authorization",
    "Authorization",
]
ODD_NAME = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from([name.encode() for name in NAMES]),
    st.text(max_size=10),
    st.none(),
)
ODD_HEADERS = st.one_of(
    st.dictionaries(ODD_NAME, ODD_VALUE, max_size=8),
    st.lists(st.tuples(ODD_NAME, ODD_VALUE), max_size=8),
    st.lists(st.one_of(st.tuples(ODD_NAME), ODD_VALUE), max_size=3),
    st.fixed_dictionaries(dict.fromkeys(NAMES[:5], ODD_VALUE)),
    ODD_VALUE,
)


class TestFuzz:
    SERVICES = (
        NetworkExecutorSecurity.from_config(
            {"type": "signed", "secret": SECRET, "sign_replies": True}
        ),
        NetworkExecutorSecurity.from_config({"type": "bearer", "token": SECRET.replace(" ", "-")}),
    )

    @settings(max_examples=600, deadline=None)
    @given(ODD_HEADERS, ODD_TEXT, st.binary(max_size=20))
    def test_odd_headers_are_permission_errors_and_nothing_else(
        self, headers: Any, target: str, body: bytes
    ) -> None:
        for service in self.SERVICES:
            with pytest.raises(PermissionError):
                service.verify_headers(transport="http", target=target, body=body, headers=headers)
            with pytest.raises(PermissionError):
                service.verify_metadata(
                    transport="grpc", target=target, body=body, metadata=headers
                )
        with pytest.raises(PermissionError):
            self.SERVICES[1].screen_headers(headers=headers)

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(NAMES[:4]), ODD_VALUE, st.booleans())
    def test_one_odd_header_among_right_ones(self, name: str, value: Any, added: bool) -> None:
        right = {each.lower(): held for each, held in by_hand().items()}
        headers = [*right.items(), (name, value)] if added else {**right, name.lower(): value}
        if added or right[name.lower()] != value:
            with pytest.raises(PermissionError):
                verify(self.SERVICES[0], headers)

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.none(), ODD_TEXT), st.binary(max_size=20))
    def test_odd_signatures_of_replies(self, signature: str | None, body: bytes) -> None:
        headers = by_hand()
        with pytest.raises(PermissionError):
            self.SERVICES[0].verify_reply(
                transport="http", target=TARGET, headers=headers, body=body, signature=signature
            )


class TestConfig:
    def test_an_environment_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WOVE_TEST_SECRET", SECRET)
        for config in (
            "env:WOVE_TEST_SECRET",
            {"type": "signed", "secret_env": "WOVE_TEST_SECRET"},
            {"type": "signed", "secret": "other", "accepted": ["env:WOVE_TEST_SECRET"]},
        ):
            verify(security(config), by_hand())
        assert security("env:WOVE_TEST_SECRET").kind == "signed"
        monkeypatch.setenv("WOVE_TEST_TOKEN", "t")
        token = security({"type": "bearer", "token_env": "WOVE_TEST_TOKEN"})
        assert token.headers_for(transport="http", target="/") == {"Authorization": "Bearer t"}

    def test_bytes_of_any_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(os.environb, b"WOVE_TEST_SECRET", b"\xff\xfe raw")
        verify(
            security({"type": "signed", "secret": b"\xff\xfe raw"}),
            security("env:WOVE_TEST_SECRET").headers_for(
                transport="http", target=TARGET, body=BODY
            ),
        )

    def test_an_instance_is_itself(self) -> None:
        each = security()
        assert security(each) is each
        assert wove.NetworkExecutorSecurity is NetworkExecutorSecurity

    @pytest.mark.parametrize(
        ("config", "kind", "told"),
        [
            (
                "env:WOVE_TEST_UNSET",
                ValueError,
                "environment variable WOVE_TEST_UNSET is not set. Set it",
            ),
            ("env:WOVE_TEST_EMPTY", ValueError, "environment variable WOVE_TEST_EMPTY is empty"),
            ("env:WOVE_TEST_BLANK", ValueError, "environment variable WOVE_TEST_BLANK is empty"),
            ("env:", ValueError, "not a name of an environment variable"),
            ("env: SPACE", ValueError, "not a name of an environment variable"),
            ("hunter2", ValueError, "not a text of 7 characters"),
            ("", ValueError, "not a text of 0 characters"),
            (5, TypeError, "not of type int"),
            (["signed"], TypeError, "not of type list"),
            ({}, ValueError, "'type' must be 'signed', 'bearer' or 'none', and is missing"),
            ({"type": "singed", "secret": "s"}, ValueError, "Did you mean 'signed'"),
            ({"type": None}, ValueError, "'type' must be"),
            ({"type": "none", "secret": "s"}, ValueError, "of type none has no key 'secret'"),
            ({"type": "signed"}, ValueError, "needs either 'secret_env'"),
            ({"type": "signed", "secret": "s", "secret_env": "S"}, ValueError, "both are given"),
            ({"type": "signed", "secrte": "s"}, ValueError, "Did you mean 'secret'"),
            ({"type": "signed", 5: "s"}, ValueError, "has no key 5"),
            ({"type": "signed", "secret": ""}, ValueError, "'secret' is empty"),
            ({"type": "signed", "secret": b"  "}, ValueError, "'secret' is empty"),
            ({"type": "signed", "secret": 5}, TypeError, "'secret' must be text or bytes"),
            ({"type": "signed", "secret": "env:NAME"}, ValueError, "give that as 'secret_env'"),
            ({"type": "signed", "secret": "\ud800"}, ValueError, "give it as bytes"),
            ({"type": "signed", "secret_env": b"S"}, TypeError, "'secret_env' must be text"),
            (
                {"type": "signed", "secret": "s", "key": ""},
                ValueError,
                "'key' must be 1 to 128 letters",
            ),
            (
                {"type": "signed", "secret": "s", "key": "a b"},
                ValueError,
                "'key' must be 1 to 128 letters",
            ),
            ({"type": "signed", "secret": "s", "key": 1}, TypeError, "'key' must be text"),
            (
                {"type": "signed", "secret": "s", "clock_skew_seconds": 0},
                ValueError,
                "'clock_skew_seconds' must be",
            ),
            (
                {"type": "signed", "secret": "s", "clock_skew_seconds": True},
                TypeError,
                "'clock_skew_seconds' must be",
            ),
            (
                {"type": "signed", "secret": "s", "clock_skew_seconds": "1"},
                TypeError,
                "'clock_skew_seconds' must be",
            ),
            (
                {"type": "signed", "secret": "s", "remember_nonces": 1},
                TypeError,
                "'remember_nonces' must be True",
            ),
            (
                {"type": "signed", "secret": "s", "sign_replies": "no"},
                TypeError,
                "'sign_replies' must be True",
            ),
            (
                {"type": "signed", "secret": "s", "accepted": "old"},
                TypeError,
                "'accepted' must be a list of dicts",
            ),
            (
                {"type": "signed", "secret": "s", "accepted": ["old"]},
                TypeError,
                "entry 0: 'accepted' must be a list",
            ),
            (
                {"type": "signed", "secret": "s", "accepted": [{}]},
                ValueError,
                "entry 0 needs either 'secret_env'",
            ),
            (
                {"type": "signed", "secret": "s", "accepted": [{"kye": 1}]},
                ValueError,
                "Did you mean 'key'",
            ),
            ({"type": "bearer"}, ValueError, "needs either 'token_env'"),
            ({"type": "bearer", "token": "a\n"}, ValueError, "Look for a line break"),
            ({"type": "bearer", "token": "a b"}, ValueError, "no header can carry"),
            (
                {"type": "bearer", "token": "a", "sign_replies": True},
                ValueError,
                "of type bearer has no key",
            ),
            (
                {"type": "bearer", "token": "a", "accepted": [{"token": "\xe9"}]},
                ValueError,
                "no header can carry",
            ),
        ],
    )
    def test_mistakes(
        self, config: Any, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WOVE_TEST_UNSET", raising=False)
        monkeypatch.setenv("WOVE_TEST_EMPTY", "")
        monkeypatch.setenv("WOVE_TEST_BLANK", " \n")
        with pytest.raises(kind) as caught:
            security(config)
        assert str(caught.value).startswith(WHAT)
        assert told in str(caught.value)
        assert "hunter2" not in str(caught.value)


class TestSecretsStayInside:
    SECRETS = ("s3cr3t-one", "s3cr3t-two", "s3cr3t-tok")

    def instances(self) -> list[NetworkExecutorSecurity]:
        one, two, token = self.SECRETS
        return [
            security(
                {"type": "signed", "secret": one, "accepted": [{"key": "old", "secret": two}]}
            ),
            security({"type": "bearer", "token": token, "accepted": [{"token": two}]}),
        ]

    def test_in_no_text(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        for each in self.instances():
            texts = [
                repr(each),
                str(each),
                f"{each!r}",
                repr(vars(type(each))),
                repr({"a": [each]}),
            ]
            for headers in (
                {},
                {"authorization": "Bearer nope"},
                by_hand("nope"),
                by_hand("nope", key="old"),
            ):
                try:
                    verify(each, headers)
                except PermissionError as error:
                    texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
            settings_of = each._settings  # the one place where they are
            texts += [repr(settings_of), caplog.text]
            assert not any("s3cr3t" in text for text in texts)

    def test_repr_says_what_helps(self) -> None:
        assert [repr(each) for each in self.instances()] == [
            "<NetworkExecutorSecurity signed key='default' accepts=['old']>",
            "<NetworkExecutorSecurity bearer>",
        ]

    def test_not_in_a_pickle(self) -> None:
        for each in self.instances():
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match="secret_env"):
                    pickle.dumps(each, protocol)
        with pytest.raises(TypeError, match="secret_env"):
            pickle.dumps(
                security(
                    {"type": "signed", "secret_env": "PATH", "accepted": [{"secret": "s3cr3t"}]}
                )
            )

    def test_names_of_variables_pickle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WOVE_TEST_SECRET", SECRET)
        for config in (
            "env:WOVE_TEST_SECRET",
            {
                "type": "signed",
                "secret_env": "WOVE_TEST_SECRET",
                "key": "k",
                "accepted": ["env:WOVE_TEST_SECRET"],
            },
            "none",
        ):
            each = security(config)
            pickled = pickle.dumps(each)
            assert SECRET.encode() not in pickled
            again = pickle.loads(pickled)
            assert repr(again) == repr(each)
            verify(again, each.headers_for(transport="http", target=TARGET, body=BODY))
        pickled = pickle.dumps(security("env:WOVE_TEST_SECRET"))
        monkeypatch.delenv("WOVE_TEST_SECRET")
        with pytest.raises(ValueError, match="WOVE_TEST_SECRET is not set"):
            pickle.loads(pickled)

    def test_a_copy_is_the_same_one(self) -> None:
        """With a memory of its own, it would let a request through once more."""
        each = security()
        assert copy.copy(each) is each
        assert copy.deepcopy({"security": each})["security"] is each


FORKS = """
import os, threading
from wove.security import NetworkExecutorSecurity

service = NetworkExecutorSecurity.from_config({"type": "signed", "secret": "s" * 16})
over = threading.Event()

def once():
    headers = service.headers_for(transport="http", target="/")
    service.verify_headers(transport="http", target="/", headers=headers)

def busy():
    while not over.is_set():
        once()

threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    for _ in range(20):
        child = os.fork()
        if not child:
            once()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
finally:
    over.set()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_can_go_on() -> None:
    """Whatever the other threads did at the moment of the fork."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_digest_is_text_that_says_so() -> None:
    assert isinstance(digest(b""), Digest)


def test_a_variable_may_hold_the_whole_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEW", "the new secret")
    monkeypatch.setenv(
        "WHOLE", '{"type": "signed", "secret_env": "NEW", "key": "2", "sign_replies": true}'
    )
    whole = NetworkExecutorSecurity.from_config("env:WHOLE")
    assert (
        whole.signs_replies
        and repr(whole) == "<NetworkExecutorSecurity signed key='2' sign_replies>"
    )
    again = pickle.loads(pickle.dumps(whole))
    headers = again.headers_for(transport="http", target="/")
    whole.verify_headers(transport="http", target="/", headers=headers)
    monkeypatch.setenv("WHOLE", '{"type": "signed", "secrte_env": "NEW"}')
    with pytest.raises(ValueError, match=r"the JSON in WHOLE.*'secrte_env'"):
        NetworkExecutorSecurity.from_config("env:WHOLE")


def test_a_secret_may_begin_with_a_brace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "{not JSON")
    odd = NetworkExecutorSecurity.from_config("env:ODD")
    same = NetworkExecutorSecurity.from_config({"type": "signed", "secret": "{not JSON"})
    same.verify_headers(
        transport="http", target="/", headers=odd.headers_for(transport="http", target="/")
    )


def test_a_short_secret_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WOVE_TEST_SHORT", "s" * 15)
    for config in ("env:WOVE_TEST_SHORT", {"type": "signed", "secret_env": "WOVE_TEST_SHORT"}):
        caplog.clear()
        label = f"the test of {config}"
        for _ in range(2):
            NetworkExecutorSecurity.from_config(config, label=label)
        [record] = caplog.records
        assert "WOVE_TEST_SHORT is shorter than 16 bytes" in record.getMessage()
        assert "sss" not in record.getMessage()
    caplog.clear()
    monkeypatch.setenv("WOVE_TEST_SHORT", "s" * 16)
    NetworkExecutorSecurity.from_config("env:WOVE_TEST_SHORT", label="another test")
    assert not caplog.records


def test_one_secret_cannot_push_out_the_nonces_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.security.MAX_NONCES", 20)
    service = security(key="a", accepted=[{"key": "b", "secret": "the other secret"}])
    first = by_hand(key="a")
    verify(service, first)
    for _ in range(100):
        with contextlib.suppress(PermissionError):
            verify(service, by_hand("the other secret", key="b"))
    with pytest.raises(PermissionError, match="been here before"):
        verify(service, first)
    verify(service, by_hand(key="a"))
