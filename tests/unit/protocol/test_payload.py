from __future__ import annotations

import json
from typing import Any

import pytest

from wove.protocol.frames import FrameError
from wove.protocol.payload import Claim, build, claim_url, digest, parse, size_of
from wove.protocol.pickling import dumps, loads
from wove.security import NetworkExecutorSecurity

URL = "http://127.0.0.1:9010/wove/events/token"

FRAME = {
    "type": "run_task",
    "run_id": "r-1",
    "task_id": "pdf",
    "callable_pickle": dumps(len, label="f"),
    "callable_id": "abc",
    "args_pickle": dumps({"item": "x" * 10}, label="args"),
    "delivery": {"delivery_orphan_policy": "cancel"},
    "deadline": 12.5,
    "python": "3.11",
    "wove": "3.0.0.dev0",
}


def made(**options: Any) -> dict[str, Any]:
    return build(
        FRAME, adapter="celery", callback_url=URL, sent_at=1000.0, retry_seconds=60.0, **options
    )


def test_there_and_back() -> None:
    payload = made(beat_seconds=2.0, environment="reports", valid_until=1060.0)
    assert payload["version"] == 1 and payload["task_name"] == "pdf"
    for form in (payload, json.dumps(payload), json.dumps(payload).encode()):
        found = parse(form)
        assert found.adapter == "celery" and found.callback_url == URL and found.claims == {}
        assert (found.sent_at, found.retry_seconds, found.beat_seconds) == (1000.0, 60.0, 2.0)
        assert (found.environment, found.valid_until) == ("reports", 1060.0)
        assert loads(found.frame["args_pickle"], label="args") == {"item": "x" * 10}
        assert loads(found.frame["callable_pickle"], label="f") is len
        same = ("type", "run_id", "task_id", "delivery", "deadline", "python", "callable_id")
        assert {name: found.frame[name] for name in same} == {name: FRAME[name] for name in same}


def test_a_claim_stands_for_what_is_not_sent() -> None:
    claim = Claim("r-1-arguments", "ab" * 32, 12)
    payload = made(claims={"args_pickle": claim})
    assert "args_pickle" not in payload
    found = parse(json.dumps(payload))
    assert found.claims == {"args_pickle": claim}
    assert "args_pickle" not in found.frame and "callable_pickle" in found.frame


def test_sizes_are_those_of_base64() -> None:
    payload = made()
    assert size_of(FRAME) == {
        name: len(payload[name]) for name in ("callable_pickle", "args_pickle")
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "has version 2, and this worker knows version 1"),
        ({"run_id": ""}, "without a run_id"),
        ({"callback_url": "ftp://x"}, "no callback_url that can be posted to: 'ftp://x'"),
        ({"callback_url": None}, "no callback_url"),
        ({"args_pickle": 7}, "the args_pickle of run r-1 is not base64"),
        ({"args_pickle": "a"}, "the args_pickle of run r-1 is not base64"),
        ({"claims": {"args_pickle": {"id": "x"}}}, "the claims of run r-1 cannot be read"),
        ({"claims": [1]}, "the claims of run r-1 cannot be read"),
    ],
)
def test_what_is_no_payload_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FrameError, match=said):
        parse({**made(), **change})


@pytest.mark.parametrize("form", [7, None, "no json", b"[1]", "7"])
def test_other_things_are_no_payloads(form: object) -> None:
    with pytest.raises(FrameError, match="payload"):
        parse(form)


def test_the_digest_is_the_same_in_any_order_and_form_and_covers_everything() -> None:
    payload = made(claims={"args_pickle": Claim("a", "b", 1)})
    turned = dict(reversed(json.loads(json.dumps(payload)).items()))
    assert digest(payload) == digest(turned) == parse(turned).digest
    assert digest({**payload, "signature": {"key": "k", "value": "v"}}) == digest(payload)
    for name in payload:
        assert digest({**payload, name: "changed"}) != digest(payload)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (URL, f"{URL}/claims/c1"),
        ("https://web/w/wove/events/t/?zone=1", "https://web/w/wove/events/t/claims/c1?zone=1"),
    ],
)
def test_claims_are_below_the_callback_url(url: str, found: str) -> None:
    assert claim_url(url, "c1") == found


# ----------------------------------------------------------------------------------------------- signatures


def signed(secret: str = "one", **more: Any) -> NetworkExecutorSecurity:
    return NetworkExecutorSecurity.from_config({"type": "signed", "secret": secret, **more})


def verify(security: NetworkExecutorSecurity, payload: dict[str, Any]) -> None:
    found = parse(payload)
    security.verify_payload(
        adapter=found.adapter,
        run_id=found.frame["run_id"],
        body=found.digest,
        signature=found.signature,
    )


def sign(security: NetworkExecutorSecurity, payload: dict[str, Any]) -> dict[str, Any]:
    signature = security.payload_signature(adapter="celery", run_id="r-1", body=digest(payload))
    return payload if signature is None else {**payload, "signature": signature}


def test_a_signature_is_good_however_often_and_late() -> None:
    payload = sign(signed(clock_skew_seconds=1), made())
    for _ in range(2):
        verify(signed(clock_skew_seconds=1), json.loads(json.dumps(payload)))


def test_keys_can_be_rotated() -> None:
    old, new = (
        signed("old", key="2025"),
        signed("new", key="2026", accepted=[{"key": "2025", "secret": "old"}]),
    )
    verify(new, sign(old, made()))
    verify(new, sign(new, made()))
    with pytest.raises(PermissionError, match="the key '2026'"):
        verify(old, sign(new, made()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_id": "other"}, "is not right for key 'default'"),
        ({"callback_url": "http://evil/wove/events/t"}, "is not right"),
        ({"signature": None}, "the payload is not signed"),
        ({"signature": "v1=00"}, "the payload is not signed"),
        ({"signature": {"key": "default", "value": 7}}, "is not known here"),
        ({"signature": {"key": ["default"], "value": "v1=00"}}, "is not known here"),
        ({"signature": {"key": "nobody", "value": "v1=00"}}, "the key 'nobody'"),
        ({"signature": {"key": "default", "value": "v1=\u00e9"}}, "is not right"),
        ({"run_id": "r-1\n"}, "cannot be signed"),
    ],
)
def test_what_is_not_right_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PermissionError, match=said):
        verify(signed(), {**sign(signed(), made()), **change})
    with pytest.raises(PermissionError):
        verify(signed("another"), sign(signed(), made()))


def test_a_bearer_token_signs_nothing() -> None:
    bearer = NetworkExecutorSecurity.from_config({"type": "bearer", "token": "for-a-test"})
    with pytest.raises(ValueError, match="a bearer token signs nothing"):
        sign(bearer, made())
    with pytest.raises(PermissionError, match="cannot verify a payload"):
        verify(bearer, made())


def test_without_security_nothing_is_signed_or_refused() -> None:
    none = NetworkExecutorSecurity.from_config(None)
    assert "signature" not in sign(none, made())
    verify(none, sign(signed(), made()))


@pytest.mark.parametrize("value", ["soon", -1, True, [1]])
def test_an_end_of_validity_that_is_not_a_time_is_refused(value: object) -> None:
    with pytest.raises(FrameError, match="an end of validity that is not a time"):
        parse({**made(), "valid_until": value})
