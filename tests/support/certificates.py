"""Certificates for the tests' own services: a private authority, and one of each kind that must not be trusted.

Made once per session, into a folder that goes with it. Nothing of it is in the repository, so nothing of it expires.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.namespaces import FAR_ADDRESS

__all__ = ["Certificates", "Pair", "make_certificates"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate (with what stands between it and its authority) and its key: the paths of two PEM files."""

    certificate: Path
    key: Path

    def pem(self) -> tuple[str, str]:
        """The texts of the two files."""
        return self.certificate.read_text(), self.key.read_text()


@dataclass(frozen=True, slots=True)
class Certificates:
    """What `make_certificates` makes.

    Attributes:
        authority: The private CA's own certificate: what clients and services are told to trust.
        server: For ``localhost``, ``127.0.0.1``, ``::1`` and `FAR_ADDRESS` (tests/support/namespaces.py).
        client: Of the same CA, for a client.
        expired: As `server`, but over since yesterday.
        misnamed: As `server`, but for ``elsewhere.example`` only.
        stranger_authority: Another CA.
        stranger_server: As `server`, of the other CA.
        stranger_client: As `client`, of the other CA.
    """

    authority: Path
    server: Pair
    client: Pair
    expired: Pair
    misnamed: Pair
    stranger_authority: Path
    stranger_server: Pair
    stranger_client: Pair


def make_certificates(folder: Path) -> Certificates:
    """All of them, in *folder*."""
    import trustme

    def issue(authority: trustme.CA, name: str, *identities: str, **dates: dt.datetime) -> Pair:
        pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        leaf = authority.issue_cert(*identities, common_name=name, **dates)
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(pair.key))
        return pair

    def write(authority: trustme.CA, name: str) -> Path:
        authority.cert_pem.write_to_path(str(folder / name))
        return folder / name

    own, other = trustme.CA(organization_name="Own"), trustme.CA(organization_name="Other")
    here = ("localhost", "127.0.0.1", "::1", FAR_ADDRESS)
    today = dt.datetime.now(dt.UTC)
    return Certificates(
        authority=write(own, "authority.pem"),
        server=issue(own, "server", *here),
        client=issue(own, "client", "client.example"),
        expired=issue(
            own,
            "expired",
            *here,
            not_before=today - dt.timedelta(days=30),
            not_after=today - dt.timedelta(days=1),
        ),
        misnamed=issue(own, "misnamed", "elsewhere.example"),
        stranger_authority=write(other, "stranger-authority.pem"),
        stranger_server=issue(other, "stranger-server", *here),
        stranger_client=issue(other, "stranger-client", "client.example"),
    )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The session's certificates."""
    pytest.importorskip("trustme")
    return make_certificates(tmp_path_factory.mktemp("certificates"))
