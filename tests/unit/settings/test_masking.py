"""What people get to see of `executor_config`: everything but the secrets."""

from __future__ import annotations

from typing import Any

import pytest

from wove.settings.masking import masked


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("broker_url", "amqp://app:pw@host:5672/v", "amqp://app:***@host:5672/v"),
        ("broker_url", "redis://:pw@host/0", "redis://:***@host/0"),
        ("broker_url", ["redis://:pw@a", "redis://b"], ["redis://:***@a", "redis://b"]),
        ("url", "https://h/t?api_key=abc&x=1", "https://h/t?api_key=***&x=1"),
        ("callback_url", "http://web:9010/wove/events/abc", "http://web:9010/wove/events/***"),
        ("callback_url", "http://w/wove/events/{token}", "http://w/wove/events/{token}"),
        ("callback_token", "abc", "***"),
        ("password", 1234, "***"),
        ("security", "env:WOVE_SECRET", "env:WOVE_SECRET"),
        ("security", "none", "none"),
        ("security", '{"secret": "abc"}', "***"),
        ("security", {"secret_env": "S", "key": "k"}, {"secret_env": "S", "key": "k"}),
        ("security", {"type": "signed", "secret": "abc"}, {"type": "signed", "secret": "***"}),
        (
            "headers",
            {"Authorization": "Bearer x", "X-P": "y"},
            {"Authorization": "***", "X-P": "y"},
        ),
        ("client_key", "/etc/key.pem", "/etc/key.pem"),
        ("client_key", "-----BEGIN PRIVATE KEY-----", "***"),
        (
            "environment",
            [{"name": "DB_PASSWORD", "value": "x"}],
            [{"name": "DB_PASSWORD", "value": "***"}],
        ),
        ("root_certificates", b"abc", "3 bytes"),
        ("processes", 2, 2),
        ("insecure", True, True),
    ],
)
def test_masked(name: str, value: Any, shown: Any) -> None:
    assert masked(name, value) == shown


def test_an_object_is_the_name_of_its_type() -> None:
    class Client:
        def __repr__(self) -> str:
            return "Client(password='abc')"

    assert masked("client", Client()).endswith("Client>")
    assert "abc" not in masked("client", Client())
