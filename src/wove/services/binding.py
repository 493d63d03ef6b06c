"""Where a worker service listens, and who may see that: addresses, sockets, TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wove.net.keepalive import UNREAD_SECONDS, keep_alive
from wove.security.endpoints import is_local, missing_protection, resolves_to_loopback
from wove.services.options import ServiceOptions

__all__ = ["Bind", "ServerTLS", "refuse_exposed"]

LISTEN_BACKLOG: Final = 2048
"""Connections that the kernel completes before they are accepted; net.core.somaxconn may allow fewer."""

MAX_NUMBER: Final = 8192
SPARE_NUMBERS: Final = 16
"""The listening socket's descriptor is a little below the first, or below the process's limit."""


@dataclass(frozen=True, slots=True)
class Bind:
    """An address to listen on.

    Attributes:
        host: Name or address, without brackets.
        port: 0 for any free one.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Bind:
        """``"127.0.0.1:8800"``, ``"[::1]:8800"``, ``"0.0.0.0:0"``.

        Raises:
            ValueError: *text* has another form.
        """
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: put an IPv6 address in brackets: [{host}]:{port}")

        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(
                f"{text!r} is not a HOST:PORT, like 127.0.0.1:8800; 0.0.0.0 stands for every address of IPv4"
            )

        return cls(host, int(port))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect. Asks the resolver where the host is a name."""
        return is_local(self.host) and resolves_to_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def listen(self) -> socket.socket:
        """A listening socket that does not block.

        Raises:
            OSError: It cannot be had. The message names the address and the remedy.
        """
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise OSError(
                f"cannot listen on {self}: {self.host!r} is not an address of this machine ({error})"
            ) from error

        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        # With the protocol named: asyncio sets TCP_NODELAY on no other connections.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)

        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((str(address[0]), self.port))
            keep_alive(listener, unacknowledged=UNREAD_SECONDS)  # connections inherit it
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            remedy = (
                "another program listens there: end it, or choose another port"
                if self.port
                else "see the address"
            )
            raise OSError(
                error.errno, f"cannot listen on {self}: {error.strerror or error} ({remedy})"
            ) from error

        return _closing_first(listener)

    def at(self, listener: socket.socket) -> Bind:
        """The same with the port that *listener* really has."""
        return Bind(self.host, listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """The files with which a service proves who it is. `load` checks them.

    Attributes:
        certificate: PEM file: its certificate, followed by those up to the root.
        key: PEM file: its private key, without a password.
        client_ca: PEM file: clients must have a certificate of one of these authorities; ``None``: they need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def load(
        cls,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str],
        client_ca: str | os.PathLike[str] | None = None,
    ) -> ServerTLS:
        """Check that the files are there and fit together.

        Raises:
            ValueError: They do not. The message names the file.
        """
        tls = cls(Path(certificate), Path(key), None if client_ca is None else Path(client_ca))
        tls.context()
        return tls

    def context(self, *, alpn: list[str] | None = None) -> ssl.SSLContext:
        """Return the context for asyncio: TLS 1.2 or newer.

        Raises:
            ValueError: The files cannot be used. The message names the file.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not path.is_file():
                raise ValueError(f"TLS: there is no file {str(path)!r}")

        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ValueError(
                f"TLS: the certificate {str(self.certificate)!r} and the key {str(self.key)!r} cannot be used: {error}."
                f" Both must be PEM, belong together, and the key must have no password"
            ) from error

        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ValueError(
                    f"TLS: {str(self.client_ca)!r} holds no PEM certificates of client authorities: {error}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED

        if alpn is not None:
            context.set_alpn_protocols(alpn)
        return context

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Certificate chain, key and client authorities, for libraries that take their contents."""
        client_ca = None if self.client_ca is None else self.client_ca.read_bytes()
        return self.certificate.read_bytes(), self.key.read_bytes(), client_ca


def refuse_exposed(
    bind: Bind,
    tls: ServerTLS | None,
    options: ServiceOptions,
    *,
    insecure: bool = False,
    unauthenticated: bool = False,
    tls_at_proxy: bool = False,
) -> None:
    """Refuse to listen where other machines can connect, without TLS or without authentication.

    Args:
        bind: The address.
        tls: ``None``: plaintext.
        options: The options of the service; ``security`` counts.
        insecure: Whether plaintext is accepted.
        unauthenticated: Whether a service without security is accepted.
        tls_at_proxy: Whether plaintext is accepted because a proxy in front of this service ends TLS.

    Raises:
        ValueError: The address is refused; the message says what is missing.
    """
    lacks = missing_protection(tls=tls is not None, security=options.security)
    told: list[str] = []

    if "TLS" in lacks and not (insecure or tls_at_proxy):
        told.append(
            "without TLS (--tls-cert and --tls-key, or --tls-at-proxy if a proxy in front of it does that; "
            "on a network that you trust, --insecure)"
        )

    if "security" in lacks and not unauthenticated:
        told.append(
            "without asking who sends (--security env:VARIABLE; where everybody who can connect may run code, "
            "--unauthenticated)"
        )

    if told and not bind.is_local:
        raise ValueError(
            f"refused to listen on {bind}, which other machines can reach, {' and '.join(told)}: "
            f"whoever may send runs to a worker service may run any code in it"
        )


def _closing_first(listener: socket.socket) -> socket.socket:
    """*listener* under a number above those of the connections.

    A process that is killed has its files closed from the highest number down, as Linux 6 does it (fput() leaves it to
    task work, which is done last in, first out; nothing promises that order). With the listener last, a client that
    has just lost its connection could connect to a process that is gone already, and would lose its next run, too.
    """
    # ImportError: on Windows. The others: there are no such numbers, or none is free.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import fcntl
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        least = (
            MAX_NUMBER if limit == resource.RLIM_INFINITY else min(MAX_NUMBER, limit)
        ) - SPARE_NUMBERS
        number = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, least)
        listener.close()
        listener = socket.socket(fileno=number)

    listener.setblocking(False)
    return listener


def _no_password() -> str:
    raise ValueError("the key has a password")
