"""Whether the addresses in an ``executor_config`` can be reached: name, port, certificate."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from wove.diagnosis.findings import Finding
from wove.settings.config_readers import tls_files
from wove.settings.masking import masked

__all__ = ["Place", "check_place", "clock_ahead", "places_of"]

ADDRESS_KEYS: Final = ("url", "target", "broker_url", "redis_url", "address", "target_host")
"""Keys of ``executor_config`` that say where a service, broker or cluster is."""

PORTS: Final[Mapping[str, int]] = {
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
    "redis": 6379,
    "rediss": 6379,
    "amqp": 5672,
    "amqps": 5671,
    "pyamqp": 5672,
    "ray": 10001,
}
"""The usual port of each scheme."""

TLS_SCHEMES: Final = frozenset({"https", "wss"})
HTTP_SCHEMES: Final = frozenset({"http", "https", "ws", "wss"})
CONNECT_SECONDS: Final = 5.0
DAY_SECONDS: Final = 86_400

RENEWAL_DAYS: Final = 14
"""A certificate that ends within this many days is a warning."""


class Place(NamedTuple):
    """Where something listens.

    Attributes:
        key: The key of ``executor_config``.
        text: The address as configured, without secrets.
        host: Its host.
        port: Its port.
        tls: Whether it is spoken to over TLS that the files of ``executor_config`` configure.
    """

    key: str
    text: str
    host: str
    port: int
    tls: bool


def places_of(config: Mapping[str, Any]) -> Iterator[Place]:
    """Yield the addresses of *config* that are TCP addresses."""
    for key in ADDRESS_KEYS:
        value = config.get(key)
        if not isinstance(value, str):
            continue
        text = value.split(";")[0] if key == "broker_url" else value
        parts = urlsplit(text if "://" in text else f"//{text}")
        with contextlib.suppress(ValueError):  # not a port
            port = parts.port or PORTS.get(parts.scheme)
            if parts.hostname and port:
                tls = parts.scheme in TLS_SCHEMES or bool(config.get("secure"))
                yield Place(key, masked(key, text), parts.hostname, port, tls)


def check_place(environment: str, place: Place, config: Mapping[str, Any]) -> list[Finding]:
    """Connect to *place*, with TLS where it is spoken there. Blocks for some seconds at most."""

    def finding(check: str, status: Any, message: str, remedy: str = "") -> Finding:
        return Finding(environment, check, status, message, remedy)

    try:
        sock = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
    except socket.gaierror as error:
        text = f"there is no host {place.host!r}: {error.strerror or error}"
        remedy = f"correct executor_config {place.key!r} ({place.text}), or the name server's entry"
        return [finding("address", "failed", text, remedy)]
    except OSError as error:
        return [finding("address", "failed", *_no_connection(place, error))]

    with sock:
        findings = [finding("address", "ok", f"{place.host}:{place.port} accepts connections")]
        if place.tls:
            findings.append(finding("certificate", *_certificate(sock, place, config)))
    return findings


def _no_connection(place: Place, error: OSError) -> tuple[str, str]:
    where = f"{place.host}:{place.port}"
    key = f"executor_config {place.key!r} ({place.text})"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nothing listens at {where}: the connection was refused",
            f"start the service or broker there, or correct the port in {key}",
        )
    if isinstance(error, TimeoutError):
        return (
            f"{where} did not answer within {CONNECT_SECONDS:g} s",
            f"open the port in the firewalls between the two machines, or correct {key}",
        )
    return (f"{where} cannot be reached: {error}", f"correct the network, or {key}")


def _certificate(
    sock: socket.socket, place: Place, config: Mapping[str, Any]
) -> tuple[Any, str, str]:
    from wove.executors.network.hints import advice_for_certificate

    try:
        context = tls_files(config, label="executor_config").context(["http/1.1", "h2"])
        with context.wrap_socket(sock, server_hostname=place.host) as secured:
            ends = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        if "expired" in error.verify_message:
            text = f"the certificate of {place.host}:{place.port} has expired"
            return "failed", text, "renew the certificate of the service, and restart the service"
        remedy = "correct the certificate, or trust its authority with executor_config 'root_certificates'"
        return "failed", advice_for_certificate(error), remedy
    except (OSError, ValueError, KeyError) as error:
        text = f"TLS with {place.host}:{place.port} failed: {error}"
        return "failed", text, "speak TLS on both sides or on none, and correct the certificates"

    days = (ends - time.time()) / DAY_SECONDS
    if days < RENEWAL_DAYS:
        return "warning", f"the certificate ends in {days:.0f} days", "renew it"
    return "ok", f"the certificate is valid for {days:.0f} more days", ""


def clock_ahead(place: Place, config: Mapping[str, Any]) -> float | None:
    """Return how many seconds the clock of an HTTP service is ahead of ours; ``None``: it does not say.

    Blocks for some seconds at most.
    """
    parts = urlsplit(place.text)
    if parts.scheme not in HTTP_SCHEMES:
        return None

    if place.tls:
        context = tls_files(config, label="executor_config").context(["http/1.1"])
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            place.host, place.port, timeout=CONNECT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(place.host, place.port, timeout=CONNECT_SECONDS)

    with contextlib.closing(connection):
        try:
            connection.request("POST" if parts.scheme.startswith("http") else "GET", parts.path)
            date = connection.getresponse().getheader("Date")
            return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
        except (OSError, ValueError, http.client.HTTPException):
            return None
