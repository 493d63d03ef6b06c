"""Whom the network executors may talk to, and everything else that their configurations share.

Checks only: nothing here opens a connection. Messages begin with *label*, such as ``"environment 'workers'"``.
How keys are read is in `wove.settings.config_readers`, certificates are in `wove.net.tls`; executors take
both from here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from wove.graph import rules
from wove.net.tls import PEM, TLSFiles
from wove.settings.config_readers import (
    check_keys,
    flag,
    header_items,
    metadata_items,
    number,
    text,
    tls_files,
    whole,
)

if TYPE_CHECKING:
    from wove.security import NetworkExecutorSecurity

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PEM",
    "SHARED_KEYS",
    "URL",
    "TLSFiles",
    "check_keys",
    "flag",
    "grpc_hosts",
    "header_items",
    "is_local",
    "metadata_items",
    "number",
    "parse_url",
    "refuse_exposed",
    "text",
    "tls_files",
    "whole",
]

MAX_MESSAGE_BYTES: Final = 512 * 1024 * 1024
"""The default of ``max_message_bytes``: the largest message that is taken, in bytes."""

SHARED_KEYS: Final = (
    "security",
    "insecure",
    "max_message_bytes",
    "root_certificates",
    "client_certificate",
    "client_key",
    "busy_timeout",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)
"""Keys of ``executor_config`` that every network executor has."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# RFC 3986, section 3.2.2, and RFC 6874: a zone means something to one machine only.
_NETLOC: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)(:[0-9]*)?")
_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def is_local(host: str) -> bool:
    """Whether *host* can only be this machine.

    ``localhost`` and names below it (RFC 6761, section 6.3), 127.0.0.0/8 and ``::1``, with or without brackets
    and zone. Not ``0.0.0.0``, nor spellings that only some resolvers take for loopback, such as ``127.1``.

    Example:
        >>> is_local("127.0.0.1"), is_local("[::1]"), is_local("workers.internal")
        (True, True, False)
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().removesuffix(".")
        return _NAME.fullmatch(name) is not None and (
            name == "localhost" or name.endswith(".localhost")
        )
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def grpc_hosts(target: str) -> list[str]:
    """The hosts that a gRPC *target* may lead to; it is local only if each of them is.

    Follows github.com/grpc/grpc, doc/naming.md: ``host:port``, ``dns:``, ``ipv4:``, ``ipv6:``, ``unix:`` and
    ``unix-abstract:``; for the last two the answer is ``["localhost"]``. What is found out elsewhere
    (``xds:`` and the like) counts as a host of that name, hence as another machine.

    Raises:
        ValueError: It is empty, or holds spaces or control characters.

    Example:
        >>> grpc_hosts("ipv4:10.0.0.1:9000,127.0.0.1:9000")
        ['10.0.0.1', '127.0.0.1']
    """
    if not target or re.search(r"[\x00-\x20\x7f]", target):
        raise ValueError(f"{target!r} is no gRPC target; one looks like workers.internal:9000")
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return ["localhost"]
    if scheme in ("ipv4", "ipv6"):
        return [_host(address) for address in unquote(rest.removeprefix("///")).split(",")]
    if scheme != "dns":
        return [_host(target)]
    if not rest.startswith("//"):
        return [_host(unquote(rest))]
    # The name server that is to be asked decides where the name leads.
    server, _, name = rest[2:].partition("/")
    return [_host(unquote(name)), *([_host(unquote(server))] if server else [])]


def _host(address: str) -> str:
    """*address* without its port."""
    match = re.fullmatch(r"\[([^][]*)\](?::[\w-]*)?", address) or re.fullmatch(
        r"([^:/]*)(?::[\w-]*)?", address
    )
    return match[1] if match else address


@dataclass(frozen=True, slots=True)
class URL:
    """The parts of an endpoint's URL.

    Attributes:
        scheme: In lower case.
        host: Without brackets.
        port: That of the URL, or the scheme's.
        target: Path and query as they are requested, ``"/"`` if there is neither: what a signature covers.
        authority: For the ``Host`` header (RFC 9110, section 7.2): with brackets, and the port unless it is
            the scheme's.
    """

    scheme: str
    host: str
    port: int
    target: str
    authority: str

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("https", "wss")

    @property
    def local(self) -> bool:
        """Whether it can only be this machine."""
        return is_local(self.host)


def parse_url(
    value: object,
    schemes: Sequence[str],
    *,
    label: str,
    key: str = "url",
    example: str | None = None,
) -> URL:
    """The checked URL of an endpoint.

    Args:
        value: What is configured.
        schemes: Those that the executor knows, such as ``("http", "https")``.
        label: What messages begin with.
        key: The key of ``executor_config``.
        example: What one looks like, for messages.

    Raises:
        TypeError: It is no text.
        ValueError: It is missing, has another scheme, no host, an impossible port, a user name, a fragment, or
            characters that must be percent-encoded (RFC 3986).
    """
    key_label = f"{label}: executor_config {key!r}"
    example = example or f"{schemes[-1]}://workers.internal/wove/tasks"
    if value is None or value == "":
        raise ValueError(
            f"{key_label} is missing; give the URL of the worker service, such as {example!r}"
        )
    if not isinstance(value, str):
        raise TypeError(
            f"{key_label} must be a URL such as {example!r}, not of type {type(value).__name__}"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError(
            f"{key_label} holds spaces, control characters or letters outside ASCII: percent-encode them"
        )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{key_label} is no URL: {error}. One looks like {example!r}") from None
    if "@" in parts.netloc:  # and not quoted: there is a password in it
        raise ValueError(
            f"{key_label} holds a user name or password, which is never sent; use 'security' or 'headers'"
        )
    if parts.scheme not in schemes:
        raise ValueError(
            f"{key_label} must begin with {rules.either([f'{s}://' for s in schemes])}, not {_start(value)!r}"
        )
    if not _NETLOC.fullmatch(parts.netloc):
        raise ValueError(
            f"{key_label} names no host (a name, or an address without a zone); it must look like {example!r}"
        )
    host = parts.hostname or ""
    if "#" in value:
        raise ValueError(
            f"{key_label} has a fragment ({'#' + parts.fragment!r}), which is never sent; remove it"
        )
    if port == 0:
        raise ValueError(f"{key_label} has port 0; give the port that the service listens on")
    default = _PORTS[parts.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    return URL(
        scheme=parts.scheme,
        host=host,
        port=port or default,
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        authority=bracketed if port in (None, default) else f"{bracketed}:{port}",
    )


def _start(value: str) -> str:
    scheme, separator, _ = value.partition("://")
    return scheme[:20] + separator if separator else value[:20]


def refuse_exposed(
    label: str,
    *,
    target: str,
    local: bool,
    tls: bool,
    security: NetworkExecutorSecurity,
    insecure: bool,
    tls_remedy: str = "TLS",
) -> None:
    """Refuse to send tasks to another machine in plain text, or without authentication.

    Args:
        label: What the message begins with.
        target: The URL or target, for the message.
        local: Whether it can only be this machine.
        tls: Whether the connection is encrypted.
        security: How requests are authenticated.
        insecure: The key ``insecure``: whether the user takes the risk.
        tls_remedy: What switches TLS on, such as ``"an https:// URL"`` or ``"secure=True"``.

    Raises:
        ValueError: It is exposed; the message says what is missing and how to set it.
    """
    if local or insecure or (tls and security.authenticates):
        return
    lacks = [] if tls else ["TLS"]
    remedies = [] if tls else [f"use {tls_remedy}"]
    if not security.authenticates:
        lacks.append("security")
        remedies.append('set executor_config "security": "env:WOVE_WORKER_SECRET" on both sides')
    raise ValueError(
        f"{label}: {target} is not on this machine, and the connection to it has no {' and no '.join(lacks)}: "
        "whoever is on the way could read and replace tasks and results, which are code. "
        f"To put that right, {' and '.join(remedies)}. "
        'On a development network only: "insecure": True'
    )
