"""Certificates and keys: whom the network executors trust, and how they identify themselves."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import ssl

__all__ = ["PEM", "TLSFiles"]

PEM: TypeAlias = str | bytes | os.PathLike[str]
"""PEM text or bytes, or the path of a file that holds it."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""More than any bundle of certificates has (that of Mozilla's authorities is 0.2 MiB): a path that leads to
something else altogether is an error, not a full memory."""

# RFC 7468. The text between the lines is base64, and in keys of the older kind a few headers.
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """The certificates of a client, as configured: each PEM text, PEM bytes, or the path of a PEM file.

    Files are read when `pem` or `context` is called, so that a session started after a certificate was
    renewed has the new one.

    Attributes:
        root_certificates: Who is trusted. ``None``: the authorities that this machine trusts.
        client_certificate: The certificate to present, and those between it and its authority.
        client_key: Its private key, not encrypted. ``None``: it is in `client_certificate`.
        label: What messages begin with, such as ``"environment 'workers'"``.

    Example:
        >>> TLSFiles("/etc/wove/ca.pem", "/etc/wove/client.pem", "/etc/wove/client.key").given
        True
    """

    root_certificates: PEM | None = field(default=None, repr=False)
    client_certificate: PEM | None = field(default=None, repr=False)
    client_key: PEM | None = field(default=None, repr=False)
    label: str = "TLS"

    def __post_init__(self) -> None:
        for key in ("root_certificates", "client_certificate", "client_key"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, (str, bytes, os.PathLike)):
                raise TypeError(
                    f"{self.label}: executor_config {key!r} must be PEM text or the path of a PEM file, "
                    f"not of type {type(value).__name__}"
                )
            if value is not None and not value:
                raise ValueError(
                    f"{self.label}: executor_config {key!r} is empty; give PEM text or the path of a PEM file, "
                    "or leave it out"
                )

        if self.client_key is not None and self.client_certificate is None:
            raise ValueError(
                f"{self.label}: executor_config 'client_key' is given without 'client_certificate': "
                "a key alone identifies nobody. Give the certificate as well"
            )

    @property
    def given(self) -> bool:
        """Whether anything is configured at all."""
        return self.root_certificates is not None or self.client_certificate is not None

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Root certificates, client certificates and client key as PEM bytes, read and checked.

        Reads files: not to be called on a loop that must not wait for a disk.

        Raises:
            ValueError: A file is not there or not PEM, the key is encrypted or belongs to another certificate.
                The message names the key of ``executor_config``, and never quotes a private key.
        """
        roots, chain, key = self._read()
        _context(self, roots, chain, key)
        return roots, chain, key

    def context(self, alpn: Sequence[str] | None = None) -> ssl.SSLContext:
        """A context for clients: TLS 1.2 or later, certificate and host name checked.

        Args:
            alpn: The protocols to offer, most wanted first (RFC 7301); ``None``: none.

        Raises:
            ValueError: As `pem`.
        """
        context = _context(self, *self._read())
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def _read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        roots = chain = key = None
        if self.root_certificates is not None:
            roots = self._certificates("root_certificates", self._bytes("root_certificates"))
        if self.client_certificate is not None:
            both = self._bytes("client_certificate")
            chain = self._certificates("client_certificate", both)
            key = self._key(both)

        return roots, chain, key

    def _bytes(self, name: str) -> bytes:
        value: PEM = getattr(self, name)
        if isinstance(value, str) and "-----BEGIN" in value:
            return value.encode()
        if isinstance(value, bytes):
            return value
        label = f"{self.label}: executor_config {name!r}"
        path = os.fspath(value)

        try:
            with Path(path).expanduser().open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError, RuntimeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "that is not a path"
            raise ValueError(
                f"{label} is neither PEM text (which begins with -----BEGIN) nor a file that can be read: "
                f"{why}{_shown(path)}"
            ) from None

        if len(content) > MAX_BYTES:
            raise ValueError(
                f"{label} is a file of more than {MAX_BYTES // 2**20} MiB{_shown(path)}; give a PEM file"
            )

        return content

    def _certificates(self, name: str, content: bytes) -> bytes:
        found = _CERTIFICATE.findall(content)
        if not found:
            hint = (
                " It looks like DER: openssl x509 -inform der -in FILE -out FILE.pem"
                if content[:1] == b"0"
                else ""
            )
            raise ValueError(
                f"{self.label}: executor_config {name!r} holds no certificate in PEM form "
                f"(a line -----BEGIN CERTIFICATE-----).{hint}"
            )

        return b"\n".join(found) + b"\n"

    def _key(self, beside: bytes) -> bytes:
        name = "client_certificate" if self.client_key is None else "client_key"
        label = f"{self.label}: executor_config {name!r}"
        match = _KEY.search(beside if self.client_key is None else self._bytes("client_key"))
        if match is None and self.client_key is None:
            raise ValueError(f"{label} holds no private key; give it as 'client_key'")
        if match is None:
            raise ValueError(
                f"{label} holds no private key in PEM form (a line -----BEGIN PRIVATE KEY-----)"
            )

        if b"ENCRYPTED" in match[0]:
            raise ValueError(
                f"{label} is encrypted, and nobody is there to type its passphrase. "
                "Give it decrypted, in a file that only this user can read: openssl pkey -in FILE -out PLAIN"
            )

        return match[0] + b"\n"


def _shown(path: str) -> str:
    """*path* as the end of a message, unless it could be the base64 of a key that lost its first line.

    Those never have a dot, and begin with an M: the first byte of a DER sequence is 0x30.
    """
    likely = ("." in path or path.startswith("/")) and len(path) <= 255 and path.isprintable()
    return f" ({path!r})" if likely else ""


def _context(
    files: TLSFiles, roots: bytes | None, chain: bytes | None, key: bytes | None
) -> ssl.SSLContext:
    import ssl

    # Not create_default_context: it asks for more of a certificate from Python 3.13 on, and keeps a log of
    # session keys where an environment variable says so. This is the same on every version.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    if roots is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        try:
            context.load_verify_locations(cadata=roots.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError):
            raise ValueError(
                f"{files.label}: executor_config 'root_certificates' holds a certificate that cannot be read. "
                "Look at it with: openssl x509 -text -noout -in FILE"
            ) from None
        # As gRPC does: an intermediate authority that is named here is trusted as such.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    if chain is not None and key is not None:
        _identify(context, chain, key, files)
    return context


def _identify(context: ssl.SSLContext, chain: bytes, key: bytes, files: TLSFiles) -> None:
    import ssl

    name = "client_certificate" if files.client_key is None else "client_key"

    try:
        with _readable(key + chain) as path:
            context.load_cert_chain(path, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise ValueError(
                f"{files.label}: executor_config {name!r} is not the key of 'client_certificate', "
                "whose first certificate must be the client's own"
            ) from None
        raise ValueError(
            f"{files.label}: executor_config 'client_certificate' and its key cannot be read "
            f"({error.reason or 'not PEM'}). Look at them with: openssl x509 -text -noout -in FILE; "
            "openssl pkey -check -noout -in FILE"
        ) from None


def _no_passphrase() -> bytes:
    # Without this, OpenSSL would ask for it at the terminal.
    raise ValueError("the key is encrypted")


@contextlib.contextmanager
def _readable(content: bytes) -> Generator[str]:
    """A path from which OpenSSL can read *content*: the `ssl` module loads keys from files alone.

    Memory where the system has such files, otherwise a temporary file of this user's that is removed at once.
    """
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("wove")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return

    descriptor, path = tempfile.mkstemp(prefix="wove-")

    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)
