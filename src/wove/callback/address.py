"""The address of the receiver, and the URL for workers: the ``callback_*`` keys of ``executor_config``."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from wove.graph.rules import shown
from wove.security.endpoints import parse_url
from wove.settings.config_readers import text

__all__ = ["KEYS", "PATH", "Address", "read_address"]

KEYS: Final = ("callback_host", "callback_port", "callback_url", "callback_token")
"""The keys of ``executor_config`` that are read here."""

PATH: Final = "/wove/events/"
"""The part of every request's path that comes before the token."""

EVERYWHERE: Final = frozenset({"0.0.0.0", "::", "0:0:0:0:0:0:0:0"})
MAX_PORTS: Final = 10_000
HIGHEST_PORT: Final = 65_535

# RFC 3986, 2.3: what no client percent-encodes.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{1,200}")
_RANGE: Final = re.compile(r"\s*([0-9]{1,5})\s*(?:-\s*([0-9]{1,5})\s*)?")
_IN_PATH: Final = re.compile(rf"{PATH}([^/?]+)/?")
_EXAMPLE: Final = "http://web:9010/wove/events/{token}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a receiver listens, and the URL that workers are given.

    Attributes:
        host: A name or an address, without brackets.
        ports: The first free one of these is used; port 0 is any free port.
        url: The URL for workers, with ``{port}`` and ``{token}`` as placeholders; ``None``: it is made of the other
            parts.
        token: The end of the path. Requests without it are refused.
    """

    host: str
    ports: range
    url: str | None
    token: str

    def url_for(self, port: int) -> str:
        """Return the URL for payloads; *port* is the port that is listened on.

        Without a `url`, and when all interfaces are listened on, it has the address of the one through which this
        machine reaches others; if there is none, the machine's name.

        Example:
            >>> Address("::1", range(1), None, "secret").url_for(9010)
            'http://[::1]:9010/wove/events/secret'
        """
        if self.url is not None:
            return self.url.replace("{port}", str(port)).replace("{token}", self.token)
        host = self.host
        if host in EVERYWHERE:
            host = _outgoing(v6=":" in host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}{self.token}"


def read_address(config: Mapping[str, Any], *, label: str) -> Address:
    """Read and check the ``callback_*`` keys.

    Args:
        config: The ``executor_config``: ``callback_host`` (default ``"127.0.0.1"``); ``callback_port`` (default 0,
            any; a number; or ``"9010-9019"``, the first that is free); ``callback_url`` (default: made of the
            others); ``callback_token`` (default: that of the URL, or else a new one).
        label: What messages begin with: ``"environment 'reports'"``.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of range, or two of them contradict each other.

    Example:
        >>> read_address({"callback_port": "9010-9019", "callback_token": "secret"}, what="environment 'reports'")
        Address(host='127.0.0.1', ports=range(9010, 9020), url=None, token='secret')
    """
    host = text(config, "callback_host", "127.0.0.1", label=label)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
        raise ValueError(
            f"{label}: executor_config 'callback_host' must be a name or an address, not {host!r:.200}"
        )

    ports = _ports(config.get("callback_port"), f"{label}: executor_config 'callback_port'")
    token = text(config, "callback_token", label=label)
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError(
            f"{label}: executor_config 'callback_token' goes into the path of a URL: it must be 1 to 200 letters, "
            "digits or . _ ~ -"
        )

    url = text(config, "callback_url", label=label)
    if url is None:
        if "%" in host:  # RFC 4007, 11.2: a zone means something to this machine only
            raise ValueError(
                f"{label}: with a zone in 'callback_host' a 'callback_url' is needed, for others to call"
            )
        return Address(host, ports, None, token or secrets.token_urlsafe(24))

    url, token = _url(url, token, f"{label}: executor_config 'callback_url'", label)
    return Address(host, ports, url, token)


def _ports(value: object, label: str) -> range:
    if value is None:
        return range(1)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(
            f'{label} must be a port, 0 for any, or a range such as "9010-9019", not {shown(value)}'
        )

    match = _RANGE.fullmatch(str(value))
    if match is None:
        raise ValueError(
            f'{label} must be a port, 0 for any, or a range such as "9010-9019", not {shown(value)}'
        )

    first, last = int(match[1]), int(match[2] or match[1])
    if last > HIGHEST_PORT:
        raise ValueError(f"{label}: {last} is not a port; {HIGHEST_PORT} is the highest")
    if match[2] and not 0 < first <= last:
        raise ValueError(
            f'{label}: {shown(value)} is not a range: give the lower port first, as in "9010-9019"'
        )

    if last - first >= MAX_PORTS:
        raise ValueError(f"{label}: {shown(value)} has more than {MAX_PORTS} ports")
    return range(first, last + 1)


def _url(url: str, token: str | None, key_label: str, label: str) -> tuple[str, str]:
    """Return the template of the URL, and the token."""
    filled = url.replace("{port}", "1").replace("{token}", "t")
    if "{" in filled or "}" in filled:
        raise ValueError(
            f"{key_label} may hold {{port}} and {{token}}, and nothing else in braces: {url!r:.200}"
        )

    parts = parse_url(filled, ("http", "https"), label=label, key="callback_url", example=_EXAMPLE)
    if parts.host in EVERYWHERE:
        raise ValueError(
            f"{key_label}: {parts.host} is an address to listen on (callback_host), and none that a worker can call: "
            "give this machine's name or address"
        )

    if urlsplit(url).path in ("", "/"):
        return url.rstrip("/") + PATH + "{token}", token or secrets.token_urlsafe(24)
    if "{token}" in url:
        return url, token or secrets.token_urlsafe(24)
    found = _IN_PATH.search(urlsplit(url).path)
    if found is not None and found.end() == len(urlsplit(url).path):
        if token is not None and token != found[1]:
            raise ValueError(
                f"{key_label} ends in another token than executor_config 'callback_token' says: leave one of the two "
                "out, or write {token} in the URL"
            )
        if not _TOKEN.fullmatch(found[1]):
            raise ValueError(
                f"{key_label}: a token is made of letters, digits and . _ ~ -, and what it ends in is not"
            )
        return url, found[1]

    if token is None:
        raise ValueError(
            f"{key_label} does not end in {PATH}{{token}}: whatever passes its requests on has to know the token, so "
            "set executor_config 'callback_token' as well"
        )

    return url, token


def _outgoing(*, v6: bool) -> str:
    """Return the address of the interface that leads out. Connecting a UDP socket picks the route and sends nothing."""
    # RFC 5737 and RFC 3849: addresses for documentation, which nobody has.
    tries = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]
    for family, far in tries[:: -1 if v6 else 1]:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                found = str(probe.getsockname()[0])
        except OSError:
            continue
        if found not in EVERYWHERE and "%" not in found:
            return found

    return socket.gethostname()
