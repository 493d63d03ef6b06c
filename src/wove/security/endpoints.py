"""Checks which peers the network executors, the worker services and the callback receiver may talk to.

No connection is opened here. Messages begin with *label*, such as ``"environment 'workers'"``.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import unquote, urlsplit

from wove.graph import rules

if TYPE_CHECKING:
    from wove.security import NetworkExecutorSecurity

__all__ = [
    "URL",
    "grpc_hosts",
    "is_local",
    "is_loopback",
    "missing_protection",
    "parse_url",
    "refuse_exposed",
    "refuse_exposed_receiver",
    "refuse_foreign_peer",
    "resolves_to_loopback",
]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# RFC 3986, section 3.2.2, and RFC 6874: a zone means something to one machine only.
_NETLOC: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)(:[0-9]*)?")
_SECURITY_REMEDY: Final = 'set executor_config "security": "env:WOVE_WORKER_SECRET" on both sides'
_URL_SCHEMES: Final = frozenset({"http", "https", "grpc", "grpcs", "ws", "wss", "tcp"})
_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def is_local(host: str) -> bool:
    """Return whether *host* can only be this machine.

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

    if (loopback := is_loopback(host)) is not None:
        return loopback
    name = host.lower().removesuffix(".")
    return _NAME.fullmatch(name) is not None and (
        name == "localhost" or name.endswith(".localhost")
    )


def is_loopback(address: str) -> bool | None:
    """Return whether *address* is one of this machine alone; ``None`` if it is a name, not an address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None

    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback


def resolves_to_loopback(host: str) -> bool:
    """Return whether every address that *host* stands for is of this machine alone.

    A name is looked up, which may take a while. A name that does not resolve leads nowhere and counts as local:
    connecting or listening reports it.
    """
    if (loopback := is_loopback(host)) is not None:
        return loopback
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True

    return all(is_loopback(str(place[0])) for *_, place in found)


def refuse_foreign_peer(peer: object, host: str) -> None:
    """Refuse a connection to *host*, admitted without TLS or security as local, that leads elsewhere.

    Args:
        peer: The peer's address as the socket tells it: a tuple for TCP; anything else is local.
        host: The name that was connected to, for the message.

    Raises:
        ValueError: The peer is another machine.
    """
    if isinstance(peer, tuple) and peer and not is_loopback(str(cast("tuple[object]", peer)[0])):
        raise ValueError(
            f"{host} is an address of another machine here ({cast('tuple[object]', peer)[0]}), and without TLS and "
            f'security only this machine may be connected to. Set both, or "insecure": True'
        )


def grpc_hosts(target: str) -> list[str]:
    """Return the hosts that a gRPC *target* may lead to. The target is local only if each of them is.

    Follows github.com/grpc/grpc, doc/naming.md: ``host:port``, ``dns:``, ``ipv4:``, ``ipv6:``, ``unix:`` and
    ``unix-abstract:``; for the last two the result is ``["localhost"]``. Other schemes (``xds:`` and the like) count
    as a host of that name, hence as another machine.

    Raises:
        ValueError: *target* is empty, or contains spaces or control characters.

    Example:
        >>> grpc_hosts("ipv4:10.0.0.1:9000,127.0.0.1:9000")
        ['10.0.0.1', '127.0.0.1']
    """
    if not target or re.search(r"[\x00-\x20\x7f]", target):
        raise ValueError(f"{target!r} is not a gRPC target; one looks like workers.internal:9000")
    scheme, _, rest = target.partition(":")
    if rest.startswith("//") and scheme.lower() in _URL_SCHEMES:
        with_tls = """, with TLS by "secure": True""" if scheme in ("https", "grpcs") else ""
        raise ValueError(
            f"{target!r} is a URL, and gRPC takes no scheme {scheme}://; "
            f"give {rest.strip('/') or 'HOST:PORT'!r}{with_tls}"
        )

    if scheme in ("unix", "unix-abstract"):
        return ["localhost"]
    if scheme in ("ipv4", "ipv6"):
        return [_host(address) for address in unquote(rest.removeprefix("///")).split(",")]
    if scheme != "dns":
        return [_host(target)]
    if not rest.startswith("//"):
        return [_host(unquote(rest))]
    # The name server decides where the name leads.
    server, _, name = rest[2:].partition("/")
    return [_host(unquote(name)), *([_host(unquote(server))] if server else [])]


def _host(address: str) -> str:
    """Return *address* without its port."""
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
    def bracketed(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

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
    """Return the checked URL of an endpoint.

    Args:
        value: The configured value.
        schemes: The schemes that the executor knows, such as ``("http", "https")``.
        label: The beginning of messages.
        key: The key of ``executor_config``.
        example: An example for messages.

    Raises:
        TypeError: *value* is not text.
        ValueError: *value* is missing, has another scheme, no host, an impossible port, a user name, a fragment, or
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
        raise ValueError(f"{key_label} is not a URL: {error}. One looks like {example!r}") from None

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


def missing_protection(*, tls: bool, security: NetworkExecutorSecurity) -> list[str]:
    """Return what a connection to another machine lacks: ``"TLS"``, ``"security"``, both or nothing.

    The one rule for all ways between two machines, out and back.
    """
    return [
        name for name, given in (("TLS", tls), ("security", security.authenticates)) if not given
    ]


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
    lacks = missing_protection(tls=tls, security=security)
    if local or insecure or not lacks:
        return
    remedies = [f"use {tls_remedy}"] if "TLS" in lacks else []
    if "security" in lacks:
        remedies.append(_SECURITY_REMEDY)
    raise ValueError(
        f"{label}: {target} is not on this machine, and the connection to it has no {' and no '.join(lacks)}: "
        "whoever is on the way could read and replace tasks and results, which are code. "
        f"To put that right, {' and '.join(remedies)}. "
        'On a development network only: "insecure": True'
    )


def refuse_exposed_receiver(
    label: str,
    *,
    host: str,
    url: str | None,
    security: NetworkExecutorSecurity,
    insecure: bool,
) -> None:
    """Refuse a callback receiver that other machines can reach without TLS, or without authentication.

    Args:
        label: What the message begins with.
        host: Where the receiver listens.
        url: What workers call; ``None``: the address that is listened on. ``https://`` names a proxy that ends TLS.
        security: How events are authenticated.
        insecure: The key ``insecure``: whether the user takes the risk.

    Raises:
        ValueError: The receiver is exposed; the message says what is missing and how to set it.
    """
    parts = None if url is None else urlsplit(url)
    tls = parts is not None and parts.scheme == "https"
    lacks = missing_protection(tls=tls, security=security)
    if insecure or not lacks:
        return
    called = host if parts is None else (parts.hostname or host)
    if is_local(called) and is_local(host) and resolves_to_loopback(host):
        return
    remedies: list[str] = []
    if "TLS" in lacks:
        remedies.append(
            'put a proxy with TLS before it and name that in executor_config "callback_url": "https://..."'
        )

    if "security" in lacks:
        remedies.append(_SECURITY_REMEDY)
    raise ValueError(
        f"{label}: other machines can reach its callback receiver ({host}{f', called as {called}' if parts else ''}), "
        f"and it has no {' and no '.join(lacks)}: "
        "whoever is on the way could read and replace results, which are code. "
        f"To put that right, {' and '.join(remedies)}. "
        'On a network that is yours alone: "insecure": True'
    )
