"""What the ``callback_*`` keys may be, and what workers are told."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from wove.callback.address import Address, read_address

WHAT = "environment 'reports'"


def read(**config: Any) -> Address:
    return read_address({f"callback_{name}": value for name, value in config.items()}, label=WHAT)


def test_nothing_is_required() -> None:
    first, second = read(), read()
    assert (first.host, first.ports, first.url) == ("127.0.0.1", range(1), None)
    assert len(first.token) >= 32 and first.token != second.token
    assert first.url_for(9010) == f"http://127.0.0.1:9010/wove/events/{first.token}"


@pytest.mark.parametrize(
    ("value", "ports"),
    [(None, range(1)), (0, range(1)), (9010, range(9010, 9011)), ("9010", range(9010, 9011)),
     ("9010-9019", range(9010, 9020)), (" 9010 - 9010 ", range(9010, 9011)), (65535, range(65535, 65536))],
)  # fmt: skip
def test_ports(value: object, ports: range) -> None:
    assert read(port=value).ports == ports


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (True, TypeError, "must be a port, 0 for any, or a range"),
        (1.5, TypeError, "must be a port"),
        (-1, ValueError, "must be a port"),
        (65536, ValueError, "65536 is not a port; 65535 is the highest"),
        ("http", ValueError, "must be a port"),
        ("9019-9010", ValueError, "is not a range: give the lower port first"),
        ("0-10", ValueError, "is not a range"),
        ("1000-60000", ValueError, "more than 10000 ports"),
        ("9010,9011", ValueError, "must be a port"),
    ],
)
def test_what_is_no_port(value: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        read(port=value)
    assert str(caught.value).startswith(f"{WHAT}: executor_config 'callback_port'")
    assert says in str(caught.value)


def test_the_url_of_the_seed_page() -> None:
    url = "http://web:9010/wove/events/shared-secret"
    address = read(host="0.0.0.0", port=9010, token="shared-secret", url=url)
    assert address == Address("0.0.0.0", range(9010, 9011), url, "shared-secret")
    assert address.url_for(9010) == url


@pytest.mark.parametrize(
    "url", ["http://web:9010/wove/events/abc", "https://web/in/front/wove/events/abc/"]
)
def test_the_token_may_be_given_by_the_url_alone(url: str) -> None:
    address = read(url=url)
    assert address.token == "abc"
    assert address.url_for(1) == url


def test_a_template() -> None:
    address = read(url="http://web:{port}/wove/events/{token}", port="9010-9019", token="abc")
    assert address.url_for(9012) == "http://web:9012/wove/events/abc"
    made = read(url="http://web:{port}/wove/events/{token}")
    assert made.url_for(1) == f"http://web:1/wove/events/{made.token}" and len(made.token) >= 32


@pytest.mark.parametrize("url", ["http://web:9010", "http://web:9010/"])
def test_a_url_without_a_path_gets_one(url: str) -> None:
    assert read(url=url, token="abc").url_for(1) == "http://web:9010/wove/events/abc"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"url": "http://web/wove/events/a", "token": "b"}, "ends in another token"),
        ({"url": "http://web/hooks/wove"}, "set executor_config 'callback_token' as well"),
        (
            {"url": "http://web/{host}/{token}"},
            "may hold {port} and {token}, and nothing else in braces",
        ),
        ({"url": "ftp://web/wove/events/a"}, "must begin with http:// or https://"),
        ({"url": "web:9010/wove/events/a"}, "must begin with http:// or https://"),
        ({"url": "http:///wove/events/a"}, "http://web:9010/wove/events/{token}"),
        (
            {"url": "http://0.0.0.0:9010/wove/events/a"},
            "is an address to listen on (callback_host)",
        ),
        ({"url": "http://[::]:9010/wove/events/a"}, "is an address to listen on (callback_host)"),
        ({"url": "http://web/wove/events/%20"}, "a token is made of letters, digits"),
        ({"token": "a/b"}, "letters, digits or . _ ~ -"),
        ({"token": ""}, "is an empty text"),
        ({"host": "a b"}, "must be a name or an address"),
        ({"host": "fe80::1%eth0"}, "with a zone in 'callback_host' a 'callback_url' is needed"),
    ],
)
def test_what_cannot_be(config: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=WHAT) as caught:
        read(**config)
    assert says in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_nobody_is_told_to_call_everywhere(host: str) -> None:
    url = read(host=host, token="t").url_for(9010)
    called = url.removeprefix("http://").removesuffix(":9010/wove/events/t")
    assert called not in ("0.0.0.0", "[::]", "::", "")
    if called != socket.gethostname():
        family = socket.AF_INET6 if called.startswith("[") else socket.AF_INET
        with socket.socket(family) as sock:
            sock.bind((called.strip("[]"), 0))  # it is this machine's


def test_ipv6_goes_into_brackets() -> None:
    assert read(host="::1", token="t").url_for(1) == "http://[::1]:1/wove/events/t"
    assert read(host="[::1]", token="t").host == "::1"
